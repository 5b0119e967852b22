"""Bloom filters whose positions are the same on every node, with the arithmetic that sizes them.

A filter of m bits in which n keys set k positions each claims an absent key with probability

    p = (1 - (1 - 1/m)^(k n))^k  ~  (1 - e^(-k n / m))^k            (Bloom 1970; Fan, Cao, Almeida, Broder,
                                                                     "Summary Cache", 2000, section V-C)

and never denies a present one. The k positions of a key are h1 + i h2 modulo m, for i = 0..k-1, where h1 and h2 are
the halves of one 128-bit hash: two hashes are as good as k (Kirsch and Mitzenmacher, "Less Hashing, Same
Performance", 2006). m is a power of two and h2 is made odd, which gives two things for free: the k positions of a key
are distinct, and a filter folded to half its size is the filter that size would have had.
"""

import math
from collections.abc import Sequence
from typing import Final, Self, TypeAlias

import mmh3
import numpy as np
import numpy.typing as npt

SEED: Final = 0x32505056
"""Seed of the hash. It is part of the protocol: another seed on one node would hide every block from it."""
BITS_LOG2_MIN: Final = 6
"""64 bits: whole bytes, and more positions than any key has."""
BITS_LOG2_MAX: Final = 32
"""Positions travel as u32; 2^32 bits hold 450 million keys at 1 % in 512 MiB."""
HASHES_MAX: Final = 32

_Bits: TypeAlias = npt.NDArray[np.uint8]
Positions: TypeAlias = npt.NDArray[np.uint64]
"""Bit positions in a filter: of one key `[hashes]`, of many `[keys, hashes]`."""


def expected_ratio(keys: int, bits_log2: int, hashes: int) -> float:
    """Return the share of absent keys that a filter with `keys` keys claims: p above."""
    return float((1.0 - math.exp(-hashes * keys / 2**bits_log2)) ** hashes)


def size_for(blocks: int, false_positive_ratio: float) -> tuple[int, int]:
    """Return (bits_log2, hashes) of the smallest filter that holds `blocks` keys at `false_positive_ratio`.

    The least number of bits is m = -n ln p / (ln 2)^2, at k = (m / n) ln 2. Rounding m up to a power of two gives up
    to twice what is needed; that is spent on the fewest hashes that still keep the promise, because every hash of
    every key is a bit to send. At 2^32 bits growth ends, and the ratio is the best there is.
    """
    assert 0 < false_positive_ratio < 1
    keys = max(1, blocks)
    bits = -keys * math.log(false_positive_ratio) / math.log(2) ** 2
    smallest = min(max(BITS_LOG2_MIN, math.ceil(math.log2(bits))), BITS_LOG2_MAX)
    choices = range(1, HASHES_MAX + 1)
    for bits_log2 in range(smallest, BITS_LOG2_MAX + 1):  # a second round only where k had to be rounded
        for hashes in choices:
            if expected_ratio(keys, bits_log2, hashes) <= false_positive_ratio:
                return bits_log2, hashes
    return BITS_LOG2_MAX, min(choices, key=lambda hashes: expected_ratio(keys, BITS_LOG2_MAX, hashes))


def key_positions(key: bytes, bits_log2: int, hashes: int) -> list[int]:
    """Return the distinct positions of one key; for a single key plain integers beat arrays threefold."""
    h1, h2 = mmh3.hash64(key, SEED, signed=False)
    mask, step = (1 << bits_log2) - 1, h2 | 1
    return [(h1 + i * step) & mask for i in range(hashes)]


