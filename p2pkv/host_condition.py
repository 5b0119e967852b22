"""What this process has to work with on its host, read from the kernel for `p2pkv doctor`."""

import os
import resource
from pathlib import Path

from p2pkv.checkup import Condition
from p2pkv.config import Config
from p2pkv.tiers.object.remote import is_installed as has_library
from p2pkv.transport.fabric_end import FabricEnd
from p2pkv.transport.fabrics import fabrics_of
from p2pkv.transport.host_facts import has_gpu, rdma_devices
from p2pkv.transport.nixl import is_installed, reach


def condition(
    config: Config,
    *,
    arena_huge_bytes: int,
    fabric: FabricEnd | None,
    loopback: bool,
    keyring: bool,
    certificate_left_s: float | None,
    skews_s: tuple[tuple[str, float], ...],
    object_problem: str,
) -> Condition:
    """Return what is found now."""
    memlock, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = fabric.agent.settings if fabric is not None else None
    return Condition(
        arena_bytes=config.host.capacity_bytes,
        arena_huge_bytes=arena_huge_bytes,
        shm_free_bytes=_free_bytes(Path("/dev/shm")),  # noqa: S108 - looked at, not written to
        huge_pages_free=_huge_pages_free(),
        transparent_huge_pages=_chosen(Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
        memlock_bytes=None if memlock == resource.RLIM_INFINITY else memlock,
        descriptors_max=descriptors,
        rdma_devices=rdma_devices(),
        gpu=has_gpu(),
        nixl_installed=is_installed(),
        nixl_wanted="nixl" in config.transport.prefer,
        fabrics=fabrics_of(fabric.facts) if fabric is not None else (),
        ucx=f"UCX_TLS={settings.tls} UCX_NET_DEVICES={settings.net_devices}" if settings is not None else "",
        may_copy=bool(reach()),
        loopback=loopback,
        keyring=keyring,
        certificate_left_s=certificate_left_s,
        skews_s=skews_s,
        object_url=config.object.url,
        object_problem=object_problem,
        object_installed=has_library(),
    )


def _free_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _huge_pages_free() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("HugePages_Free:")), 0)


def _chosen(path: Path) -> str:
    """Return the word in brackets, of a kernel's list of choices."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]
