"""The organiser's loop against a disk that is full and peers that are gone."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.checkpoints.store import Checkpoints
from coordinator.genesis import RunFolder, open_run
from coordinator.monitor import FETCH_AGAIN_S, Monitor, Run
from coordinator.sinks.base import Sink, Sinks
from protocols.errors import BadMessageError, DiskError, RemoteError, UnreachableError
from protocols.observations import Absence, Committed, Failure, Observation, PeerView, Seen, Swarm
from protocols.optimization import build_optimizer, build_scheduler
from protocols.reasons import Reason
from protocols.round.records import Ballot, Candidate, SignedCommit
from protocols.run_spec import RunSpec
from protocols.signing import CertificateSigner
from protocols.snapshot.format import StateHeader, capture, read_header
from protocols.tasks.registry import open_task
from protocols.wire.convert import to_bytes
from tests.factories import commit, contribution

SPEC = """
run.name = "monitor"
checkpoint.every_epochs = 1
training.target_batch_size = 8
task.sequence_length = 16
task.data = { source = "files", paths = ["*.txt"], held_out_bytes = 4096 }
task.tokenizer.vocab_size = 300
[task.model]
model_type = "gpt2"
n_embd = 16
n_layer = 1
n_head = 1
n_positions = 16
"""


class FullDisk(Checkpoints):
    def write(self, *_: Any, **__: Any) -> Path:
        raise DiskError("cannot write the checkpoint: No space left on device", remedy="Free some space.")


class Events(Sink):
    """Keeps the events."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def event(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]


class Donor:
    """Answers each request for the state with the next of its answers, and the last one again and again."""

    def __init__(self, *answers: bytes | RemoteError) -> None:
        self._answers = list(answers)
        self.asked = 0

    def __call__(self) -> bytes:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, RemoteError):
            raise answer
        return answer


class Organiser:
    """A monitor in its run's folder, with its clock, its inbox and what its sinks were told."""

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, fetch: Callable[[], bytes]) -> None:
        self.now = 100.0
        self.events = Events()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._folder = folder
        task = open_task(folder.spec, folder.path)
        model = task.build_model()
        schedule = build_scheduler(folder.spec, build_optimizer(folder.spec, model))
        run = Run(folder.spec, task, model, schedule, folder.authority.pem)
        self.monitor = Monitor(
            run, Sinks([self.events]), checkpoints, self.inbox, fetch, lambda text: None, clock=lambda: self.now
        )
        self.monitor.start(folder.snapshot.read_bytes(), resumed=folder.resumed)

    def hear(self, *observations: Observation) -> None:
        for observation in observations:
            self.inbox.put(observation)
        self.monitor.step()


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    folder = tmp_path_factory.mktemp("author")
    torch.set_num_threads(1)
    for number in range(12):
        lines = (f"line {number * 97 + i} says {(number * 31 + i * 7) % 101} and {(i * i + number) % 89}" for i in range(60))
        (folder / f"text-{number}.txt").write_text("\n".join(lines))
    (folder / "run.toml").write_text(SPEC)
    return RunSpec.load(folder / "run.toml")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=1)


@pytest.fixture
def folder(author: RunSpec, tmp_path: Path, checkpoints: Checkpoints) -> RunFolder:
    return open_run(author, tmp_path / "run", checkpoints, lambda text: None)


def first_commit(folder: RunFolder) -> SignedCommit:
    """Of a leader that the authority has admitted: here the coordinator's own key stands in."""
    me, genesis = folder.credentials.key.peer_id, read_header(folder.snapshot.read_bytes()).lineage
    first = commit(me, ballot=Ballot(1, genesis, 1, me), contributions=(contribution(me, base=genesis, loss=5.0),))
    return CertificateSigner(folder.credentials).sign(first)


def state_after(signed: SignedCommit, folder: RunFolder) -> bytes:
    model = open_task(folder.spec, folder.path).build_model()
    optimizer = build_optimizer(folder.spec, model)
    schedule = build_scheduler(folder.spec, optimizer)
    commit = to_bytes(signed).hex()
    return capture(model, optimizer, StateHeader(folder.spec.digest, 1, signed.commit.digest, 8, commit, schedule.state_dict()))


def test_a_full_disk_costs_the_checkpoint_and_nothing_else(folder: RunFolder, tmp_path: Path) -> None:
    signed = first_commit(folder)
    on = Organiser(folder, FullDisk(tmp_path / "full", keep=1), Donor(state_after(signed, folder)))
    on.hear(Committed(signed))
    (failed,) = on.events.of("checkpoint_failed")
    assert "No space left" in failed["reason"] and "Free some space" in failed["reason"]
    assert [record["epoch"] for record in on.events.of("evaluated")] == [0, 1]


def test_a_checkpoint_is_written_when_asked_for_and_found_at_the_next_start(
    author: RunSpec, folder: RunFolder, checkpoints: Checkpoints
) -> None:
    snapshot = folder.snapshot.read_bytes()
    Organiser(folder, checkpoints, Donor(snapshot)).monitor.keep(checkpoint=True)
    newest = checkpoints.latest()
    assert newest is not None and newest.snapshot_path.read_bytes() == snapshot
    again = open_run(author, folder.path, checkpoints, lambda text: None)
    assert again.resumed and again.snapshot.read_bytes() == snapshot


