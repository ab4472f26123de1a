"""Byte-level BPE tokenizers: no text is out of vocabulary, whatever a volunteer's corpus holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from protocols.errors import CorpusError, SpecError
from protocols.tasks.language.corpus import Document, thinned

TRAINING_CHARACTERS = 4 << 20  # more text moves few merges and costs seconds
END_OF_TEXT = "<|endoftext|>"
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class SpecialTokens:
    """The tokens that a task gives a tokenizer of its own, and those that it cannot do without in another's."""

    names: Mapping[str, str]
    needed: tuple[str, ...]


CAUSAL_TOKENS = SpecialTokens(dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT), ("eos_token",))
MASKED_TOKENS = SpecialTokens(
    {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    },
    ("mask_token", "cls_token", "sep_token"),
)


def train_tokenizer(
    documents: Sequence[Document], vocab_size: int, special: SpecialTokens, folder: Path
) -> PreTrainedTokenizerFast:
    """Train on documents, evenly thinned to TRAINING_CHARACTERS, and save to `folder`. The same input gives the same files.

    Raises CorpusError when the text is too small for that many tokens.
    """
    # Peers share cores, and a process that forked after the tokenizer's thread pool started only gets warnings out of it.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=sorted(set(special.names.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in thinned(documents, TRAINING_CHARACTERS)), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise CorpusError(
            f"the corpus yields {tokenizer.get_vocab_size()} tokens, not {vocab_size}",
            remedy="Add text, or lower task.tokenizer.vocab_size.",
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special.names)
    fast.save_pretrained(folder)
    return fast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load a folder with tokenizer.json; runs no code from it. Raises SpecError when there is none or it is damaged."""
    if not (folder / "tokenizer.json").is_file():
        raise SpecError(
            f"{folder} holds no tokenizer.json",
            remedy="Point task.tokenizer.folder at a folder saved by save_pretrained of a fast tokenizer.",
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, clean_up_tokenization_spaces=False)
    except Exception as error:  # tokenizers raises no narrower one on a damaged file
        raise SpecError(f"the tokenizer in {folder} cannot be read: {error}", remedy="Save it again.") from error


def require_special_tokens(tokenizer: PreTrainedTokenizerFast, special: SpecialTokens) -> None:
    """Raises SpecError if a foreign tokenizer lacks a token that the task cannot do without."""
    missing = [name for name in special.needed if getattr(tokenizer, name) is None]
    if missing:
        raise SpecError(
            f"the tokenizer has no {' and no '.join(missing)}, which this task needs",
            remedy="Use another tokenizer, or leave task.tokenizer.folder out to have one trained.",
        )


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of plain text, without special tokens and without the length warning; in the calling thread alone."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids
