from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.errors import BadMessageError
from protocols.identity import Authority, Credentials, Key
from protocols.round.records import Ballot, Candidate, Commit, Contribution, ShardResult
from protocols.signing import check_signed, sign_commit

PARENT = "a" * 64


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.load_or_create(tmp_path_factory.mktemp("run"))


def admitted(authority: Authority) -> Credentials:
    key = Key.generate()
    return Credentials(key, authority.admit(key.request()), authority.pem)


def commit(leader: str) -> Commit:
    return Commit(
        ballot=Ballot(1, PARENT, 1, leader),
        plan_digest="b" * 64,
        contributions=(Contribution("ann", 1, 0, 4, PARENT, 1.0),),
        members=("ann", leader) if leader > "ann" else (leader, "ann"),
        shards=(ShardResult(0, 100, "c" * 64, 1.0),),
        codec="fp32",
        next_codec="fp32",
        total_samples=4,
        leader=Candidate(leader, "l:1"),
        succession=(),
    )


def test_a_commit_signed_by_the_leader_that_it_names_is_accepted(authority: Authority) -> None:
    leader = admitted(authority)
    signed = sign_commit(commit(leader.peer_id), leader)
    assert check_signed(signed, authority.pem) is signed


def test_an_admitted_peer_cannot_commit_in_the_leads_name(authority: Authority) -> None:
    leader, impostor = admitted(authority), admitted(authority)
    forged = sign_commit(commit(leader.peer_id), impostor)
    with pytest.raises(BadMessageError, match=impostor.peer_id):
        check_signed(forged, authority.pem)
    with pytest.raises(BadMessageError):
        check_signed(replace(forged, certificate=leader.certificate), authority.pem)


def test_whatever_is_changed_after_signing_is_noticed(authority: Authority) -> None:
    leader = admitted(authority)
    signed = sign_commit(commit(leader.peer_id), leader)
    changes = [
        {"total_samples": 5},
        {"plan_digest": "d" * 64},
        {"contributions": (Contribution("ann", 1, 0, 3, PARENT, 1.0),)},
        {"shards": (ShardResult(0, 100, "c" * 64, 1.5),)},
        {"succession": (Candidate("ann", "x:1"),)},
        {"ballot": replace(signed.commit.ballot, attempt=2)},
    ]
    for change in changes:
        with pytest.raises(BadMessageError):
            check_signed(replace(signed, commit=replace(signed.commit, **change)), authority.pem)


def test_a_commit_of_another_run_is_refused(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> None:
    leader = admitted(Authority.load_or_create(tmp_path_factory.mktemp("other")))
    with pytest.raises(BadMessageError):
        check_signed(sign_commit(commit(leader.peer_id), leader), authority.pem)
