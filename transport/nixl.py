"""NIXL, the library below which RDMA, NVLink and copies between processes are one: the only file that knows it.

Its bindings are used directly; the package above them imports torch, brings pickle, and fixes the delay of the progress
thread. What the library does that nobody would expect is dealt with here, and `tests/transport/test_nixl_traps.py` notices
when it stops doing so:

- With the delay that the package fixes, its progress thread takes a whole core while nothing happens.
- A process that made an agent crashes when it ends, in the destructor of a bundled netlink library, unless UCX leaves its
  module for InfiniBand alone. Where that is needed, a process has to leave by `exit_at_once`.
- Names of agents go in as text and come out as bytes in one place and as text in another.
- It reads and writes what a peer has unmapped, which ends the peer. So what is registered stays mapped until `close`.
- Between two process namespaces it falls back from copying to sockets without a word. So who can copy is found out
  here (`reach`), told to the peer, and compared.

Everything but `close` may be called from any thread, and may take as long as the network does: call it from worker threads.
"""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import secrets
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeAlias

from p2pkv.errors import FabricError, MalformedMessage, PeerGone, PeerTooSlow
from p2pkv.transport.fabrics import LibrarySettings

_BINDINGS: Final = ("nixl_cu12._bindings", "nixl_cu13._bindings")
_BACKEND: Final = "UCX"
_PROGRESS_S: Final = 0.05
"""The progress thread sleeps until something comes, and at most this long. 0, which the package above the bindings fixes,
never sleeps; 100 wakings a second would be some thousandths of a core."""
_PAUSE_S_MIN: Final = 20e-6
_PAUSE_S_MAX: Final = 2e-3
"""Bounds of the pauses between two looks at a transfer: there is no descriptor to wait on."""
_NOTICES_MAX: Final = 4096
"""Notices nobody has asked for yet; the oldest go first, and who waited for one takes another way."""
_RESTING_MAX: Final = 64
"""Agents that stay connected though nobody has met them just now. To disconnect one and meet it again leaves a socket behind
each time, until its process ends."""
_AGENT_HEAD: Final = b"nixlSerDes|Agent"
_LENGTH: Final = struct.Struct("<Q")
_REGION: Final = struct.Struct("<QQQ")
_NAME_BYTES_MAX: Final = 128

Kind: TypeAlias = Literal["DRAM", "VRAM"]
Operation: TypeAlias = Literal["READ", "WRITE"]
Piece: TypeAlias = tuple[int, int]
"""(offset in a region, length)."""


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of this process, or of a peer's as the library told it."""

    address: int
    length: int
    kind: Kind = "DRAM"
    device: int = 0
    """Number of the GPU for `VRAM`."""

    def __repr__(self) -> str:
        return f"Region(address=..., length={self.length}, kind={self.kind}, device={self.device})"


