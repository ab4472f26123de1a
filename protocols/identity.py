"""Identity of processes: keys, certificates and the ticket.

A run has one certificate authority: the coordinator's. Every process has a P-256 key. Its name on the network, the *peer id*, is
the first 16 bytes of the SHA-256 of its public key, in hex. A certificate says "the authority of this run admitted this key".
Both ends of every connection show theirs. The keys are P-256 because gRPC's TLS does not offer Ed25519 certificates.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.errors import BadMessageError, LocalError, TicketError
from protocols.host.files import write_durably

COORDINATOR_NAME = "coordinator.dugnad"
VALIDITY = datetime.timedelta(days=365)
# A peer's certificate is renewed before it is so old. Why it is valid for longer: protocols/transport/freshness.py.
FRESH = datetime.timedelta(days=7)
# Certificates are valid from a day before their issue, since clocks of home computers are wrong. No safety rule reads a clock.
CLOCK_SLACK = datetime.timedelta(days=1)

TICKET_PREFIX = "dugnad1-"
TICKET_SECRET_BYTES = 16
_ECDSA = ec.ECDSA(hashes.SHA256())


def peer_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """The peer id of a public key: 32 hex digits."""
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:32]


def holder_of(certificate: x509.Certificate) -> str:
    """The peer id of the key in a certificate of the run."""
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)  # the authority admits no other key
    return peer_id_of(public)


def server_name(peer_id: str) -> str:
    """The DNS name in a peer's certificate. A caller dials under this name, so that TLS checks that the right peer answers."""
    return f"{peer_id}.peer.dugnad"


@dataclass(frozen=True)
class Key:
    """A P-256 private key. Its file can be read by its owner only."""

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> Key:
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load_or_create(cls, path: Path) -> Key:
        """Load the key in `path`, or generate one and write it there. Raises LocalError for a file that holds no key."""
        if not path.exists():
            key = cls.generate()
            write_durably(path, key.pem, mode=0o600)
            return key
        remedy = f"Move {path} away to get a new identity."
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, OSError) as error:
            raise LocalError(f"the key {path} cannot be read: {error}", remedy=remedy) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise LocalError(f"{path} holds no P-256 key", remedy=remedy)
        return cls(private)

    @property
    def pem(self) -> bytes:
        return self.private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def peer_id(self) -> str:
        return peer_id_of(self.private.public_key())

    @property
    def public(self) -> bytes:
        """The public key as a compressed point: 33 bytes."""
        return self.private.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)

    def sign(self, message: bytes) -> bytes:
        return self.private.sign(message, _ECDSA)

    def request(self) -> bytes:
        """A certificate signing request (DER). It proves possession of the key; the authority sets every name itself."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(_named(self.peer_id))
        return builder.sign(self.private, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@dataclass
class Credentials:
    """All that one process needs for mutual TLS: its key, its certificate and the authority's certificate (both PEM).

    The process's own certificate is replaced when it is renewed. Whatever was made from it is then to be made anew.
    """

    key: Key
    certificate: bytes
    authority: bytes

    @property
    def peer_id(self) -> str:
        return self.key.peer_id

    def renew(self, certificate: bytes) -> None:
        """Raises BadMessageError unless it (PEM) is the authority's, for this key."""
        if _checked(certificate, self.authority)[1] != self.peer_id:
            raise BadMessageError("a new certificate is for another key")
        self.certificate = certificate


