"""The longest usable prefix: for each peer, how many blocks from the start of a chain it seems to hold.

A block is useful only if all before it are there too, so a peer's answer is its *leading run* of claimed blocks.
Bisection would look cheaper and is wrong: it trusts single positives deep in the chain, and over N filters that each
lie with probability p, the best-looking peer is a liar with probability about 1 - (1 - p)^N: measured with p = 1 %,
the wrong peer won 22, 69 and 98 % of the time at N = 10, 100 and 1,000. A leading run is wrong beyond its true end by
d blocks with probability p^d only.

Callers know five things of the matcher: `replace`, `flip`, `fold`, `forget`, and what it answers. The filters lie bit-sliced
in slabs (slab.py), one shape of filter to a slab, and the runs of all peers in a slab are found together (runs.py).
"""

import itertools
from collections.abc import KeysView, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pkv.index.bloom import BloomFilter, HashedKeys, key_positions
from p2pkv.index.runs import Runs, last_claims
from p2pkv.index.slab import Rows, Slab

_WINDOW_KEYS: Final = 96
"""Keys tested first; if nobody holds them, that was all. So many landmarks are those of 768 blocks, most prompts in one go:
a second go costs more than the keys that are hashed in vain."""
_WINDOW_GROWTH: Final = 8

_Shape: TypeAlias = tuple[int, int]
"""Of a filter: bits_log2, hashes."""
Lengths: TypeAlias = npt.NDArray[np.intp]
_Known: TypeAlias = tuple[list[tuple[_Shape, Slab]], npt.NDArray[np.intp]]
_NOTHING: Final = np.empty(0, np.intp)


