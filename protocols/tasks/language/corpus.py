"""The text to train on, and the text that nobody trains on.

Held-out loss means something only if the held-out text is nowhere in the training text, so near-duplicates go before the split,
and each peer drops what nearly duplicates the held-out text it was served: its own corpus may be of another version.

Two documents are compared by the lines that they share: lines that occur in few documents, since everybody has `import sys`.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from protocols.errors import CorpusError, UsageError
from protocols.host.files import matching_files
from protocols.tasks.language.settings import DataSpec

PIECE_CHARACTERS = 16 << 10
MIN_CHARACTERS = 4 << 10
_DUPLICATE_SHARE = 0.5
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HELD_OUT_SHARE = 0.1
_MIN_SHARED_LINES = 4
# Tests, and tables that a script wrote (character maps, help topics), teach little about the language, and some distributions
# leave them out: without them machines agree better on what the standard library is.
_STDLIB_SKIP = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "lib-dynload"}
)


@dataclass(frozen=True)
class Document:
    """`name` is the same on every machine that has this document; `text` is never empty."""

    name: str
    text: str


def characters_in(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)


def thinned(documents: Sequence[Document], limit: int) -> Sequence[Document]:
    """Every k-th document, k such that about `limit` characters remain; all of them when there is less."""
    return documents[:: max(1, -(-characters_in(documents) // limit))]


def load_documents(data: DataSpec, folder: Path) -> list[Document]:
    """Read at most `data.max_bytes` of text, near-duplicates removed, sorted by name. Relative paths start from `folder`.

    Raises CorpusError when there is none, or next to none.
    """
    if data.source == "python-stdlib":
        candidates, where = _stdlib(), "the standard library's source"
    elif data.source == "files":
        candidates, where = _local_files(data.paths, folder), f"the files of {', '.join(data.paths)}"
    else:
        candidates, where = _dataset_rows(data), f"data set {data.dataset}"
    documents: list[Document] = []
    size = 0
    for document in candidates:
        size += len(document.text)
        if size > data.max_bytes:
            break
        documents.append(document)
    documents = sorted(without_near_duplicates(documents), key=lambda document: document.name)
    size = characters_in(documents)
    if size < MIN_CHARACTERS:
        raise CorpusError(
            f"{where} hold {size} characters of distinct text; {MIN_CHARACTERS} are the least",
            remedy="Add text, or name other text: task.data in a run file, --data for a volunteer.",
        )
    return documents


def source_of(data: DataSpec) -> str:
    """In words: what a machine reads or fetches."""
    if data.source == "python-stdlib":
        return "the source of Python's standard library, which is on this computer"
    if data.source == "files":
        return f"your files: {', '.join(data.paths)}"
    return f"data set {data.dataset} of the Hugging Face hub, fetched over the internet"


def require_no_local_paths(data: DataSpec) -> None:
    """Raises UsageError when a spec that came over the network names something on this machine's disk."""
    remedy = "Give text of your own: --data 'texts/**/*.txt'. Ask the organiser what kind the run is for."
    if data.source == "files":
        raise UsageError("this run trains on text files that each volunteer chooses, and you have named none", remedy=remedy)
    name = data.dataset or ""
    if data.source == "datasets" and (_HUB_NAME.fullmatch(name) is None or Path(name).exists()):
        raise UsageError(f"this run's data set {name!r} is a folder, and a run may not choose one on your disk", remedy=remedy)


