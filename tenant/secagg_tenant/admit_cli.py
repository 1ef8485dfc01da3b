"""`secagg tenant admit`: check an emulator package before this tenant trains with it.

Exit code 0 when these checks passed, 4 when a clause refused the package. A pass never says that an
emulator is safe: the report ends with what is not caught.

  secagg tenant admit emulator --owner-key HEX --emulator-digest HEX
  secagg tenant admit emulator --config tenant.toml --format json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.cli import EXIT_PROTOCOL
from secagg.errors import ConfigError
from secagg_tenant.config import Config, load_config
from secagg_wire.settings import read_toml

if TYPE_CHECKING:
    from secagg_tenant.admit import Admission, Pins


def add_commands(commands: Any) -> None:
    """Register `admit`."""
    parser = commands.add_parser(
        "admit",
        help="check an emulator package",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the package")
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="this tenant's pins, thresholds and text; the admission is kept in its database",
    )  # fmt: skip
    parser.add_argument("--owner-key", metavar="HEX", help="instead of model.owner_key")
    parser.add_argument(
        "--emulator-digest", "--manifest-digest", metavar="HEX",
        help="SHA-256 of manifest.json, instead of model.emulator_digest",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds", type=Path, metavar="FILE", help="TOML, instead of the table [admission]"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.set_defaults(action=_admit)


def _admit(options: argparse.Namespace) -> int:
    # torch is loaded only here: --help and the other commands go without it.
    from secagg_models.admission.limits import Thresholds
    from secagg_tenant.admit import admit, keep, own_text

    config = None if options.config is None else load_config(options.config)
    values = {} if config is None else dict(config.admission)
    if options.thresholds is not None:
        values = read_toml(options.thresholds)
    done = admit(
        options.folder,
        _pins(options, config),
        Thresholds.from_json(values),
        None if config is None else lambda tokenizer: own_text(config, tokenizer),
    )
    if config is not None:
        keep(config, done)
    if options.format == "json":
        print(json.dumps(done.to_json()))
    else:
        _print(done)
    return 0 if done.report.passed else EXIT_PROTOCOL


def _pins(options: argparse.Namespace, config: Config | None) -> Pins:
    from secagg_tenant.admit import Pins, pins_of

    pins = Pins(None) if config is None else pins_of(config)
    return Pins(
        _digest("--owner-key", options.owner_key) or pins.owner_key,
        _digest("--emulator-digest", options.emulator_digest) or pins.manifest_digest,
    )


def _digest(option: str, text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != 32:
        raise ConfigError(f"{option} takes 64 hexadecimal digits")
    return data


def _print(done: Admission) -> None:
    for number, check in enumerate(done.report.checks, 1):
        mark = "ok     " if check.passed else "REFUSED"
        print(f"{number:3} {mark} {check.clause:16} {check.reason or check.fact}")
        for figure in check.figures:
            sign = "<=" if figure.sense == "at most" else ">="
            print(
                f"{'':16}{figure.name:20} {figure.value:10.4g} {sign} {figure.limit:<8.4g} "
                f"margin {figure.margin:<8.3g} {figure.where}"
            )
    for clause in done.report.skipped:
        print(f"    skipped {clause}")
    for name in done.report.loosened:
        print(f"    the limit of {name} lets more pass than the default")
    verdict = done.to_json()
    print(f"\n{done.folder}: {verdict['verdict']}. Not caught by any of them:")
    for line in verdict["not_caught"]:
        print(f"  - {line}")
