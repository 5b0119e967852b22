"""Control messages between agents, each defined once: this class is the encoder, the decoder and the documentation.

Block bytes never pass through here; they are moved by a bulk transport and only named here by lease and position.
Evolution: append a field with a default, never reorder, never reuse a retired tag. Subclasses repeat `frozen=True`
because type checkers do not inherit it. Every field is bounded, because every field comes from somebody else.
"""

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES
from p2pkv.errors import MalformedMessage
from p2pkv.transport.keyring import RING_KEYS_MAX

PROTOCOL_MIN: Final = 1
PROTOCOL_MAX: Final = 1

MESSAGE_BYTES_MAX: Final = 64 * 1024
"""No control message is larger, on datagrams or streams. Larger things (member lists, filters) travel in pieces."""
DATAGRAM_BYTES_MAX: Final = 1400
"""Payload that fits an Ethernet frame with room for tunnels; memberlist's choice too."""
SEAL_BYTES: Final = 58
"""What sealing adds to a datagram (`p2pkv.transport.seal`): 42 in front, a tag of 16. Whoever counts bytes adds it."""
PACKET_BYTES_MAX: Final = DATAGRAM_BYTES_MAX - SEAL_BYTES
"""An encoded packet, which is filled up to this whether it is sealed or not, so that keys change nothing else."""
KEYS_PER_LEASE_MAX: Final = 256
"""Blocks of one lease request. With all descriptors the grant stays under `MESSAGE_BYTES_MAX`."""
RECORDS_PER_PUSH_MAX: Final = 128
BUCKETS_MAX: Final = 4096
"""Buckets of a `ListDigest`: 32 KiB of hashes."""
BUCKET_BYTES: Final = 8
ALSO_SUSPECTED_BY_MAX: Final = 7
"""Members named in a record besides the first that suspects; a verdict needs fewer (`mesh.accusers`)."""
ALSO_AT_MAX: Final = 3
"""Further addresses of one member."""
TIERS_MAX: Final = 8
"""Tiers besides host memory that one member offers."""
WEIGHTS_MAX: Final = 4
"""Weights that one member's engines compute with."""
WEIGHTS_CHARACTERS_MAX: Final = 96
PAGE_BYTES_MAX: Final = 32 * 1024
"""Bytes of a Bloom filter in one `SummaryPage`."""
FLIPS_PER_DELTA_MAX: Final = 8192
"""Flipped bits in one `SummaryDelta`; coded they take two to three bytes each."""
VERSIONS_PER_MESSAGE_MAX: Final = 4096
"""Members in one `SummaryVersions`, twelve bytes each."""
ANCHOR_BYTES: Final = 16
"""Of a key that stands for a stretch in the directory: enough that no two meet by chance."""
ANCHORS_PER_PUT_MAX: Final = 1024
ANCHORS_PER_ASK_MAX: Final = 1024
"""Stretches of one question: half a million tokens in blocks of 16."""
HOLDERS_PER_ANCHOR_MAX: Final = 8
"""Holders of one stretch that an answer names; more than a fetch tries."""
HOLDERS_PER_ANSWER_MAX: Final = 64
CLAIM_BYTES: Final = 4
LAYERS_MAX: Final = 4096
"""Layers, and heads, of a block that is moved in parts."""
FABRIC_METADATA_BYTES_MAX: Final = 16 * 1024
"""What a fabric's library says of one node's memory and of how to reach it; some 400 bytes, and more with many network cards."""
FABRICS_MAX: Final = 8
BLOCK_BYTES_MAX: Final = 256 * 1024 * 1024
"""No block is larger; a length from a peer beyond this is refused before anything is allocated."""

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
Small: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
RemainingMs: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""How long its sender will wait for what it asks for, from now on; never a wall-clock time, because clocks differ. 0: it
does not say."""
BulkBits: TypeAlias = Annotated[int, Meta(ge=0, le=2**16 - 1)]
Percent: TypeAlias = Annotated[int, Meta(ge=0, le=100)]
NodeId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
OptionalNodeId: TypeAlias = Annotated[str, Meta(max_length=64)]
Name: TypeAlias = Annotated[str, Meta(max_length=128)]
Address: TypeAlias = Annotated[str, Meta(max_length=270)]
"""`host:port`, or `[v6]:port`."""
WeightsEpoch: TypeAlias = Annotated[str, Meta(min_length=1, max_length=WEIGHTS_CHARACTERS_MAX)]
"""`weights_id=weights_epoch`, as in `p2pkv.blocks.Namespace`."""
Keys: TypeAlias = Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX * KEY_BYTES)]
"""Many keys as one field."""
Bitmap: TypeAlias = Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX // 8)]
"""Bit i (least significant first) speaks of key i."""

LayerNumber: TypeAlias = Annotated[int, Meta(ge=0, lt=LAYERS_MAX)]
LayerCount: TypeAlias = Annotated[int, Meta(ge=1, le=LAYERS_MAX)]
"""Of layers or heads."""


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """Base of every control message; on the wire a msgpack array that starts with the tag."""


# -- membership -----------------------------------------------------------------------------------------------------


class MemberRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one node says, or others say, of one member. How two records merge is in `p2pkv.mesh.members`."""

    id: NodeId
    boot: Count
    """Grows with every start of the node's process; a record of an older boot never wins."""
    incarnation: Count
    """Raised only by the member itself, to refute a suspicion or to change what it says of itself."""
    state: Annotated[int, Meta(ge=0, le=3)]
    """0 alive, 1 suspect, 2 dead, 3 left."""
    name: Name
    address: Address
    host_id: Name = ""
    """Equal on two nodes of one machine; empty when unknown."""
    zone: Name = ""
    offered_bytes: Count = 0
    """Memory the node offers to the mesh over all tiers; its weight on the ring."""
    suspected_by: OptionalNodeId = ""
    """Of a suspect: a member that got no answer from it. Suspicions by different members confirm each other."""
    also_suspected_by: Annotated[tuple[NodeId, ...], Meta(max_length=ALSO_SUSPECTED_BY_MAX)] = ()
    """Further ones. Of a dead member: on whose word, with `suspected_by`, it was declared dead."""
    rack: Name = ""
    """Where in its zone the node stands; empty when unknown."""
    also_at: Annotated[tuple[Address, ...], Meta(max_length=ALSO_AT_MAX)] = ()
    """Further addresses that lead to the node, the best first."""
    tier_bytes: Annotated[tuple[Count, ...], Meta(max_length=TIERS_MAX)] = ()
    """Of `offered_bytes`, what is not in host memory: by tier, in the order of `p2pkv.mesh.metadata.FURTHER_TIERS`."""
    protocol_min: Small = 1
    """With `protocol_max`, the versions the node speaks."""
    protocol_max: Small = 1
    weights: Annotated[tuple[WeightsEpoch, ...], Meta(max_length=WEIGHTS_MAX)] = ()
    """What the node's engines compute with, as far as it was told."""