def test_without_a_donor_the_monitor_goes_on_and_tries_again_after_a_while(folder: RunFolder, checkpoints: Checkpoints) -> None:
    signed = first_commit(folder)
    donor = Donor(UnreachableError("no peer answers"), state_after(signed, folder))
    on = Organiser(folder, checkpoints, donor)
    on.hear(Committed(signed))
    assert donor.asked == 1
    on.now += FETCH_AGAIN_S - 0.1
    on.hear()
    assert donor.asked == 1, "not before its time"
    assert on.events.of("checkpoint_written") == []
    on.now += 0.2
    on.hear()
    assert donor.asked == 2
    assert [record["epoch"] for record in on.events.of("checkpoint_written")] == [1]
    on.hear()
    assert donor.asked == 2, "nothing more is due"


@pytest.mark.parametrize("harm", ["another run", "other lineage", "no commit", "no hex", "nobody's signature", "model"])
def test_a_state_of_another_run_or_without_a_leaders_signature_is_never_kept(
    folder: RunFolder, checkpoints: Checkpoints, harm: str
) -> None:
    signed = first_commit(folder)
    if harm == "nobody's signature":
        signed = replace(signed, signature=b"x" * 64)
    header = read_header(state_after(signed, folder))
    if harm == "another run":
        header = replace(header, run_digest="0" * 64)
    elif harm == "other lineage":
        header = replace(header, lineage="1" * 64)
    elif harm in ("no commit", "no hex"):
        header = replace(header, commit="" if harm == "no commit" else "xyz")
    model = open_task(folder.spec, folder.path).build_model()
    if harm == "model":
        model.get_input_embeddings().weight = torch.nn.Parameter(torch.zeros(3, 3))
    state = capture(model, build_optimizer(folder.spec, model), header)
    on = Organiser(folder, checkpoints, Donor(state))
    on.monitor.keep(checkpoint=True)
    assert on.events.of("checkpoint_written") == []
    assert [record["epoch"] for record in on.events.of("evaluated")] == [0]
    assert checkpoints.latest() is None


def test_what_observers_are_told_becomes_events(folder: RunFolder, checkpoints: Checkpoints) -> None:
    signed = first_commit(folder)
    alice = PeerView("3fa2", "alice", "contributor", True, 0, 0, 12.5, "training", True)
    bob = replace(alice, peer="91cc", name="bob", is_leader=False)
    on = Organiser(folder, checkpoints, Donor(BadMessageError("not now")))
    on.hear(
        Swarm(None, 0, "training", (alice,), Candidate("3fa2", "a:1")),
        Seen(bob, present=True),
        Seen(bob, present=True),
        Failure(Ballot(1, "a" * 64, 2, "3fa2"), Reason.SILENT, "91cc", 4.5),
        Seen(bob, present=False, reason=Reason.LEFT.value),
        Committed(signed, seconds=2.0, attempts=2, absent=(Absence("91cc", Reason.LEFT),)),
        Committed(signed),
        Committed(replace(signed, signature=b"x" * 64)),
    )
    told = [(record["event"], record.get("peer") or record.get("epoch")) for record in on.events.records[2:]]
    assert told == [
        ("peer_joined", "3fa2"),
        ("peer_joined", "91cc"),
        ("attempt_failed", "91cc"),
        ("peer_left", "91cc"),
        ("committed", 1),
    ]
    (committed,) = on.events.of("committed")
    assert (committed["seconds"], committed["attempts"], committed["absent"]) == (2.0, 2, {"91cc": "left"})
    (failed,) = on.events.of("attempt_failed")
    assert (failed["name"], failed["seconds"]) == ("bob", 4.5)


def test_what_nobody_foresaw_ends_neither_the_loop_nor_the_search_for_state(
    folder: RunFolder, checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch() -> bytes:
        raise OverflowError("a snapshot like no other")

    on = Organiser(folder, checkpoints, fetch)
    bob = PeerView("91cc", "bob", "contributor", True, 0, 0, 12.5, "training", False)
    on.hear(Seen(None, present=True), Seen(bob, present=True))  # type: ignore[arg-type]
    on.monitor.keep()
    assert [record["name"] for record in on.events.of("peer_joined")] == ["bob"]
    assert "nobody foresaw" in caplog.text and "a snapshot like no other" in caplog.text
    assert not on.events.of("checkpoint_written")


def test_a_peer_that_did_not_come_to_the_new_leader_has_left(folder: RunFolder, checkpoints: Checkpoints) -> None:
    alice = PeerView("3fa2", "alice", "contributor", True, 0, 0, 12.5, "training", True)
    bob = replace(alice, peer="91cc", name="bob", is_leader=False)
    on = Organiser(folder, checkpoints, Donor(BadMessageError("not now")))
    on.hear(Swarm(None, 0, "training", (alice, bob), None), Swarm(None, 0, "training", (alice,), None))
    assert [(record["peer"], record["reason"]) for record in on.events.of("peer_left")] == [("91cc", "not-with-the-new-leader")]
