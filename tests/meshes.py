"""A mesh of many real daemons: started together, killed, frozen, restarted, and asked what it believes.

A claim about real processes on a shared machine has to say what it needs of the machine. Two do not need anything:
what is asked for comes about in the end, and a process that was killed or frozen is named by everybody. The third, that
nobody else is declared dead, needs every process to get a processor in time: a daemon that waits for one longer than
the shortest suspicion cannot refute, and the verdict on it is right. `Starvation` measures those waits, so that the
claim is made about all others on any machine.
"""

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pkv.local_wire import MemberView, StatusReply
from tests.daemons import Daemon, wait_until

DEADLINE_S = 60.0
"""For anything a mesh must come to by itself. Many times what it takes, because nothing here is about time."""
_SMALL = ("--host-bytes", "1MiB", "--log-format", "json")
_SAMPLE_S = 0.05
_STARTS_AT_ONCE = 2 * len(os.sched_getaffinity(0))
"""All of a large mesh together would take the processors from each other until the first gives up."""


@dataclass(frozen=True)
class Verdict:
    """One `member changed` line of a daemon's log. Deaths from before a daemon came are not among them."""

    by: str
    member: str
    before: str
    now: str


class Starvation:
    """Longest time that each watched process was ready to run and was not let, from `/proc/PID/schedstat`."""

    def __init__(self) -> None:
        self._waited_s: dict[int, float] = {}
        self._longest_s: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, pid: int) -> None:
        self._waited_s[pid] = _waited_s(pid)
        self._longest_s[pid] = 0.0

    def longest_s(self, pid: int) -> float:
        """A wait is added when it ends, whole. Several within one sample count as one: too much, never too little."""
        return self._longest_s[pid]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            for pid, before in list(self._waited_s.items()):
                now = _waited_s(pid)
                self._waited_s[pid] = now
                self._longest_s[pid] = max(self._longest_s[pid], now - before)


def _waited_s(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):  # it has ended, or the kernel does not count
        return 0.0


@dataclass(frozen=True)
class Place:
    """Where a daemon runs."""

    bind: str = "127.0.0.1:0"
    prefix: tuple[str, ...] = ()
    """What goes before its command."""


