"""What `p2pkv bench peers` starts: for each system an owner with the blocks and a taker that is asked to fetch them."""

import json
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import p2pkv
from p2pkv.demo.processes import Child
from p2pkv.errors import ConfigError, P2pkvError
from p2pkv.keyring_file import write_keyring
from p2pkv.transport.bulk_protection import TEXTS, BulkProtection
from p2pkv.transport.keyring import RING_KEY_BYTES, KeyRing

_ROOT: Final = Path(p2pkv.__file__).parents[1]
_ANSWER_S: Final = 120.0
_START_S: Final = 180.0
_POLL_S: Final = 0.2
_LOOPBACK: Final = "127.0.0.1"
_PORTS: Final = (10_000, 32_000)
"""Below the range of `ip_local_port_range` as Linux has it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Blocks of one size, taken so many at a time, so many in all."""

    block_bytes: int
    per_lease: int
    blocks: int
    ahead: int = 4
    """Leases that are prepared at a time, where they must be."""

    @property
    def arguments(self) -> list[str]:
        """As the programs take them."""
        return [str(self.block_bytes), str(self.per_lease), str(self.blocks)]

    @property
    def lease_bytes(self) -> int:
        """Bytes of one take."""
        return self.block_bytes * self.per_lease

    @property
    def total_bytes(self) -> int:
        """Bytes of all blocks."""
        return self.block_bytes * self.blocks


@dataclass(slots=True)
class Bench:
    """Where programs run, and all that were started."""

    folder: Path
    python: str
    """A Python with what `requirements/bench-peers.txt` names."""
    children: list[Child] = field(default_factory=list)

    def start(self, child: Child) -> Child:
        """Have it stopped in the end."""
        self.children.append(child)
        return child

    def tool(self, name: str) -> str:
        """Return where a program of the peers' environment, or of the system, is.

        Raises:
            ConfigError: it is not installed; the hint says what to install.
        """
        beside = Path(self.python).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is None:
            raise ConfigError(f"there is no {name}", hint="run `make bench-peers-env`, which names what it needs")
        return found


class Program(Child):
    """One measured program that answers JSON lines; see `peers_lines.py`."""

    def __init__(self, bench: Bench, name: str, module: str, *arguments: str, python: str = "") -> None:
        command = [python or bench.python, "-m", f"p2pkv.bench.{module}", *arguments]
        # From the tree, and not installed there: what is measured shares an interpreter with nothing of ours.
        super().__init__(name, command, bench.folder / f"{name}.log", {"PYTHONPATH": str(_ROOT)})
        bench.start(self)

    def ask(self, do: str, *, seconds: float = _ANSWER_S, **arguments: object) -> Any:
        """Return what the program's handler `do` returns.

        Raises:
            P2pkvError: it ended, was silent, or its handler failed.
        """
        self.write(json.dumps({"do": do} | arguments).encode())
        line = self.read_until(b"\n", seconds=seconds)
        try:
            answer = json.loads(line)
        except ValueError as exc:
            raise self.failed(f"said {line[:80]!r}") from exc
        if "error" in answer:
            raise P2pkvError(f"{self.name}: {answer['error']}")
        return answer["ok"]


class Daemon(Child):
    """`p2pkv serve` as a user gets it, but for what is said here."""

    def __init__(
        self, bench: Bench, name: str, *, host_bytes: int, join: str = "", settings: tuple[str, ...] = ()
    ) -> None:
        self.socket: Final = bench.folder / f"{name}.sock"
        self.metrics: Final = f"{_LOOPBACK}:{free_port()}"
        command = [sys.executable, "-m", "p2pkv", "serve", "-o", "json", "--name", name, "--bind", f"{_LOOPBACK}:0"]
        command += ["--socket", str(self.socket), "--host-bytes", str(host_bytes), "--state-dir", ""]
        command += ["--metrics", self.metrics, "--stop-with-stdin", *(["--join", join] if join else [])]
        command += [word for setting in settings for word in ("--set", setting)]
        super().__init__(name, command, bench.folder / f"{name}.log")
        bench.start(self)
        facts = json.loads(self.read_until(b"\n}\n", seconds=_START_S))
        if "address" not in facts:
            raise self.failed(f"said {facts}")
        self.address: Final[str] = facts["address"]

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid


@dataclass(frozen=True, slots=True)
class Contender:
    """One system, ready: `taker` answers `take`."""

    system: str
    transport: str
    protection: str
    digests: bool
    """Whether what was fetched is compared with digests."""
    taker: Program
    prepares: bool = False
    """Whether it must be told before which leases come: what it fetched once it may keep, so each is a new one."""


Make = Callable[[Bench, Shape], Contender]


def p2pkv_shm(bench: Bench, shape: Shape) -> Contender:
    """Two daemons of one machine, as they come."""
    return _p2pkv(bench, shape, "shm")


def p2pkv_tcp(bench: Bench, shape: Shape) -> Contender:
    """Two daemons that do not lend each other their memory."""
    return _p2pkv(bench, shape, "tcp")


def p2pkv_aead(bench: Bench, shape: Shape) -> Contender:
    """As `p2pkv_tcp`, with a keyring, so that everything is encrypted."""
    return _p2pkv(bench, shape, "tcp", "aead")


