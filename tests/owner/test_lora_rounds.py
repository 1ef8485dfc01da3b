"""Two federated rounds of LoRA over TLS against the same training in plain text."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from secagg.errors import ConfigError
from secagg_models import arms, lora, train, updates
from secagg_models.base import load_base
from secagg_models.text import corpus_of_folder, encode
from secagg_models.version import UpdateMeta
from secagg_owner.config import Config
from secagg_wire.manifest import Manifest, Origin
from tests.coordinator.federation import TENANTS, Enrolled, Federation, federation
from tests.owner.test_owner_rounds import config_of, own
from tests.tenant.running import config_of as tenant_config
from tests.tenant.running import joined

TRAINING: dict[str, Any] = {
    "steps": 3,
    "batch": 2,
    "context": 16,
    "lr": 0.05,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_base(tmp_path_factory.mktemp("base"), seed=5)


def made_base(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for name in (*TENANTS, "owner"):
        (root / name).mkdir()
        for number in range(40):
            (root / name / f"m{number}.py").write_text(f"def {name}_{number}(x): return x\n" * 4)
    return root


def owner_config(running: Federation, data: Path, base: Path, texts: Path) -> Config:
    values = config_of(running, data, rounds=2).model_dump()
    values["model"] = {
        "kind": "lora", "base": str(base), "rank": 3, "scaling": 2.0,
        "targets": ("q_proj", "down_proj"),
    }  # fmt: skip
    values["training"] = TRAINING
    values["text"] = {"path": texts / "owner"}
    return Config.model_validate(values)


def lora_tenant(running: Federation, name: str, data: Path, base: Path, texts: Path) -> Any:
    config = tenant_config(running, name, data).model_dump()
    config["model"] = {"base": str(base), "base_digest": load_base(str(base)).digest}
    config["training"] = {"trainer": "lora", "text": texts / name}
    return type(tenant_config(running, name, data)).model_validate(config)


def version(owner: Path, number: int) -> tuple[UpdateMeta, lora.Adapter]:
    folder = owner / "versions" / str(number)
    meta = UpdateMeta.from_json(Manifest.decode((folder / "manifest.json").read_bytes()).meta)
    update = updates.load((folder / "adapter.safetensors").read_bytes(), meta.shape)
    assert isinstance(update, lora.Adapter)
    return meta, update


def origin(owner: Path, number: int) -> Origin | None:
    folder = owner / "versions" / str(number)
    return Manifest.decode((folder / "manifest.json").read_bytes()).origin


def plain_round(base: Path, texts: Path, meta: UpdateMeta, adapter: lora.Adapter) -> lora.Adapter:
    """The same round without protection: train on each text, average, refactor."""
    loaded = load_base(str(base))
    model = lora.attach(loaded.model, adapter)
    deltas = []
    for name in TENANTS:
        files = corpus_of_folder(texts / name, name=name).train
        stream = encode(name, files, loaded.tokenizer)
        train.train_update(model, adapter, [stream], meta.training)
        deltas.append(lora.delta_of(lora.trainable_state(model), adapter))
    return lora.next_round(adapter, arms.plain_mean(deltas, [1.0] * len(deltas)))


def test_two_rounds_make_the_adapter_that_plain_averaging_makes(
    enrolled: Enrolled, tmp_path: Path, base: Path, texts: Path
) -> None:
    async def scenario() -> list[dict[str, Any]]:
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            nodes = []
            for name in TENANTS:
                config = lora_tenant(running, name, tmp_path, base, texts)
                nodes.append(await stack.enter_async_context(joined(running, config)))
            results = await own(owner_config(running, tmp_path, base, texts))
            for node in nodes:
                await node.until("version_evaluated", version=3)
                assert [done["version"] for done in node.heard("version_recomputed")] == [2, 3]
            return results

    results = asyncio.run(scenario())
    assert [result["version"] for result in results] == [1, 2]
    assert all("validation_nats_per_byte" in result["evaluation"] for result in results)
    assert [origin(tmp_path / "owner", number) for number in (1, 2, 3)] == [
        None,
        *(
            Origin(*(bytes.fromhex(result[name]) for name in Origin.__dataclass_fields__))
            for result in results
        ),
    ]
    for number in (1, 2):
        meta, before = version(tmp_path / "owner", number)
        assert meta.training.first_step == (number - 1) * TRAINING["steps"]
        expected, (_, after) = plain_round(base, texts, meta, before), version(
            tmp_path / "owner", number + 1
        )  # fmt: skip
        step = results[number - 1]["clip"] / 32767
        for name in expected.b:
            error = (after.product(name) - expected.product(name)).abs().max()
            # Each tenant is off by a level at most; residuals of round 1 add another.
            assert float(error) < 2 * 3 * 2 * step, name


def test_a_version_of_another_base_is_refused_by_its_clause(
    enrolled: Enrolled, tmp_path: Path, base: Path, texts: Path
) -> None:
    async def scenario() -> None:
        other = made_base(tmp_path / "other", seed=6)
        async with federation(enrolled, tmp_path) as running, AsyncExitStack() as stack:
            for name in TENANTS:
                own_base = other if name == "ada" else base
                config = lora_tenant(running, name, tmp_path, own_base, texts)
                node = await stack.enter_async_context(joined(running, config))
                if name == "ada":
                    strict = node
            await own(owner_config(running, tmp_path, base, texts), rounds=1)
            assert (await strict.until("plan_refused"))["clause"] == "base_digest"

    asyncio.run(scenario())
    result = json.loads((tmp_path / "owner/rounds/1/result.json").read_text())
    assert result["survivors"] == [name for name in TENANTS if name != "ada"]


def test_a_base_that_is_not_the_pinned_one_is_told_before_joining(
    enrolled: Enrolled, tmp_path: Path, base: Path, texts: Path
) -> None:
    async def scenario() -> None:
        async with federation(enrolled, tmp_path) as running:
            config = lora_tenant(running, "ada", tmp_path, base, texts)
            foreign = config.model.model_copy(update={"base_digest": "00" * 32})
            config = config.model_copy(update={"model": foreign})
            async with joined(running, config) as node:
                await asyncio.wait([node.session])

    with pytest.raises(ConfigError, match="not the pinned"):
        asyncio.run(scenario())
