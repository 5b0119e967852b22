"""Every parser of foreign bytes, fed with mutated messages: the documented error and nothing else, and no growth.

A short run is part of `make test`; `make fuzz` sets P2PKV_FUZZ_INPUTS to a million for each parser.
"""

import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import get_args

import msgspec
import numpy as np
import pytest

from p2pkv import local_wire
from p2pkv.block_file import pack_header, unpack
from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.config import Config, HostConfig
from p2pkv.errors import MalformedMessage, NotABlockFile, SealRefused, VersionMismatch
from p2pkv.index.codec import delta_of, flips_of_untrusted, page_of, piece_of_untrusted
from p2pkv.index.gaps import decode_gaps_untrusted, encode_gaps
from p2pkv.index.versions import read_versions, short_id, versions_message
from p2pkv.node import Node
from p2pkv.transport import wire
from p2pkv.transport.bulk_header import BulkHeader, unpack_untrusted
from p2pkv.transport.framing import FrameReader, frame
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.nixl import agent_name_untrusted, region_untrusted
from p2pkv.transport.placed import places_untrusted
from p2pkv.transport.records import RecordOpener, RecordSealer
from p2pkv.transport.seal import DatagramSeal
from p2pkv.transport.sealed_handshake import Opening, answer, opened_untrusted

INPUTS = int(os.environ.get("P2PKV_FUZZ_INPUTS", "5000"))
GROWTH_BYTES_MAX = 2**20
NODE_GROWTH_BYTES_MAX = 2**24
"""Of a node that believes what it is told: members and records up to their bounds."""

