"""Messages between an engine (or the command line) and its node's daemon, over a Unix socket of mode 0600.

Block bytes are never in a message. To read, the client maps the daemon's arena, whose descriptor comes with `Welcome`,
and copies from the slots of a lease. To write, it lays bytes in a staging memfd of its own, whose descriptor goes with
`Attach`, and the daemon copies and verifies them: no engine can scribble on what others read.
The rules of `p2pkv.transport.wire` hold here too; the client is trusted with no more than its own mistakes.
"""

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from p2pkv.blocks import DIGEST_BYTES, KEY_BYTES
from p2pkv.errors import MalformedMessage
from p2pkv.transport.keyring import RING_KEY_BYTES
from p2pkv.transport.wire import (
    BLOCK_BYTES_MAX,
    KEYS_PER_LEASE_MAX,
    LAYERS_MAX,
    Count,
    LayerCount,
    LayerNumber,
    Name,
    Small,
)

LOCAL_PROTOCOL: Final = 1
LOCAL_MESSAGE_BYTES_MAX: Final = 8 * 2**20
KEYS_PER_CHAIN_MAX: Final = 65_536
"""Blocks of one chain: a million tokens in blocks of 16."""
SHARDS_MAX: Final = 4096
"""Blocks of one `ShardRequest`."""
SHARD_DIGESTS_BYTES_MAX: Final = 4 * 2**20
"""Digests of its segments, all together."""
STAGING_BYTES_MAX: Final = 2**36
SEATS_MAX: Final = 256
"""Nodes in one `ScoreReply`."""
HANDED_MAX: Final = 4096
"""Blocks of one `HandedReply`."""

Keys: TypeAlias = Annotated[bytes, Meta(max_length=KEYS_PER_CHAIN_MAX * KEY_BYTES)]
Key: TypeAlias = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Digest: TypeAlias = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Text: TypeAlias = Annotated[str, Meta(max_length=4096)]
Length: TypeAlias = Annotated[int, Meta(ge=1, le=BLOCK_BYTES_MAX)]


