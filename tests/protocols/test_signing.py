from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.errors import BadMessageError
from protocols.identity import Authority
from protocols.round.records import Candidate, ShardResult, vote_message
from protocols.signing import CertificateSigner, check_signed
from tests.factories import admitted, commit, contribution


def test_a_commit_signed_by_the_leader_that_it_names_is_accepted(authority: Authority) -> None:
    leader = admitted(authority)
    signed = CertificateSigner(leader).sign(commit(leader.peer_id))
    assert check_signed(signed, authority.pem) is signed
    assert CertificateSigner(admitted(authority)).verify(signed) is signed, "whoever of the run looks at it"


def test_an_admitted_peer_cannot_commit_in_the_leads_name(authority: Authority) -> None:
    leader, impostor = admitted(authority), admitted(authority)
    forged = CertificateSigner(impostor).sign(commit(leader.peer_id))
    with pytest.raises(BadMessageError, match=impostor.peer_id):
        check_signed(forged, authority.pem)
    with pytest.raises(BadMessageError):
        check_signed(replace(forged, certificate=leader.certificate), authority.pem)


def test_whatever_is_changed_after_signing_is_noticed(authority: Authority) -> None:
    leader = admitted(authority)
    signed = CertificateSigner(leader).sign(commit(leader.peer_id))
    changes = [
        {"total_samples": 9},
        {"plan_digest": "d" * 64},
        {"contributions": (contribution(end=3),)},
        {"shards": (ShardResult(0, 100, "c" * 64, 1.5),)},
        {"succession": (Candidate("ann", "x:1"),)},
        {"ballot": replace(signed.commit.ballot, attempt=2)},
    ]
    for change in changes:
        with pytest.raises(BadMessageError):
            check_signed(replace(signed, commit=replace(signed.commit, **change)), authority.pem)


def test_a_commit_of_another_run_is_refused(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> None:
    leader = admitted(Authority.load_or_create(tmp_path_factory.mktemp("other")))
    signed = CertificateSigner(leader).sign(commit(leader.peer_id))
    with pytest.raises(BadMessageError):
        check_signed(signed, authority.pem)
        CertificateSigner(admitted(authority)).verify(signed)


def test_a_vote_is_of_the_peer_whose_key_it_names_on_that_result_alone(authority: Authority) -> None:
    ann, bob = CertificateSigner(admitted(authority)), CertificateSigner(admitted(authority))
    result = commit("ann").averages.result("a" * 64)
    message = vote_message(result)
    vote = ann.vote(message)
    bob.check_vote(vote, message)
    other = replace(result, plan_digest="b" * 64)
    for damaged, of in (
        (vote, other),
        (replace(vote, peer=bob.vote(message).peer), result),
        (replace(vote, key=b"noise"), result),
    ):
        with pytest.raises(BadMessageError):
            ann.check_vote(damaged, vote_message(of))


def test_a_commit_is_refused_with_a_vote_for_another_result_or_of_a_peer_that_is_no_member(authority: Authority) -> None:
    leader, ann, eve = admitted(authority), admitted(authority), admitted(authority)
    made = replace(commit(leader.peer_id), members=(ann.peer_id, leader.peer_id))
    result = made.averages.result(made.plan_digest)
    good = CertificateSigner(ann).vote(vote_message(result))
    assert CertificateSigner(eve).verify(CertificateSigner(leader).sign(made, (good,))).votes == (good,)
    for bad in (
        CertificateSigner(ann).vote(vote_message(replace(result, plan_digest="f" * 64))),
        CertificateSigner(eve).vote(vote_message(result)),
    ):
        with pytest.raises(BadMessageError):
            CertificateSigner(eve).verify(CertificateSigner(leader).sign(made, (bad,)))


def test_nobody_votes_twice(authority: Authority) -> None:
    ann = CertificateSigner(admitted(authority))
    vote = ann.vote(vote_message(commit("ann").averages.result("a" * 64)))
    with pytest.raises(ValueError, match="twice"):
        ann.sign(commit("ann"), (vote, vote))
