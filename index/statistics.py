"""What a node can say of its summary and of its peers' summaries, for `status` and metrics."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryStatistics:
    """What the exchange did and holds; counts since the start."""

    epoch: int
    seq: int
    """Version of our filter that peers know."""
    bits_log2: int
    hashes: int
    fill_ratio: float
    """Share of bits set; above one half, more blocks are held than `blocks_expected`."""
    false_positive_ratio: float
    """Share of absent keys that our filter claims now."""
    peers: int
    """Usable members."""
    peers_with_filter: int
    peers_unsettled: int
    """Usable members whose filter is missing, incomplete or known to be behind."""
    filter_bytes: int
    """Memory that the peers' filters take, bit-sliced; up to four times their own sizes while peers leave."""
    deltas_sent: int
    """Messages, one for each peer."""
    snapshots_sent: int
    """Whole filters, one for each peer; each is one or more pages."""
    requests_sent: int
    requests_ignored: int
    """Requests that came right after a snapshot was sent; whoever still lacks it asks again."""
    from_strangers: int
    """Messages from nodes that membership does not hold for usable; ignored."""
    over_budget: int
    """Pages not taken because all filters together would exceed `filter_bytes_max`."""
    saturated: int
    """Counts of our filter that are stuck at their maximum."""
    removals_refused: int
    """Blocks removed that had not been added."""
    malformed: int
    """Messages of peers with values that cannot be; ignored."""
    repeated: int
    """Messages of versions already known; ignored."""
    gaps: int
    """Deltas that came without the ones before them."""
    too_big: int
    """Pages of filters larger than this node holds for one peer."""
    assembled: int
    """Whole filters of peers put in place."""
