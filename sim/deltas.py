"""What an announced change costs on the wire and at its reader, for several ways of telling it, on equal changes.

A writer holds as many keys as its filter is sized for. For each delta some keys go and as many come; the ways are

- the positions of the bits that flipped, as plain u32; as gaps in bytes of seven bits; in Elias and Fano's code; as
  Rice-coded gaps, which is what is sent (index/gaps.py), with the whole message around it;
- a log of operations: 8 bytes of a key's hash for an added one, and for an evicted one 4 bytes that say which of the
  reader's log it was; and the same sorted and coded, with 6 bytes of the hash. A reader of a log has to count how many
  keys hold each bit and to keep the hash of each key, or it could not follow an eviction.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt

from p2pkv.index.bloom import BloomFilter, HashedKeys, size_for
from p2pkv.index.codec import flips_of_untrusted
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import SummaryDelta, decode_untrusted, encode

_KEY_BYTES: Final = 32
_CODED_HASH_BITS: Final = 48
_LOG_ADD_BYTES: Final = 8
_LOG_EVICT_BYTES: Final = 4

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaOptions:
    """What changes."""

    keys: int = 1_000_000
    """In the filter, and what it is sized for."""
    ratio: float = 0.01
    pairs: int = 25
    """An added and an evicted key each, per delta: what 100 blocks of long chains a second make in 2 s."""
    deltas: int = 200
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaResult:
    """Bytes are for one pair of an added and an evicted key; times are of one delta, microseconds."""

    bits_log2: int
    hashes: int
    flips_per_pair: float
    flips_u32_bytes: float
    flips_varint_bytes: float
    flips_elias_fano_bytes: float
    flips_rice_bytes: float
    flips_least_bytes: float
    """The entropy of so many positions: no code is shorter on average."""
    message_bytes: float
    """Rice-coded, as it is sent: the whole message."""
    log_bytes: float
    log_coded_bytes: float
    flips_reader_mib: float
    """What a reader keeps of one peer."""
    log_reader_mib: float
    encode_us: float
    decode_us: float
    """Message to positions."""
    apply_us: float
    """Positions to the filter."""
    log_apply_us: float


def run_deltas(options: DeltaOptions) -> DeltaResult:
    """Measure; about ten seconds at the defaults."""
    random = Random(options.seed)
    bits_log2, hashes = size_for(options.keys, options.ratio)
    keys = [random.randbytes(_KEY_BYTES) for _ in range(options.keys)]
    writer = SummaryWriter(1_700_000_000_000, bits_log2, hashes)  # of an epoch as long as real ones
    writer.rebuild(bits_log2, hashes, keys)
    reader = BloomFilter(bits_log2, hashes, writer.sealed.bits.copy())
    counts = np.zeros(1 << bits_log2, np.uint8)
    np.add.at(counts, HashedKeys(keys).positions(bits_log2, hashes).reshape(-1), 1)
    sizes: dict[str, float] = dict.fromkeys(("flips", "u32", "varint", "fano", "rice", "least", "message", "coded"), 0)
    times: dict[str, list[float]] = {"encode": [], "decode": [], "apply": [], "log": []}
    for _ in range(options.deltas):
        gone = sorted(random.sample(range(options.keys), options.pairs))
        came = [random.randbytes(_KEY_BYTES) for _ in gone]
        for place, key in zip(gone, came, strict=True):
            writer.remove(keys[place])
            writer.add(key)
        evicted = [keys[place] for place in gone]
        for place, key in zip(gone, came, strict=True):
            keys[place] = key
        started = time.perf_counter()
        deltas = writer.seal()
        data = [encode(delta) for delta in deltas]
        encoded = time.perf_counter()
        flips = [_flips(message) for message in data]
        decoded = time.perf_counter()
        for part in flips:
            reader.flip(part)
        applied = time.perf_counter()
        _apply_log(counts, came, evicted, bits_log2, hashes)
        logged = time.perf_counter()
        for name, start, end in zip(
            times, (started, encoded, decoded, applied), (encoded, decoded, applied, logged), strict=True
        ):
            times[name].append((end - start) * 1e6)
        _add_up(sizes, flips, deltas, data, 1 << bits_log2)
        sizes["coded"] += _log_coded_bytes(came, gone, options.keys)
    assert reader.to_bytes() == writer.sealed.to_bytes(), "the reader followed"
    per_pair = {name: round(size / (options.deltas * options.pairs), 3) for name, size in sizes.items()}
    mib = 2**20
    return DeltaResult(
        bits_log2=bits_log2,
        hashes=hashes,
        flips_per_pair=per_pair["flips"],
        flips_u32_bytes=per_pair["u32"],
        flips_varint_bytes=per_pair["varint"],
        flips_elias_fano_bytes=per_pair["fano"],
        flips_rice_bytes=per_pair["rice"],
        flips_least_bytes=per_pair["least"],
        message_bytes=per_pair["message"],
        log_bytes=_LOG_ADD_BYTES + _LOG_EVICT_BYTES,
        log_coded_bytes=per_pair["coded"],
        flips_reader_mib=reader.bits.nbytes / mib,
        log_reader_mib=(reader.bits.nbytes + counts.nbytes + _LOG_ADD_BYTES * options.keys) / mib,
        encode_us=median(times["encode"]),
        decode_us=median(times["decode"]),
        apply_us=median(times["apply"]),
        log_apply_us=median(times["log"]),
    )


def _flips(data: bytes) -> npt.NDArray[np.uint32]:
    message = decode_untrusted(data, peer="writer")
    assert isinstance(message, SummaryDelta)
    return flips_of_untrusted(message, peer="writer")


def _add_up(
    sizes: dict[str, float],
    flips: Sequence[npt.NDArray[np.uint32]],
    deltas: Sequence[SummaryDelta],
    data: Sequence[bytes],
    span: int,
) -> None:
    for positions in flips:
        count = len(positions)
        gaps = _gaps(positions.astype(np.int64))
        low_bits = max(0, (span // max(1, count)).bit_length() - 1)
        sizes["flips"] += count
        sizes["u32"] += 4 * count
        sizes["varint"] += float((np.maximum(1, np.ceil(np.log2(gaps + 1.0) / 7))).sum())
        sizes["fano"] += -(-count * low_bits // 8) + -(-(count + (int(positions[-1]) >> low_bits)) // 8)
        chance = count / span
        entropy = -chance * np.log2(chance) - (1 - chance) * np.log2(1 - chance)
        sizes["least"] += float(span * entropy / 8)
    sizes["rice"] += sum(len(delta.flips) for delta in deltas)
    sizes["message"] += sum(map(len, data))


def _log_coded_bytes(came: Sequence[bytes], gone: Sequence[int], keys: int) -> float:
    """Return the bytes of a log with both lists sorted and their gaps Rice-coded."""
    hashes = np.sort(np.array([int.from_bytes(key[: _CODED_HASH_BITS // 8], "big") for key in came], np.int64))
    return _rice_bytes(hashes, 2**_CODED_HASH_BITS) + _rice_bytes(np.array(gone, np.int64), keys)


def _rice_bytes(ascending: Ints, span: int) -> float:
    gaps = _gaps(ascending)
    guess = max(1, (span // len(gaps)).bit_length() - 1)
    return min(ceil((len(gaps) * (bits + 1) + int((gaps >> bits).sum())) / 8) for bits in (guess - 1, guess))


def _gaps(ascending: Ints) -> Ints:
    gaps = ascending.copy()
    gaps[1:] -= ascending[:-1] + 1
    return gaps


def _apply_log(
    counts: npt.NDArray[np.uint8], came: Sequence[bytes], evicted: Sequence[bytes], bits_log2: int, hashes: int
) -> None:
    """Do what a reader of a log does: count; a bit of the filter changes where a count comes from zero or gets there."""
    np.subtract.at(counts, HashedKeys(evicted).positions(bits_log2, hashes).reshape(-1), 1)
    np.add.at(counts, HashedKeys(came).positions(bits_log2, hashes).reshape(-1), 1)
