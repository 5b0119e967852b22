"""Every setting, once: meaning, unit, bounds, how to choose. The only reader of files and environment.

A value is taken from the defaults, then the file, then `P2PKV_*` variables, then the command line; the later wins.
An unknown key is an error that names the nearest known one. The reference page is generated from this file.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from p2pkv.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "P2PKV_"
_SIZE_UNITS: Final = {
    "": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
_LISTS: Final = ("join", "also_at", "weights", "prefer")
"""Fields that are lists, for which `a,b` may be written."""
_PORT: Final = re.compile("[0-9]{1,5}")
_SIZE: Final = re.compile(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*")

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts of `Config`."""


class NodeConfig(Section, frozen=True, kw_only=True):
    """Who this node is and whom it meets."""

    name: Annotated[
        str,
        Meta(
            max_length=64,
            description=("What people call this node. Empty: host name and port. Need not be unique, a node's id is."),
        ),
    ] = ""
    cluster: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description=(
                "Nodes of different clusters refuse each other, so that staging never joins production by a wrong seed."
            ),
        ),
    ] = "default"
    bind: Annotated[
        str,
        Meta(
            description=(
                "`host:port` to listen on, UDP for gossip and TCP for control and blocks, one number for both. Port 0 takes a "
                "free one. An address other than loopback needs `security.keyring`, or `insecure`."
            )
        ),
    ] = "127.0.0.1:7710"
    advertise: Annotated[
        str,
        Meta(
            description=(
                "`host:port` under which others reach this node, where it differs from `bind`. Empty: what `bind` gave."
            )
        ),
    ] = ""
    insecure: Annotated[
        bool,
        Meta(
            description=(
                "Allow a `bind` that other machines can reach, without encryption or authentication. Only on a network whose "
                "every machine you trust with every prompt."
            )
        ),
    ] = False
    join: Annotated[
        tuple[str, ...],
        Meta(
            max_length=64,
            description=(
                "Where to find any members: `host:port`, or a place to look for such: `dns://NAME:PORT`, `dns+srv://NAME`, "
                "`mdns://`, `file://PATH`, `exec:COMMAND`. They add up. One that answers is enough; all are tried again until "
                "one does, and places are looked at again for as long as the node runs. See the guide on discovery."
            ),
        ),
    ] = ()
    zone: Annotated[
        str,
        Meta(
            max_length=64,
            description=(
                "The part of the network this node stands in: a data centre, a row. Told to the other members, so that copies "
                "can be kept apart and blocks fetched from near."
            ),
        ),
    ] = ""
    rack: Annotated[str, Meta(max_length=64, description="The rack in the zone. Told to the other members.")] = ""
    also_at: Annotated[
        tuple[str, ...],
        Meta(
            max_length=3,
            description=(
                "Further `host:port` under which others reach this node: a second network, IPv6. Told to the other members. A "
                "seed written so counts as reached while this node is a member."
            ),
        ),
    ] = ()
    weights: Annotated[
        tuple[str, ...],
        Meta(
            max_length=4,
            description=(
                "`weights_id=weights_epoch` of what this node's engines compute with. Told to the other members and shown; keys "
                "differ by it anyway, so nothing depends on it."
            ),
        ),
    ] = ()
    socket: Annotated[
        str,
        Meta(
            description=(
                "Path of the Unix socket for engines and the command line, mode 0600. Empty: `p2pkv.sock` in "
                "`$XDG_RUNTIME_DIR/p2pkv`, or in `/tmp/p2pkv-UID`. At most 100 bytes, a limit of the kernel's."
            )
        ),
    ] = ""
    metrics: Annotated[str, Meta(description="`host:port` for Prometheus to scrape. Empty: no listener.")] = ""
    scores: Annotated[
        str,
        Meta(
            description=(
                "`host:port` for routers, which `POST /score` there to learn where a prompt would best be computed. It says "
                "who holds what to everybody who reaches it. Empty: no listener."
            )
        ),
    ] = ""
    state_dir: Annotated[
        str,
        Meta(
            description=(
                "Folder, mode 0700, in which this node's id and its last boot number are kept, so that it is the same member "
                "after a restart. `auto`: `p2pkv/PORT` in `$XDG_STATE_HOME` or `~/.local/state`, PORT that of `bind`; with "
                "port 0 nothing is kept. Empty: nothing is kept, and every start is a new member. Never copy it to a "
                "second node."
            )
        ),
    ] = "auto"


