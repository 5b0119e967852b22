"""Counts of both halves, in vLLM's log and among its metrics."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import prometheus_client
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class CountStats(KVConnectorStats):
    """What was counted since the last time, by name."""

    def aggregate(self, other: KVConnectorStats) -> "CountStats":
        """Return this and what another worker, or an earlier step, counted."""
        return CountStats(data=dict(Counter(self.data) + Counter(other.data)))

    def reduce(self) -> dict[str, int | float]:
        """Return what vLLM is to log."""
        return dict(sorted(self.data.items()))

    def reset(self) -> None:
        """Begin anew."""
        self.data.clear()

    def is_empty(self) -> bool:
        """Say whether nothing happened."""
        return not self.data


class CountMetrics(KVConnectorPromMetrics):
    """`vllm:p2pkv_total`, a counter with the label `event`."""

    def __init__(
        self,
        vllm_config: "VllmConfig",
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counter = metric_types[prometheus_client.Counter](
            name="vllm:p2pkv",
            documentation="What happened to blocks, loads and fetches of the p2pkv connector; errors by class.",
            labelnames=[*labelnames, "event"],
        )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Take what a step of one engine brought."""
        for event, count in transfer_stats_data.items():
            self._counter.labels(*self.per_engine_labelvalues[engine_idx], event).inc(count)
