"""`p2pkv keys`: make, list, install, use and remove the keys of a mesh. Key bytes are printed by `generate` only."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2pkv.cli.output import FAILED, output_option, print_json, print_table, socket_option

if TYPE_CHECKING:
    from p2pkv.local_wire import KeysReply

LIST, INSTALL, USE, REMOVE = range(4)
_DONE: Final = {INSTALL: "installed", USE: "in use", REMOVE: "removed"}

timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 600), default=10.0, show_default=True, metavar="SECONDS",
    help="How long to wait for members that do not answer.",
)  # fmt: skip
force_option = click.option("--force", is_flag=True, help="Do it although a member would be shut out.")


@click.group(short_help="Make, list and change the keys of the mesh.")
def keys() -> None:
    """Make, list and change the keys of the mesh. To rotate: install a new key, use it, remove the old one.

    Keys are named by the first digits of their fingerprints; docs/guides/security.md tells the whole way.
    """


@keys.command(short_help="Make a new key.")
@click.option(
    "--write", "path", type=click.Path(path_type=Path), default=None, metavar="FILE",
    help="Put it into a new keyring file, mode 0600, instead of printing it.",
)  # fmt: skip
@output_option
def generate(path: Path | None, output: str) -> None:
    """Make a new key of 256 random bits and print it, or put it into a new keyring file."""
    import secrets

    from p2pkv.keyring_file import write_keyring
    from p2pkv.transport.keyring import RING_KEY_BYTES, KeyRing, fingerprint, format_key

    key = secrets.token_bytes(RING_KEY_BYTES)
    name = fingerprint(key).hex()
    if path is not None:
        write_keyring(path, KeyRing((key,)), replace=False)
    if output == "json":
        print_json({"fingerprint": name, **({"file": str(path)} if path is not None else {"key": format_key(key)})})
    elif path is None:
        click.echo(format_key(key))
        click.echo(f"fingerprint {name}", err=True)
    else:
        click.echo(f"{path}: a keyring with one key, fingerprint {name}", err=True)


@keys.command("list", short_help="Show the keys and how many nodes hold each.")
@timeout_option
@socket_option
@output_option
def list_keys(socket: Path | None, timeout_s: float, output: str) -> None:
    """Show the keys, by fingerprint, and how many of the nodes that can be reached hold each."""
    _report(_ask(socket, LIST, timeout_s=timeout_s), output, said="")


@keys.command(short_help="Give a new key to all members.")
@click.argument("key")
@timeout_option
@socket_option
@output_option
def install(key: str, socket: Path | None, timeout_s: float, output: str) -> None:
    """Give a new key, in base64, to all members, which accept it from then on and do not use it yet.

    KEY as `-` is read from standard input: other users of a machine can see command lines.
    """
    from p2pkv.transport.keyring import fingerprint, parse_key

    given = parse_key(sys.stdin.readline() if key == "-" else key)
    reply = _ask(socket, INSTALL, key=given, timeout_s=timeout_s)
    name = fingerprint(given).hex()
    _report(reply, output, said=f"key {name} is installed at {_count(reply, name)} nodes")


@keys.command(short_help="Have all members encrypt with another key.")
@click.argument("fingerprint")
@force_option
@timeout_option
@socket_option
@output_option
def use(fingerprint: str, socket: Path | None, timeout_s: float, output: str, *, force: bool) -> None:
    """Make an installed key the primary one of all members: what they encrypt with.

    Nothing is changed if a member does not have it or does not answer, unless --force is given.
    """
    reply = _ask(socket, USE, name=fingerprint, timeout_s=timeout_s, force=force)
    total = len(reply.members)
    using = sum(member.keys[:1] == reply.keys[:1] for member in reply.members)
    said = f"key {reply.keys[0]} is the primary one of {using} of {total} nodes" if reply.obeyed else ""
    _report(reply, output, said=said)


@keys.command(short_help="Take a key away from all members.")
@click.argument("fingerprint")
@force_option
@timeout_option
@socket_option
@output_option
def remove(fingerprint: str, socket: Path | None, timeout_s: float, output: str, *, force: bool) -> None:
    """Take a key away from all members: what is encrypted with it is refused from then on.

    The primary key cannot be removed. Nothing is changed if it is the primary one of any member, or a member does not
    answer, unless --force is given.
    """
    reply = _ask(socket, REMOVE, name=fingerprint, timeout_s=timeout_s, force=force)
    _report(reply, output, said="the key is removed from all nodes" if reply.obeyed else "")


def _ask(
    socket: Path | None, action: int, *, timeout_s: float, key: bytes = b"", name: str = "", force: bool = False
) -> "KeysReply":
    from p2pkv.client import Client

    with Client.connect(socket, staging_bytes=0) as client:
        return client.keys(action, key=key, name=name, timeout_s=timeout_s, force=force)


def _report(reply: "KeysReply", output: str, *, said: str) -> None:
    """Print who holds what; end with 1 if somebody was left out."""
    import msgspec

    seen = dict.fromkeys([*reply.keys, *(name for member in reply.members for name in member.keys)])
    rows = [
        (
            name,
            "yes" if name in reply.keys[:1] else "",
            sum(name in member.keys for member in reply.members),
            sum(member.keys[:1] == (name,) for member in reply.members),
        )
        for name in seen
    ]
    if output == "json":
        fields = ("fingerprint", "primary", "held_by", "primary_of")
        documents = [dict(zip(fields, (name, bool(first), *rest), strict=True)) for name, first, *rest in rows]
        members = [msgspec.to_builtins(member) for member in reply.members]
        print_json(
            {
                "obeyed": reply.obeyed,
                "reason": reply.reason,
                "nodes": len(reply.members),
                "keys": documents,
                "members": members,
            }
        )
    else:
        total = len(reply.members)
        table = [(name, first, f"{held} of {total}", f"{using} of {total}") for name, first, held, using in rows]
        print_table("keys", ("fingerprint", "primary here", "held by", "primary of"), table)
        lacking = [
            (member.name, member.address, ", ".join(member.keys) if member.answered else "no answer", member.note)
            for member in reply.members
            if (member.keys != reply.keys and set(member.keys) != set(reply.keys)) or member.note
        ]
        if lacking:
            print_table("nodes that differ from this one", ("name", "address", "keys", "note"), lacking)
        if said:
            click.echo(said, err=True)
    if not reply.obeyed:
        click.echo(f"error: {reply.reason}", err=True)
        click.echo("hint: run the command again when these nodes answer; each step may be repeated", err=True)
        sys.exit(FAILED)


def _count(reply: "KeysReply", name: str) -> str:
    return f"{sum(name in member.keys for member in reply.members)} of {len(reply.members)}"
