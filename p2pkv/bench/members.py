"""Processes of two implementations that look alike from outside: a name, an address, and a log of changed beliefs."""

import json
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from p2pkv.client import Client
from p2pkv.demo.processes import Child

START_S: Final = 60.0
_KINSHIP_MEMBER: Final = Path(__file__).with_name("kinship_member.py")


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a member's log: it believes something else of `member` since `at_s`, seconds of the wall clock."""

    at_s: float
    member: str
    state: str


class Member(Child):
    """One process. Its log holds a JSON line `member changed` per change of belief, among others."""

    def __init__(self, name: str, command: list[str], log: Path, *, state: Path) -> None:
        # A daemon keeps what it remembers over a restart in here, and not among the user's own.
        super().__init__(name, command, log, {"XDG_STATE_HOME": str(state)})
        self.address = ""
        self._read_bytes = 0
        self._changes: list[Change] = []

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it listens, and learn where."""
        self.address = json.loads(self.read_until(b"\n}\n", seconds=START_S))["address"]

    def changes(self) -> list[Change]:
        """Return all changes of belief so far, in order."""
        with self.log.open("rb") as stream:
            stream.seek(self._read_bytes)
            whole = stream.read().rpartition(b"\n")
        self._read_bytes += len(whole[0]) + len(whole[1])
        for line in whole[0].splitlines():
            if line.startswith(b"{"):
                facts = json.loads(line)
                if facts.get("event") == "member changed":
                    self._changes.append(Change(_time(facts), facts["member"], facts["now"]))
        return self._changes

    def alive(self) -> set[str]:
        """Return the names of the others that it holds for alive."""
        latest = {change.member: change.state for change in self.changes()}
        return {member for member, state in latest.items() if state == "alive" and member != self.name}


class P2pkvMember(Member):
    """`p2pkv serve` at LAN defaults."""

    def __init__(self, name: str, folder: Path, *, bind: str, seed: str) -> None:
        self.socket: Final = folder / f"{name}.sock"
        command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--name", name, "--bind", bind]
        command += ["--socket", str(self.socket), "--host-bytes", "1MiB", "--log-format", "json", "--stop-with-stdin"]
        command += ["--join", seed] if seed else []
        super().__init__(name, command, folder / f"p2pkv-{name}.log", state=folder)

    def datagrams_sent(self) -> float:
        """Return what its metrics count."""
        with Client.connect(self.socket, staging_bytes=0, name="bench") as client:
            return client.status().counters["p2pkv_gossip_datagrams_total{direction=sent}"]


class KinshipMember(Member):
    """`kinship_member.py` under another Python, at LAN defaults."""

    def __init__(self, name: str, folder: Path, *, bind: str, seed: str, python: Path) -> None:
        command = [str(python), "-I", str(_KINSHIP_MEMBER), name, bind, *([seed] if seed else [])]
        super().__init__(name, command, folder / f"kinship-{name}.log", state=folder)


def _time(facts: dict[str, object]) -> float:
    at = facts.get("at")
    if isinstance(at, float):
        return at
    return datetime.fromisoformat(str(facts["timestamp"])).timestamp()
