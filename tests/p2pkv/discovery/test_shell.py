"""Look-ups on a clock that jumps: each has an end, and each is reported."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel
import trio.testing

from p2pkv.config import NodeConfig
from p2pkv.discovery.base import Found, LookupFailed
from p2pkv.discovery.shell import Discovery, check_entries, resolvers
from p2pkv.errors import ConfigError
from p2pkv.mesh.sources import scheme_of
from p2pkv.transport.wire import MemberRecord

ME = MemberRecord(id="me", boot=1, incarnation=0, state=0, name="me", address="127.0.0.1:1")


class Fake:
    def __init__(self, answer: Callable[[], Awaitable[Found]]) -> None:
        self.answer = answer
        self.asked = 0
        self.closed = False

    async def resolve(self) -> Found:
        self.asked += 1
        return await self.answer()

    async def aclose(self) -> None:
        self.closed = True


def reports(fake: Fake, starts: int = 1, wait_s: float = 100.0) -> list[tuple[str, object]]:
    said: list[tuple[str, object]] = []

    async def main() -> None:
        discovery = Discovery({"s": fake}, found=lambda *one: said.append(one), failed=lambda *one: said.append(one))
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            for _ in range(starts):
                discovery.start("s")
            await trio.sleep(wait_s)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert fake.closed
    return said


async def at_once() -> Found:
    await trio.lowlevel.checkpoint()
    return Found(("a:1",))


async def failing() -> Found:
    await trio.lowlevel.checkpoint()
    raise LookupFailed("the moon\nis full")


async def never() -> Found:
    await trio.sleep_forever()
    raise AssertionError


def test_what_is_found_is_reported() -> None:
    assert reports(Fake(at_once)) == [("s", Found(("a:1",)))]


def test_a_failure_is_reported_in_one_line() -> None:
    assert reports(Fake(failing)) == [("s", "the moon is full")]


def test_one_that_never_ends_is_reported_too_and_may_be_started_again() -> None:
    assert reports(Fake(never)) == [("s", "no answer within 60 s")]


def test_one_that_is_under_way_is_not_started_twice() -> None:
    fake = Fake(never)
    reports(fake, starts=5, wait_s=1.0)
    assert fake.asked == 1


def test_each_scheme_has_a_resolver_and_plain_addresses_need_none() -> None:
    entries = ("a:1", "dns://n:1", "dns+srv://n", "mdns://", "file:///f", "exec:true")
    made = resolvers(NodeConfig(join=entries), ME)
    assert tuple(made) == entries[1:]
    assert [scheme_of(entry) for entry in entries] == ["", "dns", "dns+srv", "mdns", "file", "exec"]
    check_entries(entries)


@pytest.mark.parametrize("entry", ["localhost", "http://seeds:80/x", "file:/etc/peers", ""])
def test_what_is_no_scheme_must_be_an_address(entry: str) -> None:
    with pytest.raises(ConfigError):
        check_entries((entry,))
