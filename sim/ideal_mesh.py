"""A trace through many nodes that know of each other at once and move blocks in no time.

Each node has the policy and the forwarding of a real one; what is left out is what `--timing ideal` leaves out: messages, how
late they are, and how long bytes take. So this is what the rules are worth by themselves, to be held beside tables of others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal, TypeAlias

from p2pkv.blocks import BlockKey
from p2pkv.eviction import Policy
from p2pkv.forwarding import Forwarding, candidates
from p2pkv.index.anchors import STRETCH_BLOCKS
from p2pkv.mesh.ring import Ring
from p2pkv.replication import Heat
from p2pkv.sim.one_cache import Counted
from p2pkv.sim.traces import Recorded, Trace

Sharing: TypeAlias = Literal["mesh", "local", "ring", "first", "copies"]
"""As p2pkv does it; not at all; every block at its first owner on the ring; where it was computed, and nowhere else; with a
copy wherever it was used."""
_CLASS: Final = 0
_LOAD_FACTOR: Final = 1.25
_LOAD_SPARE: Final = 200
"""Blocks; a router sends a node no more than so much beyond its part."""


@dataclass(slots=True)
class MeshCounted(Counted):
    """What came of a replay through many nodes so far."""

    local_blocks: int = 0
    remote_blocks: int = 0
    stored: int = 0
    stored_twice: int = 0
    """Blocks taken in that another node had already."""
    forwarded: int = 0
    replicated: int = 0
    """Copies that a node took because a block is hot elsewhere."""
    load: list[int] = field(default_factory=list)
    """Blocks asked for at each node."""


class _Tier:
    """One node: its policy, and what it knows of its blocks' origin."""

    def __init__(self, policy: Policy, capacity: int, *, hops_max: int) -> None:
        self.policy = policy
        self.capacity = capacity
        self.forwarding = Forwarding(hops_max=hops_max)
        self.heat = Heat()
        self.oldest: tuple[float, BlockKey | None] | None = None
        """When what would go next was used last, and what; minus infinity if there is room. None if that has to be looked up."""
        self.coming = 0
        """Blocks that room was made for and that are not here yet."""

    def is_full(self) -> bool:
        return len(self.policy) + self.coming >= self.capacity

    def insert(self, key: BlockKey, parent: BlockKey | None, *, used_s: float | None = None) -> None:
        self.oldest = None
        self.policy.insert(key, _CLASS, parent, used_s=used_s)
        assert len(self.policy) <= self.capacity


