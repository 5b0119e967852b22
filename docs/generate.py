# ruff: noqa: INP001 - a script beside the pages it writes, not a package
"""Write the reference pages that are made from the code, or say with `--check` whether they are fresh.

A table that a person keeps in step with the code drifts from it. These pages are made from the same objects that the
program runs on, so the only thing to check is that somebody ran this after a change. The output depends on nothing
but the code: not on the width of a terminal, the machine, or what the environment says.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import click
import msgspec
from msgspec import inspect as shapes
from prometheus_client.metrics import Histogram, MetricWrapperBase

from p2pkv import block_file, config, errors, local_wire
from p2pkv.cli.main import cli
from p2pkv.cli.output import exit_code
from p2pkv.metrics import Metrics
from p2pkv.transport import (
    bulk_header,
    records,
    seal,
    sealed_handshake,
    session_handshake,
    sessions,
    tls_handshake,
    wire,
)

FOLDER: Final = Path(__file__).parent / "reference"
HELP_WIDTH: Final = 100
_NOTICE: Final = (
    "<!-- Made by docs/generate.py from the code. Do not edit: change the code and run `make generated`. -->"
)
_SECTION: Final = re.compile(r"^# -- (.+?) -+$", re.MULTILINE)
_UNITS: Final = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_POWER_FROM: Final = 2**20
"""Bounds from here on read better as powers of two."""

CONFIG_PREFACE: Final = """\
Every setting of a node. A value is taken from the defaults, then the profile, then the file given with `--config`,
then the environment, then the command line; the later wins. A key that is not listed here is an error that names the
nearest one, and nothing starts.

