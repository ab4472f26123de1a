"""The leader's signature on a commit."""

from __future__ import annotations

from protocols.errors import BadMessageError
from protocols.identity import Credentials, verify_signature
from protocols.round.records import Commit, SignedCommit, signed_message


def sign_commit(commit: Commit, credentials: Credentials) -> SignedCommit:
    return SignedCommit(commit, credentials.key.sign(signed_message(commit)), credentials.certificate)


def check_signed(signed: SignedCommit, authority: bytes) -> SignedCommit:
    """`signed`, once its signature proves to be that of the leader that it names. Raises BadMessageError."""
    signer = verify_signature(signed_message(signed.commit), signed.signature, signed.certificate, authority)
    if signer != signed.commit.leader.peer:
        raise BadMessageError(f"a commit of leader {signed.commit.leader.peer} is signed by {signer}")
    return signed
