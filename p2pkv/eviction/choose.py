"""Policies by name."""

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from p2pkv.eviction.adaptive import Adaptive, Expert
from p2pkv.eviction.lru import Fifo, Lru
from p2pkv.eviction.order import Order
from p2pkv.eviction.policy import Policy
from p2pkv.eviction.s3_fifo import S3Fifo
from p2pkv.eviction.w_tiny_lfu import WTinyLfu

PolicyName: TypeAlias = Literal["lru", "fifo", "s3-fifo", "w-tinylfu", "adaptive"]


def _adaptive(capacity: int) -> Order:
    orders: dict[str, Order] = {"lru": Lru(), "s3-fifo": S3Fifo(capacity)}
    return Adaptive([Expert(name, order, capacity) for name, order in orders.items()], capacity)


ORDERS: Final[Mapping[PolicyName, Callable[[int], Order]]] = MappingProxyType(
    {
        "lru": lambda _: Lru(),
        "fifo": lambda _: Fifo(),
        "s3-fifo": S3Fifo,
        "w-tinylfu": WTinyLfu,
        "adaptive": _adaptive,
    }
)
"""What makes an order for so many blocks."""


def make_policy(name: PolicyName, *, capacity: Callable[[int], int], chains: bool = True, ttl_s: float = inf) -> Policy:
    """Return a policy; see `Policy` for the arguments."""
    return Policy(ORDERS[name], capacity=capacity, chains=chains, ttl_s=ttl_s)
