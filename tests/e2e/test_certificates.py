"""Real daemons with certificates: who is refused and why, rotation under load, and what can be seen on the wire."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from p2pkv.authority import Authority, new_node_id
from p2pkv.certificate_files import read_credentials, write_node_folder
from p2pkv.transport.certificates import Certificate, described
from p2pkv.transport.framing import frame
from p2pkv.transport.shm import socket_name
from p2pkv.transport.wire import Hello, encode
from tests.daemons import Daemon, alive, p2pkv, wait_until
from tests.e2e.conftest import Chain
from tests.e2e.relay import Relay
from tests.e2e.test_security import Daemon_, keyring, refused


def authority(folder: Path) -> Authority:
    if (folder / "ca").exists():
        return Authority.read(folder / "ca")
    return Authority.create(folder / "ca", cluster="default", days=365, now=time.time())


def issue(folder: Path, name: str, *, node: str = "") -> Certificate:
    """Give a node a certificate, or another one; `p2pkv cert` does the same."""
    signer = authority(folder)
    chain, key, made = signer.issue(node or new_node_id(), days=90, now=time.time())
    write_node_folder(folder / f"cert-{name}", chain=chain, key=key, authorities=signer.bundle)
    return made


def options(folder: Path, *more: str, shared_memory: bool = False) -> tuple[str, ...]:
    memory = f"fetch.shared_memory={str(shared_memory).lower()}"
    return ("--keyring", str(folder / "keyring"), "--set", memory, *more)


@contextmanager
def certified(folder: Path, *names: str, shared_memory: bool = False) -> Iterator[tuple[Daemon, ...]]:
    """Run daemons of one mesh that have certificates of one authority and one keyring, set up as a person does."""
    keyring(folder)
    daemons: list[Daemon] = []
    try:
        for name in names:
            issue(folder, name)
            join = ("--join", daemons[0].address) if daemons else ()
            arguments = options(
                folder, "--certificates", str(folder / f"cert-{name}"), *join, shared_memory=shared_memory
            )
            daemons.append(Daemon(folder, name, *arguments))
        for daemon in daemons:
            with daemon.client(staging_bytes=0) as client:
                wait_until(lambda client=client: alive(client) >= set(names), f"{daemon.name} knows all members")
        yield tuple(daemons)
    finally:
        for daemon in daemons:
            daemon.stop()


@pytest.mark.parametrize("shared_memory", [False, True])
def test_nodes_with_certificates_share_blocks_and_say_what_protects_them(tmp_path, chain, shared_memory):
    with certified(tmp_path, "a", "b", shared_memory=shared_memory) as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        path = "shm" if shared_memory else "tcp"
        if shared_memory:
            wait_until(lambda: "memfd:" in maps(b), "b has mapped the arena of a")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        status = at_b.status()
        assert status.counters[f"p2pkv_transfer_bytes_total{{direction=received,transport={path}}}"] > 0
        shown = read_credentials(tmp_path / "cert-b").own
        assert (status.node, status.cluster) == (shown.node, "default")
        assert status.protected_by["control"].startswith(f"TLS 1.3, certificate {shown.fingerprint} until ")
        assert "inside TLS" in status.protected_by["blocks over TCP"]
        assert status.protection.startswith("AES-256-GCM, primary key ")
        assert not [name for name in status.counters if name.startswith("p2pkv_seal_refused")]
        text = p2pkv("status", "--socket", str(b.socket)).stdout.decode()
        assert "TLS 1.3" in text


def maps(daemon: Daemon) -> str:
    lines = Path(f"/proc/{daemon.process.pid}/maps").read_text().splitlines()
    return "\n".join(line for line in lines if line.split()[1] == "r--s")


@pytest.mark.parametrize("mode", ["keyring", "certificates"])
def test_a_process_of_the_same_user_does_not_get_the_memory_by_knowing_a_name(tmp_path, mode):
    """What the kernel says of the caller is not enough: it has to prove that it is of the mesh."""
    issue(tmp_path, "a")
    keyring(tmp_path)
    certificate = ("--certificates", str(tmp_path / "cert-a")) if mode == "certificates" else ()
    with Daemon_(tmp_path, "a", *options(tmp_path, *certificate, shared_memory=True)) as a, a.client() as at_a:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(10)
            caller.connect(socket_name("default", a.facts["node"]))
            caller.sendall(frame(encode(Hello("default", "b" * 16, "127.0.0.1:1", 1))))
            said, ancillary, _, _ = caller.recvmsg(4096, socket.CMSG_SPACE(64))
            assert ancillary == []
            assert (b"set security.certificates" if certificate else b"this mesh is encrypted") in said
            assert caller.recv(1) == b""
        reason = "no_tls" if certificate else "plaintext"
        wait_until(lambda: refused(at_a, "shared memory", reason) == 1, "it was counted")


def test_who_has_no_good_certificate_stays_outside_and_both_say_why(tmp_path):
    """With the mesh's keyring in hand, so that gossip lets it come that far."""
    with certified(tmp_path, "a") as (a,), a.client() as at_a:
        known = authority(tmp_path)
        foreign = Authority.create(tmp_path / "foreign", cluster="default", days=1, now=time.time())
        other = Authority.create(tmp_path / "other", cluster="other", days=1, now=time.time())
        trusting = foreign.bundle + known.bundle
        made = {
            "foreign": (foreign.issue("f" * 16, days=1, now=time.time()), trusting),
            "wrong": (other.issue("e" * 16, days=1, now=time.time()), other.bundle + known.bundle),
        }
        for name, ((chain, key, _), bundle) in made.items():
            write_node_folder(tmp_path / name, chain=chain, key=key, authorities=bundle)
        strangers = {
            "foreign": ("foreign_certificate", "unknown ca", ()),
            "wrong": ("foreign_certificate", "unknown ca", ("--cluster", "other")),
            "": ("no_tls", "set security.certificates", ()),
        }
        for name, (reason, told, more) in strangers.items():
            arguments = ("--certificates", str(tmp_path / name)) if name else ()
            stranger = Daemon(tmp_path, name or "none", *options(tmp_path, "--join", a.address, *arguments, *more))
            try:
                wait_until(lambda reason=reason: refused(at_a, "stream", reason) >= 1, f"a has refused {name}")
                wait_until(lambda s=stranger, told=told: told in s.log.read_text(), f"{name} knows why")
                assert alive(at_a) == {"a"}
            finally:
                stranger.stop()
            log = a.log.read_text()
            assert "stream refused" in log
        assert "compare the authorities" in log
        assert "give it a certificate" in log