class Authority:
    """The run's certificate authority. It lives in the coordinator's folder and nowhere else."""

    def __init__(self, key: Key, certificate: x509.Certificate, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._key = key
        self._certificate = certificate
        self._clock = clock

    @classmethod
    def load_or_create(cls, folder: Path, clock: Callable[[], float] = time.time) -> Authority:
        """Load the authority in `folder`, or create it there."""
        key = Key.load_or_create(folder / "authority.key")
        path = folder / "authority.pem"
        if not path.exists():
            write_durably(path, _self_signed(key, clock()).public_bytes(serialization.Encoding.PEM))
        return cls(key, x509.load_pem_x509_certificate(path.read_bytes()), clock)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the authority's certificate, which tickets pin: 32 bytes."""
        return self._certificate.fingerprint(hashes.SHA256())

    def admit(self, request: bytes, invite: str = "") -> bytes:
        """Issue a certificate (PEM) for a signing request (DER); it names the invite. Raises BadMessageError unless a P-256 key
        signed the request."""
        public = _requested(request)
        peer_id = peer_id_of(public)
        return self._issue(public, _named(peer_id, invite), server_name(peer_id))

    def renewed(self, certificate: bytes) -> bytes | None:
        """A new one (PEM) for the key and the invite of a certificate of this authority, if that is half as old as it may get."""
        old = x509.load_pem_x509_certificate(certificate)
        if self._clock() - issued_at(old) < FRESH.total_seconds() / 2:
            return None
        public, peer_id = old.public_key(), holder_of(old)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        return self._issue(public, _named(peer_id, invite_of(old)), server_name(peer_id))

    def sign(self, message: bytes) -> bytes:
        """See `authority_signed`."""
        return self._key.sign(message)

    def coordinator_credentials(self, key: Key) -> Credentials:
        """Issue the coordinator's own credentials, under the name COORDINATOR_NAME."""
        return Credentials(key, self._issue(key.private.public_key(), _named(key.peer_id), COORDINATOR_NAME), self.pem)

    def _issue(self, public: ec.EllipticCurvePublicKey, subject: x509.Name, dns_name: str) -> bytes:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _draft(subject, self._certificate.subject, public, dns_name, VALIDITY, self._clock())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .sign(self._key.private, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _self_signed(key: Key, now_s: float) -> x509.Certificate:
    # The enrolment endpoint shows it behind its own. So a newcomer can check it, though it has only the fingerprint.
    name = _named("dugnad authority " + key.peer_id)
    draft = _draft(name, name, key.private.public_key(), COORDINATOR_NAME, 10 * VALIDITY, now_s)
    return draft.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key.private, hashes.SHA256())


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    dns_name: str,
    validity: datetime.timedelta,
    now_s: float,
) -> x509.CertificateBuilder:
    """What every certificate of the run has, before its issuer adds the key's usage and signs."""
    now = datetime.datetime.fromtimestamp(now_s, datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(dns_name)]), critical=False)
    )


def _named(common_name: str, unit: str = "") -> x509.Name:
    name = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    return x509.Name([*name, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else name)


def issued_at(certificate: x509.Certificate) -> float:
    """Seconds since 1970, by the coordinator's clock."""
    return (certificate.not_valid_before_utc + CLOCK_SLACK).timestamp()


def invite_of(certificate: x509.Certificate) -> str:
    """By which its holder was admitted."""
    units = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
    return str(units[0].value) if units else ""


def is_coordinators(certificate: x509.Certificate) -> bool:
    """Of one that the authority issued: no peer gets this name."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return COORDINATOR_NAME in names.get_values_for_type(x509.DNSName)


def _requested(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that signed a certificate request (DER). Raises BadMessageError unless it is a P-256 key."""
    try:
        csr = x509.load_der_x509_csr(request)
        public, is_signed = csr.public_key(), csr.is_signature_valid
    except Exception as error:  # its parser raises errors of a dozen kinds
        raise BadMessageError("the certificate request cannot be read") from error
    if not _is_p256(public) or not is_signed:
        raise BadMessageError("the certificate request is not signed by a P-256 key")
    assert isinstance(public, ec.EllipticCurvePublicKey)
    return public


def requester(request: bytes) -> str:
    """The peer id of whoever made a certificate request (DER). Raises BadMessageError."""
    return peer_id_of(_requested(request))


def _is_p256(public: object) -> bool:
    return isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)


