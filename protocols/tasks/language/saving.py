"""A language model as transformers loads it: config.json, model.safetensors, generation_config.json and the tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from protocols.tasks.base import ModelCard


def save_language_model(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """`model` is one of transformers'. It keeps its own generation config."""
    bars = logging.is_progress_bar_enabled()
    if bars:
        logging.disable_progress_bar()  # it would tear the live view
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if model.can_generate():
            # A config built from scratch carries its family's default ids, which this tokenizer may give to other words.
            generation = copy.deepcopy(model.generation_config)
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(generation, token, getattr(tokenizer, token, None))
            generation.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def language_card(model: Any, auto_class: str, pipeline_tag: str) -> ModelCard:
    loading = [
        f"from transformers import AutoTokenizer, {auto_class}",
        "",
        f'model = {auto_class}.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
    ]
    return ModelCard(str(model.config.model_type), "\n".join(loading), library_name="transformers", pipeline_tag=pipeline_tag)
