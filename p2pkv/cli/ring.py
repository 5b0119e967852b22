"""`p2pkv ring`: who owns how much."""

from pathlib import Path

import click

from p2pkv.cli.output import output_option, print_json, print_table, size_text, socket_option


@click.command(short_help="Show who owns how much of the ring.")
@socket_option
@output_option
def ring(socket: Path | None, output: str) -> None:
    """Show how the ring shares keys among members: by weight, by what each owns, and how even that is.

    `due` is a member's part of all offered memory, `owns` the part of all keys that it is first owner of, and `keeps`
    the part it keeps directory records of, as first owner or further one.
    """
    import msgspec

    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        reply = client.ring()
    load = {one.id: one.share / one.due for one in reply.members}
    zones: dict[str, list[float]] = {}
    for one in reply.members:
        zone = zones.setdefault(one.zone, [0, 0.0, 0.0])
        zone[0] += 1
        zone[1] += one.share
        zone[2] += one.kept
    greatest = max(load.values(), default=0.0)
    if output == "json":
        print_json(
            {
                "members": [msgspec.to_builtins(one) | {"load": load[one.id]} for one in reply.members],
                "zones": [
                    {"zone": name, "members": int(count), "share": share, "kept": kept}
                    for name, (count, share, kept) in sorted(zones.items())
                ],
                "owners": reply.owners,
                "slots": reply.slots,
                "load_max": greatest,
                "bound": reply.bound,
                "fingerprint": reply.fingerprint,
            }
        )
        return
    rows = [
        (
            f"{one.name} *" if one.self else one.name,
            one.zone or "-",
            size_text(one.offered_bytes),
            f"{one.due:.2%}",
            f"{one.share:.2%}",
            f"{load[one.id]:.3f}",
            f"{one.kept:.2%}",
        )
        for one in reply.members
    ]
    columns = ("name", "zone", "offers", "due", "owns", "owns / due", "keeps")
    print_table(f"ring of {len(rows)}, {reply.owners} owners a key (* this node)", columns, rows)
    if len(zones) > 1:
        by_zone = [
            (name or "-", int(count), f"{share:.2%}", f"{kept:.2%}")
            for name, (count, share, kept) in sorted(zones.items())
        ]
        print_table("zones", ("zone", "members", "owns", "keeps"), by_zone)
    click.echo(f"greatest owns / due {greatest:.3f}, bound {reply.bound}; fingerprint {reply.fingerprint}")
