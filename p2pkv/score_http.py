"""`POST /score` for routers: where a prompt would best be computed, as JSON over HTTP.

    POST /score  {"keys": ["<64 hex digits>", ...], "block_bytes": 0, "prefill_block_ms": 0, "limit": 16}
    200          {"blocks": 3, "seats": [{"id": ..., "name": ..., "blocks": 2, "first_token_ms": ...}, ...]}
    4xx          {"error": "...", "hint": "..."}

A thread of its own serves it, and asks the node through its event loop; who asks much slows only that down. It says who holds what, to
whoever reaches it, and nothing of what blocks contain.
"""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta

from p2pkv.blocks import BlockKey
from p2pkv.config import parse_address
from p2pkv.errors import CannotListen
from p2pkv.local_wire import KEYS_PER_CHAIN_MAX, SEATS_MAX, ScoreReply
from p2pkv.planner import Cost

BODY_BYTES_MAX: Final = 8 * 2**20
"""Longer than any chain in hexadecimal."""
_SILENCE_S: Final = 10.0
_CALLERS_MAX: Final = 32
"""At once; a further one is told to come again."""
_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

Score = Callable[[tuple[BlockKey, ...], Cost | None, int], ScoreReply]


class ScoreQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request."""

    keys: Annotated[tuple[_Hex, ...], Meta(min_length=1, max_length=KEYS_PER_CHAIN_MAX)]
    block_bytes: Annotated[int, Meta(ge=0, lt=2**40)] = 0
    prefill_block_ms: Annotated[float, Meta(ge=0, lt=1e9)] = 0.0
    limit: Annotated[int, Meta(ge=1, le=SEATS_MAX)] = 16


class ScoreListener:
    """Listens from its making on; answers once it serves."""

    def __init__(self, address: str) -> None:
        """Listen at `address`, `host:port`.

        Raises:
            CannotListen: somebody else does.
        """
        try:
            self._server = _Server(parse_address(address, what="node.scores"), _Handler)
        except OSError as exc:
            raise CannotListen(
                f"cannot listen on {address} for scores ({exc.strerror})", hint="see node.scores"
            ) from exc

    @property
    def address(self) -> str:
        """Where it listens."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def serve(self, score: Score, token: trio.lowlevel.TrioToken) -> None:
        """Answer, in a thread that ends with the process; `score` is called on the event loop of `token`."""
        self._server.score, self._server.token = score, token
        threading.Thread(target=self._server.serve_forever, name="scores", daemon=True).start()

    def close(self) -> None:
        """Listen no more; for one that does not serve."""
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    score: Score
    token: trio.lowlevel.TrioToken

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.places = threading.BoundedSemaphore(_CALLERS_MAX)

    def server_bind(self) -> None:
        """Bind, without asking a name server for our name as the library does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    """One caller."""

    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "p2pkv"
    sys_version = ""
    timeout = _SILENCE_S

    def do_POST(self) -> None:
        """Answer one question."""
        if self.path != "/score":
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing at {self.path[:80]}", "POST /score")
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "no Content-Length", "send the body whole, not in chunks")
            return
        if not 0 <= length <= BODY_BYTES_MAX:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes, limit {BODY_BYTES_MAX}", "")
            return
        place = self.server.places
        if not place.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{_CALLERS_MAX} callers already", "ask again")
            return
        try:
            question = msgspec.json.decode(self.rfile.read(length), type=ScoreQuestion)
            reply = self._score(question)
            self._answer(HTTPStatus.OK, msgspec.json.encode({"blocks": reply.blocks, "seats": reply.seats}))
        except msgspec.MsgspecError as exc:
            self._refuse(HTTPStatus.BAD_REQUEST, str(exc), 'such as {"keys": ["..."]}, 64 hexadecimal digits each')
        except trio.RunFinishedError:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the node is leaving", "ask another one")
        finally:
            place.release()

    def do_GET(self) -> None:
        """Say what there is."""
        self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "only POST", "POST /score")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's
        """Log nothing: a router asks for every request."""

    def _score(self, question: ScoreQuestion) -> ScoreReply:
        keys = tuple(BlockKey(bytes.fromhex(key)) for key in question.keys)
        cost = None
        if question.block_bytes and question.prefill_block_ms:
            cost = Cost(question.block_bytes, question.prefill_block_ms / 1000)
        ask = self.server.score
        return trio.from_thread.run_sync(ask, keys, cost, question.limit, trio_token=self.server.token)

    def _refuse(self, status: HTTPStatus, error: str, hint: str) -> None:
        self.close_connection = True
        self._answer(status, msgspec.json.encode({"error": error, "hint": hint}))

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
