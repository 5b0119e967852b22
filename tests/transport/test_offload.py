"""Work in threads: its result or error comes back, cancelling ends it first, and what it finishes is told in order."""

import threading

import pytest
import trio
import trio.testing

from p2pkv.transport import offload
from p2pkv.transport.offload import Reports, run_blocking


def nothing() -> None:
    """Interrupt what ends by itself."""


def test_a_result_and_an_error_come_back() -> None:
    async def main() -> None:
        assert await run_blocking(threading.get_ident, interrupt=nothing) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await run_blocking(lambda: 1 // 0, interrupt=nothing)

    trio.run(main)


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_caller_goes_on_only_when_the_work_has_ended(fails: bool) -> None:
    interrupted, ended = threading.Event(), threading.Event()

    def work() -> None:
        interrupted.wait()
        ended.set()
        if fails:
            raise OSError

    async def main() -> None:
        with trio.move_on_after(0.01) as scope:
            await run_blocking(work, interrupt=interrupted.set)
        assert scope.cancelled_caught
        assert ended.is_set()
        assert offload.workers().borrowed_tokens == 0

    trio.run(main)


def test_work_beyond_the_bound_waits_and_can_be_cancelled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "WORKERS_MAX", 1)
    go = threading.Event()
    done: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_blocking(go.wait, interrupt=go.set))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01) as scope:
                await run_blocking(lambda: done.append(1), interrupt=nothing)
            assert scope.cancelled_caught
            go.set()
        await run_blocking(lambda: done.append(2), interrupt=nothing)

    trio.run(main)
    assert done == [2]


def test_what_is_finished_is_told_in_order_and_nothing_after_closing() -> None:
    async def main() -> None:
        told: list[int] = []
        reports = Reports[int](told.append)

        def work() -> None:
            for number in range(1000):
                reports.add(number)
            reports.tell()

        await run_blocking(work, interrupt=reports.close)
        await trio.testing.wait_all_tasks_blocked()
        assert told == list(range(1000))
        reports.add(1000)
        reports.close()
        reports.take_all()
        assert told == list(range(1000))

    trio.run(main)


def test_long_work_is_told_of_while_it_goes_on() -> None:
    async def main() -> None:
        told = trio.Event()
        reports, go = Reports[int](lambda _: told.set()), threading.Event()

        def work() -> None:
            reports.add(1)
            while not go.wait(0.001):
                reports.keep_up()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: run_blocking(work, interrupt=go.set))
            await told.wait()
            go.set()

    trio.run(main)


def test_an_error_of_who_is_told_comes_out_where_the_work_is_awaited() -> None:
    def refuse(_: int) -> None:
        raise LookupError

    async def main() -> None:
        reports = Reports[int](refuse)
        await run_blocking(lambda: (reports.add(1), reports.tell()), interrupt=reports.close)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LookupError):
            reports.take_all()

    trio.run(main)
