"""Many agents in one trio run: the real runner, streams and handshakes of each, on a network in memory.

`python -m p2pkv.testing.agents --agents 100 --minutes 10` is the figure of the benchmarks: what the shells cost on top
of the cores that the simulator runs, and that they say as little at rest as it says they do.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Final

import trio

from p2pkv.config import Config, HostConfig, LogConfig, NodeConfig
from p2pkv.errors import PeerError
from p2pkv.logs import logger
from p2pkv.mesh.members import MemberState
from p2pkv.metrics import Metrics
from p2pkv.node import Node
from p2pkv.runner import Runner
from p2pkv.testing.deterministic import run_seeded
from p2pkv.testing.memory_network import MemoryNetwork, MemoryStream
from p2pkv.transport.handshake import welcome
from p2pkv.transport.streams import ControlStreams, serve_control
from p2pkv.transport.wire import AnyMessage, Hello, MemberRecord

START_WITHIN_S: Final = 1.0
_CLUSTER: Final = "default"


class MemoryAgent:
    """What `p2pkv.agent.Agent` wires together, as far as nodes talk to nodes."""

    def __init__(self, network: MemoryNetwork, number: int, *, join: tuple[str, ...], seed: int) -> None:
        self.address: Final = f"10.0.{number // 250}.{number % 250 + 1}:7710"
        config = Config(node=NodeConfig(join=join), host=HostConfig(capacity_bytes=2**20), log=LogConfig(level="error"))
        self._network = network
        self._id = f"agent-{number:04d}"
        self._timeout_s = config.fetch.connect_timeout_s
        self._incoming = trio.open_memory_channel[MemoryStream](4096)
        me = MemberRecord(
            id=self._id,
            boot=1,
            incarnation=0,
            state=0,
            name=self._id,
            address=self.address,
            offered_bytes=config.host.capacity_bytes,
        )
        self.metrics: Final = Metrics()
        self._streams = ControlStreams(
            hello=lambda: Hello(_CLUSTER, self._id, self.address, 0),
            connect_timeout_s=self._timeout_s,
            on_lost=self._link_lost,
            open_stream=network.open_stream,
        )
        self.runner: Final = Runner(
            Node(config, me, Random(f"{seed}/{number}")),
            datagrams=network.bind(self.address, self._incoming[0].send_nowait),
            streams=self._streams,
            metrics=self.metrics,
            log=logger(config.log),
        )

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._streams.run)
                nursery.start_soon(self.runner.run)
                async for stream in self._incoming[1]:
                    nursery.start_soon(self._serve, stream)
        finally:
            self._network.unbind(self.address)

    def _link_lost(self, address: str, error: PeerError) -> None:
        self.runner.link_lost(address, error)  # the runner is made after the streams that report to it

    async def _serve(self, stream: MemoryStream) -> None:
        try:
            with trio.fail_after(self._timeout_s):
                hello = await welcome(stream, cluster=_CLUSTER, node_id=self._id, peer="unknown")
            await serve_control(stream, peer=hello.node, deliver=partial(self._deliver, hello.node))
        except (PeerError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # whatever a caller does ends here
        finally:
            await trio.aclose_forcefully(stream)

    def _deliver(self, peer: str, _: str, message: AnyMessage) -> None:
        self.runner.deliver(peer, message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run of many agents gave."""

    agents: int
    seed: int
    simulated_s: float
    met_after_s: float | None
    """Until everybody knew everybody."""
    doubted: int
    """Members that anybody did not hold for alive at the end."""
    datagrams_per_agent_s: float
    """After they had met."""
    stream_bytes_per_agent_s: float
    digest: str
    """Of what every agent believed in the end and of the traffic: equal for equal seeds."""


async def at_rest(agents: int, *, seed: int, duration_s: float) -> Result:
    """Have agents meet through the first and do nothing for `duration_s`."""
    network, chance = MemoryNetwork(), Random(seed)
    first = MemoryAgent(network, 0, join=(), seed=seed)
    everybody = [first, *(MemoryAgent(network, n, join=(first.address,), seed=seed) for n in range(1, agents))]

    async def begin(agent: MemoryAgent, after_s: float) -> None:
        await trio.sleep(after_s)
        await agent.run()

    def missing() -> int:
        return sum(
            record.state != MemberState.ALIVE for agent in everybody for record in agent.runner.ask(_members)
        ) + sum(agents - len(agent.runner.ask(_members)) for agent in everybody)

    met_after_s: float | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(network.run)
        for place, agent in enumerate(everybody):
            nursery.start_soon(begin, agent, chance.random() * START_WITHIN_S if place else 0.0)
        began = trio.current_time()
        before, before_at = (0, 0), began
        while trio.current_time() < began + duration_s:
            await trio.sleep(1.0 if met_after_s is None else began + duration_s - trio.current_time())
            if met_after_s is None and not missing():
                met_after_s = round(trio.current_time() - began, 3)
                before, before_at = (network.datagrams, network.stream_bytes), trio.current_time()
        rest_s = max(1e-9, trio.current_time() - before_at) * agents
        beliefs = [agent.runner.ask(_members) for agent in everybody]
        doubted = missing()
        nursery.cancel_scope.cancel()
    digest = blake2b(repr((beliefs, network.datagrams, network.stream_bytes)).encode(), digest_size=16).hexdigest()
    return Result(
        agents=agents,
        seed=seed,
        simulated_s=duration_s,
        met_after_s=met_after_s,
        doubted=doubted,
        datagrams_per_agent_s=round((network.datagrams - before[0]) / rest_s, 3),
        stream_bytes_per_agent_s=round((network.stream_bytes - before[1]) / rest_s, 1),
        digest=digest,
    )


def run_at_rest(agents: int, *, seed: int, duration_s: float) -> Result:
    """Run `at_rest` so that the seed decides everything."""
    return run_seeded(
        partial(at_rest, agents, seed=seed, duration_s=duration_s), seed=seed, limit_s=2 * duration_s + 60.0
    )


def _members(node: Node) -> tuple[MemberRecord, ...]:
    return node.membership.members()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and print the result with the time it took as one JSON document."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    began, cpu = time.perf_counter(), time.process_time()
    result = run_at_rest(asked.agents, seed=asked.seed, duration_s=60.0 * asked.minutes)
    took = {"wall_s": round(time.perf_counter() - began, 1), "cpu_s": round(time.process_time() - cpu, 1)}
    sys.stdout.write(json.dumps({**asdict(result), **took}, indent=2) + "\n")


if __name__ == "__main__":
    main()