class NixlAgent:
    """One agent of the library with the memory that others may reach; a process needs one."""

    def __init__(self, node: str, settings: LibrarySettings) -> None:
        """Load the library and start its progress thread.

        Raises:
            FabricError: the library is not installed, or does not start.
        """
        os.environ["UCX_TLS"] = settings.tls
        os.environ["UCX_NET_DEVICES"] = settings.net_devices
        os.environ["NIXL_LOG_LEVEL"] = "FATAL"  # errors become exceptions here, and a peer's are not worth a line each
        if settings.modules:
            os.environ["UCX_MODULES"] = settings.modules
        self.settings: Final = settings
        self.name: Final = f"{node}/{secrets.token_hex(6)}"
        self._library: Final = _bindings()
        config = self._library.nixlAgentConfig()
        config.useProgThread = True
        config.useListenThread = False
        config.pthrDelay = round(_PROGRESS_S * 1e6)
        config.syncMode = self._library.NIXL_THREAD_SYNC_STRICT
        names = [name for name in dir(self._library) if name.startswith("nixl") and name.endswith("Error")]
        self._errors: Final = (*(getattr(self._library, name) for name in names), RuntimeError, ValueError, TypeError)
        try:
            self._agent: Any = self._library.nixlAgent(self.name, config)
            self._backend: Any = self._agent.createBackend(_BACKEND, {})
        except self._errors as exc:
            raise FabricError(f"the library does not start ({_text(exc)})", device="nixl") from exc
        self._registered: list[tuple[Region, Any]] = []
        self._met: dict[str, int] = {}
        self._resting: OrderedDict[str, None] = OrderedDict()
        """Agents that are connected and that nobody has met just now, the one longest so first."""
        self._notices: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._lock = threading.Lock()

    def register(self, region: Region) -> None:
        """Let others reach `region`; it must stay mapped until `close` has returned.

        Raises:
            FabricError: the device does not take it.
        """
        kind = getattr(self._library, f"{region.kind}_SEG")
        described = self._library.nixlRegDList(kind, [(region.address, region.length, region.device, "")])
        try:
            self._agent.registerMem(described, [self._backend])
        except self._errors as exc:
            raise FabricError(
                f"cannot register {region.length} bytes of memory ({_text(exc)})",
                device="nixl",
                hint="look at `ulimit -l` (locked memory)",
            ) from exc
        self._registered.append((region, described))

    def metadata(self) -> bytes:
        """Return what a peer needs to reach what is registered now."""
        return bytes(self._agent.getLocalMD())

    # -- peers --------------------------------------------------------------------------------------------------

    def meet(self, metadata: bytes, *, node: str) -> str:
        """Take the metadata of `node`, and return its agent's name; to be followed by one `part`.

        Raises:
            MalformedMessage: it is not metadata, or another node's.
        """
        name = agent_name_untrusted(metadata, node=node)
        with self._lock:
            try:
                told = self._agent.loadRemoteMD(metadata)
            except self._errors as exc:
                raise MalformedMessage(f"metadata that the library refuses ({_text(exc)})", peer=node) from exc
            if os.fsdecode(told) != name:
                raise MalformedMessage("metadata of another agent than it says", peer=node)
            self._met[name] = self._met.get(name, 0) + 1
            self._resting.pop(name, None)
            for earlier in [one for one in self._resting if one.startswith(f"{node}/")]:  # of a process that is gone
                self._disconnect(earlier)
        return name

    def part(self, name: str) -> None:
        """Undo one `meet`. After the last one the peer's agent stays connected for the next, as one of `_RESTING_MAX`."""
        with self._lock:
            left = self._met.pop(name, 0) - 1
            if left > 0:
                self._met[name] = left
            elif left == 0:  # or else a transfer that did not end has disconnected it
                self._resting[name] = None
            while len(self._resting) > _RESTING_MAX:
                self._disconnect(next(iter(self._resting)))

    def _disconnect(self, name: str) -> None:
        """Disconnect an agent; with the lock."""
        self._met.pop(name, None)
        self._resting.pop(name, None)
        with contextlib.suppress(*self._errors):  # it may be gone already
            self._agent.invalidateRemoteMD(name)

    # -- bytes --------------------------------------------------------------------------------------------------

    def move(
        self,
        operation: Operation,
        here: tuple[Region, Sequence[Piece]],
        there: tuple[Region, Sequence[Piece]],
        *,
        agent: str,
        notice: bytes = b"",
        patience_s: float,
    ) -> None:
        """Move pieces of one region to pieces of another, pairwise of equal lengths, and wait until all are there.

        `notice` is told to the other side behind the last byte.

        Raises:
            PeerGone, PeerTooSlow: the other side is not there any more, or `patience_s` went by without an end. Nothing of
                ours is read or written any more.
        """
        peer = agent.partition("/")[0]
        try:
            handle = self._agent.createXferReq(
                getattr(self._library, f"NIXL_{operation}"),
                self._pieces(*here),
                self._pieces(*there),
                agent,
                notice,
                [self._backend],
            )
        except self._errors as exc:
            raise PeerGone(f"the fabric takes no transfer ({_text(exc)})", peer=peer) from exc
        try:
            self._finish(handle, notice, agent, patience_s)
        except self._errors as exc:
            raise PeerGone(f"the fabric failed ({_text(exc)})", peer=peer) from exc
        finally:
            self._release(handle)

    def wait_notice(self, agent: str, notice: bytes, *, patience_s: float) -> None:
        """Wait until `agent` has told `notice`.

        Raises:
            PeerTooSlow: it did not within `patience_s`.
        """
        limit, pause = time.monotonic() + patience_s, _PAUSE_S_MIN
        while True:
            with self._lock:
                for name, notices in self._agent.getNotifs({}, [self._backend]).items():
                    self._notices.update(((os.fsdecode(name), bytes(one)), None) for one in notices)
                if (agent, notice) in self._notices:
                    del self._notices[agent, notice]
                    return
                while len(self._notices) > _NOTICES_MAX:
                    self._notices.popitem(last=False)
            if time.monotonic() > limit:
                raise PeerTooSlow("bytes were announced and not notified", peer=agent.partition("/")[0])
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S_MAX)

    def _finish(self, handle: int, notice: bytes, agent: str, patience_s: float) -> None:
        """Post a transfer and look at it ever more rarely until it has ended."""
        limit, pause = time.monotonic() + patience_s, _PAUSE_S_MIN
        state = self._agent.postXferReq(handle, notice)
        while state == self._library.NIXL_IN_PROG:
            if time.monotonic() > limit:
                # Taking the endpoint down is what ends a transfer for certain; merely letting go of it is not.
                with self._lock:
                    self._disconnect(agent)
                raise PeerTooSlow("a transfer does not end", peer=agent.partition("/")[0])
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_S_MAX)
            state = self._agent.getXferStatus(handle)
        if state != self._library.NIXL_SUCCESS:
            raise PeerGone(f"the fabric failed ({state})", peer=agent.partition("/")[0])

    def _release(self, handle: int) -> None:
        with contextlib.suppress(*self._errors):  # of a transfer that failed: the library keeps it to itself
            self._agent.releaseXferReq(handle)

    def _pieces(self, region: Region, pieces: Sequence[Piece]) -> Any:
        assert all(offset >= 0 and offset + length <= region.length for offset, length in pieces), "outside"
        kind = getattr(self._library, f"{region.kind}_SEG")
        return self._library.nixlXferDList(
            kind, [(region.address + offset, length, region.device) for offset, length in pieces]
        )

    def close(self) -> None:
        """End the progress thread and disconnect everybody; what was registered may be unmapped after that."""
        with self._lock:
            for name in (*self._met, *self._resting):
                self._disconnect(name)
        for _, described in self._registered:
            with contextlib.suppress(*self._errors):
                self._agent.deregisterMem(described, [self._backend])
        self._registered.clear()
        self._agent = None


