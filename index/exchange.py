"""Who is sent what of this node's summary, and what is made of the others': a core like any other.

It joins three parts: the writer of our own filter, told what to announce (announce.py), with the publisher that sends
it (publish.py); the follower that reads those of others (follow.py); and the matcher that answers from them
(matcher.py, lookup.py). What may go wrong without
harm is in ALGORITHM.md.
"""

from collections.abc import Sequence
from typing import Final

from p2pkv.config import SummaryConfig
from p2pkv.effects import SendStream
from p2pkv.index.announce import Announcer
from p2pkv.index.bloom import BITS_LOG2_MAX, size_for
from p2pkv.index.follow import Follower
from p2pkv.index.lookup import lengths
from p2pkv.index.matcher import Matcher
from p2pkv.index.publish import Publisher
from p2pkv.index.statistics import SummaryStatistics
from p2pkv.index.subset import Subset
from p2pkv.index.summary import SummaryWriter
from p2pkv.transport.wire import MemberRecord, SummaryDelta, SummaryPage, SummaryRequest

FILTER_BYTES_MAX: Final = 4 * 2**30
DECLINE_PERIODS: Final = 10
"""How often a member is told again that its summary is not wanted, if it goes on sending."""
_USABLE: Final = (0, 1)
"""States of a member that may hold blocks: alive, suspect."""