def verify_signature(message: bytes, signature: bytes, certificate: bytes, authority: bytes) -> str:
    """Check the signature of `message` and return the peer id of its signer.

    `certificate` (PEM) is the signer's, issued by `authority` (PEM). Raises BadMessageError if the certificate is not of this
    run, or the signature is not of this message.
    """
    public, signer = _checked(certificate, authority)
    try:
        public.verify(signature, message, _ECDSA)
    except Exception as error:
        raise BadMessageError("the signature does not hold under this run's authority") from error
    return signer


def _checked(certificate: bytes, authority: bytes) -> tuple[ec.EllipticCurvePublicKey, str]:
    """The key of a certificate (PEM) that `authority` (PEM) issued, and the key's peer id. Raises BadMessageError."""
    try:
        theirs = x509.load_pem_x509_certificate(certificate)
        theirs.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        public = theirs.public_key()
    except Exception as error:  # the parser of certificates raises errors of a dozen kinds
        raise BadMessageError("the signature does not hold under this run's authority") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not _is_p256(public):
        raise BadMessageError("the certificate holds no P-256 key")
    return public, peer_id_of(public)


def authority_signed(message: bytes, signature: bytes, authority: bytes) -> bool:
    """Whether the key of the certificate `authority` (PEM) made the signature of `message`."""
    public = x509.load_pem_x509_certificate(authority).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    try:
        public.verify(signature, message, _ECDSA)
    except InvalidSignature:
        return False
    return True


def signer_of(message: bytes, signature: bytes, key: bytes) -> str:
    """The peer id of the public `key` (compressed), with which `message` was signed. Raises BadMessageError if it was not."""
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
        public.verify(signature, message, _ECDSA)
    except (ValueError, InvalidSignature) as error:
        raise BadMessageError("the signature does not hold under this key") from error
    return peer_id_of(public)


@dataclass(frozen=True)
class Ticket:
    """The one string that a volunteer pastes to join.

    It holds where the coordinator enrols, the fingerprint of its authority (32 bytes), and the secret that admits. The joiner
    tries `hosts` in order. A ticket is base64 and ends with a checksum of four bytes, so that a lost character is noticed before
    any connection.
    """

    hosts: tuple[str, ...]
    port: int
    fingerprint: bytes
    secret: bytes

    @staticmethod
    def new_secret() -> bytes:
        return secrets.token_bytes(TICKET_SECRET_BYTES)

    def __str__(self) -> str:
        body = self.fingerprint + self.secret + self.port.to_bytes(2, "big") + ",".join(self.hosts).encode()
        return TICKET_PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """Read a ticket from pasted text. Raises TicketError if it is no ticket, is damaged, or is of another version."""
        text = "".join(text.split())
        remedy = "Copy the whole ticket again from the organiser's message."
        if not text.startswith(TICKET_PREFIX):
            raise TicketError(f"this is no dugnad ticket: tickets start with {TICKET_PREFIX!r}", remedy=remedy)
        encoded = text.removeprefix(TICKET_PREFIX)
        try:
            raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except ValueError as error:
            raise TicketError("the ticket is damaged: a character is missing or wrong", remedy=remedy) from error
        body, checksum = raw[:-4], raw[-4:]
        fixed = 32 + TICKET_SECRET_BYTES + 2
        if len(body) <= fixed or checksum != _checksum(body):
            raise TicketError("the ticket is damaged: a character is missing or wrong", remedy=remedy)
        fingerprint, secret = body[:32], body[32 : 32 + TICKET_SECRET_BYTES]
        port = int.from_bytes(body[fixed - 2 : fixed], "big")
        return cls(tuple(body[fixed:].decode(errors="replace").split(",")), port, fingerprint, secret)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"dugnad ticket" + body).digest()[:4]


def new_incarnation(now_ns: int) -> int:
    """A new incarnation of 63 bits: milliseconds since 1970, then 20 random bits. So a later start has the larger number."""
    return ((now_ns // 1_000_000) & ((1 << 43) - 1)) << 20 | secrets.randbits(20)
