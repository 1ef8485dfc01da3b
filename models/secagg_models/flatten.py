"""Between named tensors and the flat vector that is protected.

The signed layout (`secagg.layout`) fixes names, shapes and order; these functions move tensors
through it and refuse whatever differs, naming the tensors. Names decide, never the order in which
a dictionary happens to hold them. Quantisation and weights are not done here: see secagg.encoding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.layout import Layout, TensorSpec, explain_difference
from secagg_models.base import dtype_name


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """The layout of these tensors, in the order of their names."""
    return Layout(
        tuple(
            TensorSpec(name, tuple(tensors[name].shape), dtype_name(tensors[name]))
            for name in sorted(tensors)
        )
    )


def flatten(tensors: Mapping[str, torch.Tensor], layout: Layout) -> NDArray[np.float32]:
    """(layout.size,) float32, row-major and back to back in the layout's order.

    Raises: ConfigError naming the tensors that are missing, unexpected or of another shape.
    """
    ours = _in_order_of(layout, layout_of(tensors))
    if ours != layout:
        difference = explain_difference(layout, ours, ("in the layout", "given"))
        raise ConfigError(f"these tensors are not the layout's: {difference}")
    pieces = [
        tensors[spec.name].detach().to("cpu", torch.float32).reshape(-1).numpy()
        for spec in layout.tensors
    ]
    return np.concatenate(pieces)


def unflatten(vector: NDArray[np.floating], layout: Layout) -> dict[str, torch.Tensor]:
    """Named tensors in the layout's shapes and dtypes, copied out of the vector."""
    if vector.shape != (layout.size,):
        raise ConfigError(
            f"a vector of shape {vector.shape} does not fill the layout's {layout.size} coordinates"
        )
    tensors, place = {}, 0
    for spec in layout.tensors:
        piece = np.array(vector[place : place + spec.size], np.float32).reshape(spec.shape)
        tensors[spec.name] = torch.from_numpy(piece).to(getattr(torch, spec.dtype))
        place += spec.size
    return tensors


def _in_order_of(wanted: Layout, given: Layout) -> Layout:
    place = {spec.name: index for index, spec in enumerate(wanted.tensors)}
    return Layout(tuple(sorted(given.tensors, key=lambda s: place.get(s.name, len(place)))))
