"""The process around a node: signals, the metrics listener, the line that says it is ready."""

import signal
from collections.abc import Callable

import trio
from prometheus_client import start_http_server

from p2pkv.agent import Agent
from p2pkv.config import Config, parse_address
from p2pkv.errors import CannotListen


def serve(config: Config, *, ready: Callable[[Agent], None]) -> None:
    """Run a node until SIGINT, SIGTERM or `p2pkv leave`; each of them leaves the mesh in good order.

    Args:
        config: all settings.
        ready: called once everything listens.

    Raises:
        CannotListen, FabricError: it could not start; nothing stays behind.
    """
    agent = Agent(config)
    try:
        _serve_metrics(agent)
    except BaseException:
        agent.close()
        raise
    trio.run(_main, agent, ready, strict_exception_groups=True)


async def _main(agent: Agent, ready: Callable[[Agent], None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def leave_on_signal() -> None:
                async for number in signals:
                    agent.log.info("leaving", signal=signal.Signals(number).name)
                    agent.leave()

            nursery.start_soon(leave_on_signal)
            nursery.start_soon(_announce, agent, ready, nursery.cancel_scope)


async def _announce(agent: Agent, ready: Callable[[Agent], None], scope: trio.CancelScope) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        ready(agent)
    scope.cancel()


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
