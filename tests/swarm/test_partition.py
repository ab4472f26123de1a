"""A network that is parted and healed, with real processes in network namespaces (needs root; skipped where that is missing)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from protocols.identity import Key
from protocols.reasons import Reason
from tests.swarm.faults import Auxiliary, Node, assert_identical, assert_no_sample_twice_on_a_lineage
from tests.swarm.network import TwoSides
from tests.swarm.swarm import Swarm, wait_until

pytestmark = [pytest.mark.swarm, pytest.mark.slow, pytest.mark.timeout(600)]
LIMIT_S = 120.0


def test_two_sides_of_a_parted_network_go_on_and_once_it_is_healed_one_lineage_wins(tmp_path: Path) -> None:
    with TwoSides() as network, Swarm(
        tmp_path, seed=41, batch=768, faults=True, host=network.addresses[0], under=network.left
    ) as swarm:  # fmt: skip
        auxiliary = Auxiliary(swarm)
        north = swarm.start_peer("north")
        south, east = (swarm.start_peer(name, under=network.right) for name in ("south", "east"))
        everybody: list[Node] = [auxiliary, north, south, east]
        for peer in (north, south, east):
            swarm.contributes(peer)

        network.part()
        left, right = [auxiliary, north], [south, east]
        before = max(node.epoch() for node in everybody)
        for side in (left, right):
            wait_until(lambda side=side: _alone(side, before) >= 3, f"{[n.name for n in side]} to commit on their own", LIMIT_S)
        network.heal()

        wait_until(lambda: _together(everybody, before), "everybody to commit on one lineage", LIMIT_S)
        commits = {record["lineage"]: record for node in everybody for record in node.events("committed")}
        winning = _chain(max(commits.values(), key=lambda record: int(record["total_samples"])), commits)
        losers = right if _ids(left) >= _ids_of_members(winning, before) else left
        winners = left if losers is right else right
        for node in losers:
            lost = [record for record in node.events("committed") if record["lineage"] not in winning]
            assert lost, f"{node.name} committed something that was given up"
            # Told once somebody has answered what became of the lost epochs.
            (told,) = wait_until(lambda node=node: node.events("fork_lost"), f"{node.name} to say what it gave up", 60)
            assert (told["commits"], told["samples"]) == (len(lost), sum(record["samples"] for record in lost))
            assert told["lineage"] == lost[-1]["lineage"] and told["to"] in winning
            mine = sum(c["end"] - c["first"] for record in lost for c in record["contributors"] if c["peer"] == _id(node))
            given_up = [r["samples"] for r in node.events("given_up") if r["reason"] == Reason.LOST_FORK.value]
            assert given_up == ([mine] if mine else [])
            assert winning[told["to"]]["total_samples"] >= lost[-1]["total_samples"], "the heavier lineage wins"
        for node in winners:
            assert not node.events("fork_lost")
            assert all(record["lineage"] in winning for record in node.events("committed"))
        assert_no_sample_twice_on_a_lineage(everybody)
        assert_identical([node.folder for node in everybody])

        # The coordinator, on whichever side it was, has the winning lineage whole.
        written = wait_until(lambda: _whole(swarm.coordinator.events("committed"), winning), "the history to be whole", 30)
        assert written


def _id(node: Node) -> str:
    return Key.load_or_create(node.folder / "identity.key").peer_id


def _ids(side: Sequence[Node]) -> set[str]:
    return {_id(node) for node in side}


def _alone(side: Sequence[Node], after: int) -> int:
    """How many epochs this side has committed with its own members alone."""
    ids = _ids(side)
    return min(
        len([r for r in node.events("committed") if r["epoch"] > after and {c["peer"] for c in r["contributors"]} <= ids])
        for node in side
    )


def _together(everybody: Sequence[Node], after: int) -> bool:
    """Somebody from each side has contributed to one commit that all of them applied, after the sides had parted."""
    last = [{r["lineage"]: r for r in node.events("committed") if r["epoch"] > after + 3} for node in everybody]
    common = set.intersection(*(set(commits) for commits in last))
    sides = [_ids(everybody[:2]), _ids(everybody[2:])]
    return any(all({c["peer"] for c in last[0][lineage]["contributors"]} & side for side in sides) for lineage in common)


def _chain(tip: dict[str, Any], commits: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    chain = {}
    at: dict[str, Any] | None = tip
    while at is not None:
        chain[at["lineage"]] = at
        at = commits.get(at["parent"])
    return chain


def _ids_of_members(winning: dict[str, dict[str, Any]], before: int) -> set[str]:
    """Who contributed to the winning lineage just after the network was parted."""
    first = min((r for r in winning.values() if r["epoch"] > before + 1), key=lambda record: int(record["epoch"]))
    return {c["peer"] for c in first["contributors"]}


def _whole(records: list[dict[str, Any]], winning: dict[str, dict[str, Any]]) -> bool:
    seen = {record["lineage"] for record in records}
    last = max((winning[lineage]["epoch"] for lineage in seen & winning.keys()), default=0)
    return last > 0 and all(record["lineage"] in seen for record in winning.values() if record["epoch"] <= last)
