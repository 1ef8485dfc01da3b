"""The manifest of a version, and its file: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from secagg.errors import ConfigError
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.version import UpdateMeta
from tests.models.tiny import SHAPE, TINY

LORA = LoraShape(3, 2.0, ("q_proj",), (0, 3), ("head.bias", "head.weight"))


def _meta(shape: LoraShape | EdgesShape) -> UpdateMeta:
    return UpdateMeta("ab" * 32, shape, TINY.stretch(0.1, 3, 3))


@pytest.mark.parametrize("shape", [SHAPE, LORA, EdgesShape((0, 3))])
def test_a_manifest_is_read_back_exactly(shape: LoraShape | EdgesShape) -> None:
    meta = _meta(shape)
    written = json.loads(json.dumps(meta.to_json()))
    assert UpdateMeta.from_json(written) == meta


def test_an_adapter_of_the_whole_model_is_written_as_before_there_were_layers() -> None:
    assert _meta(SHAPE).to_json()["shape"].keys() == {"rank", "scaling", "targets"}


def test_the_kinds_have_files_of_their_own() -> None:
    assert [(m.kind, m.file) for m in (_meta(LORA), _meta(EdgesShape((1,))))] == [
        ("lora", "adapter.safetensors"),
        ("edges", "edges.safetensors"),
    ]


def _changed(of: Any, /, **changes: Any) -> dict[str, Any]:
    return _meta(of).to_json() | changes


LORA_JSON: dict[str, Any] = _meta(LORA).to_json()["shape"]


TRAINING: dict[str, Any] = _meta(LORA).to_json()["training"]
BROKEN_SHAPES: list[dict[str, Any]] = [
    {"layers": [3, 0]},
    {"layers": [0, 0]},
    {"layers": [-1, 0]},
    {"layers": [0.0, 3]},
    {"layers": []},
    {"rank": True},
    {"targets": [1]},
    {"extra": ["head.weight", "head.bias"]},
    {"scaling": float("inf")},
    {"unknown": 1},
]
BROKEN_EDGES: list[dict[str, Any]] = [
    {"layers": []},
    {"layers": [False]},
    {},
    {"layers": [0], "rank": 1},
]


@pytest.mark.parametrize(
    "broken",
    [
        _changed(LORA, more=1),
        _changed(LORA, kind="emulator"),
        _changed(LORA, kind="edges"),
        _changed(EdgesShape((0,)), kind="lora"),
        _changed(LORA, weight_unit=0),
        _changed(LORA, weight_unit=True),
        _changed(LORA, base_digest=7),
        {k: v for k, v in _meta(LORA).to_json().items() if k != "shape"},
        *(_changed(LORA, shape=LORA_JSON | change) for change in BROKEN_SHAPES),
        *(_changed(LORA, training=TRAINING | {"columns": columns}) for columns in (0, 4, "1")),
        _changed(EdgesShape((0,)), training=TRAINING | {"columns": 1}),
        *(_changed(EdgesShape((0,)), shape=shape) for shape in BROKEN_EDGES),
        _changed(LORA, training=TRAINING | {"lr": float("nan")}),
    ],
)
def test_a_manifest_of_anything_else_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        UpdateMeta.from_json(broken)
