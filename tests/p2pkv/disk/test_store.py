"""A store in a real folder: blocks come back, over restarts too; what is not as it was written is said to be so."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.cli.main import cli
from p2pkv.errors import LocalUseError
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.tiers.disk.files import File, FolderFiles
from p2pkv.tiers.disk.label import HEADER_BYTES, LABEL_BYTES
from p2pkv.tiers.disk.pace import Pace
from p2pkv.tiers.disk.recovery import HINTS
from p2pkv.tiers.disk.scrub import scrub
from p2pkv.tiers.disk.store import DiskStore
from tests.shelves import NAMESPACE, Shelf, body_of, info_of

SLAB_BYTES = 64 * PAGE_BYTES
QUOTA_BYTES = 4 * (SLAB_BYTES + PAGE_BYTES)
LENGTH = 3 * PAGE_BYTES


def shelf_in(folder: Path, *, direct: bool = True, quota_bytes: int = QUOTA_BYTES) -> Shelf:
    return Shelf(folder, quota_bytes=quota_bytes, slab_bytes=SLAB_BYTES, direct=direct)


def filled(folder: Path, count: int) -> Shelf:
    shelf = shelf_in(folder)
    for number in range(count):
        shelf.put(info_of(number, LENGTH), body_of(number, LENGTH))
    return shelf


def contents(shelf: Shelf) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for key in shelf.held():
        number = int.from_bytes(key, "big")
        into = memoryview(bytearray(LENGTH))
        found[number] = shelf.get(key, into)
        assert found[number] != "ok" or into == body_of(number, LENGTH)
    return found


def slab(folder: Path, number: int = 0) -> Path:
    return folder / f"slab-{number:06}"


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def place_of(shelf: Shelf, number: int) -> tuple[Path, int]:
    held = shelf.ledger.get(info_of(number, LENGTH).key)
    assert held is not None
    number_of_slab, inside = divmod(held.slot.offset, SLAB_BYTES)
    return slab(shelf.store.folder, number_of_slab), PAGE_BYTES + inside


@pytest.mark.parametrize("direct", [True, False], ids=["past the page cache", "through it"])
@pytest.mark.parametrize("length", [1, 63, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 5 * PAGE_BYTES - 1])
def test_blocks_come_back_whatever_their_length(tmp_path: Path, length: int, *, direct: bool) -> None:
    shelf = shelf_in(tmp_path, direct=direct)
    assert shelf.store.direct == direct
    for number in range(10):
        assert shelf.put(info_of(number, length), body_of(number, length))
    for number in range(10):
        into = memoryview(bytearray(length))
        assert shelf.get(info_of(number, length).key, into) == "ok"
        assert into == body_of(number, length)
    shelf.close()


class NoDirectFiles(FolderFiles):
    """A file system as many are: it refuses O_DIRECT."""

    def open(self, name: str, *, direct: bool) -> File:
        if direct and self.direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().open(name, direct=direct)


def test_a_file_system_without_direct_io_is_used_through_the_page_cache(tmp_path: Path) -> None:
    files = NoDirectFiles(tmp_path)
    assert not files.direct
    shelf = Shelf(tmp_path, quota_bytes=QUOTA_BYTES, slab_bytes=SLAB_BYTES, files=files)
    assert not shelf.store.direct
    for number in range(3):
        shelf.put(info_of(number, LENGTH), body_of(number, LENGTH))
    assert contents(shelf) == dict.fromkeys(range(3), "ok")
    shelf.close()


def test_a_restart_finds_everything_by_the_hint_log_and_compares_headers(tmp_path: Path) -> None:
    filled(tmp_path, 20).close()
    shelf = shelf_in(tmp_path)
    assert contents(shelf) == dict.fromkeys(range(20), "ok")
    assert (shelf.recovered.verified, shelf.recovered.refused, shelf.recovered.scanned) == (20, 0, False)
    assert [label.info for label in shelf.recovered.labels] == [info_of(number, LENGTH) for number in range(20)]
    shelf.close()


def test_a_restart_knows_where_in_its_chain_a_block_is(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    info = info_of(1, LENGTH)
    reservation = shelf.ledger.reserve(info)
    assert reservation is not None
    shelf.store.write(reservation.slot, info, memoryview(body_of(1, LENGTH)), depth=4, parent=BlockKey(b"p" * 32))
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert [(one.depth, one.parent) for one in shelf.recovered.labels] == [(4, b"p" * 32)]
    shelf.close()


@pytest.mark.parametrize("spoil", ["removed", "emptied", "a flipped bit", "junk"])
def test_without_its_hint_log_a_restart_reads_all_headers(tmp_path: Path, spoil: str) -> None:
    filled(tmp_path, 20).close()
    log = tmp_path / HINTS
    match spoil:
        case "removed":
            log.unlink()
        case "emptied":
            log.write_bytes(b"")
        case "a flipped bit":
            overwrite(log, 5 * LABEL_BYTES + 60, bytes([log.read_bytes()[5 * LABEL_BYTES + 60] ^ 1]))
        case _:
            log.write_bytes(os.urandom(10_000))
    shelf = shelf_in(tmp_path)
    assert shelf.recovered.scanned
    assert contents(shelf) == dict.fromkeys(range(20), "ok")
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert not shelf.recovered.scanned, "the log was written anew"
    assert len(shelf.recovered.labels) == 20
    shelf.close()


def test_a_line_that_was_not_finished_is_written_over(tmp_path: Path) -> None:
    filled(tmp_path, 3).close()
    with (tmp_path / HINTS).open("ab") as log:
        log.write(b"p2pkvslt half a line")
    shelf = shelf_in(tmp_path)
    shelf.put(info_of(3, LENGTH), body_of(3, LENGTH))
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert contents(shelf) == dict.fromkeys(range(4), "ok")
    assert not shelf.recovered.scanned
    shelf.close()


def test_what_lies_where_the_log_says_something_else_is_refused_at_the_start(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 4)
    places = [place_of(shelf, number) for number in range(4)]
    shelf.close()
    overwrite(*places[1], bytes(PAGE_BYTES))
    file, offset = places[0]
    overwrite(*places[2], file.read_bytes()[offset : offset + PAGE_BYTES])
    shelf = shelf_in(tmp_path)
    assert (shelf.recovered.verified, shelf.recovered.refused) == (2, 2)
    assert contents(shelf) == {0: "ok", 3: "ok"}
    shelf.close()


def test_past_the_time_for_comparing_a_block_is_found_out_when_it_is_read(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 4)
    overwrite(*place_of(shelf, 2), bytes(PAGE_BYTES))
    shelf.close()
    store = DiskStore(tmp_path, quota_bytes=QUOTA_BYTES)
    found = store.recover(budget_s=0)
    assert (found.verified, len(found.labels)) == (0, 4)
    read = {
        int.from_bytes(one.info.key, "big"): store.read(one.slot, one.info, memoryview(bytearray(LENGTH)))
        for one in found.labels
    }
    assert read == {0: "ok", 1: "ok", 2: "garbled", 3: "ok"}
    store.close()


def damage_header(file: Path, offset: int) -> None:
    overwrite(file, offset + 70, b"\x01")


def damage_body(file: Path, offset: int) -> None:
    byte = file.read_bytes()[offset + HEADER_BYTES + LENGTH - 1]
    overwrite(file, offset + HEADER_BYTES + LENGTH - 1, bytes([byte ^ 0x80]))


def tear(file: Path, offset: int) -> None:
    overwrite(file, offset + HEADER_BYTES + 512, bytes(LENGTH - 512))


def put_another_slot_there(file: Path, offset: int) -> None:
    size = HEADER_BYTES + LENGTH
    other = file.read_bytes()[offset + size : offset + 2 * size]
    overwrite(file, offset, other)


@pytest.mark.parametrize(
    ("harm", "verdict"),
    [
        (damage_header, "garbled"),
        (damage_body, "corrupt"),
        (tear, "corrupt"),
        (put_another_slot_there, "misdirected"),
    ],
)
def test_a_slot_that_is_not_as_it_was_written_is_a_miss_with_a_name(tmp_path: Path, harm: object, verdict: str) -> None:
    assert callable(harm)
    shelf = filled(tmp_path, 3)
    harm(*place_of(shelf, 1))
    assert contents(shelf) == {0: "ok", 1: verdict, 2: "ok"}
    assert shelf.store.counts == {"ok": 2, verdict: 1}
    assert contents(shelf) == {0: "ok", 2: "ok"}, "and is not looked at again"
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert contents(shelf) == {0: "ok", 2: "ok"}, "after a restart neither"
    shelf.close()


def test_a_write_that_the_disk_lost_is_noticed_though_the_old_slot_is_well_formed(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    file, _ = place_of(shelf, 0)
    old = file.read_bytes()
    held = shelf.ledger.get(info_of(0, LENGTH).key)
    assert held is not None
    shelf.store.write(held.slot, info_of(0, LENGTH), memoryview(body_of(0, LENGTH)))
    overwrite(file, 0, old)
    assert contents(shelf) == {0: "stale"}
    shelf.close()


def test_another_copy_of_a_block_is_not_taken_for_the_one_that_was_asked_for(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 1)
    held = shelf.ledger.get(info_of(0, LENGTH).key)
    assert held is not None
    other = info_of(77, LENGTH, key=0)
    assert shelf.store.read(held.slot, other, memoryview(bytearray(LENGTH))) == "stale"
    assert shelf.store.read(Slot(0, 2 * held.slot.size), held.info, memoryview(bytearray(LENGTH))) == "stale"
    shelf.close()


def test_the_quota_is_kept_and_the_oldest_blocks_go(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 100)
    used = sum(path.stat().st_size for path in tmp_path.glob("slab-*"))
    assert used <= QUOTA_BYTES
    assert len(shelf.ledger) == 64
    assert contents(shelf) == dict.fromkeys(range(36, 100), "ok")
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert contents(shelf) == dict.fromkeys(range(36, 100), "ok")
    shelf.close()


def test_a_smaller_quota_at_the_next_start_gives_room_back(tmp_path: Path) -> None:
    filled(tmp_path, 64).close()
    shelf = shelf_in(tmp_path, quota_bytes=2 * (SLAB_BYTES + PAGE_BYTES))
    assert [path.name for path in sorted(tmp_path.glob("slab-*"))] == ["slab-000000", "slab-000001"]
    assert set(contents(shelf).values()) == {"ok"}
    assert len(shelf.ledger) == 32
    shelf.close()


def test_a_slab_is_cut_anew_for_blocks_of_another_size(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 64)
    large = 5 * LENGTH
    for number in range(100, 130):
        assert shelf.put(info_of(number, large), body_of(number, large))
    keys = set(shelf.held())
    shelf.close()
    for log in (True, False):
        if not log:
            (tmp_path / HINTS).unlink()
        shelf = shelf_in(tmp_path)
        assert set(shelf.held()) >= keys
        for key in shelf.held():
            number = int.from_bytes(key, "big")
            length = LENGTH if number < 100 else large
            into = memoryview(bytearray(length))
            assert shelf.get(key, into) == "ok"
            assert into == body_of(number, length)
        shelf.close()


def test_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    shelf = shelf_in(tmp_path)
    for number in range(5000):
        shelf.put(info_of(number, 1), body_of(number, 1))
    assert (tmp_path / HINTS).stat().st_size <= 4098 * LABEL_BYTES
    keys = set(shelf.held())
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert set(shelf.held()) == keys
    assert not shelf.recovered.scanned
    shelf.close()


def test_a_block_that_was_forgotten_does_not_come_back(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3)
    held = shelf.ledger.get(info_of(1, LENGTH).key)
    assert held is not None
    shelf.store.forget(held.slot)
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert contents(shelf) == {0: "ok", 2: "ok"}
    shelf.close()


def test_files_of_another_store_are_not_taken_for_ours(tmp_path: Path) -> None:
    filled(tmp_path / "a", 3).close()
    filled(tmp_path / "b", 0).close()
    for name in ("slab-000000", HINTS):
        (tmp_path / "a" / name).rename(tmp_path / "b" / name)
    shelf = shelf_in(tmp_path / "b")
    assert contents(shelf) == {}
    shelf.close()


def test_verify_reads_a_slot_and_says_what_it_is(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 2)
    damage_body(*place_of(shelf, 1))
    verdicts = [shelf.store.verify(label.slot) for label in shelf.store.labels()]
    assert verdicts == ["ok", "corrupt"]
    assert shelf.store.verify(Slot(3 * SLAB_BYTES, 4 * PAGE_BYTES)) == "stale", "nothing is there"
    shelf.close()


# -- whose folder it is ------------------------------------------------------------------------------------------------


def test_two_processes_cannot_have_one_folder(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 3)
    program = f"""
