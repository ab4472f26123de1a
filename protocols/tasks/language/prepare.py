"""What the coordinator prepares for a run on text: the tokenizer and the held-out text, which all machines share as assets."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from protocols.errors import BadMessageError, DiskError
from protocols.run_spec import RunSpec
from protocols.tasks.base import Prepared
from protocols.tasks.language.corpus import Document, load_documents, split, without_near_duplicates_of
from protocols.tasks.language.models import Family, check_model, inlined, model_config
from protocols.tasks.language.settings import LanguageSettings
from protocols.tasks.language.tokenization import (
    FILES,
    SpecialTokens,
    load_tokenizer,
    require_special_tokens,
    train_tokenizer,
)

HELD_OUT = "held_out.json"
TOKENIZER = "tokenizer"


def prepare_text(
    author: RunSpec, settings: LanguageSettings, family: Family, special: SpecialTokens, progress: Callable[[str], None]
) -> Prepared:
    """Raises SpecError, CorpusError or DiskError."""
    model = settings.model
    if model.pretrained is not None:
        model = inlined(author.folder / model.pretrained, family)
    check_model(settings.model_copy(update={"model": model}), family)
    progress("Reading the corpus")
    documents, held_out = split(load_documents(settings.data, author.folder), settings.data.held_out_bytes, author.run.seed)
    documents = without_near_duplicates_of(documents, held_out)
    progress(f"Holding out {len(held_out)} of {len(documents) + len(held_out)} documents")

    foreign = settings.tokenizer.folder or settings.model.pretrained
    resolved = settings.model_copy(update={"model": model, "tokenizer": settings.tokenizer.model_copy(update={"folder": None})})
    try:
        with tempfile.TemporaryDirectory(prefix="dugnad-tokenizer-") as name:
            folder = Path(name)
            if foreign is not None:
                load_tokenizer(author.folder / foreign).save_pretrained(folder)
            else:
                progress(f"Training a tokenizer of {settings.tokenizer.vocab_size} tokens")
                train_tokenizer(documents, settings.tokenizer.vocab_size, special, folder)
            tokenizer = load_tokenizer(folder)
            require_special_tokens(tokenizer, special)
            model_config(resolved, family, tokenizer)
            files = {f"{TOKENIZER}/{file}": (folder / file).read_bytes() for file in FILES if (folder / file).is_file()}
    except OSError as error:
        raise DiskError(f"cannot write the tokenizer: {error}", remedy="Free some space for temporary files.") from error
    pairs = [[document.name, document.text] for document in held_out]
    return Prepared(resolved, {HELD_OUT: json.dumps(pairs).encode(), **files})


def read_held_out(file: Path) -> Sequence[Document]:
    """Raises BadMessageError when the file is no list of (name, text)."""
    try:
        documents = [Document(name, text) for name, text in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise BadMessageError(f"the run's held-out text cannot be read: {error}") from error
    if not documents or not all(isinstance(part, str) for document in documents for part in (document.name, document.text)):
        raise BadMessageError("the run's held-out text is no list of documents")
    return documents
