"""The command group, and where an error of ours becomes one line, a hint and an exit code."""

import sys

import click

from p2pkv import __version__
from p2pkv.cli.bench import bench
from p2pkv.cli.blocks import get, locate, match, put
from p2pkv.cli.cert import cert
from p2pkv.cli.demo import demo
from p2pkv.cli.explain import explain
from p2pkv.cli.keys import keys
from p2pkv.cli.mesh import leave, members, status
from p2pkv.cli.output import fail, output_option, print_json
from p2pkv.cli.paths import doctor, netcheck, ping
from p2pkv.cli.pin import pin, unpin
from p2pkv.cli.ring import ring
from p2pkv.cli.route import route
from p2pkv.cli.serve import serve
from p2pkv.cli.tiers import tiers
from p2pkv.errors import ConfigError, P2pkvError
from p2pkv.sim.cli import sim


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="p2pkv")
def cli() -> None:
    """Share the KV cache of language models between inference nodes, peer to peer, without a server.

    Exit codes: 0 it worked, 1 it failed, 2 wrong usage or configuration, 3 the daemon does not answer.
    """


@cli.command(short_help="Show the versions of program and protocols.")
@output_option
def version(output: str) -> None:
    """Show the version of this program and of the protocols it speaks."""
    from p2pkv.local_wire import LOCAL_PROTOCOL
    from p2pkv.transport.wire import PROTOCOL_MAX, PROTOCOL_MIN

    if output == "json":
        protocol = {"min": PROTOCOL_MIN, "max": PROTOCOL_MAX}
        print_json({"version": __version__, "protocol": protocol, "local_protocol": LOCAL_PROTOCOL})
    else:
        click.echo(f"p2pkv {__version__}, protocol {PROTOCOL_MIN} to {PROTOCOL_MAX}, local protocol {LOCAL_PROTOCOL}")


for command in (
    serve,
    demo,
    status,
    members,
    ping,
    netcheck,
    doctor,
    ring,
    locate,
    put,
    get,
    match,
    pin,
    unpin,
    explain,
    route,
    keys,
    cert,
    tiers,
    leave,
    sim,
    bench,
):
    cli.add_command(command)


def _wants_json(arguments: list[str]) -> bool:
    """Say whether a command line that could not be parsed asks for JSON."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any((name in {"-o", "--output"} and value == "json") or name == "--output=json" for name, value in pairs)


def main() -> None:
    """Run the command line and exit."""
    try:
        with cli.make_context("p2pkv", sys.argv[1:]) as context:
            try:
                cli.invoke(context)
            except P2pkvError as exc:
                fail(exc, as_json=context.meta.get("p2pkv.output") == "json")
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.UsageError as exc:
        path = exc.ctx.command_path if exc.ctx is not None else "p2pkv"
        error = ConfigError(exc.format_message(), hint=f"see `{path} --help`")
        fail(error, as_json=_wants_json(sys.argv[1:]))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
