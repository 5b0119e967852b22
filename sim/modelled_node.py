"""One node of a replay in modelled time: the real cores that decide, and an engine and a link that take their time."""

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.config import Config
from p2pkv.eviction import Policy
from p2pkv.forwarding import Forwarding
from p2pkv.index.allowance import Allowance
from p2pkv.index.exchange import Summaries
from p2pkv.replication import Heat
from p2pkv.sim.geometry import Geometry
from p2pkv.sim.one_cache import Engine

CLASS: Final = 0
"""All blocks of a trace are of one size."""
GIVEN_SHARE: Final = 0.1
"""Of a link, what blocks may take that nobody asked for: last copies and replicas."""
GIVEN_MAX_SHARE: Final = 0.01
"""Of a tier, what may still stand there and be on its way to another node."""


class Link:
    """Both ways of a node's link. Blocks go one after another, each at the full rate."""

    def __init__(self, bytes_s: float) -> None:
        self.bytes_s: Final = bytes_s
        self.up_free_s = 0.0
        self.down_free_s = 0.0

    def move(self, to: "Link", size: int, now: float) -> float:
        """Send so many bytes to another node; return when the last one has come."""
        begin_s = max(now, self.up_free_s, to.down_free_s)
        self.up_free_s = to.down_free_s = begin_s + size / min(self.bytes_s, to.bytes_s)
        return self.up_free_s


class ModelledNode:
    """What one node holds, and what it knows of others."""

    def __init__(
        self, number: int, policy: Policy, capacity: int, *, config: Config, geometry: Geometry, hops_max: int
    ) -> None:
        """`capacity` in blocks."""
        self.number: Final = number
        self.policy: Final = policy
        self.capacity: Final = capacity
        self.forwarding: Final = Forwarding(hops_max=hops_max)
        self.heat: Final = Heat()
        self.summaries: Final = Summaries(node_id=str(number), epoch=1, config=config.summary, blocks_expected=capacity)
        self.engine: Final = Engine(geometry)
        self.link: Final = Link(geometry.link_bytes_s)
        self.given: Final = Allowance(GIVEN_SHARE * geometry.link_bytes_s)
        self.pins: Counter[BlockKey] = Counter()
        self.coming = 0
        """Blocks that room was made for and that are not here yet, or pass through."""
        self.leaving = 0
        """Blocks that were given away and still stand here."""
        self.wakes_s = inf
        """When its summary is looked at next."""
        self.runs = True

    @property
    def used(self) -> int:
        """Blocks that take room."""
        return len(self.policy) + self.coming + self.leaving

    def next_to_go(self) -> BlockKey | None:
        """Return what would go next, None if everything is pinned."""
        return self.policy.victim(CLASS, self.pins.__contains__)

    def idle_s(self, now: float) -> float:
        """Return for how long what would go next was unused; infinity if there is room, 0 if nothing can go."""
        if self.used < self.capacity:
            return inf
        key = self.next_to_go()
        return now - self.policy.used_s(key) if key is not None else 0.0

    def may_give(self, now: float) -> bool:
        """Say whether another block may be given away now."""
        return self.leaving < max(1, int(GIVEN_MAX_SHARE * self.capacity)) and self.given.open(now)

    def prefix(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks are here."""
        return next((depth for depth, key in enumerate(keys) if key not in self.policy), len(keys))

    def pin(self, keys: Sequence[BlockKey]) -> None:
        """Keep blocks from going."""
        self.pins.update(keys)

    def unpin(self, keys: Sequence[BlockKey]) -> None:
        """End one pin of each block."""
        for key in keys:
            self.pins[key] -= 1
            if not self.pins[key]:
                del self.pins[key]
