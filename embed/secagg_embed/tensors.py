"""Named arrays, as training code has them, and the flat vector that a round protects.

NumPy arrays and PyTorch tensors are taken alike; PyTorch is never imported. Only floating-point
tensors are averaged. Integers and booleans (counters, masks) stay as they were before the round:
their mean has no meaning, and their sum would tell more than a mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.errors import ConfigError
from secagg.layout import Layout, TensorSpec, explain_difference
from secagg.plan import RoundPlan

Tensors = Mapping[str, Any]
"""Names to NumPy arrays, or to anything with PyTorch's `detach`, `cpu` and `numpy`."""

_VARIANCE = "running_var"


def layout_of(tensors: Tensors) -> Layout:
    """The layout of the floating-point tensors, in the order of their names.

    Raises:
        ConfigError: there is none, or one of a kind that cannot be averaged (complex numbers); or
            these are no tensors by name (a module, a list).
    """
    specs = [
        TensorSpec(name, tuple(tensor.shape), dtype)
        for name, tensor, dtype in _each(tensors)
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

    It is taken in float64 where tensors are: the small change of a large value survives.

    Raises:
        ConfigError: as `flatten`, of either of the two.
    """
    _require(after, layout)
    _require(before, layout)
    vector = np.empty(layout.size, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the round refuses what is not finite
        for spec, place in _places(layout):
            vector[place] = _values(after[spec.name]) - _values(before[spec.name])
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
    """`before` with the delta in `vector` added; each tensor keeps its kind, dtype and shape.

    A running variance (BatchNorm's, by PyTorch's name) is never below 0: near it, rounding could
    take it there, and a model with a negative variance answers NaN.
    """
    _require(before, layout)
    deltas = unflatten(vector, layout)
    after = {
        name: _like(tensor, deltas[name]) if name in deltas else tensor
        for name, tensor in before.items()
    }
    return {
        name: tensor.clip(0) if name in deltas and name.endswith(_VARIANCE) else tensor
        for name, tensor in after.items()
    }


def model_digest(tensors: Tensors, settings: bytes = b"") -> bytes:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of names.

    A tensor has the same digest in NumPy and in PyTorch. This is the model that a plan names:
    tenants that are shown different models are in different rounds, and nothing opens.

    `settings` is whatever else the coordinator tells tenants to train with (a learning rate, the
    number of steps), in bytes of your own. A sum hides an update only among others: with a rate of
    0.1 for one tenant and 0 for the rest it would be that one's.

    Raises:
        ConfigError: these are no tensors by name, or settings that are no bytes.
    """
    if not isinstance(settings, bytes | bytearray | memoryview):
        raise ConfigError(
            f"settings are bytes of your own, and this is a {type(settings).__name__}; give "
            "json.dumps(...).encode(), for instance"
        )
    digest = hashlib.sha256(Writer().tag("model").blob(settings).finish())
    for name, tensor, dtype in _each(tensors):
        head = Writer().tag("tensor").text(name).text(dtype).u32(len(tensor.shape))
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
    with np.errstate(over="ignore"):
        broken = [name for name in named if not np.isfinite(_flat(tensors[name])).all()]
    if broken:
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


def _each(tensors: Tensors) -> Iterator[tuple[str, Any, str]]:
    """(name, tensor, NumPy's name of its dtype), in the order of names.

    Raises:
        ConfigError: these are no tensors by name, or one whose values cannot be read.
    """
    _require_named(tensors)
    for name in sorted(tensors):
        yield name, tensors[name], _dtype(name, tensors[name])


def _require_named(tensors: object) -> None:
    if not isinstance(tensors, Mapping):
        cure = "its state_dict()" if hasattr(tensors, "state_dict") else "names and their tensors"
        raise ConfigError(f"a {type(tensors).__name__} is no dict of tensors; give {cure}")
    if strange := [name for name in tensors if not isinstance(name, str)]:
        raise ConfigError(f"{strange[0]!r} is no name of a tensor; give each a str")


def _dtype(name: str, tensor: Any) -> str:
    if not (isinstance(tensor, np.ndarray | np.generic) or hasattr(tensor, "detach")):
        raise ConfigError(
            f"{name}: a {type(tensor).__name__} is no array; give NumPy arrays or PyTorch tensors"
        )
    if str(getattr(tensor, "layout", _DENSE)) != _DENSE:
        raise ConfigError(f"{name} is sparse; give its to_dense()")
    if getattr(tensor, "is_meta", False):
        raise ConfigError(
            f"{name} has no values (it is on the device 'meta'); load the model first"
        )
    return str(tensor.dtype).removeprefix("torch.")


_DENSE = "torch.strided"


def _on_host(tensor: Any) -> Any:
    return tensor.detach().cpu() if hasattr(tensor, "detach") else tensor


def _values(tensor: Any) -> NDArray[np.float32] | NDArray[np.float64]:
    """Flat: float64 as it is, all else in float32, which holds it exactly."""
    held = _on_host(tensor)
    if not isinstance(held, np.ndarray | np.generic):
        held = (held if str(held.dtype) == "torch.float64" else held.float()).numpy()
    exact = np.asarray(held)
    return exact.astype(np.result_type(exact.dtype, np.float32), copy=False).reshape(-1)


def _flat(tensor: Any) -> NDArray[np.float32]:
    return _values(tensor).astype(np.float32, copy=False)


def _bytes_of(tensor: Any) -> Any:
    held = _on_host(tensor)
    if not isinstance(held, np.ndarray | np.generic):
        if str(held.dtype) == "torch.bfloat16":  # NumPy has none: the same bits as integers
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
