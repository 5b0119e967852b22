"""`p2pkv ping`, `netcheck` and `doctor`: how members are reached, how fast, and what this host could do better."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pkv.cli.output import FAILED, output_option, print_json, print_table, socket_option
from p2pkv.errors import DaemonUnreachable

if TYPE_CHECKING:
    from p2pkv.local_wire import CheckView, PathsReply, PathView

timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 600.0),
    default=5.0,
    show_default=True,
    help="Seconds a member has.",
)


@click.command(short_help="Show how blocks of a member come here, and how fast.")
@click.argument("peer")
@timeout_option
@click.option("--no-bandwidth", is_flag=True, help="Round trips alone: move no bytes.")
@socket_option
@output_option
def ping(socket: Path | None, output: str, peer: str, timeout_s: float, *, no_bandwidth: bool) -> None:
    """Show by which transport blocks of PEER come here and why, the round trip, and the bandwidth.

    PEER is a name, an id or an address. Bandwidth is that of 8 MiB of known bytes whose digests were right, the best of
    four times. Fails if the member does not answer.
    """
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.ping_peer(peer, timeout_s=timeout_s, measure=not no_bandwidth)
    (path,) = reply.paths
    if output == "json":
        _print_paths(reply)
    else:
        print_table(
            f"{reply.name} to {path.name}",
            ("", ""),
            [
                ("address", path.address),
                ("member", f"{path.state}, {path.id}" + (", this machine" if path.same_host else "")),
                ("transport", path.transport),
                ("because", path.reason),
                *((("connections", path.connections),) if path.connections else ()),
                ("protection", path.protection),
                ("UDP", _answered(path.udp_ms)),
                ("TCP", _answered(path.tcp_ms)),
                ("round trip", _ms(path.rtt_ms)),
                ("bandwidth", _bandwidth(path)),
                ("clock", _skew(path)),
                *((("note", path.note),) if path.note else ()),
            ],
        )
    _exit_unless(path.rtt_ms is not None)


@click.command(short_help="Show which members are reached how.")
@timeout_option
@click.option("--bandwidth", is_flag=True, help="Measure bandwidth too, of one member after the other.")
@socket_option
@output_option
def netcheck(socket: Path | None, output: str, timeout_s: float, *, bandwidth: bool) -> None:
    """Show this node's addresses, and of each member whether UDP and TCP are open both ways, and its path.

    Fails if one does not answer.
    """
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.netcheck(timeout_s=timeout_s, measure=bandwidth)
    if output == "json":
        _print_paths(reply)
    else:
        rows = [
            (
                path.name,
                path.address,
                _answered(path.udp_ms),
                _answered(path.tcp_ms),
                path.transport,
                path.reason,
                _ms(path.rtt_ms),
                *((_bandwidth(path),) if bandwidth else ()),
                _skew(path),
                path.note,
            )
            for path in reply.paths
        ]
        more = ("bandwidth",) if bandwidth else ()
        columns = ("member", "address", "UDP", "TCP", "path", "because", "round trip", *more, "clock", "note")
        click.echo(f"{reply.name}, bound to {reply.bound}, reached at {', '.join(reply.addresses)}", err=True)
        print_table("paths", columns, rows)
    _exit_unless(all(path.udp and path.tcp and path.rtt_ms is not None for path in reply.paths))


@click.command(short_help="Show what this host could do better.")
@timeout_option
@socket_option
@output_option
def doctor(socket: Path | None, output: str, timeout_s: float) -> None:
    """Look at the daemon, its host and its paths: one line each, with a hint where something can be better.

    Fails if a line says `fail`.
    """
    import msgspec

    checks = _daemon_checks(socket, timeout_s)
    worst = max((("ok", "warn", "fail").index(check.state) for check in checks), default=0)
    if output == "json":
        print_json({"state": ("ok", "warn", "fail")[worst], "checks": [msgspec.to_builtins(check) for check in checks]})
    else:
        rows = [(check.name, check.state, check.text, check.hint) for check in checks]
        print_table("doctor", ("", "state", "found", "hint"), rows)
    _exit_unless(all(check.state != "fail" for check in checks))


def _daemon_checks(socket: Path | None, timeout_s: float) -> "list[CheckView]":
    from p2pkv.client import Client
    from p2pkv.local_wire import CheckView

    try:
        with Client.connect(socket, staging_bytes=0) as client:
            checks = [CheckView("daemon", "ok", f"{client.node_name} answers at {client.socket_path}", "")]
            checks += client.condition().checks
            reply = client.netcheck(timeout_s=timeout_s, measure=True)
    except DaemonUnreachable as exc:
        return [CheckView("daemon", "fail", str(exc), exc.hint or "`p2pkv serve`")]
    if not reply.paths:
        checks.append(CheckView("paths", "warn", "no other member is known", "--join HOST:PORT of any member"))
    return checks + [_path_check(path) for path in reply.paths]


def _path_check(path: "PathView") -> "CheckView":
    from p2pkv.local_wire import CheckView

    name = f"path to {path.name}"
    text = f"{path.transport}, {_bandwidth(path)}, round trip {_ms(path.rtt_ms)}, {path.protection}; {path.reason}"
    closed = [kind for kind, is_open in (("UDP", path.udp), ("TCP", path.tcp)) if not is_open]
    if path.rtt_ms is None or closed:
        hint = f"open {' and '.join(closed)} of {path.address} in both directions" if closed else path.note
        return CheckView(name, "fail", f"{text}; {path.note}" if path.note else text, hint)
    if path.bandwidth_gbps is None:
        return CheckView(name, "warn", text, path.note)
    return CheckView(name, "ok", text, "")


def _print_paths(reply: "PathsReply") -> None:
    print_json(
        {
            "node": reply.node,
            "name": reply.name,
            "addresses": list(reply.addresses),
            "bound": reply.bound,
            "paths": _documents(reply.paths),
        }
    )


def _documents(paths: "Sequence[PathView]") -> list[object]:
    import msgspec

    return [msgspec.to_builtins(path) for path in paths]


def _answered(ms: float | None) -> str:
    return "no answer" if ms is None else f"both ways, {ms:.2f} ms"


def _ms(ms: float | None) -> str:
    return "none" if ms is None else f"{ms:.3f} ms"


def _bandwidth(path: "PathView") -> str:
    return "not measured" if path.bandwidth_gbps is None else f"{path.bandwidth_gbps:.2f} GB/s"


def _skew(path: "PathView") -> str:
    return "not known" if path.clock_skew_s is None else f"{path.clock_skew_s:+.3f} s"


def _exit_unless(good: bool) -> None:
    if not good:
        raise SystemExit(FAILED)
