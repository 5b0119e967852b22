"""Three forms of a node under one call, and what becomes of clients when their process forks or ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import p2pkv
from p2pkv.client import Client
from p2pkv.config import load
from p2pkv.errors import ConfigError, DaemonUnreachable, LocalUseError, P2pkvError
from p2pkv.nodes import ChildNode
from tests.daemons import Daemon, alive, wait_until
from tests.e2e.conftest import Chain


def settings(name, *join):
    flags = {"node.bind": "127.0.0.1:0", "node.name": name, "node.join": join, "host.capacity_bytes": "16MiB"}
    return load(flags=flags | {"node.state_dir": ""}, environment={}, profile="loopback")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("daemon"), "a")
    yield daemon
    daemon.stop()


def in_fork(work):
    """Run `work` in a forked process and return what it says; the parent has threads, as engines have."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        try:
            said = str(work())
        except BaseException as exc:  # noqa: BLE001 - the parent compares it
            said = f"{type(exc).__name__}: {exc}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        said = answers.read()
    os.waitpid(pid, 0)
    return said


@pytest.mark.parametrize("form", ["attached", "child", "inside"])
def test_every_form_joins_the_mesh_and_serves_the_same_calls(daemon, form):
    chain = Chain(hash(form) % 1000)
    options = {"socket": daemon.socket} if form == "attached" else {"config": settings(form, daemon.address)}
    with p2pkv.connect(form, **options) as client:
        chain.publish(client)
        with client.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        with client.another() as other:
            assert other.match(chain.keys).local_blocks == 6
        with daemon.client() as at_daemon:
            wait_until(lambda: at_daemon.match(chain.keys).reachable_blocks == 6, "the mesh knows")
    if form != "attached":
        assert not client.socket_path.parent.exists(), "nothing stays behind"
        with daemon.client() as at_daemon:
            wait_until(lambda: form not in alive(at_daemon), "it said goodbye")


@pytest.mark.parametrize(
    ("form", "options", "message"),
    [
        ("attached", {"config": settings("x")}, "config with form 'attached'"),
        ("child", {"socket": "x.sock"}, "socket with form 'child'"),
        ("daemon", {}, "form is 'daemon'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(form, options, message):
    with pytest.raises(ConfigError, match=message):
        p2pkv.connect(form, **options)


def test_a_child_that_cannot_start_says_why_and_leaves_nothing(daemon):
    before = set(Path("/tmp").glob("p2pkv-*"))
    taken = load(flags={"node.bind": daemon.address, "node.state_dir": ""}, environment={})
    with pytest.raises(DaemonUnreachable, match=r"did not start: .*Address already in use"):
        p2pkv.connect("child", config=taken)
    assert set(Path("/tmp").glob("p2pkv-*")) <= before


def test_a_child_that_dies_is_started_again_and_the_client_finds_it():
    child = ChildNode(settings("mortal"))
    try:
        with Client.connect(child.socket_path) as client:
            first = child.pid
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: child.pid not in {0, first}, "started again")

            def answers():
                try:
                    return client.status().name == "mortal"
                except P2pkvError:
                    return False

            wait_until(answers, "the client is attached again")
            assert child.restarts == 1
    finally:
        child.stop()
    assert child.pid == 0


def test_a_child_does_not_outlive_a_process_that_is_killed(daemon):
    program = """
        import p2pkv, sys, time
        from p2pkv.config import load
        flags = {"node.bind": "127.0.0.1:0", "node.name": "orphan", "node.state_dir": "", "node.join": [sys.argv[1]]}
        client = p2pkv.connect("child", config=load(flags=flags, environment={}, profile="loopback"))
        print("ready", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), daemon.address]
    with daemon.client() as client, subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        wait_until(lambda: "orphan" in alive(client), "it joined")
        process.kill()
        wait_until(lambda: "orphan" not in alive(client), "it left")


@pytest.mark.parametrize("form", ["child", "inside"])
def test_a_process_that_forgets_its_node_ends_well_all_the_same(form, daemon):
    program = """
        import p2pkv, sys
        from p2pkv.config import load
        flags = {"node.bind": "127.0.0.1:0", "node.name": "forgotten", "node.state_dir": "", "node.join": [sys.argv[2]]}
        client = p2pkv.connect(sys.argv[1], config=load(flags=flags, environment={}, profile="loopback"))
        print(client.socket_path)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), form, daemon.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert not Path(done.stdout.strip()).parent.exists()
    with daemon.client() as client:
        wait_until(lambda: "forgotten" not in alive(client), "it said goodbye")


def test_a_fork_of_an_attached_process_misses_until_it_reconnects(daemon):
    chain = Chain(77)
    with daemon.client() as client:
        chain.publish(client)
        lease = client.acquire(chain.keys)

        def missed():
            try:
                client.match(chain.keys)
            except DaemonUnreachable as exc:
                assert exc.hint == "call its reconnect()"
                lease.release()
                return "missed"

        def reconnected():
            client.reconnect()
            with client.acquire(chain.keys) as own:
                return len(own.blocks)

        assert in_fork(missed) == "missed"
        assert in_fork(reconnected) == "6"
        assert client.match(chain.keys).local_blocks == 6, "the parent's connection was not disturbed"
        assert bytes(lease.view(0)), "nor its lease"
        lease.release()


def test_a_fork_while_another_thread_waits_for_the_daemon_does_not_hang(daemon):
    """The lock that the waiting thread holds is copied, and the thread is not."""
    with daemon.client() as client:
        unknown = [os.urandom(32)]
        waiting = threading.Thread(target=lambda: client.acquire(unknown, timeout_s=2).release())
        with client._lock:
            waiting.start()
            assert in_fork(client.status).startswith("DaemonUnreachable")
        waiting.join()


def test_a_fork_neither_stops_its_parents_node_nor_keeps_it_alive():
    with (
        p2pkv.connect("child", config=settings("child")) as child,
        p2pkv.connect("inside", config=settings("in")) as node,
    ):
        assert in_fork(lambda: (child.close(), node.close())) == "(None, None)"
        assert child.status().name == "child"
        assert node.status().name == "in"


def works(path):
    with Client.connect(path) as client:
        return client.status().name


def test_spawned_processes_connect_for_themselves(daemon):
    with daemon.client() as client, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(works, (str(client.socket_path),)) == "a"
        with pytest.raises(LocalUseError, match="cannot be sent"):
            pool.apply(works, (client,))