class LocalMessage(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """Base of every message on the local socket."""


# -- requests -------------------------------------------------------------------------------------------------------


class Attach(LocalMessage, tag=1, frozen=True):
    """First message of a client. With `staging_bytes` above 0 its staging memfd comes along."""

    protocol: Small
    client: Name
    staging_bytes: Annotated[int, Meta(ge=0, le=STAGING_BYTES_MAX)]


class MatchRequest(LocalMessage, tag=2, frozen=True):
    """How much of this chain can be had? Answered by `MatchReply` from what the node knows, at once."""

    keys: Keys


class AcquireRequest(LocalMessage, tag=3, frozen=True):
    """Bring the longest usable prefix of this chain here and pin it. Answered by `AcquireReply`."""

    keys: Keys
    timeout_ms: Small
    block_bytes: Small = 0
    """How long a block is, 0 if the engine does not say; see `Node.acquire`."""
    prefill_block_us: Small = 0
    """With `block_bytes`: what computing a block costs the engine, microseconds. 0: fetching always pays."""
    first: Small = 0
    """Blocks at the head of the chain that the engine has itself; the answer begins behind them."""


class PrefetchRequest(LocalMessage, tag=92, frozen=True):
    """Begin to bring this chain here, and keep what comes for `timeout_ms`. Answered by `PrefetchReply` at once."""

    keys: Keys
    timeout_ms: Small
    block_bytes: Small = 0
    """See `AcquireRequest`."""


class ReleaseRequest(LocalMessage, tag=4, frozen=True):
    """Done with a lease. Answered by `Done`."""

    lease: Count


class PinRequest(LocalMessage, tag=16, frozen=True):
    """Keep what is here of this chain's head for `ttl_ms`; 0 ends that. Answered by `PinReply`."""

    keys: Keys
    ttl_ms: Count


class StagedBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block laid at `offset` of the staging memory."""

    key: Key
    offset: Count
    length: Length
    segment_bytes: Length
    digest: Digest


class PublishRequest(LocalMessage, tag=5, frozen=True):
    """Take these staged blocks. Answered by `PublishReply`; the staging memory is free again then.

    With a `first_depth` that is not negative the blocks follow one another in one chain, the first of them behind that
    many others, of which `parent` is the last, empty if unknown. Otherwise nothing is known of their order.
    """

    namespace: Key
    blocks: Annotated[tuple[StagedBlock, ...], Meta(max_length=KEYS_PER_CHAIN_MAX)]
    first_depth: Annotated[int, Meta(ge=-1, lt=2**32)] = -1
    parent: Annotated[bytes, Meta(max_length=KEY_BYTES)] = b""


class StatusRequest(LocalMessage, tag=6, frozen=True):
    """How is the node? Answered by `StatusReply`."""


class MembersRequest(LocalMessage, tag=7, frozen=True):
    """What does the node believe of the members? Answered by `MembersReply`."""


class LocateRequest(LocalMessage, tag=8, frozen=True):
    """Where is this block? Answered by `LocateReply`."""

    key: Key


class LeaveRequest(LocalMessage, tag=9, frozen=True):
    """Leave the mesh in good order and stop the daemon. Answered by `Done`."""


class HandOverRequest(LocalMessage, tag=94, frozen=True):
    """Keep memory as it is, for this process takes the daemon's place. Answered by `HandOverReply`.

    `format` is that of `HandedBlock`; to another one nothing is handed over. It ends with the connection, unless `FollowRequest` came.
    """

    format: Small


class HandedRequest(LocalMessage, tag=95, frozen=True):
    """Name blocks from number `first` on. Answered by `HandedReply`."""

    first: Count


class FollowRequest(LocalMessage, tag=96, frozen=True):
    """All that is wanted has been copied: end, so that this process can take the place. Answered by `Done`."""


class RingRequest(LocalMessage, tag=15, frozen=True):
    """Who owns how much of the ring? Answered by `RingReply`."""


class ExplainRequest(LocalMessage, tag=50, frozen=True):
    """What would the plan for this chain be, and what was the last one? Answered by `ExplainReply`; nobody is asked."""

    keys: Keys
    block_bytes: Small = 0
    prefill_block_us: Small = 0
    """As in `AcquireRequest`. 0: what an engine of this node said last."""


class ScoreRequest(LocalMessage, tag=100, frozen=True):
    """Where would this chain best be computed? Answered by `ScoreReply`; nobody is asked."""

    keys: Keys
    block_bytes: Small = 0
    prefill_block_us: Small = 0
    """As in `ExplainRequest`."""
    limit: Annotated[int, Meta(ge=1, le=SEATS_MAX)] = SEATS_MAX


class KeysRequest(LocalMessage, tag=40, frozen=True):
    """Lead a round over the keyrings of all members. Answered by `KeysReply` when it is over."""

    action: Annotated[int, Meta(ge=0, le=3)]
    """0 list, 1 install, 2 use, 3 remove."""
    timeout_ms: Small
    key: Annotated[bytes, Meta(max_length=RING_KEY_BYTES)] = b""
    """The key to install."""
    name: Name = ""
    """First digits of the fingerprint of the key to use or remove."""
    force: bool = False
    """Go on although somebody would be shut out."""

    def __repr__(self) -> str:
        return f"KeysRequest(action={self.action}, name={self.name!r}, key=...)"


class GridSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a block is divided in segments; see `p2pkv.layouts.Grid`."""

    layers: LayerCount
    heads: LayerCount
    segment_bytes: Length


class PartSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A layer range x head range of a block; see `p2pkv.layouts.Part`."""

    first_layer: LayerNumber
    layers: LayerCount
    first_head: LayerNumber
    heads: LayerCount


class StagedShard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One rank's part of a block, laid at `offset` of the staging memory without gaps."""

    key: Key
    offset: Count


class ShardRequest(LocalMessage, tag=70, frozen=True):
    """Take these parts of blocks; a block is stored when all its parts are in. Answered by `ShardReply`."""

    namespace: Key
    grid: GridSpec
    part: PartSpec
    shards: Annotated[tuple[StagedShard, ...], Meta(max_length=SHARDS_MAX)]
    digests: Annotated[bytes, Meta(max_length=SHARD_DIGESTS_BYTES_MAX)]
    """Of the segments of each part, in the order of the block, part after part."""
    first_depth: Annotated[int, Meta(ge=-1, lt=2**32)] = -1
    parent: Annotated[bytes, Meta(max_length=KEY_BYTES)] = b""


class DeliverRequest(LocalMessage, tag=71, frozen=True):
    """Bring a part of the longest prefix of a chain, layer by layer if asked. Answered by `DeliverReply`, at its begin."""

    namespace: Key
    keys: Keys
    grid: GridSpec
    part: PartSpec
    timeout_ms: Small
    by_layer: bool = True


class WaitRequest(LocalMessage, tag=72, frozen=True):
    """Wait until a layer of a delivery is here, or a push has come to `layer` layers. Answered by `WaitReply`."""

    number: Count
    push: bool
    layer: Annotated[int, Meta(ge=-1, le=LAYERS_MAX)]
    """-1: all, or the end of the push. Of a push 0: until it is accepted or refused."""
    timeout_ms: Small


class EndRequest(LocalMessage, tag=73, frozen=True):
    """Done with a delivery, or with a push, which is cancelled unless it is over. Answered by `Done`."""

    number: Count
    push: bool


class ExpectRequest(LocalMessage, tag=74, frozen=True):
    """Pushes of this namespace are welcome as long as this connection lives. Answered by `Done`."""

    namespace: Key


class PushRequest(LocalMessage, tag=75, frozen=True):
    """Push these blocks to a peer. Answered by `PushReply` at once; `WaitRequest` says how it goes."""

    peer: Name
    """Id or name."""
    namespace: Key
    keys: Annotated[bytes, Meta(max_length=KEYS_PER_LEASE_MAX * KEY_BYTES)]
    grid: GridSpec
    by_layer: bool
    timeout_ms: Small
    first_depth: Annotated[int, Meta(ge=-1, lt=2**32)] = -1
    parent: Annotated[bytes, Meta(max_length=KEY_BYTES)] = b""


class PingPeerRequest(LocalMessage, tag=60, frozen=True):
    """How do blocks of this member come here, and how fast? Answered by `PathsReply` with one path.

    Takes several round trips, and moves some megabytes of known bytes.
    """

    peer: Name
    """Its name, id or address."""
    timeout_ms: Small
    measure: bool = True
    """False: round trips alone, no bytes."""


class NetcheckRequest(LocalMessage, tag=61, frozen=True):
    """Who can be reached how, and who reaches us? Answered by `PathsReply` with a path for each member."""

    timeout_ms: Small
    measure: bool = False


class ScrubRequest(LocalMessage, tag=90, frozen=True):
    """Read all blocks of the disk tier, at a bounded rate, and forget those that are bad. Answered by `ScrubReply`."""

    rate_bytes_s: Annotated[int, Meta(ge=1, le=2**40)]


class ConditionRequest(LocalMessage, tag=62, frozen=True):
    """What does the daemon's process have to work with? Answered by `ConditionReply`."""


# -- answers --------------------------------------------------------------------------------------------------------


class Welcome(LocalMessage, tag=20, frozen=True):
    """Answer to `Attach`; the arena's descriptor comes along."""

    protocol: Small
    node: Name
    name: Name
    arena_bytes: Count
    table_bytes: Count
    """Size of the generation table in front of the slots; see `p2pkv.generations`."""


class Holder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A member and how many blocks of a chain it claims."""

    peer: Name
    name: Name
    blocks: Count


class MatchReply(LocalMessage, tag=21, frozen=True):
    """Answer to `MatchRequest`."""

    local: Count
    reachable: Count
    holders: tuple[Holder, ...]


class LeasedBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One pinned block: where it lies and what its bytes must be."""

    key: Key
    namespace: Key
    offset: Count
    """From the start of the slots, that is behind the generation table."""
    length: Length
    segment_bytes: Length
    generation: Count
    digest: Digest
    source: Small
    """Index into the reply's `sources`."""


class SourceName(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where blocks came from: a peer over a transport, or this node's own memory (`peer` empty, transport `local`)."""

    peer: Name
    transport: Name


class AcquireReply(LocalMessage, tag=22, frozen=True):
    """Answer to `AcquireRequest`: the usable prefix, perhaps empty, and why it is not longer."""

    lease: Count
    blocks: tuple[LeasedBlock, ...]
    sources: tuple[SourceName, ...]
    reason: Text


class HandOverReply(LocalMessage, tag=97, frozen=True):
    """Answer to `HandOverRequest`: how many blocks there are. They lie in the arena that came with `Welcome`.

    With another `format` than was asked for nothing is handed over.
    """

    format: Small
    blocks: Count


class HandedBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block that a daemon hands over: where it lies, what its bytes must be, and where in its chain it is."""

    key: Key
    namespace: Key
    offset: Count
    """From the start of the slots, that is behind the generation table."""
    length: Length
    segment_bytes: Length
    generation: Count
    digest: Digest
    depth: Annotated[int, Meta(ge=-1, le=2**32)]
    """Blocks before it in its chain; -1: not known."""
    parent: Annotated[bytes, Meta(max_length=KEY_BYTES)]
    """The block before it; empty: none, or not known."""


class HandedReply(LocalMessage, tag=98, frozen=True):
    """Answer to `HandedRequest`: some of the blocks, those used last first. Empty when all have been named."""

    next: Count
    """Number of the first block that is not among those that were looked at."""
    blocks: Annotated[tuple[HandedBlock, ...], Meta(max_length=HANDED_MAX)]


class PinReply(LocalMessage, tag=36, frozen=True):
    """Answer to `PinRequest`: blocks that are pinned now, or were until now, and their bytes."""

    blocks: Count
    size: Count


class PrefetchReply(LocalMessage, tag=93, frozen=True):
    """Answer to `PrefetchRequest`: how many of the chain's blocks are wanted; hints may pin no more."""

    blocks: Count


class PublishReply(LocalMessage, tag=23, frozen=True):
    """Answer to `PublishRequest`: how many blocks were stored, were here already, or were refused and why."""

    stored: Count
    present: Count
    refused: Count
    reason: Text = ""
    hint: Text = ""


class ShardReply(LocalMessage, tag=80, frozen=True):
    """Answer to `ShardRequest`: of how many blocks the part was taken, which were here already, or refused it."""

    taken: Count
    present: Count
    refused: Count
    stored: Count
    """Blocks that are complete by these parts."""
    reason: Text = ""
    hint: Text = ""


class DeliveredBlock(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block of a delivery: where its part lies."""

    key: Key
    offset: Count
    """From the start of the slots, that is behind the generation table."""
    generation: Count
    """Odd while more of it comes."""
    whole: bool
    """The place holds a whole block; or else only the part asked for, without gaps."""
    digest: Annotated[bytes, Meta(max_length=DIGEST_BYTES)]
    """Of a block that was here; of others each segment is verified before it is shown."""
    source: Name
    """Name of the peer that it comes from; empty if it was here, or is pushed, or written by ranks."""


class DeliverReply(LocalMessage, tag=81, frozen=True):
    """Answer to `DeliverRequest`: the blocks whose layers come now."""

    delivery: Count
    blocks: tuple[DeliveredBlock, ...]
    reason: Text


class WaitReply(LocalMessage, tag=82, frozen=True):
    """Answer to `WaitRequest`."""

    state: Name
    """Of a delivery: `here`, `coming` (the time was up) or `failed`. Of a push: `offered`, `accepted`, `stored`, `over`."""
    reason: Text
    taken: Count = 0
    """Of a push: blocks the receiver had not."""
    layers: Count = 0
    """Of a push: layers that are there and verified."""


class PushReply(LocalMessage, tag=83, frozen=True):
    """Answer to `PushRequest`."""

    push: Count


class MemberView(msgspec.Struct, frozen=True, gc=False):
    """One line of `p2pkv members`; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    address: str
    state: str
    incarnation: int
    zone: str
    host_id: str
    offered_bytes: int
    self: bool
    boot: int = 0
    rack: str = ""
    also_at: tuple[str, ...] = ()
    same_host: bool = False
    """Whether it runs on the machine of this node."""
    offered: dict[str, int] = {}
    """Tier -> bytes; they add up to `offered_bytes`."""
    load: int | None = None
    """Percent, as the member last said; None if it was not heard from."""
    load_age_s: float | None = None
    protocol_min: int = 0
    protocol_max: int = 0
    compatible: bool = True
    """Whether it speaks a version that this node speaks; otherwise it is not asked for blocks."""
    weights: dict[str, str] = {}
    """Weights id -> epoch."""


class MembersReply(LocalMessage, tag=24, frozen=True):
    """Answer to `MembersRequest`, this node first, then by name."""

    members: tuple[MemberView, ...]


class DuplicateView(msgspec.Struct, frozen=True, gc=False):
    """Another process that uses this node's id; a map on the wire."""

    address: str
    boot: int
    state: str
    heard_age_s: float


class SourceView(msgspec.Struct, frozen=True, gc=False):
    """An entry of `node.join` that is looked up; a map on the wire."""

    source: str
    addresses: tuple[str, ...]
    resolved_age_s: float | None
    """Since it last gave something, or nothing without an error; None if it never did."""
    failed_age_s: float | None
    """Since it last failed; None if it never did."""
    reason: str
    """Of that failure."""


class StatusReply(LocalMessage, tag=25, frozen=True):
    """Answer to `StatusRequest`."""

    node: str
    name: str
    cluster: str
    address: str
    version: str
    uptime_s: float
    protection: str
    """Of gossip; and of all else, unless `protected_by` says otherwise."""
    members: dict[str, int]
    """State -> count, this node included."""
    seeds: dict[str, str]
    """Seed address -> what became of it."""
    tier: dict[str, int]
    summary: dict[str, int | float]
    fetch: dict[str, int]
    counters: dict[str, float]
    directory: dict[str, int] = {}
    boot: int = 0
    state_dir: str = ""
    """Where id and boot number are kept, or nothing."""
    duplicates: tuple[DuplicateView, ...] = ()
    sources: tuple[SourceView, ...] = ()
    parts: dict[str, int] = {}
    """Blocks that come in parts, deliveries and pushes: totals since start, and what is under way."""
    protected_by: dict[str, str] = {}
    """What goes between nodes -> what protects it."""
    disk: dict[str, int | float | str] = {}
    """State and figures of the disk tier; empty if there is none."""
    object: dict[str, int | float | str] = {}
    """State and figures of the object store; empty if there is none."""


class Recorded(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one owner's records say of the stretch that a key is in."""

    peer: Name
    """Who holds blocks of it."""
    name: Name
    blocks: Count
    """How many, from the stretch's start."""
    tier: Count
    said_by: Name
    """Name of the owner."""


class LocateReply(LocalMessage, tag=26, frozen=True):
    """Answer to `LocateRequest`: what summaries claim, and what the owners say that were asked for it."""

    local: bool
    length: int
    digest: str
    claimed_by: tuple[Holder, ...]
    owners: tuple[Holder, ...]
    anchor: str = ""
    """Of the key's stretch; the key's own if its place in a chain is not known here."""
    place: Count = 0
    """Blocks of the stretch before the key."""
    recorded: tuple[Recorded, ...] = ()
    silent: tuple[Name, ...] = ()
    """Owners that did not answer in time."""


class RingShare(msgspec.Struct, frozen=True, gc=False):
    """One line of `p2pkv ring`; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    zone: str
    host_id: str
    offered_bytes: int
    due: float
    """Part of all keys that it should be first owner of, by its weight."""
    share: float
    """Part that it is first owner of."""
    kept: float
    """Part that it keeps records of, as first owner or further one."""
    self: bool


class RingReply(LocalMessage, tag=35, frozen=True):
    """Answer to `RingRequest`, greatest share first."""

    members: tuple[RingShare, ...]
    owners: Count
    """Owners of each key, `directory.owners` or as many as there are members."""
    bound: float
    slots: Count
    fingerprint: str
    """Equal on all nodes that agree on every owner."""


class TermsView(msgspec.Struct, frozen=True, gc=False):
    """What blocks from one peer cost, and why; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    blocks: int
    """Of the chain's head that it claims."""
    wait_ms: float
    """Until its first block begins to come."""
    block_ms: float
    """For each block from then on."""
    bandwidth_bytes_s: float
    round_trip_ms: float
    queued_bytes: int
    """On their way from it already."""
    load: int
    """Percent, as it last said."""
    near: str
    tier: str
    transport: str
    trusted: bool


class RunView(msgspec.Struct, frozen=True, gc=False):
    """Blocks `[start, stop)` of a chain from one peer."""

    name: str
    start: int
    stop: int


class PlanView(msgspec.Struct, frozen=True, gc=False):
    """A plan; a map on the wire, for it becomes JSON as it is."""

    decision: str
    """`here`, `fetch`, `partial`, `recompute` or `miss`."""
    reason: str
    blocks: int
    local: int
    planned: int
    """Blocks of the chain's head that would be here."""
    block_bytes: int
    prefill_block_ms: float
    """0 if not known; then every fetch is taken to pay."""
    fetch_ms: float
    compute_ms: float
    """Left to compute behind what is fetched."""
    recompute_ms: float | None
    """All that is not here; None if not known."""
    runs: tuple[RunView, ...]
    peers: tuple[TermsView, ...]
    """The best first."""
    age_s: float = 0.0
    """Since the plan was made."""
    arrived: int | None = None
    """Blocks of the head that were here in the end."""
    ended: str = ""
    """Why no more."""


class AwayView(msgspec.Struct, frozen=True, gc=False):
    """A peer that claims blocks and is not asked."""

    name: str
    blocks: int
    why: str


class ExplainReply(LocalMessage, tag=51, frozen=True):
    """Answer to `ExplainRequest`."""

    now: PlanView
    left_alone: tuple[AwayView, ...]
    last: PlanView | None
    """That of the last acquire of a chain with the same last block, if it is remembered."""
    object_store: Text = ""
    """Whether it would be asked for the rest, and what that would take; empty if there is none, or no rest."""


class SeatView(msgspec.Struct, frozen=True, gc=False):
    """One node for one prompt; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    blocks: int
    """Of the chain's head that it has, or claims to have."""
    tier: str
    """Of the last of them; of another node, the tiers that it may be in."""
    fetch_blocks: int
    """That it would fetch from others."""
    compute_blocks: int
    first_token_ms: float | None
    """None where nobody said what computing a block costs."""
    load: int
    """Percent, of what it gives to others, as it last said."""


class ScoreReply(LocalMessage, tag=101, frozen=True):
    """Answer to `ScoreRequest`: the best node first."""

    blocks: int
    """Of the chain."""
    seats: Annotated[tuple[SeatView, ...], Meta(max_length=SEATS_MAX)]


class KeyHolder(msgspec.Struct, frozen=True, gc=False):
    """What one member said of its keyring; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    address: str
    state: str
    answered: bool
    keys: tuple[str, ...]
    """Fingerprints of the keys it accepts, the primary one's first."""
    note: str
    """Why it did not obey, or was not asked."""


class KeysReply(LocalMessage, tag=41, frozen=True):
    """Answer to `KeysRequest`."""

    obeyed: bool
    """Whether nobody was left out."""
    reason: Text
    """Who was, and why."""
    keys: tuple[str, ...]
    """Fingerprints of the keys of this node, the primary one's first."""
    members: tuple[KeyHolder, ...]


class PathView(msgspec.Struct, frozen=True, gc=False):
    """How blocks of one member come here; a map on the wire, for it becomes JSON as it is."""

    id: str
    name: str
    address: str
    state: str
    same_host: bool
    transport: str
    reason: str
    """Why this transport, and why none that is preferred."""
    protection: str
    """Of blocks on their way."""
    udp: bool
    """A datagram was answered by one: both directions are open."""
    tcp: bool
    """A message on our stream was answered on the member's own: both directions are open."""
    udp_ms: float | None
    tcp_ms: float | None
    rtt_ms: float | None
    """Of a question about blocks on their transport, median; None if that did not work."""
    bandwidth_gbps: float | None
    """10^9 bytes per second of blocks whose digests were right; None if it was not measured."""
    note: str
    """Why something is missing."""
    clock_skew_s: float | None
    """How far the member's clock is ahead of this one's; None if it has not said."""
    connections: int = 0
    """That a large pull uses, as far as is known; 0 if blocks do not come over TCP connections of ours."""


class PathsReply(LocalMessage, tag=63, frozen=True):
    """Answer to `PingPeerRequest` and `NetcheckRequest`."""

    node: Name
    name: Name
    addresses: tuple[str, ...]
    """Of this node: where it is reached, and where else."""
    bound: str
    paths: tuple[PathView, ...]


class CheckView(msgspec.Struct, frozen=True, gc=False):
    """One line of `p2pkv doctor`; a map on the wire, for it becomes JSON as it is."""

    name: str
    state: str
    """`ok`, `warn` or `fail`."""
    text: str
    hint: str


class ConditionReply(LocalMessage, tag=64, frozen=True):
    """Answer to `ConditionRequest`."""

    checks: tuple[CheckView, ...]


class ScrubReply(LocalMessage, tag=91, frozen=True):
    """Answer to `ScrubRequest`, when all has been read."""

    blocks: Count
    read_bytes: Count
    bad: dict[Name, Count]
    """Blocks that are not as they were written, by what is wrong with them."""


class Done(LocalMessage, tag=27, frozen=True):
    """It was done."""


class Failure(LocalMessage, tag=28, frozen=True):
    """It was not done, and nothing was changed. `kind` is the name of a class in `p2pkv.errors`."""

    kind: Name
    message: Text
    hint: Text = ""


Request: TypeAlias = (
    Attach
    | MatchRequest
    | AcquireRequest
    | ReleaseRequest
    | PinRequest
    | PublishRequest
    | StatusRequest
    | MembersRequest
    | LocateRequest
    | LeaveRequest
    | RingRequest
    | ExplainRequest
    | ScoreRequest
    | KeysRequest
    | ShardRequest
    | DeliverRequest
    | WaitRequest
    | EndRequest
    | ExpectRequest
    | PushRequest
    | PingPeerRequest
    | NetcheckRequest
    | ConditionRequest
    | ScrubRequest
    | PrefetchRequest
    | HandOverRequest
    | HandedRequest
    | FollowRequest
)
Reply: TypeAlias = (
    Welcome
    | MatchReply
    | AcquireReply
    | PinReply
    | PrefetchReply
    | HandOverReply
    | HandedReply
    | PublishReply
    | MembersReply
    | StatusReply
    | LocateReply
    | RingReply
    | ExplainReply
    | ScoreReply
    | KeysReply
    | ShardReply
    | DeliverReply
    | WaitReply
    | PushReply
    | PathsReply
    | ConditionReply
    | ScrubReply
    | Done
    | Failure
)

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(message: Request | Reply) -> bytes:
    """Return `message` as bytes, without a length prefix."""
    data = _encoder.encode(message)
    assert len(data) <= LOCAL_MESSAGE_BYTES_MAX, f"{type(message).__name__} grew past the limit"
    return data


def decode_request_untrusted(data: bytes, *, peer: str) -> Request:
    """Return the request in `data`, which came from a client.

    Raises:
        MalformedMessage: whatever is wrong with `data`; no other exception escapes.
    """
    try:
        return _request_decoder.decode(data)
    except _DECODE_ERRORS as exc:
        raise MalformedMessage(f"undecodable request ({exc})", peer=peer) from exc


def decode_reply_untrusted(data: bytes, *, peer: str) -> Reply:
    """Return the reply in `data`, which came from the daemon.

    Raises:
        MalformedMessage: whatever is wrong with `data`; no other exception escapes.
    """
    try:
        return _reply_decoder.decode(data)
    except _DECODE_ERRORS as exc:
        raise MalformedMessage(f"undecodable reply ({exc})", peer=peer) from exc
