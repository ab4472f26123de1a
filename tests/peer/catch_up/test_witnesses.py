"""Donors that give other weights under the true lineage: a newcomer takes the state of the others, and blames few."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load, save

from peer.catch_up import witnesses
from peer.catch_up.claims import Claims
from peer.catch_up.witnesses import UNDECIDED_TRIES
from peer.simulation.liars import other_weights
from protocols.messages import OfferRequest
from protocols.snapshot.blocks import Layout
from protocols.snapshot.fetch import Anybody
from tests.peer.catch_up.test_catch_up import Donor, Joiner
from tests.peer.histories import LEADER, History
from tests.peer.virtual import Net

ANCHOR, AT = LEADER.peer, 7


@pytest.fixture(scope="module")
def history() -> History:
    return History(12)


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as made:
        yield made


def nearly(snapshot: bytes, times: float = 1.0) -> bytes:
    """As a machine of another kind has it: every value is off by an epsilon, or by so many."""
    tensors = load(snapshot)
    moved = {name: tensor * (1 + times * 2**-52) for name, tensor in tensors.items()}
    header = snapshot[8 : Layout.header_bytes(snapshot)]
    metadata: dict[str, str] = json.loads(header)["__metadata__"]
    changed: bytes = save(moved, metadata=metadata)
    return changed


def donors(net: Net, history: History, **sends: Callable[[bytes], bytes]) -> list[Donor]:
    """By name: what each makes of the true snapshot."""
    found = []
    for name, change in sends.items():
        donor = Donor(net, name, history, AT)
        given = change(history.snapshots[AT])
        donor.sends = lambda given=given: given  # type: ignore[misc]
        found.append(donor)
    return found


def true(snapshot: bytes) -> bytes:
    return snapshot


def weigh(monkeypatch: pytest.MonkeyPatch, votes: dict[str, float]) -> None:
    async def electorate(*_: Any) -> dict[str, float]:
        return votes

    monkeypatch.setattr(Claims, "electorate", electorate)


def blamed(joiner: Joiner) -> set[str]:
    return {fields["peer"] for fields in joiner.node.told_of("donor_failed")}


def taken(joiner: Joiner, history: History) -> bool:
    """Whether its weights are the true ones, up to rounding."""
    mine, right = (np.frombuffer(data, np.float64) for data in (joiner.stand.weights, history.weights[AT]))
    return bool(np.allclose(mine, right, rtol=1e-12, atol=1e-12))


def test_the_organisers_own_peer_is_believed_against_a_crowd_that_agrees(net: Net, history: History) -> None:
    crowd = dict.fromkeys(("bob", "cid", "dan"), other_weights)
    joiner = Joiner(net, *donors(net, history, **{ANCHOR: true}, **crowd))
    joiner.run()
    assert joiner.stand.weights == history.weights[AT], "bit for bit"
    assert blamed(joiner) == set(crowd)


def test_a_crowd_is_believed_where_nobody_compares(net: Net, history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is what helps: without it the crowd's weights are taken."""
    monkeypatch.setattr("peer.catch_up.catch_up.Witnesses.choose", Anybody.choose)
    joiner = Joiner(net, *donors(net, history, **{ANCHOR: true}, **dict.fromkeys(("bob", "cid", "dan"), other_weights)))
    joiner.run()
    assert not taken(joiner, history)


def test_state_of_other_machines_is_taken_where_it_is_the_organisers_up_to_rounding(net: Net, history: History) -> None:
    joiner = Joiner(net, *donors(net, history, **{ANCHOR: nearly}, bob=true, cid=true))
    joiner.run()
    assert joiner.stand.weights == history.weights[AT], "from the two that share it"
    assert blamed(joiner) == set()


@pytest.mark.parametrize("liar", ["bob", "cid", "dan"])
def test_among_unlike_machines_one_liar_is_outvoted(net: Net, history: History, liar: str) -> None:
    """Whichever digest is the largest: each is of one donor."""
    times = itertools.count(1)
    sends = {name: (lambda snapshot: nearly(snapshot, next(times))) for name in ("bob", "cid", "dan")}
    joiner = Joiner(net, *donors(net, history, **{**sends, liar: other_weights}))
    joiner.run()
    assert taken(joiner, history)
    assert blamed(joiner) <= {liar}


def test_identities_without_samples_do_not_outvote_those_with_some(
    net: Net, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    weigh(monkeypatch, {"bob": 0.3, "cid": 0.3, "eve": 0.25, "gone": 0.15})
    crowd = dict.fromkeys(("dan", "eve", "fay", "gil"), other_weights)
    joiner = Joiner(net, *donors(net, history, bob=true, cid=nearly, **crowd))
    joiner.run()
    assert taken(joiner, history) and blamed(joiner) <= set(crowd)


def test_a_liar_that_answers_first_is_not_taken_before_the_others_answer(net: Net, history: History) -> None:
    made = donors(net, history, bob=other_weights, cid=true, dan=true)
    for donor in made[1:]:
        donor.offers_after_s = 3.0
    joiner = Joiner(net, *made)
    joiner.run()
    assert joiner.stand.weights == history.weights[AT]


def test_donors_at_different_epochs_are_asked_again_and_then_one_is_taken(net: Net, history: History) -> None:
    bob, cid = Donor(net, "bob", history, AT), Donor(net, "cid", history, AT)
    cid.sends = lambda: history.snapshots[AT - 1]
    joiner = Joiner(net, bob, cid)
    assert joiner.run().epoch == AT
    assert len(bob.asked_for(OfferRequest)) == UNDECIDED_TRIES + 1 and blamed(joiner) == set()


def test_one_donor_alone_is_believed_once_nobody_else_turns_up(net: Net, history: History) -> None:
    (bob,) = donors(net, history, bob=true)
    joiner = Joiner(net, bob)
    joiner.run()
    assert len(bob.asked_for(OfferRequest)) == UNDECIDED_TRIES + 1
    assert joiner.stand.weights == history.weights[AT]


def test_a_donor_that_shows_its_state_too_slowly_is_left_for_another(
    net: Net, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witnesses, "COMPARE_S", 3.0)
    bob, cid, dan = donors(net, history, bob=lambda snapshot: nearly(snapshot, 2), cid=true, dan=nearly)
    bob.chunks_after_s = 1.0
    joiner = Joiner(net, bob, cid, dan)
    joiner.run()
    assert taken(joiner, history) and blamed(joiner) <= {"bob"}


def test_the_votes_are_those_of_the_longest_record_that_any_donor_tells(net: Net, history: History) -> None:
    bob, cid = Donor(net, "bob", history, AT), Donor(net, "cid", history, AT)
    bob.records, cid.records = [], history.commits[:AT]
    joiner = Joiner(net, bob, cid)
    at = history.tips[AT].standing
    assert joiner.node.play(joiner.claims.electorate(joiner.others, at)) == {"ann": 1.0}
    bob.records = cid.records = []
    assert joiner.node.play(joiner.claims.electorate(joiner.others, at)) == {}
