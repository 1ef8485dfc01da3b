"""The full model with an update plugged in, as a folder that any loader of transformers can load.

FOLDER/model.safetensors, config.json, the tokeniser
FOLDER/lineage.json            what it was made from, by digests
FOLDER/replaced.safetensors    the full model's own tensors that the update took the place of
FOLDER/conditioning.safetensors  of a block: what its layers learnt of the noise level, which no
                               ordinary pass reads ('[model] conditioning' of other blocks' rounds)

A folder is written beside its place, read back, held against the digest of what was plugged in
memory, and only then moved there. Taking the update out again needs nothing but the folder: the
replaced tensors go back and the digest is the full model's, bit for bit.

Weights are written in float32, as they are plugged in. Nothing here leaves the owner.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secagg.errors import ConfigError
from secagg_models import classifier
from secagg_models.base import SHIPPED_SERIES, Base, load_base, model_digest
from secagg_models.block_weights import BlockWeights
from secagg_models.package import load_full_model
from secagg_models.plug_in import Cut, plug_in, unplug
from secagg_models.series.forecaster import Forecaster, is_forecaster, save_forecaster
from secagg_models.updates import Update

FORMAT: Final = "secagg-plugged/1"
LINEAGE_FILE: Final = "lineage.json"
REPLACED_FILE: Final = "replaced.safetensors"
CONDITIONING_FILE: Final = "conditioning.safetensors"


@dataclass(frozen=True, slots=True)
class PluggedLineage:
    """What a plugged model was made from; digests in hex, empty where nothing is known.

    `model` is the owner's number of the version (registry.py), 0 for an update from elsewhere.
    """

    base_digest: str
    plugged_digest: str
    emulator_manifest: str
    update_sha256: str
    update_manifest: str = ""
    model: int = 0
    origin: Mapping[str, str] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    format: str = FORMAT

    @classmethod
    def read(cls, folder: Path) -> PluggedLineage:
        """The lineage in a folder.

        Raises:
            ConfigError: there is none of this format.
        """
        try:
            found = cls(**json.loads((folder / LINEAGE_FILE).read_bytes()))
            if found.format != FORMAT:
                raise ValueError
        except (OSError, ValueError, TypeError):
            raise ConfigError(
                f"{folder} has no {LINEAGE_FILE} of format {FORMAT}; 'secagg owner plug-in' makes "
                "such a folder"
            ) from None
        return found


def write_plugged(
    out: Path,
    full: Base,
    update: Update,
    split: Cut,
    lineage: PluggedLineage,
    conditioning: Path | None = None,
) -> PluggedLineage:
    """Write the full model with the update in it; the lineage with the digest that was found.

    The model in memory is as it was afterwards. `lineage.plugged_digest` may be empty. A block's
    conditioning is written beside the model, with that of other blocks from `conditioning`.

    Raises:
        ConfigError: the folder exists, the update does not fit, or what it makes is not the
            lineage's plugged model.
    """
    plugged = plug_in(full.model, update, split)
    try:
        digest = model_digest(full.model.state_dict())
        if lineage.plugged_digest not in ("", digest):
            raise ConfigError(
                f"the update makes {digest}, and its lineage says {lineage.plugged_digest}: the "
                "full model or the emulator is not the one that it was measured with"
            )
        values = asdict(lineage) | {"plugged_digest": digest}
        extra: dict[str, bytes | Mapping[str, Any]] = {
            LINEAGE_FILE: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n",
            REPLACED_FILE: plugged.replaced,
        }
        if isinstance(update, BlockWeights):
            others = {} if conditioning is None else load_file(conditioning)
            extra[CONDITIONING_FILE] = others | update.conditioning
        _write_model(out, full, digest, extra)
    finally:
        unplug(full.model, plugged)
    return PluggedLineage(**values)


def write_reversed(folder: Path, out: Path) -> PluggedLineage:
    """Write the full model that a plugged folder was made from, bit for bit; its lineage.

    Raises:
        ConfigError: the folder was changed: what comes out is not the model of its lineage.
    """
    lineage, model = PluggedLineage.read(folder), load_tuned(str(folder))
    if model.digest != lineage.plugged_digest:
        raise ConfigError(
            f"{folder} holds {model.digest}, and its lineage says {lineage.plugged_digest}: it was "
            "changed since it was plugged"
        )
    _put_back(folder, model.model)
    digest = model_digest(model.model.state_dict())
    if digest != lineage.base_digest:
        raise ConfigError(
            f"{folder}: without the update it is {digest}, not the full model "
            f"{lineage.base_digest} of its lineage; {REPLACED_FILE} was changed"
        )
    _write_model(out, model, digest, {})
    return lineage


@torch.no_grad()
def _put_back(folder: Path, model: Any) -> None:
    try:
        replaced = load_file(folder / REPLACED_FILE)
    except (OSError, SafetensorError):
        raise ConfigError(f"{folder} has no {REPLACED_FILE}: nothing to put back") from None
    parameters = dict(model.named_parameters())
    strange = sorted(
        name
        for name, tensor in replaced.items()
        if name not in parameters or parameters[name].shape != tensor.shape
    )
    if strange:
        raise ConfigError(f"{folder / REPLACED_FILE}: {strange[:5]} are not of this model")
    for name, tensor in replaced.items():
        parameters[name].copy_(tensor)


def _write_model(
    out: Path, model: Base, digest: str, extra: Mapping[str, bytes | Mapping[str, Any]]
) -> None:
    if out.exists():
        raise ConfigError(f"{out} exists already; choose another folder, or remove it")
    passing = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        passing.mkdir(parents=True)
        _save(model, passing)
        if load_tuned(str(passing)).digest != digest:
            raise ConfigError(f"{out}: what was written does not load as what was plugged in")
        for name, content in extra.items():
            if isinstance(content, bytes):
                (passing / name).write_bytes(content)
            else:
                save_file(dict(content), passing / name)
        passing.rename(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def load_tuned(source: str) -> Base:
    """A full model of any task: as `load_full_model`, and forecasters, which have no tokeniser.

    Raises:
        ConfigError: it cannot be loaded, or is of no supported family or task.
    """
    if source == SHIPPED_SERIES or is_forecaster(Path(source)):
        return load_base(source)
    full = load_full_model(source)
    return Base(full.model, full.tokenizer, full.digest, source)


def _save(model: Base, folder: Path) -> None:
    match model.model:
        case Forecaster():
            save_forecaster(model.model, folder)
            return
        case classifier.EncoderClassifier():
            classifier.save_classifier(model.model, folder)
        case _:
            model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
