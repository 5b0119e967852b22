"""What engines ask for: chains with shared prefixes, as seeded conversations or as a recorded trace has them.

Conversations: each belongs to an application, whose instructions all its conversations begin with; a few applications
have most of them (Zipf). A turn repeats all that was said and adds to it. Nobody answers before the last answer has
been written, so turns are `THINK_MIN_S` apart at least; one conversation in ten is an agent's, which goes on as soon as
its tool has answered. Each turn goes to any node, whichever served the one before:
the hardest case for a cache that knows of others only by their summaries.
"""

import itertools
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Final

from p2pkv.blocks import BlockKey
from p2pkv.errors import LocalUseError

APPLICATIONS: Final = 40
PROMPT_BLOCKS: Final = (16, 64)
"""Of an application's instructions."""
TURN_BLOCKS: Final = (4, 20)
"""Of a question and the answer before it."""
TURNS_MEAN: Final = 4.0
THINK_MIN_S: Final = 3.0
"""An answer of 300 tokens at 100 a second."""
THINK_MEAN_S: Final = 30.0
"""Until the next turn. In a recorded hour of chat a quarter of the reuse comes within 54 s (Mooncake, FAST'25)."""
AGENT_SHARE: Final = 0.1
TOOL_MIN_S: Final = 0.5
TOOL_MEAN_S: Final = 3.0
"""A recorded load of agents has half of its reuse within a second, a quarter later than two."""
_RECORDED_BLOCK_TOKENS: Final = 512
_ENDLESS: Final = 2**40


@dataclass(frozen=True, slots=True)
class Request:
    """At `at_s` an engine of the node numbered `node` needs this chain."""

    at_s: float
    node: int
    keys: tuple[BlockKey, ...]


def conversations(*, nodes: int, rate: float, start_s: float, end_s: float, seed: int) -> list[Request]:
    """Return the requests of conversations, `rate` a second and node, in the order of time."""
    random = Random(f"{seed}/conversations")
    weights = [1 / (place + 1) for place in range(APPLICATIONS)]
    prompts = [_chain(f"{seed}/application/{i}", random.randint(*PROMPT_BLOCKS)) for i in range(APPLICATIONS)]
    found: list[Request] = []
    began = rate * nodes / TURNS_MEAN  # conversations a second
    at_s = start_s - 4 * THINK_MEAN_S  # so that at the start conversations of every age go on
    for number in itertools.count():
        at_s += random.expovariate(began)
        if at_s >= end_s:
            break
        keys = random.choices(prompts, weights)[0]
        turn_s = at_s
        least_s, mean_s = (TOOL_MIN_S, TOOL_MEAN_S) if random.random() < AGENT_SHARE else (THINK_MIN_S, THINK_MEAN_S)
        for turn in itertools.count():
            keys = (*keys, *_chain(f"{seed}/{number}/{turn}", random.randint(*TURN_BLOCKS)))
            if start_s <= turn_s < end_s:
                found.append(Request(turn_s, random.randrange(nodes), keys))
            turn_s += least_s + random.expovariate(1 / (mean_s - least_s))
            if random.random() < 1 / TURNS_MEAN or turn_s >= end_s:
                break
    return sorted(found, key=lambda request: (request.at_s, request.node))


def recorded(path: Path, *, nodes: int, start_s: float, end_s: float, seed: int) -> list[Request]:
    """Return the requests of a trace, each at any node: lines of JSON with `timestamp` in ms and ids of the prefixes.

    The ids are in `hash_ids`, or in `hash_runs` as start and count in turn. A name that ends in .xz is unpacked. In
    `hash_ids` an incomplete last block of fewer than 512 tokens has an id, too, as `input_length` tells; it is left out,
    for only full blocks have keys.

    Raises:
        LocalUseError: it cannot be read as such.
    """
    random = Random(f"{seed}/recorded")
    found: list[Request] = []
    try:
        data = path.read_bytes()
        for line in (lzma.decompress(data) if path.suffix == ".xz" else data).splitlines():
            row = json.loads(line)
            at_s = start_s + row["timestamp"] / 1000
            if at_s < end_s:
                keys = tuple(map(_key_of, _ids(row)))
                found += [Request(at_s, random.randrange(nodes), keys)] if keys else []
    except (OSError, lzma.LZMAError, ValueError, KeyError, TypeError) as exc:
        raise LocalUseError(f"trace {str(path)!r} cannot be read ({exc})", hint="one JSON object a line") from exc
    return sorted(found, key=lambda request: request.at_s)


def _ids(row: dict[str, Any]) -> Iterator[int]:
    if "hash_ids" in row:
        whole = row.get("input_length", _ENDLESS) // _RECORDED_BLOCK_TOKENS
        yield from row["hash_ids"][:whole]
        return
    runs = iter(row["hash_runs"])
    for start in runs:
        yield from range(start, start + next(runs))


def _key_of(number: int) -> BlockKey:
    return BlockKey(blake2b(number.to_bytes(8, "little"), digest_size=32).digest())


def _chain(name: str, blocks: int) -> tuple[BlockKey, ...]:
    return tuple(BlockKey(blake2b(f"{name}/{i}".encode(), digest_size=32).digest()) for i in range(blocks))