def split(documents: Sequence[Document], held_out_bytes: int, seed: int) -> tuple[list[Document], list[Document]]:
    """(training, held-out). Chosen by a hash of the name, so that another version of the corpus holds out the same documents.

    No document is more than a quarter of the held-out text, unless all are that large. Raises CorpusError when the held-out text
    would be more than a quarter of the corpus.
    """
    order = sorted(documents, key=lambda document: hashlib.sha256(f"{seed}/{document.name}".encode()).digest())
    small = [document for document in order if len(document.text) <= held_out_bytes // 4] or order
    held_out: list[Document] = []
    size = 0
    for document in small:
        if size >= held_out_bytes:
            break
        held_out.append(document)
        size += len(document.text)
    names = {document.name for document in held_out}
    training = [document for document in documents if document.name not in names]
    total = characters_in(documents)
    if total < 4 * size:
        raise CorpusError(
            f"the corpus has {total} characters in {len(documents)} documents, too few to hold {held_out_bytes} out",
            remedy="Add text, or lower task.data.held_out_bytes.",
        )
    return training, held_out


def without_near_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep the first of documents of which the smaller is half contained in the larger. Order is kept; names are made unique."""
    documents = list(documents)
    every = [_lines(document.text) for document in documents]
    common = _common(every)
    kept: list[Document] = []
    seen = _Seen(_DUPLICATE_SHARE)
    names: set[str] = set()
    for document, lines in zip(documents, every, strict=True):
        lines -= common
        if document.name not in names and not seen.resembles(document, lines):
            names.add(document.name)
            seen.add(document, lines)
            kept.append(document)
    return kept


def without_near_duplicates_of(documents: Iterable[Document], held_out: Sequence[Document]) -> list[Document]:
    """Drop each document that shares a tenth of its lines, or of a held-out document's lines, with that held-out document.

    Much stricter than between training documents: losing some training text costs nothing, training on held-out text the proof.
    """
    documents = list(documents)
    every = [_lines(document.text) for document in documents]
    common = _common(every)
    seen = _Seen(_HELD_OUT_SHARE)
    for document in held_out:
        seen.add(document, _lines(document.text) - common)
    return [document for document, lines in zip(documents, every, strict=True) if not seen.resembles(document, lines - common)]


class _Seen:
    """Documents to compare others with. Two resemble each other if they share `share` of the smaller one's lines."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._texts: set[str] = set()
        self._sizes: list[int] = []
        self._holders: defaultdict[int, list[int]] = defaultdict(list)  # line -> indices into _sizes

    def add(self, document: Document, lines: set[int]) -> None:
        for line in lines:
            self._holders[line].append(len(self._sizes))
        self._sizes.append(len(lines))
        self._texts.add(document.text)

    def resembles(self, document: Document, lines: set[int]) -> bool:
        shared = Counter(index for line in lines if line in self._holders for index in self._holders[line])
        return document.text in self._texts or any(
            _overlaps(count, len(lines), self._sizes[index], self._share) for index, count in shared.items()
        )


def _common(every: Sequence[set[int]]) -> set[int]:
    """Lines in more documents than a copied text would be: licences, imports. They say nothing about who copied whom."""
    limit = min(64, max(16, len(every) // 10))
    counts = Counter(chain.from_iterable(every))
    return {line for line, count in counts.items() if count > limit}


def _overlaps(shared: int, size: int, other_size: int, share: float) -> bool:
    smaller = min(size, other_size)
    return shared >= share * smaller and shared >= min(_MIN_SHARED_LINES, smaller)


def _lines(text: str) -> set[int]:
    """The document's distinct lines of some length; prose without line breaks is cut at sentences."""
    lines: set[int] = set()
    for line in text.split("\n"):
        line = line.strip()
        if len(line) > 300:
            lines.update(hash(sentence) for sentence in line.split(". ") if len(sentence) >= 12)
        elif len(line) >= 12:
            lines.add(hash(line))
    return lines or {hash(text.strip())}


def _stdlib() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata is written at build time, with the machine's own paths in it.
    files = [path for path in _python_files(root) if not path.name.startswith("_sysconfigdata")]
    if not files:
        raise CorpusError(
            f"{root} holds no Python source",
            remedy='Install Python with its library\'s source, or set task.data.source = "files".',
        )
    for path in sorted(files, key=Path.as_posix):
        text = _read(path)
        if text:
            yield Document(path.relative_to(root).as_posix(), text)


def _python_files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            if path.name not in _STDLIB_SKIP and not path.name.startswith("config-"):
                yield from _python_files(path)
        elif path.suffix == ".py":
            yield path


def _local_files(patterns: Sequence[str], folder: Path) -> Iterator[Document]:
    files: dict[str, Path] = {}
    for pattern in patterns:
        found = matching_files(folder / Path(pattern).expanduser())
        if not found:
            raise CorpusError(
                f"task.data.paths: nothing matches {pattern} in {folder}",
                remedy="Correct the path or put the text there; a volunteer names other text with --data.",
            )
        for path in found:
            name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix().lstrip("/")
            files[name] = path
    for name, path in sorted(files.items()):
        text = _read(path)
        if text is None:
            raise CorpusError(f"{path} cannot be read as UTF-8 text", remedy="Leave that file out, or convert it.")
        yield from _pieces(name, text.split("\n"))


def _read(path: Path) -> str | None:
    """Text of a file, '' when blank, None when it is not UTF-8 or not readable."""
    try:
        return path.read_text(encoding="utf-8").strip("\ufeff\n")
    except (OSError, UnicodeDecodeError):
        return None


def _dataset_rows(data: DataSpec) -> Iterator[Document]:
    import datasets  # slow to import, and most runs do not need it

    try:
        rows: Any = datasets.load_dataset(data.dataset, data.dataset_config, split=data.dataset_split)
    except (OSError, ValueError, RuntimeError) as error:  # datasets wraps connection and not-found errors in these
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CorpusError(
            f"data set {data.dataset} cannot be loaded: {cause[:200]}",
            remedy='Check its name and the connection, or download it and set task.data.source = "files".',
        ) from error
    if data.dataset_text_column not in rows.column_names:
        raise CorpusError(
            f"data set {data.dataset} has no column {data.dataset_text_column}",
            remedy=f"Set task.data.dataset_text_column to one of: {', '.join(rows.column_names)}.",
        )
    yield from _pieces(data.dataset_split, (str(row[data.dataset_text_column]).rstrip("\n") for row in rows))


def _pieces(name: str, lines: Iterable[str]) -> Iterator[Document]:
    """Cut one long text into documents of about PIECE_CHARACTERS at line ends; a short one stays whole and keeps its name."""
    piece: list[str] = []
    size = count = 0
    for line in lines:
        if size >= PIECE_CHARACTERS:
            yield Document(f"{name}#{count}", "\n".join(piece))
            piece, size, count = [], 0, count + 1
        if line.strip() or piece:
            piece.append(line)
            size += len(line) + 1
    if any(line.strip() for line in piece):
        yield Document(f"{name}#{count}" if count else name, "\n".join(piece))
