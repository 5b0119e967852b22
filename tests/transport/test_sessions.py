"""Session keys: who gets one, how long it is good, and that a recording of a connection's opening gets nowhere."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from p2pkv.errors import PeerError, PeerGone, SealRefused
from p2pkv.transport import sessions as module
from p2pkv.transport.bulk_keys import SessionKeys
from p2pkv.transport.framing import frame
from p2pkv.transport.handshake import read_frame_exactly
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.sealed_handshake import Opening, Rings, greet_sealed
from p2pkv.transport.sealed_stream import SealedStream
from p2pkv.transport.session_handshake import welcome_session
from p2pkv.transport.sessions import (
    OPENINGS_MAX,
    SESSION_S,
    SESSIONS_PER_PEER_MAX,
    GrantedSessions,
    HeldSessions,
    session_name,
)
from p2pkv.transport.wire import Hello

HELLO = Hello("c", "a", "127.0.0.1:1", 1)


def reason_of(refused: Callable[[], object]) -> str:
    with pytest.raises(SealRefused) as caught:
        refused()
    return caught.value.reason


def test_a_session_is_good_for_its_time_and_no_longer() -> None:
    granted = GrantedSessions()
    key, lifetime_s = granted.grant("a", lifetime_s=60.0, now=10.0)
    assert lifetime_s == 60.0
    session = granted.find(session_name(key), now=69.9, peer="p")
    assert granted.ring(session, 69.9) == KeyRing((key,))
    assert key not in granted.ring(session, 70.0).keys
    assert reason_of(lambda: granted.find(session_name(key), now=70.0, peer="p")) == "expired_session"
    assert reason_of(lambda: granted.find(b"none", now=70.0, peer="p")) == "unknown_session"
    granted.grant("b", lifetime_s=1e9, now=70.0 + SESSION_S)
    assert len(granted) == 1, "what is long over takes no room"
    assert reason_of(lambda: granted.find(session_name(key), now=70.0 + SESSION_S, peer="p")) == "unknown_session"


def test_no_peer_can_take_the_room_of_the_others() -> None:
    granted = GrantedSessions(sessions_max=10)
    other, _ = granted.grant("b", lifetime_s=60.0, now=0.0)
    keys = [granted.grant("a", lifetime_s=60.0, now=0.0)[0] for _ in range(20)]
    assert len(granted) == 1 + SESSIONS_PER_PEER_MAX
    assert granted.find(session_name(other), now=1.0, peer="p").peer == "b"
    assert granted.find(session_name(keys[-1]), now=1.0, peer="p").peer == "a"
    assert granted.ended_early == 20 - SESSIONS_PER_PEER_MAX
    for number in range(20):
        granted.grant(f"n{number}", lifetime_s=60.0, now=0.0)
    assert len(granted) == 10


def test_a_name_that_is_taken_is_not_given_again() -> None:
    drawn = iter([bytes(32), bytes(32), bytes([1]) * 32])
    granted = GrantedSessions(draw=lambda _: next(drawn))
    assert [granted.grant("a", lifetime_s=1.0, now=0.0)[0] for _ in range(2)] == [bytes(32), bytes([1]) * 32]


def test_a_session_ends_when_it_has_opened_as_many_connections_as_it_may() -> None:
    granted = GrantedSessions()
    key, _ = granted.grant("a", lifetime_s=60.0, now=0.0)
    session = granted.find(session_name(key), now=0.0, peer="p")
    for number in range(OPENINGS_MAX):
        granted.take_opening(session, number.to_bytes(32, "big"), peer="p")
    assert reason_of(lambda: granted.find(session_name(key), now=0.0, peer="p")) == "unknown_session"
    assert granted.ring(session, 0.0) == KeyRing((key,)), "the connections there are go on"


def test_when_all_are_ended_the_connections_under_them_are_too() -> None:
    granted = GrantedSessions()
    key, _ = granted.grant("a", lifetime_s=60.0, now=0.0)
    session = granted.find(session_name(key), now=0.0, peer="p")
    granted.end_all()
    assert key not in granted.ring(session, 0.0).keys
    assert reason_of(lambda: granted.find(session_name(key), now=0.0, peer="p")) == "unknown_session"


def test_a_session_is_renewed_at_half_of_its_time_and_what_flows_under_the_old_one_goes_on() -> None:
    held, first, second = HeldSessions(), bytes([1]) * 32, bytes([2]) * 32
    assert not held.is_fresh("b", 0.0)
    held.take("b", first, lifetime_s=100.0, now=0.0)
    assert held.ring("b", 49.0).keys == (first,)
    assert not held.is_fresh("b", 50.0)
    assert held.ring("b", 50.0).keys[0] != first, "no new connection under it"
    assert first in held.ring("b", 99.0).keys
    held.take("b", second, lifetime_s=100.0, now=50.0)
    assert held.ring("b", 51.0).keys == (second, first)
    assert held.ring("b", 99.9 + 0.1).keys[0] != first
    assert first not in held.ring("b", 100.0).keys
    held.refused("b")
    assert not held.is_fresh("b", 51.0)
    assert second in held.ring("b", 51.0).keys
    assert not {first, second} & set(held.ring("b", 1e6).keys)


def test_a_requester_keeps_sessions_of_so_many_peers_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_PEERS_MAX", 2)
    held = HeldSessions()
    for peer in "abc":
        held.take(peer, bytes(32), lifetime_s=10.0, now=0.0)
    assert [held.is_fresh(peer, 1.0) for peer in "abc"] == [False, True, True]


class Owner:
    """The called side of sessions, on streams in memory, with a clock that a test turns."""

    def __init__(self) -> None:
        self.granted = GrantedSessions()
        self.now = 0.0
        self.asked = 0
        self.refused: list[PeerError] = []
        self.welcomed: list[SealedStream] = []

    async def ask(self, peer: str, address: str) -> tuple[bytes, float]:
        assert (peer, address) == ("b", "b:1")
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return self.granted.grant("a", lifetime_s=100.0, now=self.now)

    async def serve(self, stream: trio.abc.Stream) -> None:
        try:
            payload = await read_frame_exactly(stream, peer="x")
            _, sealed = await welcome_session(
                stream, payload, sessions=self.granted, cluster="c", node_id="b", peer="x", clock=lambda: self.now
            )
            self.welcomed.append(sealed)
        except PeerError as exc:
            self.refused.append(exc)
            await stream.aclose()

    def dial(self, nursery: trio.Nursery) -> trio.abc.Stream:
        mine, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(self.serve, theirs)
        return mine


def run(main: Callable[[trio.Nursery, Owner], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await main(nursery, Owner())
                nursery.cancel_scope.cancel()

    trio.run(bounded)


def keys_of(owner: Owner) -> SessionKeys:
    return SessionKeys(ask=owner.ask, clock=lambda: owner.now)


async def connect(owner: Owner, nursery: trio.Nursery, ring: Rings | None, hello: Hello = HELLO) -> SealedStream:
    assert ring is not None
    return (await greet_sealed(owner.dial(nursery), hello, peer="b", ring=ring))[1]


def test_many_connections_share_a_session_and_a_later_one_gets_the_next() -> None:
    async def main(nursery: trio.Nursery, owner: Owner) -> None:
        keys = keys_of(owner)
        opened: list[SealedStream] = []

        async def one() -> None:
            opened.append(await keys.greeted("b", "b:1", partial(connect, owner, nursery)))

        async with trio.open_nursery() as together:
            for _ in range(5):
                together.start_soon(one)
        assert owner.asked == 1
        assert all(stream.is_current() for stream in opened)
        await opened[0].send_all(b"pull")
        owner.now = 50.0
        assert not opened[0].is_current()
        await one()
        assert (owner.asked, opened[-1].is_current()) == (2, True)
        await trio.testing.wait_all_tasks_blocked()
        await opened[0].send_all(b"more")
        assert await owner.welcomed[0].receive_some() == b"pull"
        owner.now = 100.0
        with pytest.raises(SealRefused, match="removed"):
            await owner.welcomed[0].receive_some()

    run(main)


def test_a_peer_that_lost_its_sessions_is_asked_for_another_at_once() -> None:
    async def main(nursery: trio.Nursery, owner: Owner) -> None:
        keys = keys_of(owner)
        await keys.greeted("b", "b:1", partial(connect, owner, nursery))
        owner.granted = GrantedSessions()
        stream = await keys.greeted("b", "b:1", partial(connect, owner, nursery))
        assert (owner.asked, stream.is_current()) == (2, True)
        assert [exc.reason for exc in owner.refused if isinstance(exc, SealRefused)] == ["unknown_session"]

    run(main)


def test_a_recorded_opening_is_refused_and_so_is_a_session_of_another_node() -> None:
    async def main(nursery: trio.Nursery, owner: Owner) -> None:
        key, _ = owner.granted.grant("a", lifetime_s=100.0, now=0.0)
        opening = Opening(HELLO, key)
        first = owner.dial(nursery)
        await first.send_all(frame(opening.payload))
        opening.answered_untrusted(await read_frame_exactly(first, peer="b"), peer="b")
        again = owner.dial(nursery)
        await again.send_all(frame(opening.payload))
        with pytest.raises(PeerError, match="refused"):
            opening.answered_untrusted(await read_frame_exactly(again, peer="b"), peer="b")
        thief = owner.dial(nursery)
        stolen = Opening(Hello("c", "m", "127.0.0.1:1", 1), key)
        await thief.send_all(frame(stolen.payload))
        with pytest.raises(PeerError, match="not sealed under a session of yours"):
            stolen.answered_untrusted(await read_frame_exactly(thief, peer="b"), peer="b")
        forged = bytearray(Opening(HELLO, key).payload)
        forged[-1] ^= 1
        forger = owner.dial(nursery)
        await forger.send_all(frame(bytes(forged)))
        await read_frame_exactly(forger, peer="b")
        await first.aclose()  # without the proof that a recording cannot give
        await trio.testing.wait_all_tasks_blocked()
        assert [exc.reason for exc in owner.refused if isinstance(exc, SealRefused)] == ["replay", "sender", "forged"]
        assert isinstance(owner.refused[-1], PeerGone)
        assert owner.welcomed == []

    run(main)
