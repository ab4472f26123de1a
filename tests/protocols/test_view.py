import json
from typing import Any

import pytest

from protocols.errors import BadMessageError
from protocols.view import PeerView, SwarmView

LEAD = PeerView("3fa2", "alice", "contributor", True, 12, 31, 102.5, "training", True)
SILENT = PeerView("91cc", "", "auxiliary", False, 12, 0, 8.0, "silent", False)
VIEW = SwarmView("python-lm", "ab", 12, "cd", 31, 96, 1152, "training", (LEAD, SILENT), None)


def test_a_view_survives_json() -> None:
    assert SwarmView.from_json(json.loads(json.dumps(VIEW.to_json()))) == VIEW


def test_silent_peers_add_no_speed() -> None:
    assert VIEW.samples_per_second == 102.5
    assert VIEW.lead == LEAD


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": True},
        {"epoch": 1.5},
        {"epoch": 1 << 70},
        {"run": None},
        {"run": "x" * 1000},
        {"max_epochs": "60"},
        {"peers": {}},
        {"peers": [{}]},
        {"peers": [None]},
        {"unknown": 1},
    ],
)
def test_a_damaged_view_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadMessageError):
        SwarmView.from_json(VIEW.to_json() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"role": "king"},
        {"reachable": 1},
        {"samples_per_second": float("nan")},
        {"samples_per_second": -1},
        {"state": ["training"]},
    ],
)
def test_a_damaged_peer_in_a_view_is_refused(change: dict[str, Any]) -> None:
    document = VIEW.to_json()
    document["peers"][0] |= change
    with pytest.raises(BadMessageError):
        SwarmView.from_json(document)


def test_a_view_with_a_field_missing_is_refused() -> None:
    document = VIEW.to_json()
    del document["lineage"]
    with pytest.raises(BadMessageError, match="lineage"):
        SwarmView.from_json(document)
