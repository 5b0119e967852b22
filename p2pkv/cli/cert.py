"""`p2pkv cert`: an authority for a cluster, and certificates for its nodes. Keys are written to files, never printed."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2pkv.cli.output import output_option, print_json, print_table
from p2pkv.errors import ConfigError

if TYPE_CHECKING:
    from p2pkv.authority import Authority
    from p2pkv.transport.certificates import Certificate

_DAY_S: Final = 86_400
_STEPS: Final = {
    "install": "both authorities are believed where this bundle is. Now `p2pkv cert rotate` every node's folder, then --step use",
    "use": "the new authority signs. Now `p2pkv cert rotate` every node's folder again, then --step remove",
    "remove": "the old authority is gone from the bundle. Now `p2pkv cert rotate` every node's folder once more",
}
_SHORT_DAYS: Final = 14

folder_argument = click.argument("folder", type=click.Path(path_type=Path))
authority_option = click.option(
    "--authority", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
    help="The authority's folder, as `p2pkv cert init` made it.",
)  # fmt: skip


@click.group(short_help="Make and change the certificates of nodes.")
def cert() -> None:
    """Make and change certificates: who a node is, which a shared key cannot tell.

    docs/guides/security.md has a walk-through. With other tools: a folder with tls.crt, tls.key and ca.crt, the one
    URI name of the certificate spiffe://CLUSTER/node/NODE.
    """


@cert.command(short_help="Make the authority of a cluster.")
@folder_argument
@click.option("--cluster", default="default", show_default=True, help="As in node.cluster.")
@click.option("--days", type=click.IntRange(1, 20 * 365), default=1825, show_default=True, help="How long it is good.")
@output_option
def init(folder: Path, cluster: str, days: int, output: str) -> None:
    """Make the authority of a cluster in FOLDER. Whoever can read it can make nodes: keep it off the nodes."""
    from p2pkv.authority import Authority

    made = Authority.create(folder, cluster=cluster, days=days, now=time.time())
    _report(folder, [made.signing], output, said=f"an authority for cluster {cluster}; `p2pkv cert issue` uses it")


@cert.command(short_help="Make a node's certificate.")
@folder_argument
@authority_option
@click.option("--node", default=None, metavar="ID", help="The node's id. [default: a new one]")
@click.option("--days", type=click.IntRange(1, 20 * 365), default=90, show_default=True, help="How long it is good.")
@output_option
def issue(folder: Path, authority: Path, node: str | None, days: int, output: str) -> None:
    """Make a certificate and its key for a node in FOLDER, which is to be brought to that node.

    The node takes its id from it. One that has an id already keeps it with --node; `p2pkv status` shows it.
    """
    from p2pkv.authority import Authority, new_node_id
    from p2pkv.certificate_files import CERTIFICATE, KEY

    if (folder / CERTIFICATE).exists() or (folder / KEY).exists():
        raise ConfigError(
            f"there is a certificate already, left alone: {folder}",
            hint="`p2pkv cert rotate` gives the node another, or choose another folder",
        )
    made = _issue(folder, Authority.read(authority), node or new_node_id(), days)
    _report(folder, [made], output, said=f"set security.certificates to {folder} on node {made.node}")


@cert.command(short_help="Give a node another certificate, or change the authority.")
@folder_argument
@click.option(
    "--authority", type=click.Path(path_type=Path), default=None, metavar="FOLDER",
    help="For a node's folder: the authority that signs.",
)  # fmt: skip
@click.option(
    "--step", type=click.Choice(list(_STEPS)), default=None,
    help="For an authority's folder: have its new key believed, sign with it, believe the old one no more.",
)  # fmt: skip
@click.option("--days", type=click.IntRange(1, 20 * 365), default=None, help="How long it is good. [default: 90, 1825]")
@output_option
def rotate(folder: Path, authority: Path | None, step: str | None, days: int | None, output: str) -> None:
    """Give the node of FOLDER a new certificate and key, and the authority's bundle of now.

    Running nodes see it within seconds and lose nothing. With --step FOLDER is an authority's: do the three steps in
    order, and `rotate` every node after each.
    """
    from p2pkv.authority import AUTHORITY_DAYS, AUTHORITY_KEY, NODE_DAYS, Authority
    from p2pkv.certificate_files import CERTIFICATE, read_file
    from p2pkv.transport.certificates import described
    from p2pkv.transport.credentials import parse_certificates

    if (folder / AUTHORITY_KEY).exists():
        found = Authority.read(folder)
        if step is None:
            order = {"": "install", "install": "use", "use": "remove"}
            raise ConfigError(f"this is an authority's folder: {folder}", hint=f"next is --step {order[found.step]}")
        if step == "install":
            found = found.install(days=days or AUTHORITY_DAYS, now=time.time())
        else:
            found = found.use() if step == "use" else found.remove()
        _report(folder, [described(one) for one in found.certificates], output, said=_STEPS[step])
        return
    if authority is None or step is not None:
        raise ConfigError(
            f"not an authority's folder: {folder}",
            hint="for a node's folder give --authority and no --step",
        )
    (first, *_) = parse_certificates(read_file(folder / CERTIFICATE, secret=False), what=CERTIFICATE)
    before, signer = described(first), Authority.read(authority)
    if before.cluster != signer.signing.cluster:
        raise ConfigError(
            f"the node is of cluster {before.cluster!r}, the authority of {signer.signing.cluster!r}",
            hint="choose the authority of the node's cluster",
        )
    made = _issue(folder, signer, before.node, days or NODE_DAYS)
    _report(folder, [made], output, said=f"node {made.node} has a new certificate; a running one takes it by itself")


@cert.command(short_help="Show whose certificates are in a folder, and until when.")
@folder_argument
@output_option
def show(folder: Path, output: str) -> None:
    """Show whose certificates are in FOLDER, of a node or an authority, and until when."""
    from p2pkv.authority import AUTHORITY_KEY, Authority
    from p2pkv.certificate_files import read_credentials
    from p2pkv.transport.certificates import described

    if (folder / AUTHORITY_KEY).exists():
        found = Authority.read(folder)
        said = f"a change of the authority is under way, its last step was {found.step}" if found.step else ""
        _report(folder, [described(one) for one in found.certificates], output, said=said)
        return
    held = read_credentials(folder)
    _report(folder, [held.own, *(described(one, named=False) for one in held.authorities)], output, said="")


def _issue(folder: Path, authority: "Authority", node: str, days: int) -> "Certificate":
    from p2pkv.certificate_files import write_node_folder

    chain, key, made = authority.issue(node, days=days, now=time.time())
    write_node_folder(folder, chain=chain, key=key, authorities=authority.bundle)
    return made


def _report(folder: Path, certificates: "list[Certificate]", output: str, *, said: str) -> None:
    now = time.time()
    if output == "json":
        documents = [
            {
                "cluster": one.cluster,
                "node": one.node,
                "kind": "node" if one.node else "authority",
                "not_before": _date(one.not_before),
                "not_after": _date(one.not_after),
                "valid": one.not_before <= now < one.not_after,
                "days_left": round((one.not_after - now) / _DAY_S),
                "fingerprint": one.fingerprint,
                "sha256": one.sha256,
            }
            for one in certificates
        ]
        print_json({"folder": str(folder), "certificates": documents})
        return
    rows = [
        (one.node or "authority", one.cluster or "any", _date(one.not_after), _left(one, now), one.fingerprint)
        for one in certificates
    ]
    print_table(str(folder), ("node", "cluster", "until", "left", "fingerprint"), rows)
    if said:
        click.echo(said, err=True)


def _left(one: "Certificate", now: float) -> str:
    if now < one.not_before:
        return "not valid yet"
    if now >= one.not_after:
        return "EXPIRED"
    days = round((one.not_after - now) / _DAY_S)
    return f"{days} days" + (", rotate soon" if days < _SHORT_DAYS and one.node else "")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
