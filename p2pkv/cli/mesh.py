"""`p2pkv status`, `members`, `leave`: what a node is and whom it knows."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option

if TYPE_CHECKING:
    from p2pkv.local_wire import SourceView, StatusReply


@click.command(short_help="Show what the node believes of each member.")
@socket_option
@output_option
def members(socket: Path | None, output: str) -> None:
    """Show what the node believes of each member; dead and departed ones stay listed for a while."""
    import msgspec

    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        views = client.members()
    if output == "json":
        print_json({"members": [msgspec.to_builtins(view) for view in views]})
        return
    columns = ("name", "state", "address", "where", "offers", "load", "id")
    rows = [
        (
            f"{view.name} *" if view.self else view.name,
            view.state if view.compatible else f"{view.state}, speaks {view.protocol_min} to {view.protocol_max}",
            view.address,
            "/".join(part for part in (view.zone, view.rack) if part) or ("this machine" if view.same_host else ""),
            " + ".join(f"{size_text(count)} {tier}" for tier, count in view.offered.items()) or "nothing",
            "" if view.load is None else f"{view.load} %",
            view.id,
        )
        for view in views
    ]
    print_table("members (* this node)", columns, rows)


@click.command(short_help="Show how the node is.")
@socket_option
@output_option
def status(socket: Path | None, output: str) -> None:
    """Show how the node is: memory, members, summary, fetches and counters."""
    import msgspec

    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.status()
    if output == "json":
        print_json(msgspec.to_builtins(msgspec.structs.asdict(reply)) | {"socket": str(client.socket_path)})
        return
    tier = reply.tier
    rows = [
        ("node", f"{reply.name} ({reply.node})"),
        ("cluster", reply.cluster),
        ("address", reply.address),
        ("socket", client.socket_path),
        ("version", reply.version),
        ("up", f"{reply.uptime_s:.0f} s"),
        ("protection", reply.protection),
        *((f"  {what}", by) for what, by in reply.protected_by.items() if by != reply.protection),
        ("members", ", ".join(f"{number} {state}" for state, number in sorted(reply.members.items()))),
        ("identity", _identity_text(reply)),
        ("seeds", ", ".join(f"{seed}: {state}" for seed, state in sorted(reply.seeds.items())) or "none"),
        *((view.source, _source_text(view)) for view in reply.sources),
        ("host tier", f"{size_text(tier['used_bytes'])} of {size_text(tier['capacity_bytes'])}"),
        ("blocks", f"{tier['blocks']} ({tier['pinned_blocks']} pinned, {tier['evictions']} evicted)"),
        *([("disk tier", _disk_text(reply))] if reply.disk else []),
        *([("object store", _object_text(reply))] if reply.object else []),
        ("summary", f"version {reply.summary['epoch']:.0f}.{reply.summary['seq']:.0f}"),
        ("of peers", _peers_summaries(reply.summary)),
        ("directory", f"{reply.directory['told']} records at owners, {reply.directory['kept']} kept here"),
        ("fetches", f"{reply.fetch['fetches']} ({reply.fetch['in_flight']} blocks on their way)"),
    ]
    rows[1:1] = [
        ("warning", f"another node has this node's id: {view.address}, heard of {view.heard_age_s:.0f} s ago")
        for view in reply.duplicates
    ]
    print_table("status", ("", ""), rows)
    used = sorted((name, value) for name, value in reply.counters.items() if value)
    if used:
        print_table("counters", ("", ""), [(name, f"{value:.0f}") for name, value in used])


def _disk_text(reply: "StatusReply") -> str:
    disk = reply.disk
    if disk["reason"]:
        return f"{disk['state']}: {disk['reason']}"
    return f"{size_text(int(disk['used_bytes']))} of {size_text(int(disk['capacity_bytes']))}, {disk['blocks']} blocks"


def _object_text(reply: "StatusReply") -> str:
    store = reply.object
    if store["reason"]:
        return f"{store['state']}: {store['reason']}"
    return f"{store['state']}, {store['written']} blocks put there, {store['read']} got"


def _identity_text(reply: "StatusReply") -> str:
    if reply.state_dir:
        return f"kept in {reply.state_dir}"
    certified = reply.protected_by.get("control", "").startswith("TLS")
    return "of the certificate" if certified else "not kept: another id after a restart"


def _source_text(view: "SourceView") -> str:
    gave = ", ".join(view.addresses) or "nothing"
    known = f"gave {gave}" if view.resolved_age_s is not None else "gave nothing yet"
    return known + (f"; failed {view.failed_age_s:.0f} s ago: {view.reason}" if view.failed_age_s is not None else "")


@click.command(short_help="Leave the mesh and stop the daemon.")
@socket_option
@output_option
def leave(socket: Path | None, output: str) -> None:
    """Have the node leave the mesh in good order, and its daemon stop."""
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        client.leave()
        facts = {"left": True, "node": client.node_id, "name": client.node_name}
    if output == "json":
        print_json(facts)
    else:
        click.echo(f"{client.node_name} is leaving", err=True)


def _peers_summaries(summary: Mapping[str, float]) -> str:
    """Return what is held of peers' summaries, and how far it may be believed."""
    text = f"{summary['peers_with_filter']:.0f} of {summary['peers']:.0f} summaries"
    text += f" in {size_text(int(summary['filter_bytes']))}"
    states = ("unsettled", "folded", "distrusted")
    found = [f"{summary[f'peers_{state}']:.0f} {state}" for state in states if summary[f"peers_{state}"]]
    return text + (f" ({', '.join(found)})" if found else "")
