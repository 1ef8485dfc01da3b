"""Offsite-Tuning over TLS: tenants train the emulator's edges, the full model is plugged."""

import asyncio
import io
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from secagg.errors import ConfigError
from secagg_models import arms, train, updates
from secagg_models.base import load_base, model_digest
from secagg_models.edges import EdgeWeights
from secagg_models.emulator import build_emulator
from secagg_models.lora import Adapter
from secagg_models.package import load_full_model
from secagg_models.plug_in import plugged_in
from secagg_models.split import Split
from secagg_models.text import corpus_of_folder, encode
from secagg_models.version import UpdateMeta
from secagg_owner.config import Config
from secagg_owner.emulator_package import read_emulator_package, write_emulator_package
from secagg_owner.registry import Entry, ModelRegistry
from secagg_owner.rounds import OwnerRun
from secagg_owner.service import OwnerConnection
from secagg_owner.state import OwnerFiles
from secagg_owner.subject import make_subject
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.manifest import Manifest
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.owner.test_lora_rounds import TRAINING, texts
from tests.owner.test_owner_rounds import config_of, own
from tests.tenant.running import Node, joined
from tests.tenant.running import config_of as tenant_config

__all__ = ["texts"]
SPLIT = Split.uniform(5, 1, 2)
KINDS = ("lora", "edges")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=24, num_hidden_layers=SPLIT.layers,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def emulator(full: Path, enrolled: Enrolled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = load_full_model(str(full))
    folder = tmp_path_factory.mktemp("package") / "emulator"
    write_emulator_package(
        folder, loaded, build_emulator(loaded.model, SPLIT), SPLIT,
        distillation=None, identity=enrolled.keys["ona"].identity(),
    )  # fmt: skip
    return folder


def owner_config(
    running: Federation, data: Path, full: Path, emulator: Path, texts: Path, *, kind: str,
    **round_table: Any,
) -> Config:  # fmt: skip
    values = config_of(running, data, rounds=2, **round_table).model_dump()
    values["model"] = {
        "kind": "offsite", "full": str(full), "emulator": emulator, "update": kind, "rank": 3,
        "scaling": 2.0, "targets": ("q_proj", "down_proj"),
    }  # fmt: skip
    values["training"] = TRAINING
    values["text"] = {"path": texts / "owner", "windows": 8}
    return Config.model_validate(values)


def edge_tenant(running: Federation, name: str, data: Path, emulator: Path, texts: Path) -> Any:
    config = tenant_config(running, name, data)
    values = config.model_dump()
    values["model"] = {
        "base": str(emulator), "base_digest": load_base(str(emulator)).digest,
        "owner_key": running.enrolled.keys["ona"].identity().public_key.hex(),
    }  # fmt: skip
    values["training"] = {"trainer": "lora", "text": texts / name, "evaluation_windows": 8}
    return type(config).model_validate(values)


async def all_edge_tenants(
    stack: AsyncExitStack, running: Federation, data: Path, emulator: Path, texts: Path
) -> list[Node]:
    configs = [edge_tenant(running, name, data, emulator, texts) for name in TENANTS]
    return [await stack.enter_async_context(joined(running, config)) for config in configs]


def published(owner: Path, number: int) -> tuple[UpdateMeta, updates.Update]:
    folder = owner / "versions" / str(number)
    meta = UpdateMeta.from_json(Manifest.decode((folder / "manifest.json").read_bytes()).meta)
    return meta, updates.load((folder / meta.file).read_bytes(), meta.shape)


def plain_round(
    emulator: Path, texts: Path, meta: UpdateMeta, update: updates.Update
) -> updates.Update:
    """The same round without protection: train the emulator on each text, average, step."""
    loaded = load_base(str(emulator))
    model, deltas = updates.attach(loaded.model, update), []
    for name in TENANTS:
        stream = encode(name, corpus_of_folder(texts / name, name=name).train, loaded.tokenizer)
        train.train_update(model, update, [stream], meta.training)
        deltas.append(updates.delta_of(updates.state(model, update), update))
    return updates.next_round(update, arms.plain_mean(deltas, [1.0] * len(deltas)))


def moved_by(update: updates.Update, start: updates.Update) -> dict[str, torch.Tensor]:
    """What an update changes, whatever its factors are."""
    match update:
        case Adapter():
            return {name: update.product(name) for name in update.b}
        case EdgeWeights():
            return {name: t - start.trained[name] for name, t in update.tensors.items()}


def lineage(data: Path) -> tuple[Entry, ...]:
    return ModelRegistry(data / "owner" / "models").entries()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["masking", "ckks"])
