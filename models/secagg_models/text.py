"""Private text: source files, split by file, encoded, and cut into windows.

A tenant's text is a folder of files or an installed package. Files, never passages, are assigned
to train, validation or test, by the hash of their relative path: so the split is the same on every
machine, no test passage has its neighbour in the training text, and adding a file moves no other.

Sampling is deterministic given a seed, which rules data and training only; it has nothing to do
with keys, masks or rounding. This module deliberately neither downloads nor cleans anything.
"""

from __future__ import annotations

import hashlib
import sysconfig
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# ByT5's numbering, which the shipped base uses: 0 pad, 1 end of text, 2 unknown, then 256 bytes.
END_OF_TEXT = 1
BYTE_OFFSET = 3

_VENDORED = frozenset({"site-packages", "lib2to3", "ensurepip", "__pycache__"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of somebody's text: its path relative to the root, and its bytes."""

    path: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """A tenant's files, split by file. The three parts share no path."""

    name: str
    train: tuple[SourceFile, ...]
    validation: tuple[SourceFile, ...]
    test: tuple[SourceFile, ...]

    def part(self, split: Split) -> tuple[SourceFile, ...]:
        """The files of one part."""
        match split:
            case "train":
                return self.train
            case "validation":
                return self.validation
            case "test":
                return self.test

    def listing(self) -> dict[str, list[dict[str, str | int]]]:
        """Paths, lengths and hashes by part, for a report that names what was trained on."""
        return {
            split: [
                {"path": f.path, "bytes": len(f.content), "sha256": f.sha256}
                for f in self.part(split)
            ]
            for split in SPLITS
        }


@dataclass(frozen=True, slots=True, eq=False)
class TokenStream:
    """Encoded files, back to back: (length,) int32 token ids, and how many bytes a token spans."""

    name: str
    ids: NDArray[np.int32]
    bytes_per_token: float

    def windows_at(self, seed: int, step: int, batch: int, context: int) -> torch.Tensor:
        """The (batch, context + 1) int64 windows of one step: a pure function of its arguments.

        Every arm of the comparison that names the same stream, seed and step sees the same text.
        """
        generator = np.random.default_rng([seed, step, zlib.crc32(self.name.encode())])
        starts = generator.integers(0, self._last_start(context) + 1, size=batch)
        return self._cut(starts, context)

    def held_out_windows(self, limit: int, context: int) -> torch.Tensor:
        """At most `limit` windows, non-overlapping and evenly spread: (n, context + 1) int64."""
        count = min(limit, len(self.ids) // (context + 1))
        if count < 1:
            self._last_start(context)
        stride = len(self.ids) // count
        return self._cut(np.arange(count) * stride, context)

    def _last_start(self, context: int) -> int:
        last = len(self.ids) - context - 1
        if last < 0:
            raise ConfigError(
                f"text {self.name}: {len(self.ids)} tokens are fewer than one window of "
                f"{context + 1}; give it more files or a shorter context"
            )
        return last

    def _cut(self, starts: NDArray[np.int64], context: int) -> torch.Tensor:
        rows = self.ids[starts[:, None] + np.arange(context + 1)]
        return torch.from_numpy(rows.astype(np.int64))


def split_of(path: str, validation_share: float, test_share: float) -> Split:
    """The part that a file belongs to: by the hash of its relative path, and nothing else."""
    place = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def split_by_file(
    name: str,
    files: Iterable[SourceFile],
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
) -> Corpus:
    """Assign every file to a part.

    Raises: ConfigError where a part would be empty, since nothing could be measured then.
    """
    parts: dict[Split, list[SourceFile]] = {split: [] for split in SPLITS}
    for file in sorted(files, key=lambda f: f.path):
        parts[split_of(file.path, validation_share, test_share)].append(file)
    for split in SPLITS:
        if not any(file.content for file in parts[split]):
            total = sum(map(len, parts.values()))
            raise ConfigError(
                f"text {name}: no file of {total} falls into its {split} part; "
                "the split is by whole file, so give it more files"
            )
    return Corpus(name, *(tuple(parts[split]) for split in SPLITS))


def corpus_of_folder(root: Path, *, name: str | None = None, pattern: str = "**/*.py") -> Corpus:
    """The files under `root` that match the pattern, split by file."""
    if not root.is_dir():
        raise ConfigError(f"text folder {root}: there is no such folder")
    paths = [path for path in root.glob(pattern) if path.is_file()]
    if not paths:
        raise ConfigError(f"text folder {root}: no file matches {pattern!r}")
    files = [SourceFile(path.relative_to(root).as_posix(), path.read_bytes()) for path in paths]
    return split_by_file(name or root.name, files)


def corpus_of_package(distribution: str) -> Corpus:
    """The Python files of an installed distribution, as its own record lists them."""
    files = [
        SourceFile(PurePath(path).as_posix(), Path(str(path.locate())).read_bytes())
        for path in python_files(distribution)
    ]
    return split_by_file(distribution, files)


def export_package(distribution: str, folder: Path) -> None:
    """Copy a distribution's Python files into a folder, as if it were a company's checkout."""
    for path in python_files(distribution):
        target = folder / PurePath(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(str(path.locate())).read_bytes())


def python_files(distribution: str) -> list[metadata.PackagePath]:
    """The Python files that an installed distribution's record lists; nothing is read yet."""
    try:
        listed = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"text package {distribution}: it is not installed; pip install {distribution}"
        ) from None
    return [p for p in listed if p.suffix == ".py" and ".." not in p.parts]


def standard_library() -> Corpus:
    """The running interpreter's library with its tests, less vendored packages: 97, 1 and 2%."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        SourceFile(path.relative_to(root).as_posix(), path.read_bytes())
        for path in root.rglob("*.py")
        if not _VENDORED & set(path.relative_to(root).parts)
    ]
    return split_by_file("standard-library", files, validation_share=0.01, test_share=0.02)


def byte_stream(name: str, files: Sequence[SourceFile]) -> TokenStream:
    """The files' bytes in ByT5's numbering, an end-of-text token after each file."""
    length = sum(len(file.content) + 1 for file in files)
    ids = np.full(length, END_OF_TEXT, np.int32)
    place = 0
    for file in files:
        end = place + len(file.content)
        ids[place:end] = np.frombuffer(file.content, np.uint8)
        ids[place:end] += BYTE_OFFSET
        place = end + 1
    return TokenStream(name, ids, bytes_per_token=1.0)


def encode(name: str, files: Sequence[SourceFile], tokenizer: Any) -> TokenStream:
    """The files through a model's own tokeniser; bytes directly where that is ByT5's.

    Files that are not UTF-8 are read with replacement characters by other tokenisers.
    """
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return byte_stream(name, files)
    end = tokenizer.eos_token_id
    pieces: list[int] = []
    for file in files:
        pieces += tokenizer(
            file.content.decode(errors="replace"), add_special_tokens=False, verbose=False
        )["input_ids"]
        pieces += [] if end is None else [end]
    total = sum(len(file.content) for file in files)
    return TokenStream(name, np.array(pieces, np.int32), total / max(len(pieces), 1))
