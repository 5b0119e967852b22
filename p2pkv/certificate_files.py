"""A node's certificate on disk: a folder with `tls.crt`, `tls.key` and `ca.crt`, the names that Kubernetes uses too.

Files are replaced whole, one after the other. A reader that comes in between finds files that do not belong together,
says so, and comes again.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from p2pkv.errors import ConfigError
from p2pkv.transport.credentials import Credentials, credentials

CERTIFICATE: Final = "tls.crt"
KEY: Final = "tls.key"
AUTHORITIES: Final = "ca.crt"
_NAMES: Final = (CERTIFICATE, KEY, AUTHORITIES)
_FILE_BYTES_MAX: Final = 256 * 1024
_OTHERS: Final = 0o077
_OTHERS_OF_ROOTS: Final = 0o037
"""What root put there may be readable for one group: so Kubernetes mounts secrets for a pod's `fsGroup`."""

Stamp = tuple[tuple[int, int, int], ...]
"""What changes when a file does: its inode, size and time of change."""


def read_credentials(folder: Path) -> Credentials:
    """Return what is in `folder`.

    Raises:
        ConfigError: a file is missing, others may read the key, or they do not belong together.
    """
    chain, key, authorities = (read_file(folder / name, secret=name == KEY) for name in _NAMES)
    try:
        return credentials(chain=chain, key=key, authorities=authorities)
    except ConfigError as exc:
        raise ConfigError(f"{exc}: {folder}", hint=exc.hint) from exc


def stamp(folder: Path) -> Stamp:
    """Return what tells whether the files have changed; nothing for one that is not there."""
    stamps = []
    for name in _NAMES:
        try:
            found = (folder / name).stat()
        except OSError:
            stamps.append((0, 0, 0))
        else:
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)


def write_node_folder(folder: Path, *, chain: bytes, key: bytes, authorities: bytes) -> None:
    """Put a node's files into `folder`, for their owner alone.

    Raises:
        ConfigError: it cannot be written.
    """
    for name, data in ((KEY, key), (CERTIFICATE, chain), (AUTHORITIES, authorities)):
        write_file(folder / name, data)


def read_file(path: Path, *, secret: bool) -> bytes:
    """Return what is in the file at `path`, which others must not be able to read if it is `secret`.

    Raises:
        ConfigError: it is not there, or not safe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(
            f"cannot read it ({exc.strerror}): {path}",
            hint="`p2pkv cert init` makes an authority, `p2pkv cert issue` a node's folder; see security.certificates",
        ) from exc
    with os.fdopen(descriptor, "rb") as file:
        if secret:
            _refuse_exposed(os.fstat(file.fileno()), path)
        data = file.read(_FILE_BYTES_MAX + 1)
    if len(data) > _FILE_BYTES_MAX:
        raise ConfigError(f"more than {_FILE_BYTES_MAX} bytes: {path}", hint="it holds something else")
    return data


def write_file(path: Path, data: bytes) -> None:
    """Replace the file at `path` whole, for its owner alone; when this returns, the disk has it.

    Raises:
        ConfigError: it cannot be written; it is as it was.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        written = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written.replace(path)
        finally:
            written.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot write it ({exc.strerror}): {path}", hint="choose a folder of this user's") from exc


def _refuse_exposed(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"the key is no file: {path}", hint="see security.certificates")
    if found.st_uid not in {os.geteuid(), 0}:
        raise ConfigError(
            f"the key belongs to user {found.st_uid}, not to {os.geteuid()} who runs this: {path}",
            hint="a node reads only a key of its own user, or of root",
        )
    if found.st_mode & (_OTHERS if found.st_uid == os.geteuid() else _OTHERS_OF_ROOTS):
        raise ConfigError(
            f"others may open the key (mode {stat.S_IMODE(found.st_mode):04o}): {path}", hint=f"chmod 600 {path}"
        )
