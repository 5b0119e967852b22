"""`p2pkv locate`, `match`, `get`, `put`: blocks by their keys."""

import sys
from pathlib import Path
from typing import IO, Final

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option
from p2pkv.errors import ConfigError, LocalUseError

_KEY_DIGITS: Final = 64


class _Key(click.ParamType[bytes]):
    """A block's key as 64 hexadecimal digits."""

    name = "key"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        del param, ctx
        if isinstance(value, bytes):
            return value
        text = str(value).strip()
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(text) != _KEY_DIGITS or len(key) * 2 != _KEY_DIGITS:
            shown = text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - one line
            raise ConfigError(
                f"key is {shown!r} ({len(text)} characters), must be {_KEY_DIGITS} hexadecimal digits",
                hint="`p2pkv.chain_keys` makes keys from tokens, and a block file has its key in it",
            )
        return key


KEY: Final = _Key()
_file_option = click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Instead of standard input or output."
)


@click.command(short_help="Show where a block is.")
@click.argument("key", type=KEY)
@socket_option
@output_option
def locate(key: bytes, socket: Path | None, output: str) -> None:
    """Show where the block KEY is: here, at peers whose summary claims it, and at those its owners have records of.

    The summaries are this node's own copies. The owners, whom the ring names, are really asked; what they say is about
    the stretch of 32 blocks that KEY is in, or begins if this node does not know its place in a chain.
    """
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.locate(key)
    if output == "json":
        records = [
            {
                "holder": {"id": one.peer, "name": one.name},
                "blocks": one.blocks,
                "has_block": one.blocks > reply.place,
                "tier": one.tier,
                "said_by": one.said_by,
            }
            for one in reply.recorded
        ]
        print_json(
            {
                "key": key.hex(),
                "local": reply.local,
                "length": reply.length,
                "digest": reply.digest,
                "claimed_by": [{"id": holder.peer, "name": holder.name} for holder in reply.claimed_by],
                "owners": [{"id": holder.peer, "name": holder.name} for holder in reply.owners],
                "directory": {
                    "anchor": reply.anchor,
                    "place": reply.place,
                    "records": records,
                    "silent": list(reply.silent),
                },
            }
        )
        return
    here = f"yes, {size_text(reply.length)}, digest {reply.digest}" if reply.local else "no"
    claimed = ", ".join(holder.name for holder in reply.claimed_by) or "nobody"
    owners = ", ".join(holder.name for holder in reply.owners)
    rows = [("here", here), ("claimed by (summaries)", claimed), ("owners (ring)", owners)]
    rows += [
        (
            f"recorded by {one.said_by}",
            f"{one.name or one.peer} has {one.blocks} block{'s' * (one.blocks != 1)} of its stretch",
        )
        for one in reply.recorded
    ]
    if not reply.recorded:
        rows.append(("recorded (directory)", "nowhere"))
    rows += [(f"asked {name}", "no answer") for name in reply.silent]
    print_table(f"block {key.hex()[:16]}...", ("", ""), rows)


@click.command(short_help="Show how much of a chain can be had, and where.")
@click.argument("keys", type=KEY, nargs=-1, required=True)
@socket_option
@output_option
def match(keys: tuple[bytes, ...], socket: Path | None, output: str) -> None:
    """Show how much of the chain KEYS can be had, here and from which peers."""
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        found = client.match(keys)
    if output == "json":
        holders = [{"name": name, "blocks": blocks} for name, blocks in found.holders]
        print_json(
            {"blocks": len(keys), "local": found.local_blocks, "reachable": found.reachable_blocks, "holders": holders}
        )
        return
    rows = [("here", found.local_blocks), *found.holders]
    print_table(f"{found.reachable_blocks} of {len(keys)} blocks can be had", ("holder", "blocks"), rows)


@click.command(short_help="Write a block file to standard output.")
@click.argument("key", type=KEY)
@click.option("--timeout-s", type=float, default=10.0, show_default=True, help="How long peers may take.")
@_file_option
@socket_option
@output_option
def get(key: bytes, timeout_s: float, file: Path | None, socket: Path | None, output: str) -> None:
    """Write the block KEY, from here or from a peer, as a block file to standard output."""
    from p2pkv.block_file import pack_header
    from p2pkv.blocks import BlockInfo, BlockKey
    from p2pkv.client import Client

    if output == "json" and file is None:
        raise ConfigError("get -o json needs --file, for the block itself would go to standard output")
    if file is None and sys.stdout.isatty():
        raise ConfigError("a block file is binary and standard output is a terminal", hint="add >FILE or --file FILE")
    with Client.connect(socket, staging_bytes=0) as client, client.acquire([key], timeout_s=timeout_s) as lease:
        if not lease.blocks:
            raise LocalUseError(
                f"no block {key.hex()[:16]}... here or at a peer ({lease.reason})",
                hint="`p2pkv locate KEY` shows who claims it",
            )
        block, view = lease.blocks[0], lease.view(0)
        info = BlockInfo(BlockKey(block.key), block.namespace, block.length, block.segment_bytes, block.digest)
        if file is None:
            _write(sys.stdout.buffer, pack_header(info), view)
        else:
            with _opened(file, "wb") as stream:
                _write(stream, pack_header(info), view)
        source = lease.sources[0]
    if output == "json":
        print_json({"key": key.hex(), "length": info.length, "digest": info.digest.hex(), "file": str(file),
                    "peer": source.peer, "transport": source.transport})  # fmt: skip


@click.command(short_help="Store a block file from standard input.")
@click.argument("key", type=KEY)
@_file_option
@socket_option
@output_option
def put(key: bytes, file: Path | None, socket: Path | None, output: str) -> None:
    """Store the block file on standard input under its KEY in this node's memory."""
    from p2pkv.block_file import unpack
    from p2pkv.client import Client

    if file is None:
        data = sys.stdin.buffer.read()
    else:
        with _opened(file, "rb") as stream:
            data = stream.read()
    info, body = unpack(data)
    if info.key != key:
        raise LocalUseError(
            f"the file holds block {info.key.hex()[:16]}..., not {key.hex()[:16]}...",
            hint="give the key it was written with",
        )
    with Client.connect(socket, staging_bytes=len(body) + 4096) as client:
        published = client.store(info, bytes(body))
    if published.refused:
        raise LocalUseError(f"not stored: {published.reason}", hint=published.hint)
    if output == "json":
        print_json({"key": key.hex(), "length": info.length, "stored": published.stored, "present": published.present})
    else:
        click.echo("stored" if published.stored else "it was here already", err=True)


def _write(stream: IO[bytes], *parts: bytes | memoryview) -> None:
    for part in parts:
        stream.write(part)
    stream.flush()


def _opened(file: Path, mode: str) -> IO[bytes]:
    try:
        return file.open(mode)
    except OSError as exc:
        raise LocalUseError(f"cannot open the file ({exc.strerror}): {file}") from exc
