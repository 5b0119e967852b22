"""What NIXL does that nobody would expect: that it still does so, and that it does not with what `p2pkv.transport.nixl` does.

If the first half of one of these fails after an update, the library was mended, and the care taken can go.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import pytest

from p2pkv.transport.fabrics import Pair, choose_fabric
from p2pkv.transport.nixl import is_installed, reach

pytestmark = pytest.mark.skipif(not is_installed(), reason="NIXL is not installed: pip install p2pkv[nixl]")

ROOT = Path(__file__).parent.parent.parent
CHILD = [sys.executable, str(Path(__file__).with_name("nixl_child.py"))]
NO_INFINIBAND = {"UCX_MODULES": "^ib"}


class Child:
    """A process that speaks lines of JSON, and whatever its libraries print between them."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.printed = ""

    def hear(self) -> dict[str, str]:
        """Return the next line of JSON; empty if the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                told: dict[str, str] = json.loads(line)
                return told
            self.printed += line
        return {}

    def say(self, what: object = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


@contextmanager
def child(*arguments: str, before: tuple[str, ...] = (), **environment: str) -> Iterator[Child]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("UCX_", "NIXL_"))}
    with subprocess.Popen(
        [*before, *CHILD, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
    ) as process:
        try:
            yield Child(process)
        finally:
            process.kill()


def running_share(pid: int) -> float:
    """Return in what share of looks some thread of a process was running or wanted to."""
    looks = 60
    found = 0
    for _ in range(looks):
        states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        found += "R" in states
        sleep(0.005)
    return found / looks


def test_the_progress_thread_spins_unless_it_is_given_a_delay() -> None:
    with child("idle", **NO_INFINIBAND) as bare, child("idle", "ours") as ours:
        assert bare.hear() == ours.hear() == {"ready": True}
        assert running_share(bare.process.pid) > 0.9
        assert running_share(ours.process.pid) < 0.3


def loads_infiniband(pid: int) -> bool:
    return "libuct_ib" in Path(f"/proc/{pid}/maps").read_text()


def test_the_module_for_infiniband_is_left_alone_where_there_is_none() -> None:
    """It is what crashes at exit, see below, and there is no use for it."""
    with child("idle") as bare, child("idle", "ours") as ours:
        assert bare.hear() == ours.hear() == {"ready": True}
        assert loads_infiniband(bare.process.pid)
        assert not loads_infiniband(ours.process.pid)
        assert ours.end() == 0


def test_a_process_that_made_an_agent_crashes_when_it_ends() -> None:
    with child("leave") as bare:
        assert bare.hear() == {"ready": True}
        code = bare.end()
    if code == 0:
        pytest.skip("a process that made an agent ends well on this machine")
    assert code < 0


def test_names_go_in_as_text_and_come_out_as_bytes_and_as_text() -> None:
    """`NixlAgent` gives and takes text alone."""
    script = (
        "import sys; sys.path.insert(0, 'tests/transport'); import nixl_child as child, os\n"
        "os.environ.update(child.SETTINGS)\n"
        "library, one = child.bare('one'); _, two = child.bare('two/1')\n"
        "kinds = [type(one.loadRemoteMD(two.getLocalMD())).__name__]\n"
        "two.loadRemoteMD(one.getLocalMD()); two.genNotif('one', b'x', [])\n"
        "while not (told := one.getNotifs({}, [])): pass\n"
        "kinds += [type(name).__name__ for name in told]\n"
        "ours = child.ours('three'); kinds.append(type(ours.meet(two.getLocalMD(), node='two')).__name__)\n"
        "print(*kinds, flush=True); os._exit(0)"  # how it ends is what another test is about
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | NO_INFINIBAND,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == ["bytes", "str", "str"]


def test_a_read_of_what_its_owner_has_unmapped_ends_the_owner() -> None:
    with child("lend", **NO_INFINIBAND) as owner, child("take", "tcp", **NO_INFINIBAND) as taker:
        assert taker.hear() == {"ready": True}
        metadata = owner.hear()["metadata"]
        taker.say(metadata)
        assert taker.hear() == {"done": True}
        owner.say()
        assert owner.hear() == {"unmapped": True}
        taker.say(metadata)
        taker.hear()
        assert owner.process.wait(30) < 0


def test_an_owner_that_leaves_the_fabric_before_it_unmaps_lives() -> None:
    with child("lend", "ours") as owner, child("take", "cma,tcp", **NO_INFINIBAND) as taker:
        assert taker.hear() == {"ready": True}
        metadata = owner.hear()["metadata"]
        taker.say(metadata)
        assert taker.hear() == {"done": True}
        owner.say()
        assert owner.hear() == {"unmapped": True}
        taker.say(metadata)
        assert "error" in taker.hear()
        assert owner.process.poll() is None
        assert owner.end() == 0


def may_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "-p", "-f", "true"], check=False).returncode == 0


def test_between_process_namespaces_copying_becomes_sockets_without_a_word() -> None:
    """So each node says where its process can be reached, and that is compared."""
    if not may_unshare():
        pytest.skip("this user may not make a process namespace")
    fabrics = []
    for before in ((), ("unshare", "-p", "-f", "--mount-proc", "--kill-child")):
        with (
            child("lend", "ours", before=before) as owner,
            child("take", "cma,tcp", **NO_INFINIBAND, UCX_PROTO_INFO="y") as taker,
        ):
            assert taker.hear() == {"ready": True}
            told = owner.hear()
            taker.say(told["metadata"])
            assert taker.hear() == {"done": True}
            pair = Pair(("cma", "tcp"), ("cma", "tcp"), reach(), told["reach"], leaves_host=False, protection="aead")
            to_the_owner = taker.printed.partition("intra-node")[2]
            fabrics.append(("cma/memory" in to_the_owner, choose_fabric(pair)[0]))
    assert fabrics == [(True, "cma"), (False, "tcp")]
