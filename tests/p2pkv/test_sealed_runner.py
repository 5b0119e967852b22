"""The trio half of a node with a keyring: what is sealed goes in, what is not, or is old, or is another's, does not."""

import socket
from random import Random

import trio

from p2pkv.config import Config, HostConfig, LogConfig
from p2pkv.logs import logger
from p2pkv.metrics import Metrics
from p2pkv.node import Node
from p2pkv.runner import Runner
from p2pkv.transport.keyring import KeyRing
from p2pkv.transport.seal import DatagramSeal, is_sealed
from p2pkv.transport.streams import ControlStreams
from p2pkv.transport.udp import Datagrams
from p2pkv.transport.wire import Hello, MemberRecord, Packet, Ping, PushPull, encode

RING = KeyRing((bytes(32),))


def record(name: str, address: str, boot: int = 1) -> MemberRecord:
    return MemberRecord(id=name, boot=boot, incarnation=0, state=0, name=name, address=address, offered_bytes=1 << 20)


def sealed_by(name: str, boot: int = 1) -> DatagramSeal:
    return DatagramSeal(node_id=name, boot=boot, ring=lambda: RING)


class Rig:
    """A runner of node a, and a socket that is everybody else."""

    def __init__(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        self.other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.other.bind(("127.0.0.1", 0))
        self.other.setblocking(False)
        self.to = sock.getsockname()
        self.address = f"127.0.0.1:{self.other.getsockname()[1]}"
        own = f"127.0.0.1:{self.to[1]}"
        self.metrics, self.datagrams = Metrics(), Datagrams(sock)
        config = Config(host=HostConfig(capacity_bytes=1 << 20))
        self.streams = ControlStreams(
            hello=lambda: Hello("default", "a", own, 0), connect_timeout_s=1.0, on_lost=lambda *_: None
        )
        self.runner = Runner(
            Node(config, record("a", own), Random(1), ring=RING),
            datagrams=self.datagrams,
            streams=self.streams,
            metrics=self.metrics,
            log=logger(LogConfig()),
            seal=sealed_by("a"),
        )

    def close(self) -> None:
        self.datagrams.close()
        self.other.close()

    def ping(self, sender: str) -> bytes:
        return encode(Packet("default", sender, self.address, Ping(7, "a")))

    async def send(self, *datagrams: bytes) -> list[bytes]:
        """Have the runner take datagrams; return what it sends in answer."""
        for data in datagrams:
            self.other.sendto(data, self.to)
        answers = []
        await trio.sleep(0.05)
        while True:
            try:
                answers.append(self.other.recv(65536))
            except BlockingIOError:
                return answers

    def refused(self) -> dict[str, float]:
        prefix = "p2pkv_seal_refused_total{channel=datagram,reason="
        found = self.metrics.snapshot().items()
        return {name.removeprefix(prefix).rstrip("}"): value for name, value in found if name.startswith(prefix)}


def run(main) -> None:
    async def bounded() -> None:
        rig = Rig()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(rig.streams.run)
                nursery.start_soon(rig.runner.run)
                await main(rig)
                nursery.cancel_scope.cancel()
        rig.close()

    trio.run(bounded)


def test_a_sealed_ping_gets_a_sealed_answer() -> None:
    async def main(rig: Rig) -> None:
        b = sealed_by("b")
        (answer,) = await rig.send(b.seal(rig.ping("b")))
        assert is_sealed(answer)
        opened, _ = b.open_untrusted(answer, peer="a")
        assert b"\x03\x07\xa1a" in opened, "an Ack of 7 by a"
        assert rig.refused() == {}

    run(main)


def test_what_is_in_the_clear_replayed_or_altered_gets_no_answer_and_is_counted() -> None:
    async def main(rig: Rig) -> None:
        data = sealed_by("b").seal(rig.ping("b"))
        assert len(await rig.send(data)) == 1
        assert await rig.send(rig.ping("b"), data, data[:-1] + bytes([data[-1] ^ 1])) == []
        assert await rig.send(sealed_by("b", boot=0).seal(rig.ping("b"))) == []
        assert rig.refused() == {"plaintext": 1, "replay": 2, "old_boot": 1}

    run(main)


def test_a_member_does_not_send_in_the_name_of_another() -> None:
    async def main(rig: Rig) -> None:
        assert await rig.send(sealed_by("b").seal(rig.ping("c"))) == []
        assert rig.refused() == {"sender": 1}

    run(main)


def test_a_boot_heard_of_from_others_shuts_out_earlier_runs() -> None:
    async def main(rig: Rig) -> None:
        told = PushPull(records=(record("c", rig.address), record("b", rig.address, boot=5)), reply=False)
        rig.runner.deliver("c", told)
        await rig.send()
        assert await rig.send(sealed_by("b", boot=4).seal(rig.ping("b"))) == []
        assert rig.refused() == {"old_boot": 1}
        assert len(await rig.send(sealed_by("b", boot=5).seal(rig.ping("b")))) == 1

    run(main)


def test_what_is_sealed_and_is_no_packet_is_malformed_and_nothing_worse() -> None:
    async def main(rig: Rig) -> None:
        b = sealed_by("b")
        command = b"\x94\x11\x01\x01\xc4\x20" + bytes(32)  # a KeyCommand, which streams alone may carry
        assert await rig.send(b.seal(b"\xc1"), b.seal(b""), b.seal(command)) == []
        assert rig.metrics.snapshot()["p2pkv_malformed_messages_total{channel=datagram}"] == 3

    run(main)
