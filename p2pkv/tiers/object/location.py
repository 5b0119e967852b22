"""Where an object store is, as a person writes it, sans-IO: what is refused before anything is opened.

    s3://BUCKET/FOLDER      any server that speaks S3; which one: AWS_ENDPOINT_URL, and AWS_REGION
    gs://BUCKET/FOLDER      Google Cloud Storage
    az://CONTAINER/FOLDER   Azure Blob Storage; whose: AZURE_STORAGE_ACCOUNT_NAME
    file:///FOLDER          a folder, of a network file system, say

Credentials come from the environment, or from the machine's own identity, and are in no URL: URLs end up in logs.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from p2pkv.errors import LocalUseError

_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
    "file": (),
}
"""Variables that name a server, the one that counts first."""


@dataclass(frozen=True, slots=True)
class Location:
    """A place in an object store."""

    scheme: str
    bucket: str
    """Empty for a folder."""
    path: str
    """Below the bucket, without slashes around it; for a folder, the absolute path."""

    @property
    def url(self) -> str:
        """The place as it is given to a library."""
        return f"{self.scheme}://{self.bucket}/{self.path.lstrip('/')}"


def parse_location(url: str) -> Location:
    """Return what a URL says.

    Raises:
        LocalUseError: it is none of the above, or has something in it that belongs elsewhere.
    """
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise LocalUseError("the object store's URL is malformed") from exc
    if "@" in parts.netloc or parts.query or parts.fragment:
        # not repeated here: it may be a secret
        raise LocalUseError(
            f"the object store's {parts.scheme}:// URL has a user, a query or a fragment",
            hint="give credentials in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if parts.scheme not in _ENDPOINTS:
        raise LocalUseError(
            f"the object store's URL begins with {parts.scheme + '://' if parts.scheme else 'no scheme'!r}",
            hint="write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///FOLDER",
        )
    path = unquote(parts.path)
    if ".." in path.split("/") or "\0" in path:
        raise LocalUseError(f"the object store's folder is {path!r}, must be without `..`")
    if parts.scheme == "file":
        if parts.netloc or not path.strip("/"):
            raise LocalUseError(f"the object store's folder is {url!r}, must be as in file:///FOLDER")
        return Location("file", "", path.rstrip("/"))
    if not parts.netloc:
        raise LocalUseError(f"the object store's URL {url!r} names no bucket")
    return Location(parts.scheme, parts.netloc, path.strip("/"))


def may_be_plain(location: Location, environment: Mapping[str, str], *, insecure: bool) -> bool:
    """Say whether plain HTTP is spoken there: on loopback, and elsewhere only where `insecure` says so.

    Raises:
        LocalUseError: the environment names a server with plain HTTP, which is neither.
    """
    name, endpoint = next(
        ((name, environment[name]) for name in _ENDPOINTS[location.scheme] if environment.get(name)), ("", "")
    )
    parts = urlsplit(endpoint)
    if parts.scheme != "http":
        return False
    if not insecure and not _is_loopback(parts.hostname or ""):
        raise LocalUseError(
            f"{name} is plain HTTP to {parts.hostname}: blocks and prompts in them could be read and altered on the way",
            hint="give the server a certificate and write https://",
        )
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
