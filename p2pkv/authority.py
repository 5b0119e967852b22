"""The authority of a cluster: a folder with its key and its certificates, which signs those of the nodes.

It is for the machine where certificates are made, and no node needs it. A change of the authority takes three steps, as one
of the keyring does: the new one is believed by all, then it signs, then the old one is believed no more.

    ca.key    the key that signs
    ca.crt    the certificates that nodes believe: of that key, and while it changes of another one too
    next.key  the key that will sign, after `install` and before `use`
"""

import datetime as dt
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from p2pkv.certificate_files import AUTHORITIES, read_file, write_file
from p2pkv.errors import ConfigError
from p2pkv.transport.certificates import Certificate, described, uri
from p2pkv.transport.credentials import parse_certificates

AUTHORITY_DAYS: Final = 5 * 365
NODE_DAYS: Final = 90
DAYS_MAX: Final = 20 * 365
BACKDATED_S: Final = 300
"""Certificates begin that long before they are made: clocks differ."""
AUTHORITY_KEY: Final = "ca.key"
NEXT_KEY: Final = "next.key"


class Authority:
    """What is in the folder of an authority."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificates: Sequence[x509.Certificate]) -> None:
        self.folder: Final = folder
        self.certificates: Final = tuple(certificates)
        """Those that nodes are to believe."""
        self._key = key
        self.signing: Final = described(_of_key(self.certificates, key, folder))

    @classmethod
    def create(cls, folder: Path, *, cluster: str, days: int, now: float) -> "Authority":
        """Make an authority for `cluster` in `folder`.

        Raises:
            ConfigError: there is one already, it cannot be written, or the cluster's name cannot stand in a certificate.
        """
        name = uri(cluster)
        if (folder / AUTHORITY_KEY).exists() or (folder / AUTHORITIES).exists():
            raise ConfigError(
                f"there is an authority already, left alone: {folder}",
                hint="choose another folder; to change this one see `p2pkv cert rotate --help`",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, name, days=days, now=now)
        write_file(folder / AUTHORITY_KEY, _pem(key))
        write_file(folder / AUTHORITIES, certificate.public_bytes(Encoding.PEM))
        return cls(folder, key, (certificate,))

    @classmethod
    def read(cls, folder: Path) -> "Authority":
        """Return the authority in `folder`.

        Raises:
            ConfigError: there is none, or others may read its key.
        """
        key = _read_key(folder / AUTHORITY_KEY)
        return cls(folder, key, parse_certificates(read_file(folder / AUTHORITIES, secret=False), what="ca.crt"))

    @property
    def bundle(self) -> bytes:
        """What nodes are to believe, in PEM."""
        return b"".join(one.public_bytes(Encoding.PEM) for one in self.certificates)

    @property
    def step(self) -> str:
        """The step of a change that was made last: `install`, `use`, or nothing while there is no change."""
        if len(self.certificates) == 1:
            return ""
        return "install" if (self.folder / NEXT_KEY).exists() else "use"

    def issue(self, node: str, *, days: int, now: float) -> tuple[bytes, bytes, Certificate]:
        """Return a new certificate for `node` and its key, both in PEM, and what it says.

        It ends with the authority at the latest.

        Raises:
            ConfigError: `node` cannot stand in a certificate, or the authority's time is over.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        until = min(now + days * 86_400, self.signing.not_after)
        if until <= now:
            raise ConfigError(
                f"the authority's certificate has expired: {self.folder}",
                hint="change the authority: `p2pkv cert rotate --step install`",
            )
        signer = self.signing.parsed
        common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
        builder = _begun(common, uri(self.signing.cluster, node), key, now=now, until=until).issuer_name(signer.subject)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _pem(key), described(certificate)

    def install(self, *, days: int, now: float) -> "Authority":
        """Add a new certificate to those that nodes are to believe; it does not sign yet.

        Raises:
            ConfigError: a change is under way.
        """
        if self.step:
            raise ConfigError(
                f"a change of the authority is under way, {self.step!r} was its last step: {self.folder}",
                hint=f"go on with --step {'use' if self.step == 'install' else 'remove'}",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key, uri(self.signing.cluster), days=days, now=now)
        write_file(self.folder / NEXT_KEY, _pem(key))
        return self._rewritten((*self.certificates, certificate))

    def use(self) -> "Authority":
        """Sign with the new key from now on.

        Raises:
            ConfigError: there is none.
        """
        if self.step != "install":
            raise ConfigError(f"there is no new key: {self.folder}", hint="begin with --step install")
        key = _read_key(self.folder / NEXT_KEY)
        _of_key(self.certificates, key, self.folder)
        write_file(self.folder / AUTHORITY_KEY, _pem(key))
        (self.folder / NEXT_KEY).unlink()
        return Authority.read(self.folder)

    def remove(self) -> "Authority":
        """Have nodes believe only the key that signs.

        Raises:
            ConfigError: the new key does not sign yet, or there is no old one.
        """
        if self.step != "use":
            raise ConfigError(
                f"no old certificate can go yet: {self.folder}",
                hint="first --step install, then --step use, and each time `p2pkv cert rotate` every node's folder",
            )
        return self._rewritten((self.signing.parsed,))

    def _rewritten(self, certificates: Sequence[x509.Certificate]) -> "Authority":
        write_file(self.folder / AUTHORITIES, b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
        return Authority.read(self.folder)


def new_node_id() -> str:
    """Return an id that no node has."""
    return secrets.token_hex(8)


def _self_signed(key: ec.EllipticCurvePrivateKey, name: str, *, days: int, now: float) -> x509.Certificate:
    # Two authorities of one cluster must differ in their names: OpenSSL looks an issuer up by it.
    common = f"p2pkv {name.removeprefix('spiffe://')}"[:54] + f" {secrets.token_hex(4)}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    return (
        _begun(subject, name, key, now=now, until=now + days * 86_400)
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(key, SHA256())
    )


def _begun(
    subject: x509.Name, name: str, key: ec.EllipticCurvePrivateKey, *, now: float, until: float
) -> x509.CertificateBuilder:
    start = dt.datetime.fromtimestamp(int(now) - BACKDATED_S, dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(dt.datetime.fromtimestamp(int(until), dt.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(read_file(path, secret=True), None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"no private key in PEM: {path}", hint="put a copy of it back") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"a key that `p2pkv cert` did not make: {path}", hint="let its own tools issue certificates")
    return key


def _of_key(
    certificates: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey, folder: Path
) -> x509.Certificate:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = key.public_key().public_bytes(*form)
    for one in certificates:
        if one.public_key().public_bytes(*form) == own:
            return one
    raise ConfigError(f"ca.crt has no certificate of the authority's key: {folder}", hint="put copies of both back")
