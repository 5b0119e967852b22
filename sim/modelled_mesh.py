"""A trace through many nodes in modelled time.

Real are the cores that decide: policy, forwarding and heat of each node, its summary and what it has of others' (`Summaries`, with
its messages, their sizes and periods), the ring, and the planner that cuts a chain between peers or has it computed. Modelled
are what takes time and whoever holds the books: engines compute one prompt after another; a block is there when its prompt is
computed; blocks cross links one after another, asked for or given away; a fetch pins what it was granted, at both ends, and takes
room where it arrives. Exact is the directory, which is asked before a last copy is given away, and what a node knows of how old the
blocks of two candidates are. Membership is not run: a node that is lost is known to be lost after `DETECTED_S`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from typing import Final

from p2pkv.blocks import BlockKey
from p2pkv.config import Config
from p2pkv.effects import SendStream
from p2pkv.eviction import Policy
from p2pkv.forwarding import candidates
from p2pkv.index.anchors import STRETCH_BLOCKS
from p2pkv.index.announce import reach
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.ring import Ring
from p2pkv.planner import Run, Terms, plan
from p2pkv.plans import PLANS_MAX
from p2pkv.sim.geometry import Geometry
from p2pkv.sim.ideal_mesh import MeshCounted
from p2pkv.sim.modelled_node import CLASS, ModelledNode
from p2pkv.sim.traces import Recorded
from p2pkv.transport.wire import AnyMessage, MemberRecord, encode

ROUND_TRIP_S: Final = 0.0005
DETECTED_S: Final = 5.0
"""From a node's end until all others know of it; see docs/benchmarks/mesh.md."""
_OWN_LINK: Final = "own"
"""All that is fetched comes over it, as a node finds out by measuring; two peers are not twice as fast."""
_LOAD_FACTOR: Final = 1.25
_LOAD_SPARE: Final = 200


@dataclass(slots=True)
class ModelledCounted(MeshCounted):
    """What came of a replay in modelled time."""

    oracle_blocks: int = 0
    """Prefixes that were somewhere at the moment they were asked for, whoever knew of it."""
    asked_of_peers: int = 0
    absent: int = 0
    wasted: int = 0
    """Blocks asked of peers that were not there, came later than they would have been computed, or behind a gap."""
    summary_bytes: int = 0
    by_request: list[tuple[float, int, int]] = field(default_factory=list)
    """When each came, its blocks, and those that it hit."""


@dataclass(slots=True)
class _Asked:
    """One request under way."""

    request: Recorded
    node: ModelledNode
    local: int
    pinned: tuple[BlockKey, ...]
    open: int = 0
    """Runs that were not answered yet."""
    ready_s: float = 0.0
    came: set[BlockKey] = field(default_factory=set)
    room: int = 0


