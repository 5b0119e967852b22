"""Who this node is, kept on disk: an id that survives restarts, and a boot number that only grows.

Membership believes the greater boot number, whatever the clocks say (`p2pkv.mesh.members`). A number taken from the
wall clock alone would shut a node out of its mesh after the clock was set back, until the clock had caught up; so the
last one is kept, and the next is greater than both. It is on the disk before anybody hears of it.
"""

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import xxhash
from msgspec import Meta

from p2pkv.config import default_state_dir
from p2pkv.errors import LocalUseError
from p2pkv.locked_folder import lock_folder

BOOT_MAX: Final = 2**53
"""The bound of `Count` on the wire."""
_FILE: Final = "identity.json"
_FILE_BYTES_MAX: Final = 4096
_NEW_OR_NONE: Final = "choose another with --state-dir, or say --state-dir '' for a new id at every start"


class _Stored(msgspec.Struct, frozen=True):
    """The file. `check` is there because a digit that a bad disk changed would still be a number."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    boot: Annotated[int, Meta(ge=0, le=BOOT_MAX)]
    check: str


class Identity:
    """A node's id and the boot number of this start. Of one folder there is one at a time on a machine."""

    def __init__(self, *, node_id: str, boot: int, folder: Path | None = None, lock: int | None = None) -> None:
        """Take what `ephemeral` made or `kept` found."""
        self.id: Final = node_id
        self.boot: Final = boot
        self.folder: Final = folder
        """Where it is kept, or None."""
        self._lock = lock

    @classmethod
    def ephemeral(cls, node_id: str = "") -> "Identity":
        """Return a new id that nobody remembers, or the one that a certificate gives."""
        return cls(node_id=node_id or secrets.token_hex(8), boot=_wall_clock_ms())

    @classmethod
    def kept(cls, folder: Path, node_id: str = "") -> "Identity":
        """Return the identity of `folder` with a greater boot number, or make it a new one if it has none.

        With `node_id`, which a certificate gives, that is its id.

        Raises:
            LocalUseError: the folder cannot be used, another daemon uses it, it is another node's, or the file is
                damaged. A damaged file is never replaced by a new identity: the mesh would list this node twice, and
                nobody would know why.
        """
        lock = lock_folder(
            folder,
            what="state folder",
            danger="and so become this node",
            alone="two nodes must not have one id: choose another folder with --state-dir",
            choose="choose another with --state-dir",
            unusable=_NEW_OR_NONE,
        )
        try:
            stored = _read(folder / _FILE)
            last = stored.boot if stored is not None else 0
            boot = max(last + 1, _wall_clock_ms())
            if boot > BOOT_MAX:
                raise _damaged(folder / _FILE, f"boot number {last}, limit {BOOT_MAX - 1}")
            if stored is not None and node_id and stored.id != node_id:
                raise LocalUseError(
                    f"this node is {stored.id} and its certificate is of {node_id}: {folder}",
                    hint=f"`p2pkv cert issue --node {stored.id}` keeps its id; {_NEW_OR_NONE}",
                )
            node_id = stored.id if stored is not None else node_id or secrets.token_hex(8)
            _write(folder, _Stored(node_id, boot, _check(node_id, boot)))
        except BaseException:
            os.close(lock)
            raise
        return cls(node_id=node_id, boot=boot, folder=folder, lock=lock)

    @classmethod
    def of(cls, state_dir: str, *, port: int, node_id: str = "") -> "Identity":
        """Return the identity that the setting `node.state_dir` means for a node that was told to bind `port`.

        `node_id` is that of the node's certificate, if it has one.

        Raises:
            LocalUseError: as `kept`.
        """
        if state_dir == "auto":
            # A port that the system chose is another one next time, and would leave a folder behind at every start.
            return cls.kept(default_state_dir(port), node_id) if port else cls.ephemeral(node_id)
        return cls.kept(Path(state_dir), node_id) if state_dir else cls.ephemeral(node_id)

    def close(self) -> None:
        """Let another daemon have the folder. Calling it twice is harmless."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _check(node_id: str, boot: int) -> str:
    return xxhash.xxh3_64_hexdigest(f"{node_id} {boot}".encode())


def _read(file: Path) -> _Stored | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise _damaged(file, str(exc.strerror)) from exc
    with os.fdopen(descriptor, "rb") as stream:
        try:
            stored = msgspec.json.decode(stream.read(_FILE_BYTES_MAX), type=_Stored)
        except OSError as exc:
            raise _damaged(file, str(exc.strerror)) from exc
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise _damaged(file, str(exc)) from exc
    if stored.check != _check(stored.id, stored.boot):
        raise _damaged(file, "its check does not fit")
    return stored


def _damaged(file: Path, reason: str) -> LocalUseError:
    return LocalUseError(
        f"cannot read this node's identity ({reason}): {file}",
        hint="put a copy of the file back, or remove it: the node is then a new member, and the old one is listed as dead",
    )


def _write(folder: Path, stored: _Stored) -> None:
    """Replace the file as a whole; when this returns, the disk has it."""
    draft = folder / f"{_FILE}.new"
    try:
        draft.unlink(missing_ok=True)  # of a start that was cut off
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
            stream.write(msgspec.json.encode(stored) + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(folder / _FILE)
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise LocalUseError(f"cannot write this node's identity ({exc.strerror}): {folder}", hint=_NEW_OR_NONE) from exc