RECORD = wire.MemberRecord(
    "a" * 16,
    1,
    2,
    0,
    "node a",
    "127.0.0.1:7710",
    "host",
    "zone",
    1 << 30,
    "b",
    ("c",),
    "rack",
    ("[::1]:1",),
    (7, 8),
    1,
    2,
    ("w=1",),
)
MESSAGES: list[wire.AnyMessage] = [
    wire.Packet("default", "a", "127.0.0.1:1", wire.Ping(7, "b"), (RECORD, RECORD)),
    wire.Packet("default", "a", "127.0.0.1:1", wire.PingRequest(7, "b", "127.0.0.1:2")),
    wire.Packet("default", "a", "127.0.0.1:1", wire.Nack(7, "b")),
    wire.Packet("default", "a", "127.0.0.1:1", wire.Ack(7, "b")),
    wire.Packet("default", "a", "127.0.0.1:1", wire.Gossip()),
    wire.Ping(7, "b"),
    wire.PushPull((RECORD,), reply=True),
    wire.ListDigest(RECORD, b"h" * 64),
    wire.ListDifference((RECORD, RECORD), 8, b"\x05"),
    wire.SummaryPage(1, 2, 10, 4, 0, b"\x55" * 128),
    delta_of(1, 3, 20, np.array([1, 7, 8, 500, 2**20 - 1], np.uint32)),
    wire.SummaryRequest(12),
    versions_message({"a": (1, 2), "b": (3, 4)}),
    wire.SummaryRequest(wanted=False),
    wire.DirectoryPut("a", 1, 300_000, 0, b"a" * 48, b"\x20\x01\x00", True, True, 1 << 52),
    wire.DirectoryResend(),
    wire.DirectoryAsk(5, b"a" * 32, 200),
    wire.DirectoryAnswer(5, ("a", "b"), b"\x00\x00\x01\x20\x01\x00\x00\x05"),
    wire.LeaseRequest(9, b"k" * 64, 1000),
    wire.LeaseRequest(9, b"k" * 64, 1000, direct_bytes=8192),
    wire.LeaseGrant(9, 3, b"\x03", 1000, (4096, 4096), (1024, 1024), b"d" * 32, b"n" * 64, direct=True),
    wire.LeaseGrant(9, 3, b"\x03", 1000, (4096, 4096), (1024, 1024), b"d" * 32, b"n" * 64, check=b"c" * 8),
    wire.LeaseRelease(3),
    wire.LeaseRenew(3, 500),
    wire.Hello("default", "a", "127.0.0.1:1", 0),
    wire.HelloAck("b", 1, "no"),
    wire.TlsHello("default", "a", "127.0.0.1:1", 1 << 40),
    wire.TlsAck("b", 1, 1 << 40, "no"),
    wire.SessionAsk(),
    wire.SessionGrant(b"k" * 32, 60_000),
    wire.Pull(3, b"\x03", 1000),
    wire.Places(3, b"\x03", b"\x02", (4096,), (7,)),
    wire.ArenaOffer(1, 1 << 20, 4096),
    wire.FabricOffer("r", ("cma", "tcp"), b"m" * 99, 1 << 20, 4096, 1 << 20, "no"),
    wire.FabricPull(3, b"\x03", (0, 4096), (4096, 4096), 1 << 52, 1000),
    wire.Written(1 << 52, b"\x01"),
    wire.PushOffer(4, b"n" * 32, b"k" * 64, 3, 8, 1024, 1000, 0),
    wire.PushAnswer(4, b"\x03", 4, "no"),
    wire.PushReady(4, b"\x03", 0, 1),
    wire.PushCredit(4, 1),
    wire.PushDigests(4, b"d" * 32),
    wire.PushDone(4),
    wire.PushCancel(4, offered=True, reason="no"),
    wire.PullParts(True, 4, b"\x03", 3, 8, 0, 1, 2, 4, remaining_ms=1000),
    wire.KeyCommand(5, 1, b"k" * 32),
    wire.KeyReport(5, (b"f" * 8, b"g" * 8), "no"),
]
GRID, PART = local_wire.GridSpec(3, 8, 1024), local_wire.PartSpec(0, 3, 2, 4)
REQUESTS: list[local_wire.Request] = [
    local_wire.ShardRequest(b"n" * 32, GRID, PART, (local_wire.StagedShard(b"k" * 32, 0),), b"d" * 192, 0),
    local_wire.DeliverRequest(b"n" * 32, b"k" * 64, GRID, PART, 1000),
    local_wire.WaitRequest(4, push=False, layer=-1, timeout_ms=1000),
    local_wire.EndRequest(4, push=True),
    local_wire.ExpectRequest(b"n" * 32),
    local_wire.PushRequest("b", b"n" * 32, b"k" * 64, GRID, by_layer=True, timeout_ms=1000),
    local_wire.Attach(1, "engine", 1 << 20),
    local_wire.MatchRequest(b"k" * 64),
    local_wire.AcquireRequest(b"k" * 96, 1000),
    local_wire.ReleaseRequest(3),
    local_wire.PinRequest(b"k" * 64, 60_000),
    local_wire.PublishRequest(b"n" * 32, (local_wire.StagedBlock(b"k" * 32, 0, 4096, 1024, b"d" * 16),)),
    local_wire.StatusRequest(),
    local_wire.MembersRequest(),
    local_wire.LocateRequest(b"k" * 32),
    local_wire.LeaveRequest(),
    local_wire.RingRequest(),
    local_wire.ExplainRequest(b"k" * 64, 4096),
    local_wire.ScoreRequest(b"k" * 64, 4096, 1000, 3),
    local_wire.KeysRequest(1, 1000, b"k" * 32, "ab"),
    local_wire.PingPeerRequest("a", 1000),
    local_wire.NetcheckRequest(1000, True),
    local_wire.ConditionRequest(),
    local_wire.ScrubRequest(2**20),
    local_wire.PrefetchRequest(bytes(64), 1000),
    local_wire.HandOverRequest(1),
    local_wire.HandedRequest(1024),
    local_wire.FollowRequest(),
]
REPLIES: list[local_wire.Reply] = [
    local_wire.PrefetchReply(3),
    local_wire.HandOverReply(1, 3),
    local_wire.HandedReply(
        1024, (local_wire.HandedBlock(bytes(32), bytes(32), 4096, 8192, 4096, 2, bytes(16), 3, bytes(32)),)
    ),
    local_wire.ShardReply(1, 0, 1, 0, "no", "do"),
    local_wire.DeliverReply(4, (local_wire.DeliveredBlock(b"k" * 32, 4096, 7, True, b"d" * 16, "a"),), "all here"),
    local_wire.WaitReply("here", "", 2, 3),
    local_wire.PushReply(4),
    local_wire.Welcome(1, "a", "node a", 1 << 20, 4096),
    local_wire.MatchReply(1, 2, (local_wire.Holder("a", "node a", 2),)),
    local_wire.AcquireReply(1, (), (local_wire.SourceName("a", "tcp"),), "all here"),
    local_wire.PinReply(2, 8192),
    local_wire.PublishReply(1, 2, 3, "no room", "raise it"),
    local_wire.MembersReply((local_wire.MemberView("a", "node a", "h:1", "alive", 0, "z", "h", 1, self=True),)),
    local_wire.StatusReply(
        *("a", "node a", "default", "h:1", "1.0", 2.5, "none"), *({"alive": 1}, {"s:1": "reached"}), *({}, {}, {}, {})
    ),
    local_wire.LocateReply(
        False, 0, "", (), (), "aa", 3, (local_wire.Recorded("a", "node a", 32, 0, "node b"),), ("c",)
    ),
    local_wire.RingReply(
        (local_wire.RingShare("a", "node a", "z", "h", 1, 0.5, 0.5, 1.0, self=True),), 2, 1.25, 8, "ff"
    ),
    local_wire.ScoreReply(2, (local_wire.SeatView("a", "node a", 1, "host", 1, 0, 2.5, 7),)),
    local_wire.ExplainReply(
        local_wire.PlanView("fetch", "it pays", 3, 1, 2, 4096, 0.5, 0.25, 1.0, None, (), ()),
        (local_wire.AwayView("b", 2, "it is slower"),),
        None,
    ),
    local_wire.PathsReply(
        "a",
        "node a",
        ("h:1",),
        "h:1",
        (
            local_wire.PathView(
                "b", "b", "h:2", "alive", True, "tcp", "r", "p", True, False, 0.5, None, 1.0, 2.0, "", 0.1
            ),
        ),
    ),
    local_wire.ScrubReply(10, 2**20, {"corrupt": 1}),
    local_wire.ConditionReply((local_wire.CheckView("gpu", "ok", "none", ""),)),
    local_wire.KeysReply(
        True, "", ("aa",), (local_wire.KeyHolder("a", "node a", "h:1", "alive", answered=True, keys=("aa",), note=""),)
    ),
    local_wire.Done(),
    local_wire.Failure("TierFull", "no room", "raise it"),
]
BODY = bytes(range(256)) * 4
INFO = BlockInfo(BlockKey(b"k" * 32), b"n" * 32, len(BODY), 256, block_digest(BODY, 256))