from pathlib import Path
from p2pkv.errors import LocalUseError
from p2pkv.tiers.disk.scrub import scrub
from p2pkv.tiers.disk.store import DiskStore
try:
    DiskStore(Path({str(tmp_path)!r}), quota_bytes={QUOTA_BYTES})
except LocalUseError as exc:
    print(exc, "|", exc.hint)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("another daemon uses this disk tier's folder")
    assert "two daemons must not write to one store" in done.stdout
    assert contents(shelf) == dict.fromkeys(range(3), "ok")
    shelf.close()
    shelf.close()
    shelf_in(tmp_path).close()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(LocalUseError, match="others may write to the disk tier's folder"):
        shelf_in(tmp_path / "open")


@pytest.mark.parametrize("spoil", [b"", b"{}", b'{"id":"' + b"0" * 32 + b'","slab_bytes":262144,"check":"0"}'])
def test_a_store_that_does_not_know_what_it_is_stops_the_start_and_the_folder_is_let_go(
    tmp_path: Path, spoil: bytes
) -> None:
    filled(tmp_path, 3).close()
    good = (tmp_path / "store.json").read_bytes()
    (tmp_path / "store.json").write_bytes(spoil)
    with pytest.raises(LocalUseError, match="cannot read what the disk tier is") as caught:
        shelf_in(tmp_path)
    assert "remove the folder" in caught.value.hint
    (tmp_path / "store.json").write_bytes(good)
    shelf = shelf_in(tmp_path)
    assert len(shelf.ledger) == 3
    shelf.close()


