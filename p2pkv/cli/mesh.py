"""`p2pkv status`, `members`, `leave`: what a node is and whom it knows."""

from collections.abc import Mapping
from pathlib import Path

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option


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
    rows = [
        (f"{view.name} *" if view.self else view.name, view.state, view.address, size_text(view.offered_bytes), view.id)
        for view in views
    ]
    print_table("members (* this node)", ("name", "state", "address", "offers", "id"), rows)


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
        print_json(msgspec.structs.asdict(reply) | {"socket": str(client.socket_path)})
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
        ("members", ", ".join(f"{number} {state}" for state, number in sorted(reply.members.items()))),
        ("seeds", ", ".join(f"{seed}: {state}" for seed, state in sorted(reply.seeds.items())) or "none"),
        ("host tier", f"{size_text(tier['used_bytes'])} of {size_text(tier['capacity_bytes'])}"),
        ("blocks", f"{tier['blocks']} ({tier['pinned_blocks']} pinned, {tier['evictions']} evicted)"),
        ("summary", f"version {reply.summary['epoch']:.0f}.{reply.summary['seq']:.0f}"),
        ("of peers", _peers_summaries(reply.summary)),
        ("directory", f"{reply.directory['told']} records at owners, {reply.directory['kept']} kept here"),
        ("fetches", f"{reply.fetch['fetches']} ({reply.fetch['in_flight']} blocks on their way)"),
    ]
    print_table("status", ("", ""), rows)
    used = sorted((name, value) for name, value in reply.counters.items() if value)
    if used:
        print_table("counters", ("", ""), [(name, f"{value:.0f}") for name, value in used])


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