class MeshConfig(Section, frozen=True, kw_only=True):
    """How nodes notice each other. The defaults are memberlist's for a LAN."""

    probe_period_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How often one random member is probed. Some member notices a dead one after 1.6 periods (e/(e-1), SWIM "
                "section 3.1) on average. Shorter finds failures sooner and costs two datagrams a period. memberlist's "
                "`ProbeInterval`."
            )
        ),
    ] = 1.0
    probe_timeout_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long a probed member has before others are asked to try. Choose a high quantile of the round trip; "
                "shorter than `probe_period_s`. SWIM section 3.1; memberlist's `ProbeTimeout`."
            )
        ),
    ] = 0.5
    indirect_probes: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description=(
                "How many members are asked to probe a silent one, k of SWIM section 3.1. With loss p of a datagram, all k paths "
                "fail with (1 - (1 - p)^4)^k; at 5 % and k = 3 that is 0.6 %. memberlist's `IndirectChecks`."
            ),
        ),
    ] = 3
    suspicion_mult: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description=(
                "A suspect has `suspicion_mult * max(1, log10 n) * probe_period_s` to refute, the time in which gossip reaches all "
                "n. Higher: fewer false deaths, later true ones. SWIM section 4.2; Lifeguard's alpha; memberlist's "
                "`SuspicionMult`."
            ),
        ),
    ] = 4.0
    local_health: Annotated[
        bool,
        Meta(
            description=(
                "Probe up to `health_max` times slower while this node itself seems unwell, so that it does not blame others "
                "(Lifeguard section IV-A, LHA-Probe)."
            )
        ),
    ] = True
    health_max: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description=(
                "Period and timeout of probes grow up to this many times. Higher: fewer wrong suspicions by a slow node, "
                "later right ones. memberlist's `AwarenessMaxMultiplier`."
            ),
        ),
    ] = 8
    dynamic_suspicion: Annotated[
        bool,
        Meta(
            description=(
                "Give a suspect `suspicion_max_mult` times as long at first, and less with each further member that suspects "
                "it, down to the plain time after `suspicion_mult - 2` of them (Lifeguard section IV-B, LHA-Suspicion)."
            )
        ),
    ] = True
    suspicion_max_mult: Annotated[
        float,
        Meta(
            ge=1,
            le=100,
            description=(
                "How many times the plain time an unconfirmed suspicion lasts. Higher: a node that is cut off itself kills "
                "fewer others. Lifeguard's beta; memberlist's `SuspicionMaxTimeoutMult`."
            ),
        ),
    ] = 6.0
    buddy: Annotated[
        bool,
        Meta(
            description=(
                "Tell a suspect with every packet to it that it is suspected, so that it refutes sooner (Lifeguard section "
                "IV-C, buddy system). Otherwise it hears of it by gossip."
            )
        ),
    ] = True
    observers: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description=(
                "About how many members probe a suspect at once and out of turn, and confirm the suspicion or have it refuted "
                "(Rapid's K, USENIX ATC 2018). More: a member whose packets are mostly lost is refuted for more surely, and a "
                "suspicion costs more packets. 0 switches confirmation by observers off; then time alone decides."
            ),
        ),
    ] = 10
    accusers: Annotated[
        int,
        Meta(
            ge=1,
            le=8,
            description=(
                "Members that must each have got no answer from a suspect before it is declared dead, or the majority where the "
                "mesh is smaller (Rapid's watermarks). More: members that do not hear well kill fewer others, and it takes a "
                "larger mesh or longer to agree on a true death. Only with `observers`."
            ),
        ),
    ] = 4
    stream_probe: Annotated[
        bool,
        Meta(
            description=(
                "Also ping over the stream when datagrams get no answer, so that lost datagrams alone kill nobody; "
                "memberlist's fallback ping over TCP."
            )
        ),
    ] = True
    retransmit_mult: Annotated[
        int,
        Meta(
            ge=1,
            le=32,
            description=(
                "An update rides on `retransmit_mult * ceil(log10(n + 1))` packets of each node before it is let go. Higher: "
                "fewer nodes that hear of it only by comparing lists; bytes grow with it. Lambda of SWIM section 4.1; "
                "memberlist's `RetransmitMult`."
            ),
        ),
    ] = 4
    gossip_period_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How often waiting updates are sent to `gossip_fanout` random members, besides riding on probes. Everybody has "
                "heard after about log(n) / log(1 + `gossip_fanout`) times this. memberlist's `GossipInterval`."
            )
        ),
    ] = 0.2
    gossip_fanout: Annotated[
        int, Meta(ge=1, le=16, description="Members told per `gossip_period_s`; memberlist's `GossipNodes`.")
    ] = 3
    push_pull_period_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How often member lists are compared with a random member over the stream, at rest; repairs what gossip "
                "lost. Above 32 members up to several times more rarely, and much more often while there is something to "
                "learn. Only hashes are sent where lists are equal."
            )
        ),
    ] = 30.0
    join_retry_s: Annotated[
        Seconds,
        Meta(
            description=(
                "Wait before seeds that did not answer are tried again; doubles up to 16 times this. The same for places where "
                "seeds are looked up, up to a minute. Ours."
            )
        ),
    ] = 0.5
    reap_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long a dead or departed member stays listed, and is tried in case it was only cut off. Long enough for people "
                "to look, and for a partition to be repaired. Ours; Serf keeps them for a day."
            )
        ),
    ] = 3600.0

    def __post_init__(self) -> None:
        if self.probe_timeout_s >= self.probe_period_s:
            raise ConfigError(
                f"mesh.probe_timeout_s is {self.probe_timeout_s}, "
                f"must be shorter than mesh.probe_period_s ({self.probe_period_s})"
            )