Updates: TypeAlias = Annotated[tuple[MemberRecord, ...], Meta(max_length=64)]


class Ping(Message, tag=1, frozen=True):
    """Is `target` alive? The receiver answers with `Ack` carrying the same `seq`.

    Alone on a stream, where datagrams brought no answer, it is answered over the stream.
    """

    seq: Count
    target: NodeId


class PingRequest(Message, tag=2, frozen=True):
    """Please ping `target` for me and pass its `Ack` on under my `seq`."""

    seq: Count
    target: NodeId
    target_address: Address
    nack: bool = False
    """Answer with `Nack` if the target has not answered in good time."""


class Ack(Message, tag=3, frozen=True):
    """Answer to `Ping`, direct or passed on by a helper; `target` is who is alive."""

    seq: Count
    target: NodeId


class Gossip(Message, tag=4, frozen=True):
    """Nothing but the updates of the packet it travels in."""


class Nack(Message, tag=16, frozen=True):
    """Answer to `PingRequest`: `target` has not answered me either, but I am here and you are heard."""

    seq: Count
    target: NodeId


DatagramBody: TypeAlias = Ping | PingRequest | Ack | Gossip | Nack


class Packet(Message, tag=5, frozen=True):
    """One datagram: who sends it, what it says, and the membership updates that ride along."""

    cluster: Name
    sender: NodeId
    sender_address: Address
    body: DatagramBody
    updates: Updates = ()
    load: Percent = 0
    """How busy the sender is with serving blocks. It rides here and not in the sender's record because it changes all the
    time: news of a record travels to everybody, and this byte to whoever is written to anyway."""


