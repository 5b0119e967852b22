"""A pull that several connections share: whatever becomes of some of them, every block comes once and whole."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing

from p2pkv.errors import MalformedMessage, PeerGone
from p2pkv.fetch import Outcome
from p2pkv.testing.contracts import Block, Result, TransportContract
from p2pkv.transport import sealed_handshake
from p2pkv.transport.base import Wanted
from p2pkv.transport.sealed_stream import Channel
from p2pkv.transport.shares import RUN_BYTES
from p2pkv.transport.subkeys import StreamKeys, stream_keys
from p2pkv.transport.tcp import TcpTransport
from p2pkv.transport.widths import Widths
from tests.contracts import test_protected_tcp_transport as protected
from tests.contracts import test_sealed_tcp_transport as sealed
from tests.contracts import test_tcp_transport as tcp

CONNECTIONS = 3
BODIES = [Block.random(RUN_BYTES // 4 + 17 * i, i).body for i in range(24)]
"""Six runs."""
pull = TransportContract.pull
run = tcp.TestTcpTransport().run


def shared(transport: TcpTransport) -> TcpTransport:
    """Have every large pull use `CONNECTIONS`."""
    transport._widths = Widths(CONNECTIONS, least=CONNECTIONS)
    transport._idle_max = CONNECTIONS
    return transport


@asynccontextmanager
async def opened() -> AsyncIterator[TcpTransport]:
    async with tcp.opened() as transport:
        yield shared(transport)


@asynccontextmanager
async def opened_sealed() -> AsyncIterator[TcpTransport]:
    async with sealed.opened() as transport:
        yield shared(transport)


@asynccontextmanager
async def opened_mac() -> AsyncIterator[TcpTransport]:
    async with protected.opened("mac") as transport:
        yield shared(transport)


def blocks() -> list[Block]:
    return [Block.of(body) for body in BODIES]


def wanted(mine: list[Block]) -> list[Wanted]:
    return [block.wanted(i) for i, block in enumerate(mine)]


LENT = TransportContract.lending(*(block.offered() for block in blocks()))


def all_came_once(mine: list[Block], outcomes: list[tuple[int, Outcome]]) -> bool:
    return (
        sorted(outcomes) == [(i, "ok") for i in range(len(mine))]
        and all(block.has_arrived for block in mine)
        and all(block.margins_are_whole for block in mine)
    )


@pytest.mark.parametrize(
    ("opened", "contract"),
    [
        pytest.param(opened, tcp.TestTcpTransport(), id="off"),
        pytest.param(opened_sealed, sealed.TestSealedTcpTransport(), id="aead"),
        pytest.param(opened_mac, protected.TestMacTcpTransport(), id="mac"),
    ],
)
def test_all_blocks_come_and_the_connections_are_used_again(
    opened: Callable[[], AbstractAsyncContextManager[TcpTransport]], contract: TransportContract
) -> None:
    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await contract.serve(nursery, "owner", LENT)
        assert isinstance(peer, tcp.TcpPeer)
        async with opened() as transport:
            for _ in range(3):
                mine = blocks()
                result = await pull(transport, peer, wanted(mine))
                assert result.error is None
                assert all_came_once(mine, result.outcomes)
            # One that was not open yet when all was brought is opened by the next pull.
            assert 1 < peer.accepted <= 2 * CONNECTIONS
            assert len(peer.open) <= CONNECTIONS
            small = Block.of(BODIES[0])
            accepted = peer.accepted
            assert await pull(transport, peer, [small.wanted(0)]) == Result([(0, "ok")], None)
            assert peer.accepted == accepted

    contract.run(main)


def test_each_connection_has_keys_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[StreamKeys] = []

    def noted(key: bytes, *, opening: bytes, called_random: bytes) -> StreamKeys:
        made.append(stream_keys(key, opening=opening, called_random=called_random))
        return made[-1]

    monkeypatch.setattr(sealed_handshake, "stream_keys", noted)

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await sealed.SealedPeer("owner", LENT).start(nursery)
        async with opened_sealed() as transport:
            for _ in range(2):
                assert (await pull(transport, peer, wanted(blocks()))).error is None
        assert peer.accepted > 1
        times = Counter(key for keys in made for key in (keys.from_caller, keys.from_called, keys.tags_from_called))
        assert len(times) == 3 * peer.accepted
        assert set(times.values()) == {2}, "both ends of a connection, and nobody else"

    sealed.run(main)


class Way:
    """Passes bytes on between caller and owner, and does to some connections, by number, what ways do."""

    def __init__(self, to: str, **troubles: int) -> None:
        """`cut_1=n`: the connection opened second breaks when the owner has sent n bytes on it. `spoil_1=n`: its byte n
        has a bit flipped. `hold_1=0`: nothing passes.
        """
        self.id = "owner"
        self.address = ""
        self.opened = 0
        self._to = to
        self._troubles = troubles

    def kill(self) -> None:
        """Never called."""

    def drop_connections(self) -> None:
        """Never called."""

    async def start(self, nursery: trio.Nursery) -> "Way":
        (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        return self

    async def _serve(self, caller: trio.SocketStream) -> None:
        number = self.opened
        self.opened += 1
        if f"hold_{number}" in self._troubles:
            await trio.sleep_forever()
        host, port = self._to.rsplit(":", 1)
        async with await trio.open_tcp_stream(host, int(port)) as owner, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass, caller, owner, None, None)
            spoil, cut = self._troubles.get(f"spoil_{number}"), self._troubles.get(f"cut_{number}")
            await self._pass(owner, caller, spoil, cut)
            await trio.aclose_forcefully(caller)
            nursery.cancel_scope.cancel()

    async def _pass(self, source: trio.SocketStream, to: trio.SocketStream, spoil: int | None, cut: int | None) -> None:
        done = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := bytearray(await source.receive_some(65536)):
                if cut is not None and done + len(data) > cut:
                    await to.send_all(data[: cut - done])
                    return
                if spoil is not None and done <= spoil < done + len(data):
                    data[spoil - done] ^= 1
                done += len(data)
                await to.send_all(data)


TROUBLED = ["cut_0", "cut_1", "cut_2"]
MOMENTS = [40, 2 * 2**20, RUN_BYTES + 2**20]
KINDS = [
    pytest.param(opened, tcp.TestTcpTransport(), id="off"),
    pytest.param(opened_sealed, sealed.TestSealedTcpTransport(), id="aead"),
]


@pytest.mark.parametrize("after", MOMENTS)
@pytest.mark.parametrize("troubled", [TROUBLED[:1], TROUBLED[1:], TROUBLED[:2]], ids="+".join)
@pytest.mark.parametrize(("opened", "contract"), KINDS)
def test_what_a_lost_connection_held_is_brought_by_the_others(
    opened: Callable[[], AbstractAsyncContextManager[TcpTransport]],
    contract: TransportContract,
    troubled: list[str],
    after: int,
) -> None:
    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await contract.serve(nursery, "owner", LENT)
        way = await Way(peer.address, **dict.fromkeys(troubled, after)).start(nursery)
        async with opened() as transport:
            mine = blocks()
            result = await pull(transport, way, wanted(mine))
            assert result.error is None
            assert all_came_once(mine, result.outcomes)
            for block in mine:  # no thread is left behind that still writes
                block.room[:] = b"\xee" * len(block.room)
            await trio.testing.wait_all_tasks_blocked()
            assert all(block.room.count(0xEE) == len(block.room) for block in mine)
            assert transport.connections_lost >= 1
            assert transport.open_connections()[0] == 0
            again = blocks()
            assert all_came_once(again, (await pull(transport, way, wanted(again))).outcomes)

    contract.run(main)


@pytest.mark.parametrize(("opened", "contract"), KINDS)
def test_if_all_are_lost_the_pull_is_and_what_was_reported_stays(
    opened: Callable[[], AbstractAsyncContextManager[TcpTransport]], contract: TransportContract
) -> None:
    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await contract.serve(nursery, "owner", LENT)
        way = await Way(peer.address, **dict.fromkeys(TROUBLED, 3 * 2**20)).start(nursery)
        async with opened() as transport:
            mine = blocks()
            result = await pull(transport, way, wanted(mine))
            assert isinstance(result.error, PeerGone)
            assert result.outcomes
            assert set(Counter(result.outcomes).values()) == {1}
            assert all(mine[i].has_arrived for i, _ in result.outcomes)
            assert all(block.margins_are_whole for block in mine)

    contract.run(main)


def test_a_connection_that_does_not_open_keeps_nobody_waiting() -> None:
    """It would open within the time that a connection may take, or never; here the clock stands still."""

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await tcp.TcpPeer("owner", LENT).start(nursery)
        way = await Way(peer.address, hold_1=0, hold_2=0).start(nursery)
        async with opened() as transport:
            mine = blocks()
            result = await pull(transport, way, wanted(mine))
            assert result.error is None
            assert all_came_once(mine, result.outcomes)
            assert way.opened == CONNECTIONS

    run(main, trio.testing.MockClock())


def test_a_bit_flipped_on_an_encrypted_connection_costs_that_connection() -> None:
    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await sealed.SealedPeer("owner", LENT).start(nursery)
        way = await Way(peer.address, spoil_1=2 * 2**20).start(nursery)
        async with opened_sealed() as transport:
            mine = blocks()
            result = await pull(transport, way, wanted(mine))
            assert result.error is None
            assert all_came_once(mine, result.outcomes)

    sealed.run(main)


def test_a_peer_that_breaks_the_protocol_on_one_connection_is_left_on_all() -> None:
    class Lies(tcp.TcpPeer):
        answering = 0

        async def answer(self, stream: Channel, caller: str) -> None:
            self.answering += 1
            if self.answering == 1:
                await super().answer(stream, caller)
            await stream.receive_some()
            await stream.send_all(bytes(range(256)))
            while await stream.receive_some():
                pass

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await Lies("owner", LENT).start(nursery)
        async with opened() as transport:
            mine = blocks()
            result = await pull(transport, peer, wanted(mine))
            assert isinstance(result.error, MalformedMessage)
            assert all(mine[i].has_arrived for i, _ in result.outcomes)
            await peer.wait_closed(0)

    run(main)


def test_a_block_with_wrong_bytes_is_corrupt_once_and_the_others_come() -> None:
    mine = blocks()
    lent = [block.offered() for block in mine]
    lent[9] = mine[9].offered(BODIES[9][:-1] + bytes([BODIES[9][-1] ^ 1]))

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await tcp.TcpPeer("owner", TransportContract.lending(*lent)).start(nursery)
        async with opened() as transport:
            result = await pull(transport, peer, wanted(mine))
            assert result.error is None
            assert sorted(result.outcomes) == [(i, "corrupt" if i == 9 else "ok") for i in range(len(mine))]

    run(main)


def test_what_a_caller_of_on_block_raises_comes_out_as_it_is() -> None:
    def fails(_: Wanted, __: Outcome) -> None:
        raise ZeroDivisionError

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await tcp.TcpPeer("owner", LENT).start(nursery)
        async with opened() as transport:
            with pytest.raises(ZeroDivisionError):
                await pull(transport, peer, wanted(blocks()), also=fails)
            await peer.wait_closed(0)

    run(main)


def test_large_pulls_find_out_whether_more_connections_are_faster() -> None:
    """By the time they took; a pull that overlapped with another says nothing."""
    noted: list[tuple[int, int]] = []

    class Noting(Widths):
        def measured(self, peer: str, width: int, pull_bytes: int, seconds: float) -> None:
            assert peer == "owner"
            assert seconds > 0
            noted.append((width, pull_bytes))
            super().measured(peer, width, pull_bytes, seconds)

    async def main(nursery: trio.Nursery, _: object) -> None:
        peer = await tcp.TcpPeer("owner", LENT).start(nursery)
        async with tcp.opened() as transport:
            transport._widths = Noting(2)
            for _ in range(4):
                assert (await pull(transport, peer, wanted(blocks()))).error is None
            assert noted == [(1, sum(map(len, BODIES)))] * 3 + [(2, sum(map(len, BODIES)))]
            assert transport.connections("owner") == 1
            assert transport.open_connections() == (0, 2)
            async with trio.open_nursery() as pulls:
                for _ in range(3):
                    pulls.start_soon(pull, transport, peer, wanted(blocks()))
            assert len(noted) == 4

    run(main)
