"""`p2pkv sim replay` and `p2pkv sim cache`: recorded traces through caches."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from p2pkv.cli.output import FAILED, print_csv, print_json, print_table, rows_output_option
from p2pkv.eviction import ORDERS
from p2pkv.sim.geometry import DEFAULT
from p2pkv.sim.options import plot_option, print_rows
from p2pkv.sim.plots import write_figure

_TRACE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("trace", type=_TRACE)
@click.option("--one-cache", is_flag=True, required=True, help="One cache of all blocks, which all engines share.")
@click.option("--nodes", type=click.IntRange(1, 1024), default=8, show_default=True, help="Engines, one a node.")
@click.option(
    "--total-blocks",
    type=click.IntRange(1),
    default=30_000,
    show_default=True,
    help="Blocks in all, of the trace's size.",
)
@click.option(
    "--routing",
    type=click.Choice(["rr", "session"]),
    default="rr",
    show_default=True,
    help="Requests go to nodes in turn, or by their session.",
)
@click.option(
    "--policy", type=click.Choice(list(ORDERS)), default="adaptive", show_default=True, help="What goes first."
)
@click.option(
    "--coarsen", type=click.IntRange(1, 1024), default=1, show_default=True, help="Make one block of so many."
)
@click.option(
    "--timing",
    type=click.Choice(["modelled", "ideal"]),
    default="modelled",
    show_default=True,
    help="Whether blocks take time to be computed. `ideal`: as published tables have it.",
)
@click.option("--plain", is_flag=True, help="The policy alone, as it was published: it may keep tails without heads.")
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(0),
    default=0.0,
    help="Drop what was unused for so many seconds; 0: never.",
)
@click.option(
    "--ttft", "geometry", default=DEFAULT, show_default=True, help="MODEL,GPU,LINK that times are modelled for."
)
@rows_output_option
def replay(output: str, *, one_cache: bool, **options: Any) -> None:  # noqa: ARG001 - there is nothing else yet
    """Replay TRACE, a file of recorded requests, and count what was there when it was asked for.

    TRACE has a line of JSON for each request, with timestamp, input_length, and hash_ids or hash_runs; .xz is unpacked.
    """
    from p2pkv.sim.replay import ReplayOptions, run_one_cache

    asked = ReplayOptions(**options)
    row = asdict(run_one_cache(asked))
    if output == "json":
        print_json({"scenario": "replay", "options": asdict(asked), **row})
    elif output == "csv":
        print_csv(list(row), [list(row.values())])
    else:
        print_table(f"replay: {Path(asked.trace).name}", ("measure", "value"), list(row.items()))


@click.command()
@click.argument("traces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--full", is_flag=True, help="All traces and capacities, not only those that take minutes.")
@plot_option
@rows_output_option
def cache(traces: Path, output: str, plot: Path | None, *, full: bool) -> None:
    """Compare eviction policies in one cache, on the traces in the folder TRACES that are known by name.

    Progress goes to standard error.

    Exit codes: 0 `adaptive` was nowhere more than a point worse than the best fixed policy, and better than LRU on average; 1
    otherwise.
    """
    from p2pkv.sim.cache_bench import compare, figure_of, problems

    def told(text: str) -> None:
        click.echo(text, err=True)

    rows = compare(traces, full=full, told=told)
    print_rows("cache", {"full": full}, [asdict(row) for row in rows], output=output)
    if plot is not None:
        write_figure(figure_of(rows), plot)
    found = problems(rows)
    for problem in found:
        click.echo(f"problem: {problem}", err=True)
    if found:
        sys.exit(FAILED)
