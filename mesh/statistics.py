"""What membership counts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipStatistics:
    """Sizes now, and counters since the start."""

    alive: int
    """Members believed alive, this node not counted."""
    suspect: int
    """Members under suspicion; they count as usable."""
    dead: int
    """Members listed that died."""
    left: int
    """Members listed that said goodbye."""
    updates_waiting: int
    """Updates that will ride on coming packets."""
    updates_dropped: int
    """Updates let go early because the queue was full."""
    relays_open: int
    """Pings under way for others."""
    relays_refused: int
    """Requests to ping for others that were refused because too many were open."""
    silent_probes: int
    """Probes that neither the member nor a helper answered."""
    declared_dead: int
    """Suspicions that ended in death here, not by hearsay."""
    refutations: int
    """Times this node had to say that it is alive."""
    confirmations: int
    """Suspicions of others that agreed with one that was known, and shortened it."""
    health_score: int
    """Local health now: 0 is well; this node's probes are `health_score + 1` times slower."""
    nacks_sent: int
    """Times this node said that a member did not answer it either."""
    stream_probes: int
    """Pings over the stream, where datagrams got no answer."""
    stalls: int
    """Times this node ran so late that it gave suspects more time."""
    packets_foreign: int
    """Packets of another cluster, ignored."""
    pings_misdirected: int
    """Pings that reached our address but meant another id: a process that was here before us."""
    seeds_refused: int
    """Addresses that were found and not taken, because there were as many seeds as may be."""
    records_refused: int
    """Records too large, without an address, or beyond what the table holds; and empty lists."""
    verdicts_doubted: int
    """Verdicts by others that this node did not believe, for want of accusers or because it had heard from the member."""
    verdicts_prolonged: int
    """Suspicions that were over and not enough for a verdict of this node's own."""
    verdicts_alone: int
    """Verdicts that this node came to with nobody to confirm them, as when it is cut off."""
    observations_refused: int
    """Suspects this node did not look at out of turn because too many were."""
