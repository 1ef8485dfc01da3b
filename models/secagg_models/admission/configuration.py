"""What a model's configuration and its tokeniser's may ask for: known things, in sane sizes.

A configuration chooses which program runs: names of classes, code of its own (`auto_map`), kernels
and quantisers that are fetched, activations that are not what the family was trained with. So it is
a list of what is allowed, and everything else is refused by its name. transformers never runs a
repository's code here (`trust_remote_code` is off everywhere); refusing what asks for it keeps
that from hanging on one option.

Not here: what the weights do (`weights`, `behaviour`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from transformers import AutoConfig

from secagg.errors import ConfigError
from secagg_models.classifier import KIND as CLASSIFIER

_ACTIVATIONS: Final[Mapping[str, frozenset[str]]] = {
    "llama": frozenset({"silu", "swish"}),
    "mistral": frozenset({"silu", "swish"}),
    "qwen2": frozenset({"silu", "swish"}),
    "qwen3": frozenset({"silu", "swish"}),
    "gpt2": frozenset({"gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast"}),
    "opt": frozenset({"relu", "gelu"}),
    "bert": frozenset({"gelu", "gelu_new"}),
    "roberta": frozenset({"gelu", "gelu_new"}),
}
_STEMS: Final[Mapping[str, str]] = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2",
    "opt": "OPT", "bert": "Bert", "roberta": "Roberta",
}  # fmt: skip
_HEADS: Final = ("ForCausalLM", "LMHeadModel", "Model", "ForMaskedLM")
_CODE: Final = (
    "auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "kernel_config",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "custom_generate",
)  # fmt: skip
# Written by older transformers, read by nobody any more.
_HARMLESS: Final = frozenset({
    "_name_or_path", "architectures", "dtype", "gradient_checkpointing", "head_dim", "layer_types",
    "model_type", "n_ctx", "position_embedding_type", "rope_scaling", "rope_theta",
    "task_specific_params", "tokenizer_class", "torch_dtype", "transformers_version",
    "word_embed_proj_dim", "prefix", "_commit_hash",
})  # fmt: skip
_MUST_BE: Final[Mapping[str, tuple[Any, ...]]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "do_layer_norm_before": (True,),
    "layer_norm_elementwise_affine": (True,),
    "_remove_final_layer_norm": (False,),
    "layerdrop": (0, 0.0),
    "pretraining_tp": (1,),
    "reorder_and_upcast_attn": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "position_embedding_type": ("absolute",),
}
_WHOLE: Final[Mapping[str, tuple[float, float]]] = {
    "hidden_size": (8, 1 << 15), "n_embd": (8, 1 << 15), "word_embed_proj_dim": (8, 1 << 15),
    "intermediate_size": (8, 1 << 18), "ffn_dim": (8, 1 << 18), "n_inner": (8, 1 << 18),
    "num_hidden_layers": (1, 512), "n_layer": (1, 512),
    "num_attention_heads": (1, 1024), "n_head": (1, 1024), "num_key_value_heads": (1, 1024),
    "head_dim": (2, 1024), "type_vocab_size": (1, 64), "vocab_size": (16, 1 << 20),
    "max_position_embeddings": (16, 1 << 24), "n_positions": (16, 1 << 24),
    "n_ctx": (16, 1 << 24), "original_max_position_embeddings": (16, 1 << 24),
}  # fmt: skip
_REAL: Final[Mapping[str, tuple[float, float]]] = {
    "rms_norm_eps": (1e-12, 1e-3), "layer_norm_eps": (1e-12, 1e-3),
    "layer_norm_epsilon": (1e-12, 1e-3),
    "initializer_range": (0, 1), "init_std": (0, 1), "classifier_dropout": (0, 0.5),
    "attention_dropout": (0, 0.5), "dropout": (0, 0.5), "hidden_dropout_prob": (0, 0.5),
    "attention_probs_dropout_prob": (0, 0.5), "resid_pdrop": (0, 0.5), "embd_pdrop": (0, 0.5),
    "attn_pdrop": (0, 0.5), "summary_first_dropout": (0, 0.5),
    "rope_theta": (1e3, 1e9), "factor": (1, 1024), "low_freq_factor": (0.01, 1024),
    "high_freq_factor": (0.01, 1024), "partial_rotary_factor": (0.1, 1),
    "attention_factor": (0.1, 10), "beta_fast": (1, 1024), "beta_slow": (0.1, 1024),
}  # fmt: skip
_ROPE: Final = frozenset({
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
    "attention_factor", "beta_fast", "beta_slow", "original_max_position_embeddings",
})  # fmt: skip
_ROPE_KINDS: Final = frozenset({"default", "linear", "dynamic", "llama3", "yarn"})
# tokenizer_config.json; a template is a program, and nothing here renders one.
_TOKENIZER_CODE: Final = ("auto_map", "custom_pipelines", "trust_remote_code", "chat_template")


def check_configuration(value: Any) -> str:
    """What kind of model a config.json describes, in words.

    Raises:
        ConfigError: names the key and what is wrong with it.
    """
    if not isinstance(value, Mapping):
        raise ConfigError("config.json is no JSON object")
    if value.get("kind") == CLASSIFIER:
        unknown = set(value) - {"kind", "classes", "normalise", "encoder"}
        if unknown:
            raise ConfigError(f"config.json: {min(unknown)} is no key of an {CLASSIFIER}")
        if not isinstance(value.get("encoder"), Mapping):
            raise ConfigError("config.json: encoder is no JSON object")
        return f"a classifier over {_check_model(value['encoder'])}"
    return _check_model(value)


def check_tokenizer(value: Any) -> None:
    """A tokenizer_config.json that asks for no code and brings no template.

    Raises:
        ConfigError: names the key.
    """
    if not isinstance(value, Mapping):
        raise ConfigError("tokenizer_config.json is no JSON object")
    for key in _TOKENIZER_CODE:
        if value.get(key):
            raise ConfigError(
                f"tokenizer_config.json has {key}, which asks for code or is a program; the owner "
                "must leave it out of the package"
            )


def _check_model(config: Mapping[str, Any]) -> str:
    for key in _CODE:
        if config.get(key):
            raise ConfigError(f"config.json has {key}, which asks for code that is not the model's")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _STEMS:
        raise ConfigError(
            f"config.json: model_type {str(kind)[:40]!r} is none of {', '.join(_STEMS)}"
        )
    _check_architecture(config, kind)
    _check_keys(config, kind)
    _check_activation(config, kind)
    _check_values(config)
    _check_rope(config)
    layers = config.get("num_hidden_layers", config.get("n_layer", "?"))
    return f"{kind} of {layers} layers"


def _check_architecture(config: Mapping[str, Any], kind: str) -> None:
    allowed = [f"{_STEMS[kind]}{head}" for head in _HEADS]
    for name in config.get("architectures") or ():
        if name not in allowed:
            raise ConfigError(
                f"config.json: architecture {str(name)[:60]!r} is none of {', '.join(allowed)}"
            )


def _check_keys(config: Mapping[str, Any], kind: str) -> None:
    known = set(AutoConfig.for_model(kind).to_dict()) | _HARMLESS
    unknown = sorted(set(config) - known)
    if unknown:
        raise ConfigError(
            f"config.json: {unknown[0][:60]!r} is no setting of a {kind}; the owner must leave it "
            "out"
        )


def _check_activation(config: Mapping[str, Any], kind: str) -> None:
    for key in ("hidden_act", "activation_function", "hidden_activation"):
        value = config.get(key)
        if value is not None and value not in _ACTIVATIONS[kind]:
            allowed = ", ".join(sorted(_ACTIVATIONS[kind]))
            raise ConfigError(
                f"config.json: {key} {str(value)[:40]!r} is not what a {kind} has ({allowed})"
            )


def _check_values(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"config.json: {key} is not finite")
        if key in _MUST_BE and value is not None and value not in _MUST_BE[key]:
            raise ConfigError(f"config.json: {key} must be {_MUST_BE[key][0]}, not {value!r}")
        if value is not None:
            _check_number(key, value)


def _check_number(key: str, value: Any) -> None:
    whole = key in _WHOLE
    low, high = _WHOLE.get(key) or _REAL.get(key) or (0, 0)
    if low == high:
        return
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        number = "a whole number" if whole else "a number"
        raise ConfigError(
            f"config.json: {key} {str(value)[:40]} is not {number} from {low:g} to {high:g}"
        )


def _check_rope(config: Mapping[str, Any]) -> None:
    for key in ("rope_parameters", "rope_scaling"):
        rope = config.get(key)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise ConfigError(f"config.json: {key} is no JSON object")
        for name, value in rope.items():
            if name in ("rope_type", "type"):
                if value not in _ROPE_KINDS:
                    raise ConfigError(f"config.json: {key}.{name} {str(value)[:40]!r} is unknown")
            elif name not in _ROPE:
                raise ConfigError(f"config.json: {key}.{str(name)[:40]} is unknown")
            else:
                _check_number(name, value)