def mutated(seeds: list[bytes], random: Random) -> bytes:
    """One of the seeds after a few random wounds, or plain noise."""
    if random.random() < 0.1:
        return random.randbytes(int(random.random() * 80))
    data = bytearray(random.choice(seeds))
    for _ in range(1 + int(random.random() * 4)):
        kind, at = random.random(), int(random.random() * (len(data) + 1))
        if kind < 0.5 and data:
            data[at % len(data)] = int(random.random() * 256)
        elif kind < 0.65:
            del data[at:]
        elif kind < 0.8:
            data[at:at] = random.randbytes(int(random.random() * 6))
        elif kind < 0.9:
            other = random.choice(seeds)
            data[at:] = other[int(random.random() * len(other)) :]
        else:
            data[at : at + 1] = random.choice(
                [b"\xdd\xff\xff\xff\xff", b"\xc7\x03\x01abc", b"\xcf" + b"\xff" * 8, b"\xa1\xff"]
            )
    return bytes(data)


def frames(data: bytes) -> None:
    reader = FrameReader(peer="p")
    cut = len(data) // 2
    for part in (data[:cut], data[cut:]):
        reader.feed(part)
        while (payload := reader.next_frame()) is not None:
            wire.decode_untrusted(payload, peer="p")


def gaps(data: bytes) -> None:
    """The first byte is the count, the second the number of low bits."""
    decode_gaps_untrusted(*(data + b"\0\0")[:2], data[2:], below=2**12, peer="p")


def pieces(data: bytes) -> None:
    """A page and a delta as the wire lets them through, read as far as a reader of summaries reads them."""
    message = wire.decode_untrusted(data, peer="p")
    if isinstance(message, wire.SummaryPage):
        piece_of_untrusted(message, peer="p")
    elif isinstance(message, wire.SummaryDelta):
        flips_of_untrusted(message, peer="p")
    elif isinstance(message, wire.SummaryVersions):
        list(read_versions(message, {short_id("a"): "a"}.get))


def places(data: bytes) -> None:
    places_untrusted(wire.decode_untrusted(data, peer="p"), 3, peer="p")


METADATA = (
    b"nixlSerDes|Agent"
    + (4).to_bytes(8, "little")
    + b"p/77|nixlDList|"
    + b"".join(number.to_bytes(8, "little") for number in (2**40, 8192, 0))
)


def fabric_metadata(data: bytes) -> None:
    agent_name_untrusted(data, node="p")
    region_untrusted(data, 8192, node="p")


def coded(*positions: int) -> bytes:
    found = encode_gaps(np.array(positions, np.uint32))
    return bytes([found.count, found.gap_bits]) + found.data


SUMMARIES = [
    wire.SummaryPage(1, 2, 10, 4, 0, b"\x55" * 128),
    page_of(1, 2, 12, 4, 0, np.packbits(np.arange(2**12) % 97 == 0, bitorder="little")),
    delta_of(1, 3, 12, np.array([1, 7, 8, 500, 2**12 - 1], np.uint32)),
    versions_message({"a": (1, 2), "b": (3, 4)}),
]


RING = KeyRing((bytes(range(32)), bytes(range(1, 33))))
OPENER = DatagramSeal(node_id="b", boot=1, ring=lambda: RING)
SEALED = [
    DatagramSeal(node_id=f"a{i}", boot=i, ring=lambda: RING, salt=bytes(16)).seal(wire.encode(m))
    for i, m in enumerate(MESSAGES)
]
OPENING = Opening(wire.Hello("default", "a", "127.0.0.1:1", 0), RING.keys[0], random=bytes(32))
ANSWER = answer(wire.HelloAck("b", 1), OPENING.payload, RING.keys[0], random=bytes(32))[0]
REFUSAL = wire.encode(wire.HelloAck("b", 1, "no"))
SEALED_RECORD = RecordSealer(bytes(32)).seal(wire.encode(MESSAGES[0]))


