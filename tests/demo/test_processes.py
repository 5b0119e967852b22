import sys

import pytest

from p2pkv.demo.processes import Child, all_stopped
from p2pkv.errors import P2pkvError


def child(tmp_path, program):
    return Child("the child", [sys.executable, "-c", program], tmp_path / "child.log")


def test_output_is_read_up_to_the_end_asked_for_and_no_further(tmp_path):
    with all_stopped() as children:
        children.append(child(tmp_path, "print('one'); print('two', flush=True); input()"))
        assert children[0].read_until(b"\n", seconds=30) == b"one\n"
        assert children[0].read_until(b"\n", seconds=30) == b"two\n"


def test_a_child_that_ends_is_an_error_with_the_tail_of_its_log(tmp_path):
    with all_stopped() as children:
        children.append(child(tmp_path, "import sys; sys.exit('error: no such model')"))
        with pytest.raises(P2pkvError, match="the child ended") as caught:
            children[0].read_until(b"\n", seconds=30)
    assert str(tmp_path / "child.log") in caught.value.hint
    assert caught.value.hint.endswith("error: no such model")


def test_a_child_that_says_nothing_is_an_error_in_time(tmp_path):
    with all_stopped() as children:
        children.append(child(tmp_path, "import time; time.sleep(60)"))
        with pytest.raises(P2pkvError, match="said nothing for 0 s"):
            children[0].read_until(b"\n", seconds=0.1)


def test_a_child_that_says_too_much_is_an_error(tmp_path):
    with all_stopped() as children:
        children.append(child(tmp_path, "print('x' * 3_000_000)"))
        with pytest.raises(P2pkvError, match="said too much"):
            children[0].read_until(b"\n", seconds=30)


def test_every_child_ends_even_if_it_ignores_requests_to(tmp_path, monkeypatch):
    monkeypatch.setattr("p2pkv.demo.processes._STOP_S", 0.2)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    children = []

    def interrupted():
        with all_stopped() as started:
            children.extend([child(tmp_path, stubborn), child(tmp_path, "input()")])
            started.extend(children)
            children[0].read_until(b"\n", seconds=30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [one._process.returncode is None for one in children] == [False, False]
