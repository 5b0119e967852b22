"""Whose a certificate is: `spiffe://CLUSTER/node/NODE`, the one URI among its alternative names (SPIFFE X.509-SVID).

An authority has `spiffe://CLUSTER`. Sans-IO; that a certificate is genuine is TLS's to say, not this module's.
"""

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from p2pkv.errors import ConfigError

CLUSTER_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
"""A cluster whose nodes have certificates is named so, for it is a SPIFFE trust domain."""
NODE_ID: Final = re.compile(r"[0-9a-f]{16}")
FINGERPRINT_DIGITS: Final = 16
"""Hexadecimal digits that people are shown of a certificate's SHA-256."""
_URI: Final = re.compile(r"spiffe://([a-z0-9._-]{1,64})(?:/node/([0-9a-f]{16}))?")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says. Times are the wall clock's, seconds since 1970."""

    cluster: str
    node: str
    """Empty for an authority."""
    not_before: float
    not_after: float
    sha256: str
    """Of its DER, in hexadecimal digits."""
    parsed: x509.Certificate = field(repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """What people compare."""
        return self.sha256[:FINGERPRINT_DIGITS]


def uri(cluster: str, node: str = "") -> str:
    """Return the name of a node, or of a cluster's authority.

    Raises:
        ConfigError: a certificate cannot say this.
    """
    if not CLUSTER_NAME.fullmatch(cluster):
        raise ConfigError(
            f"cluster {cluster!r} cannot stand in a certificate",
            hint="with certificates a cluster's name has small letters, digits, `.`, `-` and `_` only",
        )
    if node and not NODE_ID.fullmatch(node):
        raise ConfigError(
            f"node id {node!r} cannot stand in a certificate",
            hint="16 hexadecimal digits, as `p2pkv status` shows; without --node a new one is drawn",
        )
    return f"spiffe://{cluster}/node/{node}" if node else f"spiffe://{cluster}"


def described(certificate: x509.Certificate, *, named: bool = True) -> Certificate:
    """Return what `certificate` says; one that need not be `named`, as an authority of other tools, is of cluster "".

    Raises:
        ConfigError: it is not one of a node's or an authority's.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        uris = []
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None and named:
        said = ", ".join(uris)[:100] or "none"
        raise ConfigError(
            f"a certificate without a node's name (URI names: {said!r})",
            hint="its one URI name must be spiffe://CLUSTER/node/NODE; `p2pkv cert issue` makes such",
        )
    return Certificate(
        cluster=match[1] if match else "",
        node=(match[2] or "") if match else "",
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        sha256=sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        parsed=certificate,
    )


def is_issued_by_any(certificate: x509.Certificate, authorities: tuple[x509.Certificate, ...]) -> bool:
    """Say whether one of `authorities` has signed `certificate` itself."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False
