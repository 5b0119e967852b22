"""`p2pkv sim churn` and `p2pkv sim partition`."""

from dataclasses import asdict
from pathlib import Path

import click

from p2pkv.cli.output import rows_output_option
from p2pkv.sim.options import fail_run, nodes_option, plot_option, print_rows, seed_option


@click.command()
@nodes_option(8, 32, 1000)
@seed_option
@click.option(
    "--minutes",
    type=click.FloatRange(0.5, 600),
    default=5.0,
    show_default=True,
    help="How long nodes come and go, at each rate.",
)
@plot_option
@rows_output_option
def churn(nodes: int, seed: int, minutes: float, plot: Path | None, output: str) -> None:
    """Have nodes crash, leave and come back at ever higher rates, and measure what the others make of it.

    Exit codes: 0 at each rate all agreed in the end and nobody that ran was held for dead, 1 otherwise.
    """
    from p2pkv.sim.figures import churn_figure
    from p2pkv.sim.plots import write_figure
    from p2pkv.sim.turnover import run_turnovers

    command = f"p2pkv sim churn --nodes {nodes} --seed {seed} --minutes {minutes:g}"
    rows = run_turnovers(nodes=nodes, seed=seed, minutes=minutes)
    options = {"nodes": nodes, "seed": seed, "minutes": minutes}
    shown = [column for column in asdict(rows[0]) if column not in {"trace_hash", "detection_p99_s", "return_p99_s"}]
    print_rows("churn", options, [asdict(row) for row in rows], output=output, columns=shown)
    if plot is not None:
        write_figure(churn_figure(rows, nodes=nodes, note=command), plot)
    problems = [f"at {row.per_minute:g} a minute not all agreed" for row in rows if row.settled_after_s is None]
    problems += [
        f"at {row.per_minute:g} a minute {row.false_deaths} running members were held for dead"
        for row in rows
        if row.false_deaths
    ]
    if problems:
        fail_run(problems, command)


@click.command()
@nodes_option(8, 32, 1000)
@seed_option
@click.option(
    "--share",
    type=click.FloatRange(0.01, 0.5),
    default=0.5,
    show_default=True,
    help="Share of the nodes on one side of the cut.",
)
@plot_option
@rows_output_option
def partition(nodes: int, seed: int, share: float, plot: Path | None, output: str) -> None:
    """Cut a mesh in two for ever longer, and measure how the sides lose each other and find each other again.

    Exit codes: 0 after each cut the mesh was one again and nobody died within a side, 1 otherwise.
    """
    from p2pkv.sim.figures import partition_figure
    from p2pkv.sim.plots import write_figure
    from p2pkv.sim.splits import HEAL_MAX_S, run_splits

    command = f"p2pkv sim partition --nodes {nodes} --seed {seed} --share {share:g}"
    splits = run_splits(nodes=nodes, seed=seed, share=share)
    rows = [asdict(split.row) for split in splits]
    options = {"nodes": nodes, "seed": seed, "share": share}
    print_rows("partition", options, rows, output=output, columns=[one for one in rows[0] if one != "trace_hash"])
    if plot is not None:
        write_figure(partition_figure(splits, nodes=nodes, note=command), plot)
    problems = []
    for split in splits:
        row = split.row
        if row.heal_s is None:
            problems.append(f"cut for {row.lasts_s:g} s, the mesh was not one again after {HEAL_MAX_S:g} s")
        if row.deaths_within:
            problems.append(f"cut for {row.lasts_s:g} s, {row.deaths_within} members died on their own side")
    if problems:
        fail_run(problems, command)
