"""The parts membership is made of, put together once and shared by what hears, what believes and what time does."""

import itertools
from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from p2pkv.config import MeshConfig
from p2pkv.effects import MemberChanged, Note, Resolve, SendDatagram, SendStream
from p2pkv.mesh.comparison import Comparison
from p2pkv.mesh.contacts import Contacts
from p2pkv.mesh.duplicates import Duplicates
from p2pkv.mesh.gossip import GossipQueue
from p2pkv.mesh.health import LocalHealth
from p2pkv.mesh.join import Joiner
from p2pkv.mesh.loads import Loads
from p2pkv.mesh.members import MemberState, MemberTable
from p2pkv.mesh.metadata import addresses
from p2pkv.mesh.notes import Notes
from p2pkv.mesh.observers import Observations
from p2pkv.mesh.outbox import Outbox
from p2pkv.mesh.own import OwnRecord
from p2pkv.mesh.pace import Pace
from p2pkv.mesh.probe import Prober
from p2pkv.mesh.relay import Relays, nack_after_s
from p2pkv.mesh.reunion import Reunion
from p2pkv.mesh.sources import Sources, scheme_of
from p2pkv.mesh.suspicion import Suspects
from p2pkv.transport.wire import MemberRecord

Effect: TypeAlias = SendDatagram | SendStream | Resolve | MemberChanged | Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One of each. The parts change; which they are does not."""

    config: MeshConfig
    cluster: str
    random: Random
    own: OwnRecord
    table: MemberTable
    queue: GossipQueue
    outbox: Outbox
    health: LocalHealth
    prober: Prober
    relays: Relays
    suspects: Suspects
    observations: Observations
    contacts: Contacts
    joiner: Joiner
    sources: Sources
    duplicates: Duplicates
    loads: Loads
    comparison: Comparison
    pace: Pace
    reunion: Reunion
    notes: Notes
    counts: "Counter[str]"

    def is_dead(self, member: str) -> bool:
        """Whether we believe `member` dead; if a message comes from it all the same, it must be told."""
        known = self.table.remembered(member)
        return known is not None and known.state == MemberState.DEAD

    def usable_addresses(self) -> frozenset[str]:
        """Return where the members to count on listen."""
        return frozenset(address for record in self.table.usable() for address in addresses(record))


def assemble(*, me: MemberRecord, cluster: str, config: MeshConfig, join: tuple[str, ...], random: Random) -> Parts:
    """Return the parts of a node that knows nobody yet.

    Raises:
        LocalUseError: names and addresses of this node are too long for a datagram.
    """
    sequence = itertools.count(1)  # one for all, so that an answer belongs to one probe or relay
    own, table = OwnRecord(me), MemberTable(reap_s=config.reap_s)
    queue = GossipQueue(mult=config.retransmit_mult)
    health = LocalHealth(
        enabled=config.local_health, health_max=config.health_max, one_nack_is_enough=config.observers > 0
    )
    parts = Parts(
        config=config,
        cluster=cluster,
        random=random,
        own=own,
        table=table,
        queue=queue,
        outbox=Outbox(own=own, table=table, cluster=cluster, queue=queue, warn_suspects=config.buddy),
        health=health,
        prober=Prober(
            period_s=config.probe_period_s,
            timeout_s=config.probe_timeout_s,
            helpers=config.indirect_probes,
            sequence=sequence,
            random=random,
            health=health,
        ),
        relays=Relays(
            keep_s=config.probe_period_s,
            nack_s=nack_after_s(period_s=config.probe_period_s, timeout_s=config.probe_timeout_s),
            sequence=sequence,
        ),
        suspects=Suspects(),
        observations=Observations(
            period_s=config.probe_period_s,
            timeout_s=config.probe_timeout_s,
            sequence=sequence,
            health=health,
        ),
        contacts=Contacts(),
        joiner=Joiner(
            seeds=tuple(entry for entry in join if not scheme_of(entry)),
            own_addresses=addresses(me),
            retry_s=config.join_retry_s,
        ),
        sources=Sources(tuple(entry for entry in join if scheme_of(entry)), retry_s=config.join_retry_s),
        duplicates=Duplicates(),
        loads=Loads(),
        comparison=Comparison(own, table),
        pace=Pace(period_s=config.push_pull_period_s, random=random),
        reunion=Reunion(random),
        notes=Notes(),
        counts=Counter(),
    )
    queue.put(me)
    return parts