class PushPull(Message, tag=6, frozen=True):
    """A part of the sender's member list, over the stream. The first record is the sender's own.

    `reply` asks the receiver for its list.
    """

    records: Annotated[tuple[MemberRecord, ...], Meta(max_length=RECORDS_PER_PUSH_MAX)]
    reply: bool


class ListDigest(Message, tag=20, frozen=True):
    """Is this what you believe too? Hashes over the sender's own record and those of the members it counts on.

    Answered by `ListDifference` if it is not, and by nothing if it is. See `p2pkv.mesh.digest`.
    """

    own: MemberRecord
    buckets: Annotated[bytes, Meta(min_length=BUCKET_BYTES, max_length=BUCKETS_MAX * BUCKET_BYTES)]
    """One hash after the other; their number is a power of two."""


class ListDifference(Message, tag=21, frozen=True):
    """Answer to `ListDigest`: what the sender believes of the members in buckets whose hashes differ, or a part of it.

    The first record is the sender's own. The receiver answers with a `PushPull` of what it knows better.
    """

    records: Annotated[tuple[MemberRecord, ...], Meta(min_length=1, max_length=RECORDS_PER_PUSH_MAX)]
    bucket_count: Annotated[int, Meta(ge=1, le=BUCKETS_MAX)]
    """As in the digest."""
    differing: Annotated[bytes, Meta(max_length=BUCKETS_MAX // 8)]
    """Bit i, least significant first: bucket i is told in this message."""


# -- summaries ------------------------------------------------------------------------------------------------------


class SummaryPage(Message, tag=7, frozen=True):
    """A piece of the sender's whole filter at (epoch, seq). All pieces of one version make a snapshot."""

    epoch: Count
    seq: Count
    bits_log2: Annotated[int, Meta(ge=6, le=36)]
    hashes: Annotated[int, Meta(ge=1, le=32)]
    offset: Count
    """Position of `data` in the filter, bytes."""
    # Trailing zero bytes are left out, so that an empty filter is a few bytes and not a megabyte.
    data: Annotated[bytes, Meta(max_length=PAGE_BYTES_MAX)]
    set_bits: Annotated[int, Meta(ge=0, le=8 * PAGE_BYTES_MAX)] = 0
    """Not 0: `data` is no bits, but the positions of so many set bits in the piece, coded as in `SummaryDelta`."""
    gap_bits: Annotated[int, Meta(ge=0, le=31)] = 0


class SummaryDelta(Message, tag=8, frozen=True):
    """Bits that flipped between `seq - 1` and `seq` of the sender's filter, folded to 2**bits_log2 bits for this reader.

    `flips` are the gaps between the positions of `count` bits, Rice-coded with `gap_bits` low bits; `index/gaps.py` has
    the format.
    """

    epoch: Count
    seq: Count
    bits_log2: Annotated[int, Meta(ge=6, le=36)]
    count: Annotated[int, Meta(ge=0, le=FLIPS_PER_DELTA_MAX)]
    gap_bits: Annotated[int, Meta(ge=0, le=31)]
    flips: Annotated[bytes, Meta(max_length=FLIPS_PER_DELTA_MAX * 4)]


class SummaryRequest(Message, tag=9, frozen=True):
    """Send me your whole filter: I have none, or missed a delta."""

    bits_log2_max: Annotated[int, Meta(ge=0, le=36)] = 0
    """Not 0: fold it to at most 2**bits_log2_max bits, and what follows of it too; I have no memory for more."""
    wanted: bool = True
    """False: I keep no summary of yours, as I keep as many as I may. Send nothing until I ask."""


class SummaryVersions(Message, tag=23, frozen=True):
    """Which versions of members' filters I have, mine included; sent beside `PushPull` to the same member.

    Whoever is behind on one of them, and stays so, asks that member for a snapshot.
    """

    versions: Annotated[bytes, Meta(max_length=VERSIONS_PER_MESSAGE_MAX * 12)]
    """Per member three u32, little-endian: a digest of its id, and the low bits of the filter's epoch and seq."""


# -- directory ------------------------------------------------------------------------------------------------------


class DirectoryPut(Message, tag=25, frozen=True):
    """Records of `holder` for the receiver to keep: what it holds of stretches of chains, by their anchors.

    Sent by the holder itself: changes since its last one, or nothing but a renewal of what was sent before. Sent by
    another member: what that owned and the receiver owns now.
    """

    holder: NodeId
    boot: Count
    """Of the holder; records of an earlier life go with it."""
    lease_ms: Small
    """How long all of the holder's records are good from now on, unless they are renewed."""
    tier: Annotated[int, Meta(ge=0, le=3)]
    """Fastest tier that all of the blocks are in: 0 host memory."""
    anchors: Annotated[bytes, Meta(max_length=ANCHORS_PER_PUT_MAX * ANCHOR_BYTES)]
    """The last 16 bytes of the key of each stretch's first block, one after another."""
    blocks: Annotated[bytes, Meta(max_length=ANCHORS_PER_PUT_MAX)]
    """For each anchor, how many blocks of the stretch from its start are held; 0 withdraws the record."""
    fresh: bool = False
    """Forget what the holder said before: this and what follows is all."""
    settled: bool = False
    """Nothing more is under way, and `fingerprint` is what the receiver should have."""
    fingerprint: Count = 0
    """Exclusive or over all of the holder's records at the receiver; see `p2pkv.index.records`."""


class DirectoryResend(Message, tag=26, frozen=True):
    """What I have of yours is not what your fingerprint says: send it all again."""


class DirectoryAsk(Message, tag=27, frozen=True):
    """Who holds stretches with these anchors? Answered by `DirectoryAnswer` with the same `request`."""

    request: Count
    anchors: Annotated[bytes, Meta(max_length=ANCHORS_PER_ASK_MAX * ANCHOR_BYTES)]
    remaining_ms: RemainingMs = 0
    """How long the answer is waited for; one that cannot leave by then does not. 0: not said."""


class DirectoryAnswer(Message, tag=28, frozen=True):
    """What the sender's records say of the anchors asked for."""

    request: Count
    holders: Annotated[tuple[NodeId, ...], Meta(max_length=HOLDERS_PER_ANSWER_MAX)]
    claims: Annotated[bytes, Meta(max_length=ANCHORS_PER_ASK_MAX * HOLDERS_PER_ANCHOR_MAX * CLAIM_BYTES)]
    """Four bytes each: place of the anchor in the question (u16, little-endian), place in `holders`, and the number of
    blocks in the low six bits, above them the tier."""


# -- fetching -------------------------------------------------------------------------------------------------------


class LeaseRequest(Message, tag=10, frozen=True):
    """Pin what you have of `keys` for me. Answered by `LeaseGrant` with the same `request`."""

    request: Count
    keys: Keys
    remaining_ms: Small
    """How long the requester will wait; never a wall-clock time, because clocks differ."""
    mapped: bool = False
    """The requester has the receiver's arena mapped, and would rather copy than be sent: say where the blocks lie."""
    direct_bytes: Small = 0
    """On a bulk stream: if what is granted is no more than that, send it right behind the grant. Elsewhere without meaning."""


class LeaseGrant(Message, tag=11, frozen=True):
    """Which of the keys are pinned, until when, and what their bytes must be.

    The per-block fields have one entry per granted key, in key order. An empty grant has `lease` 0.
    """

    request: Count
    lease: Count
    granted: Bitmap
    lease_ms: Small
    lengths: Annotated[tuple[Annotated[int, Meta(ge=1, le=BLOCK_BYTES_MAX)], ...], Meta(max_length=KEYS_PER_LEASE_MAX)]
    segment_bytes: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=BLOCK_BYTES_MAX)], ...], Meta(max_length=KEYS_PER_LEASE_MAX)
    ]
    digests: Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX * DIGEST_BYTES)]
    namespaces: Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX * KEY_BYTES)]
    reason: Name = ""
    """Why less was granted than asked, when it is not simply absent."""
    offsets: Annotated[tuple[Count, ...], Meta(max_length=KEYS_PER_LEASE_MAX)] = ()
    """To a requester that has the arena mapped: where each block lies, from the first slot. Else empty."""
    generations: Annotated[tuple[Count, ...], Meta(max_length=KEYS_PER_LEASE_MAX)] = ()
    """The generation of each block's slot under which it is that block."""
    busy_ms: Small = 0
    """Not 0: nothing is granted, because too much is leased already to be sent in time; ask again after so long."""
    check: Annotated[bytes, Meta(max_length=8)] = b""
    """Of all fields in front of this one but `reason` and `busy_ms`, and of the keys granted; see `p2pkv.fetch.grant_check`."""
    direct: bool = False
    """On a bulk stream: all that is granted follows as if it had been pulled, and the lease ends when it is sent."""


