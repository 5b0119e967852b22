"""Where a store is: secrets in a URL and plain HTTP to elsewhere are refused before anything is opened."""

import pytest

from p2pkv.errors import LocalUseError
from p2pkv.tiers.object.location import Location, may_be_plain, parse_location

S3 = parse_location("s3://bucket/folder")


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("s3://bucket", Location("s3", "bucket", "")),
        ("s3://bucket/", Location("s3", "bucket", "")),
        ("s3://bucket/a/b/", Location("s3", "bucket", "a/b")),
        ("gs://bucket/a", Location("gs", "bucket", "a")),
        ("az://container/a", Location("az", "container", "a")),
        ("file:///mnt/kv", Location("file", "", "/mnt/kv")),
        ("file:///mnt/with%20space/", Location("file", "", "/mnt/with space")),
    ],
)
def test_what_a_url_says(url: str, location: Location) -> None:
    assert parse_location(url) == location


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "no scheme"),
        ("/mnt/kv", "no scheme"),
        ("http://host/bucket", "begins with 'http://'"),
        ("memory:///", "begins with 'memory://'"),
        ("s3:///folder", "names no bucket"),
        ("file://host/folder", "must be as in"),
        ("file:///", "must be as in"),
        ("s3://bucket/a/../b", "without `..`"),
        ("file:///mnt/%2e%2e/etc", "without `..`"),
        ("s3://[bucket", "malformed"),
    ],
)
def test_what_is_no_place(url: str, complaint: str) -> None:
    with pytest.raises(LocalUseError, match=complaint):
        parse_location(url)


@pytest.mark.parametrize(
    "url", ["s3://AKIAID:hunter2@bucket/a", "az://container/a?sig=hunter2", "s3://bucket/a#hunter2"]
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(LocalUseError, match="has a user, a query or a fragment") as caught:
        parse_location(url)
    assert "hunter2" not in str(caught.value)
    assert "environment" in caught.value.hint


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "127.8.8.8", "[::1]:9000", "localhost:9000"])
def test_plain_http_is_spoken_on_loopback(host: str) -> None:
    assert may_be_plain(S3, {"AWS_ENDPOINT_URL": f"http://{host}"}, insecure=False)


@pytest.mark.parametrize(
    "host", ["10.0.0.1:9000", "storage.example", "localhost.example", "127.0.0.1.example", "[fe80::1]", ""]
)
def test_plain_http_to_elsewhere_is_refused_unless_asked_for(host: str) -> None:
    environment = {"AWS_ENDPOINT_URL": f"http://{host}"}
    with pytest.raises(LocalUseError, match="AWS_ENDPOINT_URL is plain HTTP"):
        may_be_plain(S3, environment, insecure=False)
    assert may_be_plain(S3, environment, insecure=True)


def test_without_a_server_of_ones_own_or_with_tls_nothing_is_plain() -> None:
    assert not may_be_plain(S3, {}, insecure=True)
    assert not may_be_plain(S3, {"AWS_ENDPOINT_URL": "https://127.0.0.1"}, insecure=True)
    assert not may_be_plain(parse_location("gs://bucket"), {"AWS_ENDPOINT_URL": "http://127.0.0.1"}, insecure=True)
    assert not may_be_plain(parse_location("file:///mnt"), {"AWS_ENDPOINT_URL": "http://elsewhere"}, insecure=False)


def test_the_most_particular_variable_counts() -> None:
    environment = {"AWS_ENDPOINT_URL": "http://127.0.0.1", "AWS_ENDPOINT_URL_S3": "http://elsewhere"}
    with pytest.raises(LocalUseError, match="AWS_ENDPOINT_URL_S3"):
        may_be_plain(S3, environment, insecure=False)
