"""Filters of one shape, bit-sliced: row = bit position, column = peer, so that one row answers for all peers at once.

Whether a key may be at each of n peers is the AND of the k rows at its positions: k reads of n bits, instead of n
times k reads of one bit from n filters. Bit-slicing of signatures is older than its use for peers: Wong, Liu, Olken,
Rotem, Wong, "Bit transposed files", VLDB 1985.

A slab has at most 512 columns, so that a row is at most one cache line. The bit of position p and column c is bit
p * capacity + c of a flat array, least significant first in each byte. The capacity is a power of two from 1 up; with
one column the slab is the filter itself, so a shape that nobody shares costs no more than a filter does.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from p2pkv.index.bloom import BloomFilter

COLUMNS_MAX: Final = 512
_MOVES: Final = 2
"""Columns moved when one is dropped from a slab that is half empty. Two are enough for the upper half to be empty once
a quarter is left, and one call stays short however many peers leave together."""
_CHUNK: Final = 2**16

Words: TypeAlias = npt.NDArray[np.unsignedinteger]
"""Bits of all columns, `[..., words]`: capacity bits, in words of 8 to 64."""
Rows: TypeAlias = npt.NDArray[np.intp]
"""Rows of keys, `[hashes, keys]`: the i-th position of each key is together."""
_Bytes: TypeAlias = npt.NDArray[np.uint8]


class Slab:
    """Up to 512 peers' filters of 2**bits_log2 bits.

    Memory: at most four times that of the filters, in the worst order of leaving; less than twice that while peers only
    come. `put` and the moves within `drop` touch every row, about 4 ms with 2^20 of them; getting narrower or wider copies the
    slab, about 40 ms for 64 MiB.
    """

    def __init__(self, bits_log2: int) -> None:
        self._bits_log2 = bits_log2
        self._capacity = 1
        self._bits: _Bytes = np.zeros(1 << bits_log2 - 3, np.uint8)
        self._columns: dict[str, int] = {}
        self._occupied: Words | None = None

    def __repr__(self) -> str:
        return f"<Slab of 2^{self._bits_log2} rows, {len(self._columns)} of {self._capacity} columns>"

    @property
    def columns(self) -> Mapping[str, int]:
        """The column of each peer."""
        return self._columns

    @property
    def capacity(self) -> int:
        """The number of columns, those of no peer included."""
        return self._capacity

    @property
    def has_room(self) -> bool:
        """Whether another peer can be put here."""
        return len(self._columns) < COLUMNS_MAX

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._bits.nbytes

    def put(self, peer: str, bloom: BloomFilter) -> None:
        """Make `bloom` the column of `peer`, in place of the one it may have."""
        column = self._columns.get(peer)
        if column is None:
            if len(self._columns) == self._capacity:
                self._resize(2 * self._capacity)
            column = self._columns[peer] = self._free_column()
            self._occupied = None
        self._write(column, bloom.bits)

    def read(self, peer: str, hashes: int) -> BloomFilter:
        """Return the filter of `peer`, a copy."""
        return BloomFilter(self._bits_log2, hashes, self._read(self._columns[peer]))

    def fill_ratios(self) -> npt.NDArray[np.float64]:
        """Return `[peers]`, about the share of bits set in each column that is a peer's; reads 64 KiB."""
        sample = self._bits[: max(_CHUNK, self._capacity // 8)]
        filled = _unpacked(sample, self._capacity).mean(axis=0)
        return np.asarray(filled[list(self._columns.values())])

    def flip(self, peer: str, positions: npt.NDArray[np.uint32]) -> None:
        """Turn over the bit of `peer` at each of `positions`; one that is listed twice stays as it was."""
        places = positions.astype(np.intp) * self._capacity + self._columns[peer]
        masks = np.left_shift(np.uint8(1), (places & 7).astype(np.uint8))
        np.bitwise_xor.at(self._bits, places >> 3, masks)

    def drop(self, peer: str) -> None:
        """Give up the column of `peer`; a slab that got too wide for those left gets narrower, little by little."""
        del self._columns[peer]
        self._occupied = None
        half = self._capacity // 2
        if len(self._columns) > half:
            return
        upper = [other for other, column in self._columns.items() if column >= half]
        for other in upper[:_MOVES]:
            column = self._free_column()
            self._write(column, self._read(self._columns[other]))
            self._columns[other] = column
        if half and len(upper) <= _MOVES and len(self._columns) <= half - half // 4:  # not at the edge of growing again
            self._resize(half)

    def occupied(self) -> Words:
        """Return `[words]`, a set bit for each column that is some peer's; look, do not change."""
        if self._occupied is None:
            bits = np.zeros(max(8, self._capacity), np.uint8)
            bits[list(self._columns.values())] = 1
            self._occupied = np.packbits(bits, bitorder="little").view(self._word())
        return self._occupied

    def occupied_bits(self) -> int:
        """Return `occupied` as one number, bit c of it for column c."""
        return int.from_bytes(self.occupied().tobytes(), "little")

    def claiming(self, positions: Sequence[int], columns: int) -> int:
        """Return those of `columns` that claim a key with these positions, as bits of a number; `claims` of one key."""
        capacity = self._capacity
        if capacity < 8:  # noqa: PLR2004 - several rows share a byte
            for position in positions:
                at = position * capacity
                columns &= int(self._bits[at >> 3]) >> (at & 7)
            return columns
        width = capacity >> 3
        for position in positions:
            columns &= int.from_bytes(self._bits[position * width : (position + 1) * width].tobytes(), "little")
            if not columns:
                break
        return columns

    def claims(self, rows: Rows) -> Words:
        """Return `[keys, words]`, for each key the columns that claim it; those of no peer say anything."""
        claimed: Words
        if self._capacity < 8:  # noqa: PLR2004 - several rows share a byte
            per_byte = 8 // self._capacity
            shift = ((rows & per_byte - 1) * self._capacity).astype(np.uint8)
            claimed = np.bitwise_and.reduce(self._bits[rows // per_byte] >> shift, axis=0)
            return claimed[:, np.newaxis]
        table = self._bits.view(self._word()).reshape(1 << self._bits_log2, -1)
        claimed = table.take(rows[0], axis=0)
        for further in rows[1:]:
            np.bitwise_and(claimed, table.take(further, axis=0), out=claimed)
        return claimed

    def _word(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(f"u{min(max(self._capacity // 8, 1), 8)}")

    def _free_column(self) -> int:
        """Return the lowest column that is nobody's."""
        taken = set(self._columns.values())
        return next(column for column in range(self._capacity) if column not in taken)

    def _read(self, column: int) -> _Bytes:
        """Return the filter in `column`, as the bytes it came in."""
        if self._capacity >= 8:  # noqa: PLR2004 - a byte of a row holds whole columns
            byte, bit = divmod(column, 8)
            return np.packbits(self._bits[byte :: self._capacity // 8] & np.uint8(1 << bit), bitorder="little")
        parts = [_unpacked(part, self._capacity)[:, column] for part in np.split(self._bits, self._cuts())]
        return np.concatenate([np.packbits(part, bitorder="little") for part in parts])

    def _write(self, column: int, bits: _Bytes) -> None:
        """Put the filter of which `bits` are the bytes in `column`."""
        if self._capacity >= 8:  # noqa: PLR2004 - a byte of a row holds whole columns
            byte, bit = divmod(column, 8)
            lane = self._bits[byte :: self._capacity // 8]
            lane &= np.uint8(0xFF ^ 1 << bit)
            lane |= np.unpackbits(bits, bitorder="little") << np.uint8(bit)
            return
        start = 0
        for part in np.split(self._bits, self._cuts()):  # views: what is written to them is written to the slab
            table = _unpacked(part, self._capacity)
            stop = start + len(table) // 8
            table[:, column] = np.unpackbits(bits[start:stop], bitorder="little")
            part[:] = np.packbits(table, bitorder="little")
            start = stop

    def _resize(self, capacity: int) -> None:
        """Change the number of columns; those that are lost are nobody's."""
        before = self._bits
        if min(self._capacity, capacity) >= 8:  # noqa: PLR2004 - whole bytes move
            kept = min(self._capacity, capacity) // 8
            table = np.zeros((1 << self._bits_log2, capacity // 8), np.uint8)
            table[:, :kept] = before.reshape(1 << self._bits_log2, -1)[:, :kept]
            self._bits = table.reshape(-1)
        else:
            kept = min(self._capacity, capacity)
            parts = []
            for part in np.split(before, self._cuts()):
                old = _unpacked(part, self._capacity)
                new = np.zeros((len(old), capacity), np.uint8)
                new[:, :kept] = old[:, :kept]
                parts.append(np.packbits(new, bitorder="little"))
            self._bits = np.concatenate(parts)
        self._capacity = capacity

    def _cuts(self) -> range:
        """Return where to cut the bytes so that unpacking a piece takes little memory, and each has 8 rows or more."""
        return range(_CHUNK, len(self._bits), _CHUNK)


def _unpacked(part: _Bytes, capacity: int) -> _Bytes:
    """Return `[rows, capacity]`, one byte for each bit."""
    return np.unpackbits(part, bitorder="little").reshape(-1, capacity)
