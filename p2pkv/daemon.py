"""The process around a node: signals, the metrics listener, the line that says it is ready."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final

import trio
from prometheus_client import start_http_server

from p2pkv.agent import Agent, check_settings
from p2pkv.blocks import BlockKey
from p2pkv.config import Config, parse_address
from p2pkv.errors import CannotListen
from p2pkv.local_explain import score_view
from p2pkv.local_wire import ScoreReply
from p2pkv.planner import Cost
from p2pkv.score_http import Score, ScoreListener
from p2pkv.take_over import take_over

_STDIN: Final = 0
_READ_BYTES: Final = 4096


def serve(
    config: Config, *, ready: Callable[[Agent], None], stop_with_stdin: bool = False, following: bool = False
) -> None:
    """Run a node until SIGINT, SIGTERM or `p2pkv leave`; each of them leaves the mesh in good order.

    Args:
        config: all settings.
        ready: called once everything listens.
        stop_with_stdin: leave, too, when standard input ends, as it does when the process that holds its other end
            dies, however it dies: so a supervised daemon never outlives its supervisor.
        following: take over from the daemon that serves the same socket, if there is one.

    Raises:
        CannotListen, FabricError: it could not start; nothing stays behind.
        LocalUseError: as before; or there is a daemon to take over from and that is not possible.
    """
    if following:
        check_settings(config)  # before anybody leaves for us
    inherited = take_over(config) if following else None
    agent = Agent(config, inherited)
    if following and inherited is None:
        agent.log.info("nobody to take over from", socket=str(agent.local.path))
    try:
        _serve_metrics(agent)
        scores = ScoreListener(config.node.scores) if config.node.scores else None
    except BaseException:
        agent.close()
        raise
    trio.run(_main, agent, ready, stop_with_stdin, scores, strict_exception_groups=True)


async def _main(
    agent: Agent, ready: Callable[[Agent], None], stop_with_stdin: bool, scores: ScoreListener | None
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def leave_on_signal() -> None:
                async for number in signals:
                    agent.log.info("leaving", signal=signal.Signals(number).name)
                    agent.leave()

            nursery.start_soon(leave_on_signal)
            if stop_with_stdin:
                nursery.start_soon(_leave_with_stdin, agent)
            nursery.start_soon(_announce, agent, ready, scores, nursery.cancel_scope)


async def _leave_with_stdin(agent: Agent) -> None:
    stdin = trio.lowlevel.FdStream(os.dup(_STDIN))
    with contextlib.suppress(trio.BrokenResourceError):
        while await stdin.receive_some(_READ_BYTES):
            pass
    agent.log.info("leaving", reason="standard input ended")
    agent.leave()


async def _announce(
    agent: Agent, ready: Callable[[Agent], None], scores: ScoreListener | None, scope: trio.CancelScope
) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        if scores is not None:
            scores.serve(_score(agent), trio.lowlevel.current_trio_token())
        ready(agent)
    scope.cancel()


def _score(agent: Agent) -> Score:
    def score(keys: tuple[BlockKey, ...], cost: Cost | None, limit: int) -> ScoreReply:
        now = trio.current_time()
        return agent.runner.ask(lambda node: score_view(node, keys, cost, limit, now))

    return score


def _serve_metrics(agent: Agent) -> None:
    """Let Prometheus scrape, if a listener is configured. Counters are safe to read from its thread."""
    address = agent.config.node.metrics
    if not address:
        return
    host, port = parse_address(address, what="node.metrics")
    try:
        start_http_server(port, addr=host, registry=agent.metrics.registry)
    except OSError as exc:
        raise CannotListen(f"cannot listen on {address} for metrics ({exc.strerror})", hint="see node.metrics") from exc
