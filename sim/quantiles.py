"""Quantiles of few values, the same way everywhere."""

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the value below which `share` of `values` lie, one of them; None where there is none."""
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 3)
