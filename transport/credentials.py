"""What a node shows and whom it believes, ready for TLS 1.3 and nothing older. A change of files is another value."""

import os
import ssl
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from p2pkv.errors import ConfigError
from p2pkv.transport.certificates import Certificate, described, is_issued_by_any

_REMAKE: Final = "make it again with `p2pkv cert issue` or `p2pkv cert rotate`"


class TlsContext(ssl.SSLContext):
    """A context that lets one see what the object made last has still to send: an alert says why it failed."""

    outgoing: ssl.MemoryBIO

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        """See `ssl.SSLContext`."""
        self.outgoing = outgoing
        return super().wrap_bio(incoming, outgoing, *args, **options)


@dataclass(frozen=True, slots=True, eq=False)
class Credentials:
    """A node's certificate with its key, and the authorities it believes."""

    own: Certificate
    authorities: tuple[x509.Certificate, ...] = field(repr=False)
    server: TlsContext = field(repr=False)
    client: TlsContext = field(repr=False)

    def trusts(self, certificate: x509.Certificate) -> bool:
        """Say whether an authority of ours has signed `certificate` itself."""
        return is_issued_by_any(certificate, self.authorities)


def credentials(*, chain: bytes, key: bytes, authorities: bytes) -> Credentials:
    """Return what these PEM texts hold: own certificate and those between it and an authority, its key, the authorities.

    Raises:
        ConfigError: they are no such thing, or do not belong together.
    """
    certificates = parse_certificates(chain, what="the certificate")
    bundle = parse_certificates(authorities, what="the authorities")
    own = described(certificates[0])
    if not own.node:
        raise ConfigError("the certificate is an authority's, not a node's", hint=_REMAKE)
    try:
        public = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError) as exc:
        raise ConfigError("the key is not a private key in PEM without a password", hint=_REMAKE) from exc
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if public.public_bytes(*form) != own.parsed.public_key().public_bytes(*form):
        raise ConfigError("the key is not the one of the certificate", hint=_REMAKE)
    for lower, upper in pairwise(certificates):
        if not is_issued_by_any(lower, (upper,)):
            raise ConfigError("the certificates are not in order: each is to be signed by the next", hint=_REMAKE)
    if not is_issued_by_any(certificates[-1], bundle):
        raise ConfigError(
            "the certificate is not of an authority that this node believes",
            hint="give the folder the authorities' bundle (ca.crt) that belongs to it",
        )
    server, client = TlsContext(ssl.PROTOCOL_TLS_SERVER), TlsContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # a node is known by its URI name, compared in `p2pkv.transport.tls`
    for context in (server, client):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
        _load(context, chain, key)
    # No resumption: a ticket would outlive a change of certificates, and unread ones would reset connections.
    server.num_tickets = 0
    return Credentials(own, bundle, server, client)


def parse_certificates(pem: bytes, *, what: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates in `pem`, at least one.

    Raises:
        ConfigError: there is none, or something else.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as exc:
        raise ConfigError(f"{what} cannot be read as PEM", hint=_REMAKE) from exc


def _load(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """Give `context` exactly the bytes that were looked at: files may change between two readings."""
    descriptor = os.memfd_create("p2pkv-certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, key + b"\n" + chain)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(f"TLS does not take the certificate ({exc})", hint=_REMAKE) from exc
    finally:
        os.close(descriptor)
