"""Links that fail in one direction only, between real daemons in network namespaces.

Every machine that lets us make namespaces runs these; on others they are skipped, and the reason says what was refused.
"""

import time
from contextlib import ExitStack, contextmanager

import pytest

from tests.daemons import wait_until
from tests.meshes import DEADLINE_S, Place, running, subtract
from tests.namespaces import NoNamespacesError, cut, network, repair

PORT = 7710
COUNT = 4
PERIOD_S, TIMEOUT_S = 1.0, 0.2
ROUNDS = 2
"""How often every member probes every other while the pair is cut."""
HOPS = 4
"""Processes that must run one after the other before an indirect probe is answered, and the answer is heard."""
SUSPICION_S = 1.5
"""At most the shortest one at these settings and those of the profile."""
TIMES = ("--set", f"mesh.probe_period_s={PERIOD_S}", "--set", f"mesh.probe_timeout_s={TIMEOUT_S}")


@contextmanager
def mesh_of_hosts(folder, *arguments):
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(network(COUNT))
        except NoNamespacesError as exc:
            pytest.skip(f"no network namespaces here: {exc}")
        places = [Place(f"{host.ip}:{PORT}", host.prefix) for host in hosts]
        mesh = stack.enter_context(running(folder, COUNT, "--insecure", *arguments, places=places))
        mesh.wait_agreed(mesh.names, "all are there")
        yield hosts, mesh


def between(verdicts, *names):
    """What the members of `names` said of each other."""
    return [verdict for verdict in verdicts if verdict.by in names and verdict.member in names]


def test_a_pair_that_is_cut_one_way_is_kept_alive_by_those_who_reach_both(tmp_path):
    with mesh_of_hosts(tmp_path, *TIMES) as (hosts, mesh):
        before = mesh.verdicts()
        cut(hosts[1], hosts[2])
        assert not hosts[1].connects(hosts[2], PORT, timeout_s=0.5)
        assert hosts[3].connects(hosts[2], PORT, timeout_s=DEADLINE_S)
        time.sleep(ROUNDS * (COUNT - 1) * PERIOD_S)
        assert mesh.wrong_deaths(before, expected=[], suspicion_s=SUSPICION_S) == []
        # Nor was either suspected, if every process that an answer passes through had its share of the time there is.
        if mesh.longest_wait_s() < (PERIOD_S - TIMEOUT_S) / HOPS:
            assert between(subtract(mesh.verdicts(), before), "n01", "n02") == []


def test_one_that_nobody_hears_is_declared_dead_and_returns_when_it_is_heard(tmp_path):
    with mesh_of_hosts(tmp_path) as (hosts, mesh):
        before = mesh.verdicts()
        ids = mesh.ids(["n01"])
        others = [name for name in mesh.names if name != "n01"]
        for host in hosts:
            if host != hosts[1]:
                cut(hosts[1], host)
        mesh.wait_gone(ids, "dead", others)
        mesh.wait_agreed(others, "the others agree")
        for host in hosts:
            if host != hosts[1]:
                repair(hosts[1], host)
        mesh.wait_agreed(mesh.names, "all are there again")
        assert mesh.ids(["n01"]) == ids
        wrong = mesh.wrong_deaths(before, expected=["n01"], suspicion_s=SUSPICION_S)
        assert [verdict for verdict in wrong if verdict.by != "n01"] == []  # from where it stands, nobody answers


@pytest.mark.slow
def test_without_helpers_and_streams_the_same_pair_suspects_each_other(tmp_path):
    """Or else the first test would show nothing."""
    alone = ("--set", "mesh.indirect_probes=0", "--set", "mesh.stream_probe=false")
    with mesh_of_hosts(tmp_path, *TIMES, *alone) as (hosts, mesh):
        cut(hosts[1], hosts[2])

        def suspected() -> bool:
            pairs = {(verdict.by, verdict.member) for verdict in mesh.verdicts() if verdict.now == "suspect"}
            return {("n01", "n02"), ("n02", "n01")} <= pairs

        wait_until(suspected, "both ends suspect each other", seconds=DEADLINE_S)