class SummaryConfig(Section, frozen=True, kw_only=True):
    """How nodes tell each other what they hold."""

    period_s: Annotated[
        Seconds,
        Meta(
            description=(
                "At most one delta of the summary is sent per period. Shorter shows new blocks sooner and costs messages; an "
                "update at 1 % change loses 0.1 to 1.7 % of hits (Summary Cache, Fan et al.)."
            )
        ),
    ] = 2.0
    false_positive_ratio: Annotated[
        float,
        Meta(
            gt=0,
            lt=0.5,
            description=(
                "Share of absent keys that a full filter claims all the same. 0.01 costs 9.6 bits a key, half of it 1.4 more."
            ),
        ),
    ] = 0.01
    blocks_expected: Annotated[
        int,
        Meta(
            ge=0,
            le=2**30,
            description=(
                "How many blocks the filter is sized for. 0: as many blocks of 256 KiB as the tiers hold. More blocks make it "
                "grow, which costs every peer one snapshot for each doubling."
            ),
        ),
    ] = 0
    budget_bytes_s: Annotated[
        int,
        Meta(
            ge=1024,
            le=2**40,
            description=(
                "Most bytes of deltas that this node sends in any one second, to all peers together. What does not fit waits, "
                "and is merged with what changes meanwhile. Each peer costs about 6 bytes for a block added or evicted that is "
                "announced; lower shows new blocks later."
            ),
        ),
    ] = 2**18
    snapshot_bytes_s: Annotated[
        int,
        Meta(
            ge=2**16,
            le=2**40,
            description=(
                "The same for snapshots, whole filters for those who have none or missed a delta. Lower spares the network "
                "while a mesh starts; a new node finds its first blocks later."
            ),
        ),
    ] = 2**24
    filter_bytes_max: Annotated[
        int,
        Meta(
            ge=2**12,
            le=2**46,
            description=(
                "Memory for the filters of all peers. If they need more, the largest are folded in half, which makes them claim "
                "more that is not there. While peers leave, up to four times as much is in use."
            ),
        ),
    ] = 2**30
    peers_max: Annotated[
        int,
        Meta(
            ge=0,
            le=8192,
            description=(
                "For how many peers to hold summaries, those of this host and zone first. The others are told to send none, and "
                "the directory is asked for what they hold. More finds blocks without asking, and costs memory and traffic per "
                "peer; see the benchmarks. 0: hold none."
            ),
        ),
    ] = 1024


class DirectoryConfig(Section, frozen=True, kw_only=True):
    """Exact records of who holds what, kept by the owners of the ring, for what summaries cannot say."""

    owners: Annotated[
        int,
        Meta(
            ge=0,
            le=3,
            description=(
                "Nodes that keep each record, in distinct zones or hosts where possible. More survive more failures at once, and "
                "cost traffic in proportion. Equal on all nodes. 0: this node takes no part."
            ),
        ),
    ] = 2
    lease_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long records are good for if their holder does not renew them, which it does three times per lease. Longer "
                "costs less; shorter forgets sooner what a lost message should have withdrawn. The dead are forgotten at once."
            )
        ),
    ] = 300.0
    period_s: Annotated[
        Seconds,
        Meta(description=("Changes are gathered for so long before owners are told. Longer costs fewer messages.")),
    ] = 2.0
    timeout_s: Annotated[
        Seconds,
        Meta(
            description=(
                "Longest a fetch waits for owners to answer; it goes on with what has come. A few round trips: it is paid when "
                "an owner has just died."
            )
        ),
    ] = 0.25
    records_max: Annotated[
        int,
        Meta(
            ge=1,
            le=2**24,
            description=(
                "Records kept for others; further ones are refused and counted. A record takes about 0.5 KB. The mesh has one "
                "for 32 blocks of a chain, or for a block of unknown depth, times `owners`."
            ),
        ),
    ] = 262_144
    records_per_peer_max: Annotated[
        int, Meta(ge=1, le=2**24, description="Of these, how many may speak of one holder, or come from one peer.")
    ] = 65_536
    bytes_per_s: Annotated[
        float,
        Meta(
            ge=1024,
            le=1e9,
            description=(
                "What this node may send of changes, renewals and handovers; the rest waits. Answers are not part of it. Lower "
                "spares the network, and takes longer after a change of the membership."
            ),
        ),
    ] = 131_072.0


