"""Whatever a server answers, a reader has its verdict within its time, and nothing that it can use but what is right."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from p2pkv.tiers.object.pack import pack_object
from p2pkv.tiers.object.runs import cut_for, runs_of
from p2pkv.tiers.object.store import ObjectStore
from tests.objects import BUCKET, body_of, chain_of, environment_for, info_of, put, read, store_at

LENGTH = 64 * 1024
KEYS = chain_of(1, 8)
WHOLE = bytes(pack_object([info_of(key, LENGTH) for key in KEYS], [body_of(key, LENGTH) for key in KEYS]))
DATE = b"Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\n"
SHORT_S = 0.5

Answer = Callable[[socket.socket], object]


def said(data: bytes) -> Answer:
    return lambda connection: connection.sendall(data)


def ok(body: bytes, *, length: int | None = None, status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    said_length = len(body) if length is None else length
    return b"HTTP/1.1 %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (status, DATE, extra, said_length, body)


def trickle(connection: socket.socket) -> None:
    """Answer with a byte at a time, so that no timeout between bytes ends it."""
    connection.sendall(ok(b"", length=len(WHOLE)))
    connection.settimeout(0.05)
    for at in range(len(WHOLE)):
        connection.sendall(WHOLE[at : at + 1])
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            continue


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65_536):
        pass


class Server:
    """Answers every request alike, on one connection each."""

    def __init__(self) -> None:
        self.answer: Answer = say_nothing
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self.requests.append(connection.recv(65_536))
                self.answer(connection)
            except OSError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def store(server: Server) -> Iterator[ObjectStore]:
    with environment_for(f"http://127.0.0.1:{server.port}"):
        store = store_at(f"s3://{BUCKET}")
        yield store
    store.close()


def altered(at: int) -> bytes:
    data = bytearray(WHOLE)
    data[at] ^= 1
    return bytes(data)


ANSWERS: dict[str, tuple[Answer, str, int]] = {
    "the object": (said(ok(WHOLE)), "ok", 8),
    "one that is altered at its end": (said(ok(altered(-1))), "corrupt", 7),
    "one that is altered at its beginning": (said(ok(altered(0))), "garbled", 0),
    "zeros": (said(ok(bytes(len(WHOLE)))), "garbled", 0),
    "nothing, well formed": (said(ok(b"")), "torn", 0),
    "a length that nobody has memory for": (said(ok(WHOLE, length=2**62)), "torn", 0),
    "a length that is not kept": (said(ok(WHOLE[:-9], length=len(WHOLE))), "failed", 0),
    "a byte at a time": (trickle, "late", 0),
    "silence": (say_nothing, "late", 0),
    "an end": (said(b""), "failed", 0),
    "another protocol": (said(b"SSH-2.0-OpenSSH_9.2\r\n"), "failed", 0),
    "a header without end": (said(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**20), "failed", 0),
    "no length": (said(b"HTTP/1.1 200 OK\r\n" + DATE + b"\r\n" + WHOLE), "failed", 0),
    "no date": (said(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), "torn", 0),
    "that it cannot": (said(ok(b"", status=b"503 Slow Down")), "failed", 0),
    "that it is somewhere else": (said(ok(b"", status=b"418 I'm a teapot")), "failed", 0),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_reader_has_a_verdict_and_nothing_wrong(store: ObjectStore, server: Server, what: str) -> None:
    server.answer, verdict, good = ANSWERS[what]
    found, came = read(store, KEYS, LENGTH, timeout_s=SHORT_S if verdict == "late" else 30.0)
    assert (len(found), came) == (good, verdict)


@pytest.mark.parametrize("what", ANSWERS)
def test_a_reader_of_the_end_has_a_verdict_and_nothing_wrong(store: ObjectStore, server: Server, what: str) -> None:
    """It asks for two ranges, and gets the same to each, whole."""
    server.answer, verdict, _ = ANSWERS[what]
    found, came = read(store, KEYS, LENGTH, at=7, timeout_s=SHORT_S if verdict == "late" else 30.0)
    assert found == []
    assert came in {"failed", "late", "torn", "garbled"}


@pytest.mark.parametrize(
    "content_range", [b"bytes 0-9/10", b"bytes 99999999-999999999/9999999999", b"bytes 9-3/5", b"rubbish", b""]
)
def test_a_range_that_was_not_asked_for_is_none(store: ObjectStore, server: Server, content_range: bytes) -> None:
    extra = b"Content-Range: %b\r\n" % content_range if content_range else b""
    server.answer = said(ok(WHOLE[:10], status=b"206 Partial Content", extra=extra))
    found, came = read(store, KEYS, LENGTH, at=7)
    assert found == []
    assert came in {"failed", "torn"}


def test_credentials_do_not_follow_to_elsewhere(store: ObjectStore, server: Server) -> None:
    """The library goes where it is sent; what it gets there is looked at like anything else."""
    other = Server()
    other.answer = said(ok(altered(-1)))
    target = b"Location: http://localhost:%d/x\r\n" % other.port
    server.answer = said(ok(b"", status=b"307 Temporary Redirect", extra=target))
    found, verdict = read(store, KEYS, LENGTH)
    other.close()
    assert (len(found), verdict) == (7, "corrupt")
    assert b"an-id" in server.requests[0]
    assert len(other.requests) == 1
    assert b"an-id" not in other.requests[0]
    assert b"authorization" not in other.requests[0].lower()


@pytest.mark.parametrize("what", ANSWERS)
def test_a_writer_has_a_verdict(store: ObjectStore, server: Server, what: str) -> None:
    server.answer = ANSWERS[what][0]
    (run,) = runs_of(KEYS, cut_for(LENGTH))
    verdict = put(store, run, LENGTH, timeout_s=SHORT_S if what == "silence" else 30.0)
    assert verdict in {"stored", "there", "late", "failed"}
