"""`secagg owner plug-in`: the full model with a version's update in it, or without it again.

secagg owner plug-in --config owner.toml --out tuned                # the newest version
secagg owner plug-in --config owner.toml --model 2 --out tuned
secagg owner plug-in --full my-model --emulator DIR --update DIR --out tuned
secagg owner plug-in --reverse tuned --out my-model-again           # bit for bit

`--update` is a version as it was published (`manifest.json` and its file). What comes out is a
folder for transformers, with `lineage.json`. Exit codes: 0 done; 2 what was given does not fit
together, and the message says what.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.errors import ConfigError
from secagg.identity import sha256
from secagg_owner.config import OffsiteModel, load_config
from secagg_owner.registry import Entry, ModelRegistry
from secagg_owner.state import MODELS, OwnerFiles
from secagg_wire.manifest import Manifest

if TYPE_CHECKING:
    from secagg_models.updates import Update
    from secagg_models.version import UpdateMeta
    from secagg_owner.plugged_folder import PluggedLineage


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "plug-in",
        parents=[common],
        help="write the full model with a version's update in it",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the owner's configuration")
    parser.add_argument(
        "--model", type=int, default=0, metavar="N", help="a version of 'secagg owner versions'"
    )
    parser.add_argument("--full", metavar="MODEL", help="'shipped', a folder, or a hub id")
    parser.add_argument("--emulator", type=Path, metavar="DIR", help="what it was trained against")
    parser.add_argument("--update", type=Path, metavar="DIR", help="a published version's folder")
    parser.add_argument("--reverse", type=Path, metavar="DIR", help="take the update out again")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(action=_plug_in)


def _plug_in(options: argparse.Namespace) -> list[dict[str, Any]]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    given = (options.full, options.emulator, options.update)
    match options.config, options.reverse:
        case None, Path() as folder if not any(given):
            return _reversed(folder, options.out)
        case Path() as config, None if not any(given):
            return [_row(options.out, _of_version(config, options.model, options.out))]
        case None, None if all(given):
            return [_row(options.out, _of_files(options))]
        case _:
            raise ConfigError(
                "give --config, or --full with --emulator and --update, or --reverse; one of these"
            )


def _reversed(folder: Path, out: Path) -> list[dict[str, Any]]:
    from secagg_owner.plugged_folder import write_reversed

    lineage = write_reversed(folder, out)
    return [{"out": str(out), "digest": lineage.base_digest, "was": lineage.plugged_digest}]


def _of_version(config_file: Path, number: int, out: Path) -> PluggedLineage:
    config = load_config(config_file)
    if not isinstance(config.model, OffsiteModel):
        raise ConfigError(
            f"{config_file} has model.kind = {config.model.kind!r}: there is no full model to plug "
            "an update into; kind = 'offsite' has one"
        )
    registry = ModelRegistry(config.data / MODELS)
    entry = registry.entry(number or OwnerFiles(config.data).read_state().model)
    data = registry.update(entry.number)
    return _written(
        config.model.full, config.model.emulator, entry.meta, data, out, _lineage_of(entry)
    )


def _lineage_of(entry: Entry) -> PluggedLineage:
    from secagg_owner.plugged_folder import PluggedLineage

    return PluggedLineage(
        entry.base_digest, entry.plugged_digest, entry.emulator_manifest, entry.update_sha256,
        entry.update_manifest, entry.number, entry.origin, entry.meta,
    )  # fmt: skip


def _of_files(options: argparse.Namespace) -> PluggedLineage:
    from secagg_models.version import UpdateMeta
    from secagg_owner.plugged_folder import PluggedLineage

    try:
        manifest = Manifest.decode((options.update / "manifest.json").read_bytes())
        meta = UpdateMeta.from_json(manifest.meta)
        data = (options.update / meta.file).read_bytes()
    except OSError as error:
        raise ConfigError(f"--update {options.update}: {error.strerror}") from None
    entry = manifest.entry(meta.file)
    if entry is None or entry.sha256 != sha256(data):
        raise ConfigError(f"--update {options.update}: {meta.file} is not its manifest's")
    lineage = PluggedLineage(
        "", "", "", sha256(data).hex(), manifest.digest.hex(),
        origin=None if manifest.origin is None else manifest.origin.to_json(),
        meta=manifest.meta,
    )  # fmt: skip
    return _written(options.full, options.emulator, manifest.meta, data, options.out, lineage)


def _written(
    full_source: str, emulator: Path, meta: Any, data: bytes, out: Path, lineage: PluggedLineage
) -> PluggedLineage:
    from secagg_models.package import load_full_model
    from secagg_models.version import UpdateMeta
    from secagg_owner.emulator_package import read_emulator_package
    from secagg_owner.plugged_folder import write_plugged

    package, said = read_emulator_package(emulator), UpdateMeta.from_json(meta)
    update = _read_update(data, said, package.emulator.meta.emulator_digest)
    if lineage.emulator_manifest not in ("", package.digest.hex()):
        raise ConfigError(f"{emulator} is another emulator than the version was trained against")
    full = load_full_model(full_source)
    if full.digest != package.emulator.meta.full_digest:
        raise ConfigError(
            f"{full_source} has digest {full.digest}, and the emulator in {emulator} was made from "
            f"{package.emulator.meta.full_digest}"
        )
    lineage = replace(lineage, base_digest=full.digest, emulator_manifest=package.digest.hex())
    return write_plugged(out, full, update, package.emulator.meta.split, lineage)


def _read_update(data: bytes, meta: UpdateMeta, emulator_digest: str) -> Update:
    from secagg_models import updates

    if meta.base_digest != emulator_digest:
        raise ConfigError(
            f"the update was trained on a model of digest {meta.base_digest}, and the emulator's "
            f"is {emulator_digest}"
        )
    return updates.load(data, meta.shape)


def _row(out: Path, lineage: PluggedLineage) -> dict[str, Any]:
    return {
        "out": str(out),
        "digest": lineage.plugged_digest,
        "base": lineage.base_digest,
        "model": lineage.model,
        "emulator_manifest": lineage.emulator_manifest,
        "update_manifest": lineage.update_manifest,
    }
