"""RunSpec: everything about a run that all of its machines must agree on. TOML in, digest out; imports no torch.

The author leaves `assets` empty. The coordinator resolves it once (`protocols.tasks.registry.prepare`): the tokenizer and the
held-out text become files whose digests stand in `assets`; a pretrained folder becomes `model_type` and its fields. What peers
receive, and what `digest` names in every handshake, is the resolved spec.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)

from protocols.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SPEC_BYTES = 256 << 10
MAX_ASSETS_BYTES = 16 << 20
MAX_ASSETS = 64

ScheduleName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
# transformers knows two more, reduce_lr_on_plateau and greedy. They follow a locally measured loss: peers would disagree.

StrategyName = Literal["accumulate"]
"""Implemented in peer/training/strategies."""

RuleName = Literal["mean"]
"""Implemented in protocols/gradients/aggregation.py."""

_NEEDS_TOTAL_STEPS = frozenset(
    {"linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial"}
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


def _plain_path(name: str) -> str:
    # Asset names become paths on a volunteer's disk: relative, no hidden names, no way up.
    if len(name) > 200 or not all(_PATH_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{name!r} is not a plain relative file name")
    return name


def _sha256(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise ValueError("not a SHA-256 digest of 64 hex digits")
    return digest


def _pair(value: tuple[float, float]) -> tuple[float, float]:
    if not all(0.0 <= beta < 1.0 for beta in value):
        raise ValueError("both must be at least 0 and below 1")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class RunNaming(_Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Short name of the run: lower-case letters, digits and dashes. Folders and DHT keys carry it."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds the first weights, the held-out split, and (with the peer's name) each peer's order of the data."""


class ModelSpec(_Section):
    """The architecture. Every other key of the table is a field of the transformers config, checked when that is built."""

    model_type: str | None = None
    """Name of a transformers architecture, such as "gpt2", "llama" or "albert"; the model starts from random weights."""

    pretrained: str | None = None
    """Folder with config.json and model.safetensors to start from instead, relative to the run file."""

    config: dict[str, Any] = Field(default_factory=dict)
    """The remaining keys of the table, such as `hidden_size = 128`."""

    @model_validator(mode="before")
    @classmethod
    def _collect_config(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        known = {key: value[key] for key in ("model_type", "pretrained") if key in value}
        rest = {key: item for key, item in value.items() if key not in known and key != "config"}
        given = value.get("config", {})
        return {**known, "config": {**given, **rest} if isinstance(given, Mapping) else given}

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.model_type is None) == (self.pretrained is None):
            raise ValueError("give either model_type (train from scratch) or pretrained (a local folder)")
        if self.pretrained is not None and self.config:
            raise ValueError(f"pretrained brings its own configuration; remove {', '.join(sorted(self.config))}")
        for key, item in self.config.items():
            _check_json(item, key)
        return self

    @model_serializer(mode="plain")
    def _flat(self) -> dict[str, Any]:
        named = {"model_type": self.model_type, "pretrained": self.pretrained}
        return {**{key: value for key, value in named.items() if value is not None}, **self.config}


class TaskSpec(_Section):
    kind: Literal["causal-lm", "masked-lm"] = "causal-lm"
    """What is learnt: to predict the next token, or masked tokens."""

    mask_probability: float = Field(default=0.15, gt=0.0, lt=1.0)
    """masked-lm: the share of a sample's tokens to predict (of them 80 % are masked, 10 % random, 10 % kept, as in BERT)."""


class DataSpec(_Section):
    source: Literal["python-stdlib", "files", "datasets"] = "python-stdlib"
    """Where each machine reads its training text: the standard library's own source, local files, or the `datasets` library."""

    paths: list[str] = Field(default_factory=list, max_length=1000)
    """files: paths and globs ("texts/**/*.txt"), relative to the run file. Peers read their own disk and may name other paths."""

    dataset: str | None = None
    """datasets: name on the Hugging Face hub or a local folder, such as "Salesforce/wikitext"."""

    dataset_config: str | None = None
    """datasets: configuration, such as "wikitext-103-raw-v1"."""

    dataset_split: str = "train"
    """datasets: split to train on; held-out text is taken out of it."""

    dataset_text_column: str = "text"
    """datasets: column that holds the text."""

    max_bytes: int = Field(default=64 << 20, ge=1 << 10)
    """Each machine keeps at most this much text in memory."""

    held_out_bytes: int = Field(default=128 << 10, ge=1 << 10, le=8 << 20)
    """Text that nobody trains on; the coordinator picks it and serves it to all."""

    @model_validator(mode="after")
    def _source_is_complete(self) -> DataSpec:
        if self.source == "files" and not self.paths:
            raise ValueError('source "files" needs paths')
        if self.source == "datasets" and not self.dataset:
            raise ValueError('source "datasets" needs dataset')
        return self


