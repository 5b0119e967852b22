"""`p2pkv tiers`: the places that store a node's blocks."""

import time
from pathlib import Path
from typing import Any

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option


@click.group(short_help="Show the places that store blocks, and check them.", invoke_without_command=True)
@socket_option
@output_option
@click.pass_context
def tiers(context: click.Context, socket: Path | None, output: str) -> None:
    """Show the places that store a node's blocks, what is in them, and what has moved between them."""
    if context.invoked_subcommand is not None:
        return
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.status()
    if output == "json":
        print_json({"host": reply.tier, "disk": reply.disk or None, "object": reply.object or None})
        return
    figures: dict[str, dict[str, Any]] = {"host": {"state": "serving", **reply.tier}, "disk": reply.disk}
    names = dict.fromkeys(name for one in figures.values() for name in one)
    rows = [
        (name.replace("_", " "), *(_cell(name, one) for one in figures.values())) for name in names if name != "reason"
    ]
    print_table("tiers", ("", "host", "disk" if reply.disk else "no disk"), rows)
    if reply.disk.get("reason"):
        click.echo(f"the disk is {reply.disk['state']}: {reply.disk['reason']}")
    if reply.object:
        rows = [(name.replace("_", " "), str(value)) for name, value in reply.object.items() if name != "reason"]
        print_table("object store", ("", ""), rows)
    if reply.object.get("reason"):
        click.echo(f"the object store is {reply.object['state']}: {reply.object['reason']}")


def _cell(name: str, figures: dict[str, Any]) -> str:
    value = figures.get(name, "")
    return size_text(value) if name.endswith("_bytes") and value != "" else str(value)


@tiers.command(short_help="Read every block on the disk and compare it with its digest.")
@socket_option
@click.option(
    "--path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=None,
    help="Folder of a disk tier that no daemon uses; otherwise the daemon reads its own.",
)
@click.option("--rate", default="200MiB", show_default=True, metavar="SIZE", help="Bytes to read a second at most.")
@output_option
def verify(socket: Path | None, path: Path | None, rate: str, output: str) -> None:
    """Read every block of the disk tier, and compare it with its digest.

    Blocks that are not as they were written are forgotten: they are misses from then on. Exit code 1 if there were any.
    """
    from p2pkv.config import parse_size
    from p2pkv.errors import ConfigError

    rate_bytes_s = parse_size(rate)
    if not rate_bytes_s:
        raise ConfigError(f"--rate is {rate!r}, must be more than nothing", hint="for example 200MiB")
    began = time.monotonic()
    blocks, size, bad = (
        _verified_here(path, rate_bytes_s) if path is not None else _verified_there(socket, rate_bytes_s)
    )
    seconds = time.monotonic() - began
    if output == "json":
        print_json({"blocks": blocks, "bytes": size, "bad": bad, "seconds": round(seconds, 3)})
    else:
        rows = [("blocks", blocks), ("read", size_text(size)), ("seconds", f"{seconds:.1f}")]
        print_table("disk tier", ("what", "how many"), [*rows, *bad.items()])
    if bad:
        raise click.exceptions.Exit(1)


def _verified_there(socket: Path | None, rate_bytes_s: int) -> tuple[int, int, dict[str, int]]:
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.scrub(rate_bytes_s)
    return reply.blocks, reply.read_bytes, reply.bad


def _verified_here(path: Path, rate_bytes_s: int) -> tuple[int, int, dict[str, int]]:
    from p2pkv.errors import FabricError, LocalUseError
    from p2pkv.tiers.disk.scrub import scrub
    from p2pkv.tiers.disk.store import DiskStore, is_store

    if not is_store(path):
        raise LocalUseError(f"no disk tier is in this folder: {path}", hint="it is the one that disk.path names")
    try:
        store = DiskStore(path, quota_bytes=None)
        try:
            recovered = store.recover(budget_s=float("inf"))
            found = scrub(store, rate_bytes_s=rate_bytes_s)
        finally:
            store.close()
    except OSError as exc:
        raise FabricError(f"cannot read the disk tier ({exc.strerror or exc})", device=str(path)) from exc
    bad = dict(sorted(found.bad.items()))
    return found.blocks, found.read_bytes, bad | ({"header": recovered.refused} if recovered.refused else {})