def sealed_datagram(data: bytes) -> None:
    """A whole one is a replay after the first time, unless it comes first."""
    OPENER.open_untrusted(data, peer="p")


def record(data: bytes) -> None:
    opener = RecordOpener(bytes(32), peer="p")
    length = opener.length_untrusted(data[:4].ljust(4, b"\0"))
    opener.open_into(
        data[:4].ljust(4, b"\0"),
        memoryview(data[4:].ljust(length + 16, b"\0"))[: length + 16],
        memoryview(bytearray(length)),
    )


PARSERS = [
    pytest.param(lambda data: wire.decode_untrusted(data, peer="p"), [wire.encode(m) for m in MESSAGES], id="control"),
    pytest.param(frames, [frame(wire.encode(m)) + frame(wire.encode(MESSAGES[0])) for m in MESSAGES], id="frames"),
    pytest.param(lambda data: unpack_untrusted(data, peer="p"), [BulkHeader(1, 2, 3, 3, b"d" * 16).pack()], id="bulk"),
    pytest.param(
        lambda data: local_wire.decode_request_untrusted(data, peer="p"),
        [local_wire.encode(m) for m in REQUESTS],
        id="local requests",
    ),
    pytest.param(
        lambda data: local_wire.decode_reply_untrusted(data, peer="p"),
        [local_wire.encode(m) for m in REPLIES],
        id="local replies",
    ),
    pytest.param(gaps, [coded(1, 7, 8, 500, 2**12 - 1), coded(0), coded(*range(40)), coded(4000)], id="gaps"),
    pytest.param(pieces, [wire.encode(m) for m in SUMMARIES], id="summaries"),
    pytest.param(places, [wire.encode(wire.Places(3, b"\x07", b"\x06", (4096, 8192), (7, 8)))], id="places"),
    pytest.param(fabric_metadata, [METADATA], id="fabric metadata"),
    pytest.param(sealed_datagram, SEALED, id="sealed datagrams"),
    pytest.param(lambda data: opened_untrusted(data, RING, peer="p"), [OPENING.payload], id="sealed hellos"),
    pytest.param(lambda data: OPENING.answered_untrusted(data, peer="p"), [ANSWER, REFUSAL], id="sealed answers"),
    pytest.param(record, [SEALED_RECORD], id="sealed records"),
    pytest.param(unpack, [pack_header(INFO) + BODY], id="block file"),
]


def test_every_message_there_is_is_mutated() -> None:
    for union, seeds in (
        (wire.AnyMessage, MESSAGES),
        (local_wire.Request, REQUESTS),
        (local_wire.Reply, REPLIES),
        (wire.DatagramBody, [message.body for message in MESSAGES if isinstance(message, wire.Packet)]),
    ):
        assert set(get_args(union)) == {type(seed) for seed in seeds}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("parse", "seeds"), PARSERS)
def test_mutated_input_gives_the_documented_error_or_a_value(
    parse: Callable[[bytes], object], seeds: list[bytes]
) -> None:
    random, refused, taken = Random(1), 0, 0
    for seed in seeds:
        with suppress(VersionMismatch):  # what a refusal says is not malformed
            parse(seed)
    tracemalloc.start()
    try:
        for _ in range(INPUTS):
            data = mutated(seeds, random)
            try:
                parse(data)
                taken += 1
            except (MalformedMessage, NotABlockFile, SealRefused, VersionMismatch):
                refused += 1
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused > INPUTS / 10
    assert current < GROWTH_BYTES_MAX
    assert refused + taken == INPUTS


@pytest.mark.timeout(3600)
def test_a_node_that_is_told_mutated_messages_goes_on_and_stays_within_its_bounds() -> None:
    random, taken, now = Random(1), 0, 0.0
    me = msgspec.structs.replace(RECORD, id="me", boot=1, incarnation=0, also_at=(), weights=())
    node = Node(Config(host=HostConfig(capacity_bytes=2**20)), me, Random(1))
    seeds = [wire.encode(message) for message in MESSAGES]
    tracemalloc.start()
    try:
        node.on_time(now)
        for _ in range(INPUTS):
            now += 0.01
            try:
                message = wire.decode_untrusted(mutated(seeds, random), peer="p")
            except MalformedMessage:
                continue
            taken += 1
            node.on_message("a" * 16 if random.random() < 0.5 else "a", message, now)
            node.on_time(now)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken > INPUTS / 50
    assert current < NODE_GROWTH_BYTES_MAX
