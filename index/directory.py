"""The directory that lives on the ring: exact records of who holds what, at the owners of each stretch's anchor.

A core like any other. It joins what this node holds (anchors.py), what it tells the owners of that (registrar.py), what it
keeps as an owner itself (records.py), and what it asks others (inquiry.py). What may go wrong without harm is in
ALGORITHM.md; what it costs beside summaries is in decision 21.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, TypeAlias

from p2pkv.config import DirectoryConfig
from p2pkv.effects import SendStream
from p2pkv.index.allowance import Allowance
from p2pkv.index.anchors import Anchors
from p2pkv.index.inquiry import Heard, Inquiries
from p2pkv.index.records import OwnerTable, Record, Records, blocks_of, tier_of
from p2pkv.index.registrar import Registrar
from p2pkv.transport.wire import (
    ANCHOR_BYTES,
    ANCHORS_PER_ASK_MAX,
    ANCHORS_PER_PUT_MAX,
    DirectoryAnswer,
    DirectoryAsk,
    DirectoryPut,
    DirectoryResend,
    MemberRecord,
)

ANSWER_BYTES_S_MAX: Final = 2.0**20
"""Answers of one node, bytes per second; a question beyond it is not answered, and counted."""
FRAME_BYTES: Final = 64
"""What a message takes besides its records, about: its other fields and the frame."""
GATHER_S_MAX: Final = 0.05
"""As for summaries: the blocks of one prompt are committed one after another."""
BACKOFF_LOG2_MAX: Final = 10
"""An owner that asked for all again, in vain because of its bounds, waits up to this power of two of periods."""
_USABLE: Final = (0, 1)
_MS_MAX: Final = 2**31 - 1

DirectoryMessage: TypeAlias = DirectoryPut | DirectoryResend | DirectoryAsk | DirectoryAnswer
DirectoryEffect: TypeAlias = SendStream | Heard


@dataclass(frozen=True, slots=True)
class DirectoryStatistics:
    """What happened so far and what is kept."""

    anchors: int
    """Stretches of which this node holds something."""
    told: int
    """Records that owners have from this node."""
    kept: int
    """Records of others, and of this node itself, that it keeps as an owner."""
    records_sent: int
    renewals_sent: int
    resends: int
    resends_asked: int
    handed_over: int
    refused: int
    """Records turned away because `directory.records_max` or `directory.records_per_peer_max` was reached."""
    expired: int
    asked: int
    timeouts: int
    questions_refused: int
    answered: int
    answers_shed: int
    over_budget: int
    """Times that something waited for `directory.bytes_per_s`."""
    malformed: int
    from_strangers: int


class Directory:
    """This node's part of the directory. `add` and `remove` only note; what they cause, `on_time` sends."""

    def __init__(self, *, node_id: str, boot: int, config: DirectoryConfig) -> None:
        """Begin with nothing held and no ring."""
        self._me = node_id
        self._boot = boot
        self._config = config
        self._r = config.owners
        self._anchors = Anchors()
        self._registrar = Registrar(
            self._anchors, me=node_id, boot=boot, owners=config.owners, lease_s=config.lease_s, period_s=config.period_s
        )
        self._records = Records(
            lease_s=config.lease_s, records_max=config.records_max, per_peer_max=config.records_per_peer_max
        )
        self._inquiries = Inquiries()
        self._budget = Allowance(config.bytes_per_s)
        self._answer_budget = Allowance(ANSWER_BYTES_S_MAX)
        self._table: OwnerTable | None = None
        self._members: dict[str, tuple[int, str]] = {}
        self._forgotten: dict[str, int] = {}
        """Boot of members whose records were dropped because they seemed dead; as many as membership lists."""
        self._handovers: dict[tuple[str, str], dict[bytes, Record]] = {}
        self._asked_again: dict[str, tuple[float, int]] = {}
        """When each holder was last asked to send all again, and how often without effect."""
        self._flush_at = float("inf")
        self._flushed_at = -float("inf")
        self._resends_asked = self._answered = self._answers_shed = self._over_budget = self._from_strangers = 0

    # -- what this node holds -----------------------------------------------------------------------------------

    def add(self, key: bytes, now: float, depth: int | None = None, parent: bytes = b"") -> None:
        """Note that a block is held, `depth` blocks behind the root of its chain and right behind `parent`."""
        if self._r:
            self._anchors.add(key, depth, parent)
            self._plan_flush(now)

    def remove(self, key: bytes, now: float) -> None:
        """Note that a block is held no longer."""
        self._anchors.remove(key)
        self._plan_flush(now)

    def place(self, key: bytes) -> tuple[bytes, int] | None:
        """Return the anchor of the stretch that a held key is in, and its place there; None if it is not known."""
        return self._anchors.place(key)

    # -- what it wants to know ----------------------------------------------------------------------------------

    def ask(self, anchors: Sequence[bytes], until: float, now: float) -> tuple[int | None, tuple[DirectoryEffect, ...]]:
        """Ask the owners of `anchors` who holds them; beyond ANCHORS_PER_ASK_MAX the rest is not asked for.

        `Heard` with the returned number says what came, at the latest at the first `on_time` from `until` on. The
        number is None if there is nobody to ask.
        """
        if self._table is None or not self._r:
            return None, ()
        places: dict[str, list[int]] = {}
        for place, anchor in enumerate(anchors[:ANCHORS_PER_ASK_MAX]):
            for owner in self._table.owners_of(self._table.slot(anchor), self._r):
                if owner == self._me or owner in self._members:
                    places.setdefault(owner, []).append(place)
        number = self._inquiries.start(places, until) if places else None
        if number is None:
            return None, ()
        effects: list[DirectoryEffect] = []
        for owner, asked in places.items():
            wanted = [anchors[place] for place in asked]
            if owner == self._me:
                answer = DirectoryAnswer(number, *self._records.answer(wanted, self._me))
                effects += self._inquiries.on_answer(self._me, answer)
            else:
                question = DirectoryAsk(number, b"".join(wanted), max(1, min(_MS_MAX, int((until - now) * 1000))))
                effects.append(SendStream(self._members[owner][1], question, until))
        return number, tuple(effects)

    # -- the verbs of every core --------------------------------------------------------------------------------

    def on_message(self, sender: str, message: DirectoryMessage, now: float) -> tuple[DirectoryEffect, ...]:
        """Take a message; one from a node that is no usable member is ignored, and made good later if it matters."""
        if sender not in self._members:
            self._from_strangers += 1
            return ()
        match message:
            case DirectoryPut():
                return self._on_put(sender, message, now)
            case DirectoryResend():
                self._registrar.tell_again(sender, now)
                return ()
            case DirectoryAsk():
                return self._answer(sender, message, now)
            case DirectoryAnswer():
                return self._inquiries.on_answer(sender, message)

    def on_member(self, record: MemberRecord) -> tuple[DirectoryEffect, ...]:
        """Take what membership believes of a member now."""
        known = self._members.get(record.id)
        if record.id == self._me or (known is not None and record.boot < known[0]):
            return ()
        if record.state not in _USABLE:
            if self._members.pop(record.id, None) is not None:
                self._records.forget(record.id)
                self._asked_again.pop(record.id, None)
                self._forgotten[record.id] = record.boot
            self._handovers = {to: what for to, what in self._handovers.items() if record.id not in to}
            return self._inquiries.on_lost(record.id)
        self._members[record.id] = (record.boot, record.address)
        if known is None and self._forgotten.pop(record.id, None) == record.boot and self._r:
            self._resends_asked += 1
            return (SendStream(record.address, DirectoryResend()),)
        return ()

    def on_restarted(self, member: str, now: float) -> tuple[DirectoryEffect, ...]:
        """Take that a later start of a usable member has taken the place of an earlier one: both hold nothing of the other's.

        Links to it may have been idle, so that none broke.
        """
        self._records.forget(member)
        self._asked_again.pop(member, None)
        self._registrar.tell_again(member, now)
        return self._inquiries.on_lost(member)

    def on_table(self, table: OwnerTable, changed: Sequence[int] | None, now: float) -> None:
        """Take a new ring. `changed` names the slots with other owners than in the one before, None if any may be."""
        self._table = table
        self._registrar.on_table(table, changed, now)
        for owner, holder, anchor, packed in self._records.on_table(self._me, table, changed, self._r):
            self._handovers.setdefault((owner, holder), {})[anchor] = packed
        self._records.keep_former(now)
        self._plan_flush(now)

    def on_link_lost(self, address: str, now: float) -> tuple[DirectoryEffect, ...]:
        """Take that messages to `address` may be lost."""
        effects: list[DirectoryEffect] = []
        for peer, (_, at) in self._members.items():
            if at == address:
                self._registrar.tell_again(peer, now)
                effects += self._inquiries.on_lost(peer)
        return tuple(effects)

    @property
    def wants_table(self) -> bool:
        """Whether there is anything to place on a ring. Without blocks a node need not build one."""
        return bool(self._anchors.changed) or len(self._anchors) > 0 or len(self._records) > 0

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never; recompute after every call of anything."""
        send_at = min(self._flush_at, self._registrar.next_renewal())
        return min(
            max(send_at, self._budget.opens_at()) if send_at < float("inf") else send_at,
            self._registrar.next_again(),
            self._records.next_deadline(),
            self._inquiries.next_deadline(),
        )

    def on_time(self, now: float) -> tuple[DirectoryEffect, ...]:
        """Let time pass. Calling early, late or twice is harmless."""
        self._records.expire(now)
        effects: list[DirectoryEffect] = list(self._inquiries.on_time(now))
        if now >= self._registrar.next_again():
            self._registrar.begin_again(now)
            self._plan_flush(now)
        if now >= min(self._flush_at, self._registrar.next_renewal()):
            self._send(now, effects)
        return tuple(effects)

    def statistics(self) -> DirectoryStatistics:
        """Return the figures of now."""
        records, registrar, inquiries = self._records, self._registrar, self._inquiries
        return DirectoryStatistics(
            anchors=len(self._anchors),
            told=len(registrar),
            kept=len(records),
            records_sent=registrar.records_sent,
            renewals_sent=registrar.renewals_sent,
            resends=registrar.resends,
            resends_asked=self._resends_asked,
            handed_over=records.counts.handed_over,
            refused=records.counts.refused,
            expired=records.counts.expired,
            asked=inquiries.asked,
            timeouts=inquiries.timeouts,
            questions_refused=inquiries.refused,
            answered=self._answered,
            answers_shed=self._answers_shed,
            over_budget=self._over_budget,
            malformed=records.counts.malformed + inquiries.malformed,
            from_strangers=self._from_strangers,
        )

    # -- inside -------------------------------------------------------------------------------------------------

    def _plan_flush(self, now: float) -> None:
        if self._flush_at == float("inf") and (self._handovers or self._registrar.has_news()):
            gather_s = min(GATHER_S_MAX, self._config.period_s / 10)
            self._flush_at = max(now + gather_s, self._flushed_at + self._config.period_s)

    def _send(self, now: float, effects: list[DirectoryEffect]) -> None:
        """Send what is due as far as the budget goes: handovers first, for nobody else has what they bring."""
        flush = now >= self._flush_at
        sources = [self._hand_over(now), self._registrar.flush(now)] if flush else []
        for source in (*sources, self._registrar.renew(now)):
            while self._budget.open(now) and (one := next(source, None)) is not None:
                target, put = one
                if target == self._me:
                    effects += self._on_put(self._me, put, now)
                elif target in self._members:
                    self._budget.spend(len(put.anchors) + len(put.blocks) + FRAME_BYTES)
                    effects.append(SendStream(self._members[target][1], put))
        if flush:
            self._flush_at, self._flushed_at = float("inf"), now
        if not self._budget.open(now):
            self._over_budget += 1
            self._flush_at = self._budget.opens_at()
        else:
            self._plan_flush(now)

    def _hand_over(self, now: float) -> Iterator[tuple[str, DirectoryPut]]:
        """Yield what new owners are to be given, and forget it."""
        while self._handovers:
            (owner, holder), what = next(iter(self._handovers.items()))
            tier = tier_of(next(iter(what.values())))
            part = [anchor for anchor, packed in what.items() if tier_of(packed) == tier][:ANCHORS_PER_PUT_MAX]
            blocks = bytes(blocks_of(what.pop(anchor)) for anchor in part)
            if not what:
                del self._handovers[owner, holder]
            boot = self._records.boot(holder)
            if boot:  # or else the holder is gone, and its records with it
                lease_ms = self._records.lease_left_ms(holder, now)
                yield owner, DirectoryPut(holder, boot, lease_ms, tier, b"".join(part), blocks)

    def _on_put(self, sender: str, put: DirectoryPut, now: float) -> tuple[DirectoryEffect, ...]:
        if sender != put.holder:
            known = self._members.get(put.holder)
            if known is None or known[0] != put.boot:
                self._from_strangers += 1
                return ()
        self._records.put(sender, put, now)
        if not put.settled or sender != put.holder:
            return ()
        if self._records.fingerprint(sender) == put.fingerprint:
            self._asked_again.pop(sender, None)
            return ()
        asked_at, times = self._asked_again.get(sender, (-float("inf"), 0))
        if now < asked_at + self._config.period_s * 2.0 ** min(times, BACKOFF_LOG2_MAX):
            return ()
        self._asked_again[sender] = (now, times + 1)
        self._resends_asked += 1
        if sender == self._me:
            self._registrar.tell_again(sender, now)
            return ()
        return (SendStream(self._members[sender][1], DirectoryResend()),)

    def _answer(self, sender: str, ask: DirectoryAsk, now: float) -> tuple[DirectoryEffect, ...]:
        anchors = ask.anchors
        if len(anchors) % ANCHOR_BYTES or not self._answer_budget.open(now):
            self._answers_shed += 1
            return ()
        asked = [anchors[at : at + ANCHOR_BYTES] for at in range(0, len(anchors), ANCHOR_BYTES)]
        answer = DirectoryAnswer(ask.request, *self._records.answer(asked, sender))
        self._answer_budget.spend(len(answer.claims) + FRAME_BYTES)
        self._answered += 1
        until = now + ask.remaining_ms / 1000 if ask.remaining_ms else inf
        return (SendStream(self._members[sender][1], answer, until),)
