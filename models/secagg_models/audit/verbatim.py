"""Audit 1: what of the full model stands in the package as it is.

A matrix of the shipped middle is verbatim if it equals a matrix of the same name in any layer of
the full model, or if its cosine with one is above the threshold (0.99), as it stands or with
neurons and heads put in the best order. 0.99 leaves 14% of the norm as difference: less than what
fine-tuning moves, so such a copy is the original to whoever finds it. A whole layer would be too
coarse (one untouched matrix hides among changed ones), so matrices are the grain of the verdict.
Rows are counted beside it: a matrix below the threshold may still have units (neurons, heads) that
nothing moved.

Vectors (biases, gains of norms) are counted apart and only if bit-identical and not constant: they
hold under 1% of a layer, their cosine is near 1 between any two models, and a gain of ones says
nothing. Edge layers are verbatim by design; the share of all layers' parameters that is verbatim
counts them, every original parameter once. Embeddings and heads ship too and are no layers: their
size is told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from secagg_models.audit import matching
from secagg_models.families import layers_of
from secagg_models.split import Split

How = Literal["identical", "plain", "aligned", "no"]


@dataclass(frozen=True, slots=True)
class MatrixMatch:
    """A shipped middle matrix and the original that is most like it.

    `layer` is the emulator's and `full_layer` the full model's; `cosine` is the best one found,
    `verbatim_units` the largest share of units that are those of one original.
    """

    layer: int
    name: str
    parameters: int
    full_layer: int
    cosine: float
    how: How
    verbatim_units: float


@dataclass(frozen=True, slots=True)
class VerbatimResult:
    """Counts are of parameters. `nearest[j][i]` is the mean cosine of middle layer j with full
    layer i, in the order of the matrices."""

    matches: tuple[MatrixMatch, ...]
    threshold: float
    middle_parameters: int
    middle_verbatim: int
    middle_units_verbatim: float
    middle_vectors: int
    middle_vectors_identical: int
    layers_parameters: int
    layers_verbatim: int
    outside_layers: int
    edges_identical: bool
    nearest: tuple[tuple[float, ...], ...]

    @property
    def middle_share(self) -> float:
        """The share of the shipped middle's matrices that is verbatim."""
        return self.middle_verbatim / max(1, self.middle_parameters)

    @property
    def units_share(self) -> float:
        """The share of the shipped middle's matrices that lies in verbatim units."""
        return self.middle_units_verbatim / max(1, self.middle_parameters)

    @property
    def layers_share(self) -> float:
        """The share of all the full model's layers that the package shows as it is."""
        return self.layers_verbatim / max(1, self.layers_parameters)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        shares = {
            "middle_share": self.middle_share,
            "units_share": self.units_share,
            "layers_share": self.layers_share,
        }
        return asdict(self) | shares


def audit_verbatim(
    full: Any, emulator: Any, split: Split, *, threshold: float = 0.99
) -> VerbatimResult:
    """Compare every shipped middle layer with every layer of the full model."""
    heads = matching.Heads.of(full)
    full_layers, shipped = layers_of(full), layers_of(emulator)
    originals = [matching.matrices_of(layer, heads) for layer in full_layers]
    matches: list[MatrixMatch] = []
    nearest: list[tuple[float, ...]] = []
    for layer in split.middle_layers:
        found = matching.matrices_of(shipped[layer], heads)
        rows, means = _match_layer(layer, found, originals, threshold)
        matches += rows
        nearest.append(means)
    vectors, same = _vectors(full_layers, [shipped[layer] for layer in split.middle_layers])
    verbatim = [match for match in matches if match.how != "no"]
    return VerbatimResult(
        matches=tuple(matches),
        threshold=threshold,
        middle_parameters=sum(match.parameters for match in matches),
        middle_verbatim=sum(match.parameters for match in verbatim),
        middle_units_verbatim=sum(match.parameters * match.verbatim_units for match in matches),
        middle_vectors=vectors,
        middle_vectors_identical=same,
        layers_parameters=_count(full_layers),
        layers_verbatim=_disclosed(full_layers, split, verbatim),
        outside_layers=sum(p.numel() for p in full.parameters()) - _count(full_layers),
        edges_identical=_edges_identical(full_layers, shipped, split),
        nearest=tuple(nearest),
    )


