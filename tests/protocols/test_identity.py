from __future__ import annotations

import os
import stat
import string
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadMessageError, LocalError, TicketError
from protocols.identity import TICKET_PREFIX, Authority, Key, Ticket, new_incarnation, server_name, verify_signature


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.load_or_create(tmp_path_factory.mktemp("other"))


TICKET = Ticket(("192.0.2.7", "host.example"), 31337, bytes(range(32)), bytes(range(100, 116)))


# -- tickets ---------------------------------------------------------------------------------------------------------------------


@given(
    hosts=st.lists(st.from_regex(r"[a-z0-9.\-]{1,20}", fullmatch=True), min_size=1, max_size=4),
    port=st.integers(0, 65535),
    fingerprint=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=16, max_size=16),
)
def test_a_ticket_survives_the_paste(hosts: list[str], port: int, fingerprint: bytes, secret: bytes) -> None:
    ticket = Ticket(tuple(hosts), port, fingerprint, secret)
    text = str(ticket)
    assert Ticket.parse(text) == ticket
    assert Ticket.parse(f"  {text[:40]}\n   {text[40:]}\r\n") == ticket, "mail programs break lines"
    assert set(text) <= set(string.ascii_letters + string.digits + "-_"), "one word for a shell, a URL and a double click"


@pytest.mark.parametrize("hosts", [("a",), ("ab",), ("abc",)])
def test_no_damaged_character_leads_to_another_ticket(hosts: tuple[str, ...]) -> None:
    ticket = Ticket(hosts, 31337, bytes(range(32)), bytes(range(100, 116)))
    text = str(ticket)
    unnoticed = []
    for at in range(len(text)):
        for other in {"A", "B", "x", "9", "-", "_", "+", "/", "=", "é", text[at].swapcase()} - {text[at]}:
            try:
                parsed = Ticket.parse(text[:at] + other + text[at + 1 :])
            except TicketError as error:
                assert error.remedy
                continue
            assert parsed == ticket
            unnoticed.append((at, other))
    # base64 has spare bits in its last character: there, and nowhere else, another letter can mean the same.
    assert {at for at, other in unnoticed if other not in "+/"} <= {len(text) - 1}


def test_a_lost_doubled_or_swapped_character_is_noticed() -> None:
    text = str(TICKET)
    for at in range(len(text)):
        for damaged in (
            text[:at] + text[at + 1 :],
            text[:at] + text[at] + text[at:],
            text[:at] + text[at + 1 :][:1] + text[at : at + 1] + text[at + 2 :],
        ):
            if damaged != text:
                with pytest.raises(TicketError):
                    Ticket.parse(damaged)


@pytest.mark.parametrize(
    "text", ["", "hello", "dugnad1-", "dugnad1-AAAA", str(TICKET)[:-1], str(TICKET)[1:], "dugnad1-" + "A" * 100_000]
)
def test_what_is_no_ticket_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(TicketError) as caught:
        Ticket.parse(text)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_ticket_of_another_version_is_refused() -> None:
    with pytest.raises(TicketError):
        Ticket.parse(str(TICKET).replace(TICKET_PREFIX, "dugnad2-"))


def test_secrets_differ() -> None:
    assert len({Ticket.new_secret() for _ in range(50)}) == 50


# -- keys ------------------------------------------------------------------------------------------------------------------------


def test_a_key_file_is_for_its_owner_alone_and_keeps_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "new" / "identity.key"
    before = os.umask(0)
    try:
        key = Key.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Key.load_or_create(path).peer_id == key.peer_id
    assert len(key.peer_id) == 32
    assert Key.generate().peer_id != key.peer_id
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["torn", "rsa"])
def test_a_key_file_that_cannot_be_used_is_named_and_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "identity.key"
    content = Key.generate().pem[:-60]
    if kind == "rsa":
        content = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    path.write_bytes(content)
    with pytest.raises(LocalError, match=r"identity\.key") as caught:
        Key.load_or_create(path)
    assert caught.value.remedy
    assert path.read_bytes() == content


