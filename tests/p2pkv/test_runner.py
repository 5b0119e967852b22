"""The trio half of a node on a clock that jumps: timers, effects, and a stall that must not look like silence."""

import socket
from random import Random

import msgspec
import pytest
import trio
import trio.testing

from p2pkv.config import Config, DiskConfig, HostConfig, LogConfig, MeshConfig, NodeConfig, ObjectConfig
from p2pkv.errors import PeerGone, TierFull
from p2pkv.logs import logger
from p2pkv.mesh.members import MemberState
from p2pkv.metrics import Metrics
from p2pkv.node import Node
from p2pkv.runner import Runner
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.udp import Datagrams
from p2pkv.transport.wire import Hello, MemberRecord, PushPull


def record(name: str, address: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=address, offered_bytes=1 << 20)


def runner_of(
    name: str,
    join: tuple[str, ...] = (),
    *,
    disk: DiskConfig | None = None,
    objects: ObjectConfig | None = None,
) -> tuple[Runner, Datagrams, ControlStreams, Metrics]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    config = Config(
        node=NodeConfig(join=join),
        mesh=MeshConfig(probe_period_s=1.0, probe_timeout_s=0.5),
        host=HostConfig(capacity_bytes=1 << 20),
        disk=disk or DiskConfig(),
        object=objects or ObjectConfig(),
    )
    node, metrics = Node(config, record(name, address), Random(1)), Metrics()
    streams = ControlStreams(
        hello=lambda: Hello("default", name, address, 0), connect_timeout_s=1.0, on_lost=lambda *_: None
    )
    datagrams = Datagrams(sock)
    return (
        Runner(node, datagrams=datagrams, streams=streams, metrics=metrics, log=logger(LogConfig())),
        datagrams,
        streams,
        metrics,
    )


def state_of(runner: Runner, name: str) -> MemberState | None:
    found = runner.ask(lambda node: node.membership.member(name))
    return None if found is None else MemberState(found.state)


def test_a_silent_member_is_declared_dead_by_the_timer_alone() -> None:
    async def main() -> MemberState | None:
        runner, datagrams, streams, _ = runner_of("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(streams.run)
            nursery.start_soon(runner.run)
            runner.deliver("b", PushPull(records=(record("b", "127.0.0.1:9"),), reply=False))
            assert state_of(runner, "b") == MemberState.ALIVE
            with trio.move_on_after(60):
                while state_of(runner, "b") != MemberState.DEAD:
                    await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        datagrams.close()
        return state_of(runner, "b")

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01)) == MemberState.DEAD


def test_what_happens_in_one_moment_sets_the_timer_once_and_to_the_right_time() -> None:
    async def main() -> tuple[int, float]:
        runner, datagrams, streams, _ = runner_of("a")
        asked: list[float] = []
        node = runner.ask(lambda node: node)
        async with trio.open_nursery() as nursery:
            await nursery.start(streams.run)
            nursery.start_soon(runner.run)
            await trio.testing.wait_all_tasks_blocked()
            honest = node.next_deadline
            node.next_deadline = lambda: asked.append(honest()) or asked[-1]  # type: ignore[method-assign]
            for number in range(64):
                runner.deliver(f"b{number}", PushPull(records=(record(f"b{number}", "127.0.0.1:9"),), reply=False))
            await trio.testing.wait_all_tasks_blocked()
            assert runner._timer is not None
            late = runner._timer.deadline - max(honest(), trio.current_time())
            nursery.cancel_scope.cancel()
        datagrams.close()
        return len(asked), late

    times, late = trio.run(main, clock=trio.testing.MockClock())
    assert times == 1
    assert late <= 0.1


def test_an_answer_that_came_during_a_stall_is_heard_before_the_timer_fires() -> None:
    clock = trio.testing.MockClock()

    async def main() -> None:
        a, a_datagrams, a_streams, _ = runner_of("a")
        b, b_datagrams, b_streams, _ = runner_of("b")
        b_address = b.ask(lambda node: node.membership.members()[0].address)
        async with trio.open_nursery() as nursery:
            for streams in (a_streams, b_streams):
                await nursery.start(streams.run)
            a.deliver("b", PushPull(records=(record("b", b_address),), reply=False))
            nursery.start_soon(a.run)
            nursery.start_soon(b.run)
            for _ in range(20):
                # Each round both nodes sleep through more than a probe's whole period, with the answers in the socket.
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(1.5)
                await trio.testing.wait_all_tasks_blocked(0.005)
                assert state_of(a, "b") == MemberState.ALIVE
            nursery.cancel_scope.cancel()
        a_datagrams.close()
        b_datagrams.close()

    trio.run(main, clock=clock)


def test_garbage_datagrams_are_counted_and_nothing_else() -> None:
    async def main() -> float:
        runner, datagrams, streams, metrics = runner_of("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(streams.run)
            nursery.start_soon(runner.run)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                for payload in (b"", b"\xc1", b"\x92\x02\x07", b"x" * 60_000):
                    sender.sendto(payload, datagrams.socket.getsockname())
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        datagrams.close()
        return metrics.snapshot()["p2pkv_malformed_messages_total{channel=datagram}"]

    assert trio.run(main) == 4


def test_a_verb_that_raises_reaches_its_caller_and_stops_nothing() -> None:
    async def main() -> None:
        runner, datagrams, streams, _ = runner_of("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(streams.run)
            nursery.start_soon(runner.run)

            def verb(node: Node, now: float) -> tuple[None, tuple[()]]:
                raise TierFull("no room", tier="host")

            with pytest.raises(TierFull):
                runner.call(verb)
            runner.link_lost("127.0.0.1:1", PeerGone("refused", peer="127.0.0.1:1"))
            assert runner.ask(lambda node: len(node.membership.members())) == 1
            nursery.cancel_scope.cancel()
        datagrams.close()

    trio.run(main)


def test_deaths_from_before_this_node_came_are_no_lines_in_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Or else each new node of a mesh with a history begins with a warning for every member that ever died."""

    async def main() -> None:
        runner, datagrams, streams, _ = runner_of("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(streams.run)
            told = [
                msgspec.structs.replace(record(state.name, f"127.0.0.1:{9 + state}"), state=int(state))
                for state in MemberState
            ]
            runner.deliver("b", PushPull(records=(record("b", "127.0.0.1:9"), *told), reply=False))
            assert state_of(runner, "DEAD") == MemberState.DEAD
            nursery.cancel_scope.cancel()
        datagrams.close()

    trio.run(main)
    lines = capsys.readouterr().err
    assert "member=ALIVE" in lines
    assert "member=SUSPECT" in lines
    assert "member=DEAD" not in lines
    assert "member=LEFT" not in lines
