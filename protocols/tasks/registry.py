"""From a RunSpec to a Task: what the coordinator prepares once, and what every machine opens.

author's spec --prepare--> resolved spec + directory/assets/{tokenizer/..., held_out.json} --open_task--> Task
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from protocols.errors import BadMessageError, DiskError, SpecError
from protocols.host.files import write_durably
from protocols.run_spec import MAX_ASSETS_BYTES, DataSpec, RunSpec
from protocols.tasks.base import Batch, Batches, Task, to_device
from protocols.tasks.language.causal_lm import CausalLanguageTask
from protocols.tasks.language.corpus import Document, load_documents, split, without_near_duplicates_of
from protocols.tasks.language.masked_lm import MaskedLanguageTask
from protocols.tasks.language.models import check_fields, inlined, model_config, pretrained_model
from protocols.tasks.language.tokenization import FILES, load_tokenizer, require_special_tokens, train_tokenizer

__all__ = ["Batch", "Batches", "Task", "initial_model", "open_task", "prepare", "read_asset", "to_device", "write_asset"]

_HELD_OUT = "held_out.json"
_TOKENIZER = "tokenizer"


def prepare(spec: RunSpec, directory: Path, progress: Callable[[str], None]) -> RunSpec:
    """Resolve the author's spec: write `directory/assets` and return the spec that names those files' digests.

    Relative paths start from `spec.folder`. Raises SpecError, CorpusError or DiskError.
    """
    model = spec.model
    if model.pretrained is not None:
        model = inlined(spec.folder / model.pretrained, spec.task.kind)
    check_fields(model, spec.task.kind)
    progress("Reading the corpus")
    documents, held_out = split(load_documents(spec.data, spec.folder), spec.data.held_out_bytes, spec.run.seed)
    documents = without_near_duplicates_of(documents, held_out)
    progress(f"Holding out {len(held_out)} of {len(documents) + len(held_out)} documents")

    own_tokenizer = spec.tokenizer.folder or spec.model.pretrained
    folder = directory / "assets" / _TOKENIZER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if own_tokenizer is not None:
            load_tokenizer(spec.folder / own_tokenizer).save_pretrained(folder)
        else:
            progress(f"Training a tokenizer of {spec.tokenizer.vocab_size} tokens")
            train_tokenizer(documents, spec.tokenizer.vocab_size, spec.task.kind, folder)
    except OSError as error:
        raise DiskError(
            f"cannot write {directory / 'assets'}: {error}", remedy="Free disk space or choose another folder."
        ) from error
    pairs = [[document.name, document.text] for document in held_out]
    write_durably(directory / "assets" / _HELD_OUT, json.dumps(pairs).encode())

    names = [_HELD_OUT, *(f"{_TOKENIZER}/{name}" for name in FILES if (folder / name).is_file())]
    contents = {name: (directory / "assets" / name).read_bytes() for name in names}
    size = sum(map(len, contents.values()))
    if size > MAX_ASSETS_BYTES:
        raise SpecError(
            f"tokenizer and held-out text are {size >> 20} MiB, above the {MAX_ASSETS_BYTES >> 20} MiB that peers accept",
            remedy="Lower data.held_out_bytes or use a smaller tokenizer.",
        )
    tokenizer = load_tokenizer(folder)
    require_special_tokens(tokenizer, spec.task.kind)
    resolved = spec.model_copy(
        update={
            "model": model,
            "tokenizer": spec.tokenizer.model_copy(update={"folder": None}),
            "assets": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        }
    )
    model_config(resolved, tokenizer)
    return resolved


def initial_model(author: RunSpec, resolved: RunSpec, directory: Path) -> nn.Module:
    """The model at epoch 0: the author's pretrained folder, or fresh weights drawn from run.seed."""
    task = open_task(resolved, directory)
    if author.model.pretrained is not None:
        return pretrained_model(resolved, model_config(resolved, task.tokenizer), author.folder / author.model.pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.run.seed)
        return task.build_model()


def open_task(resolved: RunSpec, directory: Path, *, data_paths: Sequence[str] | None = None) -> Task:
    """The run's task from a resolved spec and `directory/assets`, whose files are checked against the spec first.

    The training text is read when batches are first asked for: this machine's `data_paths` when given, else what the spec says,
    from `resolved.folder`. Raises SpecError, and BadMessageError when an asset is not what the spec names.
    """
    if not resolved.assets:
        raise SpecError("this run spec is not resolved: it names no assets", remedy="Start a coordinator with it.")
    contents = {name: read_asset(resolved, directory, name) for name in resolved.assets}
    held_out = _held_out(contents.get(_HELD_OUT, b""))
    tokenizer = load_tokenizer(directory / "assets" / _TOKENIZER)
    require_special_tokens(tokenizer, resolved.task.kind)
    data = resolved.data
    if data_paths is not None:
        data = DataSpec(source="files", paths=list(data_paths), max_bytes=data.max_bytes)
    folder = resolved.folder
    kind = CausalLanguageTask if resolved.task.kind == "causal-lm" else MaskedLanguageTask
    return kind(resolved, tokenizer, lambda: load_documents(data, folder), held_out)


def read_asset(resolved: RunSpec, directory: Path, name: str) -> bytes:
    """An asset's bytes, checked. Raises BadMessageError when the file is not the one that the spec names, or is not there."""
    expected = resolved.assets.get(name)
    if expected is None:
        raise BadMessageError(f"the run has no asset {name[:100]!r}")
    try:
        content = (directory / "assets" / name).read_bytes()
    except OSError as error:
        raise BadMessageError(
            f"the run's file {name} cannot be read: {error}", remedy="Remove the folder and join again."
        ) from error
    _check(content, expected, name)
    return content


def write_asset(resolved: RunSpec, directory: Path, name: str, content: bytes) -> None:
    """Store an asset that came over the network. Raises BadMessageError, and writes nothing, when the spec names another."""
    expected = resolved.assets.get(name)
    if expected is None:
        raise BadMessageError(f"the run has no asset {name[:100]!r}")
    _check(content, expected, name)
    write_durably(directory / "assets" / name, content)


def _check(content: bytes, expected: str, name: str) -> None:
    if len(content) > MAX_ASSETS_BYTES or hashlib.sha256(content).hexdigest() != expected:
        raise BadMessageError(f"the run's file {name} has another digest than the run spec names", remedy="Fetch it again.")


def _held_out(content: bytes) -> list[Document]:
    try:
        pairs = json.loads(content)
        documents = [Document(name, text) for name, text in pairs]
    except (ValueError, TypeError) as error:
        raise BadMessageError(f"the run's held-out text cannot be read: {error}") from error
    if not documents or not all(isinstance(part, str) for document in documents for part in (document.name, document.text)):
        raise BadMessageError("the run's held-out text is no list of documents")
    return documents