class Mesh:
    """Daemons by name. All join the first, on ports that stay theirs when they are started again."""

    def __init__(self, folder: Path, count: int, *arguments: str, places: Sequence[Place] = ()) -> None:
        self.names = tuple(f"n{number:02}" for number in range(count))
        self.daemons: dict[str, Daemon] = {}
        self.starvation = Starvation()
        self._folder = folder
        self._arguments = arguments
        self._addresses: dict[str, str] = {}
        self._places = dict(zip(self.names, places or (Place(),) * count, strict=True))
        try:
            self.start(self.names[:1])
            self.start(self.names[1:])
        except BaseException:
            self.close()
            raise

    @property
    def seed(self) -> str:
        return self._addresses[self.names[0]]

    def start(self, names: Iterable[str]) -> None:
        """Start `names`, some at a time, each where it was before if it was."""

        def one(name: str) -> Daemon:
            join = () if name == self.names[0] else ("--join", self.seed)
            bind, prefix = self._addresses.get(name, self._places[name].bind), self._places[name].prefix
            state_dir = self._folder / f"state-{name}"
            return Daemon(
                self._folder, name, *_SMALL, *join, *self._arguments, bind=bind, prefix=prefix, state_dir=state_dir
            )

        chosen = list(names)
        with ThreadPoolExecutor(_STARTS_AT_ONCE) as pool:
            for name, starting in [(name, pool.submit(one, name)) for name in chosen]:
                daemon = starting.result()
                self.daemons[name] = daemon
                self._addresses[name] = daemon.address
                self.starvation.watch(daemon.process.pid)

    def kill(self, names: Iterable[str]) -> None:
        """SIGKILL `names`, all before the first is waited for."""
        for daemon in (killed := [self.daemons.pop(name) for name in names]):
            daemon.process.kill()
        for daemon in killed:
            daemon.kill()
            daemon.stop()

    def send(self, number: signal.Signals, names: Iterable[str]) -> None:
        for name in names:
            self.daemons[name].process.send_signal(number)

    def descriptors(self, name: str) -> int:
        """How many files and sockets a daemon has open."""
        return sum(1 for _ in Path(f"/proc/{self.daemons[name].process.pid}/fd").iterdir())

    def members(self, name: str) -> list[MemberView]:
        with self.daemons[name].client(staging_bytes=0) as client:
            return list(client.members())

    def status(self, name: str) -> StatusReply:
        with self.daemons[name].client(staging_bytes=0) as client:
            return client.status()

    def ids(self, names: Iterable[str]) -> set[str]:
        """Ids of the running daemons of these names."""
        return {self.daemons[name].facts["node"] for name in names}

    def wait_gone(self, ids: set[str], state: str, observers: Iterable[str]) -> None:
        """Wait until all of `observers` hold the members with these ids for `state`."""

        def gone(observer: str) -> bool:
            return ids <= {member.id for member in self.members(observer) if member.state == state}

        for name in observers:
            wait_until(lambda name=name: gone(name), f"{name} holds {ids} for {state}", seconds=DEADLINE_S)

    def wait_agreed(self, names: Iterable[str], what: str) -> None:
        """Wait until each of `names` holds exactly them for alive and suspects nobody."""
        wanted = set(names)

        def agreed(name: str) -> bool:
            members = self.members(name)
            alive = sorted(member.name for member in members if member.state == "alive")
            return alive == sorted(wanted) and not any(member.state == "suspect" for member in members)

        for name in sorted(wanted):
            wait_until(lambda name=name: agreed(name), f"{name}: {what}", seconds=DEADLINE_S)

    def make_whole(self) -> None:
        """Start what is not running and wait until everybody holds everybody for alive."""
        self.start([name for name in self.names if name not in self.daemons])
        self.wait_agreed(self.names, "all are there")

    def verdicts(self) -> list[Verdict]:
        """All changes of belief that are in the logs so far, of earlier lives too."""
        return [
            Verdict(name, str(line["member"]), str(line["before"]), str(line["now"]))
            for name in self.names
            for line in log_lines(self._folder / f"{name}.log")
            if line["event"] == "member changed"
        ]

    def longest_wait_s(self) -> float:
        """Longest that any of the running daemons waited for a processor."""
        return max(self.starvation.longest_s(daemon.process.pid) for daemon in self.daemons.values())

    def wrong_deaths(self, since: Sequence[Verdict], *, expected: Iterable[str], suspicion_s: float) -> list[Verdict]:
        """Death verdicts after `since` on members that are not among the `expected` and were not starved.

        Args:
            since: what `verdicts` returned earlier.
            expected: who was killed, frozen or cut off.
            suspicion_s: shortest suspicion at these settings: who gets no processor for so long cannot refute.
        """
        allowed = set(expected)
        starved = {
            name for name, daemon in self.daemons.items() if self.starvation.longest_s(daemon.process.pid) > suspicion_s
        }
        fresh = subtract(self.verdicts(), since)
        return [found for found in fresh if found.now == "dead" and found.member not in allowed | starved]

    def close(self) -> None:
        self.starvation.close()
        self.send(signal.SIGCONT, self.daemons)
        self.send(signal.SIGTERM, self.daemons)
        with ExitStack() as stack:  # one that does not end must not keep the others from being stopped
            for daemon in self.daemons.values():
                stack.callback(daemon.stop)
                stack.callback(daemon.process.wait, DEADLINE_S)  # they end together, and so each takes longer


def subtract(later: Sequence[Verdict], earlier: Sequence[Verdict]) -> list[Verdict]:
    """Return what each daemon said after `earlier` was read; both are in the order of the logs."""
    rest = []
    for name in {verdict.by for verdict in later}:
        known = sum(verdict.by == name for verdict in earlier)
        rest += [verdict for verdict in later if verdict.by == name][known:]
    return rest


def log_lines(log: Path) -> Iterator[dict[str, object]]:
    """Yield the JSON lines of a log, without a last one that is still being written."""
    for line in log.read_text(encoding="utf-8").rpartition("\n")[0].splitlines():
        if line.startswith("{"):
            yield json.loads(line)


@contextmanager
def running(folder: Path, count: int, *arguments: str, places: Sequence[Place] = ()) -> Iterator[Mesh]:
    """Run a mesh and stop it, however the block ends."""
    mesh = Mesh(folder, count, *arguments, places=places)
    try:
        yield mesh
    finally:
        mesh.close()