# -- certificates and signatures -------------------------------------------------------------------------------------------------


def test_an_authority_keeps_its_fingerprint_over_a_restart(tmp_path: Path) -> None:
    first = Authority.load_or_create(tmp_path)
    again = Authority.load_or_create(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert stat.S_IMODE((tmp_path / "authority.key").stat().st_mode) == 0o600


def test_a_signature_names_its_signer(authority: Authority) -> None:
    key = Key.generate()
    assert verify_signature(b"hello", key.sign(b"hello"), authority.admit(key.request()), authority.pem) == key.peer_id


def test_a_signature_holds_for_that_message_that_key_and_that_run_only(authority: Authority, stranger: Authority) -> None:
    key, other = Key.generate(), Key.generate()
    certificate = authority.admit(key.request())
    bad = [
        (b"hellp", key.sign(b"hello"), certificate, authority.pem),
        (b"hello", other.sign(b"hello"), certificate, authority.pem),
        (b"hello", b"", certificate, authority.pem),
        (b"hello", key.sign(b"hello"), stranger.admit(key.request()), authority.pem),
        (b"hello", key.sign(b"hello"), certificate, stranger.pem),
        (b"hello", key.sign(b"hello"), b"no certificate", authority.pem),
        (b"hello", key.sign(b"hello"), certificate[:-50], authority.pem),
    ]
    for arguments in bad:
        with pytest.raises(BadMessageError):
            verify_signature(*arguments)


def test_a_peer_cannot_admit_others_with_its_own_certificate(authority: Authority) -> None:
    peer, accomplice = Key.generate(), Key.generate()
    impostor = Authority(peer, x509.load_pem_x509_certificate(authority.admit(peer.request())))
    forged = impostor.admit(accomplice.request())
    with pytest.raises(BadMessageError):
        verify_signature(b"x", accomplice.sign(b"x"), forged, authority.pem)


def test_an_authority_of_the_same_name_is_still_another(authority: Authority) -> None:
    """A forger can copy the name in the certificate, but not the key."""
    theirs = Key.generate()
    real = x509.load_pem_x509_certificate(authority.pem)
    fake = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.subject)
        .public_key(theirs.private.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
        .sign(theirs.private, hashes.SHA256())
    )
    key = Key.generate()
    with pytest.raises(BadMessageError):
        verify_signature(b"x", key.sign(b"x"), Authority(theirs, fake).admit(key.request()), authority.pem)


def test_nobody_is_admitted_under_another_name(authority: Authority) -> None:
    """The request may claim any name; the certificate says what the key says."""
    key, victim = Key.generate(), Key.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, victim.peer_id)])
    alternative = x509.SubjectAlternativeName([x509.DNSName(server_name(victim.peer_id))])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(alternative, critical=False)
    signed = request.sign(key.private, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    certificate = x509.load_pem_x509_certificate(authority.admit(signed))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == [server_name(key.peer_id)]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == key.peer_id
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("kind", ["noise", "empty", "rsa", "signature"])
def test_a_request_that_proves_no_key_is_refused(authority: Authority, kind: str) -> None:
    request = {"noise": os.urandom(300), "empty": b""}.get(kind, b"")
    if kind == "rsa":
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        request = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    if kind == "signature":
        damaged = bytearray(Key.generate().request())
        damaged[-1] ^= 1
        request = bytes(damaged)
    with pytest.raises(BadMessageError):
        authority.admit(request)


def test_a_later_start_has_the_newer_incarnation() -> None:
    starts = [new_incarnation(ns) for ns in range(1_700_000_000 * 10**9, 1_700_000_001 * 10**9, 10**7)]
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts)
    assert all(0 <= start < 2**63 for start in starts)
    assert new_incarnation(5 * 10**6) != new_incarnation(5 * 10**6), "two starts within a millisecond differ all the same"


def test_keys_are_on_the_curve_that_tls_offers() -> None:
    assert isinstance(Key.generate().private.curve, ec.SECP256R1)
