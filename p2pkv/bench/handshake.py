"""What it costs to open a connection: `python -m p2pkv.bench.handshake` prints one JSON document.

Both ends run in this one thread over loopback, so a figure is the work of caller and called together; of what is called
`cpu`, a daemon is kept from other things by about half. Kinds of connections take turns, so that other work on the machine
hits all alike.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Final

import trio

from p2pkv.authority import Authority, new_node_id
from p2pkv.certificate_files import read_credentials, write_node_folder
from p2pkv.errors import PeerError
from p2pkv.transport.credentials import Credentials
from p2pkv.transport.doorkeeper import Doorkeeper
from p2pkv.transport.handshake import welcome
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.sealed_handshake import greet_as, greet_sealed, welcome_sealed
from p2pkv.transport.tcp import open_tcp, reach
from p2pkv.transport.tls import TlsStream
from p2pkv.transport.tls_handshake import Certified
from p2pkv.transport.wire import Hello

_CLUSTER: Final = "bench"
_RING: Final = KeyRing((bytes(32),))


async def measure(rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return, for each kind of connection, what one takes, milliseconds."""
    authority = Authority.create(folder / "ca", cluster=_CLUSTER, days=1, now=time.time())
    called, caller = (_certified(_credentials(authority, folder / name)) for name in ("called", "caller"))
    doorkeeper = Doorkeeper(called)
    control = Hello(_CLUSTER, caller.node_id, "127.0.0.1:1", 0)
    blocks = Hello(_CLUSTER, caller.node_id, "127.0.0.1:1", 1)

    async def serve_plain(stream: trio.SocketStream) -> None:
        await welcome(stream, cluster=_CLUSTER, node_id=called.node_id, peer="caller")

    async def serve_sealed(stream: trio.SocketStream) -> None:
        await welcome_sealed(stream, cluster=_CLUSTER, node_id=called.node_id, peer="caller", ring=lambda: _RING)

    async def serve_certified(stream: trio.SocketStream) -> None:
        hello, channel = await doorkeeper.welcome(stream, peer="caller")
        if isinstance(channel, TlsStream):
            await doorkeeper.serve(channel, peer=hello.node, deliver=lambda *_: None)

    async with trio.open_nursery() as nursery:
        addresses = [await _listen(nursery, serve) for serve in (serve_plain, serve_sealed, serve_certified)]
        plain, sealed, certified = addresses
        session: list[bytes] = []

        async def greet_shared(address: str, ring: KeyRing | None) -> None:
            greet = partial(greet_as, hello=control, peer="called", ring=(lambda: ring) if ring is not None else None)
            stream, _ = await reach(open_tcp, address, greet, timeout_s=10.0)
            await trio.aclose_forcefully(stream)

        async def greet_tls() -> None:
            greet = partial(caller.greet, hello=control, peer="called")
            stream, _ = await reach(open_tcp, certified, greet, timeout_s=10.0)
            await trio.aclose_forcefully(stream)

        async def ask_session() -> None:
            ask = partial(caller.ask_session, hello=control, peer=called.node_id, address=certified)
            key, _ = await reach(open_tcp, certified, ask, timeout_s=10.0)
            session[:] = [key]

        async def open_session() -> None:
            greet = partial(greet_sealed, hello=blocks, peer="called", ring=lambda: KeyRing((session[0],)))
            _, stream = await reach(open_tcp, certified, greet, timeout_s=10.0)
            await trio.aclose_forcefully(stream)

        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "plain": partial(greet_shared, plain, None),
            "keyring": partial(greet_shared, sealed, _RING),
            "control_tls": greet_tls,
            "ask_session_tls": ask_session,
            "blocks_under_session": open_session,
        }
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, connect in kinds.items():
                began, worked = time.perf_counter(), time.process_time()
                await connect()
                times[kind].append((time.perf_counter() - began, time.process_time() - worked))
        nursery.cancel_scope.cancel()
    return {kind: _figures(found) for kind, found in times.items()}


async def _listen(nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> str:
    async def served(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (PeerError, trio.BrokenResourceError):
            pass  # the caller hangs up at once
        finally:
            await trio.aclose_forcefully(stream)

    listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, served, 0, host="127.0.0.1"))
    return f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"


def _credentials(authority: Authority, folder: Path) -> Credentials:
    chain, key, _ = authority.issue(new_node_id(), days=1, now=time.time())
    write_node_folder(folder, chain=chain, key=key, authorities=authority.bundle)
    return read_credentials(folder)


def _certified(credentials: Credentials) -> Certified:
    return Certified(now=lambda: credentials, cluster=_CLUSTER, node_id=credentials.own.node, skew_max_s=60.0)


def _figures(found: list[tuple[float, float]]) -> dict[str, float]:
    """Return medians and quartiles of (time, processor time), given in seconds."""
    low, middle, high = quantiles([time_s for time_s, _ in found], n=4)
    cpu_low, cpu, cpu_high = quantiles([cpu_s for _, cpu_s in found], n=4)
    figures = {
        "p50_ms": middle,
        "p25_ms": low,
        "p75_ms": high,
        "cpu_p50_ms": cpu,
        "cpu_p25_ms": cpu_low,
        "cpu_p75_ms": cpu_high,
    }
    return {name: round(seconds * 1000, 3) for name, seconds in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What it costs to open a connection.")
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"rounds": rounds, "connections": trio.run(measure, rounds, Path(folder))}, indent=2))  # noqa: T201 - its output


if __name__ == "__main__":
    main()
