"""One block alone is trained, exported, moved and read back, and nothing else of a model is."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError, UsageError
from secagg_models import block_weights, train, updates
from secagg_models.block_cut import BlockCut, Held
from secagg_models.block_package import build_block
from secagg_models.block_training import block_figures, denoising_loss, tenant_figures
from secagg_models.block_weights import BlockShape, BlockWeights
from secagg_models.blocks.network import BlockNetwork
from secagg_models.classifier import EncoderClassifier
from secagg_models.families import layer_prefix
from secagg_models.series.forecaster import Forecaster, ForecasterShape
from secagg_models.series.stream import Series, SeriesStream, stream_of
from secagg_models.text import TokenStream
from secagg_models.train import Schedule, TrainingConfig
from secagg_models.version import UpdateMeta
from tests.models import families

LAYERS = 5
TRAINING = TrainingConfig(
    steps=3, batch=2, context=12, lr=0.01, schedule=Schedule(3), seed=3, precision="float32"
)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "pure": {}, "prefix": {"prefix": True}, "mixed": {"prefix": True, "ordinary_weight": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def stream() -> TokenStream:
    """Counting upwards: a text that a tiny model learns."""
    return TokenStream("t", (np.arange(4000) % 200 + 3).astype(np.int32), 1.0)


def shape(held: Held = "all", **more: Any) -> BlockShape:
    return BlockShape(LAYERS, 2, 1, held, **more)


def held_model(held: Held, family: str = "llama") -> Any:
    full = families.build(family, LAYERS)
    full.requires_grad_(False)
    return full if held == "all" else build_block(full, BlockCut(LAYERS, 2, 1, held))


@pytest.mark.parametrize(
    ("held", "objective"),
    [("block", "pure"), ("all", "pure"), ("all", "prefix"), ("all", "mixed")],
)
def test_training_moves_the_block_and_its_conditioning_alone(
    held: Held, objective: str, stream: TokenStream
) -> None:
    model = held_model(held)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    start = updates.start(model, shape(held, **OBJECTIVES[objective]), seed=4)
    network = updates.attach(model, start)
    losses = train.train_update(network, start, [stream], TRAINING)
    delta = updates.delta_of(updates.state(network, start), start)
    assert len(losses) == TRAINING.steps
    assert set(delta) == set(start.trained)
    assert {name.split(".")[1] for name in start.conditioning} == {"1"}
    moved = {name for name, part in delta.items() if part.abs().max() > 0}
    assert {name for name in delta if name.endswith("_proj.weight")} <= moved
    assert any(name.startswith("blocks.1.modulate") for name in moved)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != (name in moved), name
    assert losses == train.train_update(network, start, [stream], TRAINING)
    bare = updates.detach(network, {n: before[n] for n in start.of_layers})
    assert all(torch.equal(t, before[n]) for n, t in bare.state_dict().items())


def test_a_block_alone_learns_what_it_learns_within_the_whole_model(stream: TokenStream) -> None:
    found = []
    for held in ("block", "all"):
        start = updates.start(held_model(held), shape(held), seed=4)
        network = updates.attach(held_model(held), start)
        train.train_update(network, start, [stream], TRAINING)
        state = updates.state(network, start)
        prefix = layer_prefix(network.model)
        offset = 3 if held == "block" else 0
        found.append({_moved_up(name, prefix, offset): tensor for name, tensor in state.items()})
    alone, within = found
    assert alone.keys() == within.keys()
    for name, tensor in within.items():
        assert torch.equal(alone[name], tensor), name


def _moved_up(name: str, prefix: str, offset: int) -> str:
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{int(number) + offset}.{rest}"


def test_more_training_brings_the_held_out_denoising_loss_down(stream: TokenStream) -> None:
    start = updates.start(held_model("block"), shape("block"), seed=4)
    network = updates.attach(held_model("block"), start)

    def loss() -> float:
        return denoising_loss(
            network, start.shape, stream, context=12, max_windows=16, precision="float32"
        )

    before = loss()
    assert loss() == before
    train.train_update(network, start, [stream], replace(TRAINING, steps=12))
    assert loss() < before


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert"])
def test_other_families_have_blocks_too(family: str) -> None:
    model = held_model("all", family)
    if family == "bert":
        model = EncoderClassifier(model, ("a", "b")).eval().requires_grad_(False)
    start = updates.start(model, shape(), seed=4)
    assert isinstance(updates.attach(model, start), BlockNetwork)
    assert updates.load(updates.save(start), start.shape).trained.keys() == start.trained.keys()


def test_a_mean_moves_every_tensor_and_residuals_stay_as_they_are() -> None:
    start = updates.start(held_model("block"), shape("block"), seed=4)
    delta = {name: torch.full_like(t, 0.5) for name, t in start.trained.items()}
    moved = updates.next_round(start, delta, 0.5)
    for name, tensor in moved.trained.items():
        assert torch.equal(tensor, start.trained[name] + 0.25)
    assert updates.carry_residual(delta, start, moved) == delta
    read = updates.load(updates.save(moved), moved.shape)
    assert isinstance(read, BlockWeights)
    assert all(torch.equal(t, moved.trained[n]) for n, t in read.trained.items())
    with pytest.raises(ConfigError, match="other tensors"):
        updates.next_round(start, {})


def test_a_block_of_another_model_is_refused() -> None:
    start = updates.start(held_model("block"), shape("block"), seed=4)
    with pytest.raises(ConfigError, match="the model has 5"):
        updates.refuse_foreign(held_model("all"), start)
    tensors = {n: t for n, t in start.tensors.items() if n != "blocks.1.into.weight"}
    with pytest.raises(ConfigError, match="missing in the update"):
        updates.refuse_foreign(held_model("block"), BlockWeights(start.shape, tensors))
    with pytest.raises(ConfigError, match="block of another model"):
        updates.install(
            updates.attach(held_model("block"), start),
            BlockWeights(start.shape, {n: t.double() for n, t in start.tensors.items()}),
        )
    updates.refuse_foreign(held_model("block"), start)


def test_a_parameter_outside_the_block_may_not_be_trained() -> None:
    start = updates.start(held_model("all"), shape(), seed=4)
    network = updates.attach(held_model("all"), start)
    optimizer = torch.optim.SGD(updates.trained_parameters(network, start))
    updates.check_frozen(network, start, optimizer)
    network.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(UsageError, match="embed_tokens"):
        updates.check_frozen(network, start, optimizer)


def test_what_a_block_cannot_do_is_refused(stream: TokenStream) -> None:
    start = updates.start(held_model("block"), shape("block"), seed=4)
    network = updates.attach(held_model("block"), start)
    with pytest.raises(ConfigError, match="trained whole"):
        updates.limited_parameters(network, start, 2)
    with pytest.raises(ConfigError, match="per_window_clip"):
        train.train_update(network, start, [stream], TRAINING, per_window_clip=1.0)

    class Choosing:
        def batch_at(self, model: Any, config: TrainingConfig, step: int) -> Any:
            raise AssertionError

    with pytest.raises(ConfigError, match="windows that are drawn"):
        train.train_update(network, start, [Choosing()], TRAINING)


def test_levels_follow_the_width_of_the_target() -> None:
    found = block_weights.shape_for(held_model("all"), shape().cut)
    assert found.sigma_data == 0.5
    assert found.high == pytest.approx(80 * (16 / 4) ** 0.5)


def test_a_manifest_of_a_block_is_read_back_exactly_and_nothing_else_is() -> None:
    meta = UpdateMeta("ab" * 32, shape(prefix=True, ordinary_weight=2.0), TRAINING)
    written = meta.to_json()
    assert UpdateMeta.from_json(written) == meta
    assert (meta.kind, meta.file) == ("block", "block.safetensors")
    broken: list[dict[str, Any]] = [
        {"held": "half"}, {"blocks": 9}, {"block": 2}, {"layers": 5.0}, {"block": True},
        {"widen": 1}, {"ordinary_weight": -1.0}, {"low": 100.0}, {"sigma_data": 0.0},
        {"prefix": 1}, {"held": "block"}, {"mean": float("nan")}, {"layers": [5]}, {"more": 1},
        {"layers": 1}, {"layers": 10**9}, {"layers": 10**9, "blocks": 10**9}, {"widen": 1e308},
    ]  # fmt: skip
    for change in broken:
        with pytest.raises(ConfigError):
            UpdateMeta.from_json(written | {"shape": asdict(meta.shape) | change})
    with pytest.raises(ConfigError):
        UpdateMeta.from_json(written | {"kind": ["block"]})
    with pytest.raises(ConfigError, match="columns"):
        UpdateMeta("ab" * 32, shape(), replace(TRAINING, columns=1))


def test_an_objective_that_needs_the_other_layers_is_refused_for_a_block_alone() -> None:
    for name in ("prefix", "mixed"):
        with pytest.raises(ConfigError, match='objective = "pure"'):
            shape("block", **OBJECTIVES[name])
    assert block_weights.network_of(held_model("block"), shape("block")).layers == ((), (0, 1))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_forecasters_block_is_trained_and_measured_on_series(objective: str) -> None:
    torch.manual_seed(1)
    model = Forecaster(
        ForecasterShape(
            width=16, layers=4, heads=2, intermediate=24, patch=4, context=32, horizon=8
        )
    )
    model.eval().requires_grad_(False)
    values = np.sin(np.arange(400) / 5).astype(np.float32)
    parts: list[SeriesStream] = [
        stream_of("t", [Series("waves", values)], split, 8) for split in ("train", "validation")
    ]
    of = block_weights.shape_for(model, BlockCut(4, 2, 0, "all"), **OBJECTIVES[objective])
    assert (of.sigma_data, of.high) == (1.0, 80.0)
    start = updates.start(model, of, seed=4)
    network = updates.attach(model, start)
    config = replace(TRAINING, context=32, steps=8)

    def figures() -> dict[str, float]:
        return tenant_figures(network, of, parts[1], context=32, max_windows=8, precision="float32")

    before = figures()
    assert set(before) == {"validation_denoising", "validation_pinball"}
    train.train_update(network, start, parts[:1], config)
    assert figures()["validation_denoising"] < before["validation_denoising"]
    learnt = BlockWeights(of, updates.state(network, start))
    updates.detach(network, start.of_layers)
    found = block_figures(model, learnt, {}, parts[1], context=32, max_windows=8)
    assert set(found) == {"pinball", "denoising"}


def test_a_model_in_both_of_its_uses_is_measured_with_the_other_blocks_conditioning(
    stream: TokenStream,
) -> None:
    model = held_model("all")
    start = updates.start(model, shape(), seed=4)
    other = updates.start(model, replace(shape(), block=0), seed=4)
    arguments = {"context": 12, "max_windows": 4, "precision": "float32"}
    found = block_figures(model, start, {}, stream, **arguments)  # type: ignore[arg-type]
    again = block_figures(model, start, other.conditioning, stream, **arguments)  # type: ignore[arg-type]
    assert found == again
    assert set(found) == {"nats_per_byte", "denoising", "sampler_nats_per_byte"}
    with pytest.raises(ConfigError, match="other blocks or another model"):
        block_figures(model, start, {"blocks.7.x": torch.zeros(1)}, stream, **arguments)  # type: ignore[arg-type]


def test_the_ordinary_pass_is_that_of_the_whole_model_alone() -> None:
    whole = updates.attach(held_model("all"), updates.start(held_model("all"), shape(), seed=4))
    assert updates.ordinary_model(whole) is whole.model
    assert updates.ordinary_model(whole.model) is whole.model
    start = updates.start(held_model("block"), shape("block"), seed=4)
    with pytest.raises(ConfigError, match="no ordinary pass"):
        updates.ordinary_model(updates.attach(held_model("block"), start))
