"""Seeds that are not there: they come later than who joins, or they die and others want to join."""

import socket

from tests.daemons import Daemon, alive, wait_until
from tests.meshes import DEADLINE_S

SOON = ("--set", "mesh.join_retry_s=0.1")
"""The wait between two tries doubles up to sixteen times this; nobody has to wait for more than that here."""


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def known(daemon):
    with daemon.client(staging_bytes=0) as client:
        return alive(client)


def wait_known(daemon, names):
    wait_until(lambda: known(daemon) == set(names), f"{daemon.name} knows {names}", seconds=DEADLINE_S)


def seeds(daemon):
    with daemon.client(staging_bytes=0) as client:
        return client.status().seeds


def unreachable_lines(daemon):
    return daemon.log.read_text().count("seed unreachable")


def test_a_seed_that_starts_after_those_who_join_it_brings_them_together(tmp_path):
    address = free_address()
    daemons = [Daemon(tmp_path, name, "--join", address, *SOON) for name in ("a", "b")]
    try:
        for daemon in daemons:
            wait_until(
                lambda daemon=daemon: seeds(daemon) == {address: "unreachable"}, "it says so", seconds=DEADLINE_S
            )
            assert known(daemon) == {daemon.name}
        daemons.append(Daemon(tmp_path, "seed", bind=address))
        for daemon in daemons:
            wait_known(daemon, {"a", "b", "seed"})
        for daemon in daemons[:2]:
            wait_until(lambda daemon=daemon: seeds(daemon) == {address: "reached"}, "it says so", seconds=DEADLINE_S)
            assert unreachable_lines(daemon) == 1  # once, however often it was tried
    finally:
        for daemon in daemons:
            daemon.stop()


def test_without_any_seed_the_mesh_goes_on_and_a_newcomer_gets_in_when_one_is_back(tmp_path):
    address = free_address()
    daemons = {"seed": Daemon(tmp_path, "seed", bind=address)}
    try:
        for name in ("a", "b"):
            daemons[name] = Daemon(tmp_path, name, "--join", address, *SOON)
        for daemon in daemons.values():
            wait_known(daemon, {"seed", "a", "b"})
        daemons["seed"].kill()
        daemons.pop("seed").stop()
        for name in ("a", "b"):
            wait_known(daemons[name], {"a", "b"})
        daemons["new"] = Daemon(tmp_path, "new", "--join", address, *SOON)
        wait_until(lambda: seeds(daemons["new"]) == {address: "unreachable"}, "it says so", seconds=DEADLINE_S)
        assert known(daemons["new"]) == {"new"}
        daemons["seed"] = Daemon(tmp_path, "seed", "--join", daemons["a"].address, bind=address)
        for daemon in daemons.values():
            wait_known(daemon, {"seed", "a", "b", "new"})
    finally:
        for daemon in daemons.values():
            daemon.stop()
