"""Certificates on disk: made, changed and shown by `p2pkv cert`, read by a node, and refused when they do not fit."""

import datetime as dt
import json
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from p2pkv.authority import Authority
from p2pkv.certificate_files import read_credentials, write_node_folder
from p2pkv.cli.main import cli
from p2pkv.config import LogConfig
from p2pkv.errors import ConfigError, LocalUseError
from p2pkv.identity import Identity
from p2pkv.logs import logger
from p2pkv.metrics import Metrics
from p2pkv.own_certificate import OwnCertificate
from p2pkv.transport.certificates import uri
from p2pkv.transport.credentials import Credentials

A, B = "a" * 16, "b" * 16
DAY_S = 86_400


def cert(*arguments: str | Path) -> dict:
    done = CliRunner().invoke(cli, ["cert", *map(str, arguments), "-o", "json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str | Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(cli, ["cert", *map(str, arguments)], catch_exceptions=False)
    assert caught.value.hint
    return caught.value


def shown(folder: Path) -> list[str]:
    return [one["fingerprint"] for one in cert("show", folder)["certificates"]]


def test_an_authority_issues_and_everything_is_for_its_owner_alone(tmp_path: Path) -> None:
    cert("init", tmp_path / "ca", "--cluster", "prod")
    (made,) = cert("issue", tmp_path / "a", "--authority", tmp_path / "ca")["certificates"]
    assert (made["cluster"], made["kind"], made["valid"], made["days_left"]) == ("prod", "node", True, 90)
    own = read_credentials(tmp_path / "a").own
    assert (own.node, own.sha256) == (made["node"], made["sha256"])
    names = own.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://prod/node/{own.node}"]
    files = [*(tmp_path / "a").iterdir(), *(tmp_path / "ca").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert sorted(file.name for file in files) == ["ca.crt", "ca.crt", "ca.key", "tls.crt", "tls.key"]
    assert [one["kind"] for one in cert("show", tmp_path / "a")["certificates"]] == ["node", "authority"]
    text = CliRunner().invoke(cli, ["cert", "show", str(tmp_path / "a")]).stdout
    assert "90 days" in text
    key = (tmp_path / "a" / "tls.key").read_text()
    assert key.splitlines()[1] not in text + json.dumps(made)


def test_a_certificate_never_outlives_its_authority(tmp_path: Path) -> None:
    now = time.time()
    made = Authority.create(tmp_path, cluster="c", days=10, now=now)
    assert made.issue(A, days=90, now=now)[2].not_after == made.signing.not_after
    with pytest.raises(ConfigError, match="authority's certificate has expired"):
        made.issue(A, days=1, now=now + 11 * DAY_S)


def test_rotation_of_a_node_keeps_who_it_is(tmp_path: Path) -> None:
    cert("init", tmp_path / "ca")
    (before,) = cert("issue", tmp_path / "a", "--authority", tmp_path / "ca", "--node", A)["certificates"]
    key = (tmp_path / "a" / "tls.key").read_bytes()
    (after,) = cert("rotate", tmp_path / "a", "--authority", tmp_path / "ca", "--days", "7")["certificates"]
    assert (before["node"], after["node"], after["days_left"]) == (A, A, 7)
    assert after["fingerprint"] != before["fingerprint"]
    assert (tmp_path / "a" / "tls.key").read_bytes() != key
    read_credentials(tmp_path / "a")


def test_an_authority_changes_in_three_steps_and_in_no_other_order(tmp_path: Path) -> None:
    ca, a, b = tmp_path / "ca", tmp_path / "a", tmp_path / "b"
    cert("init", ca)
    cert("issue", a, "--authority", ca)
    cert("issue", b, "--authority", ca)
    assert "--step install" in refused("rotate", ca).hint
    refused("rotate", ca, "--step", "use")
    refused("rotate", ca, "--step", "remove")
    (old,) = shown(ca)
    cert("rotate", ca, "--step", "install")
    both = shown(ca)
    assert both[0] == old
    assert "--step use" in refused("rotate", ca, "--step", "install").hint
    refused("rotate", ca, "--step", "remove")
    cert("rotate", a, "--authority", ca)
    assert shown(a)[1:] == both, "still signed by the old one, and believes both"
    assert read_credentials(a).trusts(read_credentials(b).own.parsed)
    cert("rotate", ca, "--step", "use")
    assert not (ca / "next.key").exists()
    cert("rotate", b, "--authority", ca)
    assert read_credentials(a).trusts(read_credentials(b).own.parsed), "signed by the new one, believed where both are"
    cert("rotate", a, "--authority", ca)
    cert("rotate", ca, "--step", "remove")
    cert("rotate", a, "--authority", ca)
    assert shown(ca) == shown(a)[1:] == [both[1]]
    assert read_credentials(a).trusts(read_credentials(b).own.parsed)
    assert "--step install" in refused("rotate", ca).hint


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    cert("init", tmp_path / "ca")
    cert("init", tmp_path / "other", "--cluster", "other")
    cert("issue", tmp_path / "a", "--authority", tmp_path / "ca")
    assert "left alone" in str(refused("init", tmp_path / "ca"))
    assert "cert rotate" in refused("issue", tmp_path / "a", "--authority", tmp_path / "ca").hint
    assert "of cluster 'default'" in str(refused("rotate", tmp_path / "a", "--authority", tmp_path / "other"))
    refused("rotate", tmp_path / "a")
    refused("rotate", tmp_path / "nothing", "--authority", tmp_path / "ca")
    refused("issue", tmp_path / "b", "--authority", tmp_path / "nothing")
    refused("show", tmp_path / "nothing")


@pytest.mark.parametrize("cluster", ["Prod", "a/b", "", "x" * 65, "a b"])
def test_a_cluster_that_cannot_stand_in_a_certificate_is_refused(tmp_path: Path, cluster: str) -> None:
    refused("init", tmp_path / "ca", "--cluster", cluster)
    with pytest.raises(ConfigError):
        uri("c", "not an id")


def spoiled(folder: Path, how: str) -> str:
    """Spoil what is in `folder`, and return what is to be said of it."""
    authority = Authority.read(folder.parent / "ca")
    at = {"expired": -9.0 * DAY_S, "early": 9.0 * DAY_S}.get(how, 0.0)
    chain, key, _ = authority.issue(A, days=1, now=time.time() + at)
    write_node_folder(folder, chain=chain, key=key, authorities=authority.bundle)
    match how:
        case "expired":
            return "has expired"
        case "early":
            return "not valid yet"
        case "open":
            (folder / "tls.key").chmod(0o640)
            return r"others may open the key \(mode 0640\)"
        case "half":
            (folder / "tls.key").write_bytes(authority.issue(A, days=1, now=time.time())[1])
            return "the key is not the one of the certificate"
        case "stranger":
            other = Authority.create(folder / "other", cluster="c", days=1, now=time.time())
            (folder / "ca.crt").write_bytes(other.bundle)
            return "not of an authority that this node believes"
        case "authority":
            for name in ("ca.crt", "ca.key"):
                shutil.copy(folder.parent / "ca" / name, folder / name.replace("ca", "tls"))
            return "an authority's, not a node's"
        case "gone":
            (folder / "ca.crt").unlink()
            return "No such file"
        case "garbage":
            (folder / "tls.crt").write_bytes(b"-----BEGIN CERTIFICATE-----\nxxx")
            return "cannot be read as PEM"
        case "nameless":
            (folder / "tls.crt").write_bytes(nameless())
            return "without a node's name"
        case _:
            (folder / "tls.crt").write_bytes(bytes(300_000))
            return "more than 262144 bytes"


def nameless() -> bytes:
    """Return a certificate without a URI name, as other tools make them."""
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([]), dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


SPOILED = ["expired", "early", "open", "half", "stranger", "authority", "gone", "garbage", "nameless", "huge"]


@pytest.mark.parametrize("how", SPOILED)
def test_a_certificate_that_is_not_good_stops_the_start_with_a_hint(tmp_path: Path, how: str) -> None:
    Authority.create(tmp_path / "ca", cluster="c", days=400, now=time.time() - 10 * DAY_S)
    said = spoiled(tmp_path / "a", how)
    with pytest.raises(ConfigError, match=said) as caught:
        OwnCertificate(tmp_path / "a", cluster="c")
    assert caught.value.hint


def test_a_certificate_of_another_cluster_stops_the_start(tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", cluster="c", days=400, now=time.time())
    chain, key, _ = Authority.read(tmp_path / "ca").issue(A, days=1, now=time.time())
    write_node_folder(tmp_path / "a", chain=chain, key=key, authorities=Authority.read(tmp_path / "ca").bundle)
    with pytest.raises(ConfigError, match="of cluster 'c', this node of 'x'"):
        OwnCertificate(tmp_path / "a", cluster="x")


def test_a_running_node_takes_what_fits_together_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], autojump_clock: trio.abc.Clock
) -> None:
    """Files are replaced one after the other; what is there in between is not taken, and the old one stays."""
    assert autojump_clock
    authority = Authority.create(tmp_path / "ca", cluster="c", days=400, now=time.time())
    folder = tmp_path / "a"

    def write(node: str) -> str:
        chain, key, made = authority.issue(node, days=1, now=time.time())
        write_node_folder(folder, chain=chain, key=key, authorities=authority.bundle)
        return made.fingerprint

    async def main() -> None:
        first = write(A)
        own = OwnCertificate(folder, cluster="c")
        changes: list[tuple[str, str]] = []

        def changed(before: Credentials, after: Credentials) -> None:
            changes.append((before.own.fingerprint, after.own.fingerprint))

        metrics = Metrics()
        async with trio.open_nursery() as nursery:
            log = logger(LogConfig())
            nursery.start_soon(lambda: own.watch(changed=changed, each_time=lambda: None, log=log, metrics=metrics))
            await trio.sleep(3)
            spoil: tuple[Callable[[], object], ...] = (
                lambda: (folder / "tls.key").write_bytes(authority.issue(A, days=1, now=time.time())[1]),
                (folder / "tls.key").unlink,
                lambda: write(B),
            )
            for one in spoil:
                one()
                await trio.sleep(3)
                assert (own.now().own.fingerprint, changes) == (first, [])
            second = write(A)
            await trio.sleep(3)
            assert (own.now().own.fingerprint, changes) == (second, [(first, second)])
            nursery.cancel_scope.cancel()
        assert 0 < metrics.certificate_left_seconds._value.get() <= DAY_S

    trio.run(main, clock=autojump_clock)
    said = capfd.readouterr().err
    assert said.count("certificate not taken, the one before stays") == 3
    assert "the certificate is of another node" in said
    assert "expires soon" in said


def test_a_node_is_who_its_certificate_says_or_does_not_start(tmp_path: Path) -> None:
    assert Identity.of("", port=0, node_id=A).id == A
    identity = Identity.of(str(tmp_path / "state"), port=1, node_id=A)
    assert identity.id == A
    identity.close()
    with pytest.raises(LocalUseError, match=f"this node is {A} and its certificate is of {B}") as caught:
        Identity.of(str(tmp_path / "state"), port=1, node_id=B)
    assert f"p2pkv cert issue --node {A}" in caught.value.hint
    again = Identity.of(str(tmp_path / "state"), port=1, node_id=A)
    assert again.boot > identity.boot
    again.close()
