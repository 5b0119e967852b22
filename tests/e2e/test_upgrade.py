"""Real daemons, one after the other in one place: what the first had in memory the second has, and nobody gets a wrong byte."""

import os
import stat
import threading
import time
from random import Random

import pytest

from p2pkv import take_over as taking
from p2pkv.config import Config, HostConfig, NodeConfig
from p2pkv.errors import P2pkvError
from p2pkv.take_over import Inherited, Predecessor, host_tier, inherit, take_over
from tests.daemons import Daemon, p2pkv, wait_until
from tests.e2e.conftest import Chain


def start(tmp_path, *arguments, after=None, name="a"):
    """A daemon, or the one that follows `after`; the option is the same."""
    bind = after.address if after is not None else "127.0.0.1:0"
    return Daemon(tmp_path, name, "--take-over", *arguments, bind=bind, state_dir=tmp_path / f"{name}-state")


def config_of(daemon, tmp_path):
    return Config(
        node=NodeConfig(socket=str(daemon.socket), state_dir=str(tmp_path / "a-state")),
        host=HostConfig(capacity_bytes=64 * 2**20),
    )


def ended(daemon):
    return daemon.process.wait(20)


class Engine(threading.Thread):
    """Asks all the time; an error is the daemon's absence, a miss is none."""

    def __init__(self, daemon: Daemon, chains: list[Chain]) -> None:
        super().__init__(daemon=True)
        self._daemon, self._chains = daemon, chains
        self.seen: list[int] = []
        self.is_done = False

    def run(self):
        with self._daemon.client() as client:
            number = 0
            while not self.is_done:
                chain = self._chains[number % len(self._chains)]
                try:
                    with client.acquire(chain.keys, timeout_s=2) as lease:
                        self.seen.append(chain.arrived(lease))
                except P2pkvError:
                    time.sleep(0.05)
                number += 1


def test_an_upgrade_keeps_what_is_in_memory_for_engines_and_for_peers(tmp_path):
    chains = [Chain(seed, 8) for seed in range(1, 41)]
    disk = ("--disk", str(tmp_path / "disk"), "--disk-bytes", "256MiB")
    daemons = [start(tmp_path, *disk)]
    engine = Engine(daemons[0], chains)
    try:
        assert "nobody to take over from" in daemons[0].log.read_text()
        daemons.append(Daemon(tmp_path, "b", "--join", daemons[0].address))
        first, peer = daemons
        with first.client() as client:
            for chain in chains:
                assert chain.publish(client).stored == 8
            boot = client.status().boot
            held = client.acquire(chains[0].keys)
        engine.start()
        daemons.append(start(tmp_path, *disk, after=first))
        assert ended(first) == 0
        assert chains[0].arrived(held) == 8  # a lease on memory that nobody writes to any more
        with daemons[2].client() as client:
            assert client.status().boot > boot
            assert client.node_id == first.facts["node"]
            assert client.status().counters["p2pkv_taken_over_blocks_total{result=ok}"] == 320
            for chain in chains:
                with client.acquire(chain.keys) as lease:
                    assert chain.arrived(lease) == 8
                    assert [source.transport for source in lease.sources] == ["local"]
            wait_until(lambda: client.status().disk["state"] == "serving", "the disk is this daemon's now")
            assert Chain(99).publish(client).stored == 6
        with peer.client() as client:
            for chain in chains[1:4]:
                wait_until(lambda chain=chain: client.match(chain.keys).reachable_blocks == 8, "the peer hears of them")
                with client.acquire(chain.keys) as lease:
                    assert chain.arrived(lease) == 8
                    assert {source.peer for source in lease.sources} == {"a"}
            assert [member.state for member in client.members() if member.name == "a"] == ["alive"]
        count = len(engine.seen)
        wait_until(lambda: len(engine.seen) > count, "the engine has found the new daemon by itself")
        engine.is_done = True
        engine.join()
        assert set(engine.seen) == {8}
    finally:
        engine.is_done = True
        for daemon in daemons:
            daemon.stop()


def test_a_successor_that_gives_up_leaves_the_daemon_as_it_was(tmp_path, chain):
    first = start(tmp_path)
    try:
        with first.client() as client:
            chain.publish(client)
            wrong = p2pkv("serve", "--take-over", "--socket", str(first.socket), "--keyring", str(tmp_path / "none"))
            assert wrong.returncode == 2  # and nobody has left
            before = Predecessor.find(first.socket)
            assert before is not None
            assert before.begin() == 6
            assert Chain(2).publish(client).refused == 6
            other = p2pkv(
                "serve", "--take-over", "--socket", str(first.socket), "--state-dir", "", "--bind", first.address
            )
            assert other.returncode == 1
            assert b"another daemon is taking this one's place" in other.stderr
            before.close()
            wait_until(lambda: Chain(2).publish(client).stored == 6, "it stores again")
            with client.acquire(chain.keys) as lease:
                assert chain.arrived(lease) == 6
    finally:
        first.stop()


