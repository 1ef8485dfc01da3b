"""One block alone over TLS: tenants hold that block, or the whole model; the full model gets it."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from secagg.errors import ConfigError
from secagg_models import arms, train, updates
from secagg_models.base import Base, load_base, model_digest
from secagg_models.block_cut import BlockCut
from secagg_models.block_weights import BlockWeights
from secagg_models.package import load_full_model
from secagg_models.plug_in import plugged_in
from secagg_models.series.folder import series_of_folder
from secagg_models.series.stream import stream_of
from secagg_models.text import corpus_of_folder, encode
from secagg_models.version import UpdateMeta
from secagg_owner.block_package import read_block_package, write_block_package
from secagg_owner.config import Config
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.owner.test_lora_rounds import TRAINING, texts
from tests.owner.test_offsite_rounds import full, lineage, published
from tests.owner.test_owner_rounds import config_of, own
from tests.owner.test_series_rounds import TRAINING as SERIES_TRAINING
from tests.owner.test_series_rounds import base as forecaster
from tests.owner.test_series_rounds import data as series
from tests.owner.test_series_rounds import series_tenant
from tests.tenant.running import config_of as tenant_config
from tests.tenant.running import joined

__all__ = ["forecaster", "full", "series", "texts"]
LAYERS, BLOCKS, BLOCK = 5, 3, 1
CUT = BlockCut(LAYERS, BLOCKS, BLOCK, "block")


@pytest.fixture(scope="module")
def package(full: Path, enrolled: Enrolled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "block"
    identity = enrolled.keys["ona"].identity()
    write_block_package(folder, load_full_model(str(full)), CUT, identity)
    return folder


def owner_config(
    running: Federation, data: Path, full: Path, texts: Path, model: dict[str, Any],
    rounds: int = 1, **round_table: Any,
) -> Config:  # fmt: skip
    values = config_of(running, data, rounds=rounds, **round_table).model_dump()
    values["model"] = {
        "kind": "block", "full": str(full), "blocks": BLOCKS, "block": BLOCK, **model,
    }  # fmt: skip
    values["training"] = TRAINING | {"lr": 0.01}
    values["text"] = {"path": texts / "owner", "windows": 2}
    return Config.model_validate(values)


def block_tenant(
    running: Federation, name: str, data: Path, texts: Path, held: dict[str, Any]
) -> Any:
    config = tenant_config(running, name, data)
    values = config.model_dump()
    values["model"] = held
    values["training"] = {"trainer": "lora", "text": texts / name, "evaluation_windows": 2}
    return type(config).model_validate(values)


def of_package(running: Federation, package: Path) -> dict[str, Any]:
    return {
        "emulator": package,
        "emulator_digest": read_block_package(package).digest.hex(),
        "owner_key": running.enrolled.keys["ona"].identity().public_key.hex(),
    }


def of_base(full: Path) -> dict[str, Any]:
    return {"base": str(full), "base_digest": load_base(str(full)).digest}


async def all_rounds(
    enrolled: Enrolled, tmp_path: Path, full: Path, texts: Path, package: Path | None,
    model: dict[str, Any], scheme: str, rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
        held = of_base(full) if package is None else of_package(running, package)
        nodes = [
            await stack.enter_async_context(
                joined(running, block_tenant(running, name, tmp_path, texts, held))
            )
            for name in TENANTS
        ]
        config = owner_config(running, tmp_path, full, texts, model, rounds, scheme=scheme)
        results = await own(config)
        for node in nodes:
            await node.until("version_evaluated", version=1 + rounds)
        return results


def plain_round(base: Base, texts: Path, meta: UpdateMeta, update: BlockWeights) -> BlockWeights:
    """The same round without protection: train the block on each text, average, step."""
    network, deltas = updates.attach(base.model, update), []
    for name in TENANTS:
        stream = encode(name, corpus_of_folder(texts / name, name=name).train, base.tokenizer)
        train.train_update(network, update, [stream], meta.training)
        deltas.append(updates.delta_of(updates.state(network, update), update))
    after = updates.next_round(update, arms.plain_mean(deltas, [1.0] * len(deltas)))
    assert isinstance(after, BlockWeights)
    return after


def version(data: Path, number: int) -> tuple[UpdateMeta, BlockWeights]:
    meta, update = published(data / "owner", number)
    assert isinstance(update, BlockWeights)
    return meta, update


def check_versions(data: Path, base: Path, texts: Path, results: list[dict[str, Any]]) -> None:
    for number in range(1, len(results) + 1):
        meta, before = version(data, number)
        expected = plain_round(load_base(str(base)), texts, meta, before)
        step = results[number - 1]["clip"] / 32767
        for name, tensor in version(data, number + 1)[1].tensors.items():
            # Each tenant is off by a level at most; residuals of round 1 add another.
            assert float((tensor - expected.tensors[name]).abs().max()) < 2 * 2 * step, name


@pytest.mark.parametrize(("scheme", "rounds"), [("masking", 2), ("ckks", 1)])
def test_a_block_that_tenants_hold_alone_becomes_the_mean_of_plain_training(
    enrolled: Enrolled, tmp_path: Path, full: Path, texts: Path, package: Path, scheme: str,
    rounds: int,
) -> None:  # fmt: skip
    results = asyncio.run(
        all_rounds(enrolled, tmp_path, full, texts, package, {"package": package}, scheme, rounds)
    )
    assert [(r["outcome"], r["scheme"]) for r in results] == [("opened", scheme)] * rounds
    check_versions(tmp_path, package, texts, results)
    loaded, entries = load_full_model(str(full)), lineage(tmp_path)
    assert [entry.kind for entry in entries] == ["start"] + ["round"] * rounds
    assert {entry.emulator_manifest for entry in entries} == {
        read_block_package(package).digest.hex()
    }
    assert entries[0].plugged_digest == loaded.digest  # nothing is learnt yet
    for entry, result in zip(entries[1:], results, strict=True):
        assert dict(entry.figures) == result["evaluation"]
        _, update = version(tmp_path, entry.published_version)
        with plugged_in(loaded.model, update, CUT) as plugged:
            assert model_digest(plugged.state_dict()) == entry.plugged_digest
    assert model_digest(loaded.model.state_dict()) == loaded.digest
    figures = entries[-1].figures
    assert set(figures) == {
        "validation_nats_per_byte", "base_nats_per_byte", "forgetting_nats_per_byte",
        "validation_denoising", "validation_sampler_nats_per_byte",
    }  # fmt: skip
    assert figures["validation_denoising"] < entries[0].figures["validation_denoising"]


def test_a_block_within_the_whole_model_is_trained_by_the_mixed_objective(
    enrolled: Enrolled, tmp_path: Path, full: Path, texts: Path
) -> None:
    model = {"objective": "mixed", "ordinary_weight": 2.0}
    results = asyncio.run(all_rounds(enrolled, tmp_path, full, texts, None, model, "masking", 1))
    assert [r["outcome"] for r in results] == ["opened"]
    check_versions(tmp_path, full, texts, results)
    meta, _ = version(tmp_path, 1)
    assert (meta.shape.held, meta.shape.ordinary_weight) == ("all", 2.0)  # type: ignore[union-attr]
    first, *_, last = lineage(tmp_path)
    name = "validation_nats_per_byte"
    assert last.figures[name] < first.figures[name]
    assert last.emulator_manifest == ""


def test_a_forecasters_block_becomes_the_mean_of_plain_training_on_series(
    enrolled: Enrolled, tmp_path: Path, forecaster: Path, series: Path
) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            for name in TENANTS:
                config = series_tenant(running, name, tmp_path, forecaster, series)
                await stack.enter_async_context(joined(running, config))
            values = config_of(running, tmp_path, rounds=1).model_dump()
            values["model"] = {
                "kind": "block", "full": str(forecaster), "blocks": 2, "block": 1,
                "objective": "mixed",
            }  # fmt: skip
            values["training"] = SERIES_TRAINING | {"lr": 0.01}
            values["series"] = {"path": series / "owner", "windows": 4}
            return await own(Config.model_validate(values))

    (result,) = asyncio.run(scenario())
    assert set(result["evaluation"]) == {
        "validation_pinball", "base_pinball", "forgetting_pinball", "validation_denoising",
    }  # fmt: skip
    meta, before = version(tmp_path, 1)
    assert "blocks.1.out.weight" in before.tensors
    network, deltas = updates.attach(load_base(str(forecaster)).model, before), []
    for name in TENANTS:
        stream = stream_of(name, series_of_folder(series / name), "train", 4)
        train.train_update(network, before, [stream], meta.training)
        deltas.append(updates.delta_of(updates.state(network, before), before))
    expected = updates.next_round(before, arms.plain_mean(deltas, [1.0] * len(deltas)))
    level = result["clip"] / 32767
    for name, tensor in version(tmp_path, 2)[1].tensors.items():
        assert float((tensor - expected.trained[name]).abs().max()) < 2 * level, name
    assert lineage(tmp_path)[-1].figures == result["evaluation"]


def test_a_package_of_another_block_or_model_is_told_before_anything_is_published(
    enrolled: Enrolled, tmp_path: Path, full: Path, package: Path, texts: Path
) -> None:
    async def scenario(model: dict[str, Any]) -> None:
        async with federation(enrolled, tmp_path) as running:
            await own(owner_config(running, tmp_path, full, texts, {"package": package} | model))

    with pytest.raises(ConfigError, match="is block 1 of 3"):
        asyncio.run(scenario({"block": 2}))
    with pytest.raises(ConfigError, match="was cut from"):
        asyncio.run(scenario({"full": "shipped"}))
    assert not lineage(tmp_path)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"block": 3}, "blocks 0 to 2"),
        ({"package": "p", "objective": "mixed"}, "take 'pure'"),
        ({"package": "p", "objective": "prefix"}, "take 'pure'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(model: dict[str, Any], said: str) -> None:
    values: dict[str, Any] = {
        "coordinator": "c:1", "keys": "k", "data": "d", "model": {"kind": "block"} | model,
    }  # fmt: skip
    with pytest.raises(ValueError, match=said):
        Config.model_validate(values)
