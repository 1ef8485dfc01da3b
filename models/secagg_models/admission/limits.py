"""Every figure that the admission of a model measures, its limit, and what honest models showed.

`honest` bounds the worst figure of models that nobody crafted: the shipped base, its emulator,
copies with layers dropped, random Llama, Qwen2, Qwen3, Mistral, GPT-2, OPT, BERT and RoBERTa of
widths 16 and 64, and all-MiniLM-L6-v2 (a trained encoder). The admission's tests measure them
again. They are small models: trained models of billions of parameters have larger outliers, and a
tenant that admits one sets its limits knowingly, from a copy that it trusts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from secagg.errors import ConfigError

Sense = Literal["at most", "at least"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One figure: which clause it belongs to, its default limit, and the worst honest value."""

    name: str
    clause: str
    sense: Sense
    default: float
    honest: float
    meaning: str


LIMITS: Final = (
    Limit("gain_ratio", "norm_gains", "at most", 15, 4.5,
          "largest gain of a norm over its median gain"),
    Limit("gain_dead", "norm_gains", "at most", 0.05, 0.0079,
          "share of a norm's gains below 1% of its median"),
    Limit("gain_level", "norm_gains", "at most", 40, 5,
          "a norm's median gain over, or under, that of the same norm in other layers"),
    Limit("norm_bias", "norm_gains", "at most", 15, 2.75,
          "largest bias of a norm over its median gain"),
    Limit("effective_rank", "rank", "at least", 0.1, 0.3,
          "exp(entropy of a matrix's squared singular values), as a share of its full rank"),
    Limit("dead_rows", "rank", "at most", 0.05, 0.0,
          "share of a matrix's rows, or columns, with a norm below 1% of the median"),
    Limit("spike", "spectrum", "at most", 8, 1.77,
          "largest singular value over the second"),
    Limit("spike_siblings", "spectrum", "at most", 10, 3.5,
          "largest singular value over the median one, compared with the same matrix elsewhere"),
    Limit("repeated_rows", "duplicates", "at most", 0.03, 0.004,
          "share of a matrix's rows that are a multiple of another row (|cosine| > 0.95)"),
    Limit("repeated_columns", "duplicates", "at most", 0.03, 0.0014,
          "the same for columns"),
    Limit("one_hot_rows", "sparse_rows", "at most", 0.03, 0.003,
          "share of rows with more than 95% of their energy in one entry"),
    Limit("one_hot_columns", "sparse_rows", "at most", 0.03, 0.0014,
          "the same for columns"),
    Limit("bias_ratio", "biases", "at most", 8, 0.77,
          "largest bias over the norm of its row"),
    Limit("bias_order", "biases", "at most", 0.9, 0.16,
          "rank correlation of a bias with the number of its unit"),
    Limit("scale_siblings", "scale", "at most", 20, 9,
          "a matrix's root mean square over, or under, the median of the same matrix elsewhere"),
    Limit("row_scale", "scale", "at most", 40, 9.53,
          "largest norm of a row or column over the median one"),
    Limit("embedding_one_hot", "embeddings", "at most", 0.02, 0.001,
          "share of embeddings with more than 90% of their energy in one entry"),
    Limit("embedding_scale", "embeddings", "at most", 8, 1.62,
          "largest norm of an embedding over the median one"),
    Limit("embedding_overlap", "embeddings", "at least", 0.6, 0.97,
          "mean squared cosine of two embeddings, times the width (random ones: 1)"),
    Limit("identity_attention", "pass_through", "at most", 0.5, 0.18,
          "share of the variance of what attention adds that is its input times a number"),
    Limit("identity_mlp", "pass_through", "at most", 0.5, 0.15,
          "the same for the MLP"),
    Limit("contribution", "pass_through", "at least", 0.0005, 0.002,
          "what attention or the MLP adds, over what passes by it"),
    Limit("constant_share", "pass_through", "at least", 0.01, 0.08,
          "how much of what attention or the MLP adds varies from token to token"),
    Limit("attention_content", "attention", "at least", 0.02, 0.08,
          "share of the attention scores' variance that depends on the text, not on positions"),
    Limit("attention_self", "attention", "at most", 0.8, 0.2,
          "attention of a token to itself, the median head of a layer"),
    Limit("alike_units", "imprint", "at most", 0.1, 0.025,
          "share of the MLP's units whose input follows another unit's (|correlation| > 0.95)"),
    Limit("unit_dimensions", "imprint", "at least", 3, 8,
          "effective dimensions of the inputs to the MLP's units"),
)  # fmt: skip
"""In the order in which they are checked."""

NOT_CAUGHT: Final = (
    "crafting below the limits: a model that leaks slowly, over many rounds",
    "units that fire for few inputs (trap weights): honest models have many of them",
    "near-identity over several layers together where none of them is by itself",
    "weights that act only on inputs unlike this tenant's sample and random tokens",
    "what an honest model's updates tell: small batches leak without any crafting",
)
"""What a model can do and still pass."""

_BY_NAME: Final = {limit.name: limit for limit in LIMITS}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Limits by figure; what is not given has its default."""

    changed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """From a table of figures and numbers.

        Raises:
            ConfigError: an unknown figure, or something that is no finite number.
        """
        for name, value in values.items():
            if name not in _BY_NAME:
                raise ConfigError(
                    f"admission threshold {name!r} is unknown; there are {', '.join(_BY_NAME)}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"admission threshold {name} must be a number")
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"admission threshold {name} = {value} must be finite, from 0")
        return cls({name: float(value) for name, value in values.items()})

    def of(self, name: str) -> float:
        """The limit of a figure."""
        return self.changed.get(name, _BY_NAME[name].default)

    def loosened(self) -> tuple[str, ...]:
        """Figures whose limit lets more pass than the default does."""
        return tuple(
            name
            for name, value in self.changed.items()
            if (value > _BY_NAME[name].default) == (_BY_NAME[name].sense == "at most")
            and value != _BY_NAME[name].default
        )