class Summaries:
    """This node's summary and everybody else's. `add` and `remove` only note; what they cause, `on_time` sends.

    Bounds: one entry per usable member; filters within `filter_bytes_max`; waiting deltas as in peer_summary.py.
    """

    def __init__(
        self,
        *,
        node_id: str,
        epoch: int,
        config: SummaryConfig,
        blocks_expected: int,
        bits_log2_max: int = BITS_LOG2_MAX,
        filter_bytes_max: int = FILTER_BYTES_MAX,
        zone: str = "",
        host_id: str = "",
    ) -> None:
        """Start with an empty summary.

        Args:
            node_id: who we are, to leave ourselves out.
            epoch: names this life of the process; greater than that of any life before, as a boot number is.
            config: periods and ratios. Its `blocks_expected` wins over the argument unless it is 0.
            blocks_expected: how many blocks the tiers can hold.
            bits_log2_max: the largest filter taken from one peer.
            filter_bytes_max: for all of them, at the sizes they have when sent; a snapshot that would exceed it is
                not taken. What they take in memory is in slab.py.
            zone: this node's; members of it are preferred where there is not room for all summaries.
            host_id: the same for its host.
        """
        self._node_id = node_id
        size = size_for(config.blocks_expected or blocks_expected, config.false_positive_ratio)
        self._writer = SummaryWriter(epoch, *size)
        self._announcer = Announcer(self._writer.add, self._writer.remove)
        self._matcher = Matcher()
        self._publisher = Publisher(self._writer, period_s=config.period_s)
        self._follower = Follower(
            self._matcher, period_s=config.period_s, bits_log2_max=bits_log2_max, filter_bytes_max=filter_bytes_max
        )
        self._members: dict[str, tuple[int, str]] = {}  # usable ones: boot, address
        self._subset = Subset(node_id, config.peers_max, zone=zone, host_id=host_id)
        self._decline_s = DECLINE_PERIODS * config.period_s
        self._declined: dict[str, float] = {}
        """When each member was last told that its summary is not wanted."""
        self._from_strangers = 0

    def __repr__(self) -> str:
        return f"<Summaries of {self._node_id}: {self._writer!r}, {len(self._members)} peers>"

    def add(self, key: bytes, now: float, depth: int | None = None, parent: bytes = b"") -> None:
        """Note that a block is held; peers hear of it from the next `on_time` that is due.

        Args:
            key: of the block.
            now: on the scale of `on_time`, seconds.
            depth: how many blocks are before it in its chain. If that is known, the block is announced only where
                announce.py says; peers find it as part of its chain, and not by its key alone.
            parent: the key before it, if it is known.
        """
        self._announcer.add(key, depth, parent)
        self._publisher.changed(now)

    def remove(self, key: bytes, now: float) -> None:
        """Note that a block that was added is held no longer."""
        self._announcer.remove(key)
        self._publisher.changed(now)

    def longest(self, keys: Sequence[bytes]) -> dict[str, int]:
        """Return for each peer that seems to hold a prefix of `keys` its length in blocks. A guess, not a promise.

        `keys` begin at the root of their chain. Lengths below the greatest few are rounded down to an announced depth;
        see lookup.py.
        """
        return lengths(self._matcher, keys)

    def holders(self, key: bytes) -> tuple[str, ...]:
        """Return the peers that seem to hold `key`, of those that announce it: not every depth of a chain is."""
        return self._matcher.holders(key)

    def on_member(self, record: MemberRecord, now: float) -> tuple[SendStream, ...]:
        """Take what membership believes of a member now: a usable one gets our filter, another is forgotten."""
        known = self._members.get(record.id)
        if record.id == self._node_id or (known is not None and record.boot < known[0]):
            return ()
        if record.state not in _USABLE:
            self._forget(record.id, now)
            return ()
        declines: tuple[SendStream, ...] = ()
        if known is None or record.boot > known[0]:
            self._forget(record.id, now)
            self._members[record.id] = (record.boot, record.address)
            self._publisher.welcome(record.id, record.address, now)
            declines = self._admit(record, now)
        elif record.address != known[1]:  # what was sent to the old address may be lost
            self._members[record.id] = (record.boot, record.address)
            if record.id in self._subset:
                self._follower.move(record.id, record.address)
            self._publisher.welcome(record.id, record.address, now)
        return (*declines, *self.on_time(now))

    def on_message(
        self,
        sender: str,
        sender_address: str,  # noqa: ARG002 - every core is given it; here the member's record says where to answer
        message: SummaryPage | SummaryDelta | SummaryRequest,
        now: float,
    ) -> tuple[SendStream, ...]:
        """Take a message; one from a node that is no usable member is ignored, and asked for later if it matters."""
        if sender not in self._members:
            self._from_strangers += 1
            return ()
        self._publisher.heard(sender)
        if not isinstance(message, SummaryRequest) and sender not in self._subset:
            return self._decline(sender, now)
        match message:
            case SummaryRequest(wanted=False):
                self._publisher.on_declined(sender)
            case SummaryRequest():
                self._publisher.on_request(sender, now)
            case SummaryPage():
                self._follower.on_page(sender, message, now)
            case SummaryDelta():
                self._follower.on_delta(sender, message, now)
        return self.on_time(now)

    def on_link_lost(self, address: str, now: float) -> tuple[SendStream, ...]:
        """Take that messages to `address` may be lost: whoever is there gets a snapshot after a pause."""
        self._publisher.on_link_lost(address, now)
        return self.on_time(now)

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never; recompute after every call of anything."""
        return min(self._publisher.next_deadline(), self._follower.next_deadline())

    def on_time(self, now: float) -> tuple[SendStream, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        return (*self._publisher.on_time(now), *self._follower.on_time(now))

    def blind(self) -> int:
        """Return how many members there are whose summary is missing, known to be behind, or not kept."""
        followed = min(len(self._members), self._subset.size)
        return len(self._members) - followed + self._follower.unsettled()

    def _admit(self, record: MemberRecord, now: float) -> tuple[SendStream, ...]:
        """Follow a new member if it is among those there is room for; return what to say to whom there is not."""
        pushed_out = self._subset.add(record)
        if record.id in self._subset:
            self._follower.welcome(record.id, record.address, now)
        else:
            pushed_out = record.id
        if pushed_out is None:
            return ()
        self._follower.forget(pushed_out)
        return self._decline(pushed_out, now)

    def _decline(self, peer: str, now: float) -> tuple[SendStream, ...]:
        if now < self._declined.get(peer, -float("inf")) + self._decline_s:
            return ()
        self._declined[peer] = now
        return (SendStream(self._members[peer][1], SummaryRequest(wanted=False)),)

    def _forget(self, peer: str, now: float) -> None:
        self._members.pop(peer, None)
        self._declined.pop(peer, None)
        self._publisher.forget(peer)
        self._follower.forget(peer)
        has_room = self._subset.remove(peer)
        if has_room is not None:
            self._declined.pop(has_room, None)
            self._follower.welcome(has_room, self._members[has_room][1], now)

    def statistics(self) -> SummaryStatistics:
        """Return what happened so far and what is held. Counts the bits of our filter: not for every message."""
        writer, publisher, follower, counts = self._writer, self._publisher, self._follower, self._follower.counts
        fill_ratio = writer.sealed.fill_ratio()
        return SummaryStatistics(
            epoch=writer.epoch,
            seq=writer.seq,
            bits_log2=writer.bits_log2,
            hashes=writer.hashes,
            fill_ratio=fill_ratio,
            false_positive_ratio=fill_ratio**writer.hashes,
            peers=len(self._members),
            peers_with_filter=len(self._matcher.peers()),
            peers_unsettled=follower.unsettled(),
            filter_bytes=self._matcher.filter_bytes(),
            deltas_sent=publisher.deltas_sent,
            snapshots_sent=publisher.snapshots_sent,
            requests_sent=follower.requests_sent,
            requests_ignored=publisher.requests_ignored,
            from_strangers=self._from_strangers,
            over_budget=follower.over_budget,
            saturated=writer.saturated,
            removals_refused=writer.refused,
            malformed=counts.malformed,
            repeated=counts.repeated,
            gaps=counts.gaps,
            too_big=counts.too_big,
            assembled=counts.assembled,
        )
