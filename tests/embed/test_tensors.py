"""Named tensors: the same in NumPy and PyTorch, there and back, and refused where they differ."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secagg.errors import ConfigError
from secagg_embed import (
    Terms,
    added,
    difference,
    flatten,
    layout_of,
    model_digest,
    next_round_number,
    unflatten,
)

FLOATS = ("float16", "float32", "float64")
KINDS = (*FLOATS, "int64", "int32", "uint8", "bool")
arrays = st.sampled_from(KINDS).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=4),
        elements={"min_value": -8, "max_value": 8} if dtype in FLOATS else None,
    )
)
named = st.dictionaries(st.text("abc.", min_size=1, max_size=4), arrays, min_size=1, max_size=5)
models = named.filter(lambda one: any(a.dtype.kind == "f" for a in one.values()))


def in_torch(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}


@given(models)
def test_numpy_and_torch_are_the_same_model(model: dict[str, Any]) -> None:
    assert layout_of(model) == layout_of(in_torch(model))
    assert model_digest(model) == model_digest(in_torch(model))
    layout = layout_of(model)
    assert (flatten(model, layout) == flatten(in_torch(model), layout)).all()


@given(models, st.randoms(use_true_random=False))
def test_a_digest_is_of_names_not_of_their_order(model: dict[str, Any], shuffle: Any) -> None:
    names = list(model)
    shuffle.shuffle(names)
    assert model_digest({name: model[name] for name in names}) == model_digest(model)


@given(models, st.data())
def test_any_change_changes_the_digest(model: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(model)))
    array = model[name]
    changes: list[dict[str, Any]] = [
        {**model, name + "x": model[name]},
        {**{k: v for k, v in model.items() if k != name}, name + "y": array},
        {**model, name: array.reshape((1, *array.shape))},
        {**model, name: array.astype("float64" if array.dtype != "float64" else "float32")},
    ]
    if array.size and array.dtype != bool:
        other = np.array(array)
        other.reshape(-1).view(np.uint8)[0] ^= 1
        changes.append({**model, name: other})
    assert model_digest(model) not in {model_digest(change) for change in changes}


@given(models, st.data())
def test_a_difference_added_is_what_training_made(
    model: dict[str, Any], data: st.DataObject
) -> None:
    layout = layout_of(model)
    delta = data.draw(hnp.arrays("float32", layout.size, elements=st.floats(-4, 4, width=16)))
    for kind in (model, in_torch(model)):
        after = added(kind, delta, layout)
        assert after.keys() == kind.keys()
        for name, tensor in after.items():
            assert type(tensor) is type(kind[name]) or isinstance(tensor, np.ndarray | np.generic)
            assert (tensor.dtype, tensor.shape) == (kind[name].dtype, kind[name].shape)
        back = difference(after, kind, layout)
        assert np.abs(back - delta).max(initial=0) <= 1e-2  # float16 rounds
    whole = {name: array for name, array in model.items() if array.dtype.kind != "f"}
    assert all(
        (after[name] == torch.from_numpy(np.array(array))).all() for name, array in whole.items()
    )


@given(models)
def test_flat_and_back(model: dict[str, Any]) -> None:
    layout = layout_of(model)
    tensors = unflatten(flatten(model, layout), layout)
    for name, tensor in tensors.items():
        assert (tensor == model[name].astype(np.float32)).all()


def test_bfloat16_is_averaged_and_has_a_digest_of_its_own() -> None:
    model = {"w": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)}
    layout = layout_of(model)
    assert layout.tensors[0].dtype == "bfloat16"
    after = added(model, np.full(6, 0.5), layout)
    assert after["w"].dtype == torch.bfloat16
    assert (difference(after, model, layout) == 0.5).all()
    assert model_digest(model) != model_digest({"w": model["w"].to(torch.float16)})
    assert model_digest(model) != model_digest(after)


def test_what_requires_a_gradient_is_taken_as_it_is() -> None:
    model = dict(torch.nn.Linear(3, 2).named_parameters())
    layout = layout_of(model)
    after = added(model, np.ones(layout.size), layout)
    assert not after["weight"].requires_grad
    assert torch.allclose(after["weight"], model["weight"] + 1)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ({"a": np.zeros(3, np.float32)}, "missing ['b']"),
        ({"a": np.zeros(3, np.float32), "b": np.zeros(2)}, "b: (2,) float32"),
        (
            {"a": np.zeros(4, np.float32), "b": np.zeros(2, np.float32)},
            "a: (3,) float32 in the round, (4,)",
        ),
        ({"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(1)}, "['c']"),
    ],
)
def test_other_tensors_are_refused_by_name(after: dict[str, Any], said: str) -> None:
    before = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)}
    with pytest.raises(ConfigError) as caught:
        difference(after, before, layout_of(before))
    assert said in str(caught.value)


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(ConfigError, match="no floating-point"):
        layout_of({"n": np.zeros(3, np.int64)})
    with pytest.raises(ConfigError, match="real and imaginary"):
        layout_of({"z": np.zeros(3, np.complex64)})
    with pytest.raises(ConfigError, match="l: a list is no array"):
        layout_of({"l": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="this machine's own"):
        layout_of({"w": np.zeros(3, ">f4")})
    with pytest.raises(ConfigError, match="does not fill"):
        unflatten(np.zeros(3), layout_of({"a": np.zeros(2)}))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (torch.nn.Linear(2, 2), r"Linear is no dict of tensors; give its state_dict\(\)"),
        (None, "NoneType is no dict"),
        ([np.zeros(3)], "list is no dict"),
        (np.zeros(3), "ndarray is no dict"),
        ("model", "str is no dict"),
        ({0: np.zeros(3), "a": np.zeros(3)}, "0 is no name"),
        ({"w": torch.eye(3).to_sparse()}, r"w is sparse; give its to_dense\(\)"),
        ({"w": torch.zeros(3, device="meta")}, "w has no values"),
        ({"w": SimpleNamespace(dtype="float32", shape=(3,))}, "w: a SimpleNamespace is no array"),
    ],
)
def test_what_is_no_dict_of_tensors_is_told_what_to_give(tensors: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        layout_of(tensors)
    with pytest.raises(ConfigError, match=said):
        model_digest(tensors)


def test_the_small_change_of_a_large_float64_is_not_lost() -> None:
    before = {"w": np.full(3, 1e6)}
    after = {"w": before["w"] + 1e-3}
    for convert in (dict, in_torch):
        delta = difference(convert(after), convert(before), layout_of(before))
        assert delta.dtype == np.float32
        assert np.allclose(delta, 1e-3, rtol=1e-4)


@pytest.mark.parametrize("convert", [dict, in_torch])
def test_rounding_takes_no_running_variance_below_zero(convert: Any) -> None:
    """Of a feature that is always the same the variance comes near 0, and below it all is NaN."""
    model = {"bn.running_var": np.full(2, 1e-6, np.float32), "bn.weight": np.zeros(2, np.float32)}
    after = added(convert(model), np.full(4, -1e-3), layout_of(model))
    assert after["bn.running_var"].tolist() == [0, 0]
    assert np.allclose(after["bn.weight"], -1e-3)
    assert type(after["bn.running_var"]) is type(convert(model)["bn.running_var"])


def test_settings_are_bytes() -> None:
    with pytest.raises(ConfigError, match="settings are bytes of your own, and this is a dict"):
        model_digest({"w": np.zeros(3)}, {"rate": 0.1})  # type: ignore[arg-type]


def test_round_numbers_rise_within_a_run_and_from_run_to_run() -> None:
    assert next_round_number(0, 1_800_000_000.9) == 1_800_000_000
    assert next_round_number(1_800_000_000, 1_800_000_000.9) == 1_800_000_001
    assert next_round_number(7, -3.0) == 8  # a clock that went back


def test_terms_choose_a_scheme_and_say_what_cannot_work(federation: Any) -> None:
    model = {"w": np.zeros(1000, np.float32)}
    made = Terms(clip=1.0, scheme="auto").round(federation.roster, model, round_number=3)
    assert made.plan.scheme in ("masking", "ckks")
    assert made.plan.model_digest == model_digest(model)
    with pytest.raises(ConfigError, match=r"NaN or infinite values in \['w'\]"):
        Terms(clip=1.0).round(
            federation.roster, {"w": np.full(3, np.nan, np.float32)}, round_number=3
        )
    for wrong in ("7", 1.5):
        with pytest.raises(ConfigError, match="give a whole number"):
            Terms(clip=1.0).round(federation.roster, model, round_number=wrong)
    with pytest.raises(ConfigError, match="a tuple of names"):
        Terms(clip=1.0).round(federation.roster, model, round_number=3, cohort="ada")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"clip": "1"}, "clip is '1'; give a number"),
        ({"clip": None}, "clip is None"),
        ({"clip": -1}, "choose a positive"),
        ({"max_weight": 1e3}, "max_weight is 1000.0; give a whole number"),
        ({"max_weight": None}, "max_weight is None"),
        ({"value_bits": "16"}, "value_bits is '16'"),
        ({"value_bits": 99}, "choose 4 to 32"),
        ({"max_colluders": 1.0}, "max_colluders is 1.0"),
        ({"min_survivors": "4"}, "min_survivors is '4'"),
        ({"dropout": None}, "dropout is None"),
        ({"dropout": 1.1}, "give a fraction"),
        ({"scheme": "CKKS"}, "choose of"),
    ],
)
def test_terms_that_cannot_be_are_refused_where_they_are_made(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Terms(**{"clip": 1.0, **wrong})


def test_terms_take_the_numbers_of_numpy() -> None:
    assert Terms(clip=np.float32(1), max_weight=np.int64(5)) == Terms(clip=1.0, max_weight=5)  # type: ignore[arg-type]


def test_a_round_takes_the_rosters_file(federation: Any) -> None:
    file = federation.folders["ada"] / "roster.bin"
    made = Terms(clip=1.0).round(str(file), {"w": np.zeros(3)}, round_number=3)
    assert made.plan.roster_digest == federation.roster.digest
    for wrong in (None, file.parent, "nowhere.bin"):
        with pytest.raises(ConfigError, match=r"give the roster\.bin"):
            Terms(clip=1.0).round(wrong, {"w": np.zeros(3)}, round_number=3)