class Matcher:
    """All peers' filters, and the questions asked of all of them at once."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[_Shape, Slab]] = {}
        self._slabs: dict[_Shape, list[Slab]] = {}
        self._order: _Known | None = None

    def __repr__(self) -> str:
        return f"<Matcher {len(self._places)} peers, {self.filter_bytes()} bytes>"

    def replace(self, peer: str, bloom: BloomFilter) -> None:
        """Take `bloom` for what `peer` holds. O(bits), as a column of the slab is written."""
        shape = (bloom.bits_log2, bloom.hashes)
        if peer not in self._places or self._places[peer][0] != shape:
            self._withdraw(peer)
            slabs = self._slabs.setdefault(shape, [])
            slab = next((slab for slab in slabs if slab.has_room), None)
            if slab is None:
                slab = Slab(bloom.bits_log2)
                slabs.append(slab)
            self._places[peer] = (shape, slab)
            self._order = None
        self._places[peer][1].put(peer, bloom)

    def flip(self, peer: str, positions: npt.NDArray[np.uint32]) -> None:
        """Turn over bits of the filter of `peer`, which has one."""
        self._places[peer][1].flip(peer, positions)

    def fold(self, peer: str, bits_log2: int) -> None:
        """Fold the filter of `peer`, which has a larger one, to 2**bits_log2 bits."""
        shape, slab = self._places[peer]
        self.replace(peer, slab.read(peer, shape[1]).fold_to(bits_log2))

    def forget(self, peer: str) -> None:
        """Drop what is known of `peer`; harmless if that is nothing."""
        self._withdraw(peer)
        self._places.pop(peer, None)

    def peers(self) -> KeysView[str]:
        """Return the peers that have a filter, longest known first."""
        return self._places.keys()

    def filter_bytes(self) -> int:
        """Return the bytes that hold all filters together."""
        return sum(slab.nbytes for slabs in self._slabs.values() for slab in slabs)

    def false_positive_ratio(self) -> float:
        """Return the share of absent keys that a peer's filter claims, on average over the peers; 0 without any.

        Estimated from the first 64 KiB of each slab: positions are hashes, so any part is like the whole.
        """
        slabs = [(slab, hashes) for (_, hashes), of_shape in self._slabs.items() for slab in of_shape]
        claimed = sum(float((slab.fill_ratios() ** hashes).sum()) for slab, hashes in slabs)
        return claimed / len(self._places) if self._places else 0.0

    def longest(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Return for each peer that seems to hold a prefix of `keys` its length in blocks; nobody has 0.

        The order of peers is the order they became known in.
        """
        return {peer: run for peer, run in zip(self._places, self.runs(keys).tolist(), strict=True) if run}

    def longest_of_few(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Return `longest`, without arrays: for a few keys making them takes ten times as long as looking."""
        ended: dict[Slab, list[tuple[int, int]]] = {}
        for (bits_log2, hashes), of_shape in self._slabs.items():
            positions = [key_positions(key, bits_log2, hashes) for key in keys]
            for slab in of_shape:
                runs = _runs_of_few(slab, positions)
                if runs:
                    ended[slab] = runs
        if not ended:
            return {}
        found: dict[str, int] = {}
        for peer, (_, slab) in self._places.items():
            for depth, columns in ended.get(slab, ()):
                if columns >> slab.columns[peer] & 1:
                    found[peer] = depth
        return found

    def runs(self, keys: Sequence[bytes]) -> Lengths:
        """Return `[peers]`, how many of `keys` from the first on without a gap each of `peers()` claims.

        O(longest run) to hash, and for each shape of filter O(longest run in it * hashes) rows to AND.
        """
        slabs, order = self._known()
        runs = [(shape, Runs(slab)) for shape, slab in slabs]
        start, size = 0, _WINDOW_KEYS
        while start < len(keys):
            going = [(shape, run) for shape, run in runs if not run.is_over]
            if not going:
                break
            hashed = HashedKeys(keys[start : start + size])
            rows = {shape: _rows(hashed, shape) for shape in dict(going)}
            for shape, run in going:
                run.go_on(rows[shape])
            start += size
            size *= _WINDOW_GROWTH
        return np.concatenate([_NOTHING, *(run.depths() for _, run in runs)])[order]

    def last_claimed(self, parts: Sequence[Sequence[bytes]]) -> Lengths:
        """Return `[parts, peers]`, the place, counted from 1, of the last key of each part that a peer claims; or 0.

        No part is empty. All are looked at together, for most of the time does not depend on how many keys there are.
        """
        slabs, order = self._known()
        hashed = HashedKeys([key for part in parts for key in part])
        starts = [0, *itertools.accumulate(map(len, parts[:-1]))]
        found = [last_claims(slab, _rows(hashed, shape), starts) for shape, slab in slabs]
        return np.concatenate([np.empty((len(parts), 0), np.intp), *found], axis=1)[:, order]

    def holders(self, key: bytes) -> tuple[str, ...]:
        """Return the peers that seem to hold `key`, in the order they became known in."""
        return tuple(self.longest([key]))

    def _known(self) -> _Known:
        """Return the slabs, and where each peer is in the depths of all of them one after another."""
        if self._order is None:
            slabs = [(shape, slab) for shape, of_shape in self._slabs.items() for slab in of_shape]
            widths = [max(8, slab.capacity) for _, slab in slabs]
            starts = dict(zip((slab for _, slab in slabs), itertools.accumulate(widths, initial=0), strict=False))
            order = [starts[slab] + slab.columns[peer] for peer, (_, slab) in self._places.items()]
            self._order = slabs, np.array(order, np.intp)
        return self._order

    def _withdraw(self, peer: str) -> None:
        """Take a peer's filter out, but let it keep its turn in the order of peers."""
        if peer not in self._places:
            return
        self._order = None
        shape, slab = self._places[peer]
        slab.drop(peer)
        if not slab.columns:
            self._slabs[shape].remove(slab)
            if not self._slabs[shape]:
                del self._slabs[shape]


def _runs_of_few(slab: Slab, positions: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return the lengths of runs that are not 0, and the columns, a bit each, that have one so long."""
    runs: list[tuple[int, int]] = []
    alive = slab.occupied_bits()
    for depth, of_key in enumerate(positions):
        going = slab.claiming(of_key, alive)
        if depth and going != alive:
            runs.append((depth, alive ^ going))
        alive = going
        if not alive:
            return runs
    return [*runs, (len(positions), alive)] if positions else []


def _rows(hashed: HashedKeys, shape: _Shape) -> Rows:
    return np.ascontiguousarray(hashed.positions(*shape).T).astype(np.intp)
