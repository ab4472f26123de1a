"""Faults at a named phase of a round, in real processes: survivors go on, nothing is counted twice, replicas stay identical."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.swarm.faults import (
    ACTS,
    PHASES,
    RECOVERY_S,
    ROLES,
    Cell,
    FaultySwarm,
    assert_identical,
    assert_no_sample_twice_on_a_lineage,
)

pytestmark = pytest.mark.swarm

LEADS_MISSED = 3
# Every act at every phase, and every role; all sixty cells: make faults.
SELECTION = [
    Cell("contributor", "before-sending", "kill"),
    Cell("reducer", "mid-shard", "kill"),
    Cell("auxiliary", "ready-before-commit", "stop"),
    Cell("leader", "ready-before-commit", "kill"),
    Cell("reducer", "before-sending", "stop"),
    Cell("leader", "mid-shard", "stop"),
    Cell("contributor", "after-commit-before-apply", "stop"),
    Cell("leader", "before-sending", "cut"),
    Cell("contributor", "mid-shard", "cut"),
    Cell("coordinator", "ready-before-commit", "cut"),
    Cell("auxiliary", "after-commit-before-apply", "cut"),
    Cell("coordinator", "after-commit-before-apply", "kill"),
]


def test_the_selection_covers_every_act_at_every_phase_and_every_role() -> None:
    assert {(cell.act, cell.phase) for cell in SELECTION} == {(act, phase) for act in ACTS for phase in PHASES}
    assert {cell.role for cell in SELECTION} == set(ROLES)


class Told:
    """A node that has only a log."""

    def __init__(self, *committed: dict[str, Any]) -> None:
        self._committed = list(committed)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        return self._committed


def commit(epoch: int, lineage: str, parent: str, first: int, end: int) -> dict[str, Any]:
    contributors = [{"peer": "ann", "incarnation": 1, "first": first, "end": end}]
    return {"epoch": epoch, "lineage": lineage, "parent": parent, "contributors": contributors}


def test_a_sample_may_be_on_two_lineages_and_not_twice_on_one() -> None:
    both = Told(commit(1, "a", "0", 0, 4), commit(2, "b", "a", 4, 8), commit(2, "c", "a", 4, 9))
    assert_no_sample_twice_on_a_lineage([both])
    with pytest.raises(AssertionError, match="epochs 2 and 3 of one lineage"):
        assert_no_sample_twice_on_a_lineage([both, Told(commit(3, "d", "c", 8, 12))])


def test_replicas_that_differ_at_a_lineage_are_found(tmp_path: Path) -> None:
    for name, state in (("ann", "x"), ("bob", "x"), ("cid", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "states.jsonl").write_text(json.dumps({"epoch": 1, "lineage": "a", "state": state}) + '\n{"torn')
    assert_identical([tmp_path / "ann", tmp_path / "bob"])
    with pytest.raises(AssertionError, match="ann and cid differ at epoch 1"):
        assert_identical([tmp_path / "ann", tmp_path / "cid"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_survivors_go_on_after_each_fault_at_each_phase(tmp_path: Path) -> None:
    _strike(tmp_path, 31, SELECTION)


@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("role", ROLES)
def test_survivors_go_on_after_every_fault_of(role: str, tmp_path: Path) -> None:
    _strike(tmp_path, 32, [Cell(role, phase, act) for phase in PHASES for act in ACTS])


def _strike(folder: Path, seed: int, cells: list[Cell]) -> None:
    late = []
    with FaultySwarm(folder, seed=seed) as faulty:
        for cell in cells:
            recovery = faulty.strike(cell)
            for _ in range(LEADS_MISSED):
                if recovery.led or cell.role != "leader":
                    break
                recovery = faulty.strike(cell)  # somebody else had come to lead by then
            print(recovery, flush=True)
            if recovery.seconds > RECOVERY_S + recovery.epoch_s:
                late.append(str(recovery))
    assert not late, f"slower than {RECOVERY_S} s and one epoch: {late}"
