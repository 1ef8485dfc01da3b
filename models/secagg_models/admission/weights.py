"""Figures of a model's tensors: norms, spectra, repeated and one-hot rows, biases, scales.

Every matrix is taken as (outputs, inputs). A matrix is compared with the same one in the other
layers, since an honest model's layers are of one kind and a crafted layer stands out; models of
one or two layers say little there. Nothing here runs the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from secagg_models.admission.report import Check, Worst
from secagg_models.families import layers_of

_ALIKE = 0.95
_ONE_HOT = 0.95
_EMBEDDING_ONE_HOT = 0.9
_DEAD = 0.01
_BLOCK = 2048
_EMBEDDINGS_AT_MOST = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """One linear map of a layer: `weight` is (outputs, inputs)."""

    layer: int
    role: str
    weight: torch.Tensor
    bias: torch.Tensor | None

    @property
    def where(self) -> str:
        """For a report."""
        return f"layer {self.layer} {self.role}"


@torch.no_grad()
def measure_weights(model: Any, worst: Worst, generator: torch.Generator) -> None:
    """All figures of this module. Tensors must be finite."""
    _measure_norms(model, worst)
    siblings: dict[str, list[tuple[Matrix, float, float]]] = defaultdict(list)
    for matrix in matrices_of(model):
        spectrum = torch.linalg.svdvals(matrix.weight)
        _measure_spectrum(matrix, spectrum, worst)
        _measure_rows(matrix, worst)
        _measure_bias(matrix, worst)
        scale = float(matrix.weight.square().mean().sqrt())
        siblings[matrix.role].append((matrix, scale, float(spectrum[0] / spectrum.median())))
    for family in siblings.values():
        _compare(family, worst)
    embeddings = transformer_of(model).get_input_embeddings().weight
    _measure_embeddings(embeddings.detach().float(), worst, generator)


def transformer_of(model: Any) -> Any:
    """Transformers' model: the model itself, or the encoder of a classifier."""
    return model if isinstance(model, PreTrainedModel) else model.encoder


def check_finite(model: Any) -> Check:
    """Every tensor must be finite; the rest measures nothing where one is not."""
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            return Check("finite", refusal=f"{name} has {count} values that are not finite")
    return Check("finite", fact=f"{len(tensors)} tensors")


def matrices_of(model: Any) -> Iterator[Matrix]:
    """All linear maps of all layers; a fused query, key and value counts as three."""
    for number, layer in enumerate(layers_of(model)):
        for role, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                yield _matrix(number, role, module.weight, module.bias)
            elif isinstance(module, Conv1D):
                parts = 3 if role.endswith("c_attn") else 1
                biases = module.bias.chunk(parts)
                for part, weight in enumerate(module.weight.T.chunk(parts)):
                    name = role if parts == 1 else f"{role}.{'qkv'[part]}"
                    yield _matrix(number, name, weight, biases[part])


