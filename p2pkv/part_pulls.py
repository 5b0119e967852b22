"""What the parts cores ask the shell to do: bring a part of some blocks from a peer into places that are reserved."""

from dataclasses import dataclass

from p2pkv.generations import Place
from p2pkv.layouts import Grid, Part
from p2pkv.slots import Slot


@dataclass(frozen=True, slots=True)
class PulledBlock:
    """One block of a pull."""

    position: int
    """In the grant of the lease, or in the offer of the push."""
    slot: Slot
    """Where its part goes."""
    digest: bytes
    """The table of its segments' digests must have it; all zero: there is no whole table yet, each part brings its own."""
    place: Place | None = None
    """Where the block lies in the peer's arena, if that is mapped here."""


@dataclass(frozen=True, slots=True)
class StartPull:
    """Bring `part` of `blocks`; report each block's part with `on_part` when it is verified in its place.

    When all are reported, one cannot be had, or `deadline` has passed, report `on_pull_ended`; from then on nobody writes
    to the places any more.
    """

    pull: int
    peer: str
    address: str
    pushed: bool
    """Whether `lease` is the number of a push of the peer, and no lease."""
    lease: int
    grid: Grid
    """Of a whole block."""
    part: Part
    cut: bool
    """Whether the places hold just `part`, without gaps, and not a whole block."""
    blocks: tuple[PulledBlock, ...]
    by_layer: bool
    """One layer of all blocks after the other, and not one block after the other."""
    deadline: float

    def destination(self, part: Part) -> tuple[Grid, Part]:
        """Return where `part`, some of what is brought, belongs in a place."""
        if not self.cut:
            return self.grid, part
        shifted = Part(part.first_layer - self.part.first_layer, part.layers, 0, part.heads)
        return self.grid.cut(self.part), shifted


@dataclass(frozen=True, slots=True)
class StopPull:
    """Nobody wants a pull's blocks any more; `on_pull_ended` comes as ever."""

    pull: int
