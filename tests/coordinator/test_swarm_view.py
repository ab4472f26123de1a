import io
import json
from dataclasses import asdict, replace

from rich.console import Console as Terminal

from coordinator.sinks.swarm_table import render_view
from coordinator.swarm_view import SwarmView
from protocols.observations import Absence, Committed, PeerView, Swarm
from protocols.reasons import Reason
from protocols.round.records import Candidate, Standing
from tests.coordinator.test_watching import chain
from tests.factories import run_spec

LEADER = PeerView("3fa2", "alice", "contributor", True, 12, 31, 102.5, "training", True)
SILENT = PeerView("91cc", "", "auxiliary", False, 12, 0, 8.0, "silent", False)
VIEW = SwarmView("python-lm", "ab", 12, "cd", 31, 96, 1152, "training", (LEADER, SILENT), None)


def test_a_view_is_plain_json() -> None:
    document = json.loads(json.dumps(asdict(VIEW)))
    assert document["epoch"] == 12 and document["max_epochs"] is None
    assert [peer["name"] for peer in document["peers"]] == ["alice", ""]


def test_recent_commits_give_pace_time_left_and_problems() -> None:
    spec = run_spec(training={"target_batch_size": 4, "max_epochs": 20})
    commits = chain("a", range(1, 11), "0" * 64)
    standing = Standing(10, commits[-1].commit.digest, 40)
    swarm = Swarm(standing, 0, "training", (LEADER, SILENT), Candidate("3fa2", "a:1"), 2.0, 3.0)
    absent = (Absence("91cc", Reason.SLOW_LINK), Absence("77dd", Reason.LEFT), Absence("55ee", Reason.STALLED))
    recent = [Committed(signed, 0.1, 1 + number % 2, absent) for number, signed in enumerate(commits)]
    view = SwarmView.of(swarm, spec, recent)
    assert (view.committed_samples_per_second, view.left_s, view.loss) == (2.0, 30.0, 1.0), "whatever averaging takes"
    assert view.problems == (
        "91cc is silent",
        "5 of the last 10 epochs took more than one attempt",
        "91cc was not in the last epoch: its upload would hold up the others",
        "55ee was not in the last epoch: no byte moved any more",
    )
    untold = SwarmView.of(replace(swarm, committed_samples_per_second=0.0, epoch_s=0.0), spec, recent)
    assert untold.committed_samples_per_second is None and untold.left_s is None and untold.loss == 1.0
    text = io.StringIO()
    Terminal(file=text, width=100).print(render_view(view, 100))
    assert "2.00 samples/s" in text.getvalue() and "took more than one attempt" in text.getvalue()
    assert SwarmView.of(Swarm(None, 0, "joining", (), None), spec).problems == ("nobody trains",)


def test_silent_peers_add_no_speed() -> None:
    assert VIEW.samples_per_second == 102.5