def _p2pkv(bench: Bench, shape: Shape, transport: str, protection: BulkProtection = "off") -> Contender:
    settings: tuple[str, ...] = ("fetch.shared_memory=false",) if transport == "tcp" else ()
    suffix = f"{transport if protection == 'off' else protection}-{shape.block_bytes}-{shape.per_lease}"  # a socket's path is short
    if protection != "off":
        keyring = bench.folder / f"{suffix}.keys"
        write_keyring(keyring, KeyRing((secrets.token_bytes(RING_KEY_BYTES),)))
        settings += (f"security.keyring={keyring}", f"security.bulk_protection={protection}")
    room = max(
        shape.total_bytes, (3 * shape.ahead + 1) * shape.lease_bytes
    )  # those of two rounds, and what is on its way out
    owner = Daemon(bench, f"owner-{suffix}", host_bytes=room, settings=settings)
    half = max(shape.total_bytes // 2, 2 * shape.lease_bytes)
    taker = Daemon(bench, f"taker-{suffix}", host_bytes=half, join=owner.address, settings=settings)
    sockets = (str(owner.socket), str(taker.socket), taker.metrics)
    program = Program(bench, f"p2pkv-{suffix}", "peers_p2pkv", *sockets, *shape.arguments, python=sys.executable)
    _until_ready(program)
    program.ask("prepare", first=0, count=1)
    program.ask("take", lease=0)
    seen = program.ask("transports")
    if not any(transport in name for name in seen):
        raise P2pkvError(f"blocks came by another way than {transport}: {seen}")
    said = program.ask("protection")["blocks over TCP"]
    if protection != "off" and not said.startswith(TEXTS[protection]):
        raise P2pkvError(f"blocks were to be protected by {TEXTS[protection]!r}, and are by {said!r}")
    return Contender("p2pkv", transport, protection, digests=True, taker=program, prepares=True)


def mooncake(bench: Bench, shape: Shape) -> Contender:
    """Mooncake Store over TCP, its master beside it."""
    port = free_port()
    command = [bench.tool("mooncake_master"), "-rpc_address=127.0.0.1", f"-rpc_port={port}"]
    command += ["-default_kv_lease_ttl=5000", f"-metrics_port={free_port()}"]
    name = f"mooncake-{shape.block_bytes}-{shape.per_lease}"
    bench.start(Child(f"{name}-master", command, bench.folder / f"{name}-master.log"))
    _until_listens(port)
    return _pair(bench, shape, "Mooncake Store", "tcp", "peers_mooncake", f"{_LOOPBACK}:{port}", name)


def redis(bench: Bench, shape: Shape) -> Contender:
    """A Redis server that keeps all in memory, on loopback."""
    port = free_port()
    command = [bench.tool("redis-server"), "--port", str(port), "--bind", _LOOPBACK, "--save", "", "--appendonly", "no"]
    name = f"redis-{shape.block_bytes}-{shape.per_lease}"
    bench.start(Child(f"{name}-server", command, bench.folder / f"{name}-server.log"))
    _until_listens(port)
    return _pair(bench, shape, "Redis", "tcp", "peers_redis", str(port), name)


def lmcache(bench: Bench, shape: Shape) -> Contender:
    """LMCache's own server, for `remote_url: lm://`."""
    port = free_port()
    command = [bench.python, "-m", "lmcache.v1.server", _LOOPBACK, str(port), "cpu"]
    name = f"lmcache-{shape.block_bytes}-{shape.per_lease}"
    bench.start(Child(f"{name}-server", command, bench.folder / f"{name}-server.log"))
    _until_listens(port)
    return _pair(bench, shape, "LMCache server", "tcp", "peers_lmcache", str(port), name)


def nixl(bench: Bench, shape: Shape) -> Contender:
    """The library alone, over what it chooses on one machine."""
    name = f"nixl-{shape.block_bytes}-{shape.per_lease}"
    folder = bench.folder / name
    folder.mkdir()
    return _pair(bench, shape, "NIXL bare", "same host", "peers_nixl", str(folder), name)


def _pair(bench: Bench, shape: Shape, system: str, transport: str, module: str, where: str, name: str) -> Contender:
    _until_ready(Program(bench, f"{name}-owner", module, "owner", where, *shape.arguments))
    taker = Program(bench, f"{name}-taker", module, "taker", where, *shape.arguments)
    _until_ready(taker)
    taker.ask("take", lease=0)
    return Contender(system, transport, "off", digests=False, taker=taker)


def _until_ready(program: Program) -> None:
    limit = time.monotonic() + _START_S
    while not program.ask("ready", seconds=_START_S):
        if time.monotonic() > limit:
            raise program.failed(f"was not ready within {_START_S:.0f} s")
        time.sleep(_POLL_S)


def _until_listens(port: int) -> None:
    limit = time.monotonic() + _START_S
    while time.monotonic() < limit:
        try:
            socket.create_connection((_LOOPBACK, port), timeout=1.0).close()
        except OSError:
            time.sleep(_POLL_S)
        else:
            return
    raise P2pkvError(f"nobody listens on port {port} after {_START_S:.0f} s")


def free_port() -> int:
    """Return a port that nobody has at the moment, for programs that cannot choose one and say which.

    It is none of those that the kernel gives to who asks for any, which others do before this one is used.
    """
    while True:
        port = _PORTS[0] + secrets.randbelow(_PORTS[1] - _PORTS[0])
        with socket.socket() as probe:
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
            return port


def cpu_s(pid: int) -> float:
    """Return the seconds of processor that a process has used, in user and kernel mode."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime; see proc(5)
