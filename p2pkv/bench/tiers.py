"""The disk tier beside the disk's own limits and beside what people would take instead, in interleaved rounds.

In each round everybody writes the same number of blocks over what is there and reads them back, in turn. What a disk gives differs by
a factor of two within a minute on a machine that is shared, so only figures of one round are compared.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from statistics import median, quantiles
from typing import Final

import msgspec

from p2pkv.bench import tiers_others
from p2pkv.bench.tiers_load import Load, run_load
from p2pkv.bench.tiers_plain import PHASES, BareFile, Phase, aligned, fio_bytes_s, in_threads
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.errors import LocalUseError
from p2pkv.ledger import Ledger, Reservation
from p2pkv.slots import PAGE_BYTES
from p2pkv.tiers.disk.label import HEADER_BYTES
from p2pkv.tiers.disk.store import SLAB_BYTES_MAX, DiskStore

OTHERS: Final = tuple(tiers_others.SYSTEMS)
_BODIES: Final = 8
_ENGINES: Final = 4
_MARGIN: Final = 1.25
"""Of quota over blocks: slabs have ends that are too short for a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersOptions:
    """What is measured, and where."""

    folder: str
    """On the disk to be measured."""
    python: str = ""
    """A Python that has the others; without one only the disk's limits are measured beside us."""
    rounds: int = 9
    block_bytes: tuple[int, ...] = (2**20, 256 * 2**10)
    set_bytes: int = 512 * 2**20
    """Bytes of all blocks of one size."""
    threads: tuple[int, ...] = (1, 4)
    start_bytes: int = 10 * 10**9
    """Bytes of the store that is started; 0: none is."""
    load_s: float = 10.0
    """How long engines ask a daemon for what is on its disk, for each patience; 0: none does."""
    patience_s: tuple[float, ...] = (1.0, 0.05)
    """Of engines."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One system with one size of block and one number of threads: medians of the rounds."""

    system: str
    block_bytes: int
    threads: int
    write_gb_s: float
    read_gb_s: float
    write_of_bare: float
    """Median over the rounds of what it reached in units of the bare loop with as many threads, or one."""
    read_of_bare: float
    write_of_bare_p25: float
    read_of_bare_p25: float


@dataclass(frozen=True, slots=True)
class Start:
    """A store that was started after the process that filled it was killed."""

    block_bytes: int
    how: str
    store_bytes: int
    committed: int
    """Blocks that were held when the process was killed."""
    blocks: int
    """And that were found."""
    verified: int
    ready_s: float


@dataclass(slots=True)
class TiersResult:
    """All figures."""

    figures: list[Figure] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)


def run_tiers(options: TiersOptions, *, progress: Callable[[str], None]) -> TiersResult:
    """Measure, in a folder of its own in `options.folder`, which is removed afterwards.

    Raises:
        LocalUseError: one of the systems does not do what it should.
    """
    folder = Path(options.folder) / "p2pkv-bench-tiers"
    folder.mkdir(mode=0o700, parents=True)
    result = TiersResult()
    try:
        for block_bytes in options.block_bytes if options.rounds else ():
            result.figures += _measure(options, folder, block_bytes, progress)
        for block_bytes in options.block_bytes if options.start_bytes else ():
            result.starts += _start(folder, block_bytes, options.start_bytes, progress)
        for patience_s in options.patience_s if options.load_s else ():
            result.loads.append(run_load(folder, engines=_ENGINES, patience_s=patience_s, seconds=options.load_s))
            shutil.rmtree(folder / "load")
            progress(f"engines that wait {patience_s:g} s: {result.loads[-1].acquires} acquires")
    finally:
        shutil.rmtree(folder)
    return result


