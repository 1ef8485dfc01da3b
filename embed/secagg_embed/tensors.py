"""Named arrays, as training code has them, and the flat vector that a round protects.

NumPy arrays and PyTorch tensors are taken alike; PyTorch is never imported. Only floating-point
tensors are averaged. Integers and booleans (counters, masks) stay as they were before the round:
their mean has no meaning, and their sum would tell more than a mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.errors import ConfigError
from secagg.layout import Layout, TensorSpec, explain_difference
from secagg.plan import RoundPlan

Tensors = Mapping[str, Any]
"""Names to NumPy arrays, or to anything with PyTorch's `detach`, `cpu` and `numpy`."""


def layout_of(tensors: Tensors) -> Layout:
    """The layout of the floating-point tensors, in the order of their names.

    Raises:
        ConfigError: there is none, or one of a kind that cannot be averaged (complex numbers).
    """
    named = {name: _dtype(tensors[name], name) for name in sorted(tensors)}
    specs = [
        TensorSpec(name, tuple(tensors[name].shape), dtype)
        for name, dtype in named.items()
        if not _stays(name, dtype)
    ]
    if not specs:
        raise ConfigError("there is no floating-point tensor to average; train one at least")
    return Layout(tuple(specs))


def flatten(tensors: Tensors, layout: Layout) -> NDArray[np.float32]:
    """(layout.size,) float32: the layout's tensors, row-major and back to back.

    Raises:
        ConfigError: names the tensors that are missing, unexpected or of another shape or dtype.
    """
    _require(tensors, layout)
    vector = np.empty(layout.size, np.float32)
    for spec, place in _places(layout):
        vector[place] = _flat(tensors[spec.name])
    return vector


def difference(after: Tensors, before: Tensors, layout: Layout) -> NDArray[np.float32]:
    """(layout.size,) float32: what training changed, after - before.

    Raises:
        ConfigError: as `flatten`, of either of the two.
    """
    vector = flatten(after, layout)
    _require(before, layout)
    for spec, place in _places(layout):
        vector[place] -= _flat(before[spec.name])
    return vector


def unflatten(
    vector: NDArray[np.floating[Any]], layout: Layout
) -> dict[str, NDArray[np.floating[Any]]]:
    """The layout's tensors as views of `vector`, (layout.size,)."""
    if vector.shape != (layout.size,):
        raise ConfigError(
            f"a vector of shape {vector.shape} does not fill the layout's {layout.size} coordinates"
        )
    return {spec.name: vector[place].reshape(spec.shape) for spec, place in _places(layout)}


def added(before: Tensors, vector: NDArray[np.floating[Any]], layout: Layout) -> dict[str, Any]:
    """`before` with the delta in `vector` added; each tensor keeps its kind, dtype and shape."""
    _require(before, layout)
    deltas = unflatten(vector, layout)
    return {
        name: _like(tensor, deltas[name]) if name in deltas else tensor
        for name, tensor in before.items()
    }


def model_digest(tensors: Tensors, settings: bytes = b"") -> bytes:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of names.

    A tensor has the same digest in NumPy and in PyTorch. This is the model that a plan names:
    tenants that are shown different models are in different rounds, and nothing opens.

    `settings` is whatever else the coordinator tells tenants to train with (a learning rate, the
    number of steps), in bytes of your own. A sum hides an update only among others: with a rate of
    0.1 for one tenant and 0 for the rest it would be that one's.
    """
    digest = hashlib.sha256(Writer().tag("model").blob(settings).finish())
    for name in sorted(tensors):
        tensor = tensors[name]
        head = Writer().tag("tensor").text(name).text(_dtype(tensor)).u32(len(tensor.shape))
        for side in tensor.shape:
            head.u64(int(side))
        digest.update(head.finish())
        digest.update(_bytes_of(tensor))
    return digest.digest()


def require_model(plan: RoundPlan, tensors: Tensors, settings: bytes = b"") -> None:
    """Demand that these are the tensors that the plan names, before training on them (C47).

    Raises:
        ConfigError: the coordinator sent another model, or other settings, to this tenant than it
            announced to all.
    """
    if model_digest(tensors, settings) != plan.model_digest:
        raise ConfigError(
            "the tensors and settings are not the model that the round's plan names: the "
            "coordinator shows this tenant another model than the others, or the training changed "
            "the tensors in place (train on a copy)"
        )


def require_finite_model(tensors: Tensors, layout: Layout) -> None:
    """Demand a model that can be trained.

    Raises:
        ConfigError: values are NaN, infinite or beyond float32; names the tensors.
    """
    named = (spec.name for spec in layout.tensors)
    if broken := [name for name in named if not np.isfinite(_flat(tensors[name])).all()]:
        raise ConfigError(f"the model has NaN or infinite values in {broken[:5]}; take another")


def _require(tensors: Tensors, layout: Layout) -> None:
    ours = layout_of(tensors)
    place = {spec.name: index for index, spec in enumerate(layout.tensors)}
    ordered = Layout(tuple(sorted(ours.tensors, key=lambda s: place.get(s.name, len(place)))))
    if ordered != layout:
        difference = explain_difference(layout, ordered, ("in the round", "given"))
        raise ConfigError(f"these tensors are not those of the round's layout: {difference}")


def _places(layout: Layout) -> list[tuple[TensorSpec, slice]]:
    places, start = [], 0
    for spec in layout.tensors:
        places.append((spec, slice(start, start + spec.size)))
        start += spec.size
    return places


def _stays(name: str, dtype: str) -> bool:
    if dtype.startswith("complex"):
        raise ConfigError(f"{name} is {dtype}; split it into its real and imaginary parts")
    if dtype.startswith(("float", "bfloat")):
        return False
    if dtype.startswith(("int", "uint", "bool")):
        return True
    raise ConfigError(f"{name} is {dtype}; give tensors of this machine's own floats and integers")


def _dtype(tensor: Any, name: str = "a tensor") -> str:
    """NumPy's name of the dtype, whichever of the two it is."""
    try:
        return str(tensor.dtype).removeprefix("torch.")
    except AttributeError:
        raise ConfigError(
            f"{name}: a {type(tensor).__name__} is no array; give NumPy arrays or PyTorch tensors"
        ) from None


def _on_host(tensor: Any) -> Any:
    return tensor.detach().cpu() if hasattr(tensor, "detach") else tensor


def _flat(tensor: Any) -> NDArray[np.float32]:
    held = _on_host(tensor)
    values = held if isinstance(held, np.ndarray | np.generic) else held.float().numpy()
    return np.asarray(values, np.float32).reshape(-1)


def _bytes_of(tensor: Any) -> Any:
    held = _on_host(tensor)
    if not isinstance(held, np.ndarray | np.generic):
        if _dtype(held) == "bfloat16":  # NumPy has no such dtype: the same bits as integers
            held = held.contiguous().view(_twin(held, "int16"))
        held = held.numpy()
    little = np.asarray(held, np.asarray(held).dtype.newbyteorder("<"))
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)


def _twin(tensor: Any, name: str) -> Any:
    """Another dtype of the library that this tensor is of."""
    import sys

    return getattr(sys.modules[type(tensor).__module__.partition(".")[0]], name)


def _like(tensor: Any, delta: NDArray[np.floating[Any]]) -> Any:
    if isinstance(tensor, np.ndarray | np.generic):
        return np.asarray(np.add(tensor, delta, dtype=np.float64), tensor.dtype)
    exact = tensor.detach().cpu().double()
    return (exact + exact.new_tensor(delta)).to(tensor)  # its dtype, on its device
