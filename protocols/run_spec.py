"""RunSpec: all that the machines of a run must agree on, read from TOML and named by a digest. It imports no torch.

The tables here are those of every run. What only one task knows stands in `[task]` and below, and is checked by that task.

The author leaves `assets` empty. The coordinator resolves the spec once (`protocols.tasks.registry.prepare`): files that all
machines need, such as a tokenizer and held-out text, are written down and their digests stand in `assets`; the task's defaults
are written out. What peers receive, and what `digest` names in every handshake, is the resolved spec.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import AfterValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from protocols.errors import SpecError
from protocols.sections import Section, check_json, spec_error, tables_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_SPEC_BYTES = 256 << 10
MAX_ASSETS_BYTES = 16 << 20
MAX_ASSETS = 64

SettingsT = TypeVar("SettingsT", bound=Section)

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
# transformers has two more, reduce_lr_on_plateau and greedy. They follow a locally measured loss, so peers would disagree.

StrategyName = Literal["accumulate", "local-steps"]
"""Implemented in peer/training/strategies."""

RuleName = Literal["mean", "norm-capped"]
"""Implemented in protocols/gradients/aggregation.py."""

_NEEDS_TOTAL_STEPS = frozenset(
    {"linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "cosine_warmup_with_min_lr", "polynomial"}
)
_DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


def _plain_path(name: str) -> str:
    # Asset names become paths on a volunteer's disk. So they must be relative, without hidden names and without "..".
    if len(name) > 200 or not all(_PATH_PART.fullmatch(part) for part in name.split("/")):
        raise ValueError(f"{name!r} is not a plain relative file name")
    return name


def _sha256(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise ValueError("not a SHA-256 digest of 64 hex digits")
    return digest


class RunNaming(Section):
    """[run]: the run's name and seed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Short name of the run: lower-case letters, digits and dashes. Folders and DHT keys carry it."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seeds the first weights, the held-out split, and (with the peer's name) each peer's order of the data."""


