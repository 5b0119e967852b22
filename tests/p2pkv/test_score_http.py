"""`POST /score`: an answer for routers, and one line with a hint for whatever else comes."""

import http.client
import json
import socket
from collections.abc import Callable

import pytest
import trio

from p2pkv.errors import CannotListen
from p2pkv.local_wire import ScoreReply, SeatView
from p2pkv.planner import Cost
from p2pkv.score_http import BODY_BYTES_MAX, ScoreListener

KEY = "ab" * 32


def post(address: str, body: bytes, *, path: str = "/score", headers: dict[str, str] | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("POST", path, body, headers or {})
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    return answer.status, document


def served(call: Callable[[str], None]) -> list[tuple[int, Cost | None, int]]:
    """Run `call` with the address of a listener, and return what that asked."""
    asked: list[tuple[int, Cost | None, int]] = []

    def score(keys, cost, limit):
        asked.append((len(keys), cost, limit))
        return ScoreReply(len(keys), (SeatView("a", "node a", 1, "host", 1, 0, 2.5, 7),))

    async def main() -> None:
        listener = ScoreListener("127.0.0.1:0")
        listener.serve(score, trio.lowlevel.current_trio_token())
        await trio.to_thread.run_sync(call, listener.address)

    trio.run(main)
    return asked


def test_a_router_is_told_where() -> None:
    def call(address: str) -> None:
        question = {"keys": [KEY, KEY], "block_bytes": 4096, "prefill_block_ms": 2.5, "limit": 3}
        status, document = post(address, json.dumps(question).encode())
        assert status == 200
        assert document["blocks"] == 2
        assert document["seats"][0] == {
            "id": "a",
            "name": "node a",
            "blocks": 1,
            "tier": "host",
            "fetch_blocks": 1,
            "compute_blocks": 0,
            "first_token_ms": 2.5,
            "load": 7,
        }
        assert post(address, json.dumps({"keys": [KEY]}).encode())[0] == 200

    assert served(call) == [(2, Cost(4096, 0.0025), 3), (1, None, 16)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "truncated"),
        (b"{}", "keys"),
        (b'{"keys": []}', "keys"),
        (b'{"keys": ["AB"]}', "keys"),
        (json.dumps({"keys": [KEY], "limit": 0}).encode(), "limit"),
        (json.dumps({"keys": [KEY], "limit": 257}).encode(), "limit"),
        (json.dumps({"keys": [KEY], "prefill_block_ms": "x"}).encode(), "prefill_block_ms"),
        (json.dumps({"keys": [KEY], "other": 1}).encode(), "other"),
        (b"\xff\xfe", ""),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_hint(body: bytes, said: str) -> None:
    def call(address: str) -> None:
        status, document = post(address, body)
        assert status == 400
        assert said in document["error"]
        assert "keys" in document["hint"]

    assert served(call) == []


def test_other_paths_lengths_and_methods_are_refused() -> None:
    def call(address: str) -> None:
        assert post(address, b"{}", path="/scores")[0] == 404
        assert post(address, b"", headers={"Content-Length": str(BODY_BYTES_MAX + 1)})[0] == 413
        assert post(address, b"", headers={"Content-Length": "x"})[0] == 411
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/score")
        assert connection.getresponse().status == 405
        connection.close()

    assert served(call) == []


def test_a_node_that_has_left_says_so() -> None:
    addresses: list[str] = []
    served(addresses.append)
    status, document = post(addresses[0], json.dumps({"keys": [KEY]}).encode())
    assert (status, document["error"]) == (503, "the node is leaving")


def test_a_taken_address_is_an_error_with_a_hint() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotListen, match="for scores") as caught:
            ScoreListener(f"127.0.0.1:{taken.getsockname()[1]}")
        assert "node.scores" in caught.value.hint
