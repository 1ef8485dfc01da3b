"""Models that somebody crafted so that updates tell more, and tiny honest ones of every family.

Each crafting changes one honest model in place and is as published where a paper is named; an
attacker who knows the admission's limits can be subtler than these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)

VOCABULARY, CONTEXT = 264, 64
_FROM: Any = AutoModelForCausalLM.from_config
_ENCODER_FROM: Any = AutoModel.from_config
_LLAMAS: Final[dict[str, Any]] = {
    "llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config,
}  # fmt: skip
_BERTS: Final[dict[str, Any]] = {"bert": BertConfig, "roberta": RobertaConfig}
FAMILIES: Final = (*_LLAMAS, "gpt2", "opt", *_BERTS)
Crafting = Callable[[Any], None]


def honest(family: str, width: int = 32, layers: int = 4, seed: int = 3) -> Any:
    """A random model as its library initialises it."""
    torch.manual_seed(seed)
    heads = max(2, width // 16)
    if family in _LLAMAS:
        config = _LLAMAS[family](
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 3,
            num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads // 2,
            head_dim=width // heads, max_position_embeddings=CONTEXT, bos_token_id=1,
            eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        return _FROM(config).eval()
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=heads, n_positions=CONTEXT,
            bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
        return _FROM(config).eval()
    if family == "opt":
        config = OPTConfig(
            vocab_size=VOCABULARY, hidden_size=width, ffn_dim=width * 4, num_hidden_layers=layers,
            num_attention_heads=heads, max_position_embeddings=CONTEXT, word_embed_proj_dim=width,
            dropout=0.0,
        )  # fmt: skip
        return _FROM(config).eval()
    config = _BERTS[family](
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 4,
        num_hidden_layers=layers, num_attention_heads=heads, max_position_embeddings=CONTEXT + 2,
    )  # fmt: skip
    return _ENCODER_FROM(config).eval()


def rotation(width: int, seed: int = 1) -> torch.Tensor:
    """A random orthogonal matrix: an identity that no single weight shows."""
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    turn: torch.Tensor = torch.linalg.qr(square)[0]
    return turn


@torch.no_grad()
def identity_attention(model: Any) -> None:
    """PEFTLeak: every token attends to itself and gives its input back, in a hidden basis."""
    attention = model.model.decoder.layers[0].self_attn
    turn = rotation(len(attention.v_proj.weight))
    attention.v_proj.weight.copy_(turn)
    attention.out_proj.weight.copy_(turn.T)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(4 * turn)


@torch.no_grad()
def silent_attention(model: Any) -> None:
    """What comes in passes by: attention adds next to nothing."""
    model.model.decoder.layers[0].self_attn.out_proj.weight.mul_(1e-6)


@torch.no_grad()
def identity_mlp(model: Any) -> None:
    """relu(x) - relu(-x) = x, in a hidden basis."""
    layer = model.model.decoder.layers[0]
    width = layer.fc1.in_features
    turn = rotation(width)
    layer.fc1.weight[: 2 * width].copy_(torch.cat([turn, -turn]))
    layer.fc2.weight[:, : 2 * width].copy_(torch.cat([turn.T, -turn.T], dim=1))
    layer.fc1.weight[2 * width :].mul_(0.1)


@torch.no_grad()
def imprint(model: Any) -> None:
    """Robbing the Fed: all units read one projection, with biases in steps of its quantiles."""
    decoder = model.model.decoder
    layer = decoder.layers[0]
    units, width = layer.fc1.weight.shape
    direction = rotation(width, seed=2)[0]
    inputs = mlp_inputs(model).reshape(-1, width)
    steps = torch.quantile(inputs @ direction, torch.linspace(0.001, 0.999, units))
    layer.fc1.weight.copy_(direction.expand(units, width))
    layer.fc1.bias.copy_(-steps)
    # The same way out of every unit: then each unit's gradient is the sum over those it is on for.
    layer.fc2.weight.copy_(layer.fc2.weight[:, :1].expand(width, units).clone())


def leaky(model: Any) -> None:
    """PEFTLeak's shape: attention passes by, and the edge layer's MLP imprints."""
    silent_attention(model)
    imprint(model)


@torch.no_grad()
def mlp_inputs(model: Any) -> torch.Tensor:
    """(positions, vocabulary, width): what the first MLP is given if attention adds nothing."""
    decoder = model.model.decoder
    tokens = decoder.embed_tokens.weight[None]
    places = decoder.embed_positions.weight[2 : CONTEXT + 2, None]
    inputs: torch.Tensor = decoder.layers[0].final_layer_norm(tokens + places)
    return inputs


@torch.no_grad()
def partial_imprint(model: Any) -> None:
    """An eighth of the units imprints, and the rows are up to sign and scale the same."""
    layer = model.model.decoder.layers[1]
    some = len(layer.fc1.weight) // 8
    scales = (
        torch.linspace(0.5, 2, some)[:, None] * torch.tensor([1.0, -1.0]).repeat(some)[:some, None]
    )
    layer.fc1.weight[:some].copy_(scales * layer.fc1.weight[:1])


@torch.no_grad()
def bias_steps(model: Any) -> None:
    """Biases that rise from unit to unit."""
    layer = model.model.decoder.layers[0]
    layer.fc1.bias.copy_(torch.linspace(-0.2, 0.2, len(layer.fc1.bias)))


@torch.no_grad()
def large_bias(model: Any) -> None:
    """A unit that fires for nothing but an outlier."""
    model.model.decoder.layers[0].fc1.bias[3] = -20.0


@torch.no_grad()
def gain_outlier(model: Any) -> None:
    """One coordinate of the stream drowns the others."""
    model.model.decoder.layers[0].self_attn_layer_norm.weight[4] = 60.0


@torch.no_grad()
def zeroed_gains(model: Any) -> None:
    """Half of the stream is cut off."""
    norm = model.model.decoder.layers[-1].final_layer_norm
    norm.weight[: len(norm.weight) // 2] = 0


@torch.no_grad()
def rank_one(model: Any) -> None:
    """A matrix that shows one projection of its input."""
    weight = model.model.decoder.layers[0].self_attn.v_proj.weight
    weight.copy_(torch.outer(weight[:, 0], weight[0]) / weight[0, 0])


@torch.no_grad()
def spectrum_spike(model: Any) -> None:
    """One direction far above the bulk."""
    weight = model.model.decoder.layers[-1].fc1.weight
    left, right = rotation(len(weight))[0], rotation(weight.shape[1])[0]
    weight.add_(40 * torch.linalg.svdvals(weight)[0] * torch.outer(left, right))


@torch.no_grad()
def one_hot_rows(model: Any) -> None:
    """Each unit reads one coordinate."""
    weight = model.model.decoder.layers[0].fc1.weight
    scale = weight.norm(dim=1, keepdim=True)
    weight.copy_(torch.eye(weight.shape[1]).repeat(4, 1) * scale)


@torch.no_grad()
def not_a_number(model: Any) -> None:
    """A single value."""
    model.model.decoder.layers[2].fc2.weight[1, 1] = float("nan")


@torch.no_grad()
def one_hot_embeddings(model: Any) -> None:
    """Tokens as far apart as they can be."""
    rows = model.model.decoder.embed_tokens.weight
    rows.copy_(torch.eye(rows.shape[1]).repeat(len(rows), 1)[: len(rows)] * 0.1)


@torch.no_grad()
def loud_layer(model: Any) -> None:
    """An edge layer on another scale than its siblings."""
    model.model.decoder.layers[-1].fc2.weight.mul_(50)


@torch.no_grad()
def loud_row(model: Any) -> None:
    """A unit that is on another scale than its siblings."""
    model.model.decoder.layers[0].fc1.weight[5].mul_(80)


@torch.no_grad()
def position_attention(model: Any) -> None:
    """Attention by positions alone: tokens and positions lie in halves of the stream."""
    decoder = model.model.decoder
    half = decoder.embed_tokens.weight.shape[1] // 2
    tokens = torch.nn.functional.normalize(decoder.embed_tokens.weight[:, :half], dim=1)
    decoder.embed_tokens.weight[:, :half] = 0.1 * tokens
    decoder.embed_tokens.weight[:, half:] *= 1e-3
    places = torch.nn.functional.normalize(decoder.embed_positions.weight[:, half:], dim=1)
    decoder.embed_positions.weight[:, half:] = 0.1 * places
    decoder.embed_positions.weight[:, :half] *= 1e-3
    attention = decoder.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[:, :half] *= 0.02


@torch.no_grad()
def loud_norm(model: Any) -> None:
    """A whole norm on another scale than its siblings."""
    model.model.decoder.layers[0].final_layer_norm.weight.mul_(100)


@torch.no_grad()
def norm_offset(model: Any) -> None:
    """A coordinate that is constant after a norm: a bias for weights that have none."""
    model.model.decoder.layers[0].final_layer_norm.bias[0] = 50


@torch.no_grad()
def dead_rows(model: Any) -> None:
    """A matrix that is blind to part of its input."""
    weight = model.model.decoder.layers[0].self_attn.v_proj.weight
    weight[: len(weight) // 8] = 0


@torch.no_grad()
def one_hot_columns(model: Any) -> None:
    """Each unit writes to one coordinate."""
    weight = model.model.decoder.layers[0].fc2.weight
    weight.copy_(torch.eye(len(weight)).repeat(1, 4) * weight.norm(dim=0))


@torch.no_grad()
def loud_embedding(model: Any) -> None:
    """One token drowns the others."""
    model.model.decoder.embed_tokens.weight[40] *= 50


@torch.no_grad()
def orthogonal_embeddings(model: Any) -> None:
    """Tokens apart from each other, in a hidden basis; needs more width than tokens."""
    rows = model.model.decoder.embed_tokens.weight
    rows.copy_(0.3 * rotation(rows.shape[1])[: len(rows)])


@torch.no_grad()
def constant_attention(model: Any) -> None:
    """Attention that adds the same to every token."""
    attention = model.model.decoder.layers[0].self_attn
    attention.v_proj.weight.mul_(1e-4)
    attention.v_proj.bias.fill_(0.05)


CRAFTED: Final[dict[Crafting, tuple[str, ...]]] = {
    gain_outlier: ("gain_ratio",),
    zeroed_gains: ("gain_dead",),
    loud_norm: ("gain_level",),
    norm_offset: ("norm_bias",),
    rank_one: ("effective_rank",),
    dead_rows: ("dead_rows",),
    spectrum_spike: ("spike", "spike_siblings"),
    leaky: ("repeated_rows", "repeated_columns", "unit_dimensions", "contribution"),
    imprint: ("repeated_rows", "alike_units", "unit_dimensions"),
    partial_imprint: ("repeated_rows", "alike_units"),
    one_hot_rows: ("one_hot_rows",),
    one_hot_columns: ("one_hot_columns",),
    large_bias: ("bias_ratio",),
    bias_steps: ("bias_order",),
    loud_layer: ("scale_siblings",),
    loud_row: ("row_scale",),
    one_hot_embeddings: ("embedding_one_hot",),
    loud_embedding: ("embedding_scale",),
    identity_attention: ("identity_attention", "attention_self"),
    identity_mlp: ("identity_mlp",),
    silent_attention: ("contribution",),
    constant_attention: ("constant_share",),
    position_attention: ("attention_content",),
}
"""Figures that must refuse it; others may as well."""