class TokenizerSpec(_Section):
    vocab_size: int = Field(default=2048, ge=300, le=1 << 20)
    """Tokens of the byte-level BPE that the coordinator trains on first start, special tokens included."""

    folder: str | None = None
    """Folder with tokenizer.json to use instead, relative to the run file. A pretrained model's own is the default."""


class OptimizerSpec(_Section):
    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """AdamW, LAMB (for very large batches), or SGD with momentum."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate; the schedule scales it."""

    betas: Annotated[tuple[float, float], Field(strict=False), AfterValidator(_pair)] = (0.9, 0.95)
    """adamw, lamb: decay rates of the first and second moment."""

    epsilon: float = Field(default=1e-8, gt=0.0)
    """adamw, lamb: added to the denominator."""

    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay (sgd: L2). Biases and normalisation weights are never decayed."""

    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """sgd: momentum."""


class ScheduleSpec(_Section):
    name: ScheduleName = "constant_with_warmup"
    """A schedule of transformers' get_scheduler; its step is the epoch."""

    warmup_steps: int = Field(default=0, ge=0)
    """Epochs over which the learning rate climbs from zero."""

    total_steps: int | None = Field(default=None, ge=1)
    """Epoch at which the schedule ends; training.max_epochs when not set."""

    options: dict[str, float | int | str] = Field(default_factory=dict)
    """Further arguments of that schedule, such as num_decay_steps or num_cycles."""


class TrainingSpec(_Section):
    target_batch_size: int = Field(default=256, ge=1, le=1 << 31)
    """Samples that one epoch averages, over all peers together."""

    sequence_length: int = Field(default=128, ge=8, le=1 << 20)
    """Tokens in one sample."""

    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Clips the averaged gradient to this norm; 0 turns clipping off."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs after which the run is complete; open-ended when not set."""

    strategy: StrategyName = "accumulate"
    """The training algorithm. accumulate: each peer adds up gradients, and an epoch is one optimizer step on their mean."""


class AveragingSpec(_Section):
    codec: Literal["fp32", "fp16", "bf16", "int8", "int4", "auto"] = "fp32"
    """How gradients travel. fp32 loses nothing and takes 4 bytes a value. fp16 (relative error 2^-11) and bf16 (2^-8, but
    never out of range) take 2, int8 takes 1.02 and int4 0.52: both round to a share of the largest of 128 neighbours, 1/254
    and 1/14, and what a peer's rounding lost goes along with its next contribution. auto begins with fp16; from then
    on each epoch's leader takes the least lossy of fp32, fp16 and int8 that keeps averaging to a tenth of an epoch at the
    rates measured."""

    @property
    def codecs(self) -> tuple[str, ...]:
        """Those that a commit may name for the next plan, least lossy first."""
        return ("fp32", "fp16", "int8") if self.codec == "auto" else (self.codec,)

    @property
    def first_codec(self) -> str:
        return "fp16" if self.codec == "auto" else self.codec

    rule: RuleName = "mean"
    """How reducers combine contributions. mean: weighted by samples, as if one machine had computed them all."""

    overlap: bool = False
    """Go on training while an epoch is averaged, with the parameters from before it: no round makes a contributor wait, and each
    gradient is one step stale, which calls for a lower learning rate. A contributor needs memory for two more vectors of the
    parameters' size: one always, and one while it steps."""


class CheckpointSpec(_Section):
    every_epochs: int = Field(default=10, ge=1)
    """The coordinator writes a checkpoint each time this many epochs have passed."""

    keep: int = Field(default=3, ge=1)
    """Checkpoints to keep; older ones are deleted."""


class EvaluationSpec(_Section):
    every_epochs: int = Field(default=10, ge=1)
    """The coordinator measures held-out loss each time this many epochs have passed."""

    max_samples: int = Field(default=256, ge=1)
    """Held-out samples to measure on, evenly spread over the held-out text."""