def test_certificates_without_a_keyring_are_for_loopback(tmp_path):
    issue(tmp_path, "a")
    done = p2pkv(
        "serve", "--bind", "0.0.0.0:0", "--socket", str(tmp_path / "x.sock"), "--certificates", str(tmp_path / "cert-a")
    )
    assert done.returncode == 2
    assert b"set security.keyring (--keyring) too" in done.stderr
    with Daemon_(tmp_path, "a", "--certificates", str(tmp_path / "cert-a")) as a, a.client() as at_a:
        status = at_a.status()
        assert (status.protection, status.protected_by["gossip"]) == ("none, loopback only", "none, loopback only")
        assert status.protected_by["control"].startswith("TLS 1.3")


class Load:
    """Publishes a chain at one node after another and fetches each at the next: every block has to arrive."""

    def __init__(self, daemons: tuple[Daemon, ...]) -> None:
        self.rounds = 0
        self.failed: list[str] = []
        self._daemons = daemons
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        clients = [daemon.client() for daemon in self._daemons]
        try:
            while not self._stop.is_set():
                self.rounds += 1
                chain = Chain(100 + self.rounds)
                owner = clients[self.rounds % len(clients)]
                taker = clients[(self.rounds + 1) % len(clients)]
                chain.publish(owner)
                limit = time.monotonic() + 20
                while taker.match(chain.keys).reachable_blocks < len(chain.keys):
                    if time.monotonic() > limit:
                        self.failed.append(f"round {self.rounds}: not announced")
                        return
                    time.sleep(0.005)
                with taker.acquire(chain.keys) as lease:
                    arrived = chain.arrived(lease)
                if arrived < len(chain.keys):
                    self.failed.append(f"round {self.rounds}: {arrived} blocks")
        except Exception as exc:  # noqa: BLE001 - shown by the test
            self.failed.append(repr(exc))
        finally:
            for client in clients:
                client.close()

    def more(self, rounds: int = 4) -> None:
        target = self.rounds + rounds
        wait_until(lambda: self.rounds >= target or bool(self.failed), "more blocks are fetched", seconds=60)


