"""`secagg owner plug-in`: the full model with a version's update in it, or without it again.

secagg owner plug-in --config owner.toml --out tuned                # the newest version
secagg owner plug-in --config owner.toml --model 2 --out tuned
secagg owner plug-in --full my-model --emulator DIR --update DIR --out tuned
secagg owner plug-in --full my-model --block DIR --update DIR --out tuned   # one block
secagg owner plug-in --reverse tuned --out my-model-again           # bit for bit

`--update` is a version as it was published (`manifest.json` and its file); a block that tenants
trained within the whole model needs no `--block`. What comes out is a folder for transformers, or
of a forecaster, with `lineage.json`. Exit codes: 0 done; 2 what was given does not fit
together, and the message says what.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.errors import ConfigError
from secagg.identity import sha256
from secagg_owner.config import BlockModel, OffsiteModel, load_config
from secagg_owner.registry import Entry, ModelRegistry
from secagg_owner.state import MODELS, OwnerFiles
from secagg_wire.manifest import Manifest

if TYPE_CHECKING:
    from secagg_models.base import Base
    from secagg_models.plug_in import Cut
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
    parser.add_argument("--block", type=Path, metavar="DIR", help="the block that was trained")
    parser.add_argument("--update", type=Path, metavar="DIR", help="a published version's folder")
    parser.add_argument("--reverse", type=Path, metavar="DIR", help="take the update out again")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.set_defaults(action=_plug_in)


def _plug_in(options: argparse.Namespace) -> list[dict[str, Any]]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    given = (options.full, options.emulator or options.block, options.update)
    if options.emulator and options.block:
        raise ConfigError("--emulator and --block: the update was trained against one of them")
    match options.config, options.reverse:
        case None, Path() as folder if not any(given):
            return _reversed(folder, options.out)
        case Path() as config, None if not any(given):
            return [_row(options.out, _of_version(config, options.model, options.out))]
        case None, None if options.full and options.update:
            return [_row(options.out, _of_files(options))]
        case _:
            raise ConfigError(
                "give --config, or --full with --update and --emulator or --block, or --reverse; "
                "one of these"
            )


def _reversed(folder: Path, out: Path) -> list[dict[str, Any]]:
    from secagg_owner.plugged_folder import write_reversed

    lineage = write_reversed(folder, out)
    return [{"out": str(out), "digest": lineage.base_digest, "was": lineage.plugged_digest}]


def _of_version(config_file: Path, number: int, out: Path) -> PluggedLineage:
    config = load_config(config_file)
    match config.model:
        case OffsiteModel(full=full, emulator=emulator):
            package: _Package = _Emulator(emulator)
        case BlockModel(full=full, package=folder, conditioning=others):
            package = _Block(folder, others)
        case model:
            raise ConfigError(
                f"{config_file} has model.kind = {model.kind!r}: there is no full model to plug "
                "an update into; kinds 'offsite' and 'block' have one"
            )
    registry = ModelRegistry(config.data / MODELS)
    entry = registry.entry(number or OwnerFiles(config.data).read_state().model)
    data = registry.update(entry.number)
    return _written(full, package, entry.meta, data, out, _lineage_of(entry))


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
    package = _Emulator(options.emulator) if options.emulator else _Block(options.block)
    return _written(options.full, package, manifest.meta, data, options.out, lineage)


@dataclass(frozen=True, slots=True)
class _Emulator:
    folder: Path


@dataclass(frozen=True, slots=True)
class _Block:
    """No folder where tenants hold the whole model; `others` is other blocks' conditioning."""

    folder: Path | None
    others: Path | None = None


_Package = _Emulator | _Block


def _written(
    full_source: str, package: _Package, meta: Any, data: bytes, out: Path, lineage: PluggedLineage
) -> PluggedLineage:
    from secagg_models import updates
    from secagg_models.version import UpdateMeta
    from secagg_owner.plugged_folder import load_tuned, write_plugged

    said = UpdateMeta.from_json(meta)
    full = load_tuned(full_source)
    trained = _trained(package, full, said)
    if lineage.emulator_manifest not in ("", trained.manifest):
        raise ConfigError(
            f"{package.folder} is another package than the version was trained against"
        )
    if full.digest != trained.full_digest:
        raise ConfigError(
            f"{full_source} has digest {full.digest}, and the package in {package.folder} was made "
            f"from {trained.full_digest}"
        )
    if said.base_digest != trained.digest:
        raise ConfigError(
            f"the update was trained on a model of digest {said.base_digest}, and this one's is "
            f"{trained.digest}"
        )
    update = updates.load(data, said.shape)
    lineage = replace(lineage, base_digest=full.digest, emulator_manifest=trained.manifest)
    others = package.others if isinstance(package, _Block) else None
    return write_plugged(out, full, update, trained.cut, lineage, others)


@dataclass(frozen=True, slots=True)
class _Trained:
    """What an update was trained against; digests in hex, no manifest where it was no package."""

    manifest: str
    full_digest: str
    digest: str
    cut: Cut


def _trained(package: _Package, full: Base, said: UpdateMeta) -> _Trained:
    from secagg_models.block_weights import BlockShape
    from secagg_owner.block_package import read_block_package
    from secagg_owner.emulator_package import read_emulator_package

    match package, said.shape:
        case _Emulator(folder), _:
            emulator = read_emulator_package(folder)
            of = emulator.emulator.meta
            return _Trained(emulator.digest.hex(), of.full_digest, of.emulator_digest, of.split)
        case _Block(folder=Path() as folder), BlockShape():
            block = read_block_package(folder)
            meta = block.block.meta
            return _Trained(block.digest.hex(), meta.full_digest, meta.block_digest, meta.cut)
        case _Block(folder=None), BlockShape() as shape:
            return _Trained("", full.digest, full.digest, shape.cut)
        case _:
            raise ConfigError("the update is of no block; --emulator names what it is of")


def _row(out: Path, lineage: PluggedLineage) -> dict[str, Any]:
    return {
        "out": str(out),
        "digest": lineage.plugged_digest,
        "base": lineage.base_digest,
        "model": lineage.model,
        "emulator_manifest": lineage.emulator_manifest,
        "update_manifest": lineage.update_manifest,
    }
