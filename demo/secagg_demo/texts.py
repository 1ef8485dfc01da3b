"""The tenants and their private text: each gets the source of one installed, pinned package.

The packages stand for companies whose code bases differ; none is vendored in the standard library,
whose source the base was pretrained on. With more tenants than packages, a package's files are
dealt to several tenants by the hash of their path, so no file lies at two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from secagg.errors import ConfigError
from secagg_models.text import Corpus, corpus_of_folder, corpus_of_package


@dataclass(frozen=True, slots=True)
class TenantText:
    """One tenant and where its text comes from: part `part` of `parts` of a package's files."""

    tenant: str
    package: str
    version: str
    part: int
    parts: int

    @property
    def source(self) -> str:
        """For people: which package, which part of it."""
        piece = "" if self.parts == 1 else f", part {self.part + 1} of {self.parts} by file"
        return f"{self.package} {self.version}{piece}"


def assign(packages: Sequence[str], tenants: int) -> tuple[TenantText, ...]:
    """Tenant k gets package k; when packages run out, they are split further, in turn.

    Raises:
        ConfigError: a package is not installed.
    """
    parts = [len(range(place, tenants, len(packages))) for place in range(len(packages))]
    return tuple(
        TenantText(
            tenant=_name(packages[place], part, parts[place]),
            package=packages[place],
            version=_version(packages[place]),
            part=part,
            parts=parts[place],
        )
        for number in range(tenants)
        for part, place in [divmod(number, len(packages))]
    )


def lay_out(text: TenantText, folder: Path) -> Corpus:
    """Copy the tenant's files into its own folder, as if it were its checkout; read them back."""
    whole = corpus_of_package(text.package)
    for file in chain(whole.train, whole.validation, whole.test):
        if _part_of(file.path, text.parts) == text.part:
            target = folder / PurePosixPath(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.content)
    return corpus_of_folder(folder, name=text.tenant)


def summary(text: TenantText, corpus: Corpus) -> dict[str, Any]:
    """For the report: what the text is, and every file with its hash, by part of the split."""
    parts: Mapping[str, Sequence[Mapping[str, Any]]] = corpus.listing()
    return {
        "tenant": text.tenant,
        "source": text.source,
        "package": text.package,
        "version": text.version,
        "files": {split: len(files) for split, files in parts.items()},
        "bytes": {split: sum(file["bytes"] for file in files) for split, files in parts.items()},
        "listing": parts,
    }


def _name(package: str, part: int, parts: int) -> str:
    name = package.lower().replace("_", "-")
    return name if parts == 1 else f"{name}-{part + 1}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"the package {package}, whose source is a tenant's text, is not installed; "
            "run: pip install 'secagg[all]'"
        ) from None


def _part_of(path: str, parts: int) -> int:
    # A hash of its own: the split into train, validation and test hashes the bare path.
    digest = hashlib.sha256(b"part " + path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % parts
