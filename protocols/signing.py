"""Commits carry their leader's signature; whoever takes one checks it."""

from __future__ import annotations

from typing import Protocol

from protocols.errors import BadMessageError
from protocols.identity import Credentials, verify_signature
from protocols.round.records import Commit, SignedCommit, signed_message


class Signer(Protocol):
    """Signs this peer's commits and checks those of others."""

    def sign(self, commit: Commit) -> SignedCommit:
        """`commit` with this peer's signature."""

    def verify(self, signed: SignedCommit) -> SignedCommit:
        """`signed`, once its signature proves to be that of the leader that it names. Raises BadMessageError."""


class CertificateSigner:
    """Signs with the key of a certificate of the run's authority."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def sign(self, commit: Commit) -> SignedCommit:
        signature = self._credentials.key.sign(signed_message(commit))
        return SignedCommit(commit, signature, self._credentials.certificate)

    def verify(self, signed: SignedCommit) -> SignedCommit:
        return check_signed(signed, self._credentials.authority)


def check_signed(signed: SignedCommit, authority: bytes) -> SignedCommit:
    """`signed`, once its signature proves to be that of the leader that it names, under `authority` (PEM). Raises
    BadMessageError."""
    signer = verify_signature(signed_message(signed.commit), signed.signature, signed.certificate, authority)
    if signer != signed.commit.leader.peer:
        raise BadMessageError(f"a commit of leader {signed.commit.leader.peer} is signed by {signer}")
    return signed
