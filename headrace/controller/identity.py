"""Who is who: certificates of our own authority, and what each role may do.

A certificate's subject is ``O=headrace, OU=<role>, CN=<name>``. Roles:

    controller   serves; its certificate carries the names clients reach it by
    host         reads the closure of its own ports, writes its own status, renews itself
    writer       reads everything, writes objects under its own name (``neutron``), and a status (ports refused)
    operator     reads everything, writes objects, enrolls hosts (``cli``)

Keys are EC P-256, made where they are used: an enrolling host sends a request, never a key.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, cast

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.errors import Denied, InvalidInput

Role = Literal["controller", "host", "writer", "operator"]

ORGANISATION = "headrace"
AUTHORITY_DAYS = 3650
DAYS = 365
"""Life of a certificate; ``headrace host enroll --renew`` in time makes it a year again."""

SKEW = dt.timedelta(minutes=5)
"""Certificates are valid from a little before they are made: clocks differ."""

DIRECTORY = Path("/etc/headrace")


class Files(msgspec.Struct, frozen=True):
    """The three files of a TLS party (PEM)."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def at(cls, directory: str | Path, name: str) -> Files:
        """``ca.crt``, ``NAME.crt`` and ``NAME.key`` in a directory; names: controller, host, client, or a writer's."""
        directory = Path(directory)
        return cls(directory / "ca.crt", directory / f"{name}.crt", directory / f"{name}.key")

    def check(self) -> None:
        """Raise InvalidInput naming the file that is missing and its cure."""
        for path in (self.authority, self.certificate, self.key):
            if not path.is_file():
                raise InvalidInput(
                    f"certificate file {path} is missing; `headrace controller init` makes the controller's and the "
                    "operator's, `headrace host enroll` a host's, `headrace controller issue` others'"
                )

    def server_context(self) -> ssl.SSLContext:
        """TLS for the controller: every client shows a certificate of our authority."""
        return self._context(ssl.Purpose.CLIENT_AUTH)

    def client_context(self) -> ssl.SSLContext:
        """TLS for its clients: the server's name is checked."""
        return self._context(ssl.Purpose.SERVER_AUTH)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Show this certificate from now on; raises InvalidInput when certificate and key do not fit."""
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput(f"certificates {self.certificate}, {self.key}: {error}") from None

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        self.check()
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.authority))
        except (ssl.SSLError, OSError) as error:
            raise InvalidInput(f"certificate {self.authority}: {error}") from None
        self.load_into(context)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class Identity(msgspec.Struct, frozen=True):
    """Who a caller is. Without TLS everybody is an operator."""

    role: Role
    name: str

    @classmethod
    def of_peer(cls, certificate: dict[str, object] | None) -> Identity:
        """From what `ssl.SSLSocket.getpeercert` gives; raises Denied for a certificate not made for a role."""
        subject = cast("tuple[tuple[tuple[str, str], ...], ...]", (certificate or {}).get("subject", ()))
        fields = {key: value for part in subject for key, value in part}
        role, name = fields.get("organizationalUnitName"), fields.get("commonName")
        if role not in {"host", "writer", "operator"} or not name:
            raise Denied(f"the certificate's subject {fields} is of no role; give O={ORGANISATION}, OU=role, CN=name")
        return cls(cast("Role", role), name)

    def __str__(self) -> str:
        return f"{self.role} {self.name}"

    @property
    def sight(self) -> str | None:
        """The host whose closure limits what it may read, or None for no limit."""
        return self.name if self.role == "host" else None

    def may_write(self, writer: str) -> None:
        """Raise Denied unless it may write objects as a writer."""
        if self.role == "operator" or (self.role == "writer" and self.name == writer):
            return
        raise Denied(f"{self} may not write objects of writer {writer}")

    def may_watch(self, host: str | None) -> str | None:
        """The host to watch for, given the one asked for; raises Denied for another's."""
        if self.role == "host" and host not in {None, self.name}:
            raise Denied(f"{self} may not read what host {host} sees")
        return self.sight or host

    def may_watch_status(self) -> None:
        """Raise Denied unless it may read what all hosts say."""
        if self.role == "host":
            raise Denied(f"{self} may not read the status of other hosts")

    def may_report(self, host: str) -> None:
        """Raise Denied unless it may write a host's status, or a writer's own."""
        if self.role != "operator" and self.name != host:
            raise Denied(f"{self} may not write the status of host {host}")

    def may_sign(self, host: str) -> None:
        """Raise Denied unless it may have a host's certificate made."""
        if self.role != "operator" and (self.role, self.name) != ("host", host):
            raise Denied(f"{self} may not enroll host {host}")


