"""How a chain of blocks is cut into objects, sans-IO, so that every node cuts it alike without asking anyone.

A run is a stretch of a chain: as many blocks as a power of two, beginning at a multiple of that number. From the beginning of a chain
come runs of the largest size; what is left at its end is cut into ever smaller ones, like a number into binary digits, down to
the smallest. What is left then is not stored.

    blocks      0 ............ 7 | 8 ........... 15 | 16 .. 19 | 20 21 | 22        largest 8, smallest 2
    objects     key of 7           key of 15          key of 19  key of 21  -

A key stands for all blocks before it, too. So the key of a run's last block names the run, and its place in the chain says how many
blocks it has. A reader knows the keys of its prompt, and with them all names that its blocks can have: no index, no listing, no
coordinator. Where a run is missing, the writer's chain ended or went another way inside it, and the reader asks for half of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from p2pkv.blocks import KEY_BYTES, BlockKey
from p2pkv.errors import LocalUseError

RUN_BYTES: Final = 8 * 2**20
"""A useful size of an object: requests to an object store cost by the piece, and one of 8 MiB moves at nearly its full speed."""
RUN_BLOCKS_MAX: Final = 64
_SMALLEST_PART: Final = 8
"""No object is smaller than this part of a largest one: what a chain's end loses thereby is cheap to compute."""
_ROOT: Final = "p2pkv-runs-1"
"""In front of all names. Its number changes with the rules of this page, which are the same for all nodes or useless."""
_SHARD: Final = 2
"""Letters of a name that are a folder: a file system is slow with a million names in one."""
_SUFFIX: Final = ".run"
_KEY: Final = re.compile(f"[0-9a-f]{{{2 * KEY_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of a chain that is one object."""

    start: int
    """Position in the chain of its first block."""
    keys: tuple[BlockKey, ...]

    @property
    def end(self) -> int:
        """Position behind its last block."""
        return self.start + len(self.keys)


@dataclass(frozen=True, slots=True)
class Cut:
    """How chains are cut whose blocks have one length. Both are powers of two."""

    largest: int
    smallest: int


def cut_for(block_bytes: int) -> Cut:
    """Return how chains of such blocks are cut: a run has about `RUN_BYTES`, and at most `RUN_BLOCKS_MAX` blocks.

    Raises:
        LocalUseError: there are no blocks of that length.
    """
    if block_bytes <= 0:
        raise LocalUseError(f"block_bytes is {block_bytes}, must be at least 1")
    largest = _power_of_two(min(RUN_BLOCKS_MAX, max(1, RUN_BYTES // block_bytes)))
    return Cut(largest, max(1, largest // _SMALLEST_PART))


def runs_of(keys: Sequence[BlockKey], cut: Cut) -> tuple[Run, ...]:
    """Return the runs that a whole chain is stored in; blocks at its end that fill no run are in none."""
    runs: list[Run] = []
    asked = _at(keys, 0, cut)
    while asked is not None:
        runs.append(asked)
        asked = _at(keys, asked.end, cut)
    return tuple(runs)


def first_to_ask(keys: Sequence[BlockKey], at: int, cut: Cut) -> Run | None:
    """Return the largest run that can have the block at `at`, None if none can.

    Blocks before it that are in the same run need not be fetched.
    """
    return _reaching(keys, _at(keys, at - at % cut.largest, cut), at, cut)


def next_to_ask(keys: Sequence[BlockKey], asked: Run, cut: Cut, *, found: bool, at: int = 0) -> Run | None:
    """Return the run to ask for after `asked` was found or was not, None if nothing more can be there.

    `at` is the first block that is wanted at all, as in `first_to_ask`.
    """
    if found:
        return _at(keys, asked.end, cut)
    size = len(asked.keys) // 2
    if size < cut.smallest:
        return None
    return _reaching(keys, Run(asked.start, asked.keys[:size]), at, cut)


def is_run(count: int, cut: Cut) -> bool:
    """Say whether so many blocks can be a run."""
    return cut.smallest <= count <= cut.largest and count == _power_of_two(count)


def object_name(last: BlockKey) -> str:
    """Return what the run whose last block is `last` is called in the store, below the folder that is the tier's own.

    Keys of different namespaces differ, so that no namespace is needed: a reader may not know it.
    """
    name = last.hex()
    return f"{_ROOT}/{name[:_SHARD]}/{name}{_SUFFIX}"


def is_object_name(name: str) -> bool:
    """Say whether something in the store is called like a run; nothing else there is ours to delete."""
    key = name.rpartition("/")[2].removesuffix(_SUFFIX)
    return _KEY.fullmatch(key) is not None and name == object_name(BlockKey(bytes.fromhex(key)))


def runs_root() -> str:
    """Return what the names of all runs begin with."""
    return _ROOT


def _at(keys: Sequence[BlockKey], start: int, cut: Cut) -> Run | None:
    """Return the largest run that can begin at `start`.

    Inside a stretch of the largest size, one that begins at a multiple of 4 and no larger power has at most 2 blocks: with 4, it and
    those before it would have been one run of 8.
    """
    left = len(keys) - start
    inside = start % cut.largest
    most = min(cut.largest if not inside else (inside & -inside) // 2, left)
    if most < cut.smallest:
        return None
    return Run(start, tuple(keys[start : start + _power_of_two(most)]))


def _reaching(keys: Sequence[BlockKey], asked: Run | None, at: int, cut: Cut) -> Run | None:
    """Return the first run from `asked` on that has a block at `at` or behind it, as if those before it were there."""
    while asked is not None and asked.end <= at:
        asked = _at(keys, asked.end, cut)
    return asked


def _power_of_two(most: int) -> int:
    """Return the largest power of two that is at most `most`."""
    return 1 << (most.bit_length() - 1)
