"""`p2pkv sim rest|heal|storm|anchors`: what a large mesh costs, and how it comes together."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from p2pkv.cli.output import FAILED, print_csv, print_json, print_table, rows_output_option

seed_option = click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance in the run."
)
loss_option = click.option(
    "--loss",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of datagrams that vanish.",
)
datagram_overhead_option = click.option(
    "--datagram-overhead",
    type=click.IntRange(0, 1000),
    default=60,
    show_default=True,
    help="Bytes that sealing adds to each datagram, counted on top.",
)
stream_overhead_option = click.option(
    "--stream-overhead",
    type=click.IntRange(0, 1000),
    default=30,
    show_default=True,
    help="Bytes that an encrypted stream adds to each message, counted on top.",
)


@click.command()
@click.option("--nodes", type=click.IntRange(2, 5000), default=128, show_default=True, help="Members of the mesh.")
@seed_option
@loss_option
@click.option("--dead", type=click.IntRange(0), default=0, show_default=True, help="Members killed early on.")
@click.option(
    "--duration", type=click.FloatRange(1), default=360.0, show_default=True, help="Simulated seconds measured."
)
@datagram_overhead_option
@stream_overhead_option
@rows_output_option
def rest(**arguments: Any) -> None:
    """Measure what each member sends while nothing happens, comparing lists and encryption included.

    Exit codes: 0 all agreed at the end, 1 some did not; then standard error has the command that replays the run.
    """
    from dataclasses import asdict

    from p2pkv.sim.overheads import Overheads
    from p2pkv.sim.rest import RestOptions, run_rest

    overheads = Overheads(arguments.pop("datagram_overhead"), arguments.pop("stream_overhead"))
    output, duration_s = arguments.pop("output"), arguments.pop("duration")
    options = RestOptions(**arguments, duration_s=duration_s, overheads=overheads)
    result = run_rest(options)
    _report("rest", asdict(options), asdict(result), output)
    _judge(result.problems, options.command())


@click.command()
@click.option("--nodes", type=click.IntRange(2, 5000), default=200, show_default=True, help="Members of the mesh.")
@seed_option
@loss_option
@click.option(
    "--island",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Members cut off together with everybody's seed. 0: half of all.",
)
@click.option("--apart", type=click.FloatRange(1), default=90.0, show_default=True, help="Seconds until the repair.")
@click.option(
    "--reap",
    type=click.FloatRange(1),
    default=3600.0,
    show_default=True,
    help="`mesh.reap_s`. Shorter than `--apart`: the sides have dropped each other from their lists.",
)
@click.option("--dead", type=click.IntRange(0), default=0, show_default=True, help="Members killed before the cut.")
@click.option("--one-way", is_flag=True, help="Only what the island sends is lost.")
@datagram_overhead_option
@stream_overhead_option
@rows_output_option
def heal(**arguments: Any) -> None:
    """Cut a mesh in two until both sides have given each other up, mend it, and measure until it is one again.

    Exit codes: 0 it healed, 1 it did not; then standard error has the command that replays the run.
    """
    from dataclasses import asdict

    from p2pkv.sim.heal import HealOptions, run_heal
    from p2pkv.sim.overheads import Overheads

    overheads = Overheads(arguments.pop("datagram_overhead"), arguments.pop("stream_overhead"))
    output, apart_s, reap_s = arguments.pop("output"), arguments.pop("apart"), arguments.pop("reap")
    options = HealOptions(**arguments, apart_s=apart_s, reap_s=reap_s, overheads=overheads)
    result = run_heal(options)
    _report("heal", asdict(options), asdict(result), output)
    _judge(result.problems, options.command())


@click.command()
@click.option("--nodes", type=click.IntRange(2, 5000), default=500, show_default=True, help="Nodes that join.")
@seed_option
@loss_option
@click.option(
    "--within", type=click.FloatRange(0), default=10.0, show_default=True, help="Seconds in which all of them start."
)
@datagram_overhead_option
@stream_overhead_option
@rows_output_option
def storm(**arguments: Any) -> None:
    """Have many nodes join through one within seconds, and measure until everybody knows everybody.

    Exit codes: 0 they became one mesh, 1 they did not; then standard error has the command that replays the run.
    """
    from dataclasses import asdict

    from p2pkv.sim.overheads import Overheads
    from p2pkv.sim.storm import StormOptions, run_storm

    overheads = Overheads(arguments.pop("datagram_overhead"), arguments.pop("stream_overhead"))
    output, within_s = arguments.pop("output"), arguments.pop("within")
    options = StormOptions(**arguments, within_s=within_s, overheads=overheads)
    result = run_storm(options)
    _report("storm", asdict(options), asdict(result), output)
    _judge(result.problems, options.command())


@click.command()
@seed_option
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Runs of each figure.")
@rows_output_option
def anchors(seed: int, runs: int, output: str) -> None:
    """Measure the figures that chitchat's tests demand of chitchat, on this protocol.

    Exit codes: 0 all are held, 1 some are not.
    """
    from dataclasses import asdict

    from p2pkv.sim.anchors import run_anchors

    command = f"p2pkv sim anchors --seed {seed} --runs {runs}"
    rows = [asdict(anchor) for anchor in run_anchors(seed=seed, runs=runs)]
    if output == "json":
        print_json({"scenario": "anchors", "options": {"seed": seed, "runs": runs}, "anchors": rows})
    elif output == "csv":
        print_csv(list(rows[0]), [list(row.values()) for row in rows])
    else:
        print_table(f"anchors: {runs} runs of each", list(rows[0]), [list(row.values()) for row in rows])
    _judge([f"{row['figure']}, {row['nodes']} nodes: {row['median']}" for row in rows if not row["held"]], command)


def _report(scenario: str, options: Mapping[str, object], result: Mapping[str, object], output: str) -> None:
    if output == "json":
        print_json({"scenario": scenario, "options": options, **result})
        return
    rows: Sequence[tuple[str, object]] = [item for item in result.items() if item[1] != []]
    if output == "csv":
        print_csv([name for name, _ in rows], [[value for _, value in rows]])
    else:
        shown = [(name, "never" if value is None else value) for name, value in rows]
        print_table(f"{scenario}: {result['nodes']} nodes", ("measure", "value"), shown)


def _judge(problems: Sequence[str], command: str) -> None:
    """Fail where something went wrong, and say how to see it again."""
    if not problems:
        return
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    click.echo(f"replay with: {command}", err=True)
    sys.exit(FAILED)
