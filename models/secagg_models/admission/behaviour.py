"""Figures of what a model's layers do with tokens: pass-through, attention, imprinting units.

The model runs on a tenant's own text and on random tokens. For attention and MLP of every layer it
is measured what they add to the stream beside them (their input, after its norm, and what passes
by): PEFTLeak (arXiv:2506.04453) sets both to the identity so that inputs arrive unchanged at the
weights whose update leaves; an imprint (arXiv:2110.13057) makes the MLP's units functions of one
projection. Weights alone do not show either behind a change of basis; behaviour does.

Not here: gradients, which honest models' small batches leak through as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

import torch

from secagg_models.admission.report import Worst
from secagg_models.admission.weights import effective_rank, transformer_of
from secagg_models.families import hidden_of, layers_of

_ALIKE = 0.95
_MOST_UNITS = 4096
_LEAST_TOKENS = 100
Part = Literal["attention", "mlp"]
# By the end of a module's name: where a part takes its input, and where it gives its output.
_ENTRY: Final[Mapping[str, Part]] = {
    "self_attn.q_proj": "attention", "attn.c_attn": "attention",
    "attention.self.query": "attention",
    "mlp.up_proj": "mlp", "mlp.c_fc": "mlp", "fc1": "mlp", "intermediate.dense": "mlp",
}  # fmt: skip
_EXIT: Final[Mapping[str, Part]] = {
    "self_attn.o_proj": "attention", "self_attn.out_proj": "attention",
    "attn.c_proj": "attention", "attention.output.dense": "attention",
    "mlp.down_proj": "mlp", "mlp.c_proj": "mlp", "fc2": "mlp", "output.dense": "mlp",
}  # fmt: skip
_Seen = dict[tuple[int, str], torch.Tensor]


@torch.no_grad()
def measure_behaviour(model: Any, samples: Mapping[str, torch.Tensor], worst: Worst) -> None:
    """All figures of this module on (B, T) token ids by the name of the sample."""
    inner = transformer_of(model)
    for name, ids in samples.items():
        various = _first_of_each(ids)
        with _watched(model) as seen, _eager(inner):
            scores = inner(input_ids=ids, output_attentions=True, use_cache=False).attentions
        for layer in range(len(layers_of(model))):
            where = f"layer {layer} on {name}"
            _measure_part(seen, layer, "attention", where, worst)
            _measure_part(seen, layer, "mlp", where, worst)
            if len(various) >= _LEAST_TOKENS:
                _measure_units(seen[layer, "units"][various], where, worst)
            _measure_attention(scores[layer].float(), where, worst)


def identity_share(before: torch.Tensor, after: torch.Tensor) -> float:
    """How much of the variance of `after` is `before` times one number; both (tokens, width)."""
    before, after = before - before.mean(0), after - after.mean(0)
    both = (before.square().sum() * after.square().sum()).clamp_min(1e-30)
    return float((before * after).sum().square() / both)


def _measure_part(seen: _Seen, layer: int, part: Part, where: str, worst: Worst) -> None:
    before, after, stream = (seen[layer, f"{part} {end}"] for end in ("in", "out", "stream"))
    share = max(identity_share(before, after), identity_share(stream, after))
    worst.see(f"identity_{part}", share, where)
    worst.see("contribution", float(after.norm() / stream.norm()), f"{part} of {where}")
    varying = (after - after.mean(0)).norm() / after.norm()
    worst.see("constant_share", float(varying), f"{part} of {where}")


def _measure_units(units: torch.Tensor, where: str, worst: Worst) -> None:
    units = units[:, :_MOST_UNITS]
    centred = units - units.mean(0)
    unit = centred / centred.norm(dim=0).clamp_min(1e-30)
    alike = (unit.T @ unit).abs()
    alike.fill_diagonal_(0)
    worst.see("alike_units", float((alike.amax(1) > _ALIKE).float().mean()), where)
    worst.see("unit_dimensions", effective_rank(torch.linalg.svdvals(unit)), where)


def _first_of_each(ids: torch.Tensor) -> torch.Tensor:
    """Where each token stands first. In a text of few tokens all units of any model go together."""
    places = {token: place for place, token in reversed(list(enumerate(ids.flatten().tolist())))}
    return torch.tensor(sorted(places.values()))


def _measure_attention(weights: torch.Tensor, where: str, worst: Worst) -> None:
    """`weights` is (B, H, T, T). Scores are known from them but for a constant in each row."""
    visible = weights.amax((0, 1)) > 0
    scores = weights.clamp_min(1e-30).log() * visible
    scores = (scores - scores.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)) * visible
    by_position = scores.mean(0).square().sum((1, 2))  # (H,): alike in all texts of the batch
    content = 1 - by_position / scores.square().mean(0).sum((1, 2))
    worst.see("attention_content", _middle(content), where)
    later = weights.shape[-1] // 4
    to_itself = weights.diagonal(dim1=-2, dim2=-1)[..., later:].mean((0, 2))
    worst.see("attention_self", _middle(to_itself), where)


def _middle(values: torch.Tensor) -> float:
    """The median; not a number where one is not, since no order is known then."""
    return float("nan") if bool(values.isnan().any()) else float(values.median())


@contextmanager
def _watched(model: Any) -> Iterator[_Seen]:
    """Within it, what every part of every layer takes and gives is kept, as (tokens, width)."""
    seen: _Seen = {}
    handles = []
    for number, layer in enumerate(layers_of(model)):
        handles.append(layer.register_forward_pre_hook(_keep_stream(seen, number)))
        for name, module in layer.named_modules():
            if (part := _part(name, _ENTRY)) is not None:
                handles.append(module.register_forward_hook(_keep_entry(seen, number, part)))
            if (part := _part(name, _EXIT)) is not None:
                handles.append(module.register_forward_hook(_keep_exit(seen, number, part)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _part(name: str, table: Mapping[str, Part]) -> Part | None:
    # "attention.output.dense" ends with "output.dense" too: the longest name counts.
    ends = [end for end in table if name == end or name.endswith(f".{end}")]
    return table[max(ends, key=len)] if ends else None


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float().reshape(-1, tensor.shape[-1])


def _keep_stream(seen: _Seen, layer: int) -> Any:
    def keep(module: Any, inputs: tuple[Any, ...]) -> None:
        seen[layer, "attention stream"] = _flat(hidden_of(inputs))

    return keep


def _keep_entry(seen: _Seen, layer: int, part: Part) -> Any:
    def keep(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        seen[layer, f"{part} in"] = _flat(inputs[0])
        if part == "mlp":
            seen[layer, "units"] = _flat(output)
            # Near enough for every family: before the MLP there is the stream and attention's sum.
            passed = seen[layer, "attention stream"] + seen[layer, "attention out"]
            seen[layer, "mlp stream"] = passed

    return keep


def _keep_exit(seen: _Seen, layer: int, part: Part) -> Any:
    def keep(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        seen[layer, f"{part} out"] = _flat(output)

    return keep


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Within it, attention gives its weights."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
