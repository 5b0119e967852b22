"""A folder that is this process's alone: nobody else may write to it, and no second process uses it meanwhile."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from p2pkv.errors import LocalUseError

_LOCK: Final = "lock"
_OTHERS_MAY_WRITE: Final = 0o022


def lock_folder(folder: Path, *, what: str, danger: str, choose: str, alone: str, unusable: str) -> int:
    """Return the descriptor that holds the folder's lock, which ends with the process, however that ends.

    `what` is what people call the folder, `danger` what others could do who write to it. The rest are hints: how to
    choose another folder, why two processes may not share one, and what to do if this one cannot be used at all.

    Raises:
        LocalUseError: the folder cannot be used, others may write to it, or another process uses it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & _OTHERS_MAY_WRITE:
            raise LocalUseError(
                f"others may write to the {what}, {danger}: {folder}",
                hint=f"`chmod 700 {folder}` as its owner, or {choose}",
            )
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise LocalUseError(f"cannot use the {what} ({exc.strerror}): {folder}", hint=unusable) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(lock)
        raise LocalUseError(f"another daemon uses this {what}: {folder}", hint=alone) from exc
    return lock