def test_certificates_and_their_authority_are_changed_under_load_without_a_failed_fetch(tmp_path):
    with certified(tmp_path, "a", "b", "c") as daemons, Load(daemons) as load:
        load.more()

        def rotate_all() -> None:
            shown = {one.name: issue(tmp_path, one.name, node=one.facts["node"]).fingerprint for one in daemons}
            for daemon in daemons:
                wait_until(lambda one=daemon: shown[one.name] in control(one), f"{daemon.name} has taken it")
            load.more()

        rotate_all()
        old = authority(tmp_path).signing.fingerprint
        authority(tmp_path).install(days=365, now=time.time())
        rotate_all()
        authority(tmp_path).use()
        rotate_all()
        authority(tmp_path).remove()
        rotate_all()
        (now,) = authority(tmp_path).certificates
        assert described(now).fingerprint != old
        assert load.failed == []
        logs = "".join(daemon.log.read_text() for daemon in daemons)
        assert "dead" not in logs
        assert "transfer failed" not in logs
        for daemon in daemons:
            with daemon.client(staging_bytes=0) as client:
                assert alive(client) == {"a", "b", "c"}
                counters = client.status().counters
                assert counters["p2pkv_links_lost_total"] == 0
                assert counters["p2pkv_fetch_blocks_total{outcome=ok}"] >= 6
                assert not [name for name in counters if "outcome=gone" in name or "outcome=slow" in name]


def control(daemon: Daemon) -> str:
    with daemon.client(staging_bytes=0) as client:
        return client.status().protected_by["control"]


@pytest.mark.parametrize("mode", ["keyring", "certificates", "nothing"])
def test_what_goes_over_the_wire_shows_no_key_no_token_and_no_block(tmp_path, chain, mode):
    """Both directions of everything that two nodes say; without protection it is all there, so the look is not blind."""
    keyring(tmp_path)
    common = ("--set", "fetch.shared_memory=false")
    arguments: dict[str, tuple[str, ...]] = {}
    for name in "ab":
        arguments[name] = (*common, *(() if mode == "nothing" else ("--keyring", str(tmp_path / "keyring"))))
        if mode == "certificates":
            issue(tmp_path, name)
            arguments[name] += ("--certificates", str(tmp_path / f"cert-{name}"))
    with (
        Relay() as to_a,
        Relay() as to_b,
        Daemon_(tmp_path, "a", *arguments["a"], "--advertise", to_a.address) as a,
    ):
        to_a.to(f"127.0.0.1:{a.port}")
        with Daemon_(tmp_path, "b", *arguments["b"], "--advertise", to_b.address, "--join", to_a.address) as b:
            to_b.to(f"127.0.0.1:{b.port}")
            with a.client() as at_a, b.client() as at_b:
                wait_until(lambda: alive(at_a) == alive(at_b) == {"a", "b"}, "they meet")
                chain.publish(at_a)
                wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
                with at_b.acquire(chain.keys) as lease:
                    assert chain.arrived(lease) == 6
                wait_until(lambda: len(to_a.datagrams) > 3, "gossip flows")
            seen = b"".join((*to_a.datagrams, *to_b.datagrams, bytes(to_a.streamed), bytes(to_b.streamed)))
    assert len(seen) > sum(len(body) for body in chain.bodies)
    secrets = {
        "a block's key": chain.keys[3],
        "a block": chain.bodies[2][100:132],
        "the end of a block": chain.bodies[5][-32:],
        "a node's id": a.facts["node"].encode(),
        "a cluster": b"default",
    }
    found = {what for what, secret in secrets.items() if secret in seen}
    if mode == "nothing":
        assert found == set(secrets)
    else:
        assert found == set()
    # The first record of TLS, with more of it than ciphertext has by chance.
    assert bool(re.search(rb"\x16\x03\x01..\x01\x00..\x03\x03", seen, re.DOTALL)) == (mode == "certificates")


def test_a_clock_that_is_wrong_is_named_on_both_sides(tmp_path):
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text("import time; right = time.time; time.time = lambda: right() - 90.0\n")
    with certified(tmp_path, "a") as (a,), a.client() as at_a:
        issue(tmp_path, "b")
        arguments = options(tmp_path, "--certificates", str(tmp_path / "cert-b"), "--join", a.address)
        with Daemon_(tmp_path, "b", *arguments, prefix=("env", f"PYTHONPATH={late}")) as b:
            wait_until(lambda: refused(at_a, "stream", "clock") >= 1, "a refuses b")
            wait_until(lambda: "your clock differs too much (by -90 s, limit 60)" in b.log.read_text(), "b knows why")
            assert "its clock differs too much (by -90 s, limit 60)" in a.log.read_text()
            assert "NTP" in a.log.read_text()
            assert alive(at_a) == {"a"}
