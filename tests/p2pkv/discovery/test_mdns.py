"""Real multicast between two processes on loopback, where the machine has it."""

import subprocess
import sys
import textwrap
from functools import partial

import pytest
import trio

from p2pkv.discovery.base import LookupFailed
from p2pkv.discovery.mdns import MdnsResolver
from p2pkv.errors import ConfigError
from p2pkv.transport.wire import MemberRecord

OTHER = """
    import sys, trio
    from p2pkv.discovery.mdns import MdnsResolver
    from p2pkv.transport.wire import MemberRecord

    async def main():
        for number, cluster in enumerate(("ours", "theirs")):
            me = MemberRecord(f"other{number}", 5, 0, 0, "other", f"127.0.0.1:{7000 + number}")
            resolver = MdnsResolver("mdns://127.0.0.1", me=me, cluster=cluster)
            await resolver.resolve()
            resolvers.append(resolver)
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        for resolver in resolvers:
            await resolver.aclose()

    resolvers = []
    trio.run(main)
"""


def record(address: str) -> MemberRecord:
    return MemberRecord(id="me", boot=1, incarnation=0, state=0, name="me", address=address)


async def first_line(stream: trio.abc.ReceiveStream) -> bytes:
    """Return what arrives until there is a line: a text and its end may arrive apart."""
    line = b""
    while not line.endswith(b"\n") and (part := await stream.receive_some(99)):
        line += part
    return line


async def wait_for(resolver: MdnsResolver, wanted: tuple[str, ...]) -> bool:
    for _ in range(100):
        if (await resolver.resolve()).addresses == wanted:
            return True
        await trio.sleep(0.1)
    return False


def test_nodes_of_one_cluster_find_each_other_and_notice_a_goodbye() -> None:
    async def main() -> None:
        ours = MdnsResolver("mdns://127.0.0.1", me=record("127.0.0.1:6999"), cluster="ours")
        try:
            await ours.resolve()
        except LookupFailed as exc:
            pytest.skip(f"this machine has no multicast on loopback: {exc}")
        command = [sys.executable, "-c", textwrap.dedent(OTHER)]
        try:
            async with trio.open_nursery() as nursery:
                other: trio.Process = await nursery.start(
                    partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                )
                assert other.stdin is not None
                assert other.stdout is not None
                assert await first_line(other.stdout) == b"ready\n"
                assert await wait_for(ours, ("127.0.0.1:7000",)), "the other of our cluster, and no other, is found"
                await other.stdin.aclose()
                assert await wait_for(ours, ()), "what was taken back is forgotten"
        finally:
            await ours.aclose()

    trio.run(main)


def test_an_address_that_nobody_could_reach_is_not_announced() -> None:
    resolver = MdnsResolver("mdns://127.0.0.1", me=record("0.0.0.0:7710"), cluster="c")
    with pytest.raises(LookupFailed, match=r"set node\.advertise"):
        trio.run(resolver.resolve)


def test_an_interface_that_is_not_there_is_a_failure_and_not_a_crash() -> None:
    resolver = MdnsResolver("mdns://203.0.113.7", me=record("127.0.0.1:7710"), cluster="c")
    with pytest.raises(LookupFailed, match="no multicast"):
        trio.run(resolver.resolve)


def test_the_part_behind_the_scheme_is_an_address_of_ours() -> None:
    with pytest.raises(ConfigError, match="must be mdns://"):
        MdnsResolver("mdns://eth0", me=record("127.0.0.1:7710"), cluster="c")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pkv.discovery.base.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs the package zeroconf"):
        MdnsResolver("mdns://", me=record("127.0.0.1:7710"), cluster="c")
