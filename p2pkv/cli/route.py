"""`p2pkv route`: where a prompt would best be computed."""

from pathlib import Path

import click

from p2pkv.cli.chain import chain_of, chain_options
from p2pkv.cli.output import output_option, print_json, print_table, socket_option


@click.command(short_help="Show which nodes have how much of a chain, and when the first token could be there.")
@chain_options
@click.option("--limit", type=click.IntRange(1, 256), default=16, show_default=True, help="Nodes to show.")
@socket_option
@output_option
def route(
    keys: tuple[bytes, ...],
    chain_file: Path | None,
    block_bytes: int,
    prefill_block_ms: float,
    limit: int,
    socket: Path | None,
    output: str,
) -> None:
    """Show where the prompt of the chain KEYS would best be computed, the best node first.

    For each node: what it has of the chain, what it would fetch, what is left to compute, and when its first token could be there
    by the figures of this node. What waits in front of an engine is not in it. Nobody is asked.
    """
    import msgspec

    from p2pkv.client import Client

    chain = chain_of(keys, chain_file, verb="route")
    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.score(chain, block_bytes=block_bytes, prefill_block_s=prefill_block_ms / 1000, limit=limit)
    if output == "json":
        print_json({"blocks": reply.blocks, "seats": msgspec.to_builtins(reply.seats)})
        return
    print_table(
        f"where {reply.blocks} blocks would best be computed",
        ("node", "has", "tier", "fetches", "computes", "first token", "load"),
        [
            (
                seat.name,
                seat.blocks,
                seat.tier or "-",
                seat.fetch_blocks,
                seat.compute_blocks,
                "not known" if seat.first_token_ms is None else f"{seat.first_token_ms:.1f} ms",
                f"{seat.load} %",
            )
            for seat in reply.seats
        ],
    )
