import json
from typing import Any

import pytest

from protocols.errors import BadMessageError
from protocols.view import PeerView, SwarmView
from protocols.wire.convert import from_wire, to_wire

LEADER = PeerView("3fa2", "alice", "contributor", True, 12, 31, 102.5, "training", True)
SILENT = PeerView("91cc", "", "auxiliary", False, 12, 0, 8.0, "silent", False)
VIEW = SwarmView("python-lm", "ab", 12, "cd", 31, 96, 1152, "training", (LEADER, SILENT), None)


def test_a_view_is_plain_json() -> None:
    document = json.loads(json.dumps(VIEW.to_json()))
    assert document["epoch"] == 12 and document["max_epochs"] is None
    assert [peer["name"] for peer in document["peers"]] == ["alice", ""]


def test_silent_peers_add_no_speed() -> None:
    assert VIEW.samples_per_second == 102.5
    assert VIEW.leader == LEADER


@pytest.mark.parametrize(
    "change", [{"role": "king"}, {"role": ""}, {"samples_per_second": float("nan")}, {"samples_per_second": -1.0}]
)
def test_a_damaged_view_of_a_peer_that_came_over_the_network_is_refused(change: dict[str, Any]) -> None:
    message = to_wire(LEADER)
    assert from_wire(PeerView, message) == LEADER
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(BadMessageError):
        from_wire(PeerView, message)
