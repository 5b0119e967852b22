"""The verbs of `p2pkv sim` about failure detection under loss, stalls, freezes and many crashes."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from p2pkv.cli.output import rows_output_option
from p2pkv.sim.options import fail_run, nodes_option, plot_option, print_rows, seed_option

jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, help="Runs at a time; changes no figure."
)


def threshold(nodes: int, seed: int, runs: int, jobs: int, output: str, plot: Path | None) -> None:
    """Run the threshold experiment and print it; called by `lifeguard --experiment threshold`."""
    from p2pkv.sim.threshold import STALL_S, SUSPICION_MULT, Stall, run_threshold, stalls

    todo = stalls(nodes, seed, runs)
    with click.progressbar(length=len(todo), label="runs", file=sys.stderr) as bar:

        def progress(_: Stall) -> None:
            bar.update(1)

        results = run_threshold(todo, jobs=jobs, progress=progress)
    options = {"nodes": nodes, "seed": seed, "runs": runs, "suspicion_mult": SUSPICION_MULT, "stall_s": STALL_S}
    rows = [asdict(result) for result in results]
    print_rows("lifeguard threshold", options, rows, output=output, name="variants")
    command = f"p2pkv sim lifeguard --experiment threshold --nodes {nodes} --seed {seed} --runs {runs}"
    if plot is not None:
        from p2pkv.sim.figures_detection import threshold_figure
        from p2pkv.sim.plots import write_figure

        write_figure(threshold_figure(results, command), plot)
    missed = [f"{result.variant} missed {result.missed} stalled members" for result in results if result.missed]
    if missed:
        fail_run(missed, command)


@click.command()
@nodes_option(8, 200)
@seed_option
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of everything sent that is lost; streams send it again.",
)
@click.option(
    "--egress",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of what the lossy members send that is lost besides.",
)
@click.option("--lossy", type=click.IntRange(1), default=2, show_default=True, help="Members that `--egress` is about.")
@click.option(
    "--duration", type=click.FloatRange(61), default=300.0, show_default=True, help="Simulated seconds of loss."
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    help="Only this one of swim, lifeguard and observers, each also as `..._datagrams`. [default: all six]",
)
@jobs_option
@plot_option
@rows_output_option
def loss(
    nodes: int,
    seed: int,
    loss: float,
    egress: float,
    lossy: int,
    duration: float,
    protocols: tuple[str, ...],
    jobs: int,
    output: str,
    plot: Path | None,
) -> None:
    """Lose datagrams, everywhere or at a few members, and count the dead verdicts on members that run.

    One healthy member is killed a minute before the end.

    Exit codes: 0 every protocol noticed that real crash, 1 one did not; then standard error has the command that
    replays it.
    """
    from p2pkv.sim.loss import PROTOCOLS, LossOptions, run_protocols

    unknown = set(protocols) - set(PROTOCOLS)
    if unknown:
        raise click.BadParameter(f"{min(unknown)!r} is not one of {', '.join(PROTOCOLS)}", param_hint="--protocol")
    runs = [
        LossOptions(protocol=name, nodes=nodes, seed=seed, loss=loss, egress=egress, lossy=lossy, duration_s=duration)
        for name in protocols or PROTOCOLS
    ]
    results = run_protocols(runs, jobs=jobs)
    options = {"nodes": nodes, "seed": seed, "loss": loss, "egress": egress, "lossy": lossy, "duration_s": duration}
    print_rows("loss", options, [asdict(result) for result in results], output=output, name="protocols")
    command = (
        f"p2pkv sim loss --nodes {nodes} --seed {seed} --loss {loss:g} --egress {egress:g} --lossy {lossy} "
        f"--duration {duration:g}"
    )
    if plot is not None:
        from p2pkv.sim.figures_detection import loss_figure
        from p2pkv.sim.plots import write_figure

        write_figure(loss_figure(results, command), plot)
    missed = [f"{result.protocol} missed the crash" for result in results if result.crash_first_s is None]
    if missed:
        fail_run(missed, command)


@click.command()
@nodes_option(3, 1000)
@seed_option
@click.option("--crashes", type=click.IntRange(1), default=50, show_default=True, help="Members killed at one moment.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of everything sent that is lost; streams send it again.",
)
@rows_output_option
def crashes(nodes: int, seed: int, crashes: int, loss: float, output: str) -> None:
    """Kill many members at one moment, and measure how soon the first and the last of the others notice each.

    Exit codes: 0 everybody noticed every crash, 1 otherwise; then standard error has the command that replays it.
    """
    from p2pkv.sim.crashes import run_crashes

    result = run_crashes(nodes=nodes, crashes=crashes, seed=seed, loss=loss)
    options = {"nodes": nodes, "seed": seed, "loss": loss}
    print_rows("crashes", options, [asdict(result)], output=output)
    if result.missed:
        command = f"p2pkv sim crashes --nodes {nodes} --seed {seed} --crashes {crashes} --loss {loss:g}"
        fail_run([f"{result.missed} crashes were not noticed by everybody"], command)


@click.command()
@nodes_option(16, 64, 1000)
@seed_option
@rows_output_option
def freeze(nodes: int, seed: int, output: str) -> None:
    """Freeze whole processes for 2 to 64 s, let them go on, and count verdicts on members that were not frozen.

    Exit codes: 0 there were none, and everybody was back in the end; 1 otherwise.
    """
    from p2pkv.sim.freeze import freezes, problems_of, run_freeze

    results = [
        run_freeze(nodes=nodes, seed=seed, frozen=frozen, frozen_s=frozen_s) for frozen, frozen_s in freezes(nodes)
    ]
    rows = [asdict(result) for result in results]
    print_rows("freeze", {"nodes": nodes, "seed": seed}, rows, output=output, name="runs")
    problems = problems_of(results)
    if problems:
        fail_run(problems, f"p2pkv sim freeze --nodes {nodes} --seed {seed}")
