from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.errors import BadMessageError
from protocols.identity import Authority
from protocols.round.records import Candidate, ShardResult
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
