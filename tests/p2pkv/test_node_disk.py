"""A node with a disk: what is written and read when, for whom, and what becomes of it when the disk fails."""

import contextlib
from collections.abc import Iterable
from random import Random

import pytest

from p2pkv.acquires import FROM_DISK, Acquired
from p2pkv.blocks import BlockInfo, BlockKey, join_keys
from p2pkv.config import Config, DiskConfig, HostConfig
from p2pkv.demotions import AHEAD, WriteToDisk
from p2pkv.disk_moves import CloseDisk, books_of
from p2pkv.effects import Note, SendStream
from p2pkv.errors import TierFull
from p2pkv.ledger import Place
from p2pkv.node import Effect, Node
from p2pkv.planner import Cost
from p2pkv.promotions import AT_ONCE, ReadFromDisk
from p2pkv.slots import PAGE_BYTES, Slot
from p2pkv.transport.wire import LeaseGrant, LeaseRequest, MemberRecord, PushPull, bit_positions

HOST_BLOCKS = 8
SLAB = 16 * PAGE_BYTES
DISK_SLABS = 64
IO_TIMEOUT_S = 2.0
RETRY_S = 10.0


def key(number: int) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big"))


CHAIN = [key(number) for number in range(6)]


def info(name: BlockKey) -> BlockInfo:
    return BlockInfo(name, bytes(32), PAGE_BYTES, PAGE_BYTES, name[:16])


def record(name: str) -> MemberRecord:
    return MemberRecord(id=name, boot=1, incarnation=0, state=0, name=name, address=f"{name}:1", offered_bytes=2**20)


