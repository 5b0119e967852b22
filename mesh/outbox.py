"""How packets leave: what each carries besides its body.

A packet is filled in this order: what its receiver must know, then the waiting updates, fewest-sent first, as far as
they fit `PACKET_BYTES_MAX` once encoded. Source: SWIM section 4.1 (updates ride on probes instead of being flooded).
"""

from random import Random
from typing import Final

import msgspec

from p2pkv.effects import SendDatagram, SendStream
from p2pkv.errors import LocalUseError
from p2pkv.mesh.chance import sample
from p2pkv.mesh.gossip import UPDATES_PER_PACKET_MAX, GossipQueue
from p2pkv.mesh.members import RECORD_BYTES_MAX, MemberState, MemberTable, record_bytes
from p2pkv.mesh.own import OwnRecord
from p2pkv.transport.wire import PACKET_BYTES_MAX, Ack, DatagramBody, Gossip, MemberRecord, Packet, Ping, encode

INTRODUCTIONS: Final = 3
"""Packets to a new member that carry our own record. With 5 % loss, one in 8,000 members needs gossip to hear of us."""
CLUSTER_BYTES_MAX: Final = 256
"""With it, the sender's fields and the largest body leave room in every packet; see the sum in ALGORITHM.md."""
_ALIVE: Final = int(MemberState.ALIVE)
_PROBE_BYTES_MAX: Final = 32
"""What a ping or its answer takes at most besides the id it names, which has up to `_UTF8_BYTES_MAX` for each character,
and an array of one update."""
_UTF8_BYTES_MAX: Final = 4
_ARRAY_HEADER_BYTES: Final = 2
"""What the array of updates may take more with many updates than with none."""