class ModelledMesh:
    """All nodes, and a heap of what happens."""

    def __init__(
        self,
        policies: Sequence[Policy],
        capacity: int,
        *,
        config: Config,
        geometry: Geometry,
        block_tokens: int,
        shares: bool,
        hops_max: int,
    ) -> None:
        """`capacity` is of each node, blocks; without `shares` nobody asks anybody."""
        self._nodes = [
            ModelledNode(number, policy, capacity, config=config, geometry=geometry, hops_max=hops_max if shares else 0)
            for number, policy in enumerate(policies)
        ]
        self._config: Final = config
        self._shares: Final = shares
        self._block_tokens: Final = block_tokens
        self._block_bytes: Final = block_tokens * geometry.token_bytes
        self._block_s: Final = self._block_bytes / geometry.link_bytes_s
        self._prefill_block_s: Final = geometry.prefill_s(block_tokens)
        self._gives: Final = shares and self._block_s < self._prefill_block_s
        """What takes longer to fetch than to compute is given to nobody."""
        self._holders: dict[BlockKey, list[int]] = {}
        self._places: dict[BlockKey, tuple[int, BlockKey | None, BlockKey]] = {}
        """Depth, parent and anchor of each block that was ever stored."""
        self._ring = Ring({str(number): 1 for number in range(len(policies))})
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._now = 0.0
        self.counted = ModelledCounted(load=[0] * len(policies))
        if shares:
            for node in self._nodes:
                for other in self._nodes:
                    if other is not node:
                        self._send(node, node.summaries.on_member(_record(other.number, MemberState.ALIVE), 0.0))

    @property
    def nodes(self) -> Sequence[ModelledNode]:
        """All of them, those that were lost included."""
        return self._nodes

    def later(self, at_s: float, happen: Callable[[], None]) -> None:
        """Have something happen at a time; of several at one time the first scheduled comes first."""
        self._sequence += 1
        heappush(self._heap, (at_s, self._sequence, happen))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due before or at `until_s`."""
        while self._heap and self._heap[0][0] <= until_s:
            self._now, _, happen = heappop(self._heap)
            happen()
            if self._shares:
                self._arm()
        self._now = until_s

    def ask(self, request: Recorded, home: int | None) -> None:
        """Have an engine ask for a chain now; `home` None has the router choose."""
        node = self._nodes[home if home is not None else self._route(request)]
        if not node.runs:  # a router has them served by all that are left
            left = [other for other in self._nodes if other.runs]
            node = left[self.counted.requests % len(left)]
        keys = request.blocks
        self.counted.load[node.number] += len(keys)
        self._drop_idle()
        node.policy.on_time(self._now)
        local = node.prefix(keys)
        runs = self._plan(node, keys, local) if self._shares and local < len(keys) else []
        node.policy.ask(keys, runs[-1].stop if runs else local)
        there = (depth for depth, key in enumerate(keys) if key not in self._holders) if self._shares else iter([local])
        self.counted.oracle_blocks += max(local, next(there, len(keys)))
        self._use(node, keys[:local])
        node.pin(keys[:local])
        asked = _Asked(request, node, local, keys[:local], ready_s=self._now)
        asked.open = len(runs)
        for run in runs:
            wanted = [key for key in keys[run.start : run.stop] if key not in node.policy]
            self.counted.asked_of_peers += len(wanted)
            self.later(self._now + ROUND_TRIP_S / 2, partial(self._granted, asked, int(run.peer), wanted))
        if not runs:
            self._ready(asked)

    def lose(self, number: int) -> None:
        """Have a node end without a word."""
        node = self._nodes[number]
        node.runs = False
        for key in [key for key, held in self._holders.items() if number in held]:
            self._holders[key].remove(number)
            if not self._holders[key]:
                del self._holders[key]
        self.later(self._now + DETECTED_S, partial(self._lost, number))

    def duplicates(self) -> float:
        """Return the share of all that is held which another node holds, too."""
        held = sum(map(len, self._holders.values()))
        return 1 - len(self._holders) / held if held else 0.0

    def holders(self, key: BlockKey) -> Sequence[int]:
        """Return who has a block."""
        return self._holders.get(key, ())

    # -- a request ----------------------------------------------------------------------------------------------------

    def _plan(self, node: ModelledNode, keys: Sequence[BlockKey], local: int) -> list[Run]:
        """Return what to ask whom for: behind what is here, then behind what that brings."""
        wait_s = 2 * ROUND_TRIP_S + max(0.0, node.link.down_free_s - self._now)
        runs: list[Run] = []
        start = local
        for _ in range(PLANS_MAX):
            terms = [
                Terms(peer, depth, wait_s, self._block_s, _OWN_LINK, trusted=node.summaries.is_trusted(peer, self._now))
                for peer, depth in sorted(node.summaries.claims(keys, self._now, start).items())
                if depth > start
            ]
            more = plan(start=start, stop=len(keys), terms=terms, prefill_block_s=self._prefill_block_s)
            if not more.runs:
                break
            runs += more.runs
            start = more.stop
            while start < len(keys) and keys[start] in node.policy:
                start += 1
        if runs:  # what the last may have without announcing it; asking costs nothing more
            runs[-1] = replace(runs[-1], stop=max(runs[-1].stop, min(reach(runs[-1].stop), len(keys))))
        return runs

    def _granted(self, asked: _Asked, owner: int, wanted: list[BlockKey]) -> None:
        """Have a peer answer, and send what it has."""
        other, node = self._nodes[owner], asked.node
        if not other.runs:
            self.counted.wasted += len(wanted)
            self.later(self._now + self._config.fetch.answer_timeout_s, partial(self._answered, asked))
            return
        other.policy.on_time(self._now)
        found = [key for key in wanted if key in other.policy]
        absent = [key for key in wanted if key not in other.policy]
        other.pin(found)  # before anything goes for them
        room = self._make_room(node, len(found)) if node.runs else 0
        other.unpin(found[room:])
        found = found[:room]
        node.coming += len(found)
        asked.room += len(found)
        self.counted.wasted += len(wanted) - len(found)
        self.counted.absent += len(absent)
        other.policy.ask(wanted, len(wanted))
        self._use(other, found)
        done_s = self._now
        for key in found:
            done_s = other.link.move(node.link, self._block_bytes, self._now)
            self.later(done_s + ROUND_TRIP_S / 2, partial(asked.came.add, key))
        heard_s = self._now + ROUND_TRIP_S / 2
        self.later(heard_s, partial(self._heard, node, other.number, tuple(found), tuple(absent)))
        if found:
            self.later(done_s + ROUND_TRIP_S / 2, partial(other.unpin, found))
        self.later(max(heard_s, done_s + ROUND_TRIP_S / 2), partial(self._answered, asked))

    def _heard(self, node: ModelledNode, peer: int, found: Sequence[BlockKey], absent: Sequence[BlockKey]) -> None:
        self._send(node, node.summaries.on_answer(str(peer), found, absent, self._now))

    def _answered(self, asked: _Asked) -> None:
        asked.open -= 1
        if not asked.open:
            self._ready(asked)

    def _ready(self, asked: _Asked) -> None:
        """Have the engine begin with what it has."""
        request, node, keys = asked.request, asked.node, asked.request.blocks
        prefix = asked.local
        while prefix < len(keys) and (keys[prefix] in asked.came or keys[prefix] in node.policy):
            prefix += 1
        fetched = sum(key in asked.came for key in keys[asked.local : prefix])
        waited_s = self._now - request.at_s
        late = waited_s > fetched * self._prefill_block_s and prefix > asked.local
        counted = self.counted
        if not node.runs:
            counted.count(request, 0, self._block_tokens)
            counted.by_request.append((request.at_s, len(keys), 0))
            return
        useful = 0 if late else fetched
        hit = asked.local if late else prefix
        counted.wasted += len(asked.came) - useful
        counted.local_blocks += hit - useful
        counted.remote_blocks += useful
        counted.count(request, hit, self._block_tokens)
        counted.by_request.append((request.at_s, len(keys), hit))
        missing = max(0, request.input_tokens - prefix * self._block_tokens) if prefix < len(keys) else 0
        done_s = node.engine.compute(self._now, missing)
        counted.ttft_s.append(done_s - request.at_s)
        here = tuple(key for key in keys[asked.local : prefix] if key in node.policy and key not in asked.came)
        node.pin(here)
        asked.pinned += here
        self.later(done_s, partial(self._done, asked, prefix))

    def _done(self, asked: _Asked, prefix: int) -> None:
        """Store what was computed, and let go of the rest."""
        node, keys = asked.node, asked.request.blocks
        if not node.runs:
            return
        node.unpin(asked.pinned)
        node.coming -= asked.room
        node.policy.on_time(self._now)
        for depth in range(len(keys) - 1, -1, -1):
            key = keys[depth]
            if key in node.policy:
                if depth >= prefix:  # somebody else computed it meanwhile
                    node.policy.renew(key)
            elif depth >= prefix:
                if self._store(node, keys, depth):
                    node.forwarding.add(key)
            elif key in asked.came and node.heat.wants(key, self._now, node.idle_s(self._now)):
                self._store(node, keys, depth)

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _use(self, node: ModelledNode, keys: Sequence[BlockKey]) -> None:
        """Note a use of blocks where they are, the tail first, and have one more node take those that are hot."""
        idle_s = node.idle_s(self._now)
        for key in reversed(keys):
            node.policy.touch(key)
            node.forwarding.use(key)
            if self._gives and node.heat.spreads(key, self._now, idle_s):
                self._spread(node, key)

    def _spread(self, node: ModelledNode, key: BlockKey) -> None:
        _, _, anchor = self._places[key]
        first, count, holders = int(self._ring.owners(anchor, 1)[0]), len(self._nodes), self._holders[key]
        taker = next(
            (
                other
                for step in range(count)
                if (other := self._nodes[(first + step) % count]).runs and other.number not in holders
            ),
            None,
        )
        if taker is not None and node.may_give(self._now) and self._make_room(taker, 1):
            self.counted.replicated += 1
            self._give(node, taker, key, hops=None)

    def _store(self, node: ModelledNode, keys: Sequence[BlockKey], depth: int) -> bool:
        """Take a block in; say whether there was room."""
        key = keys[depth]
        if not self._make_room(node, 1):
            return False
        if key not in self._places:
            self._places[key] = (
                depth,
                keys[depth - 1] if depth else None,
                keys[depth // STRETCH_BLOCKS * STRETCH_BLOCKS],
            )
        self.counted.stored += 1
        self.counted.stored_twice += key in self._holders
        self._insert(node, key)
        return True

    def _insert(self, node: ModelledNode, key: BlockKey, *, used_s: float | None = None) -> None:
        depth, parent, _ = self._places[key]
        node.policy.insert(key, CLASS, parent, used_s=used_s)
        node.summaries.add(key, self._now, depth, parent or b"")
        self._holders.setdefault(key, []).append(node.number)

    def _make_room(self, node: ModelledNode, blocks: int) -> int:
        """Have blocks go until so many more fit; return how many do."""
        while node.used + blocks > node.capacity:
            key = node.next_to_go()
            if key is None:
                break
            self._evict(node, key)
        return max(0, min(blocks, node.capacity - node.used))

    def _evict(self, node: ModelledNode, key: BlockKey) -> None:
        """Drop a block, or give it to a node that would drop an older one first."""
        used_s = node.policy.used_s(key)
        by_age = node.policy.by_age(CLASS)
        node.policy.evict(key)
        node.summaries.remove(key, self._now)
        holders = self._holders[key]
        holders.remove(node.number)
        goes_on = self._gives and not holders and by_age and node.forwarding.may_go_on(key)
        hops = node.forwarding.remove(key)
        if not holders:
            del self._holders[key]
        if not goes_on or hops is None or not node.may_give(self._now):
            return
        idle_s = self._now - used_s
        names = candidates(self._ring.owners, self._places[key][2], str(node.number))
        others = [other for name in names if (other := self._nodes[int(name)]).runs]
        chosen = node.forwarding.choose(idle_s, [(str(other.number), other.idle_s(self._now)) for other in others])
        if chosen is None:
            return
        taker = self._nodes[int(chosen)]
        taker.policy.on_time(self._now)
        if self._make_room(taker, 1):
            node.leaving += 1
            self._give(node, taker, key, hops=hops + 1, used_s=used_s)

    def _give(
        self, node: ModelledNode, taker: ModelledNode, key: BlockKey, *, hops: int | None, used_s: float | None = None
    ) -> None:
        """Send a block that was not asked for; with `hops` it is the last copy, and not here any more."""
        node.given.spend(self._block_bytes)
        taker.coming += 1
        if hops is None:
            node.pin([key])
        done_s = node.link.move(taker.link, self._block_bytes, self._now) + ROUND_TRIP_S
        self.later(done_s, partial(self._given, node, taker, key, hops, used_s))

    def _given(
        self, node: ModelledNode, taker: ModelledNode, key: BlockKey, hops: int | None, used_s: float | None
    ) -> None:
        taker.coming -= 1
        if hops is None:
            node.unpin([key])
        else:
            node.leaving -= 1
        if not node.runs or not taker.runs or key in taker.policy or (hops is not None and key in self._holders):
            return  # it has been computed elsewhere meanwhile
        taker.policy.on_time(self._now)
        self._insert(taker, key, used_s=used_s)
        if hops is not None:
            taker.forwarding.add(key, hops)
            self.counted.forwarded += 1

    def _drop_idle(self) -> None:
        for node in self._nodes:
            node.policy.on_time(self._now)
            if node.policy.next_deadline() >= self._now:
                continue
            for key in node.policy.idle(node.pins.__contains__):
                node.policy.remove(key)
                node.forwarding.remove(key)
                node.summaries.remove(key, self._now)
                self._holders[key].remove(node.number)
                if not self._holders[key]:
                    del self._holders[key]

    # -- what nodes know of each other --------------------------------------------------------------------------------

    def _arm(self) -> None:
        """See to it that summaries are sent when they are due."""
        for node in self._nodes:
            due_s = node.summaries.next_deadline()
            if due_s < node.wakes_s and node.runs:
                node.wakes_s = max(due_s, self._now)
                self.later(node.wakes_s, partial(self._wake, node, node.wakes_s))

    def _wake(self, node: ModelledNode, at_s: float) -> None:
        if node.wakes_s == at_s and node.runs:
            node.wakes_s = float("inf")
            self._send(node, node.summaries.on_time(self._now))

    def _send(self, node: ModelledNode, effects: Sequence[SendStream]) -> None:
        for effect in effects:
            self.counted.summary_bytes += len(encode(effect.message))
            to = self._nodes[int(effect.address)]
            self.later(self._now + ROUND_TRIP_S / 2, partial(self._arrive, node, to, effect.message))

    def _arrive(self, sender: ModelledNode, node: ModelledNode, message: AnyMessage) -> None:
        if node.runs:
            address = str(sender.number)
            self._send(node, node.summaries.on_message(address, address, message, self._now))  # type: ignore[arg-type]  # nothing else is sent here

    def _lost(self, number: int) -> None:
        """Have everybody know of a node that ended."""
        left = [node for node in self._nodes if node.runs]
        self._ring = Ring({str(node.number): 1 for node in left})
        for node in left:
            self._send(node, node.summaries.on_member(_record(number, MemberState.DEAD), self._now))

    def _route(self, request: Recorded) -> int:
        """Return the node with the longest prefix of its own, unless it was asked for much more than others were."""
        load, keys = self.counted.load, request.blocks
        mean = (sum(load) + len(keys)) / len(load)
        best, most = 0, -2
        for node in self._nodes:
            if not node.runs:
                continue
            number = node.number
            prefix = node.prefix(keys) if load[number] <= _LOAD_FACTOR * mean + _LOAD_SPARE else -1
            if prefix > most or (prefix == most and load[number] < load[best]):
                best, most = number, prefix
        return best


def _record(number: int, state: MemberState) -> MemberRecord:
    name = str(number)
    return MemberRecord(id=name, boot=1, incarnation=0, state=int(state), name=name, address=name)
