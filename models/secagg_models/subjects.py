"""A real classification task from text that is on every machine: which subject is this about?

Passages are paragraphs of docstrings in installed, pinned packages; the class is the subject that
the package, or a part of it, is about (statistics, graphs, databases ...). Whatever would give the
answer away is masked: names of libraries, everything in backquotes, and every identifier (dotted,
snake case, camel case, calls). What is left is prose, and a person can tell the subject from it
mostly, not always.

Files, never passages, are assigned to train, validation or test, and to a tenant: so no passage has
its neighbour at another tenant or in another part. Tenants differ in what they write about: the
share of a subject's files that each gets is drawn once from a Dirichlet distribution by a seed that
rules data only (the usual model of label skew; Hsu et al. 2019, arXiv:1909.06335).

The owner's public text, for distillation, is the standard library's docstrings: no subject of the
task is taken from it, and it is used without labels. Nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from secagg.errors import ConfigError
from secagg_models.text import (
    SPLITS,
    Corpus,
    SourceFile,
    Split,
    python_files,
    split_of,
    standard_library,
)

TENANTS = ("north", "south", "east", "west", "centre")
CONCENTRATION = 1.0
_PER_SUBJECT = 1200
_PER_FILE = 20
_WORDS = range(14, 120)
_VALIDATION, _TEST = 0.2, 0.2


@dataclass(frozen=True, slots=True)
class Subject:
    """A class: its name, a sentence for the zero-shot head, and whose docstrings are about it."""

    name: str
    description: str
    distribution: str
    folders: tuple[str, ...]


# The sentences were written once, from what the packages say about themselves, before anything was
# measured.
SUBJECTS = (
    Subject("arrays", "Multidimensional arrays: shapes, dtypes, indexing, broadcasting and "
            "elementwise operations.", "numpy", ("numpy/",)),
    Subject("statistics", "Statistics: probability distributions, random variables, hypothesis "
            "tests, p-values and confidence intervals.", "scipy", ("scipy/stats/",)),
    Subject("optimisation", "Optimisation: minimising an objective under constraints, root "
            "finding, gradients and convergence.", "scipy", ("scipy/optimize/",)),
    Subject("signals", "Signal processing: filters, frequency response, Fourier transforms, "
            "spectra and sampled waveforms.", "scipy", ("scipy/signal/", "scipy/fft/")),
    Subject("matrices", "Linear algebra: sparse and dense matrices, decompositions, eigenvalues "
            "and solving linear systems.", "scipy", ("scipy/sparse/linalg/", "scipy/linalg/")),
    Subject("integration", "Interpolation and integration: splines, quadrature and solving "
            "ordinary differential equations.", "scipy",
            ("scipy/interpolate/", "scipy/integrate/")),
    Subject("graphs", "Graphs and networks: nodes, edges, paths, centrality and graph "
            "algorithms.", "networkx", ("networkx/",)),
    Subject("plots", "Plotting: figures, axes, lines, colours, markers, legends and "
            "rendering.", "matplotlib", ("matplotlib/", "mpl_toolkits/")),
    Subject("algebra", "Computer algebra: symbolic expressions, polynomials, equations, "
            "simplification and proofs.", "sympy", ("sympy/",)),
    Subject("neural networks", "Deep learning: neural network layers, tensors, training, gradients "
            "and optimizers.", "torch", ("torch/nn/", "torch/optim/", "torch/ao/")),
    Subject("language models", "Natural language processing: pretrained language models, tokens, "
            "attention, generation and images with text.", "transformers",
            ("transformers/",)),
    Subject("databases", "Databases: SQL statements, tables, columns, sessions, connections and "
            "transactions.", "SQLAlchemy", ("sqlalchemy/",)),
    Subject("cryptography", "Cryptography: keys, ciphers, encryption, signatures, hashing and "
            "certificates.", "pycryptodome", ("Crypto/",)),
)  # fmt: skip

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_LIBRARIES = re.compile(
    r"\b(numpy|np|scipy|sympy|networkx|nx|matplotlib|mpl|pyplot|plt|pylab|torch|pytorch|aten|"
    r"transformers?|hugging ?face|hf|sqlalchemy|alembic|pycryptodome|pycrypto|crypto|openssl|"
    r"matlab|mathematica|maple|libtorch|caffe2?|tensorflow|jax|flax|keras|oracle|postgresql|"
    r"postgres|mysql|mariadb|sqlite|mssql|psycopg2?|bert|gpt2?|llama|t5|clip|lapack|blas|arpack|"
    r"fitpack|quadpack|minpack|tk|qt|gtk|wx|cairo|python)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r":[a-z:]+:`[^`]*`|``[^`]*``|`[^`]*`_?|\[[0-9A-Za-z]+\]_|\$[^$]*\$")
_IDENTIFIER = re.compile(
    r"https?://\S+"
    r"|\b\w+(?:\.\w+)+(?:\(\))?"
    r"|\b\w*_\w*\b"
    r"|\b\w+\([^)\s]*\)"
    r"|\b[A-Z]?[a-z0-9]+[A-Z]\w*\b"
    r"|\b[A-Z][A-Z0-9]{2,}\b"
    r"|@\w+|\b\w*\d\w*\b"
)
_PARAMETER_LINE = re.compile(r"^\s*\*{0,2}\w+(?:, \*{0,2}\w+)*(?: \([^)]*\))? ?:\s")
_NOT_PROSE = re.compile(r">>>|\.\. |^\s*[-=~]{3,}|:param|@|\\\\|^\s*[|+]|\bdef |\bimport |=", re.M)


@dataclass(frozen=True, slots=True)
class Passages:
    """One tenant's passages of one part, with their classes (indices into SUBJECTS)."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]


TenantsPassages = dict[str, dict[Split, Passages]]


