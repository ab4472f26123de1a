"""Checkpoints: folders `epoch-000123/` that `transformers` loads as they are, and from which the run resumes.

    config.json, model.safetensors, generation_config.json   what `from_pretrained` reads
    tokenizer.json, tokenizer_config.json, ...               the tokenizer
    README.md                                                the model card
    run.toml                                                 the run spec
    training_state.safetensors                               the snapshot, verbatim (protocols/snapshot/format.py)
    training_state.json                                      what it is, and the SHA-256 of every other file

A folder has its final name only once every byte of it is on the disk: it is written aside under a hidden name, fsynced, and
renamed. So whatever is called `epoch-*` is whole, unless the disk damaged it later; `latest` checks for that.

Hidden names: `.epoch-000123.partial-*` is being written, or was when its writer died; `.epoch-000123.replaced-*` is the former
holder of the name while another takes its place. The writer holds a lock on the first, so that nobody else's start-up removes it.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from protocols.errors import DiskError

logger = logging.getLogger(__name__)

SNAPSHOT = "training_state.safetensors"
STATE = "training_state.json"
SPEC = "run.toml"

_COMPLETE = re.compile(r"epoch-(\d+)")
_PARTIAL = re.compile(r"\.epoch-\d+\.partial-.*")
_REPLACED = re.compile(r"\.(epoch-\d+)\.replaced-.*")
_AUTO_CLASSES = {"text-generation": "AutoModelForCausalLM", "fill-mask": "AutoModelForMaskedLM"}


@dataclass(frozen=True)
class CheckpointFacts:
    """What is written about a state. `peers` are the ids of the commit's contributors, `held_out_loss` is in nats per token."""

    run_digest: str
    epoch: int
    lineage: str
    samples: int
    peers: list[str]
    held_out_loss: float | None
    pipeline_tag: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk whose snapshot has been found whole."""

    path: Path
    run_name: str
    written_at: str
    facts: CheckpointFacts

    @property
    def snapshot_path(self) -> Path:
        return self.path / SNAPSHOT


class Checkpoints:
    """The checkpoints in `directory`, of which the newest `keep` are kept. One process at a time may write here."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self.directory = directory
        self.keep = keep
        self._sound: set[Path] = set()  # found whole once; hashing gigabytes at each write would tell nothing new
        with _disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._tidy()

    def write(
        self,
        snapshot: bytes,
        model: torch.nn.Module,
        tokenizer: Any,
        *,
        spec_toml: str,
        run_name: str,
        facts: CheckpointFacts,
    ) -> Path:
        """Write one checkpoint whole, or raise DiskError and leave everything as it was.

        `model` (a transformers model) holds the parameters of `snapshot` already; the caller sees to it that nobody trains it
        meanwhile.
        """
        final = self.directory / f"epoch-{facts.epoch:06d}"
        with _disk_errors(final):
            aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=self.directory))
            try:
                with _locked(aside):
                    aside.chmod(0o755)  # mkdtemp's 0700 would hide the checkpoint from others
                    (aside / SNAPSHOT).write_bytes(snapshot)  # first: a full disk shows soonest at the largest file
                    (aside / SPEC).write_text(spec_toml, encoding="utf-8")
                    _save_model(model, tokenizer, aside)
                    (aside / "README.md").write_text(model_card(run_name, model, facts), encoding="utf-8")
                    (aside / STATE).write_text(json.dumps(_state(run_name, facts, aside), indent=2) + "\n", encoding="utf-8")
                    _sync_tree(aside)
                    self._take_name(aside, final)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        self._sound.add(final)
        self._retire(final)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; damaged ones are passed over with a warning, never deleted here."""
        for path in self._complete():
            checkpoint = _open(path)
            if checkpoint is not None:
                self._sound.add(path)
                return checkpoint
        return None

    def _complete(self) -> list[Path]:
        """Folders with a final name, newest first."""
        with _disk_errors(self.directory):
            numbered = [(int(match[1]), path) for path in self.directory.iterdir() if (match := _COMPLETE.fullmatch(path.name))]
        return [path for _, path in sorted(numbered, reverse=True)]

    def _take_name(self, aside: Path, final: Path) -> None:
        former: Path | None = None
        if final.exists():
            # rename(2) replaces no folder that has files in it. A crash between the two renames is mended by _tidy.
            former = Path(tempfile.mkdtemp(prefix=f".{final.name}.replaced-", dir=self.directory))
            self._sound.discard(final)
            final.rename(former)
        try:
            aside.rename(final)
        except OSError:
            if former is not None:
                former.rename(final)
            raise
        _sync(self.directory)
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)

    def _retire(self, written: Path) -> None:
        # Only whole ones count towards `keep`: two damaged folders must not push out the last one to resume from.
        kept = 0
        for path in self._complete():
            if kept >= self.keep and path != written:
                self._sound.discard(path)
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    logger.warning("checkpoint-not-removed: %s: %s", path, error.strerror)
            elif path in self._sound or _open(path) is not None:
                self._sound.add(path)
                kept += 1

    def _tidy(self) -> None:
        for path in list(self.directory.iterdir()):
            if match := _REPLACED.fullmatch(path.name):
                final = self.directory / match[1]
                if not final.exists() and (path / STATE).exists():
                    logger.warning("checkpoint-restored: %s, whose replacement was interrupted", final)
                    path.rename(final)
                else:
                    shutil.rmtree(path)
            elif _PARTIAL.fullmatch(path.name) and not _is_locked(path):
                logger.warning("checkpoint-unfinished: removing %s, whose writer died", path)
                shutil.rmtree(path)


def model_card(run_name: str, model: torch.nn.Module, facts: CheckpointFacts) -> str:
    """README.md as the Hugging Face hub reads it: YAML front matter (JSON scalars are YAML), then prose."""
    model_type = str(getattr(getattr(model, "config", None), "model_type", "transformer"))
    loader = _AUTO_CLASSES.get(facts.pipeline_tag, "AutoModel")
    tags = ["dugnad", "collaborative-training", model_type]
    front = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {json.dumps(facts.pipeline_tag)}",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    loss = facts.held_out_loss
    if loss is None or not math.isfinite(loss):
        measured = "not measured at this epoch"
    else:
        measured = f"{loss:.4f} nats per token"
        if facts.pipeline_tag == "text-generation" and loss < 100:
            measured += f" (perplexity {math.exp(loss):,.1f})"
    peers = len(facts.peers)
    name = " ".join(run_name.split())
    return "\n".join(
        [
            *front,
            "",
            f"# {name}",
            "",
            f"A `{model_type}` model of {parameters:,} parameters, trained from its run spec by volunteers who"
            " pooled their computers with dugnad, an implementation of [DeDLOC](https://arxiv.org/abs/2106.10207). It was written"
            " while the run went on: it is a checkpoint, not a release, and nobody has reviewed what it learnt or what it says.",
            "",
            "| | |",
            "|---|---|",
            f"| run | {name.replace('|', ' ')} (`{facts.run_digest[:16]}`) |",
            f"| epoch | {facts.epoch:,} |",
            f"| samples | {facts.samples:,} |",
            f"| held-out loss | {measured} |",
            f"| peers in the last commit | {peers} |",
            f"| lineage | `{facts.lineage}` |",
            "",
            "## Load it",
            "",
            "```python",
            f"from transformers import AutoTokenizer, {loader}",
            "",
            f'model = {loader}.from_pretrained("path/to/this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
            "```",
            "",
            "The data, the optimizer and all else that fixes the run are in `run.toml`. `training_state.safetensors` holds",
            "the optimizer's state as well, so that the run can go on from here; loading the model does not need it.",
            "",
        ]
    )


def _save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    if bars:
        transformers_logging.disable_progress_bar()  # it would tear the live view
    try:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        if model.can_generate():
            # A config built from scratch carries its family's default ids, which this tokenizer may give to other words.
            generation = copy.deepcopy(model.generation_config)
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(generation, token, getattr(tokenizer, token, None))
            generation.save_pretrained(directory)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()


def _state(run_name: str, facts: CheckpointFacts, directory: Path) -> dict[str, Any]:
    loss = facts.held_out_loss
    return {
        "run": run_name,
        "run_digest": facts.run_digest,
        "epoch": facts.epoch,
        "lineage": facts.lineage,
        "samples": facts.samples,
        "peers": facts.peers,
        "loss": loss if loss is not None and math.isfinite(loss) else None,
        "pipeline_tag": facts.pipeline_tag,
        "written_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "files": {
            path.relative_to(directory).as_posix(): _sha256(path) for path in sorted(directory.rglob("*")) if path.is_file()
        },
    }


def _open(path: Path) -> Checkpoint | None:
    try:
        state = json.loads((path / STATE).read_bytes())
        # The snapshot alone decides: a model card that the organiser edited must not cost the run its training.
        if _sha256(path / SNAPSHOT) != state["files"][SNAPSHOT]:
            raise ValueError(f"{SNAPSHOT} does not match its SHA-256")
        return _checkpoint(path, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("checkpoint-damaged: passing over %s (%s: %s)", path, type(error).__name__, error)
        return None


def _checkpoint(path: Path, state: Mapping[str, Any]) -> Checkpoint:
    facts = CheckpointFacts(
        run_digest=str(state["run_digest"]),
        epoch=int(state["epoch"]),
        lineage=str(state["lineage"]),
        samples=int(state["samples"]),
        peers=[str(peer) for peer in state["peers"]],
        held_out_loss=None if state["loss"] is None else float(state["loss"]),
        pipeline_tag=str(state["pipeline_tag"]),
    )
    return Checkpoint(path, run_name=str(state["run"]), written_at=str(state["written_at"]), facts=facts)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(directory: Path) -> None:
    # Children before parents, so that a folder is durable only after what it names.
    for path in sorted(directory.rglob("*"), reverse=True):
        _sync(path)
    _sync(directory)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders; the lock is a courtesy, not what safety rests on
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(directory: Path) -> bool:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _disk_error(path, error.strerror or str(error)) from error
    except Exception as error:
        # safetensors and tokenizers raise their own exceptions for what the operating system refused; the code is in their text.
        if "(os error " not in str(error):
            raise
        raise _disk_error(path, str(error)) from error


def _disk_error(path: Path, cause: str) -> DiskError:
    return DiskError(
        f"the checkpoint {path} could not be written: {cause}",
        remedy="Free some space there, or point the run at a folder that you may write to; older checkpoints are untouched.",
    )