class LeaseRelease(Message, tag=12, frozen=True):
    """Done with a lease, fetched or not. Without it the lease ends at its deadline."""

    lease: Count


class LeaseRenew(Message, tag=31, frozen=True):
    """I am still at it: hold the lease for `remaining_ms` from now on, or as long as you would at first. Not answered."""

    lease: Count
    remaining_ms: Small


# -- parts and pushes ------------------------------------------------------------------------------------------------


class PushOffer(Message, tag=50, frozen=True):
    """May I have you fetch these blocks from me, as they are computed? Answered by `PushAnswer`.

    The receiver reserves places for what it takes, and pulls what `PushReady` announces with `PullParts`.
    """

    push: Count
    """The sender's number of it."""
    namespace: Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    keys: Keys
    """One after another in their chain."""
    layers: LayerCount
    heads: LayerCount
    segment_bytes: Annotated[int, Meta(ge=1, le=BLOCK_BYTES_MAX)]
    remaining_ms: Small
    first_depth: Annotated[int, Meta(ge=-1, lt=2**32)] = -1
    """Blocks before the first in its chain; -1 if not known."""
    parent: Annotated[bytes, Meta(max_length=KEY_BYTES)] = b""
    """The last of those."""


class PushAnswer(Message, tag=51, frozen=True):
    """Answer to `PushOffer`: for which blocks places are reserved, and how much may be announced at once."""

    push: Count
    taken: Bitmap
    """None and no refusal: all are here already."""
    credits: Annotated[int, Meta(ge=0, le=1024)]
    refusal: Name = ""


