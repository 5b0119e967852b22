"""Recorded requests: one JSON object a line, plain or .xz, as several publishers of traces have them.

A line has `timestamp` in ms, `input_length` and `output_length` in tokens, and the ids of the prompt's blocks: in `hash_ids`,
or in `hash_runs` as start and count in turn. An id stands for a block and everything before it. `session_id` may be there.
"""

import json
import lzma
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain
from math import log2
from pathlib import Path
from statistics import median
from typing import Any, Final

from p2pkv.blocks import KEY_BYTES, BlockKey
from p2pkv.errors import LocalUseError

_COMMON_SHARE: Final = 0.005
_COMMON_MIN: Final = 8
"""A block of more requests than that, and more than that share of them, says nothing of who talks."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One request."""

    at_s: float
    """Since the first."""
    input_tokens: int
    output_tokens: int
    blocks: tuple[BlockKey, ...]
    session: str


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of time."""

    requests: tuple[Recorded, ...]
    block_tokens: int
    """Tokens of a full block."""

    @property
    def references(self) -> int:
        """Blocks that are asked for, in all."""
        return sum(len(one.blocks) for one in self.requests)

    @property
    def duration_s(self) -> float:
        """From the first request to the last."""
        return self.requests[-1].at_s - self.requests[0].at_s


def read_trace(path: Path, *, coarsen: int = 1, limit: int = 0, salt: int = 0) -> Trace:
    """Read a trace.

    Args:
        path: a file as above; a name that ends in .xz is unpacked.
        coarsen: so many blocks become one; what is left of a prompt is left out.
        limit: no more than so many requests, 0 for all.
        salt: what keys depend on besides, and with them what lies where on a ring.

    Raises:
        LocalUseError: it cannot be read as such, or has no block.
    """
    found: list[Recorded] = []
    keys = _Keys(salt)
    try:
        with lzma.open(path, "rt") if path.suffix == ".xz" else path.open() as lines:
            for line in lines:
                if line.strip():
                    found.append(_recorded(json.loads(line), coarsen, keys))
                    if len(found) == limit:
                        break
    except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError, TypeError) as exc:
        raise LocalUseError(f"trace {str(path)!r} cannot be read ({exc})", hint="one JSON object a line") from exc
    found.sort(key=lambda one: one.at_s)
    sizes = [one.input_tokens / len(one.blocks) for one in found if one.blocks]
    if not sizes:
        raise LocalUseError(f"trace {str(path)!r} has no blocks")
    began_s = found[0].at_s
    names = [one.session for one in found]
    if not all(names):
        names = _sessions(found)
    requests = tuple(
        replace(one, at_s=one.at_s - began_s, session=name) for one, name in zip(found, names, strict=True)
    )
    return Trace(requests, 2 ** max(0, round(log2(median(sizes)))))


class _Keys(dict[int, BlockKey]):
    """Keys by id, each made once: equal keys are then one object, which is compared faster."""

    def __init__(self, salt: int) -> None:
        super().__init__()
        self._salt = salt.to_bytes(8, "little")

    def __missing__(self, number: int) -> BlockKey:
        data = number.to_bytes(8, "little")
        key = self[number] = BlockKey(blake2b(data, digest_size=KEY_BYTES, salt=self._salt).digest())
        return key


def _recorded(row: dict[str, Any], coarsen: int, keys: _Keys) -> Recorded:
    blocks = row["hash_ids"] if "hash_ids" in row else list(_runs(row["hash_runs"]))
    if coarsen > 1:  # the last of a group stands for all of it, as for all before it
        blocks = blocks[coarsen - 1 :: coarsen]
    session = row.get("session_id")
    return Recorded(
        row["timestamp"] / 1000,
        int(row["input_length"]),
        int(row.get("output_length", 0)),
        tuple([keys[number] for number in blocks]),
        "" if session is None else str(session),
    )


def _runs(flat: Sequence[int]) -> Iterator[int]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return chain.from_iterable(range(start, start + count) for start, count in pairs)


def _sessions(requests: Sequence[Recorded]) -> list[str]:
    """Return whom each request continues, where the trace does not say: who first had its first block that is not common."""
    uses = Counter(chain.from_iterable(one.blocks for one in requests))
    limit = max(_COMMON_MIN, _COMMON_SHARE * len(requests))
    owner: dict[BlockKey, int] = {}
    found = []
    for number, one in enumerate(requests):
        own = [block for block in one.blocks if uses[block] <= limit]
        session = owner.get(own[0], number) if own else number
        for block in own:
            owner.setdefault(block, session)
        found.append(str(session))
    return found
