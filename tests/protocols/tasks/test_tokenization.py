from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from protocols.errors import CorpusError, SpecError
from protocols.tasks.language.corpus import Document
from protocols.tasks.language.tokenization import (
    CAUSAL_TOKENS,
    MASKED_TOKENS,
    load_tokenizer,
    require_special_tokens,
    tokens_of,
    train_tokenizer,
)


def words(seed: int, count: int) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=draw.randrange(2, 7))) for _ in range(count))


CORPUS = [Document(str(i), words(i, 400)) for i in range(20)]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, 400, CAUSAL_TOKENS, folder)
    return load_tokenizer(folder)


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])))
def test_any_text_comes_back_as_it_was(causal: PreTrainedTokenizerFast, text: str) -> None:
    assert causal.decode(tokens_of(causal, text)) == text


def test_the_vocabulary_has_the_size_asked_for_special_tokens_included(causal: PreTrainedTokenizerFast) -> None:
    assert len(causal) == 400
    assert max(tokens_of(causal, words(99, 1000))) < 400
    assert len(tokens_of(causal, words(99, 1000))) < len(words(99, 1000)) / 1.5


def test_the_same_text_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(CORPUS, 350, MASKED_TOKENS, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_each_task_has_its_special_tokens(causal: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    masked = train_tokenizer(CORPUS, 350, MASKED_TOKENS, tmp_path)
    require_special_tokens(causal, CAUSAL_TOKENS)
    require_special_tokens(masked, MASKED_TOKENS)
    assert masked.mask_token_id in tokens_of(masked, "abc [MASK] def")
    with pytest.raises(SpecError, match="mask_token"):
        require_special_tokens(causal, MASKED_TOKENS)
    with pytest.raises(SpecError, match="eos_token"):
        require_special_tokens(masked, CAUSAL_TOKENS)


def test_other_programs_can_load_it(tmp_path: Path) -> None:
    ours = train_tokenizer(CORPUS, 350, CAUSAL_TOKENS, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("abc def  ghi")["input_ids"] == tokens_of(ours, "abc def  ghi")
    assert theirs.eos_token == ours.eos_token


def test_too_little_text_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="tokens, not 5000"):
        train_tokenizer(CORPUS[:1], 5000, CAUSAL_TOKENS, tmp_path)


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SpecError, match="cannot be read"):
        load_tokenizer(tmp_path)
