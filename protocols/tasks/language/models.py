"""Transformers models built from the fields of [task.model]: any architecture, always float32, no code from anywhere else."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from protocols.errors import SpecError
from protocols.tasks.language.settings import LanguageSettings, ModelSpec

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "cls_token_id", "sep_token_id")
# Not the architecture: which files a checkpoint came from, and what we set ourselves.
_NOT_ARCHITECTURE = frozenset(
    {
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "model_type",
        "quantization_config",
        "transformers_version",
        "use_cache",
        "_name_or_path",
        "_attn_implementation",
        *_SPECIAL_IDS,
    }
)


@dataclass(frozen=True)
class Family:
    """The models of transformers that can do a task."""

    task: str
    auto: Any
    """Builds and loads them: AutoModelForCausalLM, for one."""
    configs: Container[type[PreTrainedConfig]]
    examples: str


CAUSAL_MODELS = Family("causal-lm", AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING, "gpt2 or llama")
MASKED_MODELS = Family("masked-lm", AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING, "albert or bert")


def model_config(settings: LanguageSettings, family: Family, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    """The transformers config of resolved settings. Raises SpecError naming the nearest architecture or field."""
    special = {name: getattr(tokenizer, name) for name in _SPECIAL_IDS}
    config = _config(settings, family, len(tokenizer), special)
    _check_sizes(settings, config, len(tokenizer))
    return config


def check_model(settings: LanguageSettings, family: Family) -> None:
    """Raises SpecError where settings contradict each other: before there is a tokenizer, and without memory for the model."""
    tokens = settings.model.config.get("vocab_size", settings.tokenizer.vocab_size)
    config = _config(settings, family, tokens, {})
    _check_sizes(settings, config, tokens)
    with torch.device("meta"):
        try:
            family.auto.from_config(config, dtype=torch.float32)
        except (NotImplementedError, RuntimeError):
            pass  # some models compute while they are built: `build_model` checks them
        except (TypeError, ValueError, KeyError, ZeroDivisionError, AssertionError) as error:
            raise _bad_model(error) from error


def _config(settings: LanguageSettings, family: Family, tokens: int, special: Mapping[str, Any]) -> PreTrainedConfig:
    kind = check_fields(settings.model, family)
    parameters = _fields_of(kind)
    ids = {name: number for name, number in special.items() if name in parameters}
    try:
        config = kind(**{"vocab_size": tokens, **settings.model.config, **ids})
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise _bad_model(error) from error
    config.use_cache = False
    return config


def build_model(family: Family, config: PreTrainedConfig) -> nn.Module:
    """Fresh weights from torch's generator. Raises SpecError when the fields contradict each other."""
    try:
        model: nn.Module = family.auto.from_config(config, dtype=torch.float32)
    except (TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise _bad_model(error) from error
    return model


def pretrained_model(family: Family, config: PreTrainedConfig, folder: Path) -> nn.Module:
    """The weights of a local folder, in float32. Raises SpecError when they cannot be read or do not fit."""
    try:
        model: nn.Module = family.auto.from_pretrained(
            folder, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise SpecError(
            f"the model in {folder} cannot be loaded: {_first_line(error)}",
            remedy="task.model.pretrained must be a folder with config.json and model.safetensors.",
        ) from error
    return model


def inlined(folder: Path, family: Family) -> ModelSpec:
    """A pretrained folder's config.json as model_type and fields, so that peers need nothing of that folder but its weights."""
    try:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = saved["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"task.model.pretrained: {folder} has no usable config.json ({_first_line(error)})",
            remedy="Give a folder with config.json and model.safetensors.",
        ) from error
    known = _fields_of(_config_class(model_type, family))
    # TOML has no null; in a config.json it nearly always is the default.
    fields = {key: value for key, value in saved.items() if key in known - _NOT_ARCHITECTURE and _storable(value)}
    return ModelSpec.model_validate({**fields, "model_type": model_type})


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_storable(item) for item in value.values())
    if isinstance(value, list):
        return all(_storable(item) for item in value)
    return value is not None


def _config_class(model_type: str, family: Family) -> type[PreTrainedConfig]:
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, list(CONFIG_MAPPING.keys()), n=1, cutoff=0.4)
        hint = f'Did you mean "{near[0]}"?' if near else 'Use a transformers model_type, such as "llama".'
        raise SpecError(f"task.model.model_type: transformers has no architecture {model_type!r}", remedy=hint)
    kind_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    if kind_class not in family.configs:
        raise SpecError(
            f"task.model.model_type: {model_type} cannot do task {family.task}", remedy=f"Use another, such as {family.examples}."
        )
    return kind_class


def _fields_of(kind: type[PreTrainedConfig]) -> frozenset[str]:
    parameters = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    return frozenset(parameters | set(kind.attribute_map))


def check_fields(model: ModelSpec, family: Family) -> type[PreTrainedConfig]:
    """The config class, once its name and all field names are known to be right."""
    model_type = model.model_type or ""
    kind = _config_class(model_type, family)
    valid = _fields_of(kind) - _NOT_ARCHITECTURE
    for name in model.config:
        if name in _NOT_ARCHITECTURE:
            raise SpecError(
                f"task.model.{name} cannot be set", remedy="Remove it: dugnad decides it (float32, and the tokenizer's ids)."
            )
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
            hint = f"Did you mean task.model.{near[0]}?" if near else f"Valid: {', '.join(sorted(valid))}."
            raise SpecError(f"unknown key task.model.{name}: {model_type} has no such field", remedy=hint)
    return kind


def _check_sizes(settings: LanguageSettings, config: PreTrainedConfig, tokens: int) -> None:
    if config.vocab_size < tokens:
        raise SpecError(
            f"task.model.vocab_size is {config.vocab_size}, but the tokenizer has {tokens} tokens",
            remedy="Remove task.model.vocab_size; it follows the tokenizer.",
        )
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if isinstance(positions, int) and positions < settings.sequence_length:
        raise SpecError(
            f"task.sequence_length is {settings.sequence_length}, but the model has {positions} positions",
            remedy=f"Lower it to {positions}, or raise the model's max_position_embeddings.",
        )


def _bad_model(error: BaseException) -> SpecError:
    return SpecError(f"task.model: {_first_line(error)}", remedy="Correct the fields of [task.model] in the run file.")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