def test_a_daemon_that_is_killed_while_it_hands_over_leaves_what_it_has_named(tmp_path):
    chains = [Chain(seed, 64) for seed in range(1, 25)]  # two answers long
    first = start(tmp_path)
    into = Inherited(host_tier(config_of(first, tmp_path), filled=False))
    try:
        with first.client() as client:
            for chain in chains:
                chain.publish(client)
        before = Predecessor.find(first.socket)
        count = before.begin()
        assert count == 24 * 64
        named = before.blocks

        def killed_then(number):
            if number:
                first.kill()
            return named(number)

        before.blocks = killed_then
        inherit(before, count, into, taking._slots(config_of(first, tmp_path)))
        before.wait_ended()
        before.close()
        bodies = {bytes(key): body for chain in chains for key, body in zip(chain.keys, chain.bodies, strict=True)}
        assert len(into.blocks) == 1024
        for info, slot, _ in into.blocks:
            assert bytes(into.tier.read(slot, info.length)) == bodies[info.key]
        assert "it has hung up" in into.problem or "no answer" in into.problem
    finally:
        into.tier.close()
        first.stop()


def killed_while_followed(tmp_path, chains, delay_s) -> int:
    """Kill a daemon so long after its successor was started; return how many blocks that one has."""
    first = start(tmp_path)
    second = None
    try:
        with first.client() as client:
            for chain in chains:
                chain.publish(client)
        killer = threading.Timer(delay_s, first.kill)
        killer.start()
        second = start(tmp_path, after=first)
        killer.join()
        found = 0
        with second.client() as client:
            for chain in chains:
                with client.acquire(chain.keys, timeout_s=0.1) as lease:
                    found += chain.arrived(lease)
            chains[0].publish(client)
            with client.acquire(chains[0].keys) as lease:
                assert chains[0].arrived(lease) == len(chains[0].keys)
        return found
    finally:
        first.stop()
        if second is not None:
            second.stop()


def test_killing_the_daemon_before_costs_blocks_and_nothing_else(tmp_path, chain):
    assert killed_while_followed(tmp_path, [chain], 0.5) in {0, 6}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_killing_the_daemon_before_at_any_time_costs_blocks_and_nothing_else(tmp_path, seed):
    chains = [Chain(number, 64) for number in range(1, 25)]
    assert 0 <= killed_while_followed(tmp_path, chains, Random(seed).uniform(0.2, 2.0)) <= 24 * 64


def test_a_daemon_of_another_format_hands_nothing_over_and_leaves(tmp_path, chain, monkeypatch):
    first = start(tmp_path)
    try:
        with first.client() as client:
            chain.publish(client)
        monkeypatch.setattr(taking, "FORMAT", 2)
        inherited = take_over(config_of(first, tmp_path))
        assert inherited is not None
        assert (inherited.blocks, ended(first)) == ([], 0)
        assert inherited.problem == "it hands over in format 1, this program takes 2: the daemon before"
        inherited.tier.close()
    finally:
        first.stop()


def test_a_daemon_that_does_not_know_the_question_leaves_too(tmp_path, chain, monkeypatch):
    first = start(tmp_path)
    try:
        monkeypatch.setattr(taking, "HandOverRequest", lambda _: taking.Attach(1, "again", 0))  # it hangs up on that
        inherited = take_over(config_of(first, tmp_path))
        assert inherited is not None
        assert (inherited.blocks, ended(first)) == ([], 0)
        assert inherited.problem == "it has hung up: the daemon before"
        inherited.tier.close()
    finally:
        first.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_another_user_gets_nothing(tmp_path, chain):
    first = start(tmp_path)
    nobody = 65534
    try:
        with first.client() as client:
            chain.publish(client)
            first.socket.chmod(0o666)
            for folder in (tmp_path, *tmp_path.parents):
                if folder.stat().st_uid == 0 and folder.name:
                    folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
            found = _as(nobody, lambda: Predecessor.find(first.socket))
            assert found == f"LocalUseError: the daemon at {first.socket} is another user's"

            def ask():
                taking.refuse_other_users = lambda *_, **__: None
                os.pidfd_open = lambda *_: -1  # a process that looks away
                before = Predecessor.find(first.socket)
                before.begin()

            assert _as(nobody, ask) == "LocalUseError: memory is handed over to a process of the same user only"
            assert Chain(2).publish(client).stored == 6  # nothing has begun
    finally:
        first.stop()


def _as(uid, work) -> str:
    """Do some work as another user, in a child; return what it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            text = f"nothing: {work()}"
        except BaseException as exc:  # noqa: BLE001 - all of it is the answer
            text = f"{type(exc).__name__}: {exc}"
        os.write(writing, text.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text