def test_a_quota_of_less_than_a_slab_is_an_error(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    with pytest.raises(LocalUseError, match=f"has {SLAB_BYTES} bytes"):
        shelf_in(tmp_path, quota_bytes=SLAB_BYTES)


def test_a_disk_that_is_full_is_an_error_and_leaves_no_half_slab(tmp_path: Path) -> None:
    """The limit on file sizes stands in for a full disk: it fails in the middle of a slab."""
    program = f"""
import errno, resource, signal
from pathlib import Path
from tests.shelves import Shelf, body_of, info_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
shelf = Shelf(Path({str(tmp_path)!r}), quota_bytes={QUOTA_BYTES}, slab_bytes={SLAB_BYTES})
for number in range(3):
    shelf.put(info_of(number, {LENGTH}), body_of(number, {LENGTH}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({SLAB_BYTES // 2}, {SLAB_BYTES // 2}))
large = 20 * 4096
try:
    shelf.put(info_of(9, large), body_of(9, large))
except OSError as exc:
    print(errno.errorcode[exc.errno])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(shelf.put(info_of(9, large), body_of(9, large)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split()[0] in {"EFBIG", "EIO"}, done.stderr


def test_the_digest_of_a_block_is_that_of_its_segments(tmp_path: Path) -> None:
    """As everywhere else, so that what comes from the disk is compared with what is announced to peers."""
    shelf = shelf_in(tmp_path)
    body = body_of(1, 6000)
    info = BlockInfo(BlockKey(b"k" * 32), NAMESPACE, 6000, 1000, block_digest(body, 1000))
    assert shelf.put(info, body)
    assert shelf.get(info.key, memoryview(bytearray(6000))) == "ok"
    shelf.close()


# -- scrubbing -----------------------------------------------------------------------------------------------------------


def test_a_scrub_reads_everything_at_its_rate_and_forgets_what_is_bad(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 10)
    for number in (3, 7):
        damage_body(*place_of(shelf, number))
    damage_header(*place_of(shelf, 5))
    waits: list[float] = []
    found = scrub(shelf.store, rate_bytes_s=1e-3, wait=waits.append)
    assert (found.blocks, found.read_bytes) == (10, 10 * (HEADER_BYTES + LENGTH))
    assert found.bad == {"corrupt": 2, "garbled": 1}
    per_block_s = (HEADER_BYTES + LENGTH) / 1e-3
    # Nothing waits here, so each turn comes as much later than the clock as all before it take together.
    assert waits == pytest.approx([number * per_block_s for number in range(10)], rel=1e-3)
    shelf.close()
    shelf = shelf_in(tmp_path)
    assert set(contents(shelf)) == {0, 1, 2, 4, 6, 8, 9}
    shelf.close()


def test_verify_on_the_command_line_names_what_is_bad_and_fails(tmp_path: Path) -> None:
    shelf = filled(tmp_path, 10)
    damage_body(*place_of(shelf, 3))
    command = ["tiers", "verify", "--path", str(tmp_path), "--rate", "1GiB", "-o", "json"]
    with pytest.raises(LocalUseError, match="another daemon"):
        CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)
    shelf.close()
    result = CliRunner().invoke(cli, command)
    said = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (said["blocks"], said["bad"]) == (10, {"corrupt": 1})
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["blocks"] == 9
    with pytest.raises(LocalUseError, match="no disk tier is in this folder"):
        CliRunner().invoke(cli, ["tiers", "verify", "--path", "/"], catch_exceptions=False, standalone_mode=False)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 10)), max_size=30))
def test_a_pace_is_never_exceeded_for_long(pieces: list[tuple[int, float]]) -> None:
    pace, now, read, began = Pace(100.0), 5.0, 0, 5.0
    for size, idle_s in pieces:
        now += idle_s
        now += pace.wait_s(size, now)
        assert read <= 100.0 * (now - began) + 1e-6
        read += size