class HashedKeys:
    """Keys hashed once, to be looked up in filters of any size. About 0.15 µs a key."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        digest = mmh3.mmh3_x64_128_digest
        halves = np.frombuffer(b"".join([digest(key, SEED) for key in keys]), "<u8").reshape(-1, 2)
        self._h1 = halves[:, :1]
        self._step = halves[:, 1:] | np.uint64(1)

    def __len__(self) -> int:
        return len(self._h1)

    def positions(self, bits_log2: int, hashes: int) -> Positions:
        """Return `[keys, hashes]`, the positions of each key; sums wrap at 2^64, which a power of two does not see."""
        numbers = np.arange(hashes, dtype=np.uint64)
        return (self._h1 + numbers * self._step) & np.uint64((1 << bits_log2) - 1)


class BloomFilter:
    """m = 2**bits_log2 bits; bit i is bit i % 8, least significant first, of byte i // 8."""

    __slots__ = ("bits", "bits_log2", "hashes")

    def __init__(self, bits_log2: int, hashes: int, bits: _Bits | None = None) -> None:
        """Take `bits`, `[2**bits_log2 / 8]` bytes that the filter owns from now on, or start empty.

        Empty memory is asked for zeroed, so that pages nobody writes to cost nothing.
        """
        assert BITS_LOG2_MIN <= bits_log2 <= BITS_LOG2_MAX
        assert 1 <= hashes <= HASHES_MAX
        self.bits_log2 = bits_log2
        self.hashes = hashes
        self.bits: _Bits = np.zeros(1 << bits_log2 - 3, np.uint8) if bits is None else bits
        assert self.bits.shape == (1 << bits_log2 - 3,)

    @classmethod
    def from_bytes(cls, data: bytes, hashes: int) -> Self:
        """Return the filter of which `data` are the bits; their number must be a power of two."""
        assert len(data).bit_count() == 1
        return cls(len(data).bit_length() + 2, hashes, np.frombuffer(data, np.uint8).copy())

    def to_bytes(self) -> bytes:
        """Return the bits, 2**bits_log2 / 8 bytes."""
        return self.bits.tobytes()

    def __repr__(self) -> str:
        return f"<BloomFilter 2^{self.bits_log2} bits, {self.hashes} hashes, {self.fill_ratio():.1%} full>"

    def add(self, key: bytes) -> None:
        """Set the bits of `key`."""
        for position in key_positions(key, self.bits_log2, self.hashes):
            self.bits[position >> 3] |= 1 << (position & 7)

    def __contains__(self, key: bytes) -> bool:
        bits = self.bits
        positions = key_positions(key, self.bits_log2, self.hashes)
        return all(bits[position >> 3] >> (position & 7) & 1 for position in positions)

    def contains_many(self, keys: HashedKeys) -> npt.NDArray[np.bool_]:
        """Return `[keys]`, whether each may be here."""
        return self.test(keys.positions(self.bits_log2, self.hashes))

    def test(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Return `[keys]`, whether all bits at `positions`, `[keys, hashes]`, are set."""
        shift = (positions & np.uint64(7)).astype(np.uint8)
        found = self.bits[(positions >> np.uint64(3)).astype(np.intp)] >> shift & np.uint8(1)
        return np.asarray(found.all(axis=1))

    def flip(self, positions: npt.NDArray[np.uint32]) -> None:
        """Turn over the bit at each of `positions`, `[flips]`; one that is listed twice stays as it was."""
        masks = np.left_shift(np.uint8(1), (positions & np.uint32(7)).astype(np.uint8))
        np.bitwise_xor.at(self.bits, (positions >> np.uint32(3)).astype(np.intp), masks)

    def fold(self) -> "BloomFilter":
        """Return this filter at half the size: a key's position there is its position here modulo the new size.

        It claims whatever this one claims, and more: the fill ratio goes from f to about 1 - (1 - f)^2.
        """
        assert self.bits_log2 > BITS_LOG2_MIN
        return self.fold_to(self.bits_log2 - 1)

    def fold_to(self, bits_log2: int) -> "BloomFilter":
        """Return this filter folded until it has 2**bits_log2 bits; this very one if it has so many."""
        assert BITS_LOG2_MIN <= bits_log2 <= self.bits_log2
        if bits_log2 == self.bits_log2:
            return self
        parts = self.bits.reshape(-1, 1 << bits_log2 - 3)
        return BloomFilter(bits_log2, self.hashes, np.bitwise_or.reduce(parts, axis=0))

    def flips_to(self, other: "BloomFilter") -> npt.NDArray[np.uint32]:
        """Return the positions, ascending, at which `other`, of the same size, differs."""
        changed = self.bits ^ other.bits
        (places,) = changed.nonzero()
        bits = np.unpackbits(changed[places], bitorder="little").reshape(-1, 8).nonzero()
        return (8 * places[bits[0]] + bits[1]).astype(np.uint32)

    def fill_ratio(self) -> float:
        """Return the share of bits that are set. Half is what a filter is sized for."""
        return float(np.bitwise_count(self.bits).sum(dtype=np.int64)) / (1 << self.bits_log2)

    def false_positive_ratio(self) -> float:
        """Return the share of absent keys this filter claims as it is now: the fill ratio to the power of `hashes`."""
        return float(self.fill_ratio() ** self.hashes)
