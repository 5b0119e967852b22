"""What must be true at the end of a run, over all nodes at once. A checker returns sentences; none means all is well."""

from p2pkv.sim.world import World, id_of

_USABLE = (0, 1)
"""States that count as present: alive, and suspect, which may still be refuted."""


def disagreements(world: World, *, limit: int = 10) -> list[str]:
    """Return what running nodes believe wrongly of each other.

    Where nothing has kept two nodes apart for long enough, each must believe the other present: an alive, reachable
    member that stays dead in somebody's eyes is the failure a membership protocol exists to prevent. And nobody may
    believe that a process is there which is not. How long is long enough is the caller's to grant, by running on.
    """
    found: list[str] = []
    for number, node in world.running():
        believed = {world.number_of(record.id) for record in node.membership.members() if record.state in _USABLE}
        for other in range(world.size):
            if other == number or not world.reaches(number, other):
                continue
            if world.is_running(other) and other not in believed:
                found.append(f"{id_of(number)} does not believe in {id_of(other)}, which runs and is reachable")
            if not world.is_running(other) and other in believed:
                found.append(f"{id_of(number)} believes in {id_of(other)}, which does not run")
    more = len(found) - limit
    return found if more <= 0 else [*found[:limit], f"and {more} more"]
