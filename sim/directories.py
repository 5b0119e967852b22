"""What the directory costs: bytes per node while blocks come and go, messages per lookup, and what a change moves.

The cores are the nodes' own and every message is really encoded; messages take no time. All nodes share one ring, as they
would once they agree on the members.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from p2pkv.config import DirectoryConfig
from p2pkv.effects import SendStream
from p2pkv.index.anchors import STRETCH_BLOCKS, anchors
from p2pkv.index.directory import Directory, DirectoryEffect
from p2pkv.index.inquiry import Heard, lengths
from p2pkv.mesh.chance import pick
from p2pkv.mesh.ring import Ring
from p2pkv.transport.framing import LENGTH_BYTES
from p2pkv.transport.wire import (
    DirectoryAnswer,
    DirectoryAsk,
    DirectoryPut,
    DirectoryResend,
    MemberRecord,
    decode_untrusted,
    encode,
)

_TICK_S: Final = 0.1
_OFFERED_BYTES: Final = 2**34
_USABLE, _DEAD = 0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryOptions:
    """How many nodes hold how much, and how fast that changes."""

    nodes: int = 100
    blocks_s: int = 100
    """Blocks that each node adds per second; it evicts as many."""
    chain_blocks: int = 64
    """Mean length of a chain; lengths are uniform up to twice that."""
    stock: int = 20
    """Chains that each node holds."""
    seconds: float = 20.0
    lookups: int = 500
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryResult:
    """What was measured. Bytes are those of frames, what TCP and IP add is not in them."""

    change_bytes_s: float
    """Sent per node and second while blocks come and go; as much is received."""
    rest_bytes_s: float
    """The same while nothing changes: renewals of leases."""
    rest_bytes_s_max: float
    """What renewals would be if every node had a record at every other, however many it has."""
    messages_s: float
    """Sent per node and second while blocks come and go."""
    asks_per_lookup: float
    """Owners asked about a chain, all at once: one round trip."""
    lookup_bytes: float
    """Question and answer together, per lookup."""
    exact_ratio: float
    """Lookups at rest that named exactly who holds the chain, and how much of it."""
    stale_ratio: float
    """Claims, while blocks come and go, of more than the holder had just then."""
    missed_ratio: float
    """Lookups, while blocks come and go, that did not name the holder of a chain that was there for a period."""
    join_bytes: float
    """Sent by all nodes together because one joined, over what half a lease at rest takes."""
    crash_bytes: float
    """The same because one crashed."""
    kept_max_over_mean: float
    """Records that the fullest node keeps, over the mean."""


@dataclass(slots=True)
class _Holder:
    directory: Directory
    chains: deque[list[bytes]] = field(default_factory=deque)
    adding: list[bytes] = field(default_factory=list)
    """A chain of which only some blocks are there yet."""
    added: int = 0


class _Mesh:
    def __init__(self, options: DirectoryOptions) -> None:
        self.now = 0.0
        self.options = options
        self.config = DirectoryConfig()
        self.random = Random(options.seed)
        self.sent_bytes = 0
        self.sent = 0
        self.renewal_bytes = 0
        self.renewals = 0
        self.heard: dict[tuple[str, int], Heard] = {}
        self.holders: dict[str, _Holder] = {}
        self.ring = Ring({})
        for number in range(options.nodes):
            self._admit(_id(number))
        for name in self.holders:
            self._introduce(name)
        self.turn()

    def turn(self) -> None:
        """Give everybody the ring of now."""
        before, self.ring = self.ring, Ring(dict.fromkeys(self.holders, _OFFERED_BYTES))
        changed = self.ring.changed_slots(before) if before.members else None
        for holder in self.holders.values():
            holder.directory.on_table(self.ring, changed, self.now)

    def join(self, name: str) -> None:
        self._admit(name)
        for other in self.holders:
            if other != name:
                self.carry(other, self.holders[other].directory.on_member(_record(name)))
        self._introduce(name)
        self.turn()

    def crash(self, name: str) -> None:
        del self.holders[name]
        for other, holder in self.holders.items():
            self.carry(other, holder.directory.on_member(_record(name, _DEAD)))
        self.turn()

    def run(self, seconds: float, blocks_s: float = 0.0) -> None:
        """Let time pass, every node adding and evicting `blocks_s`."""
        for _ in range(round(seconds / _TICK_S)):
            self.now += _TICK_S
            for name, holder in self.holders.items():
                if blocks_s:
                    self._churn(holder, round(blocks_s * _TICK_S))
                if self.now >= holder.directory.next_deadline():
                    self.carry(name, holder.directory.on_time(self.now))

    def carry(self, name: str, effects: Sequence[DirectoryEffect]) -> None:
        """Deliver what a node sends, and what comes of it."""
        waiting = deque((name, effect) for effect in effects)
        while waiting:
            sender, effect = waiting.popleft()
            if isinstance(effect, Heard):
                self.heard[sender, effect.question] = effect
                continue
            holder = self.holders.get(effect.address)
            if holder is None:
                continue
            for one in holder.directory.on_message(sender, self._delivered(sender, effect), self.now):
                waiting.append((effect.address, one))

    def lookup(self, asker: str, chain: Sequence[bytes]) -> Heard:
        """Ask for a chain; the answers are there at once."""
        number, effects = self.holders[asker].directory.ask(anchors(chain), self.now + 1.0, self.now)
        assert number is not None
        self.carry(asker, effects)
        return self.heard.pop((asker, number))

    def _delivered(
        self, sender: str, effect: SendStream
    ) -> DirectoryPut | DirectoryResend | DirectoryAsk | DirectoryAnswer:
        data = encode(effect.message)
        self.sent += 1
        self.sent_bytes += len(data) + LENGTH_BYTES
        message = decode_untrusted(data, peer=sender)
        assert isinstance(message, DirectoryPut | DirectoryResend | DirectoryAsk | DirectoryAnswer)
        if isinstance(message, DirectoryPut) and not message.blocks:
            self.renewals += 1
            self.renewal_bytes += len(data) + LENGTH_BYTES
        return message

    def _admit(self, name: str) -> None:
        holder = self.holders[name] = _Holder(Directory(node_id=name, boot=1, config=self.config))
        for _ in range(self.options.stock):
            chain = self._chain()
            holder.chains.append(chain)
            for depth in range(len(chain)):
                self._add(holder, chain, depth)

    def _introduce(self, name: str) -> None:
        for other in self.holders:
            self.carry(name, self.holders[name].directory.on_member(_record(other)))

    def _chain(self) -> list[bytes]:
        return [self.random.randbytes(32) for _ in range(self.random.randint(1, 2 * self.options.chain_blocks - 1))]

    def _add(self, holder: _Holder, chain: list[bytes], depth: int) -> None:
        holder.directory.add(chain[depth], self.now, depth, chain[depth - 1] if depth else b"")

    def _churn(self, holder: _Holder, blocks: int) -> None:
        """Add blocks behind one another, and evict the tails of the oldest chains."""
        for _ in range(blocks):
            if holder.added == len(holder.adding):
                if holder.adding:
                    holder.chains.append(holder.adding)
                holder.adding, holder.added = self._chain(), 0
            self._add(holder, holder.adding, holder.added)
            holder.added += 1
            holder.directory.remove(holder.chains[0].pop(), self.now)
            if not holder.chains[0]:
                holder.chains.popleft()


def run_directories(options: DirectoryOptions) -> DirectoryResult:
    """Measure; half a minute for 100 nodes, some minutes for 1,000."""
    mesh = _Mesh(options)
    lease_s, nodes = mesh.config.lease_s, options.nodes
    mesh.run(lease_s / 3 + 5.0)  # everything is told, and compared once
    exact, asks, lookup_bytes = _exact(mesh)
    sent, renewals = mesh.sent_bytes, mesh.renewals
    mesh.run(lease_s / 3)
    rest = (mesh.sent_bytes - sent) / (nodes * lease_s / 3)
    assert mesh.renewals > renewals
    renewal_bytes = mesh.renewal_bytes / mesh.renewals
    mesh.run(2 * mesh.config.period_s, options.blocks_s)
    sent, count = mesh.sent_bytes, mesh.sent
    mesh.run(options.seconds, options.blocks_s)
    change = (mesh.sent_bytes - sent) / (nodes * options.seconds)
    messages = (mesh.sent - count) / (nodes * options.seconds)
    stale, missed = _stale(mesh)
    mesh.run(lease_s / 2)
    kept = [holder.directory.statistics().kept for holder in mesh.holders.values()]
    moved = []
    for change_of in (mesh.join, mesh.crash):
        sent = mesh.sent_bytes
        change_of("newcomer" if change_of == mesh.join else _id(nodes // 2))
        mesh.run(lease_s / 3)
        moved.append(mesh.sent_bytes - sent - rest * nodes * lease_s / 3)
    return DirectoryResult(
        change_bytes_s=change,
        rest_bytes_s=rest,
        rest_bytes_s_max=renewal_bytes * (nodes - 1) * 3 / lease_s,
        messages_s=messages,
        asks_per_lookup=asks,
        lookup_bytes=lookup_bytes,
        exact_ratio=exact,
        stale_ratio=stale,
        missed_ratio=missed,
        join_bytes=moved[0],
        crash_bytes=moved[1],
        kept_max_over_mean=max(kept) / (sum(kept) / len(kept)),
    )


def _exact(mesh: _Mesh) -> tuple[float, float, float]:
    """Return how often lookups were right at rest, how many owners they asked and what they took."""
    names, exact, asks, sent = list(mesh.holders), 0, 0, mesh.sent_bytes
    for _ in range(mesh.options.lookups):
        asker, name = pick(names, mesh.random), pick(names, mesh.random)
        chain = pick(mesh.holders[name].chains, mesh.random)
        heard = mesh.lookup(asker, chain)
        asks += len(heard.asked)
        exact += lengths(heard.claims) == ({name: len(chain)} if name != asker else {})
    return exact / mesh.options.lookups, asks / mesh.options.lookups, (mesh.sent_bytes - sent) / mesh.options.lookups


def _stale(mesh: _Mesh) -> tuple[float, float]:
    """Return how often claims were too great, and chains not found, while blocks come and go."""
    names, stale, claimed, missed, asked = list(mesh.holders), 0, 0, 0, 0
    young = 2 + round(mesh.config.period_s * mesh.options.blocks_s / mesh.options.chain_blocks)
    for number in range(mesh.options.lookups):
        if number % 20 == 0:
            mesh.run(_TICK_S, mesh.options.blocks_s)
        asker, name = pick(names, mesh.random), pick(names, mesh.random)
        if asker == name:
            continue
        chain = pick(list(mesh.holders[name].chains)[:-young], mesh.random)
        more = [mesh.random.randbytes(32) for _ in range(STRETCH_BLOCKS)]
        found = lengths(mesh.lookup(asker, [*chain, *more]).claims)
        asked += 1
        missed += name not in found
        claimed += len(found)
        stale += sum(length > len(chain) for length in found.values())
    return stale / max(1, claimed), missed / max(1, asked)


def _id(number: int) -> str:
    return f"{number:016x}"


def _record(name: str, state: int = _USABLE) -> MemberRecord:
    return MemberRecord(name, 1, 0, state, name, name, offered_bytes=_OFFERED_BYTES)