def agent_name_untrusted(metadata: bytes, *, node: str) -> str:
    """Return the name in front of `metadata`, if it is one of an agent of `node`.

    Raises:
        MalformedMessage: it is not, or no metadata.
    """
    start = len(_AGENT_HEAD) + _LENGTH.size
    if not metadata.startswith(_AGENT_HEAD) or len(metadata) < start:
        raise MalformedMessage("no metadata of an agent", peer=node)
    (length,) = _LENGTH.unpack_from(metadata, len(_AGENT_HEAD))
    name = metadata[start : start + min(length, _NAME_BYTES_MAX)]
    if not name.startswith(f"{node}/".encode()) or length != len(name) or not name.isascii():
        raise MalformedMessage("metadata of another node's agent", peer=node)
    return name.decode()


def region_untrusted(metadata: bytes, length: int, *, node: str, kind: Kind = "DRAM", device: int = 0) -> Region:
    """Return where the one region of `length` bytes is that `metadata` speaks of.

    The library wants addresses of a peer's memory and does not give out those in the metadata it has taken. They are used
    on that peer alone, whose library refuses what is outside of what it registered.

    Raises:
        MalformedMessage: there is no such region, or more than one.
    """
    section = metadata[metadata.rfind(b"nixlDList") :]
    wanted, found = _LENGTH.pack(length) + _LENGTH.pack(device), set[int]()
    at = section.find(wanted)
    while at >= 0:
        if at >= _LENGTH.size:
            address, _, _ = _REGION.unpack_from(section, at - _LENGTH.size)
            found.add(address)
        at = section.find(wanted, at + 1)
    found.discard(0)
    if len(found) != 1 or not length:
        raise MalformedMessage(f"metadata with {len(found)} regions of {length} bytes", peer=node)
    address = found.pop()
    if address + length >= 2**63:
        raise MalformedMessage("metadata with a region outside of any memory", peer=node)
    return Region(address, length, kind, device)


def is_installed() -> bool:
    """Say whether the library can be loaded, without loading it."""
    return any(importlib.util.find_spec(name.partition(".")[0]) is not None for name in _BINDINGS)


def exit_at_once(code: int) -> NoReturn:
    """Leave the process without destructors, which crash where UCX has loaded its module for InfiniBand."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def must_exit_at_once() -> bool:
    """Say whether this process has used the library in such a way that it must leave by `exit_at_once`."""
    return any(name in sys.modules for name in _BINDINGS) and os.environ.get("UCX_MODULES") != "^ib"


def reach() -> str:
    """Return what is equal in processes that may copy out of each other's memory; empty if this one may not.

    It takes one kernel, one process namespace and one user, a kernel that lets processes of one user look at each
    other (Yama), and no filter of system calls in between.
    """
    if not _may_copy():
        return ""
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text(encoding="ascii").strip()
    except OSError:
        scope = "0"
    if scope != "0" and os.geteuid() != 0:
        return ""
    try:
        kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        spaces = [Path(f"/proc/self/ns/{name}").stat().st_ino for name in ("pid", "user")]
    except OSError:
        return ""
    text = f"{kernel} {spaces} {os.geteuid()}"
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"p2pkv.reach").hexdigest()


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _may_copy() -> bool:
    """Try the system call on ourselves: a filter refuses it there too."""
    copy: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if copy is None:
        return False
    source, target = ctypes.create_string_buffer(b"x", 1), ctypes.create_string_buffer(1)
    vectors = [_Vector(ctypes.addressof(buffer), 1) for buffer in (target, source)]
    done = copy(os.getpid(), ctypes.byref(vectors[0]), 1, ctypes.byref(vectors[1]), 1, 0)
    return done == 1 and target.raw == source.raw


def _bindings() -> Any:
    for name in _BINDINGS:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as exc:
            raise FabricError(f"the library cannot be loaded ({exc})", device="nixl") from exc
    raise FabricError(
        "the library is not installed",
        device="nixl",
        hint="pip install p2pkv[nixl], or leave nixl out of transport.prefer",
    )


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__
