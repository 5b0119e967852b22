"""What `p2pkv doctor` says of a host, sans-IO: from what was found to a line each, with a hint where something can be better."""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from p2pkv.errors import OBJECT_STORE_FAILURES

State: TypeAlias = Literal["ok", "warn", "fail"]
DESCRIPTORS_FEW: Final = 4096
"""A node has a socket or two for each peer and each engine."""
CERTIFICATE_SOON_S: Final = 14 * 86_400.0
CLOCK_SKEW_S: Final = 5.0
_OBJECT_HINT: Final = (
    "look at object.url, at AWS_ENDPOINT_URL or its like in the daemon's environment, and at the network"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """What was found on a host."""

    arena_bytes: int
    arena_huge_bytes: int
    """Of the arena, on huge pages."""
    shm_free_bytes: int | None
    """Of `/dev/shm`; None if there is none."""
    huge_pages_free: int
    transparent_huge_pages: str
    """Of shared memory: `always`, `within_size`, `advise`, `never`, or empty if the kernel has none."""
    memlock_bytes: int | None
    """None: without limit."""
    descriptors_max: int
    rdma_devices: tuple[str, ...]
    gpu: bool
    nixl_installed: bool
    nixl_wanted: bool
    fabrics: tuple[str, ...]
    """That this node is on; none if it is on none."""
    ucx: str
    may_copy: bool
    loopback: bool
    keyring: bool
    certificate_left_s: float | None
    """None: it has none."""
    skews_s: tuple[tuple[str, float], ...]
    """Member and by how much its clock differs, as far as known."""
    object_url: str = ""
    """Empty: no object store is wanted."""
    object_problem: str = ""
    """Why it is out of service, if it is: one of `OBJECT_STORE_FAILURES`."""
    object_installed: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    name: str
    state: State
    text: str
    hint: str = ""


def checks(found: Condition) -> tuple[Check, ...]:
    """Return what there is to say, in order."""
    return (
        _huge_pages(found),
        _memlock(found),
        _shm(found),
        _descriptors(found),
        Check("rdma devices", "ok", ", ".join(found.rdma_devices) or "none"),
        Check("gpu", "ok", "found" if found.gpu else "none"),
        _fabric(found),
        _copying(found),
        _keyring(found),
        _certificate(found),
        _clocks(found),
        _object_store(found),
    )


def _huge_pages(found: Condition) -> Check:
    name = "huge pages"
    if found.arena_huge_bytes:
        return Check(name, "ok", f"{found.arena_huge_bytes} of {found.arena_bytes} bytes of the arena")
    if found.transparent_huge_pages in {"always", "within_size", "advise"}:
        return Check(name, "ok", f"transparent ones for shared memory: {found.transparent_huge_pages}")
    text = f"{found.huge_pages_free} free, transparent ones for shared memory: {found.transparent_huge_pages or 'none'}"
    return Check(
        name,
        "warn",
        text,
        "`echo within_size > /sys/kernel/mm/transparent_hugepage/shmem_enabled` saves time for large arenas",
    )


def _memlock(found: Condition) -> Check:
    name = "locked memory"
    if found.memlock_bytes is None or found.memlock_bytes >= found.arena_bytes:
        limit = "no limit" if found.memlock_bytes is None else f"limit {found.memlock_bytes} bytes"
        return Check(name, "ok", limit)
    text = f"limit {found.memlock_bytes} bytes, the arena has {found.arena_bytes}"
    if not found.rdma_devices:
        return Check(name, "ok", f"{text}; only RDMA needs more")
    return Check(name, "fail", text, "`ulimit -l unlimited` (LimitMEMLOCK=infinity): RDMA locks the arena")


def _shm(found: Condition) -> Check:
    name = "/dev/shm"  # noqa: S108 - its name, in a table
    if found.shm_free_bytes is None:
        return Check(name, "warn", "not there", "mount a tmpfs: engines keep their own shared memory there")
    if found.shm_free_bytes < 2**26:
        return Check(
            name, "warn", f"{found.shm_free_bytes} bytes free", "engines need some: `--shm-size` of the container"
        )
    return Check(name, "ok", f"{found.shm_free_bytes} bytes free")


def _descriptors(found: Condition) -> Check:
    text = f"at most {found.descriptors_max}"
    if found.descriptors_max < DESCRIPTORS_FEW:
        return Check("open files", "warn", text, f"`ulimit -n {DESCRIPTORS_FEW}`: each peer and each engine takes some")
    return Check("open files", "ok", text)


def _fabric(found: Condition) -> Check:
    name = "fabric"
    if found.fabrics:
        trusted = "; RDMA is a trusted fabric: nothing on it is encrypted" if "rdma" in found.fabrics else ""
        return Check(name, "ok", f"{', '.join(found.fabrics)} ({found.ucx}){trusted}")
    if found.nixl_wanted:
        return Check(
            name, "fail", "wanted in transport.prefer, and not there", "`pip install p2pkv[nixl]`, and see the log"
        )
    if found.rdma_devices or found.gpu:
        what = "RDMA devices" if found.rdma_devices else "a GPU"
        return Check(
            name, "warn", f"this host has {what}, and no use is made of it", 'transport.prefer = ["shm", "nixl", "tcp"]'
        )
    installed = "" if found.nixl_installed else "; NIXL is not installed"
    return Check(name, "ok", f"none wanted{installed}")


def _copying(found: Condition) -> Check:
    name = "copying between processes"
    if found.may_copy:
        return Check(name, "ok", "allowed")
    state: State = "warn" if found.nixl_wanted else "ok"
    hint = (
        "kernel.yama.ptrace_scope=0, or a container without a filter of process_vm_readv" if found.nixl_wanted else ""
    )
    return Check(name, state, "not allowed; shared memory needs none of it", hint)


def _keyring(found: Condition) -> Check:
    if found.keyring:
        return Check("keyring", "ok", "gossip is encrypted")
    if found.loopback:
        return Check("keyring", "ok", "none, and only loopback is listened on")
    return Check(
        "keyring", "fail", "none: everything can be read and changed", "`p2pkv keys generate --write FILE`, `--keyring`"
    )


def _certificate(found: Condition) -> Check:
    name = "certificate"
    if found.certificate_left_s is None:
        return Check(name, "ok", "none")
    days = found.certificate_left_s / 86_400
    if days <= 0:
        return Check(name, "fail", "expired", "`p2pkv cert rotate` its folder")
    if found.certificate_left_s < CERTIFICATE_SOON_S:
        return Check(name, "warn", f"ends in {days:.1f} days", "`p2pkv cert rotate` its folder")
    return Check(name, "ok", f"good for {days:.0f} days")


def _clocks(found: Condition) -> Check:
    if not found.skews_s:
        return Check("clocks", "ok", "not known: only nodes with certificates tell each other the time")
    member, worst = max(found.skews_s, key=lambda one: abs(one[1]))
    text = f"{len(found.skews_s)} known, the worst differs by {worst:+.1f} s ({member})"
    if abs(worst) > CLOCK_SKEW_S:
        return Check("clocks", "warn", text, "set the clocks by NTP")
    return Check("clocks", "ok", text)


def _object_store(found: Condition) -> Check:
    name = "object store"
    if not found.object_url:
        return Check(name, "ok", f"none wanted{'' if found.object_installed else '; its library is not installed'}")
    if not found.object_problem:
        return Check(name, "ok", f"{found.object_url} answers")
    text, hint = next(
        (said for reason, said in OBJECT_STORE_FAILURES.items() if reason == found.object_problem),
        (found.object_problem, ""),
    )
    return Check(name, "fail", f"{found.object_url}: {text}", hint or _OBJECT_HINT)
