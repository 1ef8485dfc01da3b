"""A federated round of a forecaster over TLS against the same training in plain text."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import arms, lora, train
from secagg_models.base import load_base
from secagg_models.series.folder import export_series, series_of_folder
from secagg_models.series.forecaster import Forecaster, ForecasterShape, save_forecaster
from secagg_models.series.stream import Series, stream_of
from secagg_models.version import UpdateMeta
from secagg_owner.config import Config
from secagg_owner.subject import make_subject
from secagg_owner.update_subject import UpdateSubject
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.owner.test_lora_rounds import version
from tests.owner.test_owner_rounds import config_of, own
from tests.tenant.running import config_of as tenant_config
from tests.tenant.running import joined

SHAPE = ForecasterShape(
    width=16, layers=2, heads=2, intermediate=24, patch=4, context=32, horizon=4,
    quantiles=(0.1, 0.5, 0.9),
)  # fmt: skip
TRAINING: dict[str, Any] = {
    "steps": 3,
    "batch": 2,
    "context": 32,
    "lr": 0.05,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecaster")
    torch.manual_seed(5)
    save_forecaster(Forecaster(SHAPE), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("series")
    for place, name in enumerate((*TENANTS, "owner")):
        drawn = np.random.default_rng(place).normal(size=(2, 80)).cumsum(1).astype(np.float32)
        export_series([Series(f"s{row}", values) for row, values in enumerate(drawn)], root / name)
    return root


def owner_config(running: Federation, folder: Path, base: Path, data: Path) -> Config:
    values = config_of(running, folder, rounds=1).model_dump()
    values["model"] = {"kind": "lora", "base": str(base), "rank": 3}
    values["training"] = TRAINING
    values["series"] = {"path": data / "owner"}
    return Config.model_validate(values)


def series_tenant(running: Federation, name: str, folder: Path, base: Path, data: Path) -> Any:
    config = tenant_config(running, name, folder).model_dump()
    config["model"] = {"base": str(base), "base_digest": load_base(str(base)).digest}
    config["training"] = {"trainer": "series", "series": data / name}
    return type(tenant_config(running, name, folder)).model_validate(config)


def plain_round(base: Path, data: Path, meta: UpdateMeta, adapter: lora.Adapter) -> lora.Adapter:
    """The same round without protection: train on each tenant's series, average, refactor."""
    model = lora.attach(load_base(str(base)).model, adapter)
    deltas = []
    for name in TENANTS:
        stream = stream_of(name, series_of_folder(data / name), "train", SHAPE.horizon)
        train.train_update(model, adapter, [stream], meta.training)
        state = lora.trainable_state(model, adapter.shape.extra)
        deltas.append({part: state[part] - start for part, start in adapter.trained.items()})
    return lora.next_round(adapter, arms.plain_mean(deltas, [1.0] * len(deltas)))


def test_a_round_makes_the_forecaster_that_plain_averaging_makes(
    enrolled: Enrolled, tmp_path: Path, base: Path, data: Path
) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = []
            for name in TENANTS:
                config = series_tenant(running, name, tmp_path, base, data)
                nodes.append(await stack.enter_async_context(joined(running, config)))
            results = await own(owner_config(running, tmp_path, base, data))
            for node in nodes:
                await node.until("version_evaluated", version=2)
            return results

    (result,) = asyncio.run(scenario())
    assert result["evaluation"].keys() == {"validation_pinball"}
    meta, before = version(tmp_path / "owner", 1)
    assert before.shape.extra == ("head.bias", "head.weight")
    expected, (_, after) = plain_round(base, data, meta, before), version(tmp_path / "owner", 2)
    level = result["clip"] / 32767
    for name in expected.b:
        error = (after.product(name) - expected.product(name)).abs().max()
        assert float(error) < 2 * 3 * level, name
    for name, tensor in expected.extra.items():
        assert float((after.extra[name] - tensor).abs().max()) < 3 * level, name
        assert not torch.equal(after.extra[name], before.extra[name])


def test_text_and_series_are_not_taken_for_each_other(
    enrolled: Enrolled, tmp_path: Path, base: Path, data: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = series_tenant(running, "ada", tmp_path, base, data)
            training = {"trainer": "lora", "text": data / "ada", "pattern": "*.csv"}
            values = {**config.model_dump(), "training": training}
            async with joined(running, type(config).model_validate(values)) as node:
                await asyncio.wait([node.session])

    with pytest.raises(ConfigError, match="which wants 'series'"):
        asyncio.run(scenario())


@pytest.mark.parametrize("model", [{"kind": "lora", "rank": 3}, {"kind": "edges"}])
def test_an_owner_without_series_of_its_own_measures_on_the_public_ones(
    base: Path, model: dict[str, Any]
) -> None:
    subject = make_subject(configured(base, model)[1])
    assert subject.clip() > 0
    assert subject.evaluate()["validation_pinball"] > 0


def configured(base: Path, model: dict[str, Any]) -> tuple[Any, Config]:
    config = Config.model_validate(
        {
            "coordinator": "localhost:1", "keys": "keys", "data": "data",
            "model": {"base": str(base), **model}, "training": TRAINING, "series": {"windows": 8},
        }
    )  # fmt: skip
    return config.model, config


def test_whole_layers_are_those_that_the_owner_lists_and_all_by_default(base: Path) -> None:
    forecaster = load_base(str(base)).model
    everything = {name: p.shape for name, p in forecaster.named_parameters()}
    whole = UpdateSubject.of_edges(*configured(base, {"kind": "edges"}))
    assert {part.name for part in whole.layout().tensors} == everything.keys()
    some = {"kind": "edges", "layers": [1], "embeddings": False}
    names = {part.name for part in UpdateSubject.of_edges(*configured(base, some)).layout().tensors}
    head = {"head.weight", "head.bias"}
    assert names == {n for n in everything if n.startswith("encoder.layers.1.")} | head
    missing = UpdateSubject.of_edges(*configured(base, {"kind": "edges", "layers": [7]}))
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        missing.layout()
