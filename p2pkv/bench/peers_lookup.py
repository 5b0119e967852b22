"""Where a long prompt can be had: `match` and a plan among many peers, beside Mooncake Store's `batch_is_exist`."""

import sys
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from p2pkv.bench.peers_children import Bench, Program
from p2pkv.bench.peers_lines import timed
from p2pkv.client import Client
from p2pkv.errors import P2pkvError

BLOCKS: Final = 500
PEERS: Final = 100
_TIMES: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Microseconds; medians. ratios are medians of the rounds' own, above 1 where p2pkv is faster."""

    blocks: int
    peers: int
    holders: int
    """Peers that are found to hold some of the chain."""
    match_us: float
    """`Client.match`, over the local socket."""
    core_match_us: float
    """Of it, the part in the daemon's node."""
    core_us: float
    """A match and a plan in the daemon's node: what an `acquire` does before it asks anybody."""
    match_and_plan_us: float
    """`Client.match`, and the plan on top."""
    mooncake_exist_us: float
    ratio: float
    """Of `match_and_plan_us`."""
    core_ratio: float
    """Of `core_us`."""


def measure_lookup(bench: Bench, mooncake: Program, rounds: int) -> Lookup:
    """Measure in turns with `mooncake`, the taker of a store that holds `BLOCKS` blocks or more."""
    socket = bench.folder / "known.sock"
    known = Program(bench, "known", "peers_known", str(socket), str(PEERS), str(BLOCKS), python=sys.executable)
    holders = known.ask("ready")
    if holders < PEERS // 2:
        raise P2pkvError(f"{holders} of {PEERS} peers are found to hold a part of the chain")
    chains = [[bytes.fromhex(key) for key in chain] for chain in known.ask("keys")]
    found: list[tuple[float, float, float, float]] = []
    with Client.connect(socket, staging_bytes=0, name="bench") as client:
        for _ in range(rounds):
            exist = median(mooncake.ask("exist", count=BLOCKS) for _ in range(_TIMES)) * 1e6
            match = median(timed(partial(client.match, chains[i % len(chains)])) for i in range(_TIMES)) * 1e6
            core = known.ask("core_us", times=_TIMES)
            found.append((match, core["match"], core["both"], exist))
    match_us, core_match_us, core_us, exist_us = (median(column) for column in zip(*found, strict=True))
    return Lookup(
        blocks=BLOCKS,
        peers=PEERS,
        holders=holders,
        match_us=match_us,
        core_match_us=core_match_us,
        core_us=core_us,
        match_and_plan_us=match_us + core_us - core_match_us,
        mooncake_exist_us=exist_us,
        ratio=median(exist / (match + both - core) for match, core, both, exist in found),
        core_ratio=median(exist / both for _, _, both, exist in found),
    )
