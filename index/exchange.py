"""Who is sent what of this node's summary, and what is made of the others': a core like any other.

It joins four parts: the writer of our own filter, told what to announce (announce.py), with the publisher that sends
it (publish.py); the follower that reads those of others (follow.py); the matcher that answers from them (matcher.py,
lookup.py); and what peers' own answers say of their claims (absent.py, trust.py). What may go wrong without harm is in
ALGORITHM.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Final

from p2pkv.config import SummaryConfig
from p2pkv.effects import SendStream
from p2pkv.index.absent import AbsentBlocks
from p2pkv.index.announce import Announcer
from p2pkv.index.bloom import BITS_LOG2_MAX, size_for
from p2pkv.index.follow import Follower
from p2pkv.index.lookup import lengths
from p2pkv.index.matcher import Matcher
from p2pkv.index.publish import Publisher
from p2pkv.index.sizing import fitting_size
from p2pkv.index.statistics import SummaryStatistics
from p2pkv.index.subset import Subset
from p2pkv.index.summary import SummaryWriter
from p2pkv.index.trust import Trust
from p2pkv.index.versions import read_versions, short_id, versions_message
from p2pkv.transport.wire import (
    VERSIONS_PER_MESSAGE_MAX,
    MemberRecord,
    SummaryDelta,
    SummaryPage,
    SummaryRequest,
    SummaryVersions,
)

ABSENT_PERIODS: Final = 5
"""How long a peer's word that it lacks a block is remembered, in periods. Its next delta says so as well, after one or
two; longer than a few would hide a block that it gets again."""
VERSIONS_PERIODS: Final = 5
"""How far apart, in periods, members are told which versions are held here. Whoever joins a large mesh compares lists
every second at first, and twelve bytes a member each time would be most of what it sends; gaps can wait."""
DECLINE_PERIODS: Final = 10
"""How often a member is told again that its summary is not wanted, if it goes on sending."""
_USABLE: Final = (0, 1)
"""States of a member that may hold blocks: alive, suspect."""


class Summaries:
    """This node's summary and everybody else's. `add` and `remove` only note; what they cause, `on_time` sends.

    Bounds: one entry per usable member; filters within `config.filter_bytes_max`; waiting deltas as in peer_summary.py;
    answers as in absent.py.
    """

    def __init__(
        self,
        *,
        node_id: str,
        epoch: int,
        config: SummaryConfig,
        blocks_expected: int,
        bits_log2_max: int = BITS_LOG2_MAX,
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
            zone: this node's; members of it are preferred where there is not room for all summaries.
            host_id: the same for its host.
        """
        self._node_id = node_id
        self._floor_keys = config.blocks_expected or blocks_expected
        self._ratio = config.false_positive_ratio
        self._writer = SummaryWriter(epoch, *size_for(self._floor_keys, self._ratio))
        self._announcer = Announcer(self._writer.add, self._writer.remove)
        self._matcher = Matcher()
        self._publisher = Publisher(
            self._writer,
            period_s=config.period_s,
            budget_bytes_s=config.budget_bytes_s,
            snapshot_bytes_s=config.snapshot_bytes_s,
            refit=self._refit,
        )
        self._follower = Follower(
            self._matcher,
            period_s=config.period_s,
            bits_log2_max=bits_log2_max,
            filter_bytes_max=config.filter_bytes_max,
        )
        self._absent = AbsentBlocks(keep_s=ABSENT_PERIODS * config.period_s)
        self._trust = Trust()
        self._members: dict[str, tuple[int, str]] = {}  # usable ones: boot, address
        self._short_ids: dict[int, str] = {}
        self._versions_told = 0
        self._versions_at = -inf
        self._versions_rest_s = VERSIONS_PERIODS * config.period_s
        self._versions: tuple[tuple[int, int], SummaryVersions] | None = None
        """What was last told of the versions held, and what of: see `_held_versions`."""
        self._resized = 0
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

    def place(self, key: bytes) -> tuple[int | None, bytes]:
        """Return depth and parent of a held block; None and b"" where they are not known."""
        return self._announcer.place(key)

    def remove(self, key: bytes, now: float) -> None:
        """Note that a block that was added is held no longer."""
        self._announcer.remove(key)
        self._publisher.changed(now)

    def announced(self) -> Iterator[bytes]:
        """Yield the keys in our filter, as often as they are; O(keys held)."""
        return self._announcer.keys()

    def longest(self, keys: Sequence[bytes], base: int = 0) -> dict[str, int]:
        """Return for each peer that seems to hold a prefix of `keys` its length in blocks. A guess, not a promise.

        With `base`, for each that seems to hold what comes behind the first `base` blocks.

        `keys` begin at the root of their chain. Lengths below the greatest few are rounded down to an announced depth;
        see lookup.py.
        """
        return lengths(self._matcher, keys, base)

    def claims(self, keys: Sequence[bytes], now: float, base: int = 0) -> dict[str, int]:
        """Return `longest`, without what peers have said lately that they do not have."""
        return self.without_absent(self.longest(keys, base), keys, now, base)

    def without_absent(
        self, claims: Mapping[str, int], keys: Sequence[bytes], now: float, base: int = 0
    ) -> dict[str, int]:
        """Return others' claims of how much of a chain peers hold, without what those have said lately they lack.

        With `base` the claims are of what comes behind the first `base` blocks.
        """
        if base:
            behind = {peer: length - base for peer, length in claims.items()}
            return {
                peer: base + length
                for peer, length in self._absent.capped(behind, keys[base:], now).items()
                if length > 0
            }
        capped = self._absent.capped(claims, keys, now)
        return {peer: length for peer, length in capped.items() if length} if capped != claims else capped

    def is_trusted(self, peer: str, now: float) -> bool:
        """Say whether most of what a peer's summary claimed lately was there. Others are asked before one that is not."""
        return self._trust.is_trusted(peer, now)

    def on_answer(
        self, peer: str, confirmed: Sequence[bytes], contradicted: Sequence[bytes], now: float
    ) -> tuple[SendStream, ...]:
        """Take what a peer said of blocks that its summary claims: that it has them, or that it does not, chain order.

        A summary that is mostly contradicted is asked for anew, once each time it becomes so.
        """
        if peer not in self._members:
            return ()
        for key in confirmed:
            self._absent.has(key, peer)
        if contradicted:
            self._absent.note(contradicted[0], peer, now)
        if self._trust.note(peer, confirmed=len(confirmed), contradicted=len(contradicted), now=now):
            self._follower.doubt(peer, now)
        return self.on_time(now)

    def versions_for(self, address: str, now: float) -> tuple[SendStream, ...]:
        """Return the message that tells the member at `address` which versions are held here.

        None for a stranger, and none while somebody has just been told.
        """
        if now < self._versions_at or not any(known == address for _, known in self._members.values()):
            return ()
        self._versions_at = now + self._versions_rest_s
        return (SendStream(address, self._held_versions()),)

    def _held_versions(self) -> SummaryVersions:
        """Return the versions held here as they are told; the same object again while they are the same."""
        state = (self._follower.changes, self._writer.seq)
        if self._versions is None or self._versions[0] != state or len(self._members) >= VERSIONS_PER_MESSAGE_MAX:
            held = {self._node_id: (self._writer.epoch, self._writer.seq), **self._follower.versions()}
            self._versions = state, versions_message(held, self._versions_told)
            self._versions_told += len(held) // 2 + 1
        return self._versions[1]

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
            return self.on_time(now)
        declines: tuple[SendStream, ...] = ()
        if known is None or record.boot > known[0]:
            self._forget(record.id, now)
            self._members[record.id] = (record.boot, record.address)
            self._short_ids[short_id(record.id)] = record.id
            self._publisher.welcome(record.id, record.address, now)
            declines = self._admit(record, now)
        elif record.address != known[1]:  # what was sent to the old address may be lost
            self._members[record.id] = (record.boot, record.address)
            if record.id in self._subset:
                self._follower.move(record.id, record.address)
            self._publisher.welcome(record.id, record.address, now)
        return (*declines, *self._due(now))

    def on_message(
        self,
        sender: str,
        sender_address: str,  # noqa: ARG002 - every core is given it; here the member's record says where to answer
        message: SummaryPage | SummaryDelta | SummaryRequest | SummaryVersions,
        now: float,
    ) -> tuple[SendStream, ...]:
        """Take a message; one from a node that is no usable member is ignored, and asked for later if it matters."""
        if sender not in self._members:
            self._from_strangers += 1
            return ()
        self._publisher.heard(sender)
        if isinstance(message, SummaryPage | SummaryDelta) and sender not in self._subset:
            return self._decline(sender, now)
        match message:
            case SummaryRequest(wanted=False):
                self._publisher.on_declined(sender)
            case SummaryRequest(bits_log2_max=bits_log2_max):
                self._publisher.on_request(sender, bits_log2_max, now)
            case SummaryVersions():
                if message != self._held_versions():  # at rest both sides hold the same of everybody
                    self._follower.hear_of(read_versions(message, self._short_ids.get), now)
            case SummaryPage():
                self._follower.on_page(sender, message, now)
            case SummaryDelta():
                self._follower.on_delta(sender, message, now)
        return self._due(now)

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

    def _due(self, now: float) -> tuple[SendStream, ...]:
        return self.on_time(now) if now >= self.next_deadline() else ()

    def _refit(self) -> bool:
        """Give our filter the size that its keys need; say whether it is another one now."""
        writer = self._writer
        size = (writer.bits_log2, writer.hashes)
        wanted = fitting_size(self._announcer.said, size, floor_keys=self._floor_keys, ratio=self._ratio)
        if wanted == size:
            return False
        writer.rebuild(*wanted, list(self._announcer.keys()))
        self._resized += 1
        return True

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
        self._follower.forget(pushed_out, now)
        return self._decline(pushed_out, now)

    def _decline(self, peer: str, now: float) -> tuple[SendStream, ...]:
        if now < self._declined.get(peer, -float("inf")) + self._decline_s:
            return ()
        self._declined[peer] = now
        return (SendStream(self._members[peer][1], SummaryRequest(wanted=False)),)

    def _forget(self, peer: str, now: float) -> None:
        self._members.pop(peer, None)
        self._short_ids.pop(short_id(peer), None)
        self._declined.pop(peer, None)
        self._publisher.forget(peer)
        self._follower.forget(peer, now)
        self._trust.forget(peer)
        has_room = self._subset.remove(peer)
        if has_room is not None:
            self._declined.pop(has_room, None)
            self._follower.welcome(has_room, self._members[has_room][1], now)

    def statistics(self, now: float | None = None) -> SummaryStatistics:
        """Return what happened so far and what is held. Counts the bits of our filter: not for every message.

        Without `now`, nobody is counted as distrusted.
        """
        writer, publisher, follower, counts = self._writer, self._publisher, self._follower, self._follower.counts
        fill_ratio = writer.sealed.fill_ratio()
        return SummaryStatistics(
            epoch=writer.epoch,
            seq=writer.seq,
            bits_log2=writer.bits_log2,
            hashes=writer.hashes,
            keys_announced=self._announcer.said,
            resized=self._resized,
            fill_ratio=fill_ratio,
            false_positive_ratio=fill_ratio**writer.hashes,
            peers=len(self._members),
            peers_with_filter=len(self._matcher.peers()),
            peers_unsettled=follower.unsettled(),
            peers_folded=follower.folded(),
            peers_distrusted=len(self._trust.distrusted(now)) if now is not None else 0,
            peers_false_positive_ratio=self._matcher.false_positive_ratio(),
            filter_bytes=self._matcher.filter_bytes(),
            deltas_sent=publisher.deltas_sent,
            delta_bytes_sent=publisher.delta_bytes_sent,
            snapshots_sent=publisher.snapshots_sent,
            snapshot_bytes_sent=publisher.snapshot_bytes_sent,
            deferred=publisher.deferred,
            requests_sent=follower.requests_sent,
            requests_ignored=publisher.requests_ignored,
            from_strangers=self._from_strangers,
            over_budget=follower.over_budget,
            folded=counts.folded,
            saturated=writer.saturated,
            removals_refused=writer.refused + self._announcer.refused,
            malformed=counts.malformed,
            repeated=counts.repeated,
            gaps=counts.gaps,
            too_big=counts.too_big,
            assembled=counts.assembled,
            absences_known=len(self._absent),
            absences_dropped=self._absent.dropped,
        )