def _measure(options: TiersOptions, folder: Path, block_bytes: int, progress: Callable[[str], None]) -> list[Figure]:
    blocks = max(8, options.set_bytes // block_bytes)
    bodies = [aligned(block_bytes) for _ in range(_BODIES)]
    for number, body in enumerate(bodies):
        body[:] = tiers_others.body(number, block_bytes)
    bare_path = folder / "bare"
    bare = BareFile(bare_path, block_bytes=block_bytes, blocks=blocks)
    ours = _Ours(folder / "ours", block_bytes, blocks, bodies)
    moved = block_bytes * blocks
    seconds: dict[tuple[str, int, Phase], list[float]] = {}
    try:
        for number in range(options.rounds + 1):
            order = list(range(blocks))
            Random(number).shuffle(order)
            for phase in PHASES:
                for threads in options.threads:
                    # In turn, and in another order each round, so that nobody always comes behind the same.
                    runs: list[tuple[str, Callable[[], float]]] = [
                        ("bare loop", partial(bare.run, phase, order, threads, bodies)),
                        ("p2pkv", partial(ours.run, phase, order, threads)),
                    ]
                    if shutil.which("fio"):
                        runs.append(("fio", partial(_fio, bare_path, phase, block_bytes, blocks, threads)))
                    for name, run in runs if number % 2 else reversed(runs):
                        seconds.setdefault((name, threads, phase), []).append(run())
                for other in OTHERS if options.python else ():
                    took = _other(options.python, other, phase, folder / other, block_bytes, blocks)
                    seconds.setdefault((other, 1, phase), []).append(took)
            progress(
                f"{block_bytes // 1024} KiB: round {number} of {options.rounds}" + (" (not counted)" * (not number))
            )
    finally:
        bare.close()
        ours.close()
        bare_path.unlink()
        for path in folder.iterdir():
            shutil.rmtree(path)
    counted = {one: values[1:] for one, values in seconds.items()}
    systems = sorted({(name, threads) for name, threads, _ in counted}, key=lambda one: (one[1], one[0]))
    return [_figure(name, block_bytes, threads, moved, counted) for name, threads in systems]


def _figure(
    name: str, block_bytes: int, threads: int, moved: int, seconds: dict[tuple[str, int, Phase], list[float]]
) -> Figure:
    rates, ratios, low = [], [], []
    for phase in PHASES:
        mine, bare = seconds[name, threads, phase], seconds["bare loop", threads, phase]
        of_bare = [limit / own for own, limit in zip(mine, bare, strict=True)]
        rates.append(moved / median(mine) / 1e9)
        ratios.append(median(of_bare))
        low.append(quantiles(of_bare, n=4)[0] if len(of_bare) > 1 else of_bare[0])
    return Figure(name, block_bytes, threads, *rates, *ratios, *low)


class _Ours:
    """A store with its books, filled once before anything is measured."""

    def __init__(self, folder: Path, block_bytes: int, blocks: int, bodies: Sequence[memoryview]) -> None:
        self._store = DiskStore(folder, quota_bytes=_quota(block_bytes, blocks))
        self._store.recover()
        self._bodies = bodies
        ledger = Ledger(
            capacity_bytes=self._store.capacity_bytes,
            chunk_bytes=self._store.slab_bytes,
            header_bytes=HEADER_BYTES,
            tier="disk",
        )
        digests = [block_digest(body, block_bytes) for body in bodies]
        self._places: list[Reservation] = []
        for number in range(blocks):
            digest = digests[number % len(bodies)]
            info = BlockInfo(BlockKey(number.to_bytes(32, "big")), bytes(32), block_bytes, block_bytes, digest)
            place = ledger.reserve(info)
            assert place is not None
            assert not place.evicted
            self._store.write(place.slot, info, bodies[number % len(bodies)])
            self._places.append(place)

    def run(self, phase: Phase, order: Sequence[int], threads: int) -> float:
        """Return the seconds that all blocks take. As they go past the page cache, there is nothing left to sync."""

        def writing() -> Callable[[int], None]:
            def write(number: int) -> None:
                place = self._places[number]
                self._store.write(place.slot, place.info, self._bodies[number % len(self._bodies)])

            return write

        def reading() -> Callable[[int], None]:
            into = aligned(self._places[0].info.length)

            def read(number: int) -> None:
                place = self._places[number]
                verdict = self._store.read(place.slot, place.info, into)
                if verdict != "ok":
                    raise LocalUseError(f"block {number} came back {verdict}")

            return read

        return in_threads(threads, order, writing if phase == "write" else reading)

    def close(self) -> None:
        self._store.close()


def _quota(block_bytes: int, blocks: int) -> int:
    per_slab = SLAB_BYTES_MAX // (block_bytes + HEADER_BYTES)
    return max(
        int(blocks * (block_bytes + HEADER_BYTES) * _MARGIN),
        (-(-blocks // per_slab) + 1) * (SLAB_BYTES_MAX + PAGE_BYTES),
    )


def _fio(path: Path, phase: Phase, block_bytes: int, blocks: int, threads: int) -> float:
    rate = fio_bytes_s(path, phase, block_bytes=block_bytes, blocks=blocks, threads=threads)
    assert rate is not None
    return block_bytes * blocks / rate


def _other(python: str, system: str, phase: Phase, folder: Path, block_bytes: int, blocks: int) -> float:
    command = [python, tiers_others.__file__, system, phase, str(folder), str(block_bytes), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalUseError(f"{system} failed: {done.stderr.strip()[-500:]}", hint="see `make bench-tiers-env`")
    return float(done.stdout)


def _start(folder: Path, block_bytes: int, store_bytes: int, progress: Callable[[str], None]) -> list[Start]:
    """Fill a store, kill who fills it, and start it as it is, with nothing of it in the page cache, and without its log."""
    place, blocks = folder / "start", store_bytes // block_bytes
    quota = _quota(block_bytes, blocks)
    module = [sys.executable, "-m", "p2pkv.bench.tiers_start"]
    command = [*module, "fill", str(place), str(quota), str(block_bytes), str(blocks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as filling:
        assert filling.stdout is not None
        first = filling.stdout.readline()
        filling.send_signal(signal.SIGKILL)
        committed = int((first + filling.stdout.read()).split("\n")[-2])
    starts = []
    for how in ("after kill -9", "nothing in the page cache", "without the hint log"):
        if how == "nothing in the page cache":
            tiers_others.forget_pages(place)
        elif how == "without the hint log":
            (place / "hints.log").unlink()
        done = subprocess.run([*module, "start", str(place), str(quota)], capture_output=True, text=True, check=True)
        facts = msgspec.json.decode(done.stdout)
        starts.append(
            Start(block_bytes, how, store_bytes, committed, facts["blocks"], facts["verified"], facts["ready_s"])
        )
        progress(f"{block_bytes // 1024} KiB, {how}: ready in {facts['ready_s']:.2f} s with {facts['blocks']} blocks")
    shutil.rmtree(place)
    return starts
