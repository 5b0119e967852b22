"""What `p2pkv members` and `p2pkv status` show of a node's membership."""

from p2pkv.disk_moves import DiskStatistics
from p2pkv.hand_over import Handed
from p2pkv.local_wire import DuplicateView, HandedBlock, MemberView, SourceView
from p2pkv.mesh.loads import Load
from p2pkv.mesh.members import MemberState
from p2pkv.mesh.metadata import offered_by_tier, speaks_with_us, weights_epochs
from p2pkv.node import Node
from p2pkv.object_moves import ObjectStatistics
from p2pkv.transport.wire import MemberRecord


def member_views(node: Node, now: float) -> tuple[MemberView, ...]:
    """Return every member, this node first, then by name."""
    own, *_ = records = node.membership.members()
    views = [_member_view(node, record, own, now) for record in records]
    return tuple(sorted(views, key=lambda view: (not view.self, view.name, view.id)))


def _member_view(node: Node, record: MemberRecord, own: MemberRecord, now: float) -> MemberView:
    is_own = record.id == own.id
    load = Load(node.membership.own_load, now) if is_own else node.membership.load_of(record.id)
    return MemberView(
        id=record.id,
        name=record.name,
        address=record.address,
        state=MemberState(record.state).name.lower(),
        incarnation=record.incarnation,
        zone=record.zone,
        host_id=record.host_id,
        offered_bytes=record.offered_bytes,
        self=is_own,
        boot=record.boot,
        rack=record.rack,
        also_at=record.also_at,
        same_host=not is_own and record.host_id == own.host_id != "",
        offered=offered_by_tier(record),
        load=load.percent if load is not None else None,
        load_age_s=round(now - load.heard_at, 3) if load is not None else None,
        protocol_min=record.protocol_min,
        protocol_max=record.protocol_max,
        compatible=speaks_with_us(record),
        weights=weights_epochs(record),
    )


def disk_view(disk: DiskStatistics) -> dict[str, int | float | str]:
    """Return state and figures of the disk tier, nothing if there is none."""
    if disk.state == "off":
        return {}
    ledger = disk.ledger
    return {
        "state": disk.state,
        "reason": disk.reason,
        "capacity_bytes": ledger.capacity_bytes if ledger is not None else 0,
        "used_bytes": ledger.used_bytes if ledger is not None else 0,
        "blocks": ledger.blocks if ledger is not None else 0,
        "evictions": ledger.evictions if ledger is not None else 0,
        "written": disk.demotions.written,
        "write_ms": _mean_ms(disk.demotions.seconds, disk.demotions.written),
        "not_written": disk.demotions.failed,
        "lost": disk.demotions.lost,
        "cheaper_to_compute": disk.demotions.cheap,
        "waiting_writes": disk.waiting_writes,
        "read": disk.promotions.read,
        "read_ms": _mean_ms(disk.promotions.seconds, disk.promotions.read),
        "not_read": disk.promotions.failed,
        "given_up": disk.promotions.given_up,
        "waiting_reads": disk.waiting_reads,
    }


def object_view(objects: ObjectStatistics) -> dict[str, int | float | str]:
    """Return state and figures of the object store, nothing if there is none."""
    if objects.state == "off":
        return {}
    writes, reads = objects.writes, objects.reads
    return {
        "state": objects.state,
        "reason": objects.reason,
        "written": writes.stored_blocks,
        "runs_written": writes.stored,
        "run_write_ms": _mean_ms(writes.seconds, writes.stored),
        "runs_there_already": writes.there,
        "puts_failed": writes.failed,
        "runs_lost": writes.lost,
        "runs_cheaper_to_compute": writes.cheap,
        "blocks_of_unknown_place": writes.unknown_places,
        "waiting_writes": objects.waiting_writes,
        "read": reads.blocks,
        "runs_read": reads.runs,
        "run_read_ms": _mean_ms(reads.seconds, reads.runs),
        **{f"answers_{verdict}": count for verdict, count in sorted(reads.verdicts.items())},
        "not_worth_asking": objects.not_worth_asking,
        "not_asked_for_unknown_length": objects.unknown_lengths,
        "runs_shed": reads.shed,
        "runs_unwanted": reads.unwanted,
        "no_room_for": reads.unplaced_blocks,
        "waiting_reads": objects.waiting_reads,
        "wait_ms": round(objects.wait_s * 1000, 3),
        "read_mb_s": round(objects.read_bytes_s / 1e6, 1),
        "found_percent": round(objects.share * 100),
    }


def _mean_ms(seconds: float, count: int) -> float:
    return round(seconds / count * 1000, 3) if count else 0.0


def handed_view(handed: Handed, generation: int) -> HandedBlock:
    """Return what a successor is told of a block."""
    info, slot, (depth, parent) = handed.held.info, handed.held.slot, handed.place
    return HandedBlock(
        key=info.key,
        namespace=info.namespace,
        offset=slot.offset,
        length=info.length,
        segment_bytes=info.segment_bytes,
        generation=generation,
        digest=info.digest,
        depth=-1 if depth is None else depth,
        parent=parent or b"",
    )


def duplicate_views(node: Node, now: float) -> tuple[DuplicateView, ...]:
    """Return the other processes that have this node's id."""
    return tuple(
        DuplicateView(
            address=one.address,
            boot=one.boot,
            state=MemberState(one.state).name.lower(),
            heard_age_s=round(now - one.heard_at, 3),
        )
        for one in node.membership.duplicates()
    )


def source_views(node: Node, now: float) -> tuple[SourceView, ...]:
    """Return the entries of `node.join` that are looked up, with what became of it."""

    def age_s(at: float | None) -> float | None:
        return None if at is None else round(now - at, 3)

    return tuple(
        SourceView(state.source, state.addresses, age_s(state.resolved_at), age_s(state.failed_at), state.reason)
        for state in node.membership.sources()
    )
