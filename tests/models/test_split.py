"""A split says which layer is which; layer numbers and names map both ways, and back from JSON."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg_models.split import Split, full_name


def test_the_papers_splits_are_found_again() -> None:
    # 24 layers, 2-8-2 (OPT-1.3B): idx = round(i 19/7).
    assert Split.uniform(24, 2, 8).kept == (2, 5, 7, 10, 13, 16, 18, 21)
    assert Split.uniform(12, 2, 4).full_layers == (0, 1, 2, 4, 7, 9, 10, 11)
    assert Split.uniform(12, 2, 1).kept == (5,)
    assert Split.uniform(6, 1, 4).full_layers == tuple(range(6))


@given(st.integers(1, 5), st.integers(1, 60), st.data())
def test_a_uniform_split_keeps_as_many_as_asked_and_both_ends_of_the_middle(
    edge: int, middle: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, middle))
    split = Split.uniform(middle + 2 * edge, edge, keep)
    assert split.keep == keep
    assert keep == 1 or {edge, edge + middle - 1} <= set(split.kept)
    assert split.emulator_layers == len(split.full_layers) == keep + 2 * edge
    assert sorted(split.edge_layers + split.middle_layers) == list(range(split.emulator_layers))
    for layer in range(split.emulator_layers):
        assert split.emulator_index(split.full_index(layer)) == layer
    assert Split.from_json(split.to_json()) == split


def test_the_most_important_middle_layers_stay_in_order() -> None:
    split = Split.by_importance([0.1, 0.5, 0.5, 0.0, 0.7], edge=2, keep=3)
    assert split == Split(9, 2, (3, 4, 6))
    assert Split.by_importance([1.0, 1.0, 1.0], edge=1, keep=2).kept == (1, 2)


def test_a_dropped_layer_has_no_place_in_the_emulator() -> None:
    split = Split.uniform(12, 2, 2)
    assert split.kept == (2, 9)
    assert split.emulator_index(5) is None
    assert split.full_middle_layers == tuple(range(2, 10))
    with pytest.raises(ConfigError, match="0 to 5, not 6"):
        split.full_index(6)


def test_names_outside_the_layers_stay_and_layer_numbers_are_mapped() -> None:
    split = Split.uniform(12, 2, 2)
    prefix = "model.layers."
    assert full_name(split, prefix, "model.norm.weight") == "model.norm.weight"
    assert full_name(split, prefix, "model.layers.3.mlp.up_proj.weight") == (
        "model.layers.9.mlp.up_proj.weight"
    )
    assert full_name(split, prefix, "model.layers.5.x") == "model.layers.11.x"
    assert full_name(split, prefix, "model.layers.bias.x") == "model.layers.bias.x"
    with pytest.raises(ConfigError):
        full_name(split, prefix, "model.layers.6.x")


@pytest.mark.parametrize(
    ("layers", "edge", "keep", "said"),
    [(12, 0, 2, "edge = 0"), (12, 6, 1, "take 1 to 5"), (12, 2, 9, "8 middle layers"),
     (12, 2, 0, "keep = 0"), (2, 1, 1, "no middle")],
)  # fmt: skip
def test_edges_and_kept_layers_that_do_not_fit_are_refused_with_what_would(
    layers: int, edge: int, keep: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Split.uniform(layers, edge, keep)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"layers": 12, "edge": 2}, {"layers": 12, "edge": 2, "kept": [3], "x": 1},
     {"layers": 12, "edge": 2, "kept": []}, {"layers": 12, "edge": 2, "kept": [4, 3]},
     {"layers": 12, "edge": 2, "kept": [1]}, {"layers": 12, "edge": 2, "kept": [True]},
     {"layers": 12, "edge": 2, "kept": [10]}, {"layers": 12.0, "edge": 2, "kept": [3]},
     {"layers": 12, "edge": 0, "kept": [3]}, {"layers": 12, "edge": 2, "kept": "34"}],
)  # fmt: skip
def test_anything_else_in_a_manifest_is_refused_with_one_kind_of_error(value: Any) -> None:
    with pytest.raises(ConfigError):
        Split.from_json(value)
