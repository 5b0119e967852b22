"""Real daemons with keyrings: who has no key stays outside, recordings and forgeries do nothing, and keys change live."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.daemons import Daemon, alive, mesh, p2pkv, wait_until
from tests.e2e.relay import Relay


def keyring(folder: Path, name: str = "keyring") -> Path:
    """Make a keyring as a person does."""
    path = folder / name
    done = p2pkv("keys", "generate", "--write", str(path))
    assert done.returncode == 0, done.stderr
    return path


def copies(path: Path, *names: str) -> list[Path]:
    """Give each node a keyring file of its own, as on machines of their own."""
    return [Path(shutil.copy(path, path.with_name(f"{path.name}-{name}"))) for name in names]


PATIENT = ("--set", "mesh.probe_period_s=0.6", "--set", "mesh.probe_timeout_s=0.5")
"""For tests in which nobody may ever be doubted, on a machine that may be doing something else."""


def refused(client, channel: str, reason: str) -> float:
    return client.status().counters.get(f"p2pkv_seal_refused_total{{channel={channel},reason={reason}}}", 0)


def keys(command: str, *arguments: str, at: Daemon, **options) -> dict:
    done = p2pkv("keys", command, *arguments, "--socket", str(at.socket), "-o", "json", **options)
    return {"code": done.returncode, "stderr": done.stderr.decode(), **json.loads(done.stdout)}


def test_nodes_with_one_key_share_blocks_and_say_that_they_are_encrypted(tmp_path, chain):
    ring = keyring(tmp_path)
    with mesh(tmp_path, "a", "b", arguments=("--keyring", str(ring))) as (a, b), a.client() as at_a, b.client() as at_b:
        chain.publish(at_a)
        wait_until(lambda: at_b.match(chain.keys).reachable_blocks == 6, "b sees what a holds")
        with at_b.acquire(chain.keys) as lease:
            assert chain.arrived(lease) == 6
        status = at_b.status()
        assert status.protection.startswith("AES-256-GCM, primary key ")
        assert status.protected_by["control"] == status.protected_by["blocks over TCP"] == status.protection
        assert "keyring" in status.protected_by["shared memory"]
        assert not [name for name in status.counters if name.startswith("p2pkv_seal_refused")]


@pytest.mark.parametrize("stranger_has", ["another key", "no key"])
def test_who_does_not_have_the_key_cannot_join_and_both_say_why(tmp_path, stranger_has):
    ring, other = keyring(tmp_path), keyring(tmp_path, "other")
    with mesh(tmp_path, "a", "b", arguments=("--keyring", str(ring))) as (a, b):
        arguments = ("--keyring", str(other)) if stranger_has == "another key" else ()
        stranger = Daemon(tmp_path, "stranger", "--join", a.address, "--join", b.address, *arguments)
        reason = "unknown_key" if arguments else "plaintext"
        try:
            with a.client() as at_a, stranger.client() as at_stranger:
                wait_until(lambda: refused(at_a, "stream", reason) >= 2, "a has refused it more than once")
                assert alive(at_a) == {"a", "b"}
                assert alive(at_stranger) == {"stranger"}
                assert set(at_stranger.status().seeds.values()) == {"unreachable"}
            said = "your primary key is not in the keyring here" if arguments else "this mesh is encrypted"
            assert said in stranger.log.read_text()
            assert "stream refused" in a.log.read_text()
            assert "security.keyring" in a.log.read_text() or "keys list" in a.log.read_text()
        finally:
            stranger.stop()


def test_a_node_with_a_key_does_not_join_a_mesh_without_one(tmp_path):
    with mesh(tmp_path, "a") as (a,):
        stranger = Daemon(tmp_path, "stranger", "--join", a.address, "--keyring", str(keyring(tmp_path)))
        try:
            with a.client() as at_a, stranger.client() as at_stranger:
                wait_until(lambda: refused(at_a, "stream", "sealed") >= 1, "a has refused it")
                assert (alive(at_a), alive(at_stranger)) == ({"a"}, {"stranger"})
            assert "this node has no keyring" in stranger.log.read_text()
            assert "give this node the mesh's keyring" in a.log.read_text()
        finally:
            stranger.stop()


def test_recorded_and_altered_datagrams_have_no_effect(tmp_path):
    """Not even those that would keep a dead member alive: its own last answers, played again and again."""
    ring = keyring(tmp_path)
    with Relay() as relay, Daemon_(tmp_path, "a", "--keyring", str(ring), "--advertise", relay.address) as a:
        relay.to(f"127.0.0.1:{a.port}")
        with Daemon_(tmp_path, "b", "--keyring", str(ring), "--join", relay.address) as b, a.client() as at_a:
            wait_until(lambda: alive(at_a) == {"a", "b"} and len(relay.datagrams) >= 8, "they meet and talk")
            recorded = list(relay.datagrams)
            before = refused(at_a, "datagram", "replay")
            for data in recorded:
                relay.replay(data)
            wait_until(
                lambda: refused(at_a, "datagram", "replay") >= before + len(recorded), "each of them was refused"
            )
            forged = refused(at_a, "datagram", "forged")
            sealed = bytearray(recorded[-1])
            sealed[-1] ^= 1
            sealed[36:42] = (2**40).to_bytes(6, "big")  # not a replay by its number, so that the tag has to tell
            relay.replay(bytes(sealed))
            wait_until(lambda: refused(at_a, "datagram", "forged") == forged + 1, "the flipped bit was refused")
            assert refused(at_a, "datagram", "plaintext") == 0
            relay.replay(b"\x96\x05\xa1c\xa1n\xa91.2.3.4:5\x93\x01\x06\xa1t\x90")
            wait_until(lambda: refused(at_a, "datagram", "plaintext") == 1, "a packet in the clear was refused")

            b.kill()
            limit = time.monotonic() + 40
            while "dead" not in {member.state for member in at_a.members()}:
                assert time.monotonic() < limit
                for data in relay.datagrams[-200:]:
                    relay.replay(data)
                time.sleep(0.05)
            assert len(at_a.members()) == 2


def test_datagrams_altered_on_the_way_are_lost_and_nobody_dies_of_it(tmp_path):
    """A flipped bit in every second one: what is left, and the stream, are enough."""
    ring = keyring(tmp_path)
    with Relay() as relay, Daemon_(tmp_path, "a", "--keyring", str(ring), "--advertise", relay.address) as a:
        relay.to(f"127.0.0.1:{a.port}")

        def alter(data: bytes) -> bytes:
            spoiled = bytearray(data)
            spoiled[len(data) // 2] ^= len(relay.datagrams) % 2
            return bytes(spoiled)

        relay.alter = alter
        with (
            Daemon_(tmp_path, "b", "--keyring", str(ring), "--join", relay.address) as b,
            a.client() as at_a,
            b.client() as at_b,
        ):
            wait_until(lambda: alive(at_a) == alive(at_b) == {"a", "b"}, "they meet")
            wait_until(lambda: sum(refused(at_a, "datagram", r) for r in ("forged", "old_boot")) >= 5, "some are lost")
            assert alive(at_a) == alive(at_b) == {"a", "b"}
            assert "dead" not in a.log.read_text() + b.log.read_text()


class Daemon_(Daemon):  # noqa: N801 - the same thing as a context
    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def port(self) -> int:
        """Where it really listens, which is not what it advertises."""
        inodes = set()
        for descriptor in Path(f"/proc/{self.process.pid}/fd").iterdir():
            target = str(descriptor.readlink()) if descriptor.is_symlink() else ""
            inodes.add(target.removeprefix("socket:[").removesuffix("]"))
        rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
        (port,) = {int(row[1].rpartition(":")[2], 16) for row in rows if row[9] in inodes}
        return port


class Watch:
    """Looks at all nodes all the time: nobody may be missing, and gossip must flow."""

    def __init__(self, daemons: tuple[Daemon, ...]) -> None:
        self.looked = 0
        self.missing: list[str] = []
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
        names = {daemon.name for daemon in self._daemons}
        clients = [daemon.client(staging_bytes=0) for daemon in self._daemons]
        while not self._stop.wait(0.05):
            for daemon, client in zip(self._daemons, clients, strict=True):
                self.missing += [f"{daemon.name} misses {name}" for name in names - alive(client)]
            self.looked += 1
        for client in clients:
            client.close()


def received(client) -> float:
    return client.status().counters["p2pkv_gossip_datagrams_total{direction=received}"]


def test_keys_are_rotated_while_everything_runs(tmp_path, chain):
    files = copies(keyring(tmp_path), "a", "b", "c")
    daemons: list[Daemon] = []
    try:
        for name, file in zip("abc", files, strict=True):
            join = ("--join", daemons[0].address) if daemons else ()
            daemons.append(Daemon(tmp_path, name, "--keyring", str(file), *PATIENT, *join))
        a, b, c = daemons
        with a.client() as at_a, c.client() as at_c:
            wait_until(lambda: alive(at_a) == alive(at_c) == {"a", "b", "c"}, "they meet")
            with Watch((a, b, c)) as watch:
                old = keys("list", at=a)["keys"][0]["fingerprint"]
                new_key = p2pkv("keys", "generate").stdout
                done = keys("install", "-", at=a, input=new_key)
                (new,) = {key["fingerprint"] for key in done["keys"]} - {old}
                held = {key["fingerprint"]: (key["held_by"], key["primary_of"]) for key in done["keys"]}
                assert (done["obeyed"], done["nodes"], held) == (True, 3, {old: (3, 3), new: (3, 0)})
                count = received(at_a)
                wait_until(lambda: received(at_a) > count + 5, "gossip flows with two keys")

                done = keys("use", new[:6], at=b)
                held = {key["fingerprint"]: (key["held_by"], key["primary_of"]) for key in done["keys"]}
                assert held == {old: (3, 0), new: (3, 3)}
                count = received(at_a)
                wait_until(lambda: received(at_a) > count + 5, "gossip flows under the new key")
                chain.publish(at_a)
                wait_until(lambda: at_c.match(chain.keys).reachable_blocks == 6, "c hears what a holds")
                with at_c.acquire(chain.keys) as lease:
                    assert chain.arrived(lease) == 6

                done = keys("remove", old, at=c)
                held = {key["fingerprint"]: (key["held_by"], key["primary_of"]) for key in done["keys"]}
                assert held == {new: (3, 3)}
                count = received(at_a)
                wait_until(lambda: received(at_a) > count + 5, "gossip flows without the old key")
            assert watch.looked > 5
            assert watch.missing == []
            logs = "".join(daemon.log.read_text() for daemon in daemons)
            assert "dead" not in logs
            assert "suspect" not in logs
            for client in (at_a, at_c):
                assert not [name for name in client.status().counters if name.startswith("p2pkv_seal_refused")]
            text = new_key.decode().strip()
            assert text not in logs + repr(at_a.status())
        assert {file.read_text() for file in files} == {files[0].read_text()}
        assert text in files[0].read_text()
        assert files[0].stat().st_mode & 0o777 == 0o600
        b.stop()
        again = daemons[1] = Daemon(tmp_path, "b", "--keyring", str(files[1]), "--join", a.address)
        with again.client() as client:
            wait_until(lambda: {"a", "b", "c"} <= alive(client), "a node that starts again has the new key")
    finally:
        for daemon in daemons:
            daemon.stop()


def test_a_member_that_cannot_follow_is_named_and_nobody_is_shut_out(tmp_path):
    files = copies(keyring(tmp_path), "a", "b")
    (tmp_path / "locked").mkdir()
    locked = Path(shutil.move(files[1], tmp_path / "locked" / "keyring"))
    with Daemon_(tmp_path, "a", "--keyring", str(files[0])) as a:
        arguments = ("--keyring", str(locked), "--join", a.address)
        with Daemon_(tmp_path, "b", *arguments) as b, a.client() as at_a:
            wait_until(lambda: alive(at_a) == {"a", "b"}, "they meet")
            locked.unlink()
            locked.parent.rmdir()
            locked.parent.write_text("not a folder any more")  # root could write past permissions
            old = keys("list", at=a)["keys"][0]["fingerprint"]
            new_key = p2pkv("keys", "generate").stdout
            done = keys("install", "-", at=a, input=new_key)
            assert (done["code"], done["obeyed"]) == (1, False)
            assert "b: cannot write the keyring" in done["reason"]
            assert "hint: " in done["stderr"]
            (new,) = {key["fingerprint"] for key in done["keys"]} - {old}
            done = keys("use", new, at=a)
            assert done["reason"] == "b would be shut out: the key is not installed there; nothing was changed"
            done = p2pkv("keys", "remove", old, "--socket", str(a.socket))
            assert done.returncode == 2
            assert b"is the primary key here" in done.stderr
            assert alive(at_a) == {"a", "b"}
            table = p2pkv("keys", "list", "--socket", str(b.socket)).stdout.decode()
            assert "1 of 2" in table
            assert "nodes that differ from this one" in table


def test_with_a_keyring_other_machines_may_reach_the_node(tmp_path):
    with Daemon_(tmp_path, "a", "--keyring", str(keyring(tmp_path)), bind="0.0.0.0:0") as a, a.client() as client:
        assert client.status().protection.startswith("AES-256-GCM")


def test_a_keyring_that_others_can_read_is_refused(tmp_path):
    ring = keyring(tmp_path)
    ring.chmod(0o644)
    done = p2pkv("serve", "--bind", "127.0.0.1:0", "--socket", str(tmp_path / "a.sock"), "--keyring", str(ring))
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        f"error: others may open the keyring (mode 0644): {ring}",
        f"hint: chmod 600 {ring}",
    ]


def test_a_node_without_a_keyring_has_no_keys_to_change(tmp_path):
    with mesh(tmp_path, "a") as (a,):
        done = p2pkv("keys", "list", "--socket", str(a.socket))
        assert done.returncode == 2
        assert b"this node has no keyring" in done.stderr
