"""Audit 5: what all packages that this owner ever published give away together.

Every package shows its edge layers and brings its kept layers near. Another subset of layers in a
later package adds to that, until the subsets cover the model; a second distillation of the same
subset may lie closer to the originals, and the mean of two lies closer than either, since what
distillation moved differs. So: one subset of layers for ever, and one distillation of it.

Packages of models with another layout (layer count, names, shapes) are taken for other models. A
fine-tuned model of the same layout counts as the same one: most of its weights are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secagg.canonical import Writer
from secagg.errors import ConfigError
from secagg_models.audit import matching
from secagg_models.audit.verbatim import VerbatimResult
from secagg_models.families import layers_of
from secagg_models.split import Split


@dataclass(frozen=True, slots=True)
class Release:
    """One package as the release log keeps it; digests in hex.

    `cosines` has the best cosine of every shipped middle matrix, by "layer.name" of the full model
    as the split pairs them; `verbatim` has the parameters of originals that can be read off, by
    the same names, edge layers aside. A package that was forced past the gate without an audit has
    neither, nor a layout digest: it is taken for the same model where the depth is the same, and
    for further from the originals than anything that was measured.
    """

    manifest_digest: str
    full_digest: str
    layout_digest: str
    split: Split
    layers_parameters: int
    edge_parameters: int
    cosines: Mapping[str, float]
    verbatim: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """JSON values: a line of the log."""
        return asdict(self) | {"split": self.split.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Release:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not such a line.
        """
        try:
            fields = dict(value)
            split = Split.from_json(fields.pop("split"))
            return cls(split=split, **fields)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"a release log's line is not a release: {error}") from None


def release_of(
    full: Any, split: Split, found: VerbatimResult, *, manifest_digest: str, full_digest: str
) -> Release:
    """What the log keeps of a package that was audited for verbatim copies."""
    layers = layers_of(full)
    cosines = {
        f"{split.full_index(match.layer)}.{match.name}": match.cosine for match in found.matches
    }
    verbatim = {
        f"{match.full_layer}.{match.name}": match.parameters
        for match in found.matches
        if match.how != "no"
    }
    edge = sum(
        parameter.numel()
        for layer in split.edge_layers
        for parameter in layers[split.full_index(layer)].parameters()
    )
    return Release(
        manifest_digest, full_digest, _layout_digest(full), split, found.layers_parameters, edge,
        cosines, verbatim,
    )  # fmt: skip


def _layout_digest(full: Any) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(full.named_parameters()):
        header = Writer().tag("layout").text(name).u32(parameter.ndim)
        for side in parameter.shape:
            header.u64(side)
        digest.update(header.finish())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """`others` are earlier packages of the same model with another subset, `closer` those that
    this package comes closer than (alone, or averaged with them). Digests are of manifests."""

    releases: int
    related: int
    layers: int
    shown_layers: tuple[int, ...]
    layers_share: float
    others: tuple[str, ...]
    closer: tuple[str, ...]
    subsets: tuple[tuple[str, tuple[int, ...]], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def audit_release(
    current: Release,
    earlier: Sequence[Release],
    *,
    full: Any | None = None,
    emulators: Mapping[str, Any] | None = None,
    closer_by: float = 0.005,
) -> ReleaseResult:
    """Hold a package against all that were published before it.

    `emulators` has models of this and of earlier packages by manifest digest, where they are at
    hand; then means of equal subsets are held against the full model as well.
    """
    known = {release.manifest_digest: release for release in earlier}
    known.pop(current.manifest_digest, None)
    related = [release for release in known.values() if _same_model(release, current)]
    same = [r for r in related if r.split == current.split]
    closer = [r.manifest_digest for r in same if _closer(current.cosines, r.cosines, closer_by)]
    if full is not None and emulators is not None:
        closer += _closer_on_average(current, same, full, emulators, closer_by)
    everything = [*related, current]
    return ReleaseResult(
        releases=len(known) + 1,
        related=len(related),
        layers=current.split.layers,
        shown_layers=tuple(sorted({layer for r in everything for layer in r.split.full_layers})),
        layers_share=_shown(everything) / max(1, current.layers_parameters),
        others=tuple(r.manifest_digest for r in related if r.split != current.split),
        closer=tuple(sorted(set(closer))),
        subsets=tuple((r.manifest_digest, r.split.full_layers) for r in everything),
    )


def _same_model(release: Release, current: Release) -> bool:
    if not release.layout_digest:
        return release.split.layers == current.split.layers
    return release.layout_digest == current.layout_digest


def _closer(now: Mapping[str, float], before: Mapping[str, float], by: float) -> bool:
    return any(value > before.get(name, -1.0) + by for name, value in now.items())


def _closer_on_average(
    current: Release,
    same: Sequence[Release],
    full: Any,
    emulators: Mapping[str, Any],
    by: float,
) -> list[str]:
    if current.manifest_digest not in emulators:
        return []
    found = []
    for release in same:
        if release.manifest_digest not in emulators:
            continue
        pair = [emulators[r.manifest_digest] for r in (current, release)]
        mean = _mean_cosines(pair, full, current.split)
        best = {
            name: max(current.cosines.get(name, -1.0), release.cosines.get(name, -1.0))
            for name in mean
        }
        if _closer(mean, best, by):
            found.append(release.manifest_digest)
    return found


def _mean_cosines(models: Sequence[Any], full: Any, split: Split) -> dict[str, float]:
    """Of the mean of several emulators' middle matrices with the originals that they stand for."""
    heads, originals = matching.Heads.of(full), layers_of(full)
    cosines = {}
    for layer in split.middle_layers:
        number = split.full_index(layer)
        original = matching.matrices_of(originals[number], heads)
        parts = [matching.matrices_of(layers_of(model)[layer], heads) for model in models]
        for name, rows in original.rows.items():
            mean = sum(part.rows[name] for part in parts) / len(parts)
            cosines[f"{number}.{name}"] = matching.cosine(mean, rows)  # type: ignore[arg-type]
    return cosines


def _shown(releases: Sequence[Release]) -> int:
    """Parameters of original layers that can be read off from all of them, each once.

    Releases of one layout have layers of equal size, up to what the first and last layer may have
    more; an edge layer of one package counts whole.
    """
    edges = {
        release.split.full_index(layer)
        for release in releases
        for layer in release.split.edge_layers
    }
    edge_parameters = max(release.edge_parameters for release in releases)
    verbatim: dict[str, int] = {}
    for release in releases:
        verbatim |= {
            name: size
            for name, size in release.verbatim.items()
            if int(name.partition(".")[0]) not in edges
        }
    return edge_parameters + sum(verbatim.values())