class Authority:
    """Our certificate authority: a certificate and its key in a directory."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def create(cls, directory: Path) -> Authority:
        """Make ``ca.crt`` and ``ca.key``; raises InvalidInput when there is one, whose certificates would all end."""
        if (directory / "ca.key").exists():
            raise InvalidInput(f"{directory / 'ca.key'} exists: this authority's certificates are in use; keep it")
        key = ec.generate_private_key(ec.SECP256R1())
        name = subject("controller", "headrace authority")
        certificate = (
            unsigned(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write(directory / "ca.key", key_pem(key), secret=True)
        write(directory / "ca.crt", pem(certificate))
        return cls(certificate, key)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """The authority in a directory; raises InvalidInput when there is none."""
        try:
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"authority {directory}: {error}; `headrace controller init` makes one") from None
        return cls(certificate, cast("ec.EllipticCurvePrivateKey", key))

    def sign(self, request: bytes, role: Role, name: str, names: Iterable[str] = ()) -> bytes:
        """A certificate (PEM) for a request (PEM), of whose content only the proven public key counts."""
        try:
            wish = x509.load_pem_x509_csr(request)
        except ValueError as error:
            raise InvalidInput(f"{role} {name}: the certificate request cannot be read: {error}") from None
        if not wish.is_signature_valid:
            raise InvalidInput(f"{role} {name}: the certificate request is not signed by its own key")
        usage = ExtendedKeyUsageOID.SERVER_AUTH if role == "controller" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            unsigned(subject(role, name), self.certificate.subject, wish.public_key(), DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if alternatives := [general_name(item) for item in names]:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return pem(builder.sign(self._key, hashes.SHA256()))

    def issue(self, directory: Path, file_name: str, role: Role, name: str, names: Iterable[str] = ()) -> Files:
        """Make a key and a certificate here, on the authority's own machine."""
        key, request = new_request(name)
        files = Files.at(directory, file_name)
        write(files.key, key, secret=True)
        write(files.certificate, self.sign(request, role, name, names))
        write(files.authority, pem(self.certificate))
        return files


def new_request(name: str) -> tuple[bytes, bytes]:
    """A new key and a request for its certificate (PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(common).sign(key, hashes.SHA256())
    return key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def expiry(certificate: Path) -> dt.datetime:
    """When a certificate ends."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def common_name(certificate: Path) -> str:
    """Whose a certificate is. Raises InvalidInput for a file that cannot be read or is none."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes()).subject
        return str(found.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    except (OSError, ValueError, IndexError) as error:
        raise InvalidInput(f"certificate {certificate}: {error}; bring it anew") from None


def subject(role: Role, name: str) -> x509.Name:
    """A certificate's subject."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def unsigned(name: x509.Name, issuer: x509.Name, key: object, days: int) -> x509.CertificateBuilder:
    """What every certificate has."""
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(cast("ec.EllipticCurvePublicKey", key))
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def names_in(certificate: Path) -> tuple[str, ...]:
    """The names and addresses that a certificate is for; none where there is no file."""
    if not certificate.exists():
        return ()
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in found.value)


def general_name(name: str) -> x509.GeneralName:
    """An address or a DNS name that a server is reached by."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key in PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write(path: Path, content: bytes, *, secret: bool = False) -> None:
    """Replace a file at once: a reader sees the old or the new one. Raises InvalidInput where it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o600 if secret else 0o644)
        file.flush()
        os.fsync(file.fileno())
    Path(temporary).replace(path)
