"""Which transport the blocks of a peer take, and why, sans-IO: the first that is preferred and can be had; TCP always can."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

RETRY_S: Final = 30.0
"""How soon a fabric that could not be had is tried again; doubles with each failure, `_DOUBLINGS_MAX` times."""
_DOUBLINGS_MAX: Final = 5
REMEMBERED_MAX: Final = 1024
"""Peers of which it is remembered why there is no fabric; the one met least recently is forgotten first, and tried again."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The path of one peer's blocks."""

    transport: str
    """`shm`, `nixl` or `tcp`."""
    reason: str
    """Why this one, and why none that is preferred."""
    fabric: str = ""
    """Of `nixl`: which of `p2pkv.transport.fabrics`."""
    connections: int = 0
    """Of `tcp`: how many a large pull uses, as far as is known."""


def choose(prefer: Sequence[str], possible: dict[str, tuple[bool, str]]) -> Choice:
    """Return the first of `prefer` that is possible, or TCP.

    Args:
        prefer: names of transports, best first.
        possible: of each but TCP, whether it can be had and why, or why not.
    """
    passed_over: list[str] = []
    for name in prefer:
        if name == "tcp":
            break
        can, why = possible.get(name, (False, "not there"))
        if can:
            return Choice(name, "; ".join([why, *passed_over]))
        passed_over.append(f"not {name}: {why}")
    return Choice("tcp", "; ".join(passed_over) or "preferred")


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str
    count: int
    try_at: float


class Refusals:
    """Of which peers no fabric could be had, why, and when to try again."""

    def __init__(self) -> None:
        self._failures: dict[str, _Failure] = {}

    def is_due(self, peer: str, now: float) -> bool:
        """Say whether to try."""
        failure = self._failures.get(peer)
        return failure is None or now >= failure.try_at

    def failed(self, peer: str, reason: str, now: float) -> None:
        """Take that it could not be had."""
        before = self._failures.pop(peer, None)
        count = before.count + 1 if before is not None else 0
        self._failures[peer] = _Failure(reason, count, now + RETRY_S * 2 ** min(count, _DOUBLINGS_MAX))
        if len(self._failures) > REMEMBERED_MAX:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, peer: str) -> None:
        """Take that it is there."""
        self._failures.pop(peer, None)

    def reason(self, peer: str) -> str:
        """Return why there is none, or nothing if it is not known that there is none."""
        failure = self._failures.get(peer)
        return failure.reason if failure is not None else ""
