"""`p2pkv sim replay` and `p2pkv sim cache`: recorded traces through caches."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from p2pkv.cli.output import FAILED, print_csv, print_json, print_table, rows_output_option
from p2pkv.eviction import ORDERS
from p2pkv.sim.geometry import DEFAULT, TTFT_GEOMETRIES
from p2pkv.sim.options import plot_option, print_rows
from p2pkv.sim.plots import write_figure

_TRACE = click.Path(exists=True, dir_okay=False)


@click.command()
@click.argument("trace", type=_TRACE)
@click.option("--one-cache", is_flag=True, help="One cache of all blocks, which all engines share.")
@click.option("--nodes", type=click.IntRange(1, 1024), default=8, show_default=True, help="Each with an engine.")
@click.option(
    "--total-blocks",
    type=click.IntRange(1),
    default=30_000,
    show_default=True,
    help="Blocks in all, of the trace's size.",
)
@click.option(
    "--routing",
    type=click.Choice(["rr", "session", "affinity"]),
    default="rr",
    show_default=True,
    help="Requests go to nodes in turn, by their session, or to the node with the longest prefix that is not overloaded.",
)
@click.option(
    "--sharing",
    type=click.Choice(["mesh", "local", "ring", "first", "copies"]),
    default="mesh",
    show_default=True,
    help="Who keeps what, to compare: each its own; each block its owner; who computed it; everybody what he used; `mesh`: as p2pkv does it.",
)
@click.option(
    "--hops", "hops_max", type=click.IntRange(0, 16), default=2, show_default=True, help="Forwards of a last copy."
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
@click.option("--lose", is_flag=True, help="Have the first node end in the middle; say what that costs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Where blocks lie on the ring.")
@rows_output_option
def replay(output: str, **options: Any) -> None:
    """Replay TRACE, a file of recorded requests, and count what was there when it was asked for.

    TRACE has a line of JSON for each request, with timestamp, input_length, and hash_ids or hash_runs; .xz is unpacked.
    """
    from p2pkv.sim.replay import ReplayOptions, run_replay

    asked = ReplayOptions(**options)
    row = {name: value for name, value in asdict(run_replay(asked)).items() if value is not None}
    if output == "json":
        print_json({"scenario": "replay", "options": asdict(asked), **row})
    elif output == "csv":
        print_csv(list(row), [list(row.values())])
    else:
        print_table(f"replay: {Path(asked.trace).name}", ("measure", "value"), list(row.items()))


@click.command()
@click.argument("trace", type=_TRACE)
@click.option("--nodes", type=click.IntRange(1, 1024), default=8, show_default=True, help="Each with an engine.")
@click.option("--total-blocks", type=click.IntRange(1), default=30_000, show_default=True, help="Blocks in all.")
@click.option("--requests", type=click.IntRange(0), default=0, show_default=True, help="The first so many; 0: all.")
@click.option(
    "--ttft",
    "geometries",
    multiple=True,
    default=TTFT_GEOMETRIES,
    show_default=True,
    help="MODEL,GPU,LINK that times are modelled for; may be given more than once.",
)
@rows_output_option
def ttft(trace: str, nodes: int, total_blocks: int, requests: int, geometries: tuple[str, ...], output: str) -> None:
    """Model the time to the first token on TRACE: each node its own, an affine router, the mesh, and both.

    Progress goes to standard error.
    """
    from p2pkv.sim.ttft_bench import compare

    options = {"trace": trace, "nodes": nodes, "total_blocks": total_blocks, "requests": requests}
    rows = compare(**options, geometries=geometries, told=lambda text: click.echo(text, err=True))  # type: ignore[arg-type]  # as annotated above
    print_rows("ttft", options, [asdict(row) for row in rows], output=output)


@click.command()
@click.argument("traces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--full", is_flag=True, help="All traces and capacities, not only those that take minutes.")
@click.option("--mesh", is_flag=True, help="Many nodes and what they share, instead of one cache and its policies.")
@plot_option
@rows_output_option
def cache(traces: Path, output: str, plot: Path | None, *, full: bool, mesh: bool) -> None:
    """Compare eviction policies in one cache, or with --mesh ways to share many, on the known traces in the folder TRACES.

    Progress goes to standard error.

    Exit codes: 0 `adaptive` was nowhere more than a point worse than the best fixed policy, and better than LRU on average; or
    the mesh was nowhere worse than its aim; 1 otherwise.
    """
    from p2pkv.sim import cache_bench, mesh_bench

    def told(text: str) -> None:
        click.echo(text, err=True)

    if mesh:
        cells = mesh_bench.compare(traces, full=full, told=told)
        print_rows("cache", {"full": full, "mesh": True}, [asdict(cell) for cell in cells], output=output)
        figure, found = mesh_bench.figure_of(cells), mesh_bench.problems(cells)
    else:
        rows = cache_bench.compare(traces, full=full, told=told)
        print_rows("cache", {"full": full, "mesh": False}, [asdict(row) for row in rows], output=output)
        figure, found = cache_bench.figure_of(rows), cache_bench.problems(rows)
    if plot is not None:
        write_figure(figure, plot)
    for problem in found:
        click.echo(f"problem: {problem}", err=True)
    if found:
        sys.exit(FAILED)
