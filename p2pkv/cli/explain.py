"""`p2pkv explain`: why a chain would be fetched from whom, or not."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pkv.cli.chain import chain_of, chain_options
from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option

if TYPE_CHECKING:  # engines and `--help` must not wait for it
    from p2pkv.local_wire import PlanView


@click.command(short_help="Show why a chain would be fetched from whom, or recomputed.")
@chain_options
@socket_option
@output_option
def explain(
    keys: tuple[bytes, ...],
    chain_file: Path | None,
    block_bytes: int,
    prefill_block_ms: float,
    socket: Path | None,
    output: str,
) -> None:
    """Show what the plan for the chain KEYS would be now, what the last one was, and what each peer would cost.

    Nobody is asked and nothing is fetched. Times are what the plan expects. A plan is remembered by the last block of its
    chain, so that block alone shows what the last plan was.
    """
    import msgspec

    from p2pkv.client import Client

    chain = chain_of(keys, chain_file, verb="explain")
    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.explain(chain, block_bytes=block_bytes, prefill_block_s=prefill_block_ms / 1000)
    if output == "json":
        left_alone = [msgspec.to_builtins(one) for one in reply.left_alone]
        last = msgspec.to_builtins(reply.last) if reply.last is not None else None
        print_json(
            {
                **msgspec.to_builtins(reply.now),
                "left_alone": left_alone,
                "last": last,
                "object_store": reply.object_store,
            }
        )
        return
    if reply.last is not None:
        _print_plan(f"the last plan, {reply.last.age_s:.0f} s ago", reply.last)
    _print_plan("the plan now", reply.now)
    if reply.left_alone:
        rows = [(one.name, one.blocks, one.why) for one in reply.left_alone]
        print_table("left alone", ("peer", "blocks", "why"), rows)
    if reply.object_store:
        click.echo(f"object store: {reply.object_store}")


def _print_plan(title: str, view: "PlanView") -> None:
    rows: list[tuple[str, object]] = [
        ("decision", f"{view.decision}: {view.reason}"),
        (
            "blocks",
            f"{view.blocks} of {size_text(view.block_bytes)}, {view.local} here, {view.planned} when it is done",
        ),
    ]
    if view.recompute_ms is not None:
        total_ms = view.fetch_ms + view.compute_ms
        rows.append(
            ("by the plan", f"{total_ms:.2f} ms: {view.fetch_ms:.2f} to fetch, {view.compute_ms:.2f} to compute")
        )
        rows.append(("without it", f"{view.recompute_ms:.2f} ms to compute, {view.prefill_block_ms:g} a block"))
    else:
        rows.append(("to fetch", f"{view.fetch_ms:.2f} ms; what a block costs to compute is not known"))
    rows += [(f"blocks {run.start} to {run.stop - 1}", f"from {run.name}") for run in view.runs]
    if view.arrived is not None:
        rows.append(("came of it", f"{view.arrived} blocks here: {view.ended}"))
    print_table(title, ("", ""), rows)
    print_table(
        "peers",
        (
            "peer",
            "blocks",
            "wait ms",
            "block ms",
            "bandwidth",
            "round trip",
            "queued",
            "load",
            "near",
            "tier",
            "by",
            "",
        ),
        [
            (
                one.name,
                one.blocks,
                f"{one.wait_ms:.2f}",
                f"{one.block_ms:.3f}",
                f"{size_text(one.bandwidth_bytes_s)}/s",
                f"{one.round_trip_ms:.2f} ms",
                size_text(one.queued_bytes),
                f"{one.load} %",
                one.near,
                one.tier,
                one.transport,
                "" if one.trusted else "believed last",
            )
            for one in view.peers
        ],
    )
