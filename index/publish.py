"""The half of the exchange that sends: our summary to every usable member, whole at first and then in deltas.

Deltas go out at most once per period, except that the first change after a quiet time does not wait. A reader whose
link was lost may have missed anything, so it is sent the whole filter again, after a pause that doubles while the
link keeps failing.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

from p2pkv.effects import SendStream
from p2pkv.index.deadlines import Deadlines
from p2pkv.index.peer_summary import FLIP_BYTES
from p2pkv.index.summary import SummaryWriter

GATHER_S_MAX: Final = 0.05
"""The blocks of one prompt are committed one after another. Without this pause the first would travel alone and the
rest wait for the next period."""
BACKOFF_LOG2_MAX: Final = 5
STEP_BYTES_MAX: Final = 4 * 2**20
"""Bytes of snapshots handed out per step, and what the last of them is over. Without it a node that meets a thousand
others at once would queue its filter a thousand times."""
STEP_S: Final = 0.1


def backoff_s(period_s: float, failures: int) -> float:
    """Return how long to wait after `failures` in a row: the period, doubled by each but the first."""
    return period_s * float(2 ** min(max(0, failures - 1), BACKOFF_LOG2_MAX))


@dataclass(slots=True)
class _Reader:
    address: str
    sent_at: float = -inf
    losses: int = 0
    """Losses of the link since anything was heard over it."""
    declined: bool = False
    """It asked to be sent nothing."""


class Publisher:
    """Sends what `writer` holds to the readers it is told of; one entry for each is all it keeps."""

    def __init__(self, writer: SummaryWriter, *, period_s: float) -> None:
        self._writer = writer
        self._period_s = period_s
        self._gather_s = min(GATHER_S_MAX, period_s / 10)
        self._readers: dict[str, _Reader] = {}
        self._due = Deadlines()  # of snapshots, for those who take no deltas yet
        self._flush_at = inf
        self._flushed_at = -inf
        self._step_at = self._paused_until = -inf
        self._step_room = STEP_BYTES_MAX
        self.deltas_sent = 0
        self.snapshots_sent = 0
        self.requests_ignored = 0

    def changed(self, now: float) -> None:
        """Take that the writer's keys are others now; a flush is planned if that flipped anything."""
        if self._flush_at == inf and self._writer.flips_waiting:
            self._flush_at = max(now + self._gather_s, self._flushed_at + self._period_s)

    def welcome(self, peer: str, address: str, now: float) -> None:
        """Have the whole filter sent to a reader that is new, or new at `address`."""
        self._readers[peer] = _Reader(address)
        self._due.set(peer, now)

    def forget(self, peer: str) -> None:
        """Send no more to a reader; harmless for one that is not there."""
        self._readers.pop(peer, None)
        self._due.drop(peer)

    def heard(self, peer: str) -> None:
        """Take that something came from a reader, so that its link works."""
        self._readers[peer].losses = 0

    def on_request(self, peer: str, now: float) -> None:
        """Have the whole filter sent, unless that was just done: then the request crossed it on the way."""
        self._readers[peer].declined = False
        if peer not in self._due and now < self._readers[peer].sent_at + self._period_s:
            self.requests_ignored += 1
        else:
            self._due.set(peer, now)

    def on_declined(self, peer: str) -> None:
        """Send nothing to a reader until it asks."""
        self._readers[peer].declined = True
        self._due.drop(peer)

    def on_link_lost(self, address: str, now: float) -> None:
        """Take that what was sent to `address` may not have arrived."""
        for peer, reader in self._readers.items():
            if reader.address == address and not reader.declined:
                reader.losses += 1
                self._due.set(peer, now + backoff_s(self._period_s, reader.losses))

    def next_deadline(self) -> float:
        """Return when to call `on_time` next, `inf` for never."""
        return min(self._flush_at, max(self._due.earliest(), self._paused_until))

    def on_time(self, now: float) -> list[SendStream]:
        """Return what is due to be sent."""
        effects = self._flush(now) if now >= self._flush_at else []
        if now >= max(self._due.earliest(), self._paused_until):
            effects += self._send_snapshots(now)
        return effects

    def _flush(self, now: float) -> list[SendStream]:
        """Send what changed, or have the whole filter sent where that is smaller."""
        self._flush_at = inf
        whole = FLIP_BYTES * self._writer.flips_waiting > self._writer.sealed.bits.nbytes
        deltas = self._writer.seal()
        if deltas:
            self._flushed_at = now
        current = [peer for peer, reader in self._readers.items() if peer not in self._due and not reader.declined]
        if whole:
            for peer in current:
                self._due.set(peer, now)
            return []
        self.deltas_sent += len(deltas) * len(current)
        return [SendStream(self._readers[peer].address, delta) for peer in current for delta in deltas]

    def _send_snapshots(self, now: float) -> list[SendStream]:
        due = self._due.take(now)
        effects: list[SendStream] = []
        pages = self._writer.snapshot() if due else ()
        if now >= self._step_at + STEP_S:
            self._step_at, self._step_room = now, STEP_BYTES_MAX
        for peer in due:
            if self._step_room <= 0:
                self._paused_until = self._step_at + STEP_S
                self._due.set(peer, now)
                continue
            self._step_room -= sum(len(page.data) for page in pages)
            reader = self._readers[peer]
            reader.sent_at = now
            self.snapshots_sent += 1
            effects += [SendStream(reader.address, page) for page in pages]
        return effects
