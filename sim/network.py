"""The faulty network: what is lost, how long the rest takes, who cannot reach whom and since when.

Datagrams are lost, doubled and delayed each by itself, so they also overtake one another. What streams make of the
same network is in streams.py.
"""

from random import Random
from typing import Final

from p2pkv.sim.clock import to_us
from p2pkv.sim.delays import Sampler
from p2pkv.sim.faults import Egress, Faults, Partition
from p2pkv.sim.streams import Sent, Streams

_EVER: Final = 2**63


class Network:
    """Decides the fate of every message. All chance comes from `random`, in the order of the calls."""

    def __init__(self, faults: Faults, random: Random) -> None:
        self.streams: Final = Streams()
        self._faults = faults
        self._draw = random.random
        self._delay_us = faults.delay.sampler(random)
        self._zone_delay_us = (faults.zone_delay or faults.delay).sampler(random)
        self._zone_of = {node: place for place, zone in enumerate(faults.zones) for node in zone.nodes}
        self._reorder_us = to_us(faults.reorder_s)
        self._is_calm = not (
            faults.loss or faults.reordering or faults.duplication or faults.partitions or faults.egress or faults.zones
        )
        cuts: tuple[Partition | Egress, ...] = (*faults.partitions, *faults.egress)
        self._moments_us = [to_us(at_s) for cut in cuts for at_s in (cut.start_s, cut.end_s)]
        self._same_from_us = self._same_until_us = 0
        self._partitions: list[Partition] = []
        self._egress: list[Egress] = []

    def reaches(self, a: int, b: int, now_us: int) -> bool:
        """Whether no partition or cut keeps what `a` sends from `b` now."""
        return self._loss(a, b, now_us) < 1

    def connects(self, a: int, b: int, now_us: int) -> bool:
        """Whether a stream between the two can live now: what one sends has to be acknowledged by the other."""
        return self.reaches(a, b, now_us) and self.reaches(b, a, now_us)

    def datagram(self, a: int, b: int, now_us: int) -> tuple[int, ...]:
        """Return when a datagram sent now from `a` arrives at `b`: once, or never, or more often."""
        if self._is_calm:
            return (now_us + self._delay_us(),)
        at_us = self._travel(a, b, now_us)
        if at_us is None:
            return ()
        if self._faults.reordering and self._draw() < self._faults.reordering:
            at_us += int(self._draw() * self._reorder_us)
        if self._faults.duplication and self._draw() < self._faults.duplication:
            return (at_us, now_us + self._sampler(a, b)())
        return (at_us,)

    def stream(self, a: int, b: int, now_us: int, size: int) -> Sent | None:
        """Send a message over the stream from `a` to `b`; see `Streams.send`."""

        def attempt(at_us: int) -> int | None:
            return self._travel(a, b, at_us) if self.reaches(b, a, at_us) else None

        return self.streams.send(a, b, now_us, size, attempt)

    def segments(self, a: int, b: int, now_us: int, size: int) -> int | None:
        """Return when the last of `size` bytes is at `b`, over a stream that is open; None if it breaks before."""
        if not self._loss(a, b, now_us) and not self._loss(b, a, now_us):  # then no segment is worth a look
            return now_us + self._sampler(a, b)()

        def attempt(at_us: int) -> int | None:
            return self._travel(a, b, at_us) if self.reaches(b, a, at_us) else None

        return self.streams.carry_all(now_us, size, attempt)

    def round_trip_us(self, a: int, b: int) -> int:
        """Draw the time of a question and its answer, as if neither was lost."""
        delay_us = self._sampler(a, b)
        return delay_us() + delay_us()

    def _travel(self, a: int, b: int, now_us: int) -> int | None:
        """Return when one packet arrives, or None if it does not."""
        loss = self._loss(a, b, now_us)
        if loss and (loss >= 1 or self._draw() < loss):
            return None
        return now_us + self._sampler(a, b)()

    def _sampler(self, a: int, b: int) -> Sampler:
        if not self._zone_of or self._zone_of.get(a, -1) == self._zone_of.get(b, -1):
            return self._delay_us
        return self._zone_delay_us

    def _loss(self, a: int, b: int, now_us: int) -> float:
        """Return the chance that a packet is lost: 1 where a cut is."""
        if not self._same_from_us <= now_us < self._same_until_us:
            self._look(now_us)
        if not (self._partitions or self._egress):
            return self._faults.loss
        if any((a in cut.island) != (b in cut.island) for cut in self._partitions):
            return 1.0
        passes = 1.0 - self._faults.loss
        for egress in self._egress:
            if a in egress.sources and (egress.targets is None or b in egress.targets):
                passes *= 1.0 - egress.loss
        return 1.0 - passes

    def _look(self, now_us: int) -> None:
        """Note which cuts there are, and how long that stays so: it is asked for every packet and seldom changes."""
        self._same_from_us = max((at for at in self._moments_us if at <= now_us), default=-_EVER)
        self._same_until_us = min((at for at in self._moments_us if at > now_us), default=_EVER)

        def is_now(cut: Partition | Egress) -> bool:
            return to_us(cut.start_s) <= now_us < to_us(cut.end_s)

        self._partitions = [cut for cut in self._faults.partitions if is_now(cut)]
        self._egress = [cut for cut in self._faults.egress if is_now(cut)]