class PushReady(Message, tag=52, frozen=True):
    """These layers of these blocks can be pulled. Costs one credit."""

    push: Count
    wanted: Bitmap
    """By position in the offer."""
    first_layer: LayerNumber
    layers: LayerCount


class PushCredit(Message, tag=53, frozen=True):
    """What one `PushReady` announced is here and verified; as many more may be announced."""

    push: Count
    credits: Annotated[int, Meta(ge=1, le=1024)]


class PushDigests(Message, tag=54, frozen=True):
    """All is announced, and these are the digests of the blocks taken, in order: store what has them."""

    push: Count
    digests: Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX * DIGEST_BYTES)]


class PushDone(Message, tag=55, frozen=True):
    """The receiver has stored all blocks it took; the sender may let go of them."""

    push: Count


class PushCancel(Message, tag=56, frozen=True):
    """A push is over before its end: the sender of this gives back what it held for it, and the other does too."""

    push: Count
    offered: bool
    """Whether the sender of this is who offered the push; each side has its own numbers."""
    reason: Name = ""


# -- streams --------------------------------------------------------------------------------------------------------


class Hello(Message, tag=13, frozen=True):
    """First message on every stream: who calls, for what, and which protocol versions it speaks."""

    cluster: Name
    node: NodeId
    address: Address
    purpose: Annotated[int, Meta(ge=0, le=1)]
    """0 control messages, 1 bulk."""
    protocol_min: Small = PROTOCOL_MIN
    protocol_max: Small = PROTOCOL_MAX
    bulk: BulkBits = 4
    """On a sealed bulk stream: how the caller accepts that bodies are protected, the bits of
    `p2pkv.transport.bulk_protection`. Without seal there is no choice."""


class HelloAck(Message, tag=14, frozen=True):
    """Answer to `Hello`: the answering node and the version to speak, or the reason of the refusal."""

    node: NodeId
    protocol: Small
    refusal: Name = ""
    bulk: BulkBits = 4
    """On a sealed bulk stream: how bodies are protected, one bit."""


