"""Which of a sender's numbered datagrams have been seen, and whose run is the current one. Sans-IO.

Source: the sliding window of RFC 4303 section 3.4.3 and appendix A2, as a bitmap like RFC 6479, in one integer. Two
things are ours: numbers below the first one heard count as seen, so that who has just started cannot be told old news
from before; and a run is identified by its boot, which only grows.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeAlias, TypeVar

WINDOW: Final = 1024
"""Numbers behind the highest that may still arrive. A node sends a few per second: minutes of reordering."""
_FULL: Final = (1 << WINDOW) - 1
SENDERS_MAX: Final = 8192
"""Senders remembered, as many as members are listed. Only who has a key gets in; the one heard least lately goes."""

T = TypeVar("T")
Verdict: TypeAlias = Literal["ok", "replay", "old_boot", "duplicate"]


class ReplayWindow:
    """The last `WINDOW` numbers of one run of one sender."""

    def __init__(self, first: int) -> None:
        """Begin with a number that has just been accepted."""
        self._highest = first
        self._seen = _FULL

    def is_new(self, number: int) -> bool:
        """Whether `number` was neither seen nor is too old to tell."""
        behind = self._highest - number
        return behind < 0 or (behind < WINDOW and not self._seen >> behind & 1)

    def take(self, number: int) -> None:
        """Note an authentic number; one that is not new is a mistake of the caller's."""
        assert self.is_new(number)
        ahead = number - self._highest
        if ahead > 0:
            self._seen = (self._seen << ahead & _FULL if ahead < WINDOW else 0) | 1
            self._highest = number
        else:
            self._seen |= 1 << -ahead


@dataclass(slots=True)
class _Run(Generic[T]):
    boot: int
    salt: bytes
    """Empty while only the boot is known, from a member record."""
    window: ReplayWindow | None
    keep: T | None
    """What the opener keeps with a run: its ciphers."""


class Senders(Generic[T]):
    """The current run of each sender."""

    def __init__(self, *, senders_max: int = SENDERS_MAX) -> None:
        self._senders_max = senders_max
        self._runs: OrderedDict[bytes, _Run[T]] = OrderedDict()
        self.forgotten = 0
        """Senders dropped because the table was full."""

    def __len__(self) -> int:
        return len(self._runs)

    def kept(self, sender: bytes, boot: int, salt: bytes) -> T | None:
        """Return what is kept with this very run, or None."""
        run = self._runs.get(sender)
        return run.keep if run is not None and (run.boot, run.salt) == (boot, salt) else None

    def judge(self, sender: bytes, boot: int, salt: bytes, number: int) -> Verdict:
        """Say whether a datagram that claims to be this one may be new. Changes nothing: it may be forged."""
        run = self._runs.get(sender)
        if run is None or boot > run.boot:
            return "ok"
        if boot < run.boot:
            return "old_boot"
        if run.window is None:
            return "ok"
        if salt != run.salt:
            return "duplicate"
        return "ok" if run.window.is_new(number) else "replay"

    def take(self, sender: bytes, boot: int, salt: bytes, number: int, keep: T) -> None:
        """Note a datagram that was judged "ok" and is authentic."""
        run = self._runs.get(sender)
        if run is None or run.window is None or run.boot != boot:
            self._runs[sender] = _Run(boot, salt, ReplayWindow(number), keep)
            self._make_room()
        else:
            run.window.take(number)
            run.keep = keep
        self._runs.move_to_end(sender)

    def expect(self, sender: bytes, boot: int) -> None:
        """Take from a member record that `sender` has reached `boot`: datagrams of an earlier run are recordings."""
        run = self._runs.get(sender)
        if run is None or boot > run.boot:
            self._runs[sender] = _Run(boot, b"", None, None)
            self._runs.move_to_end(sender)
            self._make_room()

    def _make_room(self) -> None:
        if len(self._runs) > self._senders_max:
            self._runs.popitem(last=False)
            self.forgotten += 1
