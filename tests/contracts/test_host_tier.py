"""The host tier keeps the contract of tiers, and lets others map its memory without being able to harm it."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pkv.errors import FabricError
from p2pkv.generations import table_bytes
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.testing.contracts import CAPACITY_BYTES, TierContract
from p2pkv.tiers.arena_memory import HUGE_PAGE_BYTES, nodes, reserved_bytes
from p2pkv.tiers.base import Tier
from p2pkv.tiers.host import HostTier


@pytest.fixture(params=["auto", "never", "reserved"])
def host(request: pytest.FixtureRequest) -> Iterator[HostTier]:
    if request.param == "reserved" and reserved_bytes() < CAPACITY_BYTES + 2 * HUGE_PAGE_BYTES:
        pytest.skip("no huge pages are reserved here (vm.nr_hugepages)")
    tier = HostTier(CAPACITY_BYTES, huge_pages=request.param)
    yield tier
    tier.close()


class TestHostTier(TierContract):
    @pytest.fixture
    def tier(self, host: HostTier) -> Tier:
        return host


def mapped(host: HostTier) -> mmap.mmap:
    """Map the arena as an engine does."""
    return mmap.mmap(host.fd, host.arena_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)


def test_an_engine_sees_blocks_and_generations_where_the_daemon_says(host: HostTier) -> None:
    slot = Slot(5 * PAGE_BYTES, PAGE_BYTES)
    place = host.begin(slot, 3)
    with mapped(host) as arena:
        entry = slice(5 * 8, 6 * 8)
        assert int.from_bytes(arena[entry], "little") == host.generation(slot) == 1
        place[:] = b"abc"
        host.seal(slot)
        assert int.from_bytes(arena[entry], "little") == host.generation(slot) == 2
        start = host.table_bytes + slot.offset
        assert arena[start : start + 3] == b"abc"


def test_an_engine_cannot_map_the_arena_writable(host: HostTier) -> None:
    """Linux 5.1 and later."""
    with pytest.raises(PermissionError):
        mmap.mmap(host.fd, host.arena_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(
        OSError, match=r"not permitted|Invalid"
    ):  # the latter of huge pages: they cannot be written to so
        os.pwrite(host.fd, b"x", 0)


def test_an_engine_cannot_shrink_or_grow_the_arena(host: HostTier) -> None:
    step = 1 if host.arena_bytes % HUGE_PAGE_BYTES else HUGE_PAGE_BYTES  # the kernel looks at the size first
    for size in (0, host.arena_bytes - step, host.arena_bytes + step):
        with pytest.raises(PermissionError):
            os.ftruncate(host.fd, size)
    assert fcntl.fcntl(host.fd, fcntl.F_GET_SEALS) & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def test_reserved_pages_are_whole_and_all_of_the_arena(host: HostTier) -> None:
    if host.arena_bytes % HUGE_PAGE_BYTES:
        assert host.arena_bytes == CAPACITY_BYTES + host.table_bytes, "nothing is rounded up for small pages"
    else:
        assert host.huge_bytes == host.arena_bytes


def test_reserved_pages_that_are_not_there_are_an_error_that_says_how_to_get_them() -> None:
    with pytest.raises(FabricError, match="reserved huge pages") as caught:
        HostTier(max(2**40, 2 * reserved_bytes()), huge_pages="reserved")
    assert "vm.nr_hugepages" in caught.value.hint


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_memory_can_be_had_of_a_node_that_there_is_and_of_no_other() -> None:
    before = mappings(), descriptors()
    there = min(nodes())
    tier = HostTier(CAPACITY_BYTES, numa_node=there)
    numbers = Path("/proc/self/numa_maps").read_text(encoding="ascii") if Path("/proc/self/numa_maps").exists() else ""
    ours = [line for line in numbers.splitlines() if line.startswith(f"{tier.address:x} ")]
    assert all(f"bind:{there}" in line for line in ours)
    assert not numbers or ours
    tier.close()
    with pytest.raises(FabricError, match="no such node") as caught:
        HostTier(CAPACITY_BYTES, numa_node=1023)
    assert str(there) in caught.value.hint
    assert (mappings(), descriptors()) == before


def test_all_memory_is_taken_at_the_start(host: HostTier) -> None:
    assert os.fstat(host.fd).st_blocks * 512 >= host.arena_bytes


def test_what_others_mapped_stays_readable_after_closing() -> None:
    host = HostTier(CAPACITY_BYTES)
    host.begin(Slot(0, PAGE_BYTES), 3)[:] = b"abc"
    with mapped(host) as arena:
        start = host.table_bytes
        host.close()
        assert arena[start : start + 3] == b"abc"


def mappings() -> int:
    return Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:p2pkv-host")


def test_closing_gives_descriptor_and_memory_back() -> None:
    before = mappings()
    host = HostTier(CAPACITY_BYTES)
    descriptor = host.fd
    host.begin(Slot(0, PAGE_BYTES), 10)
    host.seal(Slot(0, PAGE_BYTES))
    assert mappings() == before + 1
    host.close()
    assert mappings() == before
    with pytest.raises(OSError) as caught:
        os.fstat(descriptor)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("pages", "table_pages"), [(1, 1), (512, 1), (513, 2), (2**20, 2**11)])
def test_the_table_has_eight_bytes_for_each_page_and_is_whole_pages_itself(pages: int, table_pages: int) -> None:
    assert table_bytes(pages * PAGE_BYTES) == table_pages * PAGE_BYTES


def test_memory_that_the_machine_does_not_give_is_an_error_of_the_device_and_holds_nothing() -> None:
    """The limit on file sizes stands in for a full machine, and guards this one."""
    program = """
import os, resource
from p2pkv.errors import FabricError
from p2pkv.tiers.host import HostTier
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
before = len(os.listdir("/proc/self/fd"))
for capacity in (2**22, 2**45):
    try:
        HostTier(capacity)
    except FabricError as exc:
        print(exc, "|", exc.device, "|", exc.hint, "|", len(os.listdir("/proc/self/fd")) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    refused, never_tried = (line.split(" | ") for line in done.stdout.splitlines())
    assert refused[0].startswith("cannot take 4194304 bytes of memory")
    assert never_tried[0].endswith(" are free: host memory")
    for _, device, hint, leaked in (refused, never_tried):
        assert (device, leaked) == ("host memory", "0")
        assert "host.capacity_bytes" in hint
