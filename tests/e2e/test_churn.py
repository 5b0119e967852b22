"""Twenty real daemons for a minute or more: what they send when nothing happens, and what they say when much does."""

import signal
import subprocess
import time
from contextlib import ExitStack
from random import Random

import pytest

from tests.daemons import p2pkv
from tests.meshes import Place, log_lines, running
from tests.namespaces import NoNamespacesError, network

COUNT = 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

REST_S = 60.0
DATAGRAMS_MAX, BYTES_MAX = 2.2, 1000.0
"""Per node and second: what a mesh of up to 128 may send at LAN defaults, everything included."""

STILL_S = 12.0
"""Longer than any suspicion of the profile lasts, were it counted."""
SUSPICION_S = 1.9

CHURN_ROUNDS = 12
LINES_PER_CHANGE = 5
"""suspect, alive again, suspect, dead; and alive when it is back."""
LINES_BESIDES = 20
DESCRIPTORS_MAX = 4 * COUNT + 40
"""Twice a stream each way for every member, and what a daemon has anyway."""


def datagrams_sent(mesh):
    return sum(mesh.status(name).counters["p2pkv_gossip_datagrams_total{direction=sent}"] for name in mesh.names)


def loopback_bytes(host):
    """Bytes that left the loopback interface of `host`: UDP and TCP, with all headers."""
    done = subprocess.run([*host.prefix, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[8])


def test_at_rest_each_sends_two_datagrams_a_second_and_less_than_a_kilobyte(tmp_path):
    with ExitStack() as stack:
        try:
            (host,) = stack.enter_context(network(1))
        except NoNamespacesError as exc:
            pytest.skip(f"no network namespaces here: {exc}")
        places = [Place(prefix=host.prefix)] * COUNT
        mesh = stack.enter_context(running(tmp_path, COUNT, "--profile", "lan", places=places))
        mesh.wait_agreed(mesh.names, "all are there")
        time.sleep(5.0)  # what was new has been told by then
        before = datagrams_sent(mesh), loopback_bytes(host), time.monotonic()
        time.sleep(REST_S)
        share = (time.monotonic() - before[2]) * COUNT
        sent = (datagrams_sent(mesh) - before[0]) / share
        bytes_sent = (loopback_bytes(host) - before[1]) / share
    print(f"per node and second: {sent:.2f} datagrams, {bytes_sent:.0f} bytes on the wire")  # noqa: T201 - a figure, for pytest -rP
    assert sent <= DATAGRAMS_MAX
    assert bytes_sent <= BYTES_MAX


def test_a_machine_that_stands_still_for_a_while_kills_nobody(tmp_path):
    with running(tmp_path, COUNT) as mesh:
        mesh.wait_agreed(mesh.names, "all are there")
        before = mesh.verdicts()
        mesh.send(signal.SIGSTOP, mesh.names)
        time.sleep(STILL_S)
        mesh.send(signal.SIGCONT, mesh.names)
        time.sleep(STILL_S)
        mesh.wait_agreed(mesh.names, "all are there again")
        assert mesh.wrong_deaths(before, expected=[], suspicion_s=SUSPICION_S) == []
        print(f"{len(mesh.verdicts()) - len(before)} changes of belief")  # noqa: T201 - a figure, for pytest -rP


def test_a_minute_of_churn_is_told_in_a_few_lines_and_shown_rightly_all_along(tmp_path):
    random, changes = Random(1), 0
    with running(tmp_path, COUNT) as mesh:
        mesh.wait_agreed(mesh.names, "all are there")
        began = time.monotonic()
        for _ in range(CHURN_ROUNDS):
            victims = random.sample(mesh.names[1:], 2)
            ids, others = mesh.ids(victims), [name for name in mesh.names if name not in victims]
            mesh.kill(victims)
            mesh.wait_gone(ids, "dead", others)
            shown = p2pkv("members", "--socket", str(mesh.daemons[others[0]].socket))
            assert shown.stdout.decode().count(" alive ") == COUNT - 2
            mesh.start(victims)
            mesh.wait_agreed(mesh.names, "the two are back")
            assert mesh.status(others[0]).members["alive"] == COUNT
            changes += len(victims)
        passed_s = time.monotonic() - began
        descriptors = max(mesh.descriptors(name) for name in mesh.names)
        lines = [list(log_lines(mesh.daemons[name].log)) for name in mesh.names]
    besides = [sum(line["event"] != "member changed" for line in own) for own in lines]
    most = max(map(len, lines))
    print(f"{changes} restarts in {passed_s:.0f} s: at most {most} lines per daemon, {max(besides)} not of members")  # noqa: T201 - a figure, for pytest -rP
    assert descriptors <= DESCRIPTORS_MAX
    assert most <= COUNT + LINES_PER_CHANGE * changes + LINES_BESIDES
    assert max(besides) <= LINES_BESIDES
