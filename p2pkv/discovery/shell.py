"""Carries out `Resolve` effects: one look-up at a time per source, each with an end, each reported."""

from collections.abc import Callable, Mapping
from typing import Final

import trio

from p2pkv.config import NodeConfig, parse_address
from p2pkv.discovery.base import Found, LookupFailed, Resolver, shortened
from p2pkv.discovery.command import CommandResolver
from p2pkv.discovery.dns import DnsResolver
from p2pkv.discovery.file import FileResolver
from p2pkv.discovery.mdns import MdnsResolver
from p2pkv.mesh.sources import scheme_of
from p2pkv.transport.wire import MemberRecord

LOOKUP_S_MAX: Final = 60.0
"""A look-up ends by then, whatever it does; `ANSWER_S` of the core is longer."""
_CLOSE_S: Final = 5.0
"""A daemon that stops does not wait longer for one to let go."""


def check_entries(entries: tuple[str, ...]) -> None:
    """Make sure that plain entries of `node.join` are addresses.

    Raises:
        ConfigError: one is not.
    """
    for entry in entries:
        if not scheme_of(entry):
            parse_address(entry, what="node.join")


def resolvers(config: NodeConfig, me: MemberRecord) -> dict[str, Resolver]:
    """Return a resolver for each entry of `node.join` that needs one.

    Raises:
        ConfigError: an entry is malformed, or a package is missing.
    """
    made: dict[str, Resolver] = {}
    for entry in config.join:
        match scheme_of(entry):
            case "dns" | "dns+srv":
                made[entry] = DnsResolver(entry)
            case "mdns":
                made[entry] = MdnsResolver(entry, me=me, cluster=config.cluster)
            case "file":
                made[entry] = FileResolver(entry)
            case "exec":
                made[entry] = CommandResolver(entry)
    return made


class Discovery:
    """The resolvers of one node."""

    def __init__(
        self,
        made: Mapping[str, Resolver],
        *,
        found: Callable[[str, Found], None],
        failed: Callable[[str, str], None],
        lookup_s: float = LOOKUP_S_MAX,
    ) -> None:
        """`found(source, what)` or `failed(source, why)` is called at the end of each look-up."""
        self._resolvers = made
        self._found = found
        self._failed = failed
        self._lookup_s = lookup_s
        self._busy: set[str] = set()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look up what `start` is given until cancelled, then let go of everything."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for resolver in self._resolvers.values():
                    with trio.move_on_after(_CLOSE_S):
                        await resolver.aclose()

    def start(self, source: str) -> None:
        """Look `source` up. One that is being looked up already is not looked up twice."""
        assert self._nursery is not None, "run first"
        if source not in self._busy:
            self._busy.add(source)
            self._nursery.start_soon(self._resolve, source)

    async def _resolve(self, source: str) -> None:
        try:
            with trio.fail_after(self._lookup_s):
                found = await self._resolvers[source].resolve()
        except LookupFailed as exc:
            self._failed(source, shortened(str(exc)))
        except trio.TooSlowError:
            self._failed(source, f"no answer within {self._lookup_s:g} s")
        else:
            self._found(source, found)
        finally:
            self._busy.discard(source)
