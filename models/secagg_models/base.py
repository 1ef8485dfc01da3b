"""The base model: what the owner starts from, loaded without running anybody's code.

Either the one that ships with this package (a byte-level Llama; its card is base/README.md), or any
local Hugging Face folder or hub id, through transformers' ordinary loaders. Weights are read
from safetensors alone and `trust_remote_code` is off: a pickle or a repository's own Python is
refused, since it would run with the reader's rights. A model's identity is the digest over its
tensors, which plans and adapter manifests pin; a file's hash would change with its metadata.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from secagg.canonical import Writer
from secagg.errors import ConfigError
from secagg_models.series.forecaster import is_forecaster, load_forecaster

# transformers patches its own classes while it loads; two threads that load at once can leave the
# patches in place, and models that load later are not tied.
_ONE_AT_A_TIME = threading.Lock()
SHIPPED = "shipped"
SHIPPED_SERIES = "shipped-series"
_SERIES_FOLDER = Path(__file__).parent / "series" / "base"
_SHIPPED_FOLDER = Path(__file__).parent / "base"
SHIPPED_EMULATOR = Path(__file__).parent / "emulator"
"""The shipped base's emulator, distilled and unsigned: `secagg owner emulate --from` signs it."""


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A loaded base: the model in float32, its tokeniser, and the digest that names it (hex).

    A forecaster of time series has no tokeniser.
    """

    model: Any
    tokenizer: Any
    digest: str
    source: str


def load_base(name_or_path: str = SHIPPED) -> Base:
    """Load the shipped base, a local folder, or a hub id; a forecaster where the folder holds one.

    Raises: ConfigError that says what is missing (no such folder, no safetensors weights,
    a model that needs its own code).
    """
    ours = {SHIPPED: str(_SHIPPED_FOLDER), SHIPPED_SERIES: str(_SERIES_FOLDER)}
    source = ours.get(name_or_path, name_or_path)
    if name_or_path == SHIPPED_SERIES or is_forecaster(Path(source)):
        series = load_forecaster(Path(source)).train(False).requires_grad_(False)
        return Base(series, None, model_digest(series.state_dict()), name_or_path)
    return _load(AutoModelForCausalLM, name_or_path, source)


def load_encoder(name_or_path: str) -> Base:
    """Load an encoder without a head (BERT, MiniLM, RoBERTa): a local folder, or a hub id.

    Raises: ConfigError, as `load_base` does.
    """
    return _load(AutoModel, name_or_path, name_or_path)


def _load(auto: Any, name_or_path: str, source: str) -> Base:
    if Path(source).is_dir() and not any(Path(source).glob("*.safetensors")):
        raise ConfigError(
            f"base model {name_or_path}: no safetensors weights in {source}; "
            "convert pickled weights first, they are never loaded"
        )
    try:
        with _ONE_AT_A_TIME:
            model = auto.from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"base model {name_or_path}: transformers cannot load it: {reason}"
        ) from error
    model.train(False).requires_grad_(False)
    return Base(model, tokenizer, model_digest(model.state_dict()), name_or_path)


def model_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over (name, dtype, shape, bytes) of every tensor, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        header = Writer().tag("tensor").text(name).text(dtype_name(tensor)).u32(tensor.ndim)
        for side in tensor.shape:
            header.u64(side)
        digest.update(header.finish())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype as layouts write it, such as `float32`."""
    return str(tensor.dtype).removeprefix("torch.")
