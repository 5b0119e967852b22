"""`p2pkv sim`: run a scenario in the simulator and report; a run that went wrong says how to see it again."""

import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from p2pkv.cli.output import FAILED, print_csv, print_json, print_table, rows_output_option
from p2pkv.errors import P2pkvError
from p2pkv.sim.cli_detection import crashes, freeze, jobs_option, loss, threshold
from p2pkv.sim.faults_cli import churn, partition
from p2pkv.sim.mesh_cli import anchors, heal, rest, storm
from p2pkv.sim.options import fail_run, nodes_option, plot_option, print_rows, seed_option
from p2pkv.sim.plots import write_figure
from p2pkv.sim.replay_cli import cache, replay, ttft
from p2pkv.sim.run_cli import overload, pace, run, scenarios

SUMMARIES_COLUMNS: Final = (
    *("period_s", "hits_of_oracle", "questions_per_lookup", "fewer_questions", "wasted_questions"),
    *("delta_bytes_s", "bytes_per_pair", "join_p50_s"),
)
"""What fits a terminal; the other outputs have all columns."""


class _Replayed(click.Group):
    """Has a run that breaks say how to have it again: its options and its seed are all there is to it."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.meta["p2pkv.sim.arguments"] = list(args)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (P2pkvError, OSError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:  # a broken invariant of ours: the traceback says which, the seed says how to get there again
            click.echo(f"replay with: p2pkv sim {shlex.join(ctx.meta['p2pkv.sim.arguments'])}", err=True)
            raise


@click.group(cls=_Replayed, short_help="Run many simulated nodes on a virtual clock.")
def sim() -> None:
    """Run many real nodes in one process on a virtual clock and a faulty network, replayed from a seed."""


for _command in (
    *(anchors, cache, churn, crashes, freeze, heal, loss, overload, pace, partition, replay, ttft),
    *(rest, run, scenarios, storm),
):
    sim.add_command(_command)


@sim.command()
@click.option("--nodes", type=click.IntRange(3, 5000), default=50, show_default=True, help="How many nodes meet.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance in the run.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of datagrams that vanish.",
)
@click.option(
    "--duration",
    type=click.FloatRange(30),
    default=60.0,
    show_default=True,
    help="Simulated seconds; one node is killed after a third of them.",
)
@plot_option
@rows_output_option
def members(nodes: int, seed: int, loss: float, duration: float, plot: Path | None, output: str) -> None:
    """Have nodes meet through the first, kill one, and measure how long the others take to see either.

    Exit codes: 0 all agreed at the end, 1 some did not; then standard error has the command that replays the run.
    """
    from dataclasses import asdict

    from p2pkv.sim.figures import Timeline, members_figure
    from p2pkv.sim.members import MembersOptions, run_members
    from p2pkv.sim.plots import write_figure

    options = MembersOptions(nodes=nodes, seed=seed, loss=loss, duration_s=duration)
    timeline = Timeline() if plot is not None else None
    result = run_members(options, also=timeline)
    if output == "json":
        print_json({"scenario": "members", "options": asdict(options), **asdict(result)})
    elif output == "csv":
        print_csv(list(asdict(result)), [[*{**asdict(result), "problems": "; ".join(result.problems)}.values()]])
    else:
        rows = [(name, "never" if value is None else value) for name, value in asdict(result).items()]
        print_table(
            f"members: {nodes} nodes, {duration:g} s", ("measure", "value"), [row for row in rows if row[1] != []]
        )
    if plot is not None and timeline is not None:
        write_figure(members_figure(options, result, timeline), plot)
    if result.problems:
        for problem in result.problems:
            click.echo(f"problem: {problem}", err=True)
        click.echo(f"replay with: {options.command()}", err=True)
        sys.exit(FAILED)


@sim.command()
@click.option(
    "--experiment",
    type=click.Choice(["interval", "threshold"]),
    default="interval",
    show_default=True,
    help="Members that stall again and again, and mistakes about the others; or once, and how soon that is noticed.",
)
@click.option(
    "--nodes", type=click.IntRange(16, 1000), default=None, help="Members of the mesh. [default: 32; threshold: 128]"
)
@seed_option
@click.option(
    "--runs", type=click.IntRange(1, 1000), default=1, show_default=True, help="Of threshold: seeds per cell."
)
@jobs_option
@plot_option
@rows_output_option
def lifeguard(
    experiment: str, nodes: int | None, seed: int, runs: int, jobs: int, output: str, plot: Path | None
) -> None:
    """Compare plain SWIM with Lifeguard and with confirmation by observers, where some members are slow.

    `interval` runs a grid of slow members, durations and intervals for each of six variants, 216 runs in all: minutes.
    `threshold` stalls up to a quarter of the members once. Progress goes to standard error.

    Exit codes: 0 plain SWIM made mistakes to compare with and every variant noticed every crash, 1 otherwise.
    """
    from dataclasses import asdict

    from p2pkv.sim.figures import lifeguard_figure
    from p2pkv.sim.lifeguard import NODES, Cell, grid, run_lifeguard
    from p2pkv.sim.plots import write_figure

    if experiment == "threshold":
        from p2pkv.sim.threshold import NODES as THRESHOLD_NODES

        threshold(nodes or THRESHOLD_NODES, seed, runs, jobs, output, plot)
        return
    nodes = nodes or NODES
    cells = grid(nodes, seed)
    with click.progressbar(length=len(cells), label="runs", file=sys.stderr) as bar:

        def progress(_: Cell) -> None:
            bar.update(1)

        results = run_lifeguard(cells, jobs=jobs, progress=progress)
    rows = [asdict(result) for result in results]
    if output == "json":
        print_json({"scenario": "lifeguard", "nodes": nodes, "seed": seed, "cells": len(cells), "variants": rows})
    elif output == "csv":
        print_csv(list(rows[0]), [list(row.values()) for row in rows])
    else:
        shown = ("variant", "raised_fp", "raised_fp_ratio", "raised_any_ratio", "message_ratio", "byte_ratio")
        columns = (*shown, "crash_detection_p50_s")
        print_table(f"lifeguard: {nodes} nodes", columns, [[row[column] for column in columns] for row in rows])
    command = f"p2pkv sim lifeguard --nodes {nodes} --seed {seed}"
    if plot is not None:
        write_figure(lifeguard_figure(results, nodes=nodes, note=command), plot)
    if not results[0].raised_fp or any(result.crashes_detected < result.crashes for result in results):
        click.echo("problem: plain SWIM made no mistake, or a variant missed a crash: nothing is shown", err=True)
        click.echo(f"replay with: {command}", err=True)
        sys.exit(FAILED)


@sim.command()
@click.option("--nodes", type=click.IntRange(3, 5000), default=32, show_default=True, help="Members of the mesh.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the first run; each adds one.")
@click.option("--runs", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Crashes, one in each.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of datagrams that vanish.",
)
@jobs_option
@plot_option
@rows_output_option
def detection(nodes: int, seed: int, runs: int, loss: float, jobs: int, plot: Path | None, output: str) -> None:
    """Kill one member in each of many runs, and measure how soon the others suspect it, and hold it for dead.

    Exit codes: 0 everybody noticed every crash, 1 otherwise; then standard error has the command that replays one.
    """
    from dataclasses import asdict

    from p2pkv.sim.detection import run_detections, sum_up
    from p2pkv.sim.figures import detection_figure
    from p2pkv.sim.plots import write_figure

    found = run_detections(nodes=nodes, seed=seed, runs=runs, loss=loss, jobs=jobs)
    row = asdict(sum_up(found))
    if output == "json":
        options = {"nodes": nodes, "seed": seed, "runs": runs, "loss": loss}
        print_json({"scenario": "detection", "options": options, **row})
    elif output == "csv":
        print_csv(list(row), [list(row.values())])
    else:
        print_table(f"detection: {nodes} nodes, {runs} crashes", ("measure", "value"), list(row.items()))
    if plot is not None:
        command = f"p2pkv sim detection --nodes {nodes} --seed {seed} --runs {runs} --loss {loss:g}"
        write_figure(detection_figure(found, nodes=nodes, note=command), plot)
    for place, one in enumerate(found):
        if one.last_s is None:
            click.echo("problem: somebody did not notice the crash", err=True)
            again = f"--nodes {nodes} --seed {seed + place} --runs 1 --loss {loss:g}"
            click.echo(f"replay with: p2pkv sim detection {again}", err=True)
            sys.exit(FAILED)


@sim.command()
@nodes_option(3, 32, 1000)
@seed_option
@click.option("--duration", type=click.FloatRange(15), default=60.0, show_default=True, help="Simulated seconds.")
@click.option(
    "--rate", type=click.FloatRange(0.01, 100), default=1.0, show_default=True, help="Requests a second and node."
)
@click.option("--blocks", type=click.IntRange(256), default=1024, show_default=True, help="Blocks each tier holds.")
@click.option(
    "--period",
    "periods",
    type=click.FloatRange(0.05, 3600),
    multiple=True,
    default=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    show_default=True,
    help="A value of summary.period_s to run with; may be given several times.",
)
@click.option("--joins", type=click.IntRange(0, 100), default=5, show_default=True, help="Nodes that join meanwhile.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of datagrams that vanish.",
)
@click.option("--budget", type=click.IntRange(1024), default=None, help="summary.budget_bytes_s, if not the default.")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False),
    default=None,
    help="Requests from a recorded trace: a line of JSON each, with timestamp and hash_ids or hash_runs; .xz is unpacked.",
)
@plot_option
@rows_output_option
def summaries(plot: Path | None, output: str, periods: tuple[float, ...], budget: int | None, **options: Any) -> None:
    """Measure what summaries find and cost: hits against an oracle, wasted questions, bytes, and a newcomer's first hit.

    Makes one run for each period, with conversations whose turns go to any node, or with a trace. Progress goes to
    standard error.

    Exit codes: 0 all went well, 1 a checker found something; then standard error has the command that replays it.
    """
    from dataclasses import asdict

    from p2pkv.sim.summaries import SummariesOptions, figure_of, run_summaries

    asked = SummariesOptions(
        duration_s=options.pop("duration"),
        periods_s=periods,
        budget_bytes_s=budget or 0,
        trace=options.pop("trace") or "",
        **options,
    )
    with click.progressbar(periods, label="runs", file=sys.stderr) as bar:
        rows = [run_summaries(asked, period_s) for period_s in bar]
    print_rows("summaries", asdict(asked), [asdict(row) for row in rows], output=output, columns=SUMMARIES_COLUMNS)
    if plot is not None:
        write_figure(figure_of(asked, rows), plot)
    problems = [problem for row in rows for problem in row.problems]
    if problems:
        fail_run(problems, asked.command())
