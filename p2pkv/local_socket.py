"""The Unix socket of a node: where it is, whose it is, and what to do with one that is already there."""

import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Final

from p2pkv.config import default_socket
from p2pkv.errors import CannotListen

_PATH_BYTES_MAX: Final = 100
"""The kernel's limit is 108 with the final zero; the lock beside it is opened by the same name and `.lock`."""


class LocalSocket:
    """A listening Unix socket of mode 0600, guarded by a lock file so that two daemons never share it."""

    def __init__(self, path: str) -> None:
        """Listen at `path`, or at the default place if it is empty.

        A socket file whose daemon is gone is replaced; anything else that stands there is left alone.

        Raises:
            CannotListen: the path is too long, in a folder of somebody else's, or taken. Nothing was changed.
        """
        self.path: Final = Path(path) if path else default_socket()
        if len(os.fsencode(self.path)) > _PATH_BYTES_MAX:
            raise CannotListen(
                f"socket path of {len(os.fsencode(self.path))} bytes, limit {_PATH_BYTES_MAX}: {self.path}",
                hint="choose a shorter one with --socket",
            )
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path and self.path.parent.stat().st_uid != os.getuid():
                raise CannotListen(
                    f"the folder belongs to another user: {self.path.parent}", hint="choose with --socket"
                )
            self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise CannotListen(f"cannot listen at {self.path} ({exc.strerror})", hint="choose with --socket") from exc
        try:
            self._take()
            self.socket: Final = self._listen()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Stop listening and remove the socket file."""
        self.path.unlink(missing_ok=True)
        self.socket.close()
        Path(f"{self.path}.lock").unlink(missing_ok=True)
        os.close(self._lock)

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise CannotListen(
                f"another daemon serves this socket: {self.path}",
                hint="`p2pkv status` shows it; for a second node choose another with --socket",
            ) from exc
        if self.path.exists() or self.path.is_symlink():
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise CannotListen(f"not a socket, left alone: {self.path}", hint="choose another with --socket")
            self.path.unlink()  # stale: a living daemon would hold the lock

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        except OSError as exc:
            listener.close()
            raise CannotListen(f"cannot listen at {self.path} ({exc.strerror})", hint="choose with --socket") from exc
        finally:
            os.umask(mask)
        listener.listen(64)
        return listener