class IdealMesh:
    """All nodes."""

    def __init__(
        self, policies: Sequence[Policy], capacity: int, *, sharing: Sharing = "mesh", hops_max: int = 2
    ) -> None:
        """`capacity` is of each node, blocks."""
        hops = hops_max if sharing == "mesh" else 0
        self._tiers = [_Tier(policy, capacity, hops_max=hops) for policy in policies]
        self._sharing: Final = sharing
        self._holders: dict[BlockKey, list[int]] = {}
        self._ring = Ring({str(number): 1 for number in range(len(policies))})
        self._candidates: dict[tuple[BlockKey, int], tuple[int, ...]] = {}
        """Of a stretch, by its anchor, and the node that has to drop something of it."""
        self._anchors: dict[BlockKey, BlockKey] = {}
        self._now = 0.0
        self.counted = MeshCounted(load=[0] * len(policies))

    def serve(self, request: Recorded, node: int, block_tokens: int) -> None:
        """Have an engine at a node ask for a chain, compute what nobody has, and publish it."""
        self._now = request.at_s
        keys, counted, policy = request.blocks, self.counted, self._tiers[node].policy
        counted.load[node] += len(keys)
        for number, tier in enumerate(self._tiers):
            self._drop_idle(number, tier)
        holders, local, hit = self._holders, 0, 0
        asked: dict[int, list[BlockKey]] = {}
        for key in keys:
            if key in policy:
                local += 1
            elif self._sharing == "local" or not (there := holders.get(key)):
                break
            else:
                asked.setdefault(there[0], []).append(key)
            hit += 1
        policy.ask(keys, hit)
        for other, wanted in asked.items():
            self._tiers[other].policy.ask(wanted, len(wanted))
        counted.local_blocks += local
        counted.remote_blocks += hit - local
        counted.count(request, hit, block_tokens)
        for depth in range(len(keys) - 1, -1, -1):
            self._use(keys, depth, node)

    def route(self, request: Recorded) -> int:
        """Return the node with the longest prefix of its own, unless it was asked for much more than others were."""
        load, keys = self.counted.load, request.blocks
        mean = (sum(load) + len(keys)) / len(load)
        best, most = 0, -2
        for number, tier in enumerate(self._tiers):
            policy = tier.policy
            prefix = next((depth for depth, key in enumerate(keys) if key not in policy), len(keys))
            if load[number] > _LOAD_FACTOR * mean + _LOAD_SPARE:
                prefix = -1
            if prefix > most or (prefix == most and load[number] < load[best]):
                best, most = number, prefix
        return best

    # -- one block ----------------------------------------------------------------------------------------------------

    def _use(self, keys: Sequence[BlockKey], depth: int, node: int) -> None:
        key = keys[depth]
        if self._sharing == "ring":
            node = int(self._ring.owners(key, 1)[0])
        tier = self._tiers[node]
        if key in tier.policy:
            self._touch(node, keys, depth)
            return
        holders = self._holders.get(key)
        if not holders or self._sharing == "local":
            self._store(node, keys, depth)
            tier.forwarding.add(key)
            return
        if self._sharing == "copies":
            self._store(node, keys, depth)
            return
        self._touch(holders[0], keys, depth)
        wants = self._sharing == "mesh" and tier.heat.wants(key, self._now, self._idle_s(tier))
        if wants and key not in tier.policy:  # it may have been given it just now
            self._store(node, keys, depth)

    def _touch(self, node: int, keys: Sequence[BlockKey], depth: int) -> None:
        """Use a block where it is, and have one more node take it if it is hot."""
        key, tier = keys[depth], self._tiers[node]
        tier.policy.on_time(self._now)
        tier.policy.touch(key)
        tier.forwarding.use(key)
        if tier.oldest is not None and tier.oldest[1] == key:
            tier.oldest = None
        if self._sharing != "mesh" or not tier.heat.spreads(key, self._now, self._idle_s(tier)):
            return
        holders, first = self._holders[key], int(self._ring.owners(self._anchors[key], 1)[0])
        other = next(
            (
                at % len(self._tiers)
                for at in range(first, first + len(self._tiers))
                if at % len(self._tiers) not in holders
            ),
            None,
        )
        if other is not None:
            self._store(other, keys, depth)
            self.counted.replicated += 1

    def _store(self, node: int, keys: Sequence[BlockKey], depth: int) -> None:
        key, tier = keys[depth], self._tiers[node]
        self.counted.stored += 1
        self.counted.stored_twice += key in self._holders
        if key not in self._anchors:
            self._anchors[key] = keys[depth // STRETCH_BLOCKS * STRETCH_BLOCKS]
        self._make_room(node)
        tier.insert(key, keys[depth - 1] if depth else None)
        self._holders.setdefault(key, []).append(node)

    def _make_room(self, node: int, victim: BlockKey | None = None) -> None:
        """Have a block go if the tier is full, and taken in elsewhere if it is the last copy and older ones are there."""
        tier = self._tiers[node]
        if not tier.is_full():
            return
        tier.policy.on_time(self._now)
        key = victim or self._oldest(tier)[1]
        assert key is not None
        tier.oldest = None
        used_s, parent = tier.policy.used_s(key), tier.policy.parent(key)
        tier.policy.evict(key)
        holders = self._holders[key]
        holders.remove(node)
        goes_on = not holders and tier.forwarding.may_go_on(key) and tier.policy.by_age(_CLASS)
        hops = tier.forwarding.remove(key)
        if not holders:
            del self._holders[key]
        if not goes_on or hops is None:
            return
        others = self._candidates_of(self._anchors[key], node)
        drops = {str(other): self._oldest(self._tiers[other]) for other in others}
        chosen = tier.forwarding.choose(
            self._now - used_s, [(other, self._now - oldest_s) for other, (oldest_s, _) in drops.items()]
        )
        if chosen is None:
            return
        self.counted.forwarded += 1
        tier.coming += 1
        self._make_room(int(chosen), drops[chosen][1])
        tier.coming -= 1
        taker = self._tiers[int(chosen)]
        taker.insert(key, parent, used_s=used_s)
        taker.forwarding.add(key, hops + 1)
        self._holders[key] = [int(chosen)]

    def _drop_idle(self, node: int, tier: _Tier) -> None:
        tier.policy.on_time(self._now)
        if tier.policy.next_deadline() >= self._now:
            return
        tier.oldest = None
        for key in tier.policy.idle():
            tier.policy.remove(key)
            tier.forwarding.remove(key)
            self._holders[key].remove(node)
            if not self._holders[key]:
                del self._holders[key]

    def _oldest(self, tier: _Tier) -> tuple[float, BlockKey | None]:
        """Return when what a node would drop next was used last, and what; minus infinity if it has room."""
        if not tier.is_full():
            return -inf, None
        if tier.oldest is None:
            key = tier.policy.victim(_CLASS)
            assert key is not None
            tier.oldest = tier.policy.used_s(key), key
        return tier.oldest

    def _idle_s(self, tier: _Tier) -> float:
        """Return for how long what a node would drop next was unused; infinity if it has room."""
        return self._now - self._oldest(tier)[0]

    def duplicates(self) -> float:
        """Return the share of all that is held which another node holds, too."""
        held = sum(map(len, self._holders.values()))
        return 1 - len(self._holders) / held if held else 0.0

    def _candidates_of(self, anchor: BlockKey, node: int) -> tuple[int, ...]:
        found = self._candidates.get((anchor, node))
        if found is None:
            names = candidates(self._ring.owners, anchor, str(node))
            found = self._candidates[anchor, node] = tuple(map(int, names))
        return found


def replay_mesh(trace: Trace, mesh: IdealMesh, homes: Sequence[int] | None) -> MeshCounted:
    """Replay a trace; `homes` names the node of each request, None has the mesh's router choose."""
    for number, request in enumerate(trace.requests):
        node = homes[number] if homes is not None else mesh.route(request)
        mesh.serve(request, node, trace.block_tokens)
    return mesh.counted