class TlsHello(Message, tag=40, frozen=True):
    """First message inside TLS, in place of `Hello`: who calls, and what time it is there.

    The node must be the one of the caller's certificate.
    """

    cluster: Name
    node: NodeId
    address: Address
    clock_ms: Count
    """Wall clock, since 1970: certificates are judged by it, so clocks that differ much are noticed here."""
    protocol_min: Small = PROTOCOL_MIN
    protocol_max: Small = PROTOCOL_MAX


class TlsAck(Message, tag=41, frozen=True):
    """Answer to `TlsHello`, or the reason of its refusal. From the caller, at any time: why it hangs up."""

    node: NodeId
    protocol: Small
    clock_ms: Count
    refusal: Name = ""


class SessionAsk(Message, tag=42, frozen=True):
    """Give me a key for connections that carry blocks, which do not run inside TLS. Answered by `SessionGrant`."""


class SessionGrant(Message, tag=43, frozen=True):
    """Answer to `SessionAsk` on the same stream: a key for the asking node alone, named by its fingerprint."""

    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    lifetime_ms: Small
    """How long it is good from now on; never a wall-clock time."""

    def __repr__(self) -> str:
        return f"SessionGrant(key=..., lifetime_ms={self.lifetime_ms})"


class Pull(Message, tag=15, frozen=True):
    """On a bulk stream: send these blocks of the lease, each as a bulk header and its body, in order."""

    lease: Count
    wanted: Bitmap
    """Speaks of the granted blocks of the lease, by their position in the grant."""
    remaining_ms: RemainingMs = 0
    """How long the blocks are waited for; what is not sent by then is not sent. 0: not said."""


class PullParts(Message, tag=57, frozen=True):
    """On a bulk stream: send a layer range x head range of these blocks, each as described in `transport/part_streams.py`."""

    pushed: bool
    """Whether `lease` is a push that the receiver of this offered, and no lease."""
    lease: Count
    wanted: Bitmap
    layers: LayerCount
    """With `heads`, of a whole block; a block of another division is absent."""
    heads: LayerCount
    first_layer: LayerNumber
    part_layers: LayerCount
    first_head: LayerNumber
    part_heads: LayerCount
    bodies: bool = True
    """False: only the digests of the segments."""
    remaining_ms: RemainingMs = 0
    """As in `Pull`."""


class ArenaOffer(Message, tag=29, frozen=True):
    """On a stream of one machine, with the descriptor of the sender's arena beside it: map it and read."""

    boot: Count
    """Of the sender's process; another one has another arena."""
    arena_bytes: Count
    table_bytes: Count
    """Of the generations in front of the slots."""


class Places(Message, tag=30, frozen=True):
    """Answer to `Pull` on such a stream: where in the arena the blocks lie, instead of their bytes.

    `offsets` and `generations` have one entry per set bit of `placed`; the rest of `asked` is absent.
    """

    lease: Count
    asked: Bitmap
    placed: Bitmap
    offsets: Annotated[tuple[Count, ...], Meta(max_length=KEYS_PER_LEASE_MAX)]
    """From the first slot, bytes; slots begin at pages."""
    generations: Annotated[tuple[Count, ...], Meta(max_length=KEYS_PER_LEASE_MAX)]


class FabricOffer(Message, tag=60, frozen=True):
    """On a bulk stream, first of all, from the caller and then from the one called: how to reach the sender's memory.

    Only over a stream that is sealed or does not leave the machine: whoever has `metadata` can read and write.
    """

    reach: Name
    """Equal on two nodes whose processes can copy out of each other; empty if this one cannot."""
    fabrics: Annotated[tuple[Name, ...], Meta(max_length=FABRICS_MAX)]
    """What the sender has: see `p2pkv.transport.fabrics`."""
    metadata: Annotated[bytes, Meta(max_length=FABRIC_METADATA_BYTES_MAX)]
    """Of the library; what in it concerns addresses stays in it."""
    arena_bytes: Count
    table_bytes: Count
    """Of the generations in front of the slots."""
    landing_bytes: Count
    """Of the place where the sender may be written to."""
    refusal: Name = ""
    """Why not, and then nothing else counts."""


