import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from coordinator.checkpoints.facts import SNAPSHOT, STATE, CheckpointFacts
from coordinator.checkpoints.store import LOCK, Checkpoints
from protocols.errors import DiskError
from protocols.run_spec import RunSpec
from protocols.tasks.language.causal_lm import CausalLanguageTask

SNAPSHOT_BYTES = b"the training state, verbatim" * 1000
FACTS = CheckpointFacts(
    run="tiny",
    run_digest="ab" * 32,
    epoch=12,
    lineage="cd" * 32,
    samples=1152,
    peers=["3fa2", "91cc"],
    loss=4.25,
)


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 15  # as a family's default id would be: not this tokenizer's
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<end>", "<unknown>", *"abcdefghijklmn"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unknown>")), eos_token="<end>", unk_token="<unknown>"
    )


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CausalLanguageTask:
    folder = tmp_path_factory.mktemp("assets")
    tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "held_out.json").write_text('[["a.txt", "a b c"]]')
    keys = {"model": {"model_type": "gpt2", "n_positions": 8}, "sequence_length": 8}
    assets = {"held_out.json": "0" * 64}
    return CausalLanguageTask(RunSpec.model_validate({"run": {"name": "tiny"}, "task": keys, "assets": assets}), folder)


def write(checkpoints: Checkpoints, model: Any, task: Any, epoch: int = 12, snapshot: bytes = SNAPSHOT_BYTES) -> Path:
    facts = replace(FACTS, epoch=epoch)
    return checkpoints.write(snapshot, model, task, spec_toml='name = "tiny"\n', facts=facts)


def names(directory: Path) -> list[str]:
    """Everything in the folder but the lock, which stays."""
    return sorted(path.name for path in directory.iterdir() if path.name != LOCK)


