"""The serving side of bulk streams, where the contract does not look: what a caller costs that does not behave."""

import trio
import trio.testing

from p2pkv.blocks import block_digest
from p2pkv.transport.base import Offered
from p2pkv.transport.framing import frame
from p2pkv.transport.tcp import serve_bulk
from p2pkv.transport.wire import Pull, bitmap, encode

BODY = bytes(8 * 2**20)  # more than two socket buffers hold


def test_a_caller_that_asks_and_does_not_read_is_let_go() -> None:
    offered = [Offered(memoryview(BODY), len(BODY), block_digest(BODY, len(BODY)))]
    sent: list[int] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            host, port = listener.socket.getsockname()[:2]
            caller = await trio.open_tcp_stream(host, port)
            stream = await listener.accept()
            nursery.start_soon(caller.send_all, frame(encode(Pull(1, bitmap([0])))))
            with trio.fail_after(20):
                await serve_bulk(
                    stream, peer="b", open_lease=lambda *_: offered, idle_s=60, block_s=0.2, on_sent=sent.append
                )
            await caller.aclose()
            await stream.aclose()
            await listener.aclose()

    trio.run(main)
    assert sent == []
