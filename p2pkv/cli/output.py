"""How commands answer: data on standard output, as a table for people or one JSON document; all else on standard error."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from p2pkv.errors import ConfigError, DaemonUnreachable, P2pkvError

F = TypeVar("F", bound=Callable[..., Any])

FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3


def _remember(context: click.Context, _: click.Parameter, value: str) -> str:
    context.find_root().meta["p2pkv.output"] = value
    return value


output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    callback=_remember,
    is_eager=True,  # so that an error in another option is already reported the way that was asked for
    help="A table for people, or one JSON document on standard output and nothing else.",
)

rows_output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    callback=_remember,
    is_eager=True,
    help="A table for people, one JSON document, or CSV with a head line, on standard output and nothing else.",
)

socket_option = click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=None,
    help="The daemon's Unix socket. [default: P2PKV_NODE_SOCKET, or p2pkv.sock in the user's runtime folder]",
)


def print_json(document: object) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(document, indent=2))


def print_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below a head line; what is missing is an empty cell."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in rows)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; plain when standard output is no terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns), show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, highlight=False)
    console.print(title, style="bold")
    console.print(table)


def exit_code(error: P2pkvError) -> int:
    """Return the exit code that `error` ends a command with."""
    if isinstance(error, DaemonUnreachable):
        return UNREACHABLE
    return USAGE if isinstance(error, ConfigError) else FAILED


def fail(error: P2pkvError, *, as_json: bool) -> NoReturn:
    """Say in one line what was wrong, and in another what to do; exit."""
    click.echo(f"error: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    code = exit_code(error)
    if as_json:
        print_json(
            {"error": {"kind": type(error).__name__, "message": str(error), "hint": error.hint, "exit_code": code}}
        )
    sys.exit(code)


def size_text(count: float) -> str:
    """Return `count` bytes as people say it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:  # noqa: PLR2004 - what a KiB is
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