class FabricPull(Message, tag=61, frozen=True):
    """On such a stream: write these blocks of the lease into my landing place, and answer with `Written` after that."""

    lease: Count
    wanted: Bitmap
    offsets: Annotated[tuple[Count, ...], Meta(max_length=KEYS_PER_LEASE_MAX)]
    """Where in the landing place, one for each set bit of `wanted`."""
    lengths: Annotated[tuple[Annotated[int, Meta(ge=1, le=BLOCK_BYTES_MAX)], ...], Meta(max_length=KEYS_PER_LEASE_MAX)]
    """How much room is there: exactly the block's length."""
    ticket: Count
    """What the notification behind the bytes carries."""
    remaining_ms: RemainingMs = 0
    """As in `Pull`; what is not written by then is absent."""


class Written(Message, tag=62, frozen=True):
    """Answer to `FabricPull`: nothing more is written for that ticket. What is not in `written` is absent."""

    ticket: Count
    written: Bitmap


# -- keys -----------------------------------------------------------------------------------------------------------


class KeyCommand(Message, tag=17, frozen=True):
    """Change or tell your keyring. Only over a sealed stream; answered by `KeyReport` with the same `request`."""

    request: Count
    action: Annotated[int, Meta(ge=0, le=3)]
    """0 tell, 1 install, 2 use as the primary one, 3 remove."""
    key: Annotated[bytes, Meta(max_length=32)] = b""
    """The key itself to install, the fingerprint of the one to use or remove, nothing to tell."""

    def __repr__(self) -> str:
        return f"KeyCommand(request={self.request}, action={self.action}, key=...)"


class KeyReport(Message, tag=18, frozen=True):
    """Answer to `KeyCommand`: the keys that the answering node accepts now, and why it did not obey, if so."""

    request: Count
    fingerprints: Annotated[
        tuple[Annotated[bytes, Meta(min_length=8, max_length=8)], ...], Meta(max_length=RING_KEYS_MAX)
    ]
    """The primary key's first."""
    refusal: Name = ""


AnyMessage: TypeAlias = (
    Packet
    | PushPull
    | ListDigest
    | ListDifference
    | SummaryPage
    | SummaryDelta
    | SummaryRequest
    | SummaryVersions
    | DirectoryPut
    | DirectoryResend
    | DirectoryAsk
    | DirectoryAnswer
    | LeaseRequest
    | LeaseGrant
    | LeaseRelease
    | LeaseRenew
    | Hello
    | HelloAck
    | TlsHello
    | TlsAck
    | SessionAsk
    | SessionGrant
    | Pull
    | PullParts
    | PushOffer
    | PushAnswer
    | PushReady
    | PushCredit
    | PushDigests
    | PushDone
    | PushCancel
    | Ping
    | ArenaOffer
    | Places
    | FabricOffer
    | FabricPull
    | Written
    | KeyCommand
    | KeyReport
)
"""Whatever may stand alone in a datagram or a stream frame."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """Return `message` as bytes, without a length prefix."""
    data = _encoder.encode(message)
    assert len(data) <= MESSAGE_BYTES_MAX, f"{type(message).__name__} grew past the limit"
    return data


def decode_untrusted(data: bytes, *, peer: str) -> AnyMessage:
    """Return the message in `data`, which came from the network.

    Raises:
        MalformedMessage: whatever is wrong with `data`; no other exception escapes.
    """
    if len(data) > MESSAGE_BYTES_MAX:
        raise MalformedMessage(f"message of {len(data)} bytes, limit {MESSAGE_BYTES_MAX}", peer=peer)
    try:
        return _decoder.decode(data)
    # msgspec lets two more through: bad UTF-8 in a string, and arrays nested thousands deep in a field we skip.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedMessage(f"undecodable message ({exc})", peer=peer) from exc


def bitmap(positions: list[int]) -> bytes:
    """Return a `Bitmap` with the bits at `positions` set."""
    first, count = (positions[0], len(positions)) if positions else (0, 0)
    value = ((1 << count) - 1) << first
    if positions != list(range(first, first + count)):  # seldom, and ten times as slow
        value = 0
        for position in positions:
            value |= 1 << position
    return value.to_bytes((max(positions, default=-1) + 8) // 8, "little")


def bit_positions(data: bytes) -> list[int]:
    """Undo `bitmap`: the positions of the set bits, ascending."""
    return [i for i, bit in enumerate(bin(int.from_bytes(data, "little"))[:1:-1]) if bit == "1"]