def _match_layer(
    layer: int, found: matching.Matrices, originals: list[matching.Matrices], threshold: float
) -> tuple[list[MatrixMatch], tuple[float, ...]]:
    best: dict[str, MatrixMatch] = {}
    means = []
    for number, original in enumerate(originals):
        plain = matching.plain_cosines(found, original)
        means.append(round(sum(plain.values()) / max(1, len(plain)), 5))
        for how, candidate in _candidates(found, original, threshold):
            for match in _compare(layer, number, how, candidate, original, threshold):
                known = best.get(match.name, match)
                stronger = match if _strength(match) > _strength(known) else known
                units = max(match.verbatim_units, known.verbatim_units)
                best[match.name] = replace(stronger, verbatim_units=units)
    return [best[name] for name in sorted(best)], tuple(means)


def _strength(match: MatrixMatch) -> tuple[bool, float]:
    return match.how == "identical", match.cosine


def _candidates(
    found: matching.Matrices, original: matching.Matrices, threshold: float
) -> list[tuple[How, matching.Matrices]]:
    """As it stands; and in the best order, where some order could reach the threshold at all."""
    candidates: list[tuple[How, matching.Matrices]] = [("plain", found)]
    if matching.best_possible(found, original) > threshold:
        candidates.append(("aligned", matching.align(found, original)))
    return candidates


def _compare(
    layer: int,
    number: int,
    how: How,
    candidate: matching.Matrices,
    original: matching.Matrices,
    threshold: float,
) -> list[MatrixMatch]:
    matches = []
    for name, rows in candidate.rows.items():
        reference = original.rows.get(name)
        if reference is None or reference.shape != rows.shape:
            continue
        value = matching.cosine(rows, reference)
        kind: How = how if value > threshold else "no"
        if torch.equal(rows, reference):
            kind = "identical"
        share = float((_row_cosines(rows, reference) > threshold).float().mean())
        matches.append(MatrixMatch(layer, name, rows.numel(), number, round(value, 6), kind, share))
    return matches


def _row_cosines(rows: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    products = (rows * reference).sum(1)
    norms = rows.norm(dim=1) * reference.norm(dim=1)
    return torch.where(norms > 0, products / norms.clamp_min(1e-30), torch.zeros_like(norms))


def _vectors(full_layers: torch.nn.ModuleList, middle: list[torch.nn.Module]) -> tuple[int, int]:
    total = same = 0
    known: dict[str, list[torch.Tensor]] = {}
    for layer in full_layers:
        for name, vector in _vectors_of(layer).items():
            known.setdefault(name, []).append(vector)
    for layer in middle:
        for name, vector in _vectors_of(layer).items():
            total += vector.numel()
            constant = bool((vector == vector[0]).all())
            if not constant and any(torch.equal(vector, other) for other in known.get(name, [])):
                same += vector.numel()
    return total, same


def _vectors_of(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().float().cpu()
        for name, parameter in layer.named_parameters()
        if parameter.ndim < 2 and parameter.numel()
    }


def _disclosed(full_layers: torch.nn.ModuleList, split: Split, verbatim: list[MatrixMatch]) -> int:
    """Parameters of the full model's layers that can be read off, each counted once."""
    edges = {split.full_index(layer) for layer in split.edge_layers}
    total = sum(_count([full_layers[layer]]) for layer in edges)
    sizes: Mapping[tuple[int, str], int] = {
        (match.full_layer, match.name): match.parameters
        for match in verbatim
        if match.full_layer not in edges
    }
    return total + sum(sizes.values())


def _edges_identical(
    full_layers: torch.nn.ModuleList, shipped: torch.nn.ModuleList, split: Split
) -> bool:
    for layer in split.edge_layers:
        ours, theirs = (
            full_layers[split.full_index(layer)].state_dict(),
            shipped[layer].state_dict(),
        )
        if ours.keys() != theirs.keys():
            return False
        if not all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours):
            return False
    return True


def _count(layers: Any) -> int:
    return sum(parameter.numel() for layer in layers for parameter in layer.parameters())