class Outbox:
    """The only maker of packets. It reads the table and this node's record, and changes neither."""

    def __init__(
        self, *, own: OwnRecord, table: MemberTable, cluster: str, queue: GossipQueue, warn_suspects: bool = True
    ) -> None:
        """Refuse what would not fit. `warn_suspects` is Lifeguard's buddy system, see `_must_know`.

        Raises:
            LocalUseError: names and addresses of this node, or its cluster's name, are too long for a datagram.
        """
        own_bytes, cluster_bytes = record_bytes(own.record), len(cluster.encode())
        if own_bytes > RECORD_BYTES_MAX or cluster_bytes > CLUSTER_BYTES_MAX:
            raise LocalUseError(
                f"this node's record takes {own_bytes} bytes, limit {RECORD_BYTES_MAX}, "
                f"and its cluster's name {cluster_bytes}, limit {CLUSTER_BYTES_MAX}",
                hint="choose a shorter name, zone or cluster",
            )
        self._own = own
        self._table = table
        self._cluster = cluster
        self._queue = queue
        self._waiting = queue.sent
        self._told = {MemberState.SUSPECT, MemberState.DEAD} if warn_suspects else {MemberState.DEAD}
        self._introductions: dict[str, int] = {}
        self._measured: tuple[MemberRecord, int] | None = None

    def introduce(self, member: str) -> None:
        """Let our own record ride on the next packets to `member`, which may not know us."""
        self._introductions[member] = INTRODUCTIONS

    def on_met(self, member: str) -> None:
        """Take that `member` has pinged us or answered our ping, and said nothing of us that we would contradict.

        Who pings us lists us, and who answers has our ping, which introduced us. A relay that pings for another is
        the exception, and hears of us by gossip.
        """
        self._introductions.pop(member, None)

    def end_introductions(self) -> None:
        """Stop introducing us to anybody: lists have been compared so often that all know us.

        In a mesh of a thousand a member is met once in 1,000 periods. Without this most pings would carry our record for
        the first quarter of an hour.
        """
        self._introductions.clear()

    def forget(self, member: str) -> None:
        """Stop introducing us to a member that is gone."""
        self._introductions.pop(member, None)

    def has_news(self) -> bool:
        """Whether an update waits and there is somebody to tell."""
        return bool(self._waiting) and not self._table.is_alone()

    def gossip(self, fanout: int, random: Random) -> list[SendDatagram]:
        """Return packets with waiting updates to up to `fanout` random members."""
        packets: list[SendDatagram] = []
        for member in sample(self._table.usable(), fanout, random):
            if not self._queue:
                break
            packets.append(self.datagram(member.id, member.address, Gossip()))
        return packets

    def goodbye(self, copies: int, random: Random) -> list[SendDatagram]:
        """Return packets that tell up to `copies` random members this node's record as it is now."""
        told = sample(self._table.usable(), copies, random)
        return [self.datagram(member.id, member.address, Gossip(), first=(self._own.record,)) for member in told]

    def knock(self, member: MemberRecord, seq: int) -> list[SendStream]:
        """Return a ping over the stream, behind what the member must know; datagrams got no answer.

        Source: memberlist's fallback ping over TCP. Without it a member dies of lost datagrams alone.
        """
        must = self._must_know(member.id, member.address)
        messages = [SendStream(member.address, self._packet(Gossip(), must))] if must else []
        return [*messages, SendStream(member.address, Ping(seq=seq, target=member.id))]

    def answer_knock(self, address: str, seq: int) -> SendStream:
        """Return the answer over the stream, with our own record: what refutes must not depend on datagrams either."""
        own = self._own.record
        return SendStream(address, self._packet(Ack(seq=seq, target=own.id), (own,)))

    def datagram(
        self, member: str, address: str, body: DatagramBody, *, first: tuple[MemberRecord, ...] = ()
    ) -> SendDatagram:
        """Return a packet to `member` with `first`, what it must know, and as many waiting updates as fit."""
        if not self._waiting and not first:  # most packets of a mesh at rest
            known = self._table.get(member)
            if known is not None and known.state == _ALIVE and known.address == address:
                if member not in self._introductions:
                    return SendDatagram(address, self._packet(body))
                if isinstance(body, Ping | Ack) and self._fits_beside(body):
                    return SendDatagram(address, self._packet(body, self._introduction(member)))
        packet = self._packet(body)
        must_know = (*first, *self._must_know(member, address))
        room = PACKET_BYTES_MAX - len(encode(packet)) - _ARRAY_HEADER_BYTES
        updates: list[MemberRecord] = []
        for record in must_know:
            size = record_bytes(record)
            if size <= room:
                updates.append(record)
                room -= size
        if self._own.record in updates:  # an introduction spreads it as well as gossip would
            self._queue.carried(self._own.record, members=self._table.mesh_size())
        updates += self._queue.take(
            members=self._table.mesh_size(),
            bytes_max=room,
            count_max=UPDATES_PER_PACKET_MAX - len(updates),
            skip={record.id for record in updates},
        )
        packet = msgspec.structs.replace(packet, updates=tuple(updates))
        assert len(encode(packet)) <= PACKET_BYTES_MAX
        return SendDatagram(address, packet)

    def _fits_beside(self, body: Ping | Ack) -> bool:
        """Whether our own record surely fits a packet with `body`; what has to be measured for that is measured once."""
        own = self._own.record
        if self._measured is None or self._measured[0] is not own:
            self._measured = own, record_bytes(own) + len(encode(self._packet(Gossip()))) + _PROBE_BYTES_MAX
        return self._measured[1] + _UTF8_BYTES_MAX * len(body.target) <= PACKET_BYTES_MAX

    def _packet(self, body: DatagramBody, updates: tuple[MemberRecord, ...] = ()) -> Packet:
        own = self._own.record
        return Packet(self._cluster, own.id, own.address, body, updates, self._own.load)

    def _introduction(self, member: str) -> tuple[MemberRecord, ...]:
        """Return our own record if `member` is to be introduced to us, and count that."""
        left = self._introductions.get(member, 0)
        if not left:
            return ()
        if left > 1:
            self._introductions[member] = left - 1
        else:
            del self._introductions[member]
        return (self._own.record,)

    def _must_know(self, member: str, address: str) -> tuple[MemberRecord, ...]:
        """Return what `member` at `address` has to hear.

        That it is doubted, so that it can refute; who we are, if it is new; and what we believe of it if we know it at
        another address: it may be a second process of that id, which nobody else writes to.

        Telling a suspect with the next ping instead of hoping for gossip is Lifeguard's buddy system, section IV-C; here
        every packet to a suspect tells.
        """
        must: list[MemberRecord] = []
        known = self._table.get(member)
        remembered = self._table.remembered(member)
        if remembered is not None and remembered.state in self._told:
            must.append(remembered)
        elif known is not None and known.address != address:
            must.append(known)
        introduction = self._introduction(member)
        if known is None and not introduction:
            introduction = (self._own.record,)
        return (*must, *introduction)
