"""What people read where logs have codes."""

from __future__ import annotations

from protocols.host.reason_words import WORDS, in_words
from protocols.reasons import Reason


def test_every_reason_has_words_of_its_own() -> None:
    assert set(WORDS) == set(Reason)
    assert len(set(WORDS.values())) == len(WORDS)


def test_a_code_becomes_words_and_other_text_stays() -> None:
    assert in_words("missed-results") == "the averages did not arrive here"
    assert in_words("exit code 1") == "exit code 1"
