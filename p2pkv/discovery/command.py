"""`exec:COMMAND`: a program that prints one address a line, such as the command line of a cloud."""

import os
import shlex
import signal
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import Final

import trio

from p2pkv.discovery.base import TEXT_BYTES_MAX, Found, LookupFailed, addresses_in, shortened
from p2pkv.errors import ConfigError

TIMEOUT_S: Final = 10.0
"""A command that takes longer is killed, with all processes of its group."""
_READ_BYTES: Final = 4096
_COMPLAINT_BYTES_MAX: Final = 1024
"""Of standard error, the end that is kept."""


class CommandResolver:
    """Runs it without a shell, without standard input, in a process group of its own."""

    def __init__(self, source: str, *, timeout_s: float = TIMEOUT_S) -> None:
        """Take `exec:COMMAND`; quotes in it work as in a shell, and nothing else does.

        Raises:
            ConfigError: there is no command, or a quote is left open.
        """
        try:
            self._command = shlex.split(source.removeprefix("exec:"))
        except ValueError as exc:
            raise ConfigError(
                f"node.join has {source!r} ({exc})", hint="for example exec:/usr/local/bin/peers"
            ) from exc
        if not self._command or any("\0" in word for word in self._command):
            raise ConfigError(f"node.join has {source!r}, must be exec:COMMAND", hint="for example exec:/usr/bin/peers")
        self._timeout_s = timeout_s

    async def resolve(self) -> Found:
        """See `Resolver`."""
        try:
            process = await trio.lowlevel.open_process(
                self._command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
            )
        except OSError as exc:
            raise LookupFailed(f"cannot run it ({exc.strerror})") from exc
        try:
            with trio.fail_after(self._timeout_s):
                said, complained = await _outputs(process)
                code = await process.wait()
        except trio.TooSlowError as exc:
            raise LookupFailed(f"it did not end within {self._timeout_s:g} s") from exc
        finally:
            with suppress(ProcessLookupError):  # its children may live on, whether it ended or not
                os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        await pipe.aclose()
        if len(said) > TEXT_BYTES_MAX:
            raise LookupFailed(f"it printed more than {TEXT_BYTES_MAX} bytes")
        if code:
            last = shortened(complained.decode(errors="replace").strip().rpartition("\n")[2])
            raise LookupFailed(f"it ended with {code}{f' ({last})' if last else ''}")
        return addresses_in(said)

    async def aclose(self) -> None:
        """See `Resolver`."""


async def _outputs(process: trio.Process) -> tuple[bytes, bytes]:
    """Return what it printed: the head of standard output, at most one byte over the limit, and the end of the other."""
    said, complained = bytearray(), bytearray()
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = process.stdout, process.stderr

    async def complaints() -> None:
        while part := await errors.receive_some(_READ_BYTES):
            complained.extend(part)
            del complained[:-_COMPLAINT_BYTES_MAX]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(complaints)
        while len(said) <= TEXT_BYTES_MAX and (part := await output.receive_some(_READ_BYTES)):
            said.extend(part)
        if len(said) > TEXT_BYTES_MAX:
            process.kill()
            nursery.cancel_scope.cancel()
    return bytes(said), bytes(complained)