class HostConfig(Section, frozen=True, kw_only=True):
    """The tier in host memory."""

    capacity_bytes: Annotated[
        int,
        Meta(
            ge=2**20,
            le=2**46,
            description=(
                "Size of the arena, all of it allocated at start. Give what the machine can spare: a 2,000-token prompt of a "
                "7B model takes about 250 MB. Written `4GiB` or as a number of bytes."
            ),
        ),
    ] = 2**30
    chunk_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=2**34,
            description=(
                "The arena is cut in chunks, each for blocks of one size; no block can be larger. 0: an eighth of the arena, "
                "at most 64 MiB."
            ),
        ),
    ] = 0
    huge_pages: Annotated[
        Literal["auto", "reserved", "never"],
        Meta(
            description=(
                "Pages of 2 MiB for the arena. `auto` asks for them where the kernel lets a process ask (`p2pkv doctor` says "
                "whether it does), and goes without otherwise. `reserved` takes them from the pool of `vm.nr_hugepages`, and "
                "the node does not start if there are too few."
            )
        ),
    ] = "auto"
    numa_node: Annotated[
        int,
        Meta(
            ge=-1,
            le=1023,
            description=(
                "The NUMA node whose memory the arena takes, best that of the GPU or network card which reads it. -1: any."
            ),
        ),
    ] = -1
    admit_fetched: Annotated[
        Literal["auto", "always", "second-use"],
        Meta(
            description=(
                "Whether a block that came from a peer stays when the engine is done with it. `always` it does, and the least "
                "recently used ones go for it. `second-use`: when it is wanted for the second time. `auto`: while there is "
                "room, and then at its second use. Where memory is tight, copies of what neighbours hold cost more hits than "
                "they bring."
            )
        ),
    ] = "auto"


class DiskConfig(Section, frozen=True, kw_only=True):
    """The tier on a local disk."""

    path: Annotated[
        str,
        Meta(
            description=(
                "Folder, mode 0700, for this node's blocks on a local disk, best one that nothing else writes to. Blocks in it are "
                "there again after a restart, and after `kill -9`. Empty: no disk tier. Two nodes need two folders."
            )
        ),
    ] = ""
    capacity_bytes: Annotated[
        int,
        Meta(
            ge=2**20,
            le=2**50,
            description=(
                "What the blocks there may take in all, with a page for each; the room is taken as it is needed. Besides, up to "
                "832 bytes a block for a list of them. Less than before gives room back at the next start."
            ),
        ),
    ] = 2**36
    write: Annotated[
        Literal["through", "back"],
        Meta(
            description=(
                "When a block is written to the disk. `through`: as soon as it is stored, so that it survives the process. `back`: "
                "when it is among the next that go from host memory, which spares the disk those that are never reused, and "
                "loses what is only in memory when the process dies."
            )
        ),
    ] = "through"
    io_timeout_s: Annotated[
        Seconds,
        Meta(
            description=(
                "Longest that one read or write may take before the disk is taken out of service. An engine that waits for a block "
                "waits for this at most, and never past its own deadline. A slow disk with large blocks needs more."
            )
        ),
    ] = 5.0
    retry_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long after an error the disk is tried again. Shorter: it is back sooner. Each time its list of blocks is "
                "read, as at a start."
            )
        ),
    ] = 10.0


