"""Memory an engine shares with its daemon: the daemon takes none that could hurt it."""

import fcntl
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from p2pkv.blocks import block_digest
from p2pkv.errors import LocalUseError
from p2pkv.local_wire import StagedBlock
from p2pkv.staging import Staging, StagingReader

SIZE = 64 * 1024


def staged(staging: Staging, offset: int, body: bytes, *, segment_bytes: int = 16) -> StagedBlock:
    staging.bytes[offset : offset + len(body)] = np.frombuffer(body, dtype=np.uint8)
    return StagedBlock(bytes(32), offset, len(body), segment_bytes, block_digest(body, segment_bytes))


def memfd(size: int, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(("offset", "length"), [(0, 16), (4096, 48), (SIZE - 32, 32)])
def test_bytes_laid_by_the_engine_arrive_at_the_daemons_place(offset: int, length: int) -> None:
    staging = Staging(SIZE)
    reader = StagingReader(os.dup(staging.fd), SIZE)
    body = os.urandom(length)
    block = staged(staging, offset, body)
    into = bytearray(length)
    assert reader.copy_verified(block, memoryview(into))
    assert into == body
    staging.close()


def test_bytes_that_changed_after_they_were_announced_are_noticed() -> None:
    staging = Staging(SIZE)
    reader = StagingReader(os.dup(staging.fd), SIZE)
    block = staged(staging, 0, bytes(32))
    staging.bytes[31] = 1
    assert not reader.copy_verified(block, memoryview(bytearray(32)))
    staging.close()


def test_what_was_copied_does_not_change_any_more() -> None:
    staging = Staging(SIZE)
    reader = StagingReader(os.dup(staging.fd), SIZE)
    block, into = staged(staging, 0, b"a" * 32), bytearray(32)
    assert reader.copy_verified(block, memoryview(into))
    staging.bytes[:32] = 7
    assert into == b"a" * 32
    staging.close()


def test_memory_that_could_shrink_is_refused_and_its_descriptor_closed() -> None:
    for seals in (0, fcntl.F_SEAL_GROW):
        descriptor = memfd(SIZE, seals)
        with pytest.raises(LocalUseError, match="not sealed against shrinking"):
            StagingReader(descriptor, SIZE)
        assert not is_open(descriptor)


def test_memory_smaller_than_announced_is_refused_and_its_descriptor_closed() -> None:
    descriptor = memfd(SIZE - 1, fcntl.F_SEAL_SHRINK)
    with pytest.raises(LocalUseError, match=f"has {SIZE - 1} bytes, {SIZE} announced"):
        StagingReader(descriptor, SIZE)
    assert not is_open(descriptor)


def test_a_file_that_is_no_memfd_is_refused_and_its_descriptor_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    descriptor = os.open(path, os.O_RDWR)
    with pytest.raises(LocalUseError, match=r"memfd|sealed"):
        StagingReader(descriptor, SIZE)
    assert not is_open(descriptor)


def test_the_engines_own_memory_is_sealed_against_shrinking_and_growing() -> None:
    staging = Staging(SIZE)
    for size in (0, SIZE - 1, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(staging.fd, size)
    staging.close()


def test_the_daemon_cannot_write_into_the_engines_memory() -> None:
    staging = Staging(SIZE)
    reader = StagingReader(os.dup(staging.fd), SIZE)
    assert not reader._bytes.flags.writeable
    staging.close()


def test_closing_gives_the_descriptor_back_and_leaves_views_readable() -> None:
    staging = Staging(SIZE)
    kept = staging.bytes[:16]
    kept[:] = 5
    staging.close()
    assert not is_open(staging.fd)
    assert kept.tolist() == [5] * 16
    assert mmap.PAGESIZE <= SIZE
