"""What a daemon that has nothing to do costs: a mesh of real ones at LAN defaults, watched at rest."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

from p2pkv.bench.peers_children import Bench, Daemon, cpu_s
from p2pkv.client import Client
from p2pkv.errors import P2pkvError

_AGREE_S: Final = 120.0
_SETTLE_S: Final = 5.0
_HOST_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Shares of one core, percent, over `seconds`."""

    daemons: int
    peers: int
    """Of each daemon."""
    seconds: float
    cpu_percent_p50: float
    cpu_percent_max: float


def measure_rest(bench: Bench, peers: int, seconds: float) -> Rest:
    """Start `peers` + 1 daemons and watch them do nothing for `seconds`."""
    first = Daemon(bench, "rest-0", host_bytes=_HOST_BYTES)
    daemons = [
        first,
        *(Daemon(bench, f"rest-{i}", host_bytes=_HOST_BYTES, join=first.address) for i in range(1, peers + 1)),
    ]
    limit = time.monotonic() + _AGREE_S
    for daemon in daemons:
        while _alive(daemon) <= peers:
            if time.monotonic() > limit:
                raise P2pkvError(f"{daemon.name} does not know all members after {_AGREE_S:.0f} s")
            time.sleep(0.5)
    time.sleep(_SETTLE_S)  # what was new has been told by then
    before, began = [cpu_s(daemon.pid) for daemon in daemons], time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    shares = [100 * (cpu_s(daemon.pid) - spent) / passed for daemon, spent in zip(daemons, before, strict=True)]
    return Rest(
        daemons=len(daemons),
        peers=peers,
        seconds=passed,
        cpu_percent_p50=median(shares),
        cpu_percent_max=max(shares),
    )


def _alive(daemon: Daemon) -> int:
    with Client.connect(daemon.socket, staging_bytes=0, name="bench") as client:
        return client.status().members.get("alive", 0)