class ObjectConfig(Section, frozen=True, kw_only=True):
    """The tier in an object store, which all nodes of a mesh may share."""

    url: Annotated[
        str,
        Meta(
            description=(
                "Where chains are kept for days: `s3://BUCKET/FOLDER`, `gs://BUCKET/FOLDER`, `az://CONTAINER/FOLDER` or "
                "`file:///FOLDER`. Credentials, and another server than the usual one, come from the environment. Empty: no object "
                "tier. Needs `pip install 'p2pkv[object]'`."
            )
        ),
    ] = ""
    write: Annotated[
        Literal["through", "back", "never"],
        Meta(
            description=(
                "When chains are put there. `through`: when they have settled, so that other nodes find them at once. `back`: those "
                "stored longest ago, when what is not yet there takes three quarters of host memory, which spares requests for "
                "what is never reused. `never`: this node only reads."
            )
        ),
    ] = "through"
    settle_s: Annotated[
        Seconds,
        Meta(
            description=(
                "A chain whose end has not grown for so long is taken to be complete. Longer than an engine takes between two "
                "blocks, or else ends are stored that nobody will ask for; shorter makes the ends of prompts available sooner."
            )
        ),
    ] = 2.0
    lifetime_s: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description=(
                "Objects that are older are deleted, by one node or another, at most every hour. 0: this node deletes nothing, as "
                "where the bucket has a lifecycle rule, which costs less. Give all nodes the same."
            ),
        ),
    ] = 604_800.0
    requests_max: Annotated[
        int,
        Meta(
            ge=2,
            le=64,
            description=(
                "Requests on their way at a time, a quarter of them puts; each holds up to 8 MiB of memory besides host memory. More is "
                "faster where the store is far away."
            ),
        ),
    ] = 8
    io_timeout_s: Annotated[
        Seconds,
        Meta(
            description=(
                "Longest that one request may take. An engine waits no longer than its own deadline, and no longer than it would "
                "take to compute what is asked for. Three failures in a row, and the store is left alone for a second, then for "
                "two, and so on up to 32."
            )
        ),
    ] = 10.0


class PolicyConfig(Section, frozen=True, kw_only=True):
    """What stays in memory when it does not suffice."""

    eviction: Annotated[
        Literal["adaptive", "lru", "fifo", "s3-fifo", "w-tinylfu"],
        Meta(
            description=(
                "Which blocks go first. `lru`: those not used for longest. `s3-fifo`: those used once; better where memory is "
                "small for what is asked. `adaptive` keeps books of both, with keys and no blocks, and does as the one that "
                "lately did better; it takes some 500 bytes more for each block that fits. `fifo` and `w-tinylfu` are for "
                "comparison. Whatever is chosen, the end of a chain goes before its beginning. See docs/benchmarks/cache.md."
            )
        ),
    ] = "adaptive"
    pinned_share_max: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description=(
                "Share of the tier that `p2pkv pin` may keep from being evicted. What is pinned is there when it is asked for; "
                "everything else has less room. 1 lets pins fill the tier, and then nothing else is stored."
            ),
        ),
    ] = 0.5
    idle_s: Annotated[
        float,
        Meta(
            ge=0,
            le=31_536_000,
            description=(
                "Blocks that were not used for so many seconds are dropped even while there is room, as where prompts may not "
                "be kept for longer. 0: never. Lower keeps less of what nobody asks for; hits of later turns go with it."
            ),
        ),
    ] = 0.0


class FetchConfig(Section, frozen=True, kw_only=True):
    """How blocks are brought from peers."""

    timeout_s: Annotated[
        Seconds,
        Meta(
            description=(
                "Longest an engine waits for a fetch if it names no time itself. What has arrived by then is used."
            )
        ),
    ] = 10.0
    connect_timeout_s: Annotated[Seconds, Meta(description="Longest a connection to a peer may take to open.")] = 2.0
    answer_timeout_s: Annotated[
        Seconds,
        Meta(description=("Longest a peer may take to say which blocks it has; then the next holder is asked.")),
    ] = 2.0
    lease_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long a peer's blocks stay pinned for a fetch, at most. Longer fetches renew it; a requester that "
                "dies holds them this long."
            )
        ),
    ] = 30.0
    engine_lease_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long an engine's lease on local blocks lasts if the engine neither releases it nor goes away."
            )
        ),
    ] = 120.0
    leases_max: Annotated[int, Meta(ge=1, le=2**20, description="Leases one holder may have at a time.")] = 256
    lent_bytes_max: Annotated[
        int,
        Meta(
            ge=2**23,
            le=2**50,
            description=(
                "Bytes that peers may have leased at a time, all together. The node itself finds how much of that it can send "
                "in good time, and tells whoever asks for more to come back later. Raise it where one fetch is larger."
            ),
        ),
    ] = 4 * 2**30
    acquires_max: Annotated[
        int,
        Meta(
            ge=1,
            le=2**20,
            description=(
                "Acquires of engines under way at a time; a further one gets at once what is here, so that none waits in vain."
            ),
        ),
    ] = 1024
    in_flight_max: Annotated[
        int,
        Meta(
            ge=1,
            le=2**20,
            description=("Blocks on their way at a time over all fetches; beyond it a fetch takes fewer blocks."),
        ),
    ] = 8192
    assumed_bandwidth_bytes_s: Annotated[
        float, Meta(gt=0, description=("Bandwidth of a link nothing was yet fetched over, bytes per second."))
    ] = 1e9
    shared_memory: Annotated[
        bool,
        Meta(
            description=(
                "Lend this node's memory, read-only, to nodes of the same user on the same machine, and copy out of theirs "
                "instead of being sent their blocks. Off: blocks take TCP on one machine too."
            )
        ),
    ] = True
    cooldown_s: Annotated[
        Seconds,
        Meta(
            description=(
                "A peer that failed a fetch is not asked again for this long; doubles with each failure up to 32 times."
            )
        ),
    ] = 1.0


