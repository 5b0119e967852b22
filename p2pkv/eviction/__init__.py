"""What to drop next. `order.py` says what a policy is; `policy.py` what a tier asks of it; `choose.py` has them by name."""

from p2pkv.eviction.choose import ORDERS, PolicyName, make_policy
from p2pkv.eviction.order import Order, Spared, spare_none
from p2pkv.eviction.policy import Asked, Policy

__all__ = ["ORDERS", "Asked", "Order", "Policy", "PolicyName", "Spared", "make_policy", "spare_none"]
