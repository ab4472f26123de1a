"""The files of a checkpoint that transformers' `from_pretrained` reads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Save a transformers model and its tokenizer into `directory`."""
    with _no_progress_bar():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        if model.can_generate():
            # A config built from scratch has its family's default ids. This tokenizer may give those to other words.
            generation = copy.deepcopy(model.generation_config)
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(generation, token, getattr(tokenizer, token, None))
            generation.save_pretrained(directory)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws bars on stderr, which would tear the live view."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
