"""Host memory, memory as a GPU's, a disk and an object store keep blocks alike: right, or not at all."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from p2pkv.blocks import BlockInfo, BlockKey, block_digest
from p2pkv.ledger import Ledger
from p2pkv.testing.contracts import Keeper, KeepingContract
from p2pkv.tiers.base import Tier
from p2pkv.tiers.gpu import GpuTier
from p2pkv.tiers.host import HostTier
from p2pkv.tiers.object.runs import cut_for, runs_of
from p2pkv.tiers.object.store import ObjectStore
from tests.objects import PATIENCE_S, store_at
from tests.shelves import Shelf

ROOM_BYTES = 16 * 2**20


class InMemory:
    """A tier of slots and its ledger; whoever reads compares with the digest, as engines and peers do."""

    def __init__(self, make: Callable[[], Tier]) -> None:
        self._make = make
        self.reopen()

    def reopen(self) -> bool:
        self.tier, self.ledger = self._make(), Ledger(capacity_bytes=ROOM_BYTES)
        return False

    def put(self, infos: Sequence[BlockInfo], bodies: Sequence[bytes]) -> None:
        for info, body in zip(infos, bodies, strict=True):
            reservation = self.ledger.reserve(info)
            if reservation is not None:
                self.tier.begin(reservation.slot, len(body))[:] = body
                self.tier.seal(reservation.slot)
                self.ledger.commit(reservation)

    def get(self, infos: Sequence[BlockInfo]) -> list[bytes | None]:
        return [self._one(info.key) for info in infos]

    def _one(self, key: BlockKey) -> bytes | None:
        held = self.ledger.get(key)
        if held is None:
            return None
        body = bytes(self.tier.read(held.slot, held.info.length))
        return body if block_digest(body, held.info.segment_bytes) == held.info.digest else None

    def damage(self, info: BlockInfo) -> None:
        held = self.ledger.get(info.key)
        assert held is not None
        body = bytearray(self.tier.read(held.slot, info.length))
        body[100] ^= 1
        self.tier.begin(held.slot, len(body))[:] = body
        self.tier.seal(held.slot)


class TestHost(KeepingContract):
    @pytest.fixture
    def keeper(self) -> Keeper:
        return InMemory(lambda: HostTier(ROOM_BYTES))


class TestGpu(KeepingContract):
    @pytest.fixture
    def keeper(self) -> Keeper:
        return InMemory(lambda: GpuTier.owned(ROOM_BYTES, "cpu"))


class OnDisk:
    """A disk store and its ledger."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.shelf = self._open()

    def _open(self) -> Shelf:
        return Shelf(self._folder, quota_bytes=ROOM_BYTES, slab_bytes=2**20)

    def reopen(self) -> bool:
        self.shelf.store.close()
        self.shelf = self._open()
        return True

    def put(self, infos: Sequence[BlockInfo], bodies: Sequence[bytes]) -> None:
        for info, body in zip(infos, bodies, strict=True):
            self.shelf.put(info, body)

    def get(self, infos: Sequence[BlockInfo]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for info in infos:
            into = memoryview(bytearray(info.length))
            found.append(bytes(into) if self.shelf.get(info.key, into) == "ok" else None)
        return found

    def damage(self, info: BlockInfo) -> None:
        (body,) = self.get([info])
        assert body is not None
        _flip_body(sorted(self._folder.glob("slab-*")), body)


def _flip_body(files: list[Path], body: bytes) -> None:
    """Flip a bit of the place where `body` stands in one of the files."""
    for file in files:
        at = file.read_bytes().find(body[:4096])
        if at >= 0:
            with file.open("r+b") as stream:
                stream.seek(at + 100)
                stream.write(bytes([body[100] ^ 1]))
            return
    raise AssertionError("no file has the block")


class TestDisk(KeepingContract):
    @pytest.fixture
    def keeper(self, tmp_path: Path) -> Iterator[Keeper]:
        keeper = OnDisk(tmp_path)
        yield keeper
        keeper.shelf.store.close()


class InObjects:
    """An object store in a folder: runs of a chain, in pieces that its rule cuts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bodies: dict[BlockKey, bytes] = {}
        self.store = self._open()

    def _open(self) -> ObjectStore:
        return store_at(f"file://{self._folder}/kv")

    def reopen(self) -> bool:
        self.store.close()
        self.store = self._open()
        return True

    def put(self, infos: Sequence[BlockInfo], bodies: Sequence[bytes]) -> None:
        by_key = {info.key: (info, body) for info, body in zip(infos, bodies, strict=True)}
        for run in runs_of([info.key for info in infos], cut_for(infos[0].length)):
            pairs = [by_key[key] for key in run.keys]
            stored = self.store.put([info for info, _ in pairs], [body for _, body in pairs], timeout_s=PATIENCE_S)
            assert stored in {"stored", "there"}
            self._bodies |= {info.key: body for info, body in pairs}

    def get(self, infos: Sequence[BlockInfo]) -> list[bytes | None]:
        keys = [info.key for info in infos]
        found: dict[BlockKey, bytes] = {}
        for got in self.store.read(keys, infos[0].length, timeout_s=PATIENCE_S):
            found |= {info.key: bytes(body) for info, body in got.blocks}
        return [found.get(key) for key in keys]

    def damage(self, info: BlockInfo) -> None:
        _flip_body(sorted((self._folder / "kv").rglob("*.run")), self._bodies[info.key])


class TestObjects(KeepingContract):
    @pytest.fixture
    def keeper(self, tmp_path: Path) -> Iterator[Keeper]:
        keeper = InObjects(tmp_path)
        yield keeper
        keeper.store.close()
