"""A chain, and what computing it costs, as commands take them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from p2pkv.cli.blocks import KEY
from p2pkv.errors import ConfigError, LocalUseError


def chain_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add KEYS, `--chain-file`, `--block-bytes` and `--prefill-block-ms` to a command."""
    for option in (
        click.option(
            "--prefill-block-ms",
            type=click.FloatRange(0),
            default=0.0,
            help="What computing a block costs, with --block-bytes. [default: what an engine said last]",
        ),
        click.option(
            "--block-bytes",
            type=click.IntRange(0),
            default=0,
            help="Size of a block. [default: what an engine said last]",
        ),
        click.option(
            "--chain-file",
            type=click.Path(path_type=Path, dir_okay=False),
            default=None,
            help="Take the chain from a file, one key per line, from its root on.",
        ),
        click.argument("keys", type=KEY, nargs=-1),
    ):
        command = option(command)
    return command


def chain_of(keys: Sequence[bytes], path: Path | None, *, verb: str) -> list[bytes]:
    """Return the keys that were given and those in the file.

    Raises:
        ConfigError: there are none.
        LocalUseError: the file cannot be read.
    """
    chain = [*keys, *(_from_file(path) if path is not None else [])]
    if not chain:
        raise ConfigError(f"{verb} needs keys", hint="give them one after another, or --chain-file")
    return chain


def _from_file(path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeError) as exc:
        raise LocalUseError(f"cannot read the chain ({exc}): {path}", hint="one key per line") from exc
    return [KEY.convert(line, None, None) for line in lines]
