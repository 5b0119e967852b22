"""`p2pkv sim run`, `scenarios` and `pace`: stories, one seed or very many, and what simulating takes."""

import sys
from dataclasses import asdict

import click

from p2pkv.cli.output import FAILED, rows_output_option
from p2pkv.sim.options import fail_run, nodes_option, print_rows, seed_option

EVERY = "all"


@click.command()
@nodes_option(2, 17, 200)
@seed_option
@click.option(
    "--factor",
    "factors",
    type=click.FloatRange(0.1, 100),
    multiple=True,
    default=(0.5, 1.0, 2.0, 5.0, 10.0),
    show_default=True,
    help="Offered load in units of what the owner can send; may be given several times.",
)
@click.option(
    "--patience", type=click.FloatRange(0.1, 60), default=2.0, show_default=True, help="Of each engine, seconds."
)
@click.option("--shedding/--no-shedding", default=True, help="Whether the owner refuses what it cannot send in time.")
@rows_output_option
def overload(
    nodes: int, seed: int, factors: tuple[float, ...], patience: float, output: str, *, shedding: bool
) -> None:
    """Ask one owner for more than it can send, and measure what of it arrives in time to be of use.

    Exit codes: 0 from twice the uplink on goodput stayed above 0.8 of its peak and nobody waited past its patience, 1
    otherwise; then standard error has the command that replays the run.
    """
    from p2pkv.sim.overload import OverloadOptions, problems, run_overload

    options = OverloadOptions(nodes=nodes, seed=seed, factors=factors, patience_s=patience, shedding=shedding)
    rows = run_overload(options)
    columns = (
        "factor",
        "acquires",
        "offered_bytes_s",
        "goodput_bytes_s",
        "whole",
        "nothing",
        "p50_ms",
        "p99_ms",
        "shed",
    )
    print_rows("overload", asdict(options), [asdict(row) for row in rows], output=output, columns=columns)
    found = problems(options, rows)
    if found:
        fail_run(found, options.command())


@click.command()
@click.argument("scenario")
@nodes_option(4, 16)
@seed_option
@click.option(
    "--runs", type=click.IntRange(1), default=1, show_default=True, help="Seeds, each one more than the last."
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time; changes no figure."
)
@rows_output_option
def run(scenario: str, nodes: int, seed: int, runs: int, jobs: int, output: str) -> None:
    """Run SCENARIO, or `all` of them, under checkers that look at every node each simulated second.

    `p2pkv sim scenarios` lists them. A run ends with the first thing that must not be. For every seed that failed
    standard error has what was wrong and the one command that replays it.

    Exit codes: 0 every run was well, 1 some were not.
    """
    from p2pkv.sim.scenarios import SCENARIOS
    from p2pkv.sim.story import Run
    from p2pkv.sim.sweep import sweep

    if scenario != EVERY and scenario not in SCENARIOS:
        raise click.BadParameter(f"{scenario!r} is none of {', '.join(SCENARIOS)}", param_hint="SCENARIO")
    failed: list[Run] = []
    last: list[Run] = []

    def told(one: Run) -> None:
        last[:] = [one]
        if one.problems:
            failed.append(one)
            for problem in one.problems:
                click.echo(f"problem: {one.scenario}, seed {one.seed}: {problem}", err=True)
            click.echo(f"replay with: {one.command()}", err=True)

    names = list(SCENARIOS) if scenario == EVERY else [scenario]
    options = {"nodes": nodes, "seed": seed, "runs": runs}
    rows = []
    for swept in sweep(names, nodes=nodes, seeds=range(seed, seed + runs), jobs=jobs, on_run=told):
        rows.append(asdict(swept))
        if len(names) > 1:
            click.echo(f"{swept.scenario}: {swept.runs} runs, {swept.failed} failed, {swept.wall_s:.1f} s", err=True)
    if runs == 1 and len(names) == 1:
        rows = [asdict(last[0])]
    shown = [column for column in rows[0] if column != "problems"]
    print_rows("run", options, rows, output=output, columns=shown)
    if failed:
        sys.exit(FAILED)


@click.command()
@rows_output_option
def scenarios(output: str) -> None:
    """List the scenarios, each with its story."""
    from p2pkv.sim.scenarios import SCENARIOS

    rows = [{"scenario": name, "story": " ".join((told.__doc__ or "").split())} for name, told in SCENARIOS.items()]
    print_rows("scenarios", {}, rows, output=output, name="scenarios")


@click.command()
@nodes_option(2, 1000, 10_000)
@seed_option
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 600),
    default=10.0,
    show_default=True,
    help="Simulated, after all have met.",
)
@rows_output_option
def pace(nodes: int, seed: int, minutes: float, output: str) -> None:
    """Measure how fast the simulator is, with nodes that meet and then have nothing to do.

    Exit codes: 0 all agreed in the end, 1 some did not.
    """
    from p2pkv.sim.options import fail_run
    from p2pkv.sim.pace import run_pace

    result = run_pace(nodes=nodes, seed=seed, minutes=minutes)
    row = {name: value for name, value in asdict(result).items() if name != "problems"}
    print_rows("pace", {"nodes": nodes, "seed": seed, "minutes": minutes}, [row], output=output)
    if result.problems:
        fail_run(result.problems, f"p2pkv sim pace --nodes {nodes} --seed {seed} --minutes {minutes:g}")
