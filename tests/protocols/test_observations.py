"""Observations check themselves: whoever sends them is not trusted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocols.errors import BadMessageError
from protocols.messages import ObserveRequest
from protocols.observations import Failure, PeerView, Seen, Swarm
from protocols.reasons import Reason
from protocols.round.records import Ballot, Candidate
from protocols.wire import dugnad_pb2 as pb
from protocols.wire.calls import CALL_OF
from protocols.wire.convert import from_wire, to_wire

OBSERVATIONS = CALL_OF[ObserveRequest].down
ALICE = PeerView("3fa2", "alice", "contributor", True, 12, 31, 102.5, "training", True)
SWARM = Swarm(None, 31, "training", (ALICE,), Candidate("3fa2", "alice:1"))


@pytest.mark.parametrize(
    "change", [{"role": "king"}, {"role": ""}, {"samples_per_second": float("nan")}, {"samples_per_second": -1.0}]
)
def test_a_damaged_view_of_a_peer_is_refused_alone_and_within_a_swarm(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        replace(ALICE, **change)
    message, swarm = to_wire(ALICE), pb.Observation(swarm=to_wire(SWARM))
    for name, value in change.items():
        setattr(message, name, value)
        setattr(swarm.swarm.peers[0], name, value)
    with pytest.raises(BadMessageError):
        from_wire(PeerView, message)
    with pytest.raises(BadMessageError):
        OBSERVATIONS.from_bytes(swarm.SerializeToString())


@pytest.mark.parametrize(("present", "reason"), [(True, "left"), (False, ""), (False, "because")])
def test_a_peer_leaves_with_a_known_reason_and_comes_with_none(present: bool, reason: str) -> None:
    with pytest.raises(ValueError):
        Seen(ALICE, present, reason)


@pytest.mark.parametrize(
    "observation",
    [
        SWARM,
        replace(SWARM, follows=None),
        Failure(Ballot(3, "a" * 64, 2, "3fa2"), Reason.SILENT, "", 1.5),
        Seen(ALICE, present=True),
        Seen(ALICE, present=False, reason=Reason.LEFT.value),
    ],
)
def test_an_observation_comes_back_from_the_wire_as_it_went(observation: Any) -> None:
    assert OBSERVATIONS.from_bytes(OBSERVATIONS.to_bytes(observation)) == observation


def test_an_observation_without_content_is_a_bad_message() -> None:
    with pytest.raises(BadMessageError):
        OBSERVATIONS.from_bytes(pb.Observation().SerializeToString())
