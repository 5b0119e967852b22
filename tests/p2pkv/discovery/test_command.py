"""Real commands, those that hang and those that say too much among them."""

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
import trio

from p2pkv.discovery.base import Found, LookupFailed
from p2pkv.discovery.command import CommandResolver
from p2pkv.errors import ConfigError


def run(*command: str, timeout_s: float = 10.0) -> Found:
    return trio.run(CommandResolver(f"exec:{shlex.join(command)}", timeout_s=timeout_s).resolve)


def run_python(program: str, timeout_s: float = 10.0) -> Found:
    return run(sys.executable, "-c", program, timeout_s=timeout_s)


def failure(program: str, timeout_s: float = 10.0) -> str:
    with pytest.raises(LookupFailed) as caught:
        run_python(program, timeout_s)
    return str(caught.value)


def test_what_it_prints_are_seeds() -> None:
    assert run("printf", r"10.0.0.1:7710\n# mine\n10.0.0.2:7710\n").addresses == ("10.0.0.1:7710", "10.0.0.2:7710")


def test_there_is_no_shell() -> None:
    assert run("echo", "a:1", "#", "$(touch", "x);", "|", "&&").addresses == ("a:1",)


def test_standard_input_is_empty() -> None:
    assert run_python("import sys; print(f'a:{len(sys.stdin.read()) + 1}')").addresses == ("a:1",)


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(LookupFailed, match=r"cannot run it \(No such file or directory\)"):
        run("/nowhere/peers")


def test_one_that_fails_says_why_in_its_own_last_words() -> None:
    program = "import sys; print('a:1'); sys.stderr.write('long story\\nno credentials\\x1b[0m\\n'); sys.exit(3)"
    assert failure(program) == "it ended with 3 (no credentials?[0m)"
    assert failure("import sys; sys.exit(3)") == "it ended with 3"


def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = f"import subprocess, sys; print('a:1', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    assert failure(program, timeout_s=2.0) == "it did not end within 2 s"
    pid = int(note.read_text())
    for _ in range(500):  # killed, and collected by whoever adopted it
        if not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.01)
    os.kill(pid, 9)
    pytest.fail("its child lives on")


def test_one_that_never_stops_talking_is_not_listened_to_for_ever() -> None:
    assert failure("while True: print('a:1')") == "it printed more than 65536 bytes"
    assert failure("import sys\nwhile True: sys.stderr.write('no' * 999)", timeout_s=1.0) == "it did not end within 1 s"


def test_one_that_prints_garbage() -> None:
    reason = failure("import sys; sys.stdout.buffer.write(bytes(range(256)))")
    assert reason.startswith("line 1 is ")
    assert reason.isprintable()


def held() -> tuple[int, set[str]]:
    """How many descriptors this process has open, and its children."""
    children = " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children"))
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), set(children.split())


def test_no_descriptors_and_no_processes_are_left_behind() -> None:
    before = held()
    for _ in range(3):
        run("echo", "a:1")
        failure("while True: print('a:1')")
    assert held() == before


@pytest.mark.parametrize("entry", ["exec:", "exec:   ", "exec:echo 'open"])
def test_an_entry_without_a_command_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ConfigError):
        CommandResolver(entry)
