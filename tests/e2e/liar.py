"""A node that joins like any other and then breaks the protocol in one chosen way: `liar.py MODE serve ...`.

Everything but the lie is the real daemon, so the honest side meets the lie exactly where a faulty peer would tell it.
"""

import os
import sys

from p2pkv.cli.main import main
from p2pkv.errors import PeerGone
from p2pkv.transport import direct, streams, tcp
from p2pkv.transport.bulk_header import BulkHeader
from p2pkv.transport.framing import frame
from p2pkv.transport.wire import LeaseGrant, encode

honest_parts = tcp._parts


def flipped_byte(lease, position, one):
    body = bytearray(one.body)
    body[len(body) // 2] ^= 1
    return [BulkHeader(lease, position, len(body), one.segment_bytes, one.digest).pack(), bytes(body)]


def other_digest(lease, position, one):
    return [BulkHeader(lease, position, len(one.body), one.segment_bytes, bytes(16)).pack(), one.body]


def other_block(lease, position, one):
    return honest_parts(lease, position + 1, one)


def half(lease, position, one):
    header, body = honest_parts(lease, position, one)
    return [header, body[: len(body) // 2]]


def cut_short(lease, position, one):
    if position:
        raise PeerGone("that was half of it", peer="the honest one")
    return half(lease, position, one)


def killed_in_the_middle(lease, position, one):
    if position > 2:
        os.kill(os.getpid(), 9)
    return half(lease, position, one) if position == 2 else honest_parts(lease, position, one)


def junk_header(lease, position, one):
    return [b"\xff" * 64]


def huge_block(lease, position, one):
    header = BulkHeader(lease, position, len(one.body), one.segment_bytes, one.digest)
    object.__setattr__(header, "length", 2**31)
    tcp.BulkHeader.pack.__globals__["BLOCK_BYTES_MAX"] = 2**32
    return [header.pack()]


def says_absent(lease, position, one):
    return honest_parts(lease, position, None)


def instead_of_a_grant(payload):
    def framed(message):
        return payload if isinstance(message, LeaseGrant) else frame(encode(message))

    return framed


BULK = {
    f.__name__: f
    for f in (
        flipped_byte,
        other_digest,
        other_block,
        cut_short,
        killed_in_the_middle,
        junk_header,
        huge_block,
        says_absent,
    )
}
CONTROL = {
    "oversized_frame": b"\xff\xff\xff\x7f" + b"x" * 1000,
    "truncated_frame": b"\x40\x00\x00\x00half",
    "unknown_message": b"\x02\x00\x00\x00\x91\x63",
    "not_msgpack": b"\x04\x00\x00\x00\xc1\xc1\xc1\xc1",
    "silence": b"",
}

if __name__ == "__main__":
    mode = sys.argv.pop(1)
    if mode in BULK:
        tcp._parts = direct._parts = BULK[mode]
    else:
        streams._AT_ONCE = ()  # so that all grants come by there
        streams._framed = instead_of_a_grant(CONTROL[mode])
    main()