class TaskSpec(Section):
    """What is learnt. Every key but these two is the task's own, which checks it when the task is prepared and opened."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field(default="causal-lm", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    """Name of a task that is installed on each machine: "causal-lm", "masked-lm", or one of another package's."""

    package: str | None = Field(default=None, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")
    """Distribution that the task comes from. The coordinator fills it in; set it where two packages offer the same name."""

    @model_validator(mode="after")
    def _settings_are_plain(self) -> TaskSpec:
        for key, value in self.settings.items():
            check_json(value, key)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The task's own keys, as they stand in the file."""
        return dict(self.model_extra or {})

    def read(self, kind: type[SettingsT]) -> SettingsT:
        """The task's own keys, checked. Raises SpecError naming the dotted key and the nearest valid one."""
        try:
            return kind.model_validate(self.settings)
        except ValidationError as error:
            own = tables_of(kind, "task")
            own["task"] |= frozenset(TaskSpec.model_fields)
            raise spec_error(error, tables_of(RunSpec) | own, within="task") from error

    def with_settings(self, settings: Section) -> TaskSpec:
        """The same task with these settings in place of the file's, defaults written out."""
        named = {"kind": self.kind, "package": self.package}
        return TaskSpec.model_validate({**settings.model_dump(mode="json", exclude_none=True), **named})


class OptimizerSpec(Section):
    """[optimizer]: the optimizer and its options."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """AdamW, LAMB (for very large batches), or SGD with momentum."""

    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate; the schedule scales it."""

    betas: Annotated[tuple[_DecayRate, _DecayRate], Field(strict=False)] = (0.9, 0.95)
    """adamw, lamb: decay rates of the first and second moment."""

    epsilon: float = Field(default=1e-8, gt=0.0)
    """adamw, lamb: added to the denominator."""

    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay (sgd: L2). Biases and normalisation weights are never decayed."""

    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """sgd: momentum."""


class ScheduleSpec(Section):
    """[schedule]: the learning rate over the epochs."""

    name: ScheduleName = "constant_with_warmup"
    """A schedule of transformers' get_scheduler; its step is the epoch."""

    warmup_steps: int = Field(default=0, ge=0)
    """Epochs over which the learning rate climbs from zero."""

    total_steps: int | None = Field(default=None, ge=1)
    """Epoch at which the schedule ends; training.max_epochs when not set."""

    options: dict[str, float | int | str] = Field(default_factory=dict)
    """Further arguments of that schedule, such as num_decay_steps or num_cycles."""


class TrainingSpec(Section):
    """[training]: batch, algorithm and length of the run."""

    target_batch_size: int = Field(default=256, ge=1, le=1 << 31)
    """Samples that one epoch averages, over all peers together."""

    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Clips the averaged gradient to this norm (local-steps: the gradient of each local step); 0 turns clipping off."""

    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs after which the run is complete; open-ended when not set."""

    strategy: StrategyName = "accumulate"
    """The training algorithm:
    - accumulate: each peer adds up gradients, and an epoch is one optimizer step on their mean.
    - local-steps: each peer steps alone, as often as it can, and an epoch averages where the peers have come to. That takes far
      fewer bytes a sample, so that slow lines reach large models. An epoch of it is long: some hundred samples a peer.
    """

    local_batch_size: int = Field(default=16, ge=1, le=1 << 20)
    """local-steps: samples of one local step. The optimizer's learning rate belongs to this batch."""

    outer_learning_rate: float = Field(default=1.0, gt=0.0)
    """local-steps: the share of the averaged movement that an epoch takes. With 1 and no momentum it is the peers' mean."""

    outer_momentum: _DecayRate = 0.0
    """local-steps: Nesterov momentum of the averaged movement. It fails in short runs: leave it at 0 unless there are hundreds of
    epochs. With 0.9, an outer_learning_rate of 0.7 is usual."""

    @property
    def largest_micro_batch(self) -> int:
        """Samples: a step has no more."""
        return self.local_batch_size if self.strategy == "local-steps" else self.target_batch_size


class AveragingSpec(Section):
    """[averaging]: how gradients travel, and whether training goes on meanwhile."""

    codec: Literal["fp32", "fp16", "bf16", "int8", "int4", "auto"] = "fp32"
    """How gradients travel:
    - fp32 loses nothing and takes 4 bytes a value.
    - fp16 (relative error 2^-11) and bf16 (2^-8, but never out of range) take 2.
    - int8 takes 1.02 and int4 0.52. They round to 1/254 and 1/14 of the largest of 128 neighbours. A peer adds what its rounding
      lost to its next contribution (error feedback).
    - auto begins with fp16. Then each epoch's leader takes the least lossy of fp32, fp16 and int8 with which averaging takes at
      most a tenth of an epoch, at measured rates.
    """

    @property
    def codecs(self) -> tuple[str, ...]:
        """The codecs that a commit may name for the next plan, least lossy first."""
        return ("fp32", "fp16", "int8") if self.codec == "auto" else (self.codec,)

    @property
    def first_codec(self) -> str:
        """The codec of epoch 1."""
        return "fp16" if self.codec == "auto" else self.codec

    rule: RuleName = "norm-capped"
    """How reducers combine contributions. mean: weighted by samples, as if one machine had computed them all. norm-capped: the
    same, of contributions that are scaled down to twice the median length if they are longer: nobody alone can spoil it."""

    max_share: float = Field(default=0.25, gt=0.0, le=1.0)
    """No contributor counts for more of an average than this, whatever samples it names, unless they are so few that two equal
    parts are more. Among friends, 1 lets each sample count the same."""

    overlap: bool = False
    """Train on while an epoch is averaged, with the parameters from before it. No round then makes a contributor wait, but each
    gradient is one step stale, which calls for a lower learning rate. A contributor needs memory for two more vectors of the
    parameters' size: one always, and one while it steps. It does not go with local-steps."""


class CheckpointSpec(Section):
    """[checkpoint]: when the coordinator writes checkpoints."""

    every_epochs: int = Field(default=10, ge=1)
    """The coordinator writes a checkpoint each time this many epochs have passed."""

    keep: int = Field(default=3, ge=1)
    """Checkpoints to keep; older ones are deleted."""


class EvaluationSpec(Section):
    """[evaluation]: when, and on how many samples, the coordinator measures the held-out loss."""

    every_epochs: int = Field(default=10, ge=1)
    """The coordinator measures held-out loss each time this many epochs have passed."""

    max_samples: int = Field(default=256, ge=1)
    """Held-out samples to measure on, evenly spread over all of them."""


class RunSpec(Section):
    """A run, whole. See `examples/*/run.toml`; the smallest file has `run.name` and `task.model.model_type` only."""

    not_in_files = frozenset({"assets"})

    run: RunNaming
    task: TaskSpec = Field(default_factory=TaskSpec)
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec)
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    averaging: AveragingSpec = Field(default_factory=AveragingSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)

    assets: dict[Annotated[str, AfterValidator(_plain_path)], Annotated[str, AfterValidator(_sha256)]] = Field(
        default_factory=dict, max_length=MAX_ASSETS
    )
    """File name -> SHA-256 of each file that the coordinator serves. The coordinator fills it in; leave it out of your file."""

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
        self._strategy_agrees()
        return self

    def _strategy_agrees(self) -> None:
        training = self.training
        if training.strategy != "local-steps":
            for key in ("local_batch_size", "outer_learning_rate", "outer_momentum"):
                if getattr(training, key) != TrainingSpec.model_fields[key].default:
                    raise ValueError(f'training.{key} is for strategy "local-steps", and this run\'s is "{training.strategy}"')
            return
        if self.averaging.overlap:
            raise ValueError('averaging.overlap does not go with strategy "local-steps": leave one of them out')
        if training.local_batch_size > training.target_batch_size:
            sizes = f"training.local_batch_size ({training.local_batch_size}) is above target_batch_size"
            raise ValueError(f"{sizes} ({training.target_batch_size}): an epoch has many local steps")

    @classmethod
    def load(cls, path: Path | str) -> RunSpec:
        """Read a run file. Raises SpecError, which names the line or the dotted key."""
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
        """Parse a spec. Raises SpecError. Relative paths start from `folder` (None: the current folder), no part of the spec."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SpecError(f"not valid TOML: {error}", remedy="Correct that line.") from error
        except RecursionError as error:
            raise SpecError("not valid TOML: nested too deeply", remedy="A run file has one level of tables.") from error
        try:
            spec = cls.model_validate(document)
        except ValidationError as error:
            raise spec_error(error, tables_of(RunSpec)) from error
        spec._folder = folder
        return spec

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the spec as canonical JSON. Key order, comments and written-out defaults do not change it."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from."""
        return self._folder or Path.cwd()

    @property
    def total_steps(self) -> int | None:
        """The epoch at which the schedule ends; None for an open end."""
        return self.schedule.total_steps or self.training.max_epochs

    def __eq__(self, other: object) -> bool:
        # The file's place on this disk is no part of the run.
        return isinstance(other, RunSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)