In a TOML file a section is a table: `probe_period_s = 0.5` below `[mesh]`. In the environment the same setting is
`P2PKV_MESH_PROBE_PERIOD_S=0.5`. On the command line of [`p2pkv serve`](cli.md#p2pkv-serve) it is
`--set mesh.probe_period_s=0.5`; those that are set most often have an option of their own.

Names end in their unit: `_s` is seconds, `_bytes` is bytes, for which `512MiB` or `4GiB` may be written."""

PROFILES_PREFACE: Final = """\
A profile is a set of defaults for a kind of network, chosen with `p2pkv serve --profile`. What it does not name keeps
the default above."""

CLI_PREFACE: Final = """\
Data goes to standard output and everything else to standard error. With `-o json` standard output carries one JSON
document and nothing else. An error is one line that says what was wrong, and a `hint:` line where there is something
to do about it; with `-o json` it is the document, too."""

EXIT_CODES: Final = (
    ("0", "it worked"),
    ("1", "it failed"),
    ("2", "wrong usage or configuration; nothing was started or changed"),
    ("3", "the daemon does not answer"),
    ("130", "interrupted with Ctrl-C"),
)

WIRE_PREFACE: Final = """\
Two protocols, both in msgpack. A message is an array: its tag, then its fields in the order given here. A field may be
added at the end with a default; none is ever moved, and no tag is used twice. Every field is bounded, and a message
that breaks a bound is refused whole."""

STREAM_PREFACE: Final = """\
On a stream a message stands behind its length, a u32 in little-endian order. The first message of a stream is `Hello`,
the answer to it `HelloAck`. A datagram is one `Packet` without a length."""

METRICS_PREFACE: Final = """\
Prometheus scrapes these where [`node.metrics`](config.md#node) says. Labels have few values and never name a peer, a
key or a tenant. The counters are also in `p2pkv status`."""

METRICS_CLOSE: Final = """\
What to watch, and which values the labels take, is in [Operating](../guides/operating.md#metrics)."""

ERRORS_PREFACE: Final = """\
Every error has `hint`: one sentence that says what to do next, or nothing. The exit code is what the command line ends
with."""


# -- Markdown -------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Return `text` fit for a cell of a table: one line, nothing that Markdown would take for its own."""
    parts = " ".join(text.split()).split("`")
    for i in range(0, len(parts), 2):  # what stands between backticks is code and stays as it is
        parts[i] = parts[i].replace("<", "&lt;").replace("*", r"\*")
    return "`".join(parts).replace("|", r"\|")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str, language: str = "text") -> str:
    """Return a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def page(title: str, *parts: str) -> str:
    """Return a whole page."""
    return "\n\n".join((_NOTICE, f"# {title}", *parts)) + "\n"


def number(value: float) -> str:
    """Return a number as people read it: powers of two as such, and no `.0` behind whole ones."""
    if not isinstance(value, int):
        return f"{value:g}"
    if value >= _POWER_FROM:
        for offset, suffix in ((0, ""), (1, " - 1")):
            if (value + offset).bit_count() == 1:
                return f"2^{(value + offset).bit_length() - 1}{suffix}"
    return f"{value:,}"


def size(count: int) -> str:
    """Return `count` bytes with a unit where it is a whole number of one."""
    unit = next(((factor, name) for factor, name in _UNITS if count >= factor and count % factor == 0), None)
    return f"{count // unit[0]} {unit[1]}" if unit else f"{number(count)} bytes"


# -- the code as data -----------------------------------------------------------------------------------------------


def described(body: Iterable[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yield (name, docstring or nothing) of each annotated name in the body of a class or module."""
    statements = list(body)
    for statement, following in zip(statements, [*statements[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                text = str(following.value.value)
            yield statement.target.id, inspect.cleandoc(text)


def class_nodes(module: ModuleType) -> dict[str, ast.ClassDef]:
    """Return the classes of `module` by name, in the order of its file."""
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def sections_of(module: ModuleType) -> list[tuple[int, str]]:
    """Return (line, title) of the comments that part the file of `module`."""
    source = inspect.getsource(module)
    return [(source.count("\n", 0, match.start()) + 1, match[1]) for match in _SECTION.finditer(source)]


def bounds(
    low: float | None, high: float | None, *, above: float | None = None, below: float | None = None, unit: str = ""
) -> str:
    """Return what a value may be, or nothing if it may be anything."""
    if low is not None and high is not None:
        text = f"{number(low)} to {number(high)}"
    else:
        words = (("from", low), ("above", above), ("up to", high), ("below", below))
        text = " ".join(f"{word} {number(value)}" for word, value in words if value is not None)
    return f", {text}{unit}" if text else ""


def shape_of(kind: shapes.Type) -> str:
    """Return a type and its bounds as one reads them."""
    match kind:
        case shapes.Metadata():  # what else is said of a field, its description for one
            return shape_of(kind.type)
        case shapes.IntType() | shapes.FloatType():
            name = "int" if isinstance(kind, shapes.IntType) else "float"
            return name + bounds(kind.ge, kind.le, above=kind.gt, below=kind.lt)
        case shapes.StrType():
            return "str" + bounds(kind.min_length, kind.max_length, unit=" characters")
        case shapes.BytesType():
            if kind.max_length is not None and kind.min_length == kind.max_length:
                return size(kind.max_length)
            return "bytes" if kind.max_length is None else f"bytes, up to {size(kind.max_length)}"
        case shapes.BoolType():
            return "bool"
        case shapes.NoneType():
            return "nothing"
        case shapes.VarTupleType():
            most = f"at most {number(kind.max_length)}: " if kind.max_length else ""
            return f"list of {most}{shape_of(kind.item_type)}"
        case shapes.DictType():
            return f"map of {shape_of(kind.key_type)} to {shape_of(kind.value_type)}"
        case shapes.LiteralType():
            return "one of " + ", ".join(f"`{value}`" for value in kind.values)
        case shapes.StructType():
            return f"`{kind.cls.__name__}`"
        case shapes.UnionType():
            return " or ".join(shape_of(one) for one in kind.types)
    raise TypeError(f"no words for {kind!r}")


# -- the pages ------------------------------------------------------------------------------------------------------


def config_page() -> str:
    """Return every setting, and what the profiles make of the defaults."""
    parts = [CONFIG_PREFACE]
    for name, section in config.sections().items():
        kinds = {field.name: shape_of(field.type) for field in shapes.type_info(section).fields}  # type: ignore[attr-defined]
        rows = [
            (f"`{field}`", kinds[field], default_text(field, default), text)
            for field, _, default, text in config.describe(section)
        ]
        parts += [f"## {name}", inspect.getdoc(section) or "", table(("setting", "type", "default", "meaning"), rows)]
    return page("Configuration", *parts, "## Profiles", *profiles())


def default_text(name: str, default: object) -> str:
    """Return a default as it would be written in a file."""
    match default:
        case bool():
            return f"`{str(default).lower()}`"
        case None:
            return "nothing"
        case str():
            return f'`"{default}"`'
        case int() if name.endswith("_bytes") and default:
            return f"`{default}` ({size(default)})"
        case int() | float():
            return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        case tuple():
            return f"`{list(default)}`"
    return f"`{default}`"


def profiles() -> Iterator[str]:
    """Yield what stands below the heading of the profiles."""
    yield PROFILES_PREFACE
    changed = sorted({(s, f) for profile in config.PROFILES.values() for s, fields in profile.items() for f in fields})
    rows = []
    for section, field in changed:
        default = next(d for name, _, d, _ in config.describe(config.sections()[section]) if name == field)
        values = (profile.get(section, {}).get(field, default) for profile in config.PROFILES.values())
        rows.append((f"`{section}.{field}`", *(default_text(field, value) for value in values)))
    yield table(("setting", *(f"`{name}`" for name in config.PROFILES)), rows)


def cli_page() -> str:
    """Return the help of every command, as the command itself prints it."""
    parts = [CLI_PREFACE, table(("exit code", "meaning"), EXIT_CODES)]
    for context in contexts(cli, "p2pkv"):
        parts += [f"## {context.command_path}", code(context.command.get_help(context))]
    return page("Command line", *parts)


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a context for `command` and for each command below it, all of one width."""
    settings = {**command.context_settings, "terminal_width": HELP_WIDTH, "color": False}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            if child is not None and not child.hidden:
                yield from contexts(child, below, context)


def wire_page() -> str:
    """Return the messages between agents and on the local socket, and the two binary headers."""
    return page(
        "Wire format",
        WIRE_PREFACE,
        "## Between agents",
        "\n\n".join(prose(wire)[1:]),
        STREAM_PREFACE,
        limits(wire),
        *messages(wire, wire.Message),
        "## Sealed datagrams",
        *prose(seal)[1:],
        "## Sealed streams",
        *prose(sealed_handshake)[1:],
        *prose(records),
        "## Streams of nodes with certificates",
        *prose(tls_handshake),
        *prose(sessions)[1:],
        *prose(session_handshake)[1:],
        "## Bulk header",
        *prose(bulk_header),
        "## Between an engine and its daemon",
        "\n\n".join(prose(local_wire)[1:]),
        limits(local_wire),
        *messages(local_wire, local_wire.LocalMessage),
        "## Block file",
        *prose(block_file),
    )


def prose(module: ModuleType) -> list[str]:
    """Return what a module says of itself in paragraphs; one that is indented or a list of offsets becomes code.

    The first paragraph is about the file.
    """
    return [
        code(textwrap.dedent(part)) if part[0] in " 0" else part
        for part in (inspect.getdoc(module) or "").split("\n\n")
    ]


def limits(module: ModuleType) -> str:
    """Return a table of the public numbers of `module`."""
    rows = []
    for name, text in described(ast.parse(inspect.getsource(module)).body):
        value = getattr(module, name, None)
        if name.isupper() and not name.startswith("_") and isinstance(value, int):
            rows.append((f"`{name}`", size(value) if "BYTES" in name else number(value), text))
    return table(("constant", "value", "meaning"), rows)


def messages(module: ModuleType, base: type[msgspec.Struct]) -> Iterator[str]:
    """Yield a heading and a table for each struct of `module`, under the headings of its file."""
    waiting = sections_of(module)
    for name, node in class_nodes(module).items():
        struct = getattr(module, name)
        if not (isinstance(struct, type) and issubclass(struct, msgspec.Struct)) or struct is base:
            continue
        while waiting and waiting[0][0] < node.lineno:
            title = waiting.pop(0)[1]
            yield f"### {title[0].upper()}{title[1:]}"
        tag = struct.__struct_config__.tag
        yield f"#### {name}"
        yield f"{inspect.getdoc(struct)}"
        yield f"Tag {tag}." if tag is not None else "Has no tag: it only stands inside other messages."
        texts = dict(described(node.body))
        fields = shapes.type_info(struct).fields  # type: ignore[attr-defined]
        if fields:
            rows = [(f"`{field.name}`", shape_of(field.type) + optional(field), texts[field.name]) for field in fields]
            yield table(("field", "type", "meaning"), rows)


def optional(field: shapes.Field) -> str:
    """Return what to say of a field that may be left out."""
    return "" if field.required else f"; default {default_text(field.name, field.default)}"


def metrics_page() -> str:
    """Return every metric with its type, labels and meaning."""
    rows = []
    for metric in vars(Metrics()).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in metric._labelnames)  # noqa: SLF001 - no public way before first use
        rows.append((f"`{name}`", family.type, labels, family.documentation + buckets(metric)))
    return page(
        "Metrics",
        METRICS_PREFACE,
        table(("metric", "type", "labels", "meaning"), rows),
        METRICS_CLOSE,
    )


def buckets(metric: MetricWrapperBase) -> str:
    """Return where a histogram's buckets end, or nothing for another metric."""
    if not isinstance(metric, Histogram):
        return ""
    ends = (bound for bound in metric._upper_bounds if bound != float("inf"))  # noqa: SLF001 - there is no public way
    return f" Buckets up to {', '.join(f'{end:g}' for end in ends)}."


def errors_page() -> str:
    """Return every exception with its place in the tree, its exit code and what state it leaves."""
    rows = []
    for name in class_nodes(errors):
        error = getattr(errors, name)
        code_text = str(exit_code(error.__new__(error)))
        rows.append((f"`{name}`", f"`{error.__base__.__name__}`", code_text, inspect.getdoc(error) or ""))
    return page(
        "Errors",
        *prose(errors)[1:],
        ERRORS_PREFACE,
        table(("error", "is a", "exit code", "when, and what is left behind"), rows),
    )


PAGES: Final[dict[str, Callable[[], str]]] = {
    "config.md": config_page,
    "cli.md": cli_page,
    "wire.md": wire_page,
    "metrics.md": metrics_page,
    "errors.md": errors_page,
}


def stale() -> list[str]:
    """Return the pages whose file is not what the code makes of them."""
    found = []
    for name, make in PAGES.items():
        file = FOLDER / name
        if not file.exists() or file.read_text(encoding="utf-8") != make():
            found.append(name)
    return found


def main() -> int:
    """Write the pages, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the reference pages from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is not fresh")
    if parser.parse_args().check:
        names = stale()
        if names:
            sys.stderr.write(f"docs/reference is stale ({', '.join(names)}): run make generated\n")
        return 1 if names else 0
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
