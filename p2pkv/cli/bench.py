"""`p2pkv bench`: measure this program on this machine."""

import click

from p2pkv.cli.output import output_option, print_json, print_table


@click.group(short_help="Measure parts of this program on this machine.")
def bench() -> None:
    """Measure parts of this program on this machine, without a daemon."""


@bench.command()
@click.option("--peers", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="Peers with a summary.")
@click.option("--blocks", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Length of the chain.")
@click.option(
    "--keys", type=click.IntRange(1, 2**24), default=100_000, show_default=True, help="Keys in each peer's summary."
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides who holds what.")
@output_option
def lookup(peers: int, blocks: int, keys: int, seed: int, output: str) -> None:
    """Time the longest-prefix lookup of a chain among peers that hold prefixes of it, uniform in length.

    One peer holds all of it. The time is also given in units of 1,000 lookups in a dict of 100,000 keys, measured in
    turn with it.
    """
    from dataclasses import asdict

    from p2pkv.sim.lookups import LookupOptions, run_lookups

    options = LookupOptions(peers=peers, blocks=blocks, keys=keys, seed=seed)
    result = asdict(run_lookups(options))
    if output == "json":
        print_json({"benchmark": "lookup", "options": asdict(options), **result})
    else:
        rows = [(name, f"{value:.2f}" if isinstance(value, float) else value) for name, value in result.items()]
        print_table(f"lookup: {blocks} blocks among {peers} peers", ("measure", "value"), rows)
