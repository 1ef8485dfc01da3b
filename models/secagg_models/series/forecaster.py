"""A small foundation model of time series: patches in, quantiles of the next values out.

A decoder over patches as in TimesFM (Das et al. 2024, section 3): each patch of values, with a mask
of which are observed, becomes one position; transformers' Llama runs causally over them; at every
position a linear head gives quantiles of the `horizon` values that follow. Trained with the pinball
loss, so the middle quantile is a median. Values are normalised by the history's mean and deviation
(RevIN, Kim et al. 2022, without its learnt part).

The model has `encoder` and a linear `head` as a classifier has, so LoRA, edge layers, splits and
blocks treat it as they treat a language model.

Not here: covariates, several channels at once (each is a series of its own), frequencies by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaModel

from secagg.errors import ConfigError
from secagg_models.series.batch import SeriesBatch, scale_of

MODEL_TYPE: Final = "secagg-forecaster"
CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
_MAX_SIZE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ForecasterShape:
    """Sizes; `patch`, `context` and `horizon` count values, `context` is the longest history."""

    width: int = 128
    layers: int = 6
    heads: int = 4
    intermediate: int = 352
    patch: int = 8
    context: int = 256
    horizon: int = 24
    quantiles: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        sizes = asdict(self)
        del sizes["quantiles"]
        wrong = [
            name
            for name, size in sizes.items()
            if type(size) is not int or not 1 <= size <= _MAX_SIZE
        ]
        if wrong:
            raise ConfigError(f"forecaster {', '.join(wrong)}: whole numbers from 1 to {_MAX_SIZE}")
        if self.width % (2 * self.heads) or self.context % self.patch:
            raise ConfigError(
                f"forecaster: width {self.width} must be a multiple of twice the {self.heads} "
                f"heads, and context {self.context} one of the patch {self.patch}"
            )
        levels = self.quantiles
        if not levels or list(levels) != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
            raise ConfigError(f"forecaster quantiles {levels}: between 0 and 1, ascending")

    @property
    def median(self) -> int:
        """The place of the quantile nearest to one half."""
        return min(range(len(self.quantiles)), key=lambda i: abs(self.quantiles[i] - 0.5))

    def encoder_config(self) -> LlamaConfig:
        """Transformers' configuration of the layers."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context // self.patch,
            vocab_size=1,
            use_cache=False,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )


class Forecaster(nn.Module):
    """See the module's docstring. Weights are drawn from torch's global generator."""

    def __init__(self, shape: ForecasterShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = LlamaModel(shape.encoder_config())
        # Patches take the place of a table of tokens, which would only be weight.
        self.encoder.embed_tokens = cast(Any, nn.Identity())
        self.patches = nn.Linear(2 * shape.patch, shape.width)
        self.head = nn.Linear(shape.width, shape.horizon * len(shape.quantiles))

    @property
    def config(self) -> LlamaConfig:
        """The encoder's."""
        return self.encoder.config

    def embed(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T/patch, width) of whole patches of normalised values (B, T), NaN where missing."""
        observed = ~torch.isnan(values)
        pieces = (torch.nan_to_num(values), observed.to(values.dtype))
        cut = [piece.reshape(len(values), -1, self.shape.patch) for piece in pieces]
        return cast(torch.Tensor, self.patches(torch.cat(cut, 2)))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Quantiles (B, T/patch, horizon, Q) after each patch of normalised values (B, T)."""
        hidden = self.encoder(inputs_embeds=self.embed(values), use_cache=False)
        return self.quantiles_of(hidden.last_hidden_state)

    def quantiles_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head alone, after the last norm: (B, P, width) to (B, P, horizon, Q)."""
        outputs = self.head(hidden)
        return cast(torch.Tensor, outputs.reshape(*outputs.shape[:2], self.shape.horizon, -1))


def pinball(guesses: torch.Tensor, truth: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Twice the quantile loss, averaged over levels: (...) for guesses (..., Q); NaN stays NaN.

    With many levels it approaches the CRPS; with the median alone it is the absolute error.
    """
    apart = truth.unsqueeze(-1) - guesses
    return 2 * torch.maximum(levels * apart, (levels - 1) * apart).mean(-1)


def series_losses(model: Any, batch: SeriesBatch, *, autocast: bool = False) -> torch.Tensor:
    """Pinball means (B, positions) of a batch, in units of each window's scale, float32.

    Positions are the patches that end at `scored_from` or later. Missing truth counts nothing; a
    position without any truth is 0. A forecast that is not a number has no number as loss.
    """
    shape: ForecasterShape = model.shape
    device = next(model.parameters()).device
    batch = batch.to(device)
    _refuse_other_sizes(shape, batch)
    values = scale_of(batch.values[:, : batch.scored_from]).normalised(batch.values)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        guesses = model(values[:, : batch.context])
    first = batch.scored_from // shape.patch - 1
    windows = values[:, (first + 1) * shape.patch :].unfold(1, batch.horizon, shape.patch)
    levels = torch.tensor(shape.quantiles, device=device)
    known = ~torch.isnan(windows)
    truth = torch.nan_to_num(windows, posinf=torch.inf, neginf=-torch.inf)
    losses = pinball(guesses[:, first:, : batch.horizon].float(), truth, levels)
    return torch.where(known, losses, 0).sum(2) / known.sum(2).clamp(min=1)


@torch.no_grad()
def quantiles_after(model: Any, history: torch.Tensor) -> torch.Tensor:
    """Forecasts (B, horizon, Q), ascending in Q, in the unit of the history (B, C), NaN = missing.

    C may be anything from 1: the latest whole context counts, a shorter history is padded on the
    left. Raises: ConfigError for another shape.
    """
    if history.ndim != 2 or not history.shape[1]:
        raise ConfigError(
            f"a history of shape {tuple(history.shape)}: wanted (series, values); "
            "one series has .unsqueeze(0)"
        )
    shape: ForecasterShape = model.shape
    device = next(model.parameters()).device
    history = history.float()
    short = -history.shape[1] % shape.patch if history.shape[1] < shape.context else 0
    history = nn.functional.pad(history.to(device), (short, 0), value=float("nan"))
    history = history[:, -shape.context :]
    scale = scale_of(history)
    guesses = model(scale.normalised(history))[:, -1].float()
    return scale.raw(guesses).sort(-1).values


def save_forecaster(model: Forecaster, folder: Path) -> None:
    """config.json and model.safetensors, float32."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {"model_type": MODEL_TYPE, **asdict(model.shape)}
    (folder / CONFIG_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / WEIGHTS_FILE)


def is_forecaster(folder: Path) -> bool:
    """Whether a folder's configuration says that it holds a forecaster."""
    try:
        written = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and written.get("model_type") == MODEL_TYPE


def load_forecaster(folder: Path) -> Forecaster:
    """Inverse of `save_forecaster`; weights of any float type become float32.

    Raises:
        ConfigError: no such folder, another model, or tensors that the sizes do not ask for.
    """
    try:
        written = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if written.pop("model_type") != MODEL_TYPE:
            raise ConfigError(f"{folder} holds no forecaster ({MODEL_TYPE})")
        shape = ForecasterShape(**written | {"quantiles": tuple(written["quantiles"])})
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = f"{CONFIG_FILE} lacks {reason}" if isinstance(error, KeyError) else reason
        raise ConfigError(f"no forecaster can be read from {folder}: {reason}") from None
    _refuse_other_tensors(folder, shape, tensors)
    model = Forecaster(shape)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the weights in {folder} do not fit its sizes: {reason}") from None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values()):
        raise ConfigError(f"the weights in {folder} are not finite")
    return model


def _refuse_other_tensors(
    folder: Path, shape: ForecasterShape, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Sizes that the file does not have cost memory before anything else would refuse them."""
    if shape.layers > len(tensors):
        raise ConfigError(f"the weights in {folder} do not fit its sizes: {shape.layers} layers")
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in Forecaster(shape).state_dict().items()}
    differing = [
        name for name, size in wanted.items() if getattr(tensors.get(name), "shape", None) != size
    ]
    if differing:
        raise ConfigError(f"the weights in {folder} do not fit its sizes: {sorted(differing)[:5]}")


def _refuse_other_sizes(shape: ForecasterShape, batch: SeriesBatch) -> None:
    if batch.context % shape.patch or batch.scored_from % shape.patch:
        raise ConfigError(
            f"a batch with context {batch.context}, scored from {batch.scored_from}: both are "
            f"whole patches of {shape.patch} values"
        )
    if batch.context > shape.context or batch.horizon > shape.horizon:
        raise ConfigError(
            f"a batch of {batch.context} + {batch.horizon} values: the forecaster takes up to "
            f"{shape.context} and predicts up to {shape.horizon}"
        )
