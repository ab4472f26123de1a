"""The text to train on, and the text that nobody trains on.

Held-out loss means something only if the held-out text is nowhere in the training text, so near-duplicates go before the split,
and each peer drops what nearly duplicates the held-out text it was served: its own corpus may be of another version.

Two documents are compared by the lines that they share: lines that occur in few documents, since everybody has `import sys`.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import CorpusError
from protocols.run_spec import DataSpec

PIECE_CHARACTERS = 16 << 10
_COMMON_LINE_DOCUMENTS = 16
_DUPLICATE_SHARE = 0.5
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


def load_documents(data: DataSpec, folder: Path) -> list[Document]:
    """Read at most `data.max_bytes` of text, near-duplicates removed, sorted by name. Relative paths start from `folder`.

    Raises CorpusError when there is none, or too little for the held-out text to be a small part of it.
    """
    if data.source == "python-stdlib":
        candidates, where = _stdlib(), "the standard library's source"
    elif data.source == "files":
        candidates, where = _local_files(data.paths, folder), "the files of data.paths"
    else:
        candidates, where = _dataset_rows(data), f"data set {data.dataset}"
    documents: list[Document] = []
    size = 0
    for document in candidates:
        size += len(document.text)
        if size > data.max_bytes:
            break
        documents.append(document)
    documents = without_near_duplicates(documents)
    size = sum(len(document.text) for document in documents)
    if not documents:
        raise CorpusError(f"{where} hold no text", remedy="Check data.source and data.paths in the run file.")
    if size < 4 * data.held_out_bytes:
        raise CorpusError(
            f"{where} hold {size} characters of distinct text, too few beside {data.held_out_bytes} held-out bytes",
            remedy="Add text, or lower data.held_out_bytes to a quarter of the text or less.",
        )
    return sorted(documents, key=lambda document: document.name)


def split(documents: Sequence[Document], held_out_bytes: int, seed: int) -> tuple[list[Document], list[Document]]:
    """(training, held-out). Chosen by a hash of the name, so that another version of the corpus holds out the same documents.

    No document is more than a quarter of the held-out text, unless all are that large. Raises CorpusError if none is left over.
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
    if not training:
        raise CorpusError(
            f"the corpus has {len(documents)} documents, too few to hold one out", remedy="Add text or lower data.held_out_bytes."
        )
    return training, held_out


def without_near_duplicates(documents: Iterable[Document]) -> list[Document]:
    """Keep the first of documents of which the smaller is half contained in the larger. Order is kept; names are made unique."""
    kept: list[Document] = []
    sizes: list[int] = []
    holders: defaultdict[int, list[int]] = defaultdict(list)  # line -> indices into kept
    seen: set[str] = set()
    for document in documents:
        lines = _lines(document.text)
        shared: Counter[int] = Counter()
        for line in lines:
            if (having := holders.get(line)) is not None and len(having) <= _COMMON_LINE_DOCUMENTS:
                shared.update(having)
        if document.name in seen or any(_overlaps(n, len(lines), sizes[i], _DUPLICATE_SHARE) for i, n in shared.items()):
            continue
        seen.add(document.name)
        for line in lines:
            having = holders[line]
            if len(having) <= _COMMON_LINE_DOCUMENTS:  # one more than common, so that it is known to be common
                having.append(len(kept))
        kept.append(document)
        sizes.append(len(lines))
    return kept


def without_near_duplicates_of(documents: Iterable[Document], held_out: Sequence[Document]) -> list[Document]:
    """Drop each document that shares a tenth of its lines, or of a held-out document's lines, with that held-out document.

    Much stricter than between training documents: losing some training text costs nothing, training on held-out text the proof.
    """
    sizes = [0] * len(held_out)
    holders: defaultdict[int, list[int]] = defaultdict(list)
    for i, document in enumerate(held_out):
        lines = _lines(document.text)
        sizes[i] = len(lines)
        for line in lines:
            holders[line].append(i)
    held_out_lines = holders.keys()
    result: list[Document] = []
    matches: list[tuple[Document, set[int], int]] = []
    spread: Counter[int] = Counter()
    for document in documents:
        lines = _lines(document.text)
        common = lines & held_out_lines
        spread.update(common)
        matches.append((document, common, len(lines)))
    for document, common, size in matches:
        shared: Counter[int] = Counter()
        for line in common:
            if spread[line] <= _COMMON_LINE_DOCUMENTS:
                shared.update(holders[line])
        if not any(_overlaps(n, size, sizes[i], _HELD_OUT_SHARE) for i, n in shared.items()):
            result.append(document)
    return result


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
    names = {
        path.relative_to(root).as_posix(): path
        for path in _python_files(root)
        # written at build time, with the machine's own paths in it
        if not path.name.startswith("_sysconfigdata")
    }
    if not names:
        raise CorpusError(
            f"{root} holds no Python source", remedy='Install Python with its library\'s source, or set data.source = "files".'
        )
    for name in sorted(names):
        text = _read(names[name])
        if text:
            yield Document(name, text)


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
        path = folder / Path(pattern).expanduser()
        matches = [path] if path.exists() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        found = [match for match in matches if match.is_file()]
        if not found:
            raise CorpusError(
                f"data.paths: nothing matches {pattern} in {folder}", remedy="Correct the path or put the text there."
            )
        for path in found:
            name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix().lstrip("/")
            files[name] = path
    for name in sorted(files):
        text = _read(files[name])
        if text is None:
            raise CorpusError(
                f"{files[name]} cannot be read as UTF-8 text", remedy="Leave that file out of data.paths or convert it."
            )
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
            remedy='Check its name and the connection, or download it and set data.source = "files".',
        ) from error
    if data.dataset_text_column not in rows.column_names:
        raise CorpusError(
            f"data set {data.dataset} has no column {data.dataset_text_column}",
            remedy=f"Set data.dataset_text_column to one of: {', '.join(rows.column_names)}.",
        )
    yield from _pieces(f"{data.dataset_split}", (str(row[data.dataset_text_column]).rstrip("\n") for row in rows))


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
