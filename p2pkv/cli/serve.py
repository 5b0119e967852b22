"""`p2pkv serve`: start a node."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pkv.cli.output import output_option, print_json
from p2pkv.errors import ConfigError

if TYPE_CHECKING:
    from p2pkv.agent import Agent


@click.command(short_help="Start a node.")
@click.option("--config", "file", type=click.Path(path_type=Path), default=None, help="A TOML file of settings.")
@click.option("--profile", default="lan", show_default=True, help="Defaults for the network: lan, wan or loopback.")
@click.option("--name", default=None, help="What people call this node.")
@click.option("--cluster", default=None, help="Nodes of different clusters refuse each other.")
@click.option("--bind", default=None, metavar="HOST:PORT", help="Where to listen. [default: 127.0.0.1:7710]")
@click.option("--advertise", default=None, metavar="HOST:PORT", help="Where others reach it, if not at --bind.")
@click.option(
    "--join",
    multiple=True,
    metavar="SEED",
    help="HOST:PORT of any member, or dns://, dns+srv://, mdns://, file:// or exec: to look for some; several may be given.",
)
@click.option("--socket", default=None, help="Where engines and the command line reach it.")
@click.option("--host-bytes", default=None, metavar="SIZE", help="Memory to offer, such as 4GiB. [default: 1GiB]")
@click.option("--disk", default=None, metavar="FOLDER", help="Where to keep blocks on a local disk. [default: nowhere]")
@click.option("--disk-bytes", default=None, metavar="SIZE", help="Room to use there, such as 200GiB. [default: 64GiB]")
@click.option(
    "--object", default=None, metavar="URL", help="An object store behind it all, such as s3://BUCKET/FOLDER."
)
@click.option("--state-dir", default=None, help="Where its id is kept over restarts; '' keeps none. [default: auto]")
@click.option("--zone", default=None, help="Rack or zone.")
@click.option("--metrics", default=None, metavar="HOST:PORT", help="Where Prometheus may scrape.")
@click.option("--keyring", default=None, metavar="FILE", help="The mesh's keys: encrypt, and let in only who has them.")
@click.option(
    "--certificates", default=None, metavar="FOLDER", help="This node's certificate, from `p2pkv cert issue`."
)
@click.option("--insecure", is_flag=True, default=None, help="Allow a --bind that other machines reach, unencrypted.")
@click.option("--log-level", default=None, help="debug, info, warning or error.")
@click.option("--log-format", default=None, help="text or json.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.FIELD=VALUE", help="Any other setting.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Follow the daemon at the same --socket: copy the blocks it has in memory, then have it leave. Starts as ever if there is none.",
)
@click.option("--stop-with-stdin", is_flag=True, help="Leave, too, when standard input ends, as with its other end.")
@output_option
def serve(
    output: str,
    file: Path | None,
    profile: str,
    join: tuple[str, ...],
    settings: tuple[str, ...],
    *,
    stop_with_stdin: bool,
    take_over: bool,
    **flags: object,
) -> None:
    """Start a node and run it until SIGINT, SIGTERM or `p2pkv leave`.

    To upgrade a node without losing what it has in memory, start the new one beside it with the same options and
    `--take-over`.
    """
    from p2pkv.config import load
    from p2pkv.daemon import serve as run
    from p2pkv.fabric import leave_well

    names = {
        "host_bytes": "host.capacity_bytes",
        "disk": "disk.path",
        "disk_bytes": "disk.capacity_bytes",
        "object": "object.url",
        "keyring": "security.keyring",
        "certificates": "security.certificates",
        "log_level": "log.level",
        "log_format": "log.format",
        **{
            name: f"node.{name}"
            for name in ("name", "cluster", "bind", "advertise", "socket", "zone", "metrics", "insecure", "state_dir")
        },
    }
    dotted: dict[str, object] = {names[name]: value for name, value in flags.items() if value is not None}
    if join:
        dotted["node.join"] = join
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise ConfigError(
                f"--set {setting!r}", hint="write section.field=value, for example mesh.probe_period_s=0.5"
            )
        dotted[name] = value

    def ready(agent: "Agent") -> None:
        facts = {
            "node": agent.me.id,
            "name": agent.me.name,
            "address": agent.me.address,
            "socket": str(agent.local.path),
        }
        if output == "json":
            print_json(facts)
        click.echo(
            f"p2pkv node {agent.me.name} ({agent.me.id}) is ready at {agent.me.address}, socket {agent.local.path}",
            err=True,
        )

    run(
        load(file=file, flags=dotted, profile=profile),
        ready=ready,
        stop_with_stdin=stop_with_stdin,
        following=take_over,
    )
    leave_well()
