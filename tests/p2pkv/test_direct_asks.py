"""Blocks right behind the answer, over real loopback sockets: verified as any other, and whatever goes wrong is a miss in time."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random

import pytest
import trio
import trio.testing

from p2pkv.blocks import BlockKey, block_digest, split_keys
from p2pkv.config import LogConfig
from p2pkv.direct_asks import DirectAsks
from p2pkv.errors import P2pkvError
from p2pkv.fetch import FetchEnded
from p2pkv.logs import logger
from p2pkv.node import Effect, Node
from p2pkv.planner import Plan, Run
from p2pkv.runner import Runner
from p2pkv.tiers.host import HostTier
from p2pkv.transfer import Transfers
from p2pkv.transport.base import Offered
from p2pkv.transport.bulk_header import BulkHeader
from p2pkv.transport.direct import answer_direct
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import welcome
from p2pkv.transport.sealed_stream import has_closed
from p2pkv.transport.tcp import TcpTransport, serve_bulk
from p2pkv.transport.wire import AnyMessage, Hello, LeaseGrant, LeaseRelease, LeaseRequest, PushPull, bitmap, encode
from tests.p2pkv.test_runner import record, runner_of

LENGTH = 128 * 1024
SEGMENT = 8192
BLOCKS = 3


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


def body(number: int) -> bytes:
    return Random(number).randbytes(LENGTH)


OFFERED = [Offered(memoryview(body(i)), SEGMENT, block_digest(body(i), SEGMENT)) for i in range(BLOCKS)]
CHAIN = tuple(key(i) for i in range(BLOCKS))
Answer = Callable[[trio.SocketStream, LeaseRequest], Awaitable[bool]]


def granting(request: LeaseRequest, *, direct: bool = True) -> LeaseGrant:
    return LeaseGrant(
        request=request.request,
        lease=7,
        granted=bitmap(list(range(BLOCKS))),
        lease_ms=request.remaining_ms,
        lengths=(LENGTH,) * BLOCKS,
        segment_bytes=(SEGMENT,) * BLOCKS,
        digests=b"".join(one.digest for one in OFFERED),
        namespaces=bytes(32 * BLOCKS),
        direct=direct,
    )


def headed(position: int, content: bytes, *, lease: int = 7) -> bytes:
    return BulkHeader(lease, position, LENGTH, SEGMENT, OFFERED[position].digest).pack() + content


async def honest(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await answer_direct(stream, granting(request), OFFERED)
    return True


async def left_to_a_pull(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await answer_direct(stream, granting(request, direct=False), OFFERED)
    return True


async def corrupt(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await stream.send_all(frame(encode(granting(request))))
    for position in range(BLOCKS):
        await stream.send_all(headed(position, body(position) if position != 1 else bytes(LENGTH)))
    return True


async def truncated(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await stream.send_all(frame(encode(granting(request))) + headed(0, body(0)) + headed(1, body(1))[:-1])
    return False


async def of_another_lease(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await stream.send_all(frame(encode(granting(request))) + headed(0, body(0)) + headed(1, body(1), lease=8))
    return True


async def another_message(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    await stream.send_all(frame(encode(request)))
    return True


async def more_than_asked(stream: trio.SocketStream, request: LeaseRequest) -> bool:
    many = LeaseGrant(request.request, 7, b"\x01", 1000, (2**20,), (SEGMENT,), bytes(16), bytes(32), direct=True)
    await stream.send_all(frame(encode(many)))
    return True


async def silent(_stream: trio.SocketStream, _request: LeaseRequest) -> bool:
    await trio.sleep_forever()
    return False


async def closing(_stream: trio.SocketStream, _request: LeaseRequest) -> bool:
    return False


class Owner:
    """A peer that answers direct questions as it is told to, and pulls as it should."""

    def __init__(self, answer: Answer) -> None:
        self.address = ""
        self.streams = 0
        self.asked = 0
        self._answer = answer

    async def start(self, nursery: trio.Nursery) -> "Owner":
        (listener,) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        return self

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.streams += 1
        with suppress(P2pkvError, trio.BrokenResourceError):
            hello = await welcome(stream, cluster="c", node_id="b", peer="a")
            await serve_bulk(
                stream, peer=hello.node, open_lease=lambda *_: OFFERED, idle_s=1e6, on_request=self._on_request
            )
        await trio.aclose_forcefully(stream)

    async def _on_request(self, stream: trio.SocketStream, request: LeaseRequest) -> bool:
        self.asked += 1
        return await self._answer(stream, request)


class Taker:
    """A node whose fetches are begun by hand."""

    def __init__(self) -> None:
        self.runner: Runner
        self.runner, self._datagrams, self.streams, self.metrics = runner_of("a")
        answer_timeout_s = self.runner.ask(lambda node: node.config).fetch.answer_timeout_s
        assert answer_timeout_s <= 3, "or else what waits for it here is too short"
        self.tier = HostTier(2**20)
        self.tcp = TcpTransport(hello=lambda: Hello("c", "a", "127.0.0.1:1", 1), connect_timeout_s=5.0)
        log = logger(LogConfig(level="critical"))
        transfers = Transfers(runner=self.runner, tier=self.tier, transport=self.tcp, metrics=self.metrics, log=log)
        self.asks = DirectAsks(
            runner=self.runner,
            transfers=transfers,
            transport=self.tcp,
            tcp=self.tcp,
            streams=self.streams,
            metrics=self.metrics,
            log=log,
        )
        self.by_stream: list[LeaseRequest | LeaseRelease] = []
        self.ended: list[FetchEnded] = []

    async def start(self, nursery: trio.Nursery, owner: Owner) -> None:
        self.asks.attach(nursery, asks=True)
        self.streams.send_nowait = lambda _, message, __=0.0: self._said(message)  # type: ignore[method-assign,assignment,arg-type,return-value]
        node = self.runner.ask(lambda node: node)
        node._acquires.on_fetch_ended = lambda ended, _: self.ended.append(ended) or ()  # type: ignore[method-assign,assignment,func-returns-value]
        self.runner.deliver("b", PushPull(records=(record("b", owner.address),), reply=False))
        self.tcp.keep("b", owner.address, await self.tcp.open_stream("b", owner.address))  # type: ignore[arg-type]

    def _said(self, message: AnyMessage) -> None:
        if isinstance(message, LeaseRequest | LeaseRelease):
            self.by_stream.append(message)

    def fetch(self, address: str, chain: tuple[BlockKey, ...] = CHAIN, deadline_s: float = 60.0) -> int:
        def verb(node: Node, now: float) -> tuple[int, tuple[Effect, ...]]:
            number, effects = node._fetches.start(
                chain,
                Plan((Run("b", 0, len(chain)),), "planned"),
                claims={"b": len(chain)},
                addresses={"b": address},
                deadline=now + deadline_s,
                now=now,
                here=lambda _: False,
                block_bytes=LENGTH,
            )
            return number, node._route(effects, now)

        return self.runner.call(verb)

    def here(self) -> list[int]:
        """Return which blocks are here, after comparing every byte; no place is still being written."""
        found = []
        for number, one in enumerate(CHAIN):
            held = self.runner.ask(lambda node, one=one: node.ledger.get(one))  # type: ignore[misc]
            if held is not None:
                assert bytes(self.tier.read(held.slot, LENGTH)) == body(number)
                found.append(number)
        used = self.runner.ask(lambda node: node.ledger.statistics()).used_bytes
        assert used == LENGTH * len(found)
        return found

    def counted(self) -> dict[str, float]:
        name = "p2pkv_direct_questions_total{result="
        counters = self.metrics.snapshot().items()
        return {one.removeprefix(name)[:-1]: count for one, count in counters if one.startswith(name)}

    def close(self) -> None:
        self.tier.close()
        self._datagrams.close()


def fetched(answer: Answer, *, then: Callable[[Taker, Owner], Awaitable[None]] | None = None) -> tuple[Taker, Owner]:
    """Return both ends after one fetch of the chain from an owner that answers so."""
    taker, owner = Taker(), Owner(answer)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await owner.start(nursery)
            await taker.start(nursery, owner)
            taker.fetch(owner.address)
            with trio.move_on_after(10):
                while not sum(taker.counted().values()):
                    await trio.sleep(0.01)
            if then is not None:
                await then(taker, owner)
            await taker.tcp.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
    return taker, owner


def test_blocks_come_with_the_answer_and_the_connection_is_kept() -> None:
    taker, owner = fetched(honest)
    assert taker.here() == [0, 1, 2]
    assert taker.ended[0].sources == tuple((one, "b") for one in CHAIN)
    assert (owner.asked, owner.streams) == (1, 1)
    assert taker.by_stream == [], "neither a question nor a release is left to say"
    assert taker.counted() == {"direct": 1.0}
    taker.close()


def test_what_is_not_sent_at_once_is_pulled() -> None:
    async def until_here(taker: Taker, _: Owner) -> None:
        with trio.move_on_after(5):
            while not taker.ended:
                await trio.sleep(0.01)

    taker, owner = fetched(left_to_a_pull, then=until_here)
    assert taker.here() == [0, 1, 2]
    assert (owner.streams, taker.counted()) == (1, {"pulled": 1.0})
    taker.close()


def test_a_corrupt_block_is_refused_and_the_others_are_taken() -> None:
    taker, _ = fetched(corrupt)
    assert taker.here() == [0, 2]
    assert dict(taker.ended[0].failures)[CHAIN[1]] == "corrupt"
    taker.close()


@pytest.mark.parametrize("answer", [truncated, of_another_lease])
def test_what_arrived_before_the_stream_made_no_sense_is_kept_and_the_rest_has_failed(answer: Answer) -> None:
    taker, _ = fetched(answer)
    assert taker.here() == [0]
    assert set(dict(taker.ended[0].failures)) == {CHAIN[1], CHAIN[2]}
    taker.close()


@pytest.mark.parametrize("answer", [another_message, more_than_asked, silent])
def test_an_answer_that_makes_no_sense_or_does_not_come_is_nothing_and_the_question_ends_by_its_own_time(
    answer: Answer,
) -> None:
    async def until_late(taker: Taker, _: Owner) -> None:
        taker.runner.tell(lambda node, now: node._route(node._fetches.on_time(now + 5), now + 5))

    taker, _ = fetched(answer, then=until_late)
    assert taker.here() == []
    assert dict(taker.ended[0].failures)[CHAIN[0]] == "slow"
    assert taker.counted() == {"lost": 1.0}
    taker.close()


def test_a_connection_that_ends_before_the_answer_puts_the_question_on_the_control_stream() -> None:
    taker, owner = fetched(closing)
    (question,) = taker.by_stream
    assert isinstance(question, LeaseRequest)
    assert split_keys(question.keys) == CHAIN
    assert owner.asked == 1
    taker.close()


def test_blocks_that_nobody_wants_any_more_are_not_waited_for() -> None:
    gate = trio.Event()

    async def slow(stream: trio.SocketStream, request: LeaseRequest) -> bool:
        await gate.wait()
        return await honest(stream, request)

    async def main() -> None:
        taker, owner = Taker(), Owner(slow)
        async with trio.open_nursery() as nursery:
            await owner.start(nursery)
            await taker.start(nursery, owner)
            number = taker.fetch(owner.address)
            while not owner.asked:
                await trio.sleep(0.01)
            taker.runner.tell(lambda node, now: node._route(node._fetches.cancel(number), now))
            gate.set()
            while not taker.counted():
                await trio.sleep(0.01)
            assert taker.here() == []
            assert taker.tcp.borrow(owner.address) is None, "what is left on it would be read as the next answer"
            nursery.cancel_scope.cancel()
        taker.close()

    trio.run(main)


def test_a_connection_that_was_closed_while_nobody_used_it_is_not_asked() -> None:
    async def main() -> None:
        taker, owner = Taker(), Owner(honest)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as owners:
                await owner.start(owners)
                await taker.start(nursery, owner)
                ((_, kept),) = taker.tcp._idle[owner.address]
                owners.cancel_scope.cancel()
            with trio.fail_after(10):
                while not has_closed(kept):  # on a busy machine the kernel may be late in saying so
                    await trio.sleep(0.001)
            taker.fetch(owner.address)
            assert len(taker.by_stream) == 1
            nursery.cancel_scope.cancel()
        taker.close()

    trio.run(main)
