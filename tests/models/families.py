"""One tiny random model of each supported type, by transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
)

VOCABULARY = 264
_WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_GQA = {**_WIDTH, **_IDS, "num_key_value_heads": 1, "max_position_embeddings": 32}
_ENCODER = {**_WIDTH, **_IDS, "max_position_embeddings": 40}


class Classifier(nn.Module):
    """The shape of a classifier: an encoder and a linear head."""

    def __init__(self, encoder: Any, classes: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)
        self.config = encoder.config

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return torch.Tensor(self.head(hidden.last_hidden_state.mean(1)))


def _gpt2(layers: int) -> Any:
    config = GPT2Config(n_layer=layers, n_embd=16, n_head=2, n_positions=32, **_IDS)
    return GPT2LMHeadModel(config)


def _opt(layers: int) -> Any:
    config = OPTConfig(
        num_hidden_layers=layers, hidden_size=16, ffn_dim=24, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, **_IDS,
    )  # fmt: skip
    return OPTForCausalLM(config)


CAUSAL: dict[str, Callable[[int], Any]] = {
    "llama": lambda n: LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=n, tie_word_embeddings=True, **_GQA)
    ),
    "mistral": lambda n: MistralForCausalLM(MistralConfig(num_hidden_layers=n, **_GQA)),
    "qwen2": lambda n: Qwen2ForCausalLM(
        Qwen2Config(
            num_hidden_layers=n, use_sliding_window=True, sliding_window=8, max_window_layers=3,
            **_GQA,
        )
    ),
    "qwen3": lambda n: Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=n, head_dim=8, **_GQA)),
    "gpt2": _gpt2,
    "opt": _opt,
}  # fmt: skip
ENCODERS: dict[str, Callable[[int], Any]] = {
    "bert": lambda n: BertModel(BertConfig(num_hidden_layers=n, **_ENCODER)),
    "bert-mlm": lambda n: BertForMaskedLM(BertConfig(num_hidden_layers=n, **_ENCODER)),
    "roberta": lambda n: RobertaModel(RobertaConfig(num_hidden_layers=n, **_ENCODER)),
}


def build(kind: str, layers: int = 6) -> Any:
    """A model in evaluation mode, drawn from a fixed seed."""
    torch.manual_seed(11)
    model = (CAUSAL | ENCODERS)[kind](layers).eval()
    with torch.no_grad():  # random layers all but pass their input through: make them matter
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model