class PartsConfig(Section, frozen=True, kw_only=True):
    """How blocks come in parts: shards of ranks, layers and heads of peers' blocks, pushes."""

    reservation_s: Annotated[
        Seconds,
        Meta(
            description=(
                "How long a block that comes in parts keeps its place while nothing of it comes. Longer than an engine takes "
                "for one layer of a prefill; a rank or a peer that dies holds the place this long."
            )
        ),
    ] = 30.0
    blocks_max: Annotated[
        int,
        Meta(
            ge=1,
            le=2**20,
            description="Blocks that come in parts at a time; beyond it they are refused, as by a full tier.",
        ),
    ] = 4096
    pushes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=2**16,
            description="Pushes that this node takes at a time, of all peers together; 0 takes none.",
        ),
    ] = 32
    push_credits: Annotated[
        int,
        Meta(
            ge=1,
            le=1024,
            description=(
                "Layers, or runs of blocks, that a peer may announce before this node has taken the earlier ones. Two keep a "
                "link busy; more lets a slow node have more work queued."
            ),
        ),
    ] = 4


class SecurityConfig(Section, frozen=True, kw_only=True):
    """What protects this node and what goes between nodes."""

    keyring: Annotated[
        str,
        Meta(
            description=(
                "Path of the file with the mesh's keys, mode 0600 and of this node's user; `p2pkv keys generate --write` makes "
                "one. With it everything between nodes is encrypted, and only who has one of the keys is let in. Empty: no "
                "encryption, and no `bind` but loopback without `insecure`. `~` is the user's home."
            )
        ),
    ] = ""
    bulk_protection: Annotated[
        Literal["aead", "mac", "off"],
        Meta(
            description=(
                "The least protection of blocks over TCP that this node accepts, where it has a keyring or certificates: `aead` "
                "encrypts and authenticates them (AES-256-GCM), `mac` only authenticates, `off` does neither. Of two nodes the "
                "stricter decides. `mac` and `off` show every prompt to whoever can read the network, and `off` lets them change "
                "blocks; use them only where the network itself is trusted. Faster in this order: see the benchmarks."
            )
        ),
    ] = "aead"
    certificates: Annotated[
        str,
        Meta(
            description=(
                "Path of the folder with this node's certificate: `tls.crt`, `tls.key` of mode 0600, and `ca.crt`, the authorities "
                "to believe; `p2pkv cert issue` makes one. With it control messages go through TLS 1.3 with a certificate on both "
                "sides, blocks are encrypted under keys agreed upon there, and a node is who its certificate says. Gossip stays "
                "under the keyring. The files are read again when they change. Empty: the keyring, or nothing, protects all."
            )
        ),
    ] = ""
    clock_skew_max_s: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description=(
                "With certificates: how far another node's clock may be from this one's, seconds; further, and it is refused. "
                "Certificates end by the clock, so a clock that is wrong gives a stolen one a longer life. Higher tolerates machines "
                "without NTP; lower than a few seconds refuses honest ones."
            ),
        ),
    ] = 60.0


class TransportConfig(Section, frozen=True, kw_only=True):
    """Which ways blocks may take between two nodes."""

    prefer: Annotated[
        tuple[Literal["shm", "nixl", "tcp"], ...],
        Meta(
            max_length=3,
            description=(
                "The best first; the first that a pair of nodes has is taken, and TCP if none. `nixl`, which takes blocks over "
                "RDMA and copies between processes, only if it stands here: its library (`p2pkv[nixl]`) listens on sockets of "
                "its own, which ask nobody who he is. See the guide on fabrics."
            ),
        ),
    ] = ("shm", "tcp")
    tcp_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=16,
            description=(
                "Over TCP: the most connections that one large pull from a peer uses at a time, a thread at each end each. It "
                "begins with one; now and then twice or half as many are tried, and kept if that was faster. 1: never more."
            ),
        ),
    ] = 4
    ucx_tls: Annotated[
        str,
        Meta(
            max_length=256,
            description=(
                "What UCX, below NIXL, may use, as its `UCX_TLS`. Empty: `cma,tcp`, with `rc,ud` where there are RDMA devices "
                "and `cuda_copy,cuda_ipc` where there is a GPU."
            ),
        ),
    ] = ""
    ucx_net_devices: Annotated[
        str,
        Meta(
            max_length=1024,
            description=(
                "Where it may, as its `UCX_NET_DEVICES`. Empty: all RDMA devices, and the network interface that the node is "
                "reached at."
            ),
        ),
    ] = ""
    window_bytes: Annotated[
        int,
        Meta(
            ge=2**20,
            le=2**32,
            description=(
                "With `nixl`: size of each of four windows that peers write into where a fabric cannot read by itself. A block "
                "that is larger comes over TCP. All of it is taken at start."
            ),
        ),
    ] = 16 * 2**20


