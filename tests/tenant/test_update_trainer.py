"""What a tenant trains: either kind of update, any rank up to the plan's, and nothing foreign."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from secagg.errors import PolicyRefused
from secagg.plan import RoundPlan
from secagg_models import lora, train, updates
from secagg_models.base import Base, load_base
from secagg_models.block_weights import BlockShape
from secagg_models.edges import EdgesShape, EdgeWeights
from secagg_models.flatten import unflatten
from secagg_models.version import UpdateMeta
from secagg_tenant.config import LoraTraining, Model, PolicyTable
from secagg_tenant.trainer import Contribution, ModelVersion
from secagg_tenant.update_trainer import UpdateTrainer
from secagg_wire.manifest import Manifest
from tests.coordinator.federation import Enrolled

EDGES = EdgesShape((0, 3))
BLOCK = BlockShape(4, 2, 1, "all", prefix=True, ordinary_weight=1.0)
LORA = lora.LoraShape(3, 2.0, ("q_proj", "down_proj"), (0, 3))
TRAINING = train.TrainingConfig(
    steps=2, batch=2, context=16, lr=0.02, schedule=train.Schedule(4), seed=1, precision="float32"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("emulator")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=384, hidden_size=16, intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return load_base(str(folder))


@dataclasses.dataclass
class Setting:
    """A tenant's trainer and the owner's side of it."""

    base: Base
    trainer: UpdateTrainer
    plan: RoundPlan
    folder: Path

    def version(self, update: updates.Update, **changes: Any) -> ModelVersion:
        meta = UpdateMeta(self.base.digest, update.shape, TRAINING)
        meta = dataclasses.replace(meta, **changes)
        files = {meta.file: updates.save(update)}
        manifest = Manifest.of(files, meta.to_json())
        folder = self.folder / manifest.digest.hex()
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return ModelVersion(1, manifest, folder)

    def plan_of(self, update: updates.Update) -> RoundPlan:
        return dataclasses.replace(self.plan, layout=updates.delta_layout(update))

    def train(self, update: updates.Update) -> Contribution:
        plan, version = self.plan_of(update), self.version(update)
        self.trainer.check(plan, version)
        return self.trainer.train(plan, version, lambda done, of: None)


def setting(
    base: Base,
    enrolled: Enrolled,
    folder: Path,
    limits: dict[str, Any] | None = None,
    **training: Any,
) -> Setting:
    texts = folder / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"m{number}.py").write_text(f"def ada_{number}(x): return x\n" * 4)
    config = LoraTraining(trainer="lora", text=texts, **training)
    model = Model(base=base.source, base_digest=base.digest)
    trainer = UpdateTrainer(
        config, model, PolicyTable(roster_digest="00" * 32, **limits or {}), "ada"
    )
    trainer.prepare()
    return Setting(base, trainer, enrolled.plan(), folder)


def moved(update: updates.Update, seed: int) -> updates.Update:
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(t.shape, generator=generator) for n, t in update.trained.items()}
    return updates.next_round(update, drawn, 0.02)


@pytest.mark.parametrize("shape", [LORA, EDGES, BLOCK])
def test_the_contribution_is_what_training_the_version_gives(
    base: Base, enrolled: Enrolled, tmp_path: Path, shape: updates.UpdateShape
) -> None:
    tenant = setting(base, enrolled, tmp_path)
    update = moved(updates.start(base.model, shape, 1), 2)
    sent = tenant.train(update)
    again = load_base(base.source)
    attached = updates.attach(again.model, update)
    train.train_update(attached, update, [tenant.trainer._stream("train")], TRAINING)
    expected = updates.delta_of(updates.state(attached, update), update)
    for name, part in unflatten(sent.vector, updates.delta_layout(update)).items():
        assert torch.equal(part, expected[name]), name


def test_versions_of_every_kind_may_follow_each_other(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    """What one kind wrote into the base is gone before the next one is trained."""
    tenant = setting(base, enrolled, tmp_path)
    adapter = moved(updates.start(base.model, LORA, 1), 2)
    weights = moved(updates.start(base.model, EDGES, 1), 3)
    block = moved(updates.start(base.model, BLOCK, 1), 4)
    first = [tenant.train(update).vector for update in (adapter, weights, block)]
    second = [tenant.train(update).vector for update in (adapter, weights, block)]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert tenant.trainer.evaluate(tenant.version(weights)).keys() == {"validation_nats_per_byte"}
    measured = tenant.trainer.evaluate(tenant.version(block))
    assert measured.keys() == {"validation_nats_per_byte", "validation_denoising"}


def test_a_tenant_of_lower_rank_contributes_a_vector_of_the_same_form(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    low = setting(base, enrolled, tmp_path, rank=1)
    adapter = moved(updates.start(base.model, LORA, 1), 2)
    layout = updates.delta_layout(adapter)
    sent = low.train(adapter)
    assert sent.vector.shape == (layout.size,)
    for part in unflatten(sent.vector, layout).values():
        assert part[:, 0].abs().max() > 0
        assert not part[:, 1:].any()
    assert low.train(moved(updates.start(base.model, EDGES, 1), 2)).vector.all()


def test_a_rank_above_the_plans_is_the_plans(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    high = setting(base, enrolled, tmp_path, rank=9)
    adapter = moved(updates.start(base.model, LORA, 1), 2)
    for part in unflatten(high.train(adapter).vector, updates.delta_layout(adapter)).values():
        assert part.abs().max(0).values.min() > 0


@pytest.mark.parametrize("after", [False, True])
def test_tensors_that_this_tenants_emulator_does_not_have_are_refused_by_name(
    base: Base, enrolled: Enrolled, tmp_path: Path, after: bool
) -> None:
    tenant = setting(base, enrolled, tmp_path)
    start = updates.start(base.model, EDGES, 1)
    assert isinstance(start, EdgeWeights)
    if after:
        tenant.train(start)
    name = "model.layers.0.mlp.up_proj.weight"
    renamed = {n.replace(name, "model.layers.0.mlp.other"): t for n, t in start.tensors.items()}
    turned = {**start.tensors, name: start.tensors[name].T.contiguous()}
    for tensors in (renamed, turned):
        foreign = dataclasses.replace(start, tensors=tensors)
        with pytest.raises(PolicyRefused, match=name) as refused:
            tenant.trainer.check(tenant.plan_of(foreign), tenant.version(foreign))
        assert refused.value.clause == "model"


def test_windows_that_are_too_long_or_too_many_a_step_are_refused(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    """They are cut before a model sees them, and measured before any plan is looked at."""
    tenant = setting(base, enrolled, tmp_path)
    update = updates.start(base.model, LORA, 1)
    plan = tenant.plan_of(update)
    long = tenant.version(update, training=dataclasses.replace(TRAINING, context=64))
    for look in (lambda: tenant.trainer.check(plan, long), lambda: tenant.trainer.evaluate(long)):
        with pytest.raises(PolicyRefused, match="longer than the 32"):
            look()
    wide = tenant.version(update, training=dataclasses.replace(TRAINING, steps=1, batch=10**6))
    with pytest.raises(PolicyRefused, match="a step are above") as refused:
        tenant.trainer.check(plan, wide)
    assert refused.value.clause == "max_training_batch"


def test_windows_above_the_policys_length_are_refused(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    """A base may take a million tokens; tenants with enough text would run out of memory alone."""
    tenant = setting(base, enrolled, tmp_path, {"max_training_context": TRAINING.context - 1})
    update = updates.start(base.model, LORA, 1)
    version = tenant.version(update)
    for look in (
        lambda: tenant.trainer.check(tenant.plan_of(update), version),
        lambda: tenant.trainer.evaluate(version),
    ):
        with pytest.raises(PolicyRefused, match="windows of 16 are above 15") as refused:
            look()
        assert refused.value.clause == "max_training_context"


@pytest.mark.parametrize("slot", [1000.0, float("inf")])
def test_a_slot_that_ends_after_the_first_deadline_is_refused_before_training(
    base: Base, enrolled: Enrolled, tmp_path: Path, slot: float
) -> None:
    tenant = setting(base, enrolled, tmp_path, slot_seconds=slot)
    with pytest.raises(PolicyRefused, match="ends after the first deadline") as refused:
        tenant.train(updates.start(base.model, LORA, 1))
    assert refused.value.clause == "training.slot_seconds"


def test_a_layer_that_the_emulator_does_not_have_is_refused(
    base: Base, enrolled: Enrolled, tmp_path: Path
) -> None:
    tenant = setting(base, enrolled, tmp_path)
    adapter = updates.start(base.model, LORA, 1)
    elsewhere = dataclasses.replace(
        adapter,
        shape=dataclasses.replace(LORA, layers=(0, 7)),
        a={n.replace("layers.3", "layers.7"): t for n, t in adapter.a.items()},
        b={n.replace("layers.3", "layers.7"): t for n, t in adapter.b.items()},
    )
    with pytest.raises(PolicyRefused, match=r"layers\.7"):
        tenant.trainer.check(tenant.plan_of(elsewhere), tenant.version(elsewhere))


def test_a_residual_follows_its_version(base: Base, enrolled: Enrolled, tmp_path: Path) -> None:
    tenant = setting(base, enrolled, tmp_path)
    for shape in (LORA, EDGES):
        old = moved(updates.start(base.model, shape, 1), 2)
        new = moved(old, 3)
        size = updates.delta_layout(old).size
        residual = np.random.default_rng(1).normal(size=size).astype(np.float32)
        carried = tenant.trainer.carry_residual(residual, tenant.version(old), tenant.version(new))
        assert np.linalg.norm(carried) == pytest.approx(np.linalg.norm(residual), rel=1e-4)
        assert (shape == EDGES) == np.array_equal(carried, residual)
