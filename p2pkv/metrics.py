"""Every counter and gauge of a node, declared once with its meaning and unit. `docs/reference/metrics.md` is made from this.

Labels are few and bounded: no peers, no keys, no tenants. Only agents import this file; engines never pay for it.
"""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    """The metrics of one node in a registry of their own, so that two nodes in one process do not mix."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry: Final = registry
        self.members = Gauge(
            "p2pkv_members", "Members by believed state, this node included.", ["state"], registry=registry
        )
        self.lookups = Counter("p2pkv_lookup", "Chains asked for, by the best result.", ["result"], registry=registry)
        self.lookup_blocks = Counter("p2pkv_lookup_blocks", "Blocks asked for.", registry=registry)
        self.hit_blocks = Counter(
            "p2pkv_hit_blocks", "Blocks given to engines, by where from.", ["source"], registry=registry
        )
        self.prefetched_blocks = Counter(
            "p2pkv_prefetched_blocks", "Blocks that were in memory when a hint's acquire was over.", registry=registry
        )
        self.fetch_blocks = Counter(
            "p2pkv_fetch_blocks", "Blocks asked of peers, by outcome.", ["outcome"], registry=registry
        )
        self.direct_questions = Counter(
            "p2pkv_direct_questions",
            "Questions whose blocks may come right behind the answer: whether they did, were left to a pull, or were lost.",
            ["result"],
            registry=registry,
        )
        self.fetch_seconds = Histogram(
            "p2pkv_fetch_seconds", "Time of a transfer from a peer.", ["transport"], buckets=_SECONDS, registry=registry
        )
        self.transfer_bytes = Counter(
            "p2pkv_transfer_bytes", "Block bytes moved between nodes.", ["direction", "transport"], registry=registry
        )
        self.integrity_failures = Counter(
            "p2pkv_integrity_failures", "Blocks whose bytes did not have their digest.", ["where"], registry=registry
        )
        self.malformed = Counter(
            "p2pkv_malformed_messages", "Messages refused as malformed.", ["channel"], registry=registry
        )
        self.seal_refused = Counter(
            "p2pkv_seal_refused",
            "Datagrams and streams refused because of their seal, or because they have none.",
            ["channel", "reason"],
            registry=registry,
        )
        self.published_blocks = Counter(
            "p2pkv_published_blocks", "Blocks engines offered, by result.", ["result"], registry=registry
        )
        self.datagrams = Counter("p2pkv_gossip_datagrams", "Gossip packets.", ["direction"], registry=registry)
        self.tier_bytes = Gauge("p2pkv_tier_bytes", "Bytes in use.", ["tier"], registry=registry)
        self.tier_capacity_bytes = Gauge("p2pkv_tier_capacity_bytes", "Bytes there are.", ["tier"], registry=registry)
        self.tier_blocks = Gauge("p2pkv_tier_blocks", "Blocks stored.", ["tier"], registry=registry)
        self.evictions = Counter("p2pkv_evictions", "Blocks dropped to make room.", ["tier"], registry=registry)
        self.taken_over_blocks = Counter(
            "p2pkv_taken_over_blocks",
            "Blocks of the daemon before, by what came of them.",
            ["result"],
            registry=registry,
        )
        self.disk_moves = Counter(
            "p2pkv_disk_moves",
            "Blocks read from the disk tier and written to it, by what came of it.",
            ["move", "result"],
            registry=registry,
        )
        self.disk_bytes = Counter(
            "p2pkv_disk_bytes",
            "Bytes of blocks read from the disk tier and written to it.",
            ["move"],
            registry=registry,
        )
        self.disk_seconds = Histogram(
            "p2pkv_disk_seconds",
            "Time of one block's way to the disk or from it, waiting for a thread included.",
            ["move"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.disk_skipped = Counter(
            "p2pkv_disk_skipped_blocks",
            "Blocks that were not moved to the disk or from it, by why.",
            ["reason"],
            registry=registry,
        )
        self.disk_serving = Gauge(
            "p2pkv_disk_serving",
            "1 while the disk tier is in service, 0 if it is not or there is none.",
            registry=registry,
        )
        self.object_runs = Counter(
            "p2pkv_object_runs",
            "Runs of blocks put into the object store and asked of it, by what came of it.",
            ["move", "result"],
            registry=registry,
        )
        self.object_bytes = Counter(
            "p2pkv_object_bytes", "Bytes of blocks put into the object store and got.", ["move"], registry=registry
        )
        self.object_seconds = Histogram(
            "p2pkv_object_seconds",
            "Time of one run's way to the object store or from it, waiting for a thread included.",
            ["move"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.object_requests = Counter(
            "p2pkv_object_requests",
            "Requests made to the object store; most stores charge for them by the piece.",
            ["request"],
            registry=registry,
        )
        self.object_skipped = Counter(
            "p2pkv_object_skipped",
            "Runs that were not put into the object store, and chains for which it was not asked, by why.",
            ["reason"],
            registry=registry,
        )
        self.object_swept = Counter(
            "p2pkv_object_swept_runs", "Runs deleted from the object store by age.", registry=registry
        )
        self.object_serving = Gauge(
            "p2pkv_object_serving",
            "1 while the object store is in service, 0 if it is not or there is none.",
            registry=registry,
        )
        self.clients = Gauge("p2pkv_local_clients", "Connections on the local socket.", registry=registry)
        self.duplicate_ids = Gauge(
            "p2pkv_duplicate_ids", "Other processes heard of with this node's id within ten minutes.", registry=registry
        )
        self.lookup_failures = Counter(
            "p2pkv_discovery_failures", "Look-ups of entries of `node.join` that failed.", ["scheme"], registry=registry
        )
        self.certificate_left_seconds = Gauge(
            "p2pkv_certificate_left_seconds",
            "Until this node's certificate expires; 0 without one.",
            registry=registry,
        )
        self.sessions_ended_early = Counter(
            "p2pkv_sessions_ended_early",
            "Session keys that ended before their time, because a peer had as many as it may.",
            registry=registry,
        )
        self.bulk_connections = Gauge(
            "p2pkv_bulk_connections",
            "TCP connections that blocks of peers come over: in use, or kept for the next pull.",
            ["state"],
            registry=registry,
        )
        self.bulk_connections_lost = Counter(
            "p2pkv_bulk_connections_lost",
            "TCP connections that failed in a pull. Others that shared it brought what was missing, if there were any.",
            registry=registry,
        )
        self.overdue = Counter(
            "p2pkv_overdue",
            "What was not sent, or not to its end, because whoever it was for had no time left for it.",
            ["what"],
            registry=registry,
        )
        self.links_lost = Counter("p2pkv_links_lost", "Control streams that failed.", registry=registry)

    def snapshot(self) -> dict[str, float]:
        """Return all counters as name{labels} -> value, for `p2pkv status`."""
        values: dict[str, float] = {}
        for family in self.registry.collect():
            if family.type != "counter":
                continue
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                    values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return values