def _matrix(layer: int, role: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Matrix:
    bias = None if bias is None else bias.detach().float()
    return Matrix(layer, role, weight.detach().float(), bias)


def nearest_cosine(rows: torch.Tensor) -> torch.Tensor:
    """For each row the largest |cosine| with any other row."""
    unit = nn.functional.normalize(rows, dim=1, eps=1e-30)
    best = []
    for start in range(0, len(unit), _BLOCK):
        cosine = (unit[start : start + _BLOCK] @ unit.T).abs()
        own = torch.arange(len(cosine))
        cosine[own, own + start] = 0
        best.append(cosine.amax(1))
    return torch.cat(best)


def _measure_spectrum(matrix: Matrix, spectrum: torch.Tensor, worst: Worst) -> None:
    worst.see("effective_rank", effective_rank(spectrum) / len(spectrum), matrix.where)
    if len(spectrum) > 1:
        worst.see("spike", float(spectrum[0] / spectrum[1]), matrix.where)


def effective_rank(spectrum: torch.Tensor) -> float:
    """exp(entropy) of the squared singular values; not a number where all are 0."""
    energy = spectrum.double().square()
    share = energy / energy.sum()
    return float(torch.exp(-(share * share.clamp_min(1e-300).log()).sum()))


def _measure_rows(matrix: Matrix, worst: Worst) -> None:
    sides = (("rows", matrix.weight), ("columns", matrix.weight.T))
    for side, vectors in sides:
        norms = vectors.norm(dim=1)
        median = norms.median()
        worst.see("dead_rows", float((norms <= _DEAD * median).float().mean()), matrix.where)
        worst.see("row_scale", float(norms.max() / median), matrix.where)
        alike = float((nearest_cosine(vectors) > _ALIKE).float().mean())
        worst.see(f"repeated_{side}", alike, matrix.where)
        single = float((peak_share(vectors) > _ONE_HOT).float().mean())
        worst.see(f"one_hot_{side}", single, matrix.where)


def peak_share(rows: torch.Tensor) -> torch.Tensor:
    """How much of each row's energy its largest entry has."""
    energy = rows.square()
    return energy.amax(1) / energy.sum(1).clamp_min(1e-30)


def _measure_bias(matrix: Matrix, worst: Worst) -> None:
    bias = matrix.bias
    if bias is None:
        return
    norms = matrix.weight.norm(dim=1)
    worst.see("bias_ratio", float((bias.abs() / norms).max()), matrix.where)
    if len(bias) > 2 and bool((bias != bias[0]).any()):
        ranks = bias.argsort().argsort().double()
        order = torch.corrcoef(torch.stack([ranks, torch.arange(len(bias)).double()]))[0, 1]
        worst.see("bias_order", abs(float(order)), matrix.where)


def _compare(family: list[tuple[Matrix, float, float]], worst: Worst) -> None:
    for column, name in ((1, "scale_siblings"), (2, "spike_siblings")):
        values = torch.tensor([float(entry[column]) for entry in family])  # type: ignore[arg-type]
        for entry, value in zip(family, values, strict=True):
            ratio = value / values.median()
            # A matrix without a spike among siblings that have one gives nothing away.
            apart = torch.maximum(ratio, 1 / ratio) if column == 1 else ratio
            worst.see(name, float(apart), entry[0].where)


def _measure_norms(model: Any, worst: Worst) -> None:
    levels: dict[str, list[tuple[str, float]]] = defaultdict(list)
    roles = {
        id(module): role for layer in layers_of(model) for role, module in layer.named_modules()
    }
    for name, module in model.named_modules():
        gain = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or gain is None:
            continue
        size = gain.detach().float().abs()
        median = size.median()
        worst.see("gain_ratio", float(size.max() / median), name)
        worst.see("gain_dead", float((size <= _DEAD * median).float().mean()), name)
        if (bias := getattr(module, "bias", None)) is not None:
            worst.see("norm_bias", float(bias.detach().float().abs().max() / median), name)
        if (role := roles.get(id(module))) is not None:
            levels[role].append((name, float(median)))
    for found in levels.values():
        middle = float(torch.tensor([level for _, level in found]).median())
        for name, level in found:
            ratio = level / middle if middle else float("nan")
            worst.see("gain_level", max(ratio, 1 / ratio) if ratio else float("nan"), name)


def _measure_embeddings(rows: torch.Tensor, worst: Worst, generator: torch.Generator) -> None:
    where, width = f"{len(rows)} input embeddings", rows.shape[1]
    norms = rows.norm(dim=1)
    worst.see("embedding_scale", float(norms.max() / norms.median()), where)
    single = float((peak_share(rows) > _EMBEDDING_ONE_HOT).float().mean())
    worst.see("embedding_one_hot", single, where)
    if len(rows) > _EMBEDDINGS_AT_MOST:
        rows = rows[torch.randperm(len(rows), generator=generator)[:_EMBEDDINGS_AT_MOST]]
    unit = nn.functional.normalize(rows, dim=1, eps=1e-30)
    # The mean of (u_i . u_j)^2 over i != j, from the (width x width) moments.
    total = (unit.T @ unit).double().square().sum() - len(unit)
    overlap = float(total) / (len(unit) * (len(unit) - 1))
    worst.see("embedding_overlap", overlap * width, where)