class LogConfig(Section, frozen=True, kw_only=True):
    """What the daemon writes to standard error."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="Least severe line shown.")] = (
        "info"
    )
    format: Annotated[Literal["text", "json"], Meta(description="Lines for people, or one JSON object each.")] = "text"


class Config(Section, frozen=True, kw_only=True):
    """All settings of a node."""

    node: NodeConfig = NodeConfig()
    mesh: MeshConfig = MeshConfig()
    summary: SummaryConfig = SummaryConfig()
    directory: DirectoryConfig = DirectoryConfig()
    host: HostConfig = HostConfig()
    disk: DiskConfig = DiskConfig()
    object: ObjectConfig = ObjectConfig()
    policy: PolicyConfig = PolicyConfig()
    fetch: FetchConfig = FetchConfig()
    parts: PartsConfig = PartsConfig()
    transport: TransportConfig = TransportConfig()
    security: SecurityConfig = SecurityConfig()
    log: LogConfig = LogConfig()


PROFILES: Final[dict[str, dict[str, dict[str, object]]]] = {
    "lan": {},
    "wan": {
        "mesh": {
            "probe_period_s": 5.0,
            "probe_timeout_s": 3.0,
            "suspicion_mult": 6.0,
            "indirect_probes": 3,
            "retransmit_mult": 4,
            "gossip_period_s": 0.5,
            "gossip_fanout": 4,
            "push_pull_period_s": 60.0,
        },
    },
    "loopback": {
        "mesh": {
            "probe_period_s": 0.5,
            "probe_timeout_s": 0.2,
            "suspicion_mult": 3.0,
            "indirect_probes": 1,
            "retransmit_mult": 2,
            "gossip_period_s": 0.1,
            "gossip_fanout": 3,
            "push_pull_period_s": 15.0,
        },
        "summary": {"period_s": 0.2},
        "directory": {"period_s": 0.2, "lease_s": 30.0},
    },
}
"""Sets of defaults by the kind of network: memberlist's `DefaultLANConfig`, `DefaultWANConfig`, `DefaultLocalConfig`.

