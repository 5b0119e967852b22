"""Twenty real daemons in one mesh: killed, frozen, restarted, dismissed.

The tests share the mesh. Each begins by making it whole again, so that their order does not matter. None asserts a time;
what each needs of the machine is in `tests.meshes`.
"""

import signal

import pytest

from p2pkv.config import load
from p2pkv.mesh.suspicion import timeout_min_s
from tests.daemons import p2pkv
from tests.meshes import DEADLINE_S, Mesh, log_lines, running

pytestmark = pytest.mark.timeout(400)  # the fixture's time counts, and a busy machine starts twenty slowly

COUNT = 20
KILLED = ("n03", "n07", "n11", "n15", "n19")
FROZEN = ("n02", "n09", "n16")

_MESH = load(profile="loopback", environment={}).mesh
SUSPICION_S = timeout_min_s(mult=_MESH.suspicion_mult, members=COUNT - 5, period_s=_MESH.probe_period_s)


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    with running(tmp_path_factory.mktemp("twenty"), COUNT) as mesh:
        yield mesh


@pytest.fixture
def mesh(twenty: Mesh) -> Mesh:
    twenty.make_whole()
    return twenty


def test_twenty_that_join_one_seed_all_know_each_other(mesh):
    assert {mesh.status(name).members["alive"] for name in mesh.names} == {COUNT}


def test_five_killed_at_once_are_declared_dead_by_all_others_and_nobody_else_is(mesh):
    survivors = [name for name in mesh.names if name not in KILLED]
    before = mesh.verdicts()
    ids = mesh.ids(KILLED)
    mesh.kill(KILLED)
    mesh.wait_gone(ids, "dead", survivors)
    mesh.wait_agreed(survivors, "the fifteen agree")
    assert mesh.wrong_deaths(before, expected=KILLED, suspicion_s=SUSPICION_S) == []

    mesh.start(KILLED)
    mesh.wait_agreed(mesh.names, "the five are back")
    assert mesh.wrong_deaths(before, expected=KILLED, suspicion_s=SUSPICION_S) == []


def test_three_frozen_beyond_their_suspicion_come_back_as_who_they_were(mesh):
    awake = [name for name in mesh.names if name not in FROZEN]
    before = mesh.verdicts()
    mesh.send(signal.SIGSTOP, FROZEN)
    try:
        mesh.wait_gone(mesh.ids(FROZEN), "dead", awake)
        mesh.wait_agreed(awake, "the seventeen agree")
    finally:
        mesh.send(signal.SIGCONT, FROZEN)
    mesh.wait_agreed(mesh.names, "the three are back")
    for name in mesh.names:
        assert {member.id for member in mesh.members(name) if member.state == "alive"} == mesh.ids(mesh.names)
    assert mesh.wrong_deaths(before, expected=FROZEN, suspicion_s=SUSPICION_S) == []


def test_one_killed_and_restarted_on_its_port_at_once_is_a_member_again(mesh):
    before = mesh.verdicts()
    mesh.kill(["n05"])
    mesh.start(["n05"])
    mesh.wait_agreed(mesh.names, "the new process is a member and the old one is forgotten or dead")
    assert mesh.wrong_deaths(before, expected=["n05"], suspicion_s=SUSPICION_S) == []


def test_one_that_leaves_has_left_and_is_never_called_dead(mesh):
    others = [name for name in mesh.names if name != "n08"]
    before, ids = mesh.verdicts(), mesh.ids(["n08"])
    leaver = mesh.daemons.pop("n08")
    assert p2pkv("leave", "--socket", str(leaver.socket)).returncode == 0
    leaver.process.wait(DEADLINE_S)
    leaver.stop()
    mesh.wait_gone(ids, "left", others)
    mesh.wait_agreed(others, "the nineteen agree")
    assert mesh.wrong_deaths(before, expected=[], suspicion_s=SUSPICION_S) == []


def test_the_only_seed_dies_and_comes_back_alone_and_is_found_again(mesh):
    seed, others = mesh.names[0], mesh.names[1:]
    before, ids = mesh.verdicts(), mesh.ids([seed])
    mesh.kill([seed])
    mesh.wait_gone(ids, "dead", others)
    mesh.wait_agreed(others, "the nineteen do not need it")
    mesh.start([seed])  # it joins nobody: the others have to try the dead again
    mesh.wait_agreed(mesh.names, "they are one mesh again")
    assert mesh.wrong_deaths(before, expected=[seed], suspicion_s=SUSPICION_S) == []


def test_logs_tell_changes_of_members_and_next_to_nothing_else(mesh):
    """After whatever the other tests did: what a day of churn writes is bounded by what changed."""
    for name in mesh.names:
        lines = list(log_lines(mesh.daemons[name].log))
        other = [line for line in lines if line["event"] != "member changed"]
        assert len(other) <= 20, other[-5:]
