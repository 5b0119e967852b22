"""The shell of sharing memory on one machine: lends this node's arena to peers, and maps theirs when the node says so."""

from collections.abc import Awaitable, Callable

import trio

from p2pkv.errors import MalformedMessage, P2pkvError, PeerError, SealRefused
from p2pkv.logs import Log
from p2pkv.metrics import Metrics
from p2pkv.runner import Runner
from p2pkv.tiers.host import HostTier
from p2pkv.transport.shm import ShmTransport, refuse_other_users, socket_name
from p2pkv.transport.shm_serve import OpenPlaces, listen, serve_arena
from p2pkv.transport.wire import ArenaOffer, Hello, MemberRecord

_GREETING_S = 2.0


class Neighbourhood:
    """Both sides of shared memory for one node."""

    def __init__(
        self,
        *,
        runner: Runner,
        tier: HostTier,
        shm: ShmTransport,
        open_places: OpenPlaces,
        cluster: str,
        me: MemberRecord,
        welcome: Callable[..., Awaitable[Hello]],
        metrics: Metrics,
        log: Log,
    ) -> None:
        """Take the name under which peers find this node's arena; `welcome(stream, peer=...)` takes their greeting.

        Raises:
            CannotListen: another process has it.
        """
        self._runner = runner
        self._tier = tier
        self._shm = shm
        self._open_places = open_places
        self._cluster = cluster
        self._me = me
        self._welcome = welcome
        self._metrics = metrics
        self._log = log
        self._mapping: dict[str, trio.CancelScope] = {}
        """Of those whose arena is mapped or tried; only the last attempt for a peer reports."""
        self._listener = listen(socket_name(cluster, me.id))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Lend and map until cancelled."""
        self._listener.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._listener))
        async with trio.open_nursery() as nursery:
            self._runner.on_map = lambda peer: nursery.start_soon(self._map, peer)
            task_status.started()
            await trio.serve_listeners(self._lend, [listener])

    def close(self) -> None:
        """Give the name back."""
        self._listener.close()

    async def _map(self, peer: str) -> None:
        """Map the arena of `peer`, and stay until it hangs up, or has been started again and is mapped anew."""
        before = self._mapping.get(peer)
        if before is not None:
            before.cancel()
        scope = self._mapping[peer] = trio.CancelScope()
        with scope:
            self._shm.hang_up(peer)
            try:
                await self._shm.open(peer, socket_name(self._cluster, peer))
            except PeerError as exc:
                self._log.debug("memory of a peer on this machine is not to be had", peer=peer, reason=str(exc))
            else:
                self._log.debug("memory of a peer on this machine is mapped", peer=peer)
                self._runner.tell(lambda node, now: node.on_mapped(peer, now))
                await self._shm.wait_lost(peer)
        if not scope.cancelled_caught:
            del self._mapping[peer]
            self._runner.tell(lambda node, now: node.on_unmapped(peer, now))

    async def _lend(self, stream: trio.SocketStream) -> None:
        """Lend the arena to one caller; what it had pinned ends with its connection."""
        tier = self._tier
        offer = ArenaOffer(self._me.boot, tier.arena_bytes, tier.table_bytes)
        try:
            refuse_other_users(stream.socket, peer="a process on this machine")
            with trio.fail_after(_GREETING_S):
                hello = await self._welcome(stream, peer="this machine")
            try:
                await serve_arena(stream, peer=hello.node, offer=offer, fd=tier.fd, open_places=self._open_places)
            finally:
                peer = hello.node
                self._runner.ask(lambda node: node.release_peer(peer))
        except SealRefused as exc:
            self._runner.seal_refused("shared memory", exc)
        except P2pkvError as exc:
            if isinstance(exc, MalformedMessage):
                self._metrics.malformed.labels("stream").inc()
            self._log.warning("caller refused", address="this machine", reason=str(exc))
        except (trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self._log.info("caller lost", address="this machine", reason=type(exc).__name__)
        finally:
            await trio.aclose_forcefully(stream)
