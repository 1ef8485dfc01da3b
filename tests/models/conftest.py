"""A tiny random Llama and tiny texts: real transformers, PEFT and torch, but quick."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from secagg_models import lora, text
from tests.models.tiny import SHAPE, TINY


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny_model() -> Any:
    torch.manual_seed(5)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=264,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture
def adapter(tiny_model: Any) -> lora.Adapter:
    return lora.draw_adapter(tiny_model, SHAPE, seed=7)


@pytest.fixture
def streams() -> list[text.TokenStream]:
    sources = (b"def f(x): return x + 1\n", b"class Node(Graph): pass\n", b"SELECT * FROM t;\n")
    return [
        text.byte_stream(name, [text.SourceFile("x.py", source * 40)])
        for name, source in zip(TINY.packages, sources, strict=True)
    ]
