"""The keys of `[task]` for text. The names in brackets are the tables below it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from protocols.sections import Section


class ModelSpec(Section):
    """[task.model]: the architecture. Every other key is a field of the transformers config, checked when that is built."""

    model_config = ConfigDict(extra="allow")

    model_type: str | None = None
    """Name of a transformers architecture, such as "gpt2", "llama" or "albert"; the model starts from random weights."""

    pretrained: str | None = None
    """Folder with config.json and model.safetensors to start from instead, relative to the run file."""

    @property
    def config(self) -> dict[str, Any]:
        """The remaining keys of the table, such as `hidden_size = 128`."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSpec:
        if (self.model_type is None) == (self.pretrained is None):
            raise ValueError("give either model_type (train from scratch) or pretrained (a local folder)")
        if self.pretrained is not None and self.config:
            raise ValueError(f"pretrained brings its own configuration; remove {', '.join(sorted(self.config))}")
        return self


class DataSpec(Section):
    """[task.data]: the text."""

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


class TokenizerSpec(Section):
    """[task.tokenizer]"""

    vocab_size: int = Field(default=2048, ge=300, le=1 << 20)
    """Tokens of the byte-level BPE that the coordinator trains on first start, special tokens included."""

    folder: str | None = None
    """Folder with tokenizer.json to use instead, relative to the run file. A pretrained model's own is the default."""


class LanguageSettings(Section):
    """[task]: causal-lm has these keys, masked-lm one more."""

    model: ModelSpec
    data: DataSpec = Field(default_factory=DataSpec)
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec)

    sequence_length: int = Field(default=128, ge=8, le=1 << 20)
    """Tokens in one sample."""


class MaskedSettings(LanguageSettings):
    mask_probability: float = Field(default=0.15, gt=0.0, lt=1.0)
    """The share of a sample's tokens to predict (of them 80 % are masked, 10 % random, 10 % kept, as in BERT)."""
