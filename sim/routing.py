"""Which node a request goes to."""

from typing import Final, Literal, TypeAlias

from p2pkv.sim.traces import Trace

Routing: TypeAlias = Literal["rr", "session", "affinity"]
"""In turn; by a hash of the session; to the node with the longest prefix, which only a mesh can say."""
_MASK: Final = 2**64 - 1


def homes(trace: Trace, how: Routing, nodes: int) -> list[int]:
    """Return the node of each request, where that does not depend on what nodes hold."""
    if how == "rr":
        return [number % nodes for number in range(len(trace.requests))]
    numbers: dict[str, int] = {}
    return [_mixed(numbers.setdefault(one.session, len(numbers))) % nodes for one in trace.requests]


def _mixed(value: int) -> int:
    """Return the finaliser of SplitMix64 of a value, so that sessions are spread as in published tables."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