def test_the_edges_that_are_plugged_in_are_those_of_plain_averaging(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path, kind: str,
    scheme: str,
) -> None:  # fmt: skip
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await all_edge_tenants(stack, running, tmp_path, emulator, texts)
            config = owner_config(
                running, tmp_path, full, emulator, texts, kind=kind, scheme=scheme
            )
            results = await own(config)
            for node in nodes:
                await node.until("version_evaluated", version=3)
            return results

    results = asyncio.run(scenario())
    assert [r["outcome"] for r in results] == ["opened", "opened"]
    assert {r["scheme"] for r in results} == {scheme}
    _, start = published(tmp_path / "owner", 1)
    for number in (1, 2):
        meta, before = published(tmp_path / "owner", number)
        _, after = published(tmp_path / "owner", number + 1)
        expected = moved_by(plain_round(emulator, texts, meta, before), start)
        step = results[number - 1]["clip"] / 32767
        for name, tensor in moved_by(after, start).items():
            # Each tenant is off by a level at most; residuals of round 1 add another.
            assert float((tensor - expected[name]).abs().max()) < 2 * 3 * 2 * step, name
    check_lineage(tmp_path, full, emulator, results)


def check_lineage(data: Path, full: Path, emulator: Path, results: list[dict[str, Any]]) -> None:
    entries = lineage(data)
    assert [e.kind for e in entries] == ["start", "round", "round"]
    assert [e.parent for e in entries] == [0, 1, 2]
    assert [e.published_version for e in entries] == [1, 2, 3]
    loaded, package = load_full_model(str(full)), read_emulator_package(emulator)
    assert {e.base_digest for e in entries} == {loaded.digest}
    assert {e.emulator_manifest for e in entries} == {package.digest.hex()}
    assert entries[0].plugged_digest == loaded.digest  # nothing is learnt yet
    for entry, result in zip(entries[1:], results, strict=True):
        assert entry.origin is not None
        for name in ("context", "sum_root", "transcript_sha256"):
            assert entry.origin[name] == result[name]
        assert dict(entry.figures) == result["evaluation"]
        figures = result["evaluation"]
        assert figures["forgetting_nats_per_byte"] == pytest.approx(
            figures["validation_nats_per_byte"] - figures["base_nats_per_byte"]
        )
        assert "emulator_nats_per_byte" in figures
        manifest = data / "owner" / "versions" / str(entry.published_version) / "manifest.json"
        assert Manifest.decode(manifest.read_bytes()).digest.hex() == entry.update_manifest
        _, update = published(data / "owner", entry.published_version)
        with plugged_in(loaded.model, update, SPLIT) as plugged:
            assert model_digest(plugged.state_dict()) == entry.plugged_digest
    assert model_digest(loaded.model.state_dict()) == loaded.digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollback_restores_bit_for_bit_and_rounds_go_on_from_it_in_other_processes(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path, kind: str
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = await all_edge_tenants(stack, running, tmp_path, emulator, texts)
            config = owner_config(running, tmp_path, full, emulator, texts, kind=kind)
            await own(config, rounds=2)  # each `own` is a process of its own as far as it knows
            restored = await roll_back(config, 2)
            (result,) = (await own(config, rounds=3))[2:]
            assert result["outcome"] == "opened"
            assert result["survivors"] == list(TENANTS)
            for node in nodes:
                await node.until("version_evaluated", version=result["version"] + 1)
                (told,) = node.heard("version_restored")
                assert told["restores"] == lineage(tmp_path)[1].update_manifest
            assert restored.number == 4

    asyncio.run(scenario())
    start, first, second, back, after = lineage(tmp_path)
    assert (back.kind, back.restores, back.parent, back.reason) == ("rollback", 2, 3, "worse")
    assert back.plugged_digest == first.plugged_digest != second.plugged_digest
    assert back.update_sha256 == first.update_sha256
    assert (back.origin, back.figures) == (first.origin, first.figures)
    assert after.parent == 4
    assert after.plugged_digest not in {e.plugged_digest for e in (start, first, second)}
    old, _ = published(tmp_path / "owner", first.published_version)
    new, _ = published(tmp_path / "owner", back.published_version)
    assert new == old.in_round(2 * TRAINING["steps"])  # other windows than the first time
    expected = plain_round(emulator, texts, new, published(tmp_path / "owner", 4)[1])
    origin = published(tmp_path / "owner", 1)[1]
    last = moved_by(published(tmp_path / "owner", 5)[1], origin)
    for name, tensor in moved_by(expected, origin).items():
        assert float((last[name] - tensor).abs().max()) < 1e-3, name


def test_an_owner_that_was_killed_before_it_noted_its_round_makes_the_same_version_again(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            await all_edge_tenants(stack, running, tmp_path, emulator, texts)
            config = owner_config(running, tmp_path, full, emulator, texts, kind="lora")
            await own(config, rounds=1)
            (_, kept), files = lineage(tmp_path), OwnerFiles(tmp_path / "owner")
            # The sum is in the registry and the state is of before.
            files.change(rounds_done=0, in_flight=1, model=1, origin=None, version=1)
            await own(config, rounds=1)
            (_, again) = lineage(tmp_path)
            assert again == replace(kept, created_at=again.created_at)
            assert files.read_state().model == 2
            assert len(await published_versions(config)) == 2

    asyncio.run(scenario())


async def published_versions(config: Config) -> list[int]:
    log = EventLog(level="debug", stream=io.StringIO())
    connection = OwnerConnection(config.coordinator, KeyFiles(config.keys), log)
    try:
        return [found.version for found in await connection.versions()]
    finally:
        await connection.close()


async def roll_back(config: Config, number: int) -> Entry:
    log = EventLog(level="debug", stream=io.StringIO())
    connection = OwnerConnection(config.coordinator, KeyFiles(config.keys), log)
    try:
        run = OwnerRun(config, make_subject(config), connection, log)
        return await run.roll_back(number, "worse")
    finally:
        await connection.close()


def test_what_cannot_be_gone_back_to_is_refused_in_words(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = owner_config(running, tmp_path, full, emulator, texts, kind="edges")
            log = EventLog(level="debug", stream=io.StringIO())
            connection = OwnerConnection(config.coordinator, KeyFiles(config.keys), log)
            await OwnerRun(config, make_subject(config), connection, log).publish()
            await connection.close()
            for number, words in ((1, "starts from version 1 already"), (7, "are 1")):
                with pytest.raises(ConfigError, match=words):
                    await roll_back(config, number)
            registry = ModelRegistry(tmp_path / "owner" / "models")
            unpublished = replace(registry.entry(1), number=2, update_manifest="")
            registry.add(unpublished, registry.update(1))
            with pytest.raises(ConfigError, match="never published"):
                await roll_back(config, 2)
            registry.add(replace(unpublished, update_manifest="11" * 32), b"other bytes")
            with pytest.raises(ConfigError, match="no safetensors"):
                await roll_back(config, 2)
            registry.add(
                replace(unpublished, update_manifest="11" * 32, plugged_digest="22" * 32),
                registry.update(1),
            )
            with pytest.raises(ConfigError, match="is another model now"):
                await roll_back(config, 2)
            (tmp_path / "owner/models/2/update.safetensors").write_bytes(b"changed")
            with pytest.raises(ConfigError, match="was changed since it was written"):
                await roll_back(config, 2)
            assert OwnerFiles(tmp_path / "owner").read_state().model == 1

    asyncio.run(scenario())


def test_an_emulator_of_another_full_model_is_told_before_anything_is_published(
    enrolled: Enrolled, tmp_path: Path, full: Path, emulator: Path, texts: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = owner_config(running, tmp_path, emulator, emulator, texts, kind="edges")
            await own(config)

    with pytest.raises(ConfigError, match="was made from"):
        asyncio.run(scenario())
