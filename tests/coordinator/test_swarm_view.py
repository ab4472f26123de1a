import json
from dataclasses import asdict

from coordinator.swarm_view import SwarmView
from protocols.observations import PeerView

LEADER = PeerView("3fa2", "alice", "contributor", True, 12, 31, 102.5, "training", True)
SILENT = PeerView("91cc", "", "auxiliary", False, 12, 0, 8.0, "silent", False)
VIEW = SwarmView("python-lm", "ab", 12, "cd", 31, 96, 1152, "training", (LEADER, SILENT), None)


def test_a_view_is_plain_json() -> None:
    document = json.loads(json.dumps(asdict(VIEW)))
    assert document["epoch"] == 12 and document["max_epochs"] is None
    assert [peer["name"] for peer in document["peers"]] == ["alice", ""]


def test_silent_peers_add_no_speed() -> None:
    assert VIEW.samples_per_second == 102.5
