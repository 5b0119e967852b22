"""How the memory of an arena is asked for: the size of its pages, and the NUMA node that they lie on.

A page of 2 MiB takes one entry of the processor's translation cache instead of 512. Linux gives them to shared memory in two
ways: transparently, where its owner is allowed to ask for it (`shmem_enabled`), and out of a pool that somebody has reserved
(`vm.nr_hugepages`). The first may give none, the second refuses.

Source: Linux, Documentation/admin-guide/mm/transhuge.rst and hugetlbpage.rst, mbind(2), memfd_create(2).
"""

import contextlib
import ctypes
import mmap
import os
import platform
from pathlib import Path
from typing import Final, Literal, TypeAlias

from p2pkv.errors import FabricError

HugePages: TypeAlias = Literal["auto", "reserved", "never"]
HUGE_PAGE_BYTES: Final = 2 * 2**20
_NODES: Final = Path("/sys/devices/system/node/online")
_RESERVED: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_MADV_POPULATE_WRITE: Final = 23
"""Linux 5.14; Python's mmap module does not name it."""
_MPOL_BIND: Final = 2
_MBIND: Final = {"x86_64": 237, "aarch64": 235}
"""Numbers of the system call; the C library has no function for it."""
_MASK_BITS: Final = 1024


def memfd(name: str, huge_pages: HugePages) -> int:
    """Return a memory file that can be sealed, with pages as `huge_pages` says.

    Raises:
        OSError: the kernel has none.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge_pages == "reserved":
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
    return os.memfd_create(name, flags)


def reserved_bytes() -> int:
    """Return how much of the pool of huge pages nobody has taken."""
    try:
        return int(_RESERVED.read_text(encoding="ascii")) * HUGE_PAGE_BYTES
    except (OSError, ValueError):
        return 0


def nodes() -> frozenset[int]:
    """Return the NUMA nodes of this machine; one that has none has node 0."""
    try:
        text = _NODES.read_text(encoding="ascii")
    except OSError:
        return frozenset({0})
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def advise(mapping: mmap.mmap, address: int, length: int, *, huge_pages: HugePages, numa_node: int) -> None:
    """Have the memory of a mapped arena come with the pages and on the node (-1: any) that are wanted.

    Raises:
        FabricError: there is no such node, or it cannot be told.
    """
    if numa_node >= 0:
        _bind(address, length, numa_node)
    if huge_pages == "auto":
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    elif huge_pages == "never":
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_NOHUGEPAGE)


def populate(fd: int, mapping: mmap.mmap, length: int) -> None:
    """Take all memory of a mapped arena now.

    A mapping whose pages came with the first use would make the first fetches pay for them: 46 MB in 180 ms instead of 40.

    Raises:
        OSError: the machine does not have the memory.
    """
    with contextlib.suppress(OSError):  # an older kernel, or no memory, which the next line will say better
        mapping.madvise(_MADV_POPULATE_WRITE)
    os.posix_fallocate(fd, 0, length)


def populate_part(mapping: mmap.mmap, start: int, length: int) -> None:
    """Take the memory of a part of a mapped arena, whole pages.

    Raises:
        OSError: the kernel is older than that, or the machine does not have the memory.
    """
    mapping.madvise(_MADV_POPULATE_WRITE, start, length)


def _bind(address: int, length: int, node: int) -> None:
    device = f"NUMA node {node}"
    found = nodes()
    if node not in found:
        known = ", ".join(map(str, sorted(found)))
        raise FabricError("no such node", device=device, hint=f"set host.numa_node to one of {known}, or -1 for any")
    number = _MBIND.get(platform.machine())
    if number is None:
        raise FabricError(
            f"cannot be asked for on {platform.machine()}", device=device, hint="set host.numa_node to -1"
        )
    words = (ctypes.c_ulong * (_MASK_BITS // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    words[node // bits] = 1 << node % bits
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.syscall(
        ctypes.c_long(number),
        ctypes.c_void_p(address),
        ctypes.c_ulong(length),
        ctypes.c_int(_MPOL_BIND),
        words,
        ctypes.c_ulong(_MASK_BITS),
        ctypes.c_uint(0),
    )
    if failed:
        reason = os.strerror(ctypes.get_errno())
        raise FabricError(f"memory cannot be bound to it ({reason})", device=device, hint="set host.numa_node to -1")


def huge_bytes(address: int) -> int:
    """Return how much of the mapping that begins at `address` is on huge pages now; 0 where the kernel does not say."""
    with contextlib.suppress(OSError), Path("/proc/self/smaps").open(encoding="ascii", errors="replace") as lines:
        inside = False
        for line in lines:
            head, _, rest = line.partition(" ")
            if "-" in head and not head.endswith(":"):
                inside = int(head.partition("-")[0], 16) == address
            elif inside and head == "KernelPageSize:" and int(rest.split()[0]) * 1024 >= HUGE_PAGE_BYTES:
                return _size(address)
            elif inside and head == "ShmemPmdMapped:":
                return int(rest.split()[0]) * 1024
    return 0


def _size(address: int) -> int:
    """Return the length of the mapping at `address`."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, _, last = line.partition(" ")[0].partition("-")
        if int(first, 16) == address:
            return int(last, 16) - address
    return 0
