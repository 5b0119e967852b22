"""Real daemons find each other through real files, commands, name servers and multicast."""

import json
import sys

import pytest

from p2pkv.local_wire import SourceView
from tests.daemons import Daemon, alive, p2pkv, wait_until
from tests.nameserver import name_server


def sources(daemon: Daemon) -> dict[str, SourceView]:
    with daemon.client(staging_bytes=0) as client:
        return {view.source: view for view in client.status().sources}


def sees(daemon: Daemon, *names: str) -> None:
    with daemon.client(staging_bytes=0) as client:
        wait_until(lambda: alive(client) == set(names), f"{daemon.name} sees {names}")


@pytest.fixture
def start(tmp_path):
    daemons: list[Daemon] = []

    def one(name: str, *join: str) -> Daemon:
        arguments = [argument for entry in join for argument in ("--join", entry)]
        daemons.append(Daemon(tmp_path, name, *arguments))
        return daemons[-1]

    yield one
    for daemon in daemons:
        daemon.stop()


def test_a_file_that_changes_under_a_running_daemon_brings_islands_together(tmp_path, start):
    peers = tmp_path / "peers"
    entry = f"file://{peers}"
    a = start("a", entry)
    wait_until(lambda: sources(a)[entry].reason.startswith("cannot read it (No such file"), "a says what is wrong")
    assert "source of seeds failed" in a.log.read_text()
    table = p2pkv("status", "--socket", str(a.socket)).stdout.decode()
    assert "gave nothing yet; failed" in table
    b = start("b")
    peers.write_text(f"# the other one\n{b.address}\n")
    sees(a, "a", "b")
    assert sources(a)[entry].addresses == (b.address,)
    island = start("c")  # a is not alone any more, and asks c all the same
    peers.write_text(f"{b.address}\nnonsense\n{island.address}\n")
    sees(island, "a", "b", "c")
    assert sources(a)[entry].reason.startswith("line 2 is 'nonsense'")


def test_commands_that_hang_fail_or_talk_nonsense_do_no_harm_and_one_that_works_is_enough(tmp_path, start):
    seed = start("seed")
    good = f"exec:printf '{seed.address}\\n'"
    hangs = f"exec:{sys.executable} -c 'import time; time.sleep(600)'"
    garbage = "exec:head -c 300 /dev/urandom"
    fails = "exec:sh -c 'echo no credentials >&2; exit 4'"
    joiner = start("joiner", hangs, garbage, fails, good)
    sees(joiner, "joiner", "seed")
    found = sources(joiner)
    assert found[good].addresses == (seed.address,)
    assert found[fails].reason == "it ended with 4 (no credentials)"
    assert found[garbage].reason
    wait_until(lambda: sources(joiner)[hangs].reason == "it did not end within 10 s", "the hanging one is given up")


def test_names_lead_to_a_mesh_though_the_name_server_fails_at_first(start):
    with name_server() as server:
        seed = start("seed")
        port = seed.address.rpartition(":")[2]
        plain = f"dns://seeds.test:{port}?server={server.address}"
        service = f"dns+srv://_p2pkv._tcp.test?server={server.address}"
        a, b = start("a", plain), start("b", service)
        wait_until(lambda: sources(a)[plain].reason == "there is no such name", "a has asked in vain")
        server.records["seeds.test", "A"] = ["127.0.0.1"]
        server.records["_p2pkv._tcp.test", "SRV"] = [f"10 0 {port} seeds.test."]
        sees(a, "a", "b", "seed")
        sees(b, "a", "b", "seed")
        assert sources(b)[service].addresses == (seed.address,)
        assert sources(a)[plain].failed_age_s is not None


def test_nodes_of_a_segment_find_each_other_by_multicast(start):
    a = start("a", "mdns://127.0.0.1")
    wait_until(lambda: sources(a)["mdns://127.0.0.1"].resolved_age_s is not None or failed(a), "a has announced itself")
    if failed(a):
        pytest.skip(f"this machine has no multicast on loopback: {sources(a)['mdns://127.0.0.1']['reason']}")
    b = start("b", "mdns://127.0.0.1")
    sees(b, "a", "b")
    sees(a, "a", "b")


def failed(daemon: Daemon) -> bool:
    return sources(daemon)["mdns://127.0.0.1"].reason.startswith("no multicast")


def test_all_that_is_said_of_members_is_shown(tmp_path):
    arguments = ("--zone", "z1", "--set", "node.rack=r1", "--set", "node.weights=llama@main=3,adapter=0")
    further = ("--set", "node.also_at=[::1]:7710")
    daemon = Daemon(tmp_path, "a", *arguments, *further)
    other = Daemon(tmp_path, "b", "--join", daemon.address)
    try:
        sees(other, "a", "b")

        def view() -> dict:
            listed = json.loads(p2pkv("members", "--socket", str(other.socket), "-o", "json").stdout)["members"]
            (found,) = [member for member in listed if member["name"] == "a"]
            return found

        wait_until(lambda: view()["load"] == 0, "b has heard a's load")
        shown = view()
        assert (shown["zone"], shown["rack"], shown["also_at"]) == ("z1", "r1", ["[::1]:7710"])
        assert shown["offered"] == {"host": 64 * 2**20}
        assert shown["weights"] == {"llama@main": "3", "adapter": "0"}
        assert (shown["same_host"], shown["compatible"]) == (True, True)
        assert shown["protocol_min"] <= shown["protocol_max"]
        table = p2pkv("members", "--socket", str(other.socket)).stdout.decode()
        assert " z1/r1 " in table
        assert max(len(line) for line in table.splitlines()) <= 130
    finally:
        daemon.stop()
        other.stop()
