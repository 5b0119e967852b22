"""What the network adds to a message that the simulator does not encode: the seal of a datagram, the frame of a stream."""

from dataclasses import dataclass
from typing import Final

from p2pkv.sim.world import Traffic

SEALED_DATAGRAM_BYTES: Final = 60
"""A sealed datagram has 42 bytes in front (key, sender, boot, salt, sequence) and a tag of 16 behind; rounded up."""
STREAM_MESSAGE_BYTES: Final = 30
"""A message on a sealed stream has its length, 4, in a record with a length of 4 and a tag of 16; rounded up."""


@dataclass(frozen=True, slots=True)
class Overheads:
    """Bytes added to each message when load is counted; IP, UDP and TCP headers are not among them."""

    datagram_bytes: int = SEALED_DATAGRAM_BYTES
    stream_bytes: int = STREAM_MESSAGE_BYTES

    def load(self, before: Traffic, after: Traffic, *, node_seconds: float) -> "Load":
        """Return what was sent between two snapshots, per node and second."""
        datagrams = after.datagrams - before.datagrams
        messages = after.stream_messages - before.stream_messages
        datagram_bytes = after.datagram_bytes - before.datagram_bytes + self.datagram_bytes * datagrams
        stream_bytes = after.stream_bytes - before.stream_bytes + self.stream_bytes * messages
        return Load(
            datagrams_per_node_s=round(datagrams / node_seconds, 3),
            stream_messages_per_node_s=round(messages / node_seconds, 3),
            datagram_bytes_per_node_s=round(datagram_bytes / node_seconds, 1),
            stream_bytes_per_node_s=round(stream_bytes / node_seconds, 1),
            bytes_per_node_s=round((datagram_bytes + stream_bytes) / node_seconds, 1),
        )


ASSUMED: Final = Overheads()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each node sends per second, on average, overheads included."""

    datagrams_per_node_s: float
    stream_messages_per_node_s: float
    datagram_bytes_per_node_s: float
    stream_bytes_per_node_s: float
    bytes_per_node_s: float
