"""An encoder with a linear head over its pooled output: classification by a sentence encoder.

The pooling is that of sentence-transformers (Reimers, Gurevych 2019, arXiv:1908.10084): the mean
of the last hidden states over the mask, then L2-normalised. A head whose rows are scaled embeddings
of descriptions of the classes makes the model a zero-shot classifier by cosine similarity; nothing
else needs training before the first prediction.

A model is stored as `model.safetensors` and `config.json` (the encoder's configuration, classes,
pooling): no code, no pickle, and what is read is held against the configuration name by name.

Not here: the tokeniser (it is stored by its own `save_pretrained`), regression, several labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from secagg.errors import ConfigError

KIND = "encoder-classifier"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_FROM_CONFIG: Any = AutoModel.from_config  # transformers leaves it untyped
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


class EncoderClassifier(torch.nn.Module):
    """`encoder`, a transformers encoder without a pooler, and `head`, a linear layer on its mean.

    `classes` names the outputs in their order.
    """

    def __init__(self, encoder: Any, classes: Sequence[str], *, normalise: bool = True) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ConfigError(f"classifier classes {list(classes)}: two or more, each named once")
        self.encoder = without_pooler(encoder)
        self.head = torch.nn.Linear(encoder.config.hidden_size, len(classes))
        self.classes = tuple(classes)
        self.normalise = normalise

    @property
    def config(self) -> Any:
        """The encoder's configuration (PEFT asks a model for it)."""
        return self.encoder.config

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, D) float32: the mean over the mask, normalised where the model says so."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return pool(states.last_hidden_state, attention_mask, normalise=self.normalise)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, classes) logits."""
        logits: torch.Tensor = self.head(self.pooled(input_ids, attention_mask))
        return logits


def pool(states: torch.Tensor, mask: torch.Tensor, *, normalise: bool) -> torch.Tensor:
    """The mean of (B, T, D) states over a (B, T) mask, (B, D) float32."""
    weights = mask[:, :, None].float()
    mean = (states.float() * weights).sum(1) / weights.sum(1).clamp_min(1.0)
    return torch.nn.functional.normalize(mean, dim=-1) if normalise else mean


def without_pooler(encoder: Any) -> Any:
    """The encoder without the pooler that some classes bring, and without dropout.

    Dropout goes because a run must repeat bit for bit, and because teacher and student of a
    distillation must see the same states.
    """
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0
    for name in _DROPOUTS:
        if hasattr(encoder.config, name):
            setattr(encoder.config, name, 0.0)
    return encoder


def description_of(model: EncoderClassifier) -> dict[str, Any]:
    """What `config.json` says: enough to build the model again without its weights."""
    return {
        "kind": KIND,
        "classes": list(model.classes),
        "normalise": model.normalise,
        "encoder": model.encoder.config.to_diff_dict(),
    }


def build_classifier(description: Mapping[str, Any]) -> EncoderClassifier:
    """A model of this description with random weights. Raises: ConfigError on any other kind."""
    match description:
        case {"kind": "encoder-classifier", "classes": [*classes], "normalise": bool() as normalise,
              "encoder": {"model_type": str() as family, **rest}}:  # fmt: skip
            pass
        case _:
            raise ConfigError(
                f"config.json: not the description of an {KIND}; it needs classes, normalise "
                "and the encoder's configuration"
            )
    if "auto_map" in rest:
        raise ConfigError("config.json: the encoder asks for code of its own, which is never run")
    try:
        config = AutoConfig.for_model(family, **{str(name): value for name, value in rest.items()})
        encoder = _FROM_CONFIG(config, trust_remote_code=False)
    except (ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"config.json: transformers cannot build a {family}: {reason}") from error
    model = EncoderClassifier(encoder.float(), [str(name) for name in classes], normalise=normalise)
    model.train(False).requires_grad_(False)
    return model


def save_classifier(model: EncoderClassifier, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model_tensors(model)}
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(description_of(model), indent=1, sort_keys=True))


def model_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Names and tensors of the model's state, in the order of names."""
    return sorted(model.state_dict().items())


def is_classifier(folder: Path) -> bool:
    """Whether the folder holds what `save_classifier` wrote, judged by its config.json."""
    try:
        description = json.loads((folder / _CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and description.get("kind") == KIND


def load_classifier(folder: Path) -> EncoderClassifier:
    """Read what `save_classifier` wrote; float32, nothing trainable.

    Raises: ConfigError where a file is missing or unreadable, or names and shapes differ.
    """
    try:
        description = json.loads((folder / _CONFIG).read_text())
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"classifier {folder}: cannot be read: {error}") from error
    model = build_classifier(description)
    load_tensors(model, tensors, str(folder))
    return model


def load_tensors(
    model: EncoderClassifier, tensors: Mapping[str, torch.Tensor], source: str
) -> None:
    """Put tensors into a model by name, refusing what is missing, unexpected or of another shape.

    Raises: ConfigError naming the tensors that differ.
    """
    wanted = dict(model_tensors(model))
    differing = sorted(
        name
        for name in wanted.keys() | tensors.keys()
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    )
    if differing:
        raise ConfigError(
            f"classifier {source}: its tensors are not those of its configuration; missing, "
            f"unexpected or of another shape: {differing[:5]}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
