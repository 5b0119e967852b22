"""What must be true of all nodes at once. A checker returns sentences; none means all is well.

`disagreements` looks once. `Checkers` look every simulated second for as long as a run lasts, and a run ends with the
first thing they find: what is wrong is easiest to understand where it begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from p2pkv.config import Config
from p2pkv.mesh.members import MemberState, is_usable
from p2pkv.mesh.relay import RELAYS_MAX
from p2pkv.sim.clock import SECOND_US, to_us
from p2pkv.sim.prompts import Engines
from p2pkv.sim.world import Change, World, id_of
from p2pkv.transport.base import STREAM_QUEUE_MAX

SHUNNED_S: Final = 90.0
"""A member that lives and is reachable is dead for everybody for no longer than this. Each node tries one dead member a
minute, and whoever is tried refutes."""
STREAM_BYTES_MAX: Final = 4 * 2**20
"""On their way over one stream; Linux lets no send buffer grow further by default (tcp_wmem), and the writer would wait."""
_TURNS: Final = 5
"""A node's queues are looked at once in so many seconds; counting them costs as much as all other checks together."""


def disagreements(world: World, *, limit: int = 10, believing: Mapping[int, set[int]] | None = None) -> list[str]:
    """Return what running nodes believe wrongly of each other.

    Where nothing has kept two nodes apart for long enough, each must believe the other present: an alive, reachable
    member that stays dead in somebody's eyes is the failure a membership protocol exists to prevent. And nobody may
    believe that a process is there which is not. How long is long enough is the caller's to grant, by running on.
    """
    found: list[str] = []
    believing = beliefs(world) if believing is None else believing
    running = set(believing)
    for number, believed in believing.items():
        if believed == running:  # as nearly always
            continue
        for other in range(world.size):
            if other == number or world.is_running(other) == (other in believed):
                continue
            if not world.reaches(number, other):
                continue
            if other in believed:
                found.append(f"{id_of(number)} believes in {id_of(other)}, which does not run")
            else:
                found.append(f"{id_of(number)} does not believe in {id_of(other)}, which runs and is reachable")
    more = len(found) - limit
    return found if more <= 0 else [*found[:limit], f"and {more} more"]


def beliefs(world: World) -> dict[int, set[int]]:
    """Return by the number of each running node whom it counts on, itself included."""
    return {
        number: {world.number_of(record.id) for record in node.membership.members() if is_usable(record)}
        for number, node in world.running()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a run promises beyond what every run does."""

    settled_s: float
    """From here on the mesh has to agree, until the run ends."""
    false_deaths_max: int | None = None
    """How often a node may hold a member for dead that runs; None: that is not judged."""
    doubtful: frozenset[int] = frozenset()
    """Nodes that are slow or frozen at some time: a member that is silent cannot be told from a dead one."""


class Checkers:
    """Looks at a world again and again. `watch` wants every change of belief, `look` to be called each second."""

    def __init__(self, config: Config, bounds: Bounds) -> None:
        self._config = config
        self._bounds = bounds
        self._shunned_since: dict[int, float] = {}
        self.false_deaths = 0
        self.agreed_s: float | None = None
        """Since when everybody agrees; None while they do not."""

    def watch(self, world: World, change: Change) -> None:
        """Take a change of belief."""
        if change.state == MemberState.DEAD and change.subject not in self._bounds.doubtful:
            self.false_deaths += world.is_running(change.subject) and world.boot(change.subject) == change.boot

    def look(self, world: World, engines: Engines | None, *, patience_s: float) -> list[str]:
        """Return what is wrong now. Engines wait `patience_s` longer than they say where nodes are stalled."""
        believing = beliefs(world)
        found = self._shunned(world, believing) + self._full(world) + self._apart(world, believing)
        limit = self._bounds.false_deaths_max
        if limit is not None and self.false_deaths > limit:
            found.append(f"{self.false_deaths} times a node held a running one for dead, at most {limit} are allowed")
        if engines is not None:
            found += engines.overdue(patience_s) + engines.claims.excess()
        return found

    def _apart(self, world: World, believing: Mapping[int, set[int]]) -> list[str]:
        """Return disagreements that last longer than they may, and note since when there is none."""
        now_s = world.now_us / SECOND_US
        found = disagreements(world, believing=believing)
        if not found:
            self.agreed_s = now_s if self.agreed_s is None else self.agreed_s
            return []
        self.agreed_s = None
        return found if world.now_us >= to_us(self._bounds.settled_s) else []

    def _shunned(self, world: World, believing: Mapping[int, set[int]]) -> list[str]:
        """Return who lives, is reachable by all, and was counted on by nobody for too long."""
        now_s = world.now_us / SECOND_US
        found: list[str] = []
        for number in believing:
            others = [other for other in believing if other != number]
            is_counted_on = not others or any(number in believing[other] for other in others)
            if is_counted_on or not world.is_well(number) or not all(world.reaches(number, one) for one in others):
                self._shunned_since.pop(number, None)
            elif now_s - self._shunned_since.setdefault(number, now_s) > SHUNNED_S:
                found.append(f"{id_of(number)} runs and is reachable, and nobody has counted on it for {SHUNNED_S:g} s")
        return found

    def _full(self, world: World) -> list[str]:
        """Return queues that have outgrown their bounds, of the nodes whose turn it is."""
        found: list[str] = []
        turn = world.now_us // SECOND_US % _TURNS
        for number, node in world.running():
            if number % _TURNS != turn:
                continue
            members, fetch = node.membership.statistics(), node.statistics().fetch
            sizes = {
                "waiting updates": (members.updates_waiting, world.size),
                "suspicions": (members.suspect, world.size),
                "relays": (members.relays_open, RELAYS_MAX),
                "blocks on their way": (fetch.in_flight, self._config.fetch.in_flight_max),
            }
            found += [f"{id_of(number)} has {n} {what}, limit {most}" for what, (n, most) in sizes.items() if n > most]
        streams = world.network.streams
        if streams.overflows:
            found.append(f"{streams.overflows} streams broke because {STREAM_QUEUE_MAX} messages were on their way")
        if streams.bytes_peak > STREAM_BYTES_MAX:
            found.append(f"a stream had {streams.bytes_peak} bytes on their way, limit {STREAM_BYTES_MAX}")
        return found
