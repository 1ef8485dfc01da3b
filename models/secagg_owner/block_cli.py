"""`secagg owner block`: cut one block out of a model, as a signed package for tenants.

secagg owner block shipped --block 1 --blocks 3 --out block --keys keys

The package holds embeddings, that block's layers, last norm and head, all verbatim: what a tenant
needs to train this block by itself, and nothing of the other layers. `[model] kind = "block"` in
the owner's configuration names it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg_wire.key_files import KeyFiles


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Register the command; it needs no configuration file."""
    parser = commands.add_parser(
        "block",
        parents=[common],
        help="cut one block out of a model, as a signed package",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="shipped, minilm, a folder or a hub id")
    parser.add_argument("--block", type=int, required=True, metavar="B", help="from 0")
    parser.add_argument("--blocks", type=int, default=3, help="of how many (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the package")
    signed = parser.add_mutually_exclusive_group(required=True)
    signed.add_argument("--keys", type=Path, metavar="DIR", help="the owner's keys, which sign it")
    signed.add_argument("--unsigned", action="store_true", help="for trials: nobody vouches for it")
    parser.set_defaults(action=_block)


def _block(options: argparse.Namespace) -> list[dict[str, Any]]:
    keys = None if options.keys is None else KeyFiles(options.keys)
    if keys is not None and keys.party().role != "owner":
        raise ConfigError(f"{options.keys} holds the keys of {keys.party()}, not of an owner")
    from transformers.utils import logging

    from secagg_models.block_cut import BlockCut
    from secagg_models.families import layers_of
    from secagg_models.package import load_full_model
    from secagg_owner.block_package import write_block_package

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log
    full = load_full_model(options.model)
    cut = BlockCut(len(layers_of(full.model)), options.blocks, options.block, "block")
    identity = None if keys is None else keys.identity()
    package = write_block_package(options.out, full, cut, identity)
    meta = package.block.meta
    signer = {} if identity is None else {"owner_key": identity.public_key.hex()}
    return [
        {
            "package": str(options.out),
            "manifest_sha256": package.digest.hex(),
            "signed": meta.signed,
            **signer,
            "task": meta.task,
            "family": meta.family,
            **cut.to_json(),
            "block_layers": list(cut.full_block),
            "full_digest": meta.full_digest,
            "block_digest": meta.block_digest,
            "bytes": package.signed.manifest.total_size,
        }
    ]
