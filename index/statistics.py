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
    keys_announced: int
    """Keys in our filter: of long chains about every eighth block."""
    resized: int
    """How often our filter was given another size, because there were more blocks than expected or far fewer again."""
    fill_ratio: float
    """Share of bits set; about one half in a filter that is as full as it may be."""
    false_positive_ratio: float
    """Share of absent keys that our filter claims now."""
    peers: int
    """Usable members."""
    peers_with_filter: int
    peers_unsettled: int
    """Usable members whose filter is missing, incomplete or known to be behind."""
    peers_folded: int
    """Members whose filter is held smaller than it is, because all together would exceed `filter_bytes_max`."""
    peers_distrusted: int
    """Members that lately lacked most of what their filter claims; others are asked first."""
    peers_false_positive_ratio: float
    """Share of absent keys that a peer's filter claims as it is held here, on average; folding makes it grow."""
    filter_bytes: int
    """Memory that the peers' filters take, bit-sliced; up to four times their own sizes while peers leave."""
    deltas_sent: int
    """Messages, one for each peer."""
    delta_bytes_sent: int
    snapshots_sent: int
    """Whole filters, one for each peer; each is one or more pages."""
    snapshot_bytes_sent: int
    deferred: int
    """How often a delta had to wait because `budget_bytes_s` were sent in the last second."""
    requests_sent: int
    requests_ignored: int
    """Requests that came right after a snapshot was sent; whoever still lacks it asks again."""
    from_strangers: int
    """Messages from nodes that membership does not hold for usable; ignored."""
    over_budget: int
    """Pages not taken because all filters together would exceed `filter_bytes_max` however small they were."""
    folded: int
    """Filters folded here for want of memory, the same one each time it was."""
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
    absences_known: int
    """Answers of peers that they lack a block, remembered now."""
    absences_dropped: int
    """Such answers forgotten before their time, for want of room."""