def passages_to_json(passages: TenantsPassages) -> dict[str, Any]:
    """JSON values, so that several processes read the packages once."""
    return {
        tenant: {
            split: {"texts": list(part.texts), "labels": list(part.labels)}
            for split, part in parts.items()
        }
        for tenant, parts in passages.items()
    }


def passages_from_json(value: Mapping[str, Any]) -> TenantsPassages:
    """Inverse of `passages_to_json`."""
    return {
        tenant: {
            split: Passages(tuple(parts[split]["texts"]), tuple(parts[split]["labels"]))
            for split in SPLITS
        }
        for tenant, parts in value.items()
    }


def shares(tenants: int, seed: int, concentration: float = CONCENTRATION) -> list[list[float]]:
    """By subject, the share of its files that each tenant gets: Dirichlet, by the data's seed."""
    generator = np.random.default_rng([seed, len(SUBJECTS), tenants])
    drawn = generator.dirichlet([concentration] * tenants, size=len(SUBJECTS))
    return [[float(share) for share in row] for row in drawn]


def tenants_passages(
    tenants: Sequence[str] = TENANTS, seed: int = 0, subjects: Sequence[Subject] = SUBJECTS
) -> TenantsPassages:
    """Every tenant's passages, by part. Files decide; the seed rules who gets which."""
    dealt = shares(len(tenants), seed)
    texts: dict[tuple[str, Split], list[tuple[str, int]]] = {
        (tenant, split): [] for tenant in tenants for split in SPLITS
    }
    for label, subject in enumerate(subjects):
        for file, passages in passages_of(subject):
            split = part_of(file.path)
            tenant = tenants[_place(file.path, dealt[label])]
            texts[tenant, split] += [(passage, label) for passage in passages]
    return {
        tenant: {
            split: Passages(
                tuple(t for t, _ in texts[tenant, split]), tuple(n for _, n in texts[tenant, split])
            )
            for split in SPLITS
        }
        for tenant in tenants
    }


def passages_of(
    subject: Subject, limit: int = _PER_SUBJECT
) -> Iterable[tuple[SourceFile, list[str]]]:
    """Files about a subject and their passages, in the order of their paths' hashes, up to a limit.

    Raises: ConfigError if the package is not installed, or says nothing.
    """
    paths = [
        path
        for path in python_files(subject.distribution)
        if path.as_posix().startswith(subject.folders) and not _is_test(path.as_posix())
    ]
    found, seen = 0, set[str]()
    for path in sorted(paths, key=_by_hash):
        if found >= limit:
            break
        file = SourceFile(path.as_posix(), Path(str(path.locate())).read_bytes())
        passages = [p for p in prose_of(file)[:_PER_FILE] if p not in seen]
        seen.update(passages)
        found += len(passages)
        if passages:
            yield file, passages
    if not found:
        raise ConfigError(
            f"subject {subject.name}: {subject.distribution} holds no prose under "
            f"{', '.join(subject.folders)}"
        )


def public_passages(limit: int = 4000) -> tuple[str, ...]:
    """The standard library's paragraphs: the owner's text for distillation, without labels."""
    library: Corpus = standard_library()
    found: list[str] = []
    for file in sorted(library.train, key=lambda file: _by_hash(PurePosixPath(file.path))):
        if len(found) >= limit:
            break
        if not _is_test(file.path):
            found += prose_of(file)
    return tuple(found[:limit])


def prose_of(file: SourceFile) -> list[str]:
    """The masked paragraphs of all docstrings of a file, each once."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.content)
    except (SyntaxError, ValueError):
        return []
    paragraphs: dict[str, None] = {}
    for node in _documented(tree):
        for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            if prose := masked(paragraph):
                paragraphs[prose] = None
    return list(paragraphs)


def _documented(node: _Documented) -> Iterable[_Documented]:
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child)


def masked(paragraph: str) -> str | None:
    """The paragraph without anything that names a library; None where it is no prose."""
    if _NOT_PROSE.search(paragraph):
        return None
    text = " ".join(line for line in paragraph.splitlines() if not _PARAMETER_LINE.match(line))
    for pattern in (_QUOTED, _IDENTIFIER, _LIBRARIES):
        text = pattern.sub("", text)
    text = re.sub(r"\s+([.,;:)])", r"\1", " ".join(text.split()))
    words = text.split()
    letters = sum(character.isalpha() or character == " " for character in text)
    if len(words) not in _WORDS or letters < 0.9 * len(text):
        return None
    return text


def label_counts(passages: Mapping[Split, Passages], classes: int) -> dict[Split, list[int]]:
    """How many passages of each class a tenant has, for the report."""
    return {
        split: np.bincount(np.array(part.labels, np.int64), minlength=classes).tolist()
        for split, part in passages.items()
    }


def part_of(path: str) -> Split:
    """The part that a file belongs to, by the hash of its path.

    Validation and test are the other way round than in `text.split_of`: recipes were first chosen
    on what is validation text here, and what is test text was not measured on before.
    """
    match split_of(path, _TEST, _VALIDATION):
        case "test":
            return "validation"
        case "validation":
            return "test"
        case "train":
            return "train"


def _by_hash(path: PurePosixPath) -> bytes:
    # Not the split's hash: a limit on files in that order would leave test files alone.
    return hashlib.sha256(b"order " + path.as_posix().encode()).digest()


def _place(path: str, dealt: Sequence[float]) -> int:
    # A hash of its own: the split into train, validation and test hashes the bare path.
    digest = hashlib.sha256(b"tenant " + path.encode()).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    return min(int(np.searchsorted(np.cumsum(dealt), point)), len(dealt) - 1)


def _is_test(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return any(part in ("tests", "test", "testing", "_examples") for part in parts) or parts[
        -1
    ].startswith("test_")
