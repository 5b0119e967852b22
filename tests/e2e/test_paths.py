"""`p2pkv ping`, `netcheck` and `doctor` of real daemons."""

import json
import signal

import msgspec
import pytest

from p2pkv.transport.nixl import is_installed
from tests.daemons import mesh, p2pkv, wait_until
from tests.e2e.test_security import Daemon_, keyring

WAYS = [
    pytest.param(("--set", "fetch.shared_memory=false"), "tcp", id="tcp"),
    pytest.param((), "shm", id="shm"),
    pytest.param(
        ("--set", "transport.prefer=nixl,tcp"),
        "nixl",
        id="nixl",
        marks=pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]"),
    ),
]


def asked(daemon, *arguments):
    done = p2pkv(*arguments, "--socket", str(daemon.socket), "-o", "json")
    return done.returncode, json.loads(done.stdout), done.stderr.decode()


@pytest.mark.parametrize(("settings", "transport"), WAYS)
def test_a_ping_measures_the_path_that_blocks_take_and_says_why(tmp_path, settings, transport):
    ring = ("--keyring", str(keyring(tmp_path)))
    with mesh(tmp_path, "a", "b", arguments=(*settings, *ring)) as (a, b), b.client() as at_b:
        used = at_b.status().tier["used_bytes"]

        def path():
            (found,) = at_b.ping_peer("a").paths
            return found

        wait_until(lambda: path().transport == transport, f"blocks take {transport}")
        found = msgspec.to_builtins(path())
        assert (found["name"], found["address"], found["state"]) == ("a", a.address, "alive")
        assert found["udp"]
        assert found["tcp"]
        assert found["rtt_ms"] > 0
        assert found["bandwidth_gbps"] > 0
        assert found["note"] == ""
        assert found["reason"]
        assert found["protection"]
        assert at_b.status().tier["used_bytes"] == used


def test_the_places_of_probes_are_given_back_where_they_were_lent(tmp_path):
    with mesh(tmp_path, "a", "b") as (a, b), a.client() as at_a:
        before = at_a.status().tier["used_bytes"]
        done = p2pkv("ping", a.address, "--socket", str(b.socket))
        assert done.returncode == 0
        assert "GB/s" in done.stdout.decode()
        assert at_a.status().tier["used_bytes"] > before
        wait_until(lambda: at_a.status().tier["used_bytes"] == before, "the places are free")


def test_a_member_that_does_not_answer_is_a_failure_with_a_reason(tmp_path):
    patient = ("--set", "mesh.suspicion_mult=60")
    with mesh(tmp_path, "a", "b", "c", arguments=patient) as (a, b, _):
        a.process.send_signal(signal.SIGSTOP)
        try:
            code, document, _ = asked(b, "ping", "a", "--timeout", "0.5")
            assert code == 1
            (path,) = document["paths"]
            assert (path["udp"], path["tcp"], path["rtt_ms"], path["bandwidth_gbps"]) == (False, False, None, None)
            assert path["note"]
            code, document, _ = asked(b, "netcheck", "--timeout", "0.5")
            assert code == 1
            assert {one["name"]: one["udp"] for one in document["paths"]} == {"a": False, "c": True}
        finally:
            a.process.send_signal(signal.SIGCONT)


def test_a_netcheck_of_a_healthy_mesh_says_where_this_node_is_and_that_all_are_reached(tmp_path):
    with mesh(tmp_path, "a", "b", "c") as (a, *_):
        code, document, errors = asked(a, "netcheck", "--bandwidth")
        assert code == 0, errors
        assert document["addresses"] == [a.address]
        assert [path["name"] for path in document["paths"]] == ["b", "c"]
        assert all(path["udp"] and path["tcp"] and path["bandwidth_gbps"] for path in document["paths"])


def test_a_member_that_is_not_known_is_wrong_usage(tmp_path):
    with Daemon_(tmp_path, "a") as a:
        code, document, _ = asked(a, "ping", "nobody")
        assert (code, document["error"]["kind"]) == (2, "ConfigError")


def test_the_doctor_has_a_line_for_each_thing_and_fails_for_a_daemon_that_is_not_there(tmp_path):
    with mesh(tmp_path, "a", "b") as (a, _):
        code, document, errors = asked(a, "doctor")
        names = [check["name"] for check in document["checks"]]
        assert names[0] == "daemon"
        assert names[-1] == "path to b"
        assert {"huge pages", "locked memory", "/dev/shm", "open files", "rdma devices", "gpu"} <= set(names)
        assert {"fabric", "keyring", "certificate", "clocks", "object store"} <= set(names)
        assert "GB/s" in document["checks"][-1]["text"]
        failed = [check for check in document["checks"] if check["state"] == "fail"]
        assert (code != 0) == bool(failed), errors
        assert all(check["hint"] for check in document["checks"] if check["state"] != "ok")
    code, document, _ = asked(a, "doctor")
    assert (code, document["state"], document["checks"][0]["name"]) == (1, "fail", "daemon")
