"""A keyring on disk: one key per line in base64, the primary one first, for its owner alone.

A change replaces the file whole, so that a machine that loses power has the keyring of before or the one of after.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from p2pkv.errors import ConfigError
from p2pkv.transport.keyring import GENERATE_HINT, RING_KEYS_MAX, KeyRing, fingerprint, format_key, parse_key

_OTHERS: Final = 0o077
_FILE_BYTES_MAX: Final = 16 * 1024
_HEADER: Final = "# p2pkv keyring: whoever can read this is a member of the mesh. The first key is the primary one.\n"


def read_keyring(path: Path) -> KeyRing:
    """Return the keyring in the file at `path`.

    Raises:
        ConfigError: it cannot be read, others may read it, it belongs to somebody else, or it holds no keyring.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise ConfigError(
            f"no keyring there: {path}", hint=f"make one with `p2pkv keys generate --write {path}`"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"cannot read the keyring ({exc.strerror}): {path}", hint="see security.keyring") from exc
    try:
        _refuse_exposed(os.fstat(descriptor), path)
        data = os.read(descriptor, _FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > _FILE_BYTES_MAX:
        raise ConfigError(f"keyring of more than {_FILE_BYTES_MAX} bytes: {path}", hint=GENERATE_HINT)
    keys: list[bytes] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            key = parse_key(text, what=f"line {number} of the keyring {path}")
            if key in keys:
                raise ConfigError(f"line {number} of the keyring {path} is a key again", hint="remove the line")
            keys.append(key)
    if not keys:
        raise ConfigError(f"no key in the keyring: {path}", hint=GENERATE_HINT)
    if len(keys) > RING_KEYS_MAX:
        raise ConfigError(f"{len(keys)} keys, limit {RING_KEYS_MAX}: {path}", hint="remove those that are not used")
    return KeyRing(tuple(keys))


def write_keyring(path: Path, ring: KeyRing, *, replace: bool = True) -> None:
    """Put `ring` in the file at `path`, for its owner alone; on any error the file is as it was.

    Raises:
        ConfigError: it cannot be written, or is there and `replace` is not given.
    """
    text = _HEADER + "".join(f"{format_key(key)}\n" for key in ring.keys)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        written = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                written.replace(path)
            else:
                _link_new(written, path)
        finally:
            written.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as exc:
        raise ConfigError(
            f"cannot write the keyring ({exc.strerror}): {path}",
            hint="the daemon's user must be able to write to its folder",
        ) from exc


def _refuse_exposed(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"the keyring is no file: {path}", hint="see security.keyring")
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"the keyring belongs to user {found.st_uid}, not to {os.geteuid()} who runs this: {path}",
            hint="a node reads only a keyring of its own user",
        )
    if found.st_mode & _OTHERS:
        raise ConfigError(
            f"others may open the keyring (mode {stat.S_IMODE(found.st_mode):04o}): {path}", hint=f"chmod 600 {path}"
        )


def _link_new(written: Path, path: Path) -> None:
    """Give a file its name unless another has it."""
    try:
        path.hardlink_to(written)
    except FileExistsError as exc:
        raise ConfigError(f"there is a file already, left alone: {path}", hint="choose another") from exc


def _sync_folder(folder: Path) -> None:
    """Make a rename last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ring_text(ring: KeyRing) -> str:
    """Return what status says of a ring."""
    others = len(ring.keys) - 1
    return f"primary key {fingerprint(ring.keys[0]).hex()}" + (f" and {others} more" if others else "")
