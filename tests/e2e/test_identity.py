"""A real node keeps its id over SIGKILL, and two that share one by mistake both say so."""

import json
import shutil
import socket
from pathlib import Path

from p2pkv.identity import Identity
from p2pkv.identity import _check as check
from p2pkv.local_wire import StatusReply
from tests.daemons import Daemon, p2pkv, wait_until
from tests.e2e.conftest import Chain


def status(daemon: Daemon) -> StatusReply:
    with daemon.client(staging_bytes=0) as client:
        return client.status()


def members_named(daemon: Daemon, name: str) -> list:
    with daemon.client(staging_bytes=0) as client:
        return [member for member in client.members() if member.name == name]


def stored(folder: Path) -> dict:
    return json.loads((folder / "identity.json").read_text())


def test_a_killed_node_comes_back_as_the_member_it_was(tmp_path):
    state = tmp_path / "state"
    with_seed = Daemon(tmp_path, "seed")
    join = ("--join", with_seed.address)
    first = second = None
    try:
        first = Daemon(tmp_path, "b", *join, state_dir=state)
        before = stored(state)
        wait_until(lambda: [m.state for m in members_named(with_seed, "b")] == ["alive"], "the seed knows b")
        first.kill()
        second = Daemon(tmp_path, "b", *join, state_dir=state)
        after = stored(state)
        assert second.facts["node"] == first.facts["node"] == before["id"] == after["id"]
        assert after["boot"] > before["boot"]
        wait_until(
            lambda: [(m.state, m.boot) for m in members_named(with_seed, "b")] == [("alive", after["boot"])],
            "the seed believes in the new start and lists b once",
        )
        assert status(second).boot == after["boot"]
        assert status(second).duplicates == ()
        assert status(second).state_dir == str(state)
        assert not any("duplicate" in daemon.log.read_text() for daemon in (with_seed, second))
    finally:
        for daemon in (first, second, with_seed):
            if daemon is not None:
                daemon.stop()


def test_of_a_node_that_came_back_only_what_it_holds_now_is_believed(tmp_path, chain):
    state, other = tmp_path / "state", Chain(2)
    with_seed = Daemon(tmp_path, "seed")
    join = ("--join", with_seed.address)
    first = second = None
    try:
        first = Daemon(tmp_path, "b", *join, state_dir=state)
        with with_seed.client() as at_seed:
            with first.client() as at_b:
                chain.publish(at_b)
            wait_until(lambda: at_seed.match(chain.keys).reachable_blocks == 6, "what b held is seen")
            first.kill()
            second = Daemon(tmp_path, "b", *join, state_dir=state)
            with second.client() as at_b:
                other.publish(at_b)
            wait_until(lambda: at_seed.match(other.keys).reachable_blocks == 6, "what b holds now is seen")
            assert at_seed.match(chain.keys).reachable_blocks == 0
            with at_seed.acquire(other.keys) as lease:
                assert other.arrived(lease) == 6
    finally:
        for daemon in (first, second, with_seed):
            if daemon is not None:
                daemon.stop()


def test_a_node_that_was_declared_dead_comes_back_though_its_clock_was_set_back_meanwhile(tmp_path):
    state, ahead = tmp_path / "state", 2**52  # a clock of some day far in the future
    Identity.kept(state).close()
    before = stored(state)
    (state / "identity.json").write_text(json.dumps(before | {"boot": ahead, "check": check(before["id"], ahead)}))
    with_seed = Daemon(tmp_path, "seed")
    join = ("--join", with_seed.address)
    first = second = None
    try:
        first = Daemon(tmp_path, "b", *join, state_dir=state)
        for state_name in ("alive", "dead"):
            wait_until(lambda name=state_name: [m.state for m in members_named(with_seed, "b")] == [name], state_name)
            first.kill()
        second = Daemon(tmp_path, "b", *join, state_dir=state)
        wait_until(lambda: [m.state for m in members_named(with_seed, "b")] == ["alive"], "b is back, listed once")
        assert second.facts["node"] == before["id"]
        assert status(second).boot == ahead + 2
    finally:
        for daemon in (first, second, with_seed):
            if daemon is not None:
                daemon.stop()


def test_a_copied_state_folder_is_reported_by_both_nodes(tmp_path):
    original, copy = tmp_path / "original", tmp_path / "copy"
    daemons = [Daemon(tmp_path, "seed")]
    try:
        join = ("--join", daemons[0].address)
        daemons.append(Daemon(tmp_path, "a", *join, state_dir=original))
        shutil.copytree(original, copy)
        daemons.append(Daemon(tmp_path, "b", *join, state_dir=copy))
        _, a, b = daemons
        assert a.facts["node"] == b.facts["node"]
        for one, other in ((a, b), (b, a)):
            wait_until(
                lambda one=one, other=other: [twin.address for twin in status(one).duplicates] == [other.address],
                f"{one.name} says that {other.name} has its id",
            )
            assert "duplicate node id" in one.log.read_text()
            document = json.loads(p2pkv("status", "--socket", str(one.socket), "-o", "json").stdout)
            assert [twin["address"] for twin in document["duplicates"]] == [other.address]
            table = p2pkv("status", "--socket", str(one.socket)).stdout.decode()
            assert f"another node has this node's id: {other.address}" in table
        assert status(daemons[0]).duplicates == ()
    finally:
        for daemon in daemons:
            daemon.stop()


def test_a_second_daemon_on_one_state_folder_is_refused_in_one_line(tmp_path):
    state = tmp_path / "state"
    daemon = Daemon(tmp_path, "a", state_dir=state)
    try:
        before = stored(state)
        result = p2pkv(
            "serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "b.sock"), "--state-dir", str(state)
        )
        assert result.returncode == 1
        assert result.stderr.decode().splitlines() == [
            f"error: another daemon uses this state folder: {state}",
            "hint: two nodes must not have one id: choose another folder with --state-dir",
        ]
        assert stored(state) == before
    finally:
        daemon.stop()


def test_two_daemons_of_one_machine_share_no_state_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    with socket.socket() as one, socket.socket() as other:
        for taken in (one, other):
            taken.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1] for taken in (one, other)]
    daemons = []
    try:
        for name, port in zip("ab", ports, strict=True):
            daemons.append(Daemon(tmp_path, name, bind=f"127.0.0.1:{port}", state_dir=Path("auto")))
        assert [status(daemon).state_dir for daemon in daemons] == [
            str(tmp_path / "xdg" / "p2pkv" / str(port)) for port in ports
        ]
        assert daemons[0].facts["node"] != daemons[1].facts["node"]
    finally:
        for daemon in daemons:
            daemon.stop()
