"""`file://PATH`: a file with one address a line. It is read again and again, so a change needs no signal."""

from pathlib import Path

import trio

from p2pkv.discovery.base import TEXT_BYTES_MAX, Found, LookupFailed, addresses_in
from p2pkv.errors import ConfigError


class FileResolver:
    """Reads the whole file each time.

    At 64 KiB every other second that costs less than to watch it, and it also sees files that are replaced behind links,
    as in a Kubernetes ConfigMap, or that lie on another machine.
    """

    def __init__(self, source: str) -> None:
        """Take `file://PATH`.

        Raises:
            ConfigError: there is no path.
        """
        path = source.removeprefix("file://")
        if not path or "\0" in path:
            raise ConfigError(
                f"node.join has {source!r}, must be file://PATH", hint="for example file:///etc/p2pkv/peers"
            )
        self._path = Path(path)

    async def resolve(self) -> Found:
        """See `Resolver`."""
        return await trio.to_thread.run_sync(self._read, abandon_on_cancel=True)  # a network file system may hang

    async def aclose(self) -> None:
        """See `Resolver`."""

    def _read(self) -> Found:
        try:
            with self._path.open("rb") as stream:
                data = stream.read(TEXT_BYTES_MAX + 1)
        except OSError as exc:
            raise LookupFailed(f"cannot read it ({exc.strerror})") from exc
        if len(data) > TEXT_BYTES_MAX:
            raise LookupFailed(f"more than {TEXT_BYTES_MAX} bytes")
        return addresses_in(data)