class RunSpec(_Section):
    """A run, whole. See `examples/*/run.toml`; the smallest file has `run.name` and `model.model_type` only."""

    run: RunNaming
    model: ModelSpec
    task: TaskSpec = Field(default_factory=TaskSpec)
    data: DataSpec = Field(default_factory=DataSpec)
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec)
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    averaging: AveragingSpec = Field(default_factory=AveragingSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)

    assets: dict[Annotated[str, AfterValidator(_plain_path)], Annotated[str, AfterValidator(_sha256)]] = Field(
        default_factory=dict, max_length=MAX_ASSETS
    )
    """SHA-256 of each file that the coordinator serves, by name. The coordinator fills it in; leave it out of your file."""

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _sections_agree(self) -> RunSpec:
        schedule, total = self.schedule, self.total_steps
        if total is None and schedule.name in _NEEDS_TOTAL_STEPS:
            raise ValueError(f'schedule "{schedule.name}" needs schedule.total_steps or training.max_epochs')
        if total is None and schedule.name == "warmup_stable_decay" and "num_stable_steps" not in schedule.options:
            raise ValueError('schedule "warmup_stable_decay" needs schedule.total_steps or schedule.options.num_stable_steps')
        if total is not None and schedule.warmup_steps > total:
            raise ValueError(f"schedule.warmup_steps ({schedule.warmup_steps}) is above the total of {total} steps")
        return self

    @classmethod
    def load(cls, path: Path | str) -> RunSpec:
        """Read a run file. Raises SpecError naming the line or the dotted key."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_SPEC_BYTES:
                raise SpecError(f"{path} is larger than {MAX_SPEC_BYTES >> 10} KiB", remedy="Give the run's TOML file.")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise SpecError(f"there is no run file {path}", remedy="Check the path; see examples/ for a start.") from error
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read {path}: {error}", remedy="Give the run's TOML file, in UTF-8.") from error
        try:
            return cls.from_toml(text, path.resolve().parent)
        except SpecError as error:
            raise SpecError(f"{path}: {error}", remedy=error.remedy) from error

    @classmethod
    def from_toml(cls, text: str, folder: Path | None = None) -> RunSpec:
        """Parse a spec. `folder` is what relative paths start from (None: the current folder), and no part of the spec."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"not valid TOML: {error}", remedy="Correct that line.") from error
        except RecursionError as error:
            raise SpecError("not valid TOML: nested too deeply", remedy="A run file has one level of tables.") from error
        try:
            spec = cls.model_validate(document)
        except ValidationError as error:
            raise _as_spec_error(error) from error
        spec._folder = folder
        return spec

    def to_toml(self) -> str:
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    @property
    def digest(self) -> str:
        """SHA-256 of the spec as canonical JSON, in hex. Key order, comments and written-out defaults do not change it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Where relative paths start from."""
        return self._folder if self._folder is not None else Path.cwd()

    @property
    def total_steps(self) -> int | None:
        """Epoch at which the schedule ends, None for an open end."""
        return self.schedule.total_steps if self.schedule.total_steps is not None else self.training.max_epochs

    def __eq__(self, other: object) -> bool:
        # Where a file happened to lie on this disk is no part of the run.
        return isinstance(other, RunSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _check_json(value: Any, key: str) -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _check_json(item, f"{key}.{name}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            _check_json(item, key)
    elif not isinstance(value, str | int | float | bool) or value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{key} must be a number, a string, true or false, or a list or table of these")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _as_spec_error(error: ValidationError) -> SpecError:
    """The first fault only: one line that a person can act on is worth more than a list."""
    faults = error.errors(include_url=False, include_context=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    where = [str(part) for part in fault["loc"] if part != "[key]"]
    dotted = ".".join(where)
    if fault["type"] == "extra_forbidden":
        return _unknown_key(where)
    if fault["type"] == "missing":
        return SpecError(f"{dotted} is missing", remedy=f"Add {dotted}.")
    if fault["type"] == "string_pattern_mismatch" and dotted == "run.name":
        return SpecError(
            f"run.name is {fault['input']!r}", remedy="Use 1 to 63 lower-case letters, digits and dashes, starting with no dash."
        )
    if fault["type"] == "value_error":
        message = fault["msg"].removeprefix("Value error, ")
        return SpecError(f"{dotted}: {message}" if dotted else message, remedy="Change that in the run file.")
    if fault["type"] == "literal_error":
        return unknown_name(dotted, fault["input"], re.findall(r"'([^']+)'", fault["msg"]))
    return SpecError(f"{dotted} is {_shown(fault['input'])}", remedy=f"{fault['msg'].replace('Input should', 'It should')}.")


def unknown_name(dotted: str, given: object, names: Iterable[str]) -> SpecError:
    """For the key `dotted`, whose value is none of `names`: an error that proposes the nearest one."""
    valid = sorted(names)
    near = difflib.get_close_matches(str(given), valid, n=1, cutoff=0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return SpecError(f"{dotted} is {_shown(given)}", remedy=f"It should be {' or '.join(valid)}.{hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown_key(where: list[str]) -> SpecError:
    sections: dict[str, set[str]] = {}
    for name, field in RunSpec.model_fields.items():
        kind = field.annotation
        is_section = isinstance(kind, type) and issubclass(kind, _Section)
        sections[name] = set(kind.model_fields) - {"config"} if is_section and kind is not None else set()
    *path, key = where
    valid = sections.get(path[0], set()) if path else set(sections) - {"assets"}
    near = difflib.get_close_matches(key, valid, n=1)
    if near:
        return SpecError(f"unknown key {'.'.join(where)}", remedy=f"Did you mean {'.'.join([*path, near[0]])}?")
    everywhere = {name: f"{section}.{name}" for section, names in sections.items() for name in sorted(names)}
    near = difflib.get_close_matches(key, everywhere, n=1)
    if near:
        return SpecError(f"unknown key {'.'.join(where)}", remedy=f"Did you mean {everywhere[near[0]]}?")
    return SpecError(f"unknown key {'.'.join(where)}", remedy=f"Valid here: {', '.join(sorted(valid))}.")
