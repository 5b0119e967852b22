"""`p2pkv tiers`: the places that store a node's blocks."""

import time
from pathlib import Path

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text


@click.group(short_help="Look after the places that store blocks.")
def tiers() -> None:
    """Look after the places that store a node's blocks."""


@tiers.command(short_help="Read every block on the disk and compare it with its digest.")
@click.option(
    "--path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of a disk tier.",
)
@click.option("--rate", default="200MiB", show_default=True, metavar="SIZE", help="Bytes to read a second at most.")
@output_option
def verify(path: Path, rate: str, output: str) -> None:
    """Read every block of a disk tier that no daemon uses, and compare it with its digest.

    Blocks that are not as they were written are forgotten: they are misses from then on. Exit code 1 if there were any.
    """
    from p2pkv.config import parse_size
    from p2pkv.errors import ConfigError, FabricError, LocalUseError
    from p2pkv.tiers.disk.scrub import scrub
    from p2pkv.tiers.disk.store import DiskStore, is_store

    rate_bytes_s = parse_size(rate)
    if not rate_bytes_s:
        raise ConfigError(f"--rate is {rate!r}, must be more than nothing", hint="for example 200MiB")
    if not is_store(path):
        raise LocalUseError(f"no disk tier is in this folder: {path}", hint="it is the one that disk.path names")
    began = time.monotonic()
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
    if recovered.refused:
        bad["header"] = recovered.refused
    seconds = time.monotonic() - began
    if output == "json":
        print_json(
            {
                "path": str(path),
                "blocks": found.blocks,
                "bytes": found.read_bytes,
                "bad": bad,
                "direct": store.direct,
                "seconds": round(seconds, 3),
            }
        )
    else:
        rows = [("blocks", found.blocks), ("read", size_text(found.read_bytes)), ("seconds", f"{seconds:.1f}")]
        print_table(f"disk tier in {path}", ("what", "how many"), [*rows, *bad.items()])
    if bad:
        raise click.exceptions.Exit(1)
