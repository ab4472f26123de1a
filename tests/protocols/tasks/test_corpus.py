from __future__ import annotations

import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import CorpusError
from protocols.tasks.language import corpus
from protocols.tasks.language.corpus import Document, load_documents, split, without_near_duplicates, without_near_duplicates_of
from protocols.tasks.language.settings import DataSpec

WORDS = ["neighbour", "tool", "barn", "roof", "bridge", "harvest", "road", "boat", "fence", "stone", "timber", "rope"]


def text(seed: int, lines: int = 100) -> str:
    draw = random.Random(seed)
    return "\n".join(" ".join(draw.choices(WORDS, k=7)) for _ in range(lines))


def documents(count: int) -> list[Document]:
    return [Document(f"d{i:03d}", text(i)) for i in range(count)]


def changed(original: str, share: float) -> str:
    """The same text with about this share of its lines rewritten."""
    draw = random.Random(7)
    return "\n".join("rewritten " + line[::-1] if draw.random() < share else line for line in original.split("\n"))


def test_the_standard_library_is_a_corpus() -> None:
    found = load_documents(DataSpec(), Path())
    names = {document.name for document in found}
    assert {"asyncio/base_events.py", "argparse.py"} <= names
    assert not any("site-packages" in name or name.startswith("test/") for name in names)
    assert sum(len(document.text) for document in found) > 4 << 20
    assert found == sorted(found, key=lambda document: document.name)


def test_local_files_are_found_by_path_and_glob_relative_to_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text(text(1))
    (tmp_path / "b.txt").write_text(text(2))
    (tmp_path / "c[1].md").write_text(text(3))
    found = load_documents(DataSpec(source="files", paths=["**/*.txt", "c[1].md"]), tmp_path)
    assert [document.name for document in found] == ["b.txt", "c[1].md", "deep/er/a.txt"]
    assert load_documents(DataSpec(source="files", paths=[str(tmp_path / "*.txt")]), Path("/")) != []


def test_a_long_file_becomes_many_documents_that_hold_all_of_it(tmp_path: Path) -> None:
    whole = text(1, lines=2000)
    (tmp_path / "long.txt").write_text(whole)
    found = load_documents(DataSpec(source="files", paths=["long.txt"]), tmp_path)
    assert len(found) > 4
    assert all(len(document.text) <= corpus.PIECE_CHARACTERS + 200 for document in found)
    by_number = sorted(found, key=lambda document: int(document.name.split("#")[1]))
    assert "\n".join(document.text for document in by_number) == whole


@pytest.mark.parametrize(
    ("content", "paths", "cause"),
    [
        (None, ["absent.txt"], "nothing matches"),
        (b"", ["text.txt"], "hold 0 characters"),
        (b"\n \n", ["text.txt"], "hold 0 characters"),
        (b"a short one", ["text.txt"], "hold 11 characters"),
        (b"\xff\xfe\x00\x01", ["text.txt"], "UTF-8"),
    ],
)
def test_a_corpus_that_is_missing_empty_small_or_binary_is_refused(
    tmp_path: Path, content: bytes | None, paths: list[str], cause: str
) -> None:
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=cause) as caught:
        load_documents(DataSpec(source="files", paths=paths), tmp_path)
    assert caught.value.remedy


def test_a_corpus_stops_at_its_byte_limit(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(text(i))
    limit = 3 * len(text(0))
    found = load_documents(DataSpec(source="files", paths=["*.txt"], max_bytes=limit), tmp_path)
    assert 0 < sum(len(document.text) for document in found) <= limit


def test_data_set_rows_become_documents_and_faults_become_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(list[dict[str, str]]):
        column_names = ("text",)

    def load_dataset(name: str, config: str | None, split: str) -> Any:
        if name == "absent/name":
            raise ConnectionError("Couldn't reach 'absent/name' on the Hub")
        return Rows({"text": line + "\n"} for line in text(1, lines=1000).split("\n"))

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    found = load_documents(DataSpec(source="datasets", dataset="some/text"), Path())
    assert "".join(document.text for document in found).count("barn") == text(1, lines=1000).count("barn")
    with pytest.raises(CorpusError, match="Couldn't reach"):
        load_documents(DataSpec(source="datasets", dataset="absent/name"), Path())
    with pytest.raises(CorpusError, match="no column body") as caught:
        load_documents(DataSpec(source="datasets", dataset="some/text", dataset_text_column="body"), Path())
    assert "text" in caught.value.remedy


def test_near_duplicates_go_and_different_texts_stay() -> None:
    originals = documents(30)
    copies = [Document(f"copy{i}", changed(originals[i].text, 0.3)) for i in range(10)]
    part = Document("part", "\n".join(originals[20].text.split("\n")[:60]))
    assert without_near_duplicates([*originals, *copies, part]) == originals


def test_texts_that_share_only_a_common_head_are_no_duplicates() -> None:
    head = "\n".join(f"# licensed under the same terms, line {i} of a long head" for i in range(100))
    originals = [Document(document.name, head + "\n" + document.text) for document in documents(40)]
    assert without_near_duplicates(originals) == originals
    copy = Document("copy", changed(originals[3].text, 0.2))
    assert without_near_duplicates([*originals, copy]) == originals


def test_the_split_follows_names_so_that_another_version_of_the_corpus_holds_out_the_same() -> None:
    corpus_now = documents(60)
    corpus_then = [Document(document.name, changed(document.text, 0.2)) for document in corpus_now if document.name != "d007"]
    _, held_out = split(corpus_now, 8000, seed=3)
    _, held_out_then = split(corpus_then, 8000, seed=3)
    names, names_then = {d.name for d in held_out}, {d.name for d in held_out_then}
    assert len(names & names_then) >= len(names) - 1
    assert {d.name for d in split(corpus_now, 8000, seed=4)[1]} != names


def test_the_split_is_disjoint_complete_and_of_the_size_asked_for() -> None:
    every = documents(60)
    training, held_out = split(every, 10_000, seed=0)
    assert sorted([*training, *held_out], key=lambda d: d.name) == every
    assert 10_000 <= sum(len(d.text) for d in held_out) < 10_000 + max(len(d.text) for d in every)


def test_a_corpus_too_small_to_hold_text_out_is_refused() -> None:
    with pytest.raises(CorpusError, match="too few"):
        split(documents(3), 100_000, seed=0)


def test_held_out_text_is_dropped_from_another_version_of_the_corpus() -> None:
    training, held_out = split(documents(60), 10_000, seed=0)
    revised = [Document("moved/" + d.name, changed(d.text, 0.6)) for d in held_out]
    embedded = Document("collection", training[0].text + "\n" + held_out[0].text)
    excerpt = Document("excerpt", text(1000) + "\n" + "\n".join(held_out[1].text.split("\n")[:12]))
    kept = without_near_duplicates_of([*training, *revised, embedded, excerpt], held_out)
    assert kept == training


def test_a_peers_standard_library_never_holds_the_held_out_modules() -> None:
    found = load_documents(DataSpec(), Path())
    training, held_out = split(found, 128 << 10, seed=0)
    assert without_near_duplicates_of(held_out, held_out) == []
    kept = without_near_duplicates_of(training, held_out)
    assert len(kept) > 0.9 * len(training)
