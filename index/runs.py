"""How far each peer of a slab holds a chain: the leading run of each column, found for all columns together.

Let C(i) be the set of peers that claim key i, as a row of bits. Those still in the run after i keys are
A(i) = A(i-1) & C(i), and the run of a peer ends where its bit is in A(i-1) and no longer in A(i). Each bit falls once,
so of all rows only as many words need a closer look as there are peers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from p2pkv.index.slab import Rows, Slab, Words


class Runs:
    """The leading runs in one slab, for keys given piece by piece."""

    def __init__(self, slab: Slab) -> None:
        self._slab = slab
        self._alive = slab.occupied()
        self._depths: npt.NDArray[np.intp] = np.zeros(8 * self._alive.nbytes, np.intp)
        self._tested = 0

    @property
    def is_over(self) -> bool:
        """Whether every run has ended, so that further keys change nothing."""
        return not self._alive.any()

    def go_on(self, rows: Rows) -> None:
        """Take the next keys of the chain."""
        trail = np.concatenate((self._alive[np.newaxis], self._slab.claims(rows)))
        np.bitwise_and.accumulate(trail, axis=0, out=trail)
        ended = (trail[:-1] ^ trail[1:]).reshape(-1)
        (words,) = (ended != 0).nonzero()
        word, bit = np.divmod(_set_bits(ended[words]), 8 * ended.itemsize)
        key, place = np.divmod(words[word], trail.shape[1])
        self._depths[place * 8 * ended.itemsize + bit] = self._tested + key
        self._alive = trail[-1]
        self._tested += rows.shape[1]

    def depths(self) -> npt.NDArray[np.intp]:
        """Return `[columns]`, the length of each run so far; 0 for the columns of no peer."""
        self._depths[_set_bits(self._alive)] = self._tested
        return self._depths


def last_claims(slab: Slab, rows: Rows, starts: Sequence[int]) -> npt.NDArray[np.intp]:
    """Return `[parts, columns]`, the place of the last key of each part that a column claims, counted from 1; or 0.

    `starts` say where the parts begin among the keys, ascending from 0.
    """
    claimed = np.unpackbits((slab.claims(rows) & slab.occupied()).view(np.uint8), axis=1, bitorder="little")
    sizes = np.diff([*starts, rows.shape[1]])
    places = np.arange(1, rows.shape[1] + 1) - np.repeat(starts, sizes)
    return np.maximum.reduceat(claimed * places[:, np.newaxis], starts, axis=0)


def _set_bits(words: Words) -> npt.NDArray[np.intp]:
    """Return the numbers of the bits that are set."""
    return np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_).nonzero()[0]