def test_transformers_loads_a_checkpoint_where_this_project_is_not_installed(tmp_path: Path, model: Any, task: Any) -> None:
    path = write(Checkpoints(tmp_path / "run", keep=1), model, task)
    tokens = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        expected = model.eval()(tokens).logits.sum().item()
    script = """
        import sys, importlib.abc
        class Refuse(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("protocols", "peer", "coordinator", "dugnad"):
                    raise ImportError(name)
        sys.meta_path.insert(0, Refuse())
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        with torch.no_grad():
            logits = model(torch.arange(8).unsqueeze(0)).logits.sum().item()
        assert "protocols" not in sys.modules
        print(repr(logits), model.generation_config.eos_token_id, tokenizer.eos_token, len(tokenizer))
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(script), path],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits, *rest = done.stdout.split()
    assert float(logits) == pytest.approx(expected, abs=1e-5)
    assert rest == ["0", "<end>", "16"]


def test_a_checkpoint_says_what_it_is(tmp_path: Path, model: Any, task: Any) -> None:
    path = write(Checkpoints(tmp_path, keep=1), model, task)
    assert path.name == "epoch-000012"
    assert {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "run.toml"} < set(names(path))
    state = json.loads((path / STATE).read_text())
    assert (state["run"], state["epoch"], state["samples"], state["loss"]) == ("tiny", 12, 1152, 4.25)
    assert set(state["files"]) == set(names(path)) - {STATE}
    for name, digest in state["files"].items():
        assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest
    assert (path / SNAPSHOT).read_bytes() == SNAPSHOT_BYTES


def test_the_generation_config_has_the_tokenizers_ids_and_the_model_keeps_its_own(tmp_path: Path, model: Any, task: Any) -> None:
    path = write(Checkpoints(tmp_path, keep=1), model, task)
    assert json.loads((path / "generation_config.json").read_text())["eos_token_id"] == task.tokenizer.eos_token_id == 0
    assert model.generation_config.eos_token_id == 15


def test_the_model_card_has_front_matter_and_the_numbers(tmp_path: Path, model: Any, task: Any) -> None:
    import yaml

    card = (write(Checkpoints(tmp_path, keep=1), model, task) / "README.md").read_text()
    _, front, prose = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dugnad", "collaborative-training", "gpt2"],
    }
    assert "4.2500 nats per token (perplexity 70.1)" in prose
    assert "AutoModelForCausalLM.from_pretrained" in prose


def test_a_loss_that_was_not_measured_is_not_claimed(tmp_path: Path, model: Any, task: Any) -> None:
    facts = replace(FACTS, loss=float("nan"))
    path = Checkpoints(tmp_path, keep=1).write(SNAPSHOT_BYTES, model, task, spec_toml="", facts=facts)
    assert "not measured" in (path / "README.md").read_text()
    assert json.loads((path / STATE).read_text())["loss"] is None


def test_the_latest_checkpoint_resumes_the_run(tmp_path: Path, model: Any, task: Any) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.latest() is None
    write(checkpoints, model, task, 99)
    write(checkpoints, model, task, 1000000)
    latest = Checkpoints(tmp_path, keep=3).latest()
    assert latest is not None
    assert (latest.path.name, latest.facts) == ("epoch-1000000", replace(FACTS, epoch=1000000))
    assert latest.snapshot_path.read_bytes() == SNAPSHOT_BYTES
    assert (latest.path / "run.toml").read_text() == 'name = "tiny"\n'


@pytest.mark.parametrize(
    "harm", ["flip a bit", "truncate", "no snapshot", "no state", "state is no JSON", "state of another kind"]
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, model: Any, task: Any, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    sound = write(checkpoints, model, task, 10)
    path = write(checkpoints, model, task, 20)
    snapshot, state = path / SNAPSHOT, path / STATE
    if harm == "flip a bit":
        snapshot.write_bytes(b"T" + SNAPSHOT_BYTES[1:])
    elif harm == "truncate":
        snapshot.write_bytes(SNAPSHOT_BYTES[:-1])
    elif harm == "no snapshot":
        snapshot.unlink()
    elif harm == "no state":
        state.unlink()
    elif harm == "state is no JSON":
        state.write_bytes(b'{"run": "\xff')
    else:
        state.write_text("[]")
    latest = Checkpoints(tmp_path, keep=3).latest()
    assert latest is not None and latest.path == sound
    assert "checkpoint-damaged" in caplog.text
    assert path.exists()


def test_an_edited_model_card_does_not_cost_the_training_state(tmp_path: Path, model: Any, task: Any) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    path = write(checkpoints, model, task)
    (path / "README.md").write_text("mine")
    assert checkpoints.latest() is not None


def test_only_the_newest_are_kept(tmp_path: Path, model: Any, task: Any) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 3):
        write(checkpoints, model, task, epoch)
    assert names(tmp_path) == ["epoch-000002", "epoch-000003"]


def test_damaged_ones_do_not_push_out_the_one_to_resume_from(tmp_path: Path, model: Any, task: Any) -> None:
    damaged = write(Checkpoints(tmp_path, keep=2), model, task, 30)
    (damaged / SNAPSHOT).write_bytes(b"")
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (19, 20, 21):
        write(checkpoints, model, task, epoch)
    assert names(tmp_path) == ["epoch-000020", "epoch-000021", "epoch-000030"]
    latest = checkpoints.latest()
    assert latest is not None and latest.facts.epoch == 21


def test_what_was_just_written_is_never_retired(tmp_path: Path, model: Any, task: Any) -> None:
    write(Checkpoints(tmp_path, keep=1), model, task, 30)
    path = write(Checkpoints(tmp_path, keep=1), model, task, 20)
    assert path.exists()


def test_an_epoch_written_again_replaces_the_former(tmp_path: Path, model: Any, task: Any) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    write(checkpoints, model, task, snapshot=b"former")
    write(checkpoints, model, task, snapshot=b"new")
    latest = checkpoints.latest()
    assert latest is not None and latest.snapshot_path.read_bytes() == b"new"
    assert names(tmp_path) == ["epoch-000012"]


def test_a_crash_while_replacing_loses_nothing(tmp_path: Path, model: Any, task: Any) -> None:
    path = write(Checkpoints(tmp_path, keep=2), model, task)
    path.rename(tmp_path / ".epoch-000012.replaced-x")
    (tmp_path / ".epoch-000012.partial-y").mkdir()
    assert Checkpoints(tmp_path, keep=2).latest() is not None
    assert names(tmp_path) == ["epoch-000012"]


def test_what_a_crash_left_unfinished_is_removed_at_the_next_start(tmp_path: Path) -> None:
    leftover = tmp_path / ".epoch-000012.partial-x"
    leftover.mkdir()
    (leftover / SNAPSHOT).write_bytes(b"half")
    (tmp_path / ".mine").write_text("")
    Checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == [".mine"]


def test_a_reader_does_not_remove_what_a_writer_is_at(tmp_path: Path) -> None:
    underway = tmp_path / ".epoch-000012.partial-x"
    underway.mkdir()
    with FileLock(tmp_path / LOCK):
        Checkpoints(tmp_path, keep=1)
    assert underway.exists()
    Checkpoints(tmp_path, keep=1)
    assert not underway.exists()


def test_whoever_only_reads_leaves_nothing_behind(tmp_path: Path, model: Any, task: Any) -> None:
    written = write(Checkpoints(tmp_path / "run", keep=1), model, task)
    copied = Path(shutil.copytree(written, tmp_path / "copy" / written.name))
    latest = Checkpoints(copied.parent, keep=1).latest()
    assert latest is not None
    assert [path.name for path in copied.parent.iterdir()] == [written.name]


def test_nothing_has_its_final_name_before_it_is_on_the_disk(
    tmp_path: Path, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(handle: int) -> None:
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def spy_rename(self: Path, target: Path) -> Path:
        steps.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    path = write(Checkpoints(tmp_path, keep=1), model, task)
    at = steps.index("renamed")
    assert set(names(path)) < set(steps[:at])
    assert steps[at - 1].startswith(".epoch-000012.partial-")
    assert steps[at + 1] == tmp_path.name


def test_a_failed_write_leaves_no_trace(tmp_path: Path, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, model, task, 11)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(task.tokenizer, "save_pretrained", refuse)
    with pytest.raises(DiskError, match=r"epoch-000012 could not be written: Permission denied") as caught:
        write(checkpoints, model, task, 12)
    assert "older checkpoints are untouched" in caught.value.remedy
    assert names(tmp_path) == ["epoch-000011"]


@pytest.mark.parametrize("full_at", ["the snapshot", "the model", "the tokenizer"])
def test_a_full_disk_is_a_disk_error_and_older_checkpoints_stay(
    tmp_path: Path, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    """A real refusal by the kernel, for safetensors and tokenizers write without Python's open()."""
    import resource
    import signal

    checkpoints = Checkpoints(tmp_path, keep=1)
    path = write(checkpoints, model, task, 11)
    snapshot = SNAPSHOT_BYTES if full_at == "the snapshot" else b"small"
    if full_at == "the tokenizer":
        words = {f"word{i}": i + 16 for i in range(2000)} | {"<end>": 0, "<unknown>": 1}
        large = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unknown>")))
        monkeypatch.setattr(task, "tokenizer", large)
        limit = (path / "model.safetensors").stat().st_size + 4000
    else:
        limit = 1000 if full_at == "the snapshot" else 4000
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DiskError, match="File too large"):
            write(checkpoints, model, task, 12, snapshot)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["epoch-000011"]
    latest = checkpoints.latest()
    assert latest is not None and latest.path == path


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


def test_other_errors_stay_what_they_are(tmp_path: Path, model: Any, task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("this model cannot be saved")

    monkeypatch.setattr(model, "save_pretrained", refuse)
    with pytest.raises(ValueError, match="cannot be saved"):
        write(Checkpoints(tmp_path, keep=1), model, task)
    assert names(tmp_path) == []


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)
