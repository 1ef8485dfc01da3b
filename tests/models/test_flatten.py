"""Between named tensors and the flat vector."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg.layout import Layout, TensorSpec
from secagg_models.flatten import flatten, layout_of, unflatten

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([7.0])}


def test_names_decide_the_order_and_not_the_dictionary() -> None:
    layout = layout_of(TENSORS)
    assert [spec.name for spec in layout.tensors] == ["a", "b"]
    assert flatten(TENSORS, layout).tolist() == [7, 0, 1, 2, 3, 4, 5]
    backwards = dict(reversed(TENSORS.items()))
    assert np.array_equal(flatten(backwards, layout), flatten(TENSORS, layout))


def test_a_signed_order_other_than_by_name_is_followed() -> None:
    layout = Layout((TensorSpec("b", (2, 3)), TensorSpec("a", (1,))))
    assert flatten(TENSORS, layout).tolist() == [0, 1, 2, 3, 4, 5, 7]


@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5))
def test_unflatten_undoes_flatten(shapes: list[list[int]]) -> None:
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    layout = layout_of(tensors)
    back = unflatten(flatten(tensors, layout), layout)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a": TENSORS["a"]}, r"missing \['b'\]"),
        ({**TENSORS, "c": torch.ones(1)}, r"unexpected \['c'\]"),
        (
            {**TENSORS, "b": torch.ones(3, 2)},
            r"b: \(2, 3\) float32 in the layout, \(3, 2\) ",
        ),
        ({**TENSORS, "a": torch.ones(1, dtype=torch.float64)}, r"a: .* float64 given"),
    ],
)
def test_other_tensors_than_the_layouts_are_refused_by_name(
    tensors: dict[str, torch.Tensor], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        flatten(tensors, layout_of(TENSORS))


def test_a_vector_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 coordinates"):
        unflatten(np.zeros(8, np.float32), layout_of(TENSORS))