class Bench:
    """One node and what it has asked of a disk that answers when it is told to."""

    def __init__(
        self, *, write: str = "through", blocks: Iterable[BlockKey] = (), host_blocks: int = HOST_BLOCKS
    ) -> None:
        self.now = 0.0
        config = Config(
            host=HostConfig(capacity_bytes=max(2**20, host_blocks * PAGE_BYTES), chunk_bytes=PAGE_BYTES),
            disk=DiskConfig(path="somewhere", write=write, io_timeout_s=IO_TIMEOUT_S, retry_s=RETRY_S),  # type: ignore[arg-type]
        )
        self.node = Node(config, record("me"), Random(1))
        self.room = config.host.capacity_bytes // PAGE_BYTES
        self.reads: dict[int, ReadFromDisk] = {}
        self.writes: dict[int, WriteToDisk] = {}
        self.acquired: dict[int, Acquired] = {}
        self.grants: list[LeaseGrant] = []
        self.closed: list[str] = []
        self.notes: list[dict[str, object]] = []
        self.come_up(blocks)

    def come_up(self, blocks: Iterable[BlockKey] = ()) -> None:
        placed = [(info(name), Slot(2 * PAGE_BYTES * place, 2 * PAGE_BYTES)) for place, name in enumerate(blocks)]
        books = books_of(placed, capacity_bytes=DISK_SLABS * SLAB, slab_bytes=SLAB)
        places: dict[BlockKey, Place] = {one.key: (None, None) for one, _ in placed}
        self.take(self.node.on_disk_ready(books, places, self.now))
        self.tick()

    def take(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case ReadFromDisk():
                    self.reads[effect.move] = effect
                case WriteToDisk():
                    self.writes[effect.move] = effect
                case CloseDisk(reason=reason):
                    self.closed.append(reason)
                case Acquired():
                    self.acquired[effect.acquire] = effect
                case SendStream(message=LeaseGrant() as grant):
                    self.grants.append(grant)
                case Note(event="disk tier"):
                    self.notes.append(dict(effect.facts))
                case _:
                    pass

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.take(self.node.on_time(self.now))
        while self.node.disk._review:  # as the loop does, which comes again at once
            self.take(self.node.on_time(self.now))

    def store(self, *names: BlockKey) -> None:
        for name in names:
            reservation = self.node.reserve(info(name), self.now)
            if reservation is not None:
                self.node.commit(reservation, self.now)
        self.tick()

    def write_all(self) -> None:
        while self.writes:
            for move in tuple(self.writes):
                del self.writes[move]
                self.take(self.node.on_disk_written(move, "", self.now))
        self.tick()

    def read_all(self, verdict: str = "ok") -> list[BlockKey]:
        done = []
        while self.reads:
            for move in tuple(self.reads):
                done.append(self.reads.pop(move).held.info.key)
                self.take(self.node.on_disk_read(move, verdict, self.now))
        self.tick()
        return done

    def fill_memory(self) -> None:
        """Store so much else that nothing of before is in memory, and let it all go to the disk."""
        self.store(*(key(10_000 + number) for number in range(self.room)))
        self.writes = {move: one for move, one in self.writes.items() if one.held.info.key not in CHAIN}
        for move in tuple(self.writes):
            del self.writes[move]
            self.take(self.node.on_disk_written(move, "EIO" * 0, self.now))

    def acquire(self, keys: list[BlockKey], *, within_s: float = 60.0) -> int:
        number, effects = self.node.acquire(keys, holder="engine", deadline=self.now + within_s, now=self.now)
        self.take(effects)
        return number

    def release(self, number: int) -> None:
        self.node.ledger.release(self.acquired[number].lease.id, holder="engine")

    def in_memory(self, *names: BlockKey) -> bool:
        return all(self.node.ledger.get(name) is not None for name in names)

    def check(self) -> None:
        """What is announced is what is somewhere to stay."""
        ledger, disk = self.node.ledger, self.node.disk
        held = {name for name in ledger.keys() if ledger.passing(name) is None}  # noqa: SIM118 - not a mapping
        if disk.books is not None:
            held |= set(disk.books.keys())
        assert self.node._announced._keys == held


# -- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_stored_is_written_through_at_once_and_is_there_when_memory_needs_the_room() -> None:
    bench = Bench()
    bench.store(*CHAIN)
    assert [one.held.info.key for one in bench.writes.values()] == CHAIN
    assert all(not bench.node.disk.holds(name) for name in CHAIN)
    bench.write_all()
    assert all(bench.node.disk.holds(name) for name in CHAIN)
    bench.check()
    bench.store(*CHAIN)
    assert not bench.writes, "once is enough"


def test_a_block_that_is_being_written_is_not_evicted_and_is_not_used_by_that() -> None:
    bench = Bench()
    bench.store(CHAIN[0])
    bench.store(*(key(100 + number) for number in range(2 * bench.room)))
    assert bench.in_memory(CHAIN[0])
    bench.write_all()
    bench.store(key(5000))
    assert not bench.in_memory(CHAIN[0]), "it is the oldest, and written to the disk it still is"
    bench.check()


def test_written_back_is_only_what_will_go_soon_and_before_it_goes() -> None:
    bench = Bench(write="back", host_blocks=2 * AHEAD)
    names = [key(number) for number in range(bench.room + 20)]
    bench.store(*names[:AHEAD])
    assert not bench.writes
    for name in names[AHEAD:]:
        bench.store(name)
        bench.write_all()
    assert all(bench.node.disk.holds(name) for name in names[:20])
    assert not bench.node.disk.holds(names[-1])
    assert bench.node.disk.statistics().demotions.lost == 0
    bench.check()


def test_of_what_a_daemon_inherits_in_memory_only_that_is_written_which_is_not_on_its_disk() -> None:
    bench = Bench(blocks=CHAIN[:4])
    bench.node.inherit([(info(name), Slot(i * PAGE_BYTES, PAGE_BYTES), (i, None)) for i, name in enumerate(CHAIN)])
    bench.tick()
    bench.tick()
    assert {one.held.info.key for one in bench.writes.values()} == set(CHAIN[4:])
    bench.write_all()
    bench.check()


def test_what_is_computed_sooner_than_read_is_not_written() -> None:
    bench = Bench()
    bench.node._plans.learn(Cost(PAGE_BYTES, 1e-9))
    bench.store(*CHAIN)
    assert not bench.writes
    assert bench.node.disk.statistics().demotions.cheap == 6
    bench.node._plans.learn(Cost(PAGE_BYTES, 10.0))
    bench.store(key(99))
    assert len(bench.writes) == 1


# -- reading ---------------------------------------------------------------------------------------------------------


def test_an_engine_gets_from_the_disk_what_memory_has_not_and_it_stays_at_the_second_use() -> None:
    bench = Bench(blocks=CHAIN)
    bench.check()
    assert bench.node.match(CHAIN).local == 0
    assert bench.node.match(CHAIN).reachable == 6
    bench.store(*(key(1000 + number) for number in range(bench.room)))
    number = bench.acquire(CHAIN)
    assert number not in bench.acquired
    assert bench.read_all() == CHAIN
    acquired = bench.acquired[number]
    assert [held.info.key for held in acquired.lease.blocks] == CHAIN
    assert acquired.sources == (FROM_DISK,) * 6
    assert bench.node.ledger.passing(CHAIN[0]) is not None
    bench.release(number)
    assert not bench.in_memory(CHAIN[0])
    bench.check()
    again = bench.acquire(CHAIN)
    bench.read_all()
    bench.release(again)
    assert bench.in_memory(*CHAIN)
    bench.write_all()
    bench.check()


def test_two_that_want_a_block_have_it_read_once() -> None:
    bench = Bench(blocks=CHAIN)
    first, second = bench.acquire(CHAIN), bench.acquire(CHAIN[:3])
    assert bench.read_all() == CHAIN
    assert len(bench.acquired[first].lease.blocks) == 6
    assert len(bench.acquired[second].lease.blocks) == 3


def test_a_long_chain_is_read_some_blocks_at_a_time() -> None:
    chain = [key(number) for number in range(50)]
    bench = Bench(blocks=chain)
    number = bench.acquire(chain)
    assert len(bench.reads) == AT_ONCE
    bench.read_all()
    assert len(bench.acquired[number].lease.blocks) == 50


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    first, second = [key(number) for number in range(30)], [key(100 + number) for number in range(30)]
    bench = Bench(blocks=[*first, *second])
    bench.acquire([*first], within_s=1.0)
    other = bench.acquire([first[20], *second], within_s=60.0)
    bench.tick(1.0)
    for move in tuple(bench.reads):
        bench.take(bench.node.on_disk_read(move, "ok", bench.now))
        del bench.reads[move]
    assert bench.node.disk.statistics().promotions.given_up == 30 - AT_ONCE - 1
    begun = {effect.held.info.key for effect in bench.reads.values()}
    assert begun <= {first[20], *second}
    bench.read_all()
    assert len(bench.acquired[other].lease.blocks) == 31


def test_a_block_that_is_not_what_it_was_ends_the_prefix_and_is_announced_no_more() -> None:
    bench = Bench(blocks=CHAIN)
    number = bench.acquire(CHAIN)
    for move, effect in sorted(bench.reads.items()):
        verdict = "corrupt" if effect.held.info.key == CHAIN[3] else "ok"
        bench.take(bench.node.on_disk_read(move, verdict, bench.now))
    bench.reads.clear()
    bench.tick()
    assert [held.info.key for held in bench.acquired[number].lease.blocks] == CHAIN[:3]
    assert not bench.node.disk.holds(CHAIN[3])
    bench.check()
    assert bench.node.disk.statistics().state == "serving"


def test_memory_without_room_ends_the_prefix() -> None:
    bench = Bench(blocks=CHAIN)
    names = [key(100 + number) for number in range(bench.room)]
    bench.store(*names)
    bench.write_all()
    bench.node.ledger.lease(names, holder="other", deadline=1000.0)
    number = bench.acquire(CHAIN)
    assert len(bench.acquired[number].lease.blocks) == 0


def test_an_engine_that_goes_away_leaves_nothing_pinned() -> None:
    bench = Bench(blocks=CHAIN)
    number = bench.acquire(CHAIN)
    bench.take(bench.node.cancel(number, bench.now))
    bench.read_all()
    assert number not in bench.acquired
    assert bench.node.ledger.statistics().pinned_blocks == 0
    bench.check()


# -- peers -----------------------------------------------------------------------------------------------------------


def ask(bench: Bench, keys: list[BlockKey], *, remaining_ms: int = 30_000) -> None:
    bench.take(bench.node.on_message("peer", PushPull(records=(record("peer"),), reply=False), bench.now))
    request = LeaseRequest(request=5, keys=join_keys(keys), remaining_ms=remaining_ms)
    bench.take(bench.node.on_message("peer", request, bench.now))


def test_a_peer_is_answered_when_what_it_asked_for_has_been_read() -> None:
    bench = Bench(blocks=CHAIN)
    ask(bench, CHAIN)
    assert not bench.grants
    bench.tick(0.1)
    bench.read_all()
    (grant,) = bench.grants
    assert list(bit_positions(grant.granted)) == [0, 1, 2, 3, 4, 5]
    assert grant.lease_ms <= 29_900


def test_a_peer_is_answered_in_time_whatever_the_disk_does() -> None:
    bench = Bench(blocks=CHAIN)
    bench.store(CHAIN[0])
    ask(bench, CHAIN, remaining_ms=1000)
    bench.tick(0.4)
    assert not bench.grants
    bench.tick(0.1)
    (grant,) = bench.grants
    assert list(bit_positions(grant.granted)) == [0]
    bench.read_all()
    assert len(bench.grants) == 1


# -- a disk that fails -------------------------------------------------------------------------------------------------


def test_a_disk_that_does_not_answer_is_left_and_the_engine_has_what_there_is_at_its_deadline() -> None:
    bench = Bench(blocks=CHAIN)
    bench.store(CHAIN[0])
    number = bench.acquire(CHAIN, within_s=0.5)
    bench.tick(0.5)
    assert [held.info.key for held in bench.acquired[number].lease.blocks] == CHAIN[:1]
    assert not bench.closed, "half a second is no reason yet"
    bench.tick(IO_TIMEOUT_S)
    assert bench.closed == ["no answer for 2 s"]
    assert bench.node.ledger.statistics().quarantined == 5
    assert bench.node.disk.statistics().state == "out of service"
    bench.check()
    more = bench.acquire(CHAIN)
    assert len(bench.acquired[more].lease.blocks) == 1, "nobody waits for it any more"
    for move in tuple(bench.reads):
        del bench.reads[move]
        bench.take(bench.node.on_disk_read(move, "ok", bench.now))
    assert bench.node.ledger.statistics().quarantined == 0
    assert bench.in_memory(CHAIN[0])
    assert not bench.in_memory(CHAIN[1]), "its place was given up"
    bench.come_up(CHAIN)
    again = bench.acquire(CHAIN)
    bench.read_all()
    assert len(bench.acquired[again].lease.blocks) == 6
    bench.check()


def test_a_write_that_does_not_end_is_noticed_too() -> None:
    bench = Bench()
    bench.store(*CHAIN)
    bench.tick(IO_TIMEOUT_S)
    assert bench.closed == ["no answer for 2 s"]
    assert bench.in_memory(*CHAIN)
    for move in tuple(bench.writes):
        del bench.writes[move]
        bench.take(bench.node.on_disk_written(move, "", bench.now))
    assert bench.node.ledger.statistics().pinned_blocks == 0
    bench.check()


@pytest.mark.parametrize("move", ["read", "write"])
def test_an_error_takes_the_disk_out_of_service_and_leaves_memory_alone(move: str) -> None:
    bench = Bench(blocks=CHAIN)
    bench.store(key(50))
    if move == "write":
        (write,) = bench.writes
        del bench.writes[write]
        bench.take(bench.node.on_disk_written(write, "EIO: Input/output error", bench.now))
    else:
        number = bench.acquire(CHAIN)
        read = min(bench.reads)
        del bench.reads[read]
        bench.take(bench.node.on_disk_read(read, "failed", bench.now, problem="EIO: Input/output error"))
        bench.read_all()
        assert number in bench.acquired
    bench.tick()
    assert bench.closed == ["EIO: Input/output error"]
    assert bench.notes[-1] == {"state": "out of service", "reason": "EIO: Input/output error", "blocks": 0}
    assert bench.in_memory(key(50))
    bench.check()
    assert bench.node.match([key(50)]).local == 1
    assert bench.node.match(CHAIN).reachable == 0


def test_a_full_disk_is_read_on_and_written_to_again_later() -> None:
    bench = Bench(blocks=CHAIN)
    bench.store(key(50))
    (write,) = bench.writes
    del bench.writes[write]
    bench.take(bench.node.on_disk_written(write, "ENOSPC: No space left on device", bench.now, full=True))
    assert bench.node.disk.statistics().state == "reading only"
    assert not bench.closed
    bench.store(key(51))
    assert not bench.writes
    number = bench.acquire(CHAIN)
    bench.read_all()
    assert len(bench.acquired[number].lease.blocks) == 6
    bench.tick(RETRY_S)
    assert bench.node.disk.statistics().state == "serving"
    assert key(51) in {one.held.info.key for one in bench.writes.values()}
    bench.check()


def test_a_disk_that_cannot_be_opened_says_so_once() -> None:
    bench = Bench()
    bench.take(bench.node.on_disk_failed("EIO: Input/output error", bench.now))
    bench.take(bench.node.on_disk_failed("EIO: Input/output error", bench.now))
    assert [note["state"] for note in bench.notes] == ["serving", "out of service"]


# -- anything at all ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["through", "back"])
@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_books_and_announcements_agree_and_nothing_stays_pinned(seed: int, write: str) -> None:
    random = Random(seed)
    bench = Bench(write=write, blocks=[key(number) for number in range(40)])
    held: list[int] = []
    for _ in range(250):
        some = random.randrange(400)
        match random.randrange(12):
            case 0 | 1 | 2:
                with contextlib.suppress(TierFull):
                    bench.store(*(key(some + number) for number in range(random.randrange(1, 9))))
            case 3 | 4:
                chain = [key(some + number) for number in range(random.randrange(1, 20))]
                held.append(bench.acquire(chain, within_s=random.choice([0.1, 1.0, 5.0])))
            case 5 | 6 if bench.reads:
                move = random.choice(tuple(bench.reads))
                del bench.reads[move]
                verdict = random.choice(["ok", "ok", "ok", "ok", "corrupt", "stale"])
                bench.take(bench.node.on_disk_read(move, verdict, bench.now))
            case 7 | 8 if bench.writes:
                move = random.choice(tuple(bench.writes))
                del bench.writes[move]
                full = random.random() < 0.1
                bench.take(bench.node.on_disk_written(move, "ENOSPC" * full, bench.now, full=full))
            case 9 if held:
                number = held.pop(random.randrange(len(held)))
                if number in bench.acquired:
                    bench.release(number)
                else:
                    bench.take(bench.node.cancel(number, bench.now))
            case 10:
                bench.tick(random.choice([0.01, 0.5, 3.0]))
            case 11:
                if bench.node.disk.books is None and not bench.reads and not bench.writes:
                    bench.come_up([key(random.randrange(400)) for _ in range(1)])
                elif random.random() < 0.1:
                    bench.take(bench.node.on_disk_failed("EIO", bench.now))
            case _:
                pass
        bench.tick()
        bench.check()
    settle(bench)


def settle(bench: Bench) -> None:
    """Let everything end, and see that nothing is left of it."""
    bench.read_all()
    bench.write_all()
    bench.tick(1000.0)
    bench.read_all()
    bench.write_all()
    figures = bench.node.ledger.statistics()
    assert (figures.pinned_blocks, figures.leases, figures.quarantined) == (0, 0, 0)
    assert figures.used_bytes == figures.blocks * PAGE_BYTES
    if bench.node.disk.books is not None:
        disk = bench.node.disk.books.statistics()
        assert (disk.pinned_blocks, disk.leases) == (0, 0)
        assert disk.used_bytes == disk.blocks * 2 * PAGE_BYTES
    bench.check()
