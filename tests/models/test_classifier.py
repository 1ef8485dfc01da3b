"""The classifier: pooling over the mask, storage without code, and its loss through train.py."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.base import model_digest
from secagg_models.classifier import (
    EncoderClassifier,
    is_classifier,
    load_classifier,
    pool,
    save_classifier,
)
from secagg_models.labelled import LabelledStream

CLASSES = ("graphs", "plots", "arrays")


@pytest.fixture
def classifier() -> EncoderClassifier:
    torch.manual_seed(2)
    encoder = BertModel(
        BertConfig(
            vocab_size=120,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=16,
        )
    )
    return EncoderClassifier(encoder, CLASSES)


@pytest.fixture
def stream() -> LabelledStream:
    generator = np.random.default_rng(3)
    lengths = np.full(30, 8, np.int32)
    lengths[::3] = 5
    ids = generator.integers(5, 100, size=(30, 8)).astype(np.int32)
    return LabelledStream("s", ids, lengths, np.arange(30, dtype=np.int64) % 3)


def test_padding_changes_no_prediction(classifier: Any, stream: LabelledStream) -> None:
    """The same passage alone and beside a longer one: what is masked does not count."""
    classifier.eval()
    batch = stream.held_out_windows(30, 8)
    together = classifier(batch.input_ids, batch.attention_mask)
    alone = classifier(batch.input_ids[:1, :5], batch.attention_mask[:1, :5])
    torch.testing.assert_close(alone, together[:1], atol=1e-5, rtol=1e-4)


def test_pooling_is_the_mean_over_the_mask_on_the_unit_sphere() -> None:
    states = torch.tensor([[[3.0, 0.0], [3.0, 8.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(states, mask, normalise=False).tolist() == [[3.0, 4.0]]
    assert pool(states, mask, normalise=True)[0].tolist() == pytest.approx([0.6, 0.8])


def test_no_dropout_is_left_so_that_training_mode_repeats(
    classifier: Any, stream: LabelledStream
) -> None:
    classifier.train()
    batch = stream.held_out_windows(30, 8)
    one, two = (classifier(batch.input_ids, batch.attention_mask) for _ in range(2))
    assert torch.equal(one, two)


def test_what_is_saved_is_loaded_bit_for_bit(classifier: Any, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path)
    again = load_classifier(tmp_path)
    assert is_classifier(tmp_path)
    assert again.classes == CLASSES
    assert model_digest(again.state_dict()) == model_digest(classifier.state_dict())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_other_tensors_than_the_configurations_are_refused_by_name(
    classifier: Any, tmp_path: Path
) -> None:
    save_classifier(classifier, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["head.weight"] = torch.zeros(4, 16)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'extra', 'head\.weight'"):
        load_classifier(tmp_path)


@pytest.mark.parametrize("change", [{"kind": "other"}, {"classes": ["one"]}, {"encoder": {}}])
def test_other_descriptions_are_refused(
    classifier: Any, tmp_path: Path, change: dict[str, Any]
) -> None:
    save_classifier(classifier, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(ConfigError):
        load_classifier(tmp_path)


def test_an_encoder_that_asks_for_its_own_code_is_refused(classifier: Any, tmp_path: Path) -> None:
    save_classifier(classifier, tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["encoder"]["auto_map"] = {"AutoModel": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="code of its own"):
        load_classifier(tmp_path)


def test_loss_and_accuracy_of_a_classifier(classifier: Any, stream: LabelledStream) -> None:
    batch = stream.held_out_windows(30, 8)
    losses = train.item_losses(classifier, batch, "float32").detach()
    assert losses.shape == (30,)
    mean = train.evaluate(classifier, stream, context=8, precision="float32")
    assert mean == pytest.approx(float(losses.mean()), rel=1e-5)
    assert mean == pytest.approx(math.log(3), abs=0.5)  # an untrained model
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    assert train.accuracy(classifier, stream, context=8) == pytest.approx(1 / 3)
