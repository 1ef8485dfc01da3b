"""Which text plays which part in an audit: the attackers', the held-out, and the tuning text.

The owner's own corpus is split by file: its test part measures, and every second file of its
training part is what attackers have (an attacker with text like the owner's is the worst case). The
tuning text is somebody else's: what tenants would tune on, split by file as well. A file whose
content stands in a held-out part is taken out of the other side, whatever its path.

A classifier's text is labelled: a folder with one folder of text files for each class, or the
subjects task that comes with MiniLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from secagg.errors import ConfigError
from secagg_models import text
from secagg_models.audit.run import AuditTexts
from secagg_models.labelled import LabelledStream, encode_labelled
from secagg_models.text import Corpus, SourceFile

PACKAGE: Final = "package:"
DEFAULT_TUNING: Final = ("package:peft",)
_LONGEST_PASSAGE = 512
_MOST_HELD_OUT_BYTES = 1 << 21


@dataclass(frozen=True, slots=True, eq=False)
class ChosenTexts:
    """The streams, and what a report says about them."""

    texts: AuditTexts
    about: dict[str, Any]


def corpus_of(source: str, pattern: str = "**/*.py") -> Corpus:
    """`package:NAME`, or a folder.

    Raises:
        ConfigError: there is no such package or folder, or too few files in it.
    """
    if source.startswith(PACKAGE):
        return text.corpus_of_package(source.removeprefix(PACKAGE))
    return text.corpus_of_folder(Path(source), pattern=pattern)


def language_texts(
    tokenizer: Any, own: Corpus, tuning: Sequence[Corpus], *, attacker_bytes: int
) -> ChosenTexts:
    """Streams of a language model; no part is encoded beyond what an audit can read.

    Raises:
        ConfigError: nothing is left of a part.
    """
    held_out = _within(own.test, _MOST_HELD_OUT_BYTES)
    hidden = {file.sha256 for file in own.test}
    attacker = _within(_without(own.train[::2], hidden), attacker_bytes)
    parts = [("attacker", own.name, attacker), ("held out", own.name, held_out)]
    tuned, measured = [], []
    for corpus in tuning:
        kept = {file.sha256 for file in corpus.test}
        files = _within(_without(corpus.train, kept), attacker_bytes)
        test = _within(corpus.test, _MOST_HELD_OUT_BYTES)
        tuned.append(text.encode(corpus.name, files, tokenizer))
        measured.append(text.encode(corpus.name, test, tokenizer))
        parts += [("tuning", corpus.name, files), ("tuning, held out", corpus.name, test)]
    texts = AuditTexts(
        text.encode("attacker", attacker, tokenizer),
        text.encode("held out", held_out, tokenizer),
        tuple(tuned),
        tuple(measured),
    )
    return ChosenTexts(texts, _about(parts))


def _without(files: Sequence[SourceFile], hidden: set[str]) -> list[SourceFile]:
    return [file for file in files if file.content and file.sha256 not in hidden]


def _within(files: Sequence[SourceFile], most: int) -> list[SourceFile]:
    """Files in the order of their hashes, so that a limit takes some of every folder."""
    chosen, size = [], 0
    for file in sorted(files, key=lambda file: file.sha256):
        if size >= most:
            break
        chosen.append(file)
        size += len(file.content)
    return chosen


def _about(parts: Sequence[tuple[str, str, Sequence[SourceFile]]]) -> dict[str, Any]:
    return {
        "parts": [
            {"part": part, "source": source, "files": len(files),
             "bytes": sum(len(file.content) for file in files)}
            for part, source, files in parts
        ]
    }  # fmt: skip


def labelled_texts(tokenizer: Any, classes: Sequence[str], folder: Path) -> ChosenTexts:
    """A classifier's streams from FOLDER/CLASS/*.txt: one passage a file.

    Half of the training files are the attackers', the other half tunes; both are measured on the
    same test files.

    Raises:
        ConfigError: a class has no folder, or a part has no passage.
    """
    files = []
    for label, name in enumerate(classes):
        paths = sorted((folder / name).glob("*.txt"))
        if not paths:
            raise ConfigError(f"text folder {folder}: class {name!r} has no {name}/*.txt in it")
        files += [(label, SourceFile(f"{name}/{path.name}", path.read_bytes())) for path in paths]
    test = [item for item in files if text.split_of(item[1].path, 0.0, 0.25) == "test"]
    hidden = {file.sha256 for _, file in test}
    rest = [item for item in files if item[1].sha256 not in hidden]
    parts = {"attacker": rest[::2], "tuning": rest[1::2], "held out": test}
    streams = {}
    for part, items in parts.items():
        if not items:
            raise ConfigError(f"text folder {folder}: nothing is left for the {part} part")
        passages = [file.content.decode(errors="replace") for _, file in items]
        labels = [label for label, _ in items]
        streams[part] = encode_labelled(part, passages, labels, tokenizer, _LONGEST_PASSAGE)
    about = _about([(part, folder.name, [file for _, file in parts[part]]) for part in parts])
    return ChosenTexts(_labelled(streams), about)


def subject_texts(tokenizer: Any) -> ChosenTexts:
    """The subjects task: the first two tenants' passages are the attackers', the rest tunes."""
    from secagg_models.minilm import CONTEXT
    from secagg_models.subjects import TENANTS, tenants_passages

    found = tenants_passages()
    by_part: dict[str, list[LabelledStream]] = {"attacker": [], "tuning": [], "held out": []}
    for number, tenant in enumerate(TENANTS):
        dealt, trained = found[tenant], "attacker" if number < 2 else "tuning"
        for part, passages in ((trained, dealt["train"]), ("held out", dealt["test"])):
            by_part[part].append(
                encode_labelled(part, passages.texts, passages.labels, tokenizer, CONTEXT)
            )
    streams = {part: merged(part, parts) for part, parts in by_part.items()}
    about = {"parts": [{"part": part, "source": "subjects", "passages": len(stream)}
                       for part, stream in streams.items()]}  # fmt: skip
    return ChosenTexts(_labelled(streams), about)


def _labelled(streams: dict[str, LabelledStream]) -> AuditTexts:
    held_out = streams["held out"]
    return AuditTexts(streams["attacker"], held_out, (streams["tuning"],), (held_out,))


def merged(name: str, streams: Sequence[LabelledStream]) -> LabelledStream:
    """All passages of several streams, one after the other."""
    width = max(stream.ids.shape[1] for stream in streams)
    rows = [
        np.pad(stream.ids, ((0, 0), (0, width - stream.ids.shape[1])), constant_values=stream.pad)
        for stream in streams
    ]
    return LabelledStream(
        name,
        np.concatenate(rows),
        np.concatenate([stream.lengths for stream in streams]),
        np.concatenate([stream.labels for stream in streams]),
        streams[0].pad,
    )
