"""A node that joins like any other and then breaks the protocol in one chosen way: `liar.py MODE serve ...`.

Everything but the lie is the real daemon, so the honest side meets the lie exactly where a faulty peer would tell it.
"""

import os
import sys

from p2pkv.cli.main import main
from p2pkv.transport import streams, tcp
from p2pkv.transport.bulk_header import BulkHeader
from p2pkv.transport.wire import LeaseGrant

honest_send = tcp._send_block
honest_frames = streams._frames


async def flipped_byte(stream, lease, position, one):
    body = bytearray(one.body)
    body[len(body) // 2] ^= 1
    await stream.send_all(BulkHeader(lease, position, len(body), one.segment_bytes, one.digest).pack())
    await stream.send_all(bytes(body))


async def other_digest(stream, lease, position, one):
    await stream.send_all(BulkHeader(lease, position, len(one.body), one.segment_bytes, bytes(16)).pack())
    await stream.send_all(one.body)


async def other_block(stream, lease, position, one):
    await honest_send(stream, lease, position + 1, one)


async def cut_short(stream, lease, position, one):
    await stream.send_all(BulkHeader(lease, position, len(one.body), one.segment_bytes, one.digest).pack())
    await stream.send_all(one.body[: len(one.body) // 2])
    await stream.aclose()


async def killed_in_the_middle(stream, lease, position, one):
    if position == 2:
        await stream.send_all(BulkHeader(lease, position, len(one.body), one.segment_bytes, one.digest).pack())
        await stream.send_all(one.body[: len(one.body) // 2])
        os.kill(os.getpid(), 9)
    await honest_send(stream, lease, position, one)


async def junk_header(stream, lease, position, one):
    await stream.send_all(b"\xff" * 64)


async def huge_block(stream, lease, position, one):
    header = BulkHeader(lease, position, len(one.body), one.segment_bytes, one.digest)
    object.__setattr__(header, "length", 2**31)
    tcp.BulkHeader.pack.__globals__["BLOCK_BYTES_MAX"] = 2**32
    await stream.send_all(header.pack())


async def says_absent(stream, lease, position, one):
    await honest_send(stream, lease, position, None)


def instead_of_a_grant(payload):
    def frames(message, source):
        return payload if isinstance(message, LeaseGrant) else honest_frames(message, source)

    return frames


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
        tcp._send_block = BULK[mode]
    else:
        streams._frames = instead_of_a_grant(CONTROL[mode])
    main()
