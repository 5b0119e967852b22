"""Filters and changes of filters as messages, and back. Sizes are checked before anything is set aside for them."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from p2pkv.errors import MalformedMessage
from p2pkv.index.bloom import BITS_LOG2_MIN, HASHES_MAX
from p2pkv.index.gaps import Ascending, decode_gaps_untrusted, encode_gaps
from p2pkv.transport.wire import PAGE_BYTES_MAX, SummaryDelta, SummaryPage

Bits: TypeAlias = npt.NDArray[np.uint8]


def delta_of(epoch: int, seq: int, bits_log2: int, flips: Ascending) -> SummaryDelta:
    """Return the message that says which bits flipped."""
    gaps = encode_gaps(flips)
    return SummaryDelta(
        epoch=epoch, seq=seq, bits_log2=bits_log2, count=gaps.count, gap_bits=gaps.gap_bits, flips=gaps.data
    )


def flips_of_untrusted(delta: SummaryDelta, *, peer: str) -> Ascending:
    """Return the positions that flipped.

    Raises:
        MalformedMessage: they are not what the message says of them, or outside of the filter.
    """
    return decode_gaps_untrusted(delta.count, delta.gap_bits, delta.flips, below=1 << delta.bits_log2, peer=peer)


def page_of(epoch: int, seq: int, bits_log2: int, hashes: int, offset: int, piece: Bits) -> SummaryPage:
    """Return the message with one piece of a filter: its bits, or where few are set, their positions."""
    bits = piece.tobytes().rstrip(b"\0")
    positions = np.flatnonzero(np.unpackbits(piece, bitorder="little")) if _is_sparse(piece) else ()
    if len(positions):
        gaps = encode_gaps(np.asarray(positions, np.uint32))
        if len(gaps.data) < len(bits):
            return SummaryPage(epoch, seq, bits_log2, hashes, offset, gaps.data, gaps.count, gaps.gap_bits)
    return SummaryPage(epoch, seq, bits_log2, hashes, offset, bits)


def piece_of_untrusted(page: SummaryPage, *, peer: str) -> Bits:
    """Return the piece of the filter that `page` brings, as many bytes as belong there.

    Raises:
        MalformedMessage: the values of the page do not agree with one another.
    """
    size = (1 << page.bits_log2) // 8
    piece_bytes = min(PAGE_BYTES_MAX, size - page.offset)
    if (
        page.bits_log2 < BITS_LOG2_MIN
        or not 1 <= page.hashes <= HASHES_MAX
        or page.offset % PAGE_BYTES_MAX
        or page.offset >= size
        or len(page.data) > piece_bytes
    ):
        raise MalformedMessage("a page of a filter whose values do not agree", peer=peer)
    piece = np.zeros(piece_bytes, np.uint8)
    if not page.set_bits:
        piece[: len(page.data)] = np.frombuffer(page.data, np.uint8)
        return piece
    places = decode_gaps_untrusted(page.set_bits, page.gap_bits, page.data, below=8 * piece_bytes, peer=peer)
    bits = np.zeros(8 * piece_bytes, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little")


def _is_sparse(piece: Bits) -> bool:
    """Say whether coded positions could be shorter: below a sixth they are, by the entropy of a bit."""
    return int(np.bitwise_count(piece).sum(dtype=np.int64)) < 8 * len(piece) // 6
