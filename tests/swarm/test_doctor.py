"""`dugnad doctor` against a real run: it finds what is well, and what is not, and says what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.identity import Ticket
from tests.factories import CORPUS
from tests.swarm.swarm import Swarm, free_port, run_dugnad, wait_until

pytestmark = pytest.mark.slow
OWN = ("--data", f"{CORPUS}/*.txt")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("swarm"), seed=23, batch=32) as swarm:
        wait_until(lambda: swarm.coordinator.events("peer_joined"), "the auxiliary peer")
        yield swarm


def examined(code: int, *arguments: str) -> dict[str, dict[str, Any]]:
    """The checks by name."""
    done = run_dugnad("doctor", *arguments, "--json", limit_s=120.0)
    assert done.returncode == code, done.stderr
    said = json.loads(done.stdout)
    assert said["able"] == (code == 0)
    assert all(check["remedy"] for check in said["checks"] if check["state"] == "failed")
    return {check["name"]: check for check in said["checks"]}


def test_a_computer_that_can_take_part_is_told_all_that_matters(swarm: Swarm) -> None:
    checks = examined(0, f"@{swarm.folder / 'run' / 'ticket.txt'}", *OWN)
    assert {name for name, check in checks.items() if check["state"] == "ok"} >= {
        *("python", "packages", "device", "disk", "open files", "way by IPv4", "enrolment", "discovery"),
        *("reachable", "line", "memory", "speed"),
    }
    assert "Mbit/s up" in checks["line"]["found"] and "samples/s" in checks["speed"]["found"]
    assert not list(Path("/tmp").glob("dugnad-doctor-*")), "nothing stays behind"


def test_closed_ports_are_no_obstacle_and_are_told(swarm: Swarm) -> None:
    checks = examined(0, swarm.ticket, "--announce", f"127.0.0.1:{free_port(2)}", *OWN)
    assert checks["reachable"]["state"] == "warning"
    assert "--announce" in checks["reachable"]["remedy"]


def test_a_coordinator_that_is_away_is_told_with_a_remedy() -> None:
    away = Ticket(("127.0.0.1",), free_port(), bytes(32), bytes(16))
    checks = examined(1, str(away))
    assert "connection refused" in checks["way by IPv4"]["found"]
    assert checks["coordinator"]["state"] == checks["enrolment"]["state"] == "failed"


def test_without_data_it_reads_none_and_says_what_a_peer_needs_and_a_limit_shows_in_the_line(swarm: Swarm) -> None:
    checks = examined(1, swarm.ticket, "--max-upload", "5")
    assert "you have named none" in checks["model and data"]["found"] and "--data" in checks["model and data"]["remedy"]
    up = float(checks["line"]["found"].split()[0].replace(",", ""))
    assert 1 <= up <= 10, checks["line"]["found"]


def test_text_that_is_not_there_fails_the_last_check_alone(swarm: Swarm) -> None:
    checks = examined(1, swarm.ticket, "--data", "/nowhere/*.txt")
    assert [name for name, check in checks.items() if check["state"] == "failed"] == ["model and data"]
    assert "/nowhere/*.txt" in checks["model and data"]["found"]