One value is ours: on loopback a probe is sent twice a second and not once, because a laptop shows its failures to
somebody who is watching. What is not named is the same for all three: `health_max` 8, `suspicion_max_mult` 6.
"""


def load(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    profile: str = "lan",
) -> Config:
    """Return the settings from all sources.

    Args:
        file: a TOML file with one table per section, or None.
        environment: variables named `P2PKV_SECTION_FIELD`; None means the process's own.
        flags: `section.field` -> value, as the command line gave them.
        profile: a name in `PROFILES`, applied under everything else.

    Raises:
        ConfigError: a key is unknown or a value is out of bounds; the message says which, where, and what is near.
    """
    if profile not in PROFILES:
        raise ConfigError(f"profile is {profile!r}, must be one of {', '.join(PROFILES)}")
    merged: dict[str, dict[str, object]] = {name: dict(values) for name, values in PROFILES[profile].items()}
    if file is not None:
        _merge(merged, _from_file(file), where=str(file))
    _merge(merged, _from_environment(os.environ if environment is None else environment), where="environment")
    _merge(merged, _from_dotted(flags or {}), where="command line")
    try:
        return msgspec.convert(merged, Config, strict=False)
    except msgspec.ValidationError as exc:
        text, _, where = str(exc).partition(" - at `$.")
        raise ConfigError(
            f"{where.rstrip('`') or 'a setting'} is out of bounds", hint=text[:1].lower() + text[1:]
        ) from exc


def parse_size(text: str) -> int:
    """Return the bytes that `text` such as `512MiB`, `4GiB` or `1000` means.

    Raises:
        ConfigError: it means nothing.
    """
    match = _SIZE.fullmatch(text)
    unit = match and _SIZE_UNITS.get(match[2].upper())
    if not match or not unit:
        raise ConfigError(f"size is {text!r}, must be a number with KiB, MiB, GiB or TiB", hint="for example 512MiB")
    return int(float(match[1]) * unit)


def parse_address(text: str, *, what: str = "address") -> tuple[str, int]:
    """Return (host, port) of `host:port` or `[v6]:port`.

    Raises:
        ConfigError: it has no port, or one out of range.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{what} is {text!r}, an IPv6 host needs brackets", hint="for example [::1]:7710")
    if not colon or not host or not _PORT.fullmatch(port) or int(port) > 65_535:  # noqa: PLR2004 - 16 bits
        raise ConfigError(
            f"{what} is {text!r}, must be host:port with a port up to 65535", hint="for example 10.0.0.5:7710"
        )
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Undo `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def sections() -> dict[str, type[Section]]:
    """Return the sections of `Config` by name."""
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def describe(section: type[Section]) -> list[tuple[str, str, object, str]]:
    """Return (name, type, default, description) of each field of `section`, for the reference page."""
    hints = get_type_hints(section, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(section):
        hint, texts = hints[field.name], []
        while get_origin(hint) is Annotated:
            texts += [m.description for m in hint.__metadata__ if isinstance(m, Meta) and m.description]
            hint = get_args(hint)[0]
        kind = hint.__name__ if isinstance(hint, type) else str(hint).removeprefix("typing.")
        rows.append((field.name, kind, field.default, " ".join(texts)))
    return rows


def default_socket(environment: Mapping[str, str] | None = None) -> Path:
    """Return where the daemon's Unix socket is unless a setting says otherwise."""
    variables = os.environ if environment is None else environment
    named = variables.get(f"{ENVIRONMENT_PREFIX}NODE_SOCKET")
    if named:
        return Path(named)
    runtime = variables.get("XDG_RUNTIME_DIR")
    return Path(runtime, "p2pkv", "p2pkv.sock") if runtime else Path(f"/tmp/p2pkv-{os.getuid()}/p2pkv.sock")  # noqa: S108 - the folder is made 0700 and its owner is checked


def default_state_dir(port: int, environment: Mapping[str, str] | None = None) -> Path:
    """Return where a node that binds `port` keeps its identity unless a setting says otherwise.

    The port tells two nodes of one machine apart; it is also what stays when a node is renamed.
    """
    variables = os.environ if environment is None else environment
    state = variables.get("XDG_STATE_HOME", "")
    if not state.startswith("/"):  # the XDG specification has a relative one ignored
        state = str(Path(variables.get("HOME", "") or "/", ".local", "state"))
    return Path(state, "p2pkv", str(port))


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration ({exc.strerror}): {file}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"not TOML ({exc}): {file}") from exc


def _from_environment(environment: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Take `P2PKV_SECTION_FIELD`; other `P2PKV_*` names (a cache folder, say) do not start with a section's name."""
    dotted: dict[str, object] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, name = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        if section in sections():
            dotted[f"{section}.{name}"] = value
    return _from_dotted(dotted)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without settings of ours, for a process that has them all from a file."""
    return {
        name: value
        for name, value in environment.items()
        if name.removeprefix(ENVIRONMENT_PREFIX).partition("_")[0].lower() not in sections()
        or not name.startswith(ENVIRONMENT_PREFIX)
    }


def _from_dotted(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    nested: dict[str, dict[str, object]] = {}
    for dotted, value in values.items():
        section, _, name = dotted.partition(".")
        nested.setdefault(section, {})[name] = value
    return nested


def _merge(into: dict[str, dict[str, object]], values: Mapping[str, Any], *, where: str) -> None:
    known = sections()
    for section, fields in values.items():
        if section not in known:
            raise ConfigError(f"unknown section {section!r} in {where}", hint=nearest(section, list(known)))
        if not isinstance(fields, Mapping):
            raise ConfigError(
                f"{section!r} in {where} must be a table of settings", hint=f"write [{section}] above them"
            )
        names = [field.name for field in msgspec.structs.fields(known[section])]
        for name, value in fields.items():
            if name not in names:
                raise ConfigError(f"unknown setting {section}.{name} in {where}", hint=nearest(name, names))
            into.setdefault(section, {})[name] = _readable(name, value)


def _readable(name: str, value: object) -> object:
    """Turn what people write, `4GiB` or `a,b`, into what the field holds."""
    if isinstance(value, str) and name.endswith("_bytes"):
        return parse_size(value)
    if isinstance(value, str) and name in _LISTS:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def nearest(name: str, known: Sequence[str]) -> str:
    """Return what to tell a person who wrote `name`: the name they probably meant, or all there are."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}"
