"""How soon a SIGKILL is noticed: meshes of real processes on loopback, all implementations side by side.

All meshes run at once and lose one member in each round, all within a few milliseconds; so whatever else the machine
does, it does to all of them. The victim is started again before the next round. Times are those that the members
themselves wrote into their logs; kill and logs use the wall clock of one machine.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Final, TypeAlias

from p2pkv.bench.members import KinshipMember, Member, P2pkvMember
from p2pkv.demo.processes import Child, all_stopped
from p2pkv.errors import ConfigError, P2pkvError

AGREE_S: Final = 60.0
NOTICE_S: Final = 60.0
_POLL_S: Final = 0.5
_TICKS: Final = os.sysconf("SC_CLK_TCK")

Make: TypeAlias = Callable[[str, str, str], Member]
"""(name, address to bind, seed or "") -> a process that was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionOptions:
    """What to measure."""

    nodes: int = 20
    rounds: int = 10
    rest_s: float = 30.0
    """How long all meshes are watched at rest first, seconds."""
    seed: int = 1
    """Decides the victims; times depend on the machine all the same."""
    kinship: str = ""
    """A Python that has kinship; empty: p2pkv alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshResult:
    """Figures of one implementation. Seconds from SIGKILL; first and last over the members that were left."""

    implementation: str
    nodes: int
    rounds: int
    missed: int
    """Rounds in which somebody had not noticed after a minute; not in the times."""
    first_p50_s: float
    last_p50_s: float
    last_max_s: float
    false_deaths: int
    """Death verdicts on members that were running."""
    rest_cpu_percent: float
    """Share of one core that a member takes at rest, on average."""
    rest_memory_mib: float
    """Proportional set size of a member at rest, on average; what processes share is divided among them."""
    rest_datagrams_per_s: float | None
    """Sent per member at rest; None where it is not counted."""
    first_s: tuple[float, ...]
    last_s: tuple[float, ...]


class _Mesh:
    def __init__(self, implementation: str, make: Make, children: list[Child], nodes: int) -> None:
        self.implementation: Final = implementation
        self.members: Final[dict[str, Member]] = {}
        self.first_s: Final[list[float]] = []
        self.last_s: Final[list[float]] = []
        self.missed = 0
        self.false_deaths = 0
        self._make = make
        self._children = children
        self._names = [f"n{number:02}" for number in range(nodes)]
        self._first = self._names[0]

    def start(self) -> None:
        self._begin(self._first, "127.0.0.1:0", "").wait_ready()
        for name in self._names[1:]:
            self._begin(name, "127.0.0.1:0", self.members[self._first].address)
        for name in self._names[1:]:
            self.members[name].wait_ready()

    def _begin(self, name: str, bind: str, seed: str) -> Member:
        member = self.members[name] = self._make(name, bind, seed)
        self._children.append(member)
        return member

    def agreed(self) -> bool:
        return all(member.alive() == set(self._names) - {name} for name, member in self.members.items())

    def restart(self, victim: Member) -> None:
        victim.stop()  # gives its pipes back; the process is gone
        self._children.remove(victim)
        self._begin(victim.name, victim.address, self.members[self._first].address).wait_ready()

    def noticed(self, victim: str, since_s: float) -> list[float]:
        """Return when each of the others declared `victim` dead, of those that have, in seconds from `since_s`."""
        found = []
        for name, member in self.members.items():
            deaths = [
                c.at_s for c in member.changes() if c.member == victim and c.state == "dead" and c.at_s >= since_s
            ]
            found += [deaths[0] - since_s] if deaths and name != victim else []
        return found

    def count_false_deaths(self, victim: str, since_s: float) -> None:
        for name, member in self.members.items():
            if name != victim:
                wrong = (c for c in member.changes() if c.state == "dead" and c.member != victim and c.at_s >= since_s)
                self.false_deaths += sum(1 for _ in wrong)


def run_detection(
    options: DetectionOptions, progress: Callable[[str], None] = lambda _: None
) -> tuple[tuple[MeshResult, ...], float | None]:
    """Measure; return each implementation's figures, and the median of first detections as a ratio to kinship's.

    Raises:
        ConfigError: `kinship` is no Python that has it.
        P2pkvError: a process did not start, or a mesh did not come about.
    """
    random = Random(f"{options.seed}/detection")
    with _meshes(options) as meshes:
        for mesh in meshes:
            mesh.start()
        _wait_agreed(meshes)
        progress(f"{len(meshes)} x {options.nodes} processes agree")
        time.sleep(2.0)  # what was new has been told by then
        rest = _at_rest(meshes, options.rest_s)
        for number in range(options.rounds):
            _one_round(meshes, number, random)
            last = ", ".join(f"{m.implementation} {m.first_s[-1]:.2f} s" for m in meshes if m.first_s)
            progress(f"round {number + 1} of {options.rounds}: {last}")
        results = tuple(_result(mesh, options, *figures) for mesh, figures in zip(meshes, rest, strict=True))
    if len(results) == 1 or not results[1].first_p50_s:
        return results, None
    return results, round(results[0].first_p50_s / results[1].first_p50_s, 3)


@contextmanager
def _meshes(options: DetectionOptions) -> Iterator[list[_Mesh]]:
    python = Path(options.kinship).absolute() if options.kinship else None
    if python is not None and not os.access(python, os.X_OK):
        raise ConfigError(f"{options.kinship} is no Python that can be run", hint="run `make bench-env` first")
    with TemporaryDirectory(prefix="p2pkv-bench-") as name, all_stopped() as children:
        folder = Path(name)

        def p2pkv(name: str, bind: str, seed: str) -> Member:
            return P2pkvMember(name, folder, bind=bind, seed=seed)

        def kinship(name: str, bind: str, seed: str) -> Member:
            assert python is not None
            return KinshipMember(name, folder, bind=bind, seed=seed, python=python)

        meshes = [_Mesh("p2pkv", p2pkv, children, options.nodes)]
        if python is not None:
            meshes.append(_Mesh("kinship", kinship, children, options.nodes))
        yield meshes


def _wait_agreed(meshes: list[_Mesh]) -> None:
    limit = time.monotonic() + AGREE_S
    for mesh in meshes:
        while not mesh.agreed():
            if time.monotonic() > limit:
                raise P2pkvError(f"the mesh of {mesh.implementation} did not come about in {AGREE_S:.0f} s")
            time.sleep(_POLL_S)


def _one_round(meshes: list[_Mesh], number: int, random: Random) -> None:
    time.sleep(1.0 + random.random())
    name = f"n{random.randrange(1, len(meshes[0].members)):02}"
    killed_s: dict[str, float] = {}
    for mesh in meshes if number % 2 == 0 else reversed(meshes):
        killed_s[mesh.implementation] = time.time()
        mesh.members[name].kill()
    limit = time.monotonic() + NOTICE_S
    others = len(meshes[0].members) - 1
    while any(len(mesh.noticed(name, killed_s[mesh.implementation])) < others for mesh in meshes):
        if time.monotonic() > limit:
            break
        time.sleep(_POLL_S)
    for mesh in meshes:
        times = mesh.noticed(name, killed_s[mesh.implementation])
        if len(times) < others:
            mesh.missed += 1
        else:
            mesh.first_s.append(min(times))
            mesh.last_s.append(max(times))
    for mesh in meshes:
        mesh.restart(mesh.members[name])
    _wait_agreed(meshes)
    for mesh in meshes:
        mesh.count_false_deaths(name, killed_s[mesh.implementation])


def _at_rest(meshes: list[_Mesh], seconds: float) -> list[tuple[float, float, float | None]]:
    """Return (CPU percent, MiB, datagrams per second) of a member at rest for each mesh."""
    before = [(_cpu_s(mesh), _sent(mesh)) for mesh in meshes]
    began = time.monotonic()
    time.sleep(seconds)
    passed_s = time.monotonic() - began
    found: list[tuple[float, float, float | None]] = []
    for mesh, (cpu_s, sent) in zip(meshes, before, strict=True):
        share = passed_s * len(mesh.members)
        now = _sent(mesh)
        rate = None if sent is None or now is None else (now - sent) / share
        found.append((100 * (_cpu_s(mesh) - cpu_s) / share, _memory_mib(mesh), rate))
    return found


def _cpu_s(mesh: _Mesh) -> float:
    ticks = 0
    for member in mesh.members.values():
        fields = Path(f"/proc/{member.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime; see proc(5)
    return ticks / _TICKS


def _memory_mib(mesh: _Mesh) -> float:
    total = 0
    for member in mesh.members.values():
        lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024 / len(mesh.members)


def _sent(mesh: _Mesh) -> float | None:
    members = [member for member in mesh.members.values() if isinstance(member, P2pkvMember)]
    return sum(member.datagrams_sent() for member in members) if members else None


def _result(mesh: _Mesh, options: DetectionOptions, cpu: float, memory: float, rate: float | None) -> MeshResult:
    return MeshResult(
        implementation=mesh.implementation,
        nodes=options.nodes,
        rounds=options.rounds,
        missed=mesh.missed,
        first_p50_s=round(median(mesh.first_s or [0.0]), 3),
        last_p50_s=round(median(mesh.last_s or [0.0]), 3),
        last_max_s=round(max(mesh.last_s, default=0.0), 3),
        false_deaths=mesh.false_deaths,
        rest_cpu_percent=round(cpu, 3),
        rest_memory_mib=round(memory, 1),
        rest_datagrams_per_s=None if rate is None else round(rate, 3),
        first_s=tuple(round(seconds, 3) for seconds in mesh.first_s),
        last_s=tuple(round(seconds, 3) for seconds in mesh.last_s),
    )
