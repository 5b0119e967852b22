"""Which nodes do not read, do not write or do not run at a time, and until when."""

from collections import defaultdict

from p2pkv.sim.faults import Faults, Freeze, Slow


class Stalls:
    """Answers in whole microseconds; a time that is not past the one asked about means "not stalled"."""

    def __init__(self, faults: Faults) -> None:
        self._slow: dict[int, list[Slow]] = defaultdict(list)
        self._frozen: dict[int, list[Freeze]] = defaultdict(list)
        for slow in faults.slow:
            for node in sorted(slow.nodes):
                self._slow[node].append(slow)
        for freeze in faults.freezes:
            for node in sorted(freeze.nodes):
                self._frozen[node].append(freeze)

    def __bool__(self) -> bool:
        """Whether anybody is ever stalled: asked for every message, and nearly always answered with no."""
        return bool(self._slow or self._frozen)

    def mute_until(self, node: int, now_us: int) -> int:
        """Return when what the node sends now leaves it: a slow node's output waits with its input."""
        if node not in self._slow:
            return now_us
        return max(slow.until_us(now_us) for slow in self._slow[node])

    def frozen_until(self, node: int, now_us: int) -> int:
        """Return when the node's timers may run."""
        if node not in self._frozen:
            return now_us
        return max(freeze.until_us(now_us) for freeze in self._frozen[node])

    def deaf_until(self, node: int, now_us: int) -> int:
        """Return when the node can take what arrives."""
        return max(self.mute_until(node, now_us), self.frozen_until(node, now_us))
