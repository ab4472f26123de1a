"""Checkpoints: folders `epoch-000123/` from which others load the model and the run resumes.

    model.safetensors, ...        what the task saves: for text, all that transformers' `from_pretrained` reads
    README.md                     the model card                        model_card.py
    run.toml                      the run spec
    training_state.safetensors    the snapshot, verbatim                protocols/snapshot/format.py
    training_state.json           its facts, and every file's digest    facts.py

A folder gets its final name only once every byte of it is on the disk: it is written under a hidden name, fsynced, and
renamed. So each `epoch-*` is whole, unless the disk damaged it later; `latest` checks for that.

Hidden names:

    .epoch-000123.partial-*    is being written, or was when its writer died
    .epoch-000123.replaced-*   had the final name before; it makes room for a checkpoint of the same epoch
    .lock                      held while somebody writes, so that another process does not remove the two above
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from coordinator.checkpoints.facts import SNAPSHOT, STATE, Checkpoint, CheckpointFacts, open_checkpoint, write_facts
from coordinator.checkpoints.model_card import model_card
from protocols.errors import DiskError
from protocols.tasks.base import Task

logger = logging.getLogger(__name__)

SPEC = "run.toml"
LOCK = ".lock"
LOCK_S = 60.0  # how long a writer waits for another process, which tidies up or writes

_COMPLETE = re.compile(r"epoch-(\d+)")
_PARTIAL = re.compile(r"\.epoch-\d+\.partial-.*")
_REPLACED = re.compile(r"\.(epoch-\d+)\.replaced-.*")


class Checkpoints:
    """The checkpoints in `directory`, of which the newest `keep` are kept. Methods raise DiskError."""

    def __init__(self, directory: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError("keep must be at least 1")
        self.directory = directory
        self.keep = keep
        self._sound: set[Path] = set()  # found whole before: hashing gigabytes again at each write would tell nothing new
        self._lock = FileLock(directory / LOCK)
        with _disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._tidy()

    def write(
        self,
        snapshot: bytes,
        model: torch.nn.Module,
        task: Task,
        *,
        spec_toml: str,
        facts: CheckpointFacts,
    ) -> Path:
        """Write one checkpoint whole, retire old ones, and return its folder. After a DiskError all is as it was before.

        `model` already holds the parameters of `snapshot`. The caller makes sure that nobody trains it
        meanwhile.
        """
        final = self.directory / f"epoch-{facts.epoch:06d}"
        with _disk_errors(final), self._lock.acquire(timeout=LOCK_S):
            aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=self.directory))
            try:
                aside.chmod(0o755)  # mkdtemp's 0700 would hide the checkpoint from others
                (aside / SNAPSHOT).write_bytes(snapshot)  # first: a full disk shows soonest at the largest file
                (aside / SPEC).write_text(spec_toml, encoding="utf-8")
                task.save(model, aside)
                model_card(model, task, facts).save(aside / "README.md")
                write_facts(aside, facts)
                _sync_tree(aside)
                self._take_name(aside, final)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        self._sound.add(final)
        self._retire(final)
        return final

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole. Damaged ones are passed over with a warning, and stay where they are."""
        for path in self._complete():
            checkpoint = open_checkpoint(path)
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
            # rename(2) replaces no folder that has files in it. _tidy mends a crash between the two renames.
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
            elif path in self._sound or open_checkpoint(path) is not None:
                self._sound.add(path)
                kept += 1

    def _tidy(self) -> None:
        """Remove what a crash left unfinished, and give a folder that was being replaced its name back."""
        if not self._leftovers():
            return  # whoever only reads leaves no lock file behind
        try:
            with self._lock.acquire(blocking=False):
                for path in self._leftovers():
                    self._mend(path)
        except Timeout:
            return  # somebody is writing: the leftovers are that process's

    def _leftovers(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if _PARTIAL.fullmatch(path.name) or _REPLACED.fullmatch(path.name)]

    def _mend(self, path: Path) -> None:
        if match := _REPLACED.fullmatch(path.name):
            final = self.directory / match[1]
            if not final.exists() and (path / STATE).exists():
                logger.warning("checkpoint-restored: %s, whose replacement was interrupted", final)
                path.rename(final)
                return
        else:
            logger.warning("checkpoint-unfinished: removing %s, whose writer died", path)
        shutil.rmtree(path)


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
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers raise their own exceptions for what the operating system refused; the code is in their text.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        cause = getattr(error, "strerror", None) or error
        raise DiskError(
            f"the checkpoint {path} could not be written: {cause}",
            remedy="Free some space there, or point the run at a folder that you may write to; older checkpoints are untouched.",
        ) from error
