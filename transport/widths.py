"""How many connections a pull from a peer uses, sans-IO: found by trying.

One, until more are faster. Whether one fills the link cannot be known beforehand: it depends on the way (window, loss,
what a switch does to one flow) and on the processors of both ends, because a connection is a thread at each. So now and
then some large pulls in a row use twice or half as many, and what was faster stays. Twice as many have to be clearly
faster, half as many only as fast: threads and sockets cost others something. A trial that fails doubles the pause until
the next one.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from statistics import median
from typing import Final

from p2pkv.transport.shares import RUN_BYTES

MEASURED_BYTES_MIN: Final = 4 * RUN_BYTES
"""Pulls below are over before a rate says anything, and bring about no trial."""
PULLS_COMPARED: Final = 3
"""With either number; medians are compared."""
GAIN_MIN: Final = 1.15
"""How much faster twice as many have to be; more than what repeats differ by on a machine at rest."""
LOSS_MAX: Final = 0.95
"""How fast, of what there is, half as many have to be."""
PAUSE_MIN: Final = 8
PAUSE_MAX: Final = 512
"""Measured pulls between two trials, at first and after many that failed."""
PEERS_MAX: Final = 1024
"""Peers remembered; beyond it the one not pulled from for longest begins anew."""


@dataclass(slots=True)
class _Peer:
    width: int
    rates: list[float] = field(default_factory=list)
    """Bytes per second of the last pulls with `width` connections."""
    trial: int = 0
    """Number of connections on trial; 0: none is."""
    warm: bool = False
    """Whether the connections of the trial have been used: the first pull opens them, and does not count."""
    trial_rates: list[float] = field(default_factory=list)
    upwards: bool = True
    """Whether the next trial is of more."""
    pause: int = PAUSE_MIN
    left: int = PULLS_COMPARED
    """Measured pulls until the next trial."""


class Widths:
    """What is known of each peer."""

    def __init__(self, most: int, *, least: int = 1, peers_max: int = PEERS_MAX) -> None:
        """Between `least` and `most`; if they are equal nothing is tried."""
        assert 1 <= least <= most
        self.most: Final = most
        self._least = least
        self._peers_max = peers_max
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def settled(self, peer: str) -> int:
        """Return how many connections large pulls from `peer` use, trials aside."""
        known = self._peers.get(peer)
        return known.width if known is not None else self._least

    def choose(self, peer: str, pull_bytes: int) -> int:
        """Return how many connections a pull of so many bytes is to use."""
        known = self._peers.get(peer)
        width = self._least
        if known is not None:
            width = known.trial if known.trial and pull_bytes >= MEASURED_BYTES_MIN else known.width
        return max(1, min(width, pull_bytes // RUN_BYTES))

    def measured(self, peer: str, width: int, pull_bytes: int, seconds: float) -> None:
        """Take how long a pull took that used `width` connections and had the path for itself, as far as is known."""
        if pull_bytes < MEASURED_BYTES_MIN or seconds <= 0 or self.most == self._least:
            return
        known = self._remembered(peer)
        rate = pull_bytes / seconds
        if known.trial:
            if width == known.trial:
                self._tried(known, rate)
            else:  # as many were not to be had, or the pull was too small for them
                self._pause(known, known.pause)
        elif width == known.width:
            known.rates = [*known.rates, rate][-PULLS_COMPARED:]
            known.left -= 1
            if known.left <= 0 and len(known.rates) == PULLS_COMPARED:
                self._begin_trial(known, pull_bytes)

    def _remembered(self, peer: str) -> _Peer:
        known = self._peers.pop(peer, None) or _Peer(self._least)
        self._peers[peer] = known
        if len(self._peers) > self._peers_max:
            self._peers.popitem(last=False)
        return known

    def _begin_trial(self, known: _Peer, pull_bytes: int) -> None:
        more = min(self.most, 2 * known.width, pull_bytes // RUN_BYTES)
        fewer = max(self._least, known.width // 2)
        if more <= known.width or fewer >= known.width:  # only one way to go, or none
            known.upwards = more > known.width
        known.trial = more if known.upwards else fewer
        known.warm = False
        known.trial_rates = []
        if known.trial == known.width:
            self._pause(known, known.pause)

    def _tried(self, known: _Peer, rate: float) -> None:
        if not known.warm:
            known.warm = True
            return
        known.trial_rates.append(rate)
        if len(known.trial_rates) < PULLS_COMPARED:
            return
        known.upwards = known.trial > known.width
        if median(known.trial_rates) >= median(known.rates) * (GAIN_MIN if known.upwards else LOSS_MAX):
            known.width, known.rates = known.trial, known.trial_rates
            known.pause = PAUSE_MIN
            self._pause(known, 0)
        else:
            known.upwards = not known.upwards
            known.pause = min(PAUSE_MAX, 2 * known.pause)
            self._pause(known, known.pause)

    def _pause(self, known: _Peer, pulls: int) -> None:
        known.trial = 0
        known.rates = []
        known.left = pulls
