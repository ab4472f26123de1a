"""Commits carry their leader's signature and the votes of their members; whoever takes one checks them."""

from __future__ import annotations

from typing import Protocol

from protocols.ban_list import SignedBanList, check_ban_list
from protocols.errors import BadMessageError
from protocols.identity import Credentials, signer_of, verify_signature
from protocols.round.records import Commit, Result, SignedCommit, Vote, signed_message, vote_message


class Signer(Protocol):
    """Signs this peer's commits and checks those of others."""

    def sign(self, commit: Commit, votes: tuple[Vote, ...] = ()) -> SignedCommit:
        """`commit` with this peer's signature and these votes."""

    def verify(self, signed: SignedCommit) -> SignedCommit:
        """`signed`, once its signature proves to be that of the leader that it names, and each vote that of a member, on this
        commit's result. Raises BadMessageError."""

    def vote(self, message: bytes) -> Vote:
        """This peer's signature over what it votes for: `vote_message` or `refusal_message`."""

    def check_vote(self, vote: Vote, message: bytes) -> None:
        """Raises BadMessageError unless it is the signature of the peer that it names, over `message`."""

    def check_bans(self, signed: SignedBanList) -> None:
        """Raises BadMessageError unless the run's authority signed this list."""


class CertificateSigner:
    """Signs with the key of a certificate of the run's authority."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def sign(self, commit: Commit, votes: tuple[Vote, ...] = ()) -> SignedCommit:
        signature = self._credentials.key.sign(signed_message(commit))
        return SignedCommit(commit, signature, self._credentials.certificate, votes)

    def verify(self, signed: SignedCommit) -> SignedCommit:
        return check_signed(signed, self._credentials.authority)

    def vote(self, message: bytes) -> Vote:
        key = self._credentials.key
        return Vote(key.peer_id, key.public, key.sign(message))

    def check_vote(self, vote: Vote, message: bytes) -> None:
        check_vote(vote, message)

    def check_bans(self, signed: SignedBanList) -> None:
        check_ban_list(signed, self._credentials.authority)


def check_signed(signed: SignedCommit, authority: bytes) -> SignedCommit:
    """`signed`, once its signature proves to be that of the leader that it names, under `authority` (PEM), and its votes prove to
    be of its members. Raises BadMessageError."""
    signer = verify_signature(signed_message(signed.commit), signed.signature, signed.certificate, authority)
    if signer != signed.commit.leader.peer:
        raise BadMessageError(f"a commit of leader {signed.commit.leader.peer} is signed by {signer}")
    message = vote_message(voted_result(signed))
    for vote in signed.votes:
        check_vote(vote, message)
    return signed


def voted_result(signed: SignedCommit) -> Result:
    """What the voters of a commit say that they were ready with. Raises BadMessageError if one is no member of its plan."""
    commit = signed.commit
    if not {vote.peer for vote in signed.votes} <= set(commit.members):
        raise BadMessageError("a commit has votes of peers that are no members of its plan")
    return commit.averages.result(commit.plan_digest)


def check_vote(vote: Vote, message: bytes) -> None:
    """Raises BadMessageError unless it is the signature of the peer that it names, over `message`."""
    if signer_of(message, vote.signature, vote.key) != vote.peer:
        raise BadMessageError(f"a vote of {vote.peer} is of another key")
