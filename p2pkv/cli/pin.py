"""`p2pkv pin` and `unpin`: what is to stay, and for how long."""

import re
from pathlib import Path
from typing import Final

import click

from p2pkv.cli.blocks import KEY
from p2pkv.cli.output import output_option, print_json, size_text, socket_option
from p2pkv.errors import ConfigError, LocalUseError

_TTL: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TTL_MAX_S: Final = 365 * 86_400


class _Ttl(click.ParamType[float]):
    """A time such as 90s, 30m, 1h or 7d."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        del param, ctx
        if isinstance(value, float):
            return value
        match = _TTL.fullmatch(str(value).strip())
        seconds = float(match[1]) * _UNIT_S[match[2] or "s"] if match else 0.0
        if not 0 < seconds <= TTL_MAX_S:
            raise ConfigError(
                f"ttl is {value!r}, must be more than nothing and at most 365d", hint="for example 30m or 1h"
            )
        return seconds


@click.command(short_help="Keep a chain's blocks from being evicted for a while.")
@click.argument("keys", type=KEY, nargs=-1, required=True)
@click.option("--ttl", "ttl_s", type=_Ttl(), default="1h", show_default=True, help="For how long: 90s, 30m, 1h, 7d.")
@click.option("--timeout-s", type=float, default=10.0, show_default=True, help="How long peers may take.")
@socket_option
@output_option
def pin(keys: tuple[bytes, ...], ttl_s: float, timeout_s: float, socket: Path | None, output: str) -> None:
    """Bring the chain KEYS here, from peers where it is not, and keep it for --ttl, whatever else is asked for.

    For a context that many will ask about. A second call for the same chain begins the time anew; `unpin` ends it, and so does
    the end of the daemon. `policy.pinned_share_max` says how much of the tier may be pinned.

    Exit codes: 0 all of it is pinned, 1 a part or nothing could be had.
    """
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client, client.acquire(keys, timeout_s=timeout_s) as lease:
        reply = client.pin(keys, ttl_s=ttl_s)
        reason = lease.reason
    if output == "json":
        print_json({"blocks": len(keys), "pinned": reply.blocks, "bytes": reply.size, "ttl_s": ttl_s})
    else:
        click.echo(
            f"{reply.blocks} of {len(keys)} blocks are pinned, {size_text(reply.size)}, for {ttl_s:g} s", err=True
        )
    if reply.blocks < len(keys):
        raise LocalUseError(
            f"{len(keys) - reply.blocks} of {len(keys)} blocks are not pinned ({reason})",
            hint="the first that is missing ends the chain; `p2pkv match` shows who has how much",
        )


@click.command(short_help="Let pinned blocks be evicted again.")
@click.argument("keys", type=KEY, nargs=-1, required=True)
@socket_option
@output_option
def unpin(keys: tuple[bytes, ...], socket: Path | None, output: str) -> None:
    """End what `pin` began for the chain KEYS, of which the last key is enough."""
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        ended = client.pin(keys, ttl_s=0).blocks > 0
    if output == "json":
        print_json({"unpinned": ended})
    else:
        click.echo("not pinned any more" if ended else "it was not pinned", err=True)
