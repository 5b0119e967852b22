"""What it lately cost to get runs from the object store, and whether it is worth it, sans-IO.

    asking pays if    share * (prefill - read)  >  (1 - share) * wait

`share` is how often the store lately had something, `read` what it then takes, `wait` what it takes to hear that it has nothing, and
`prefill` what the engine takes to compute the same blocks. So a store that seldom has anything is asked for long tails alone.
"""

from dataclasses import dataclass
from typing import Final

WAIT_S_ASSUMED: Final = 0.05
READ_BYTES_S_ASSUMED: Final = 100e6
SHARE_ASSUMED: Final = 0.5
SHARE_LEAST: Final = 1 / 16
"""A store that has had nothing for long is still asked now and then, or else nobody would notice that it has."""
FRESH_S: Final = 300.0
"""Figures older than that are not counted on: a slow hour would otherwise be the last that anything was asked."""
_SMOOTHING: Final = 0.2
_WAIT_PART_MAX: Final = 0.5
"""Of what a chain took, at most so much is taken for waiting and not for its bytes."""


@dataclass(slots=True)
class RunCosts:
    """Of one object store, as seen from here."""

    wait_s: float = WAIT_S_ASSUMED
    """From a question to the answer that there is nothing, or to the first byte."""
    read_bytes_s: float = READ_BYTES_S_ASSUMED
    """Of a whole chain, with the runs of it that come at the same time."""
    share: float = SHARE_ASSUMED
    """Of questions that found something."""
    learnt_at: float = -float("inf")

    def on_recalled(self, size: int, took_s: float, now: float) -> None:
        """Take that so many bytes of a chain came in that time; none: the store had nothing."""
        self._age(now)
        self.learnt_at = now
        self.share = max(SHARE_LEAST, self.share + _SMOOTHING * (bool(size) - self.share))
        if not size:
            self.wait_s += _SMOOTHING * (took_s - self.wait_s)
        elif took_s > 0:
            bytes_took_s = took_s - min(self.wait_s, _WAIT_PART_MAX * took_s)
            self.read_bytes_s += _SMOOTHING * (size / bytes_took_s - self.read_bytes_s)

    def read_s(self, size: int, now: float) -> float:
        """Return how long it takes to get so many bytes of a chain that is there."""
        self._age(now)
        return self.wait_s + size / self.read_bytes_s

    def is_worth_asking(
        self, blocks: int, block_bytes: int, *, prefill_block_s: float | None, left_s: float, now: float
    ) -> bool:
        """Say whether to ask for the tail of a chain, `left_s` before its engine's patience ends.

        Without `prefill_block_s` it is, if anything can come in time.
        """
        if self.read_s(block_bytes, now) > left_s:
            return False
        if prefill_block_s is None:
            return True
        in_time = int(min(blocks, (left_s - self.wait_s) * self.read_bytes_s / block_bytes))
        saved_s = in_time * prefill_block_s - self.read_s(in_time * block_bytes, now)
        return self.share * saved_s > (1 - self.share) * self.wait_s

    def is_worth_writing(self, blocks: int, block_bytes: int, *, prefill_block_s: float | None, now: float) -> bool:
        """Say whether a run is got back sooner than it is computed."""
        return prefill_block_s is None or self.read_s(blocks * block_bytes, now) < blocks * prefill_block_s

    def _age(self, now: float) -> None:
        if now - self.learnt_at > FRESH_S:
            self.wait_s, self.read_bytes_s, self.share = WAIT_S_ASSUMED, READ_BYTES_S_ASSUMED, SHARE_ASSUMED
