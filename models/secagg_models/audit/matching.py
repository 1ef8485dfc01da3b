"""Two layers compared up to what changes nothing: the order of MLP neurons and attention heads.

A layer computes the same with its neurons or heads in any other order, so a copy may be shuffled.
The best order is an assignment problem (Kuhn 1955), solved by SciPy; the residual stream itself
needs no alignment, since an emulator carries the full model's embeddings and edge layers. A table
says for every family along which side of which matrix its units lie.

Not undone here: scalings that cancel between two matrices, rotations within a head, gains moved
from a norm into a matrix. Cosines ignore one scale for a whole matrix or row, and nothing more. An
owner audits its own emulator; distillation does not do these things by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError

Unit = Literal["neuron", "head", "group", "fused"]

# Which side of a matrix its units lie along: 0 rows, 1 columns. "group" is a key/value head, which
# serves several query heads where there are fewer of them; "fused" is query, key, value in one.
_UNITS: Final[Mapping[str, tuple[Unit, int]]] = {
    "mlp.gate_proj.weight": ("neuron", 0),
    "mlp.up_proj.weight": ("neuron", 0),
    "mlp.down_proj.weight": ("neuron", 1),
    "self_attn.q_proj.weight": ("head", 0),
    "self_attn.k_proj.weight": ("group", 0),
    "self_attn.v_proj.weight": ("group", 0),
    "self_attn.o_proj.weight": ("head", 1),
    "self_attn.out_proj.weight": ("head", 1),
    "fc1.weight": ("neuron", 0),
    "fc2.weight": ("neuron", 1),
    "attn.c_attn.weight": ("fused", 1),
    "attn.c_proj.weight": ("head", 0),
    "mlp.c_fc.weight": ("neuron", 1),
    "mlp.c_proj.weight": ("neuron", 0),
    "attention.self.query.weight": ("head", 0),
    "attention.self.key.weight": ("group", 0),
    "attention.self.value.weight": ("group", 0),
    "attention.output.dense.weight": ("head", 1),
    "intermediate.dense.weight": ("neuron", 0),
    "output.dense.weight": ("neuron", 1),
}


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, and key/value heads, of which each serves `query // key_value`."""

    query: int
    key_value: int

    @classmethod
    def of(cls, model: Any) -> Heads:
        """As the model's configuration says."""
        query = int(model.config.num_attention_heads)
        return cls(query, int(getattr(model.config, "num_key_value_heads", None) or query))


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """A layer's matrices by name, float32, each with its units along the rows and a view by unit.

    `rows` holds (units, values); a matrix without units keeps its own rows.
    """

    rows: Mapping[str, torch.Tensor]
    kinds: Mapping[str, Unit | None]
    heads: Heads


def matrices_of(layer: torch.nn.Module, heads: Heads) -> Matrices:
    """The layer's parameters with two or more sides."""
    rows: dict[str, torch.Tensor] = {}
    kinds: dict[str, Unit | None] = {}
    for name, parameter in layer.named_parameters():
        if parameter.ndim < 2:
            continue
        weight = parameter.detach().float().cpu()
        unit, side = _UNITS.get(name, (None, 0))
        turned = weight.T if side == 1 else weight
        if unit == "fused":
            for part, piece in zip("qkv", turned.chunk(3), strict=True):
                kinds[f"{name}.{part}"] = "head" if part == "q" else "group"
                rows[f"{name}.{part}"] = _by_unit(piece, kinds[f"{name}.{part}"], heads)
        else:
            kinds[name] = unit
            rows[name] = _by_unit(turned, unit, heads)
    return Matrices(rows, kinds, heads)


def _by_unit(turned: torch.Tensor, unit: Unit | None, heads: Heads) -> torch.Tensor:
    match unit:
        case "head":
            return turned.reshape(heads.query, -1)
        case "group":
            return turned.reshape(heads.key_value, -1)
        case _:
            return turned.reshape(turned.shape[0], -1)


def cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of two tensors taken as vectors; 0 where one is zero or their shapes differ."""
    if left.shape != right.shape:
        return 0.0
    a, b = left.reshape(-1).double(), right.reshape(-1).double()
    norms = float(a.norm() * b.norm())
    return float(torch.dot(a, b)) / norms if norms > 0 else 0.0


def plain_cosines(found: Matrices, original: Matrices) -> dict[str, float]:
    """Of every matrix with the one of the same name, in the order that it has."""
    return {
        name: cosine(rows, original.rows[name])
        for name, rows in found.rows.items()
        if name in original.rows
    }


def align(found: Matrices, original: Matrices) -> Matrices:
    """`found` with its neurons and heads in the order that is most like `original`."""
    order = _orders(found, original)
    rows = {
        name: part if (kind := found.kinds[name]) is None else part[order[kind]]
        for name, part in found.rows.items()
    }
    return Matrices(rows, found.kinds, found.heads)


def _orders(found: Matrices, original: Matrices) -> dict[str, torch.Tensor]:
    heads = found.heads
    neurons = _assignment(_likeness(found, original, ("neuron",)))
    if heads.query == heads.key_value:
        order = _assignment(_likeness(found, original, ("head", "group")))
        return {"neuron": neurons, "head": order, "group": order}
    groups = _assignment(_likeness(found, original, ("group",)))
    queries = _likeness(found, original, ("head",))
    each = heads.query // heads.key_value
    order = torch.empty(heads.query, dtype=torch.long)
    for place, group in enumerate(groups.tolist()):
        mine = slice(place * each, (place + 1) * each)
        theirs = slice(group * each, (group + 1) * each)
        order[mine] = group * each + _assignment(queries[mine, theirs])
    return {"neuron": neurons, "head": order, "group": groups}


def _likeness(found: Matrices, original: Matrices, units: Sequence[str]) -> torch.Tensor:
    """(units of the original, units found): inner products over all matrices of this kind.

    The order that maximises their sum also maximises the cosine, since norms do not change.
    """
    total = torch.zeros(0, 0)
    for name, kind in found.kinds.items():
        if kind not in units or name not in original.rows:
            continue
        product = original.rows[name] @ found.rows[name].T
        total = product if total.numel() == 0 else total + product
    return total


def _assignment(likeness: torch.Tensor) -> torch.Tensor:
    """For every row the column that it takes, the sum being the largest."""
    if likeness.numel() == 0:
        return torch.zeros(0, dtype=torch.long)
    greedy = likeness.argmax(1)
    if len(torch.unique(greedy)) == len(greedy):
        return greedy  # everybody's first choice at once is the optimum
    return torch.from_numpy(_solve(likeness.double().numpy()))


def _solve(likeness: NDArray[np.float64]) -> NDArray[np.int64]:
    require_scipy()
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(likeness, maximize=True)
    return np.asarray(columns, np.int64)


def require_scipy() -> None:
    """Raises: ConfigError that says how to get it."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the audits align neurons and heads with SciPy, which is not installed; "
            "pip install 'secagg[audit]'"
        ) from None


def best_possible(found: Matrices, original: Matrices) -> float:
    """An upper bound on what `align` can reach as the cosine of any unit-bearing matrix.

    Every unit takes its best partner whether or not another took it; so if this is low, no
    assignment has to be solved.
    """
    bound = 0.0
    for name, kind in found.kinds.items():
        if kind is None or name not in original.rows:
            continue
        a, b = original.rows[name], found.rows[name]
        if a.shape != b.shape:
            continue
        best = float((a @ b.T).max(1).values.clamp_min(0).double().sum())
        norms = float(a.double().norm() * b.double().norm())
        bound = max(bound, best / norms if norms > 0 else 0.0)
    return bound
