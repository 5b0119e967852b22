"""What the verbs of `p2pkv sim` share: options, and one shape of output for all of them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from p2pkv.cli.output import FAILED, print_csv, print_json, print_table
from p2pkv.sim.plots import check_plot

F = TypeVar("F", bound=Callable[..., Any])


def nodes_option(least: int, default: int, most: int = 5000) -> Callable[[F], F]:
    """Return `--nodes`."""
    return click.option(
        "--nodes", type=click.IntRange(least, most), default=default, show_default=True, help="Members of the mesh."
    )


seed_option = click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Decides all chance in the run."
)


def _refuse_early(_: click.Context, __: click.Parameter, value: Path | None) -> Path | None:
    if value is not None:
        check_plot(value)
    return value


plot_option = click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    callback=_refuse_early,
    help="Draw the figures into this file too, PNG or SVG by its ending. Needs p2pkv[plots].",
)


def print_rows(
    scenario: str,
    options: Mapping[str, object],
    rows: Sequence[Mapping[str, object]],
    *,
    output: str,
    extra: Mapping[str, object] | None = None,
    name: str = "rows",
    columns: Sequence[str] = (),
) -> None:
    """Print the result of a verb: JSON with everything, CSV of the rows, or a table of `columns` of them.

    The JSON document is `{"scenario": ..., "options": {...}, **extra, name: [row, ...]}`.
    """
    head = list(rows[0]) if rows else []
    if output == "json":
        document = {"scenario": scenario, "options": dict(options), **(extra or {})}
        print_json({**document, name: [dict(row) for row in rows]})
    elif output == "csv":
        print_csv(head, [list(row.values()) for row in rows])
    else:
        shown = list(columns) or head
        title = ", ".join(f"{key} {value}" for key, value in options.items())
        if len(rows) == 1:  # one wide row is read more easily as a list
            print_table(f"{scenario}: {title}", ("measure", "value"), [(one, rows[0][one]) for one in shown])
            return
        print_table(
            f"{scenario}: {title}", shown, [["" if row[one] is None else row[one] for one in shown] for row in rows]
        )


def fail_run(problems: Sequence[str], command: str) -> NoReturn:
    """Say what was wrong with a run and how to have it again; exit."""
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    click.echo(f"replay with: {command}", err=True)
    sys.exit(FAILED)
