"""`secagg tenant versions | approve | reject | rollback`: which model version serves here.

  secagg tenant versions --config tenant.toml
  secagg tenant approve 4 --config tenant.toml --reason "read the figures with the desk"
  secagg tenant reject 5 --config tenant.toml
  secagg tenant rollback --config tenant.toml

While 'join' runs, too. data/serving.json names the version in use with its files' SHA-256. Nothing
of this leaves the tenant: a rejected version is still trained from in the next round.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secagg.errors import ConfigError
from secagg_tenant.config import load_config
from secagg_tenant.decisions import SERVING_FILE, Decisions
from secagg_tenant.store import TenantStore, read_report
from secagg_tenant.versions import VersionFiles

_COLUMNS = ("number", "digest", "verdict", "decided_by", "held_out_loss", "memory_loss", "serving")


def add_commands(commands: Any) -> None:
    """Register the four commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", required=True, type=Path, metavar="FILE")
    common.add_argument("--format", choices=("text", "json"), default="text")
    word = argparse.ArgumentParser(add_help=False)
    word.add_argument("--reason", default="", metavar="TEXT", help="kept beside the decision")

    def add(name: str, line: str, *parents: argparse.ArgumentParser) -> Any:
        return commands.add_parser(
            name, parents=[common, *parents], help=line, description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    add("versions", "versions, what was decided, which one serves").set_defaults(action=_versions)
    for name, verdict in (("approve", "approved"), ("reject", "rejected")):
        command = add(name, f"a version is {verdict}, whatever was measured", word)
        command.add_argument("number", type=int, metavar="VERSION", help="the version's number")
        command.set_defaults(action=_decide, verdict=verdict)
    back = add("rollback", "the version approved before the one in use serves again", word)
    back.set_defaults(action=_roll_back)


def _versions(options: argparse.Namespace) -> int:
    data = load_config(options.config).data
    rows = list(_listed(read_report(data / "tenant.sqlite"), _serving_digest(data)))
    if options.format == "json":
        print(json.dumps(rows))
        return 0
    print("  ".join(f"{name:>14}" for name in _COLUMNS))
    for row in rows:
        print("  ".join(f"{_shown(row[name]):>14}" for name in _COLUMNS))
    return 0


def _listed(
    report: dict[str, list[dict[str, object]]], serving: str | None
) -> Iterator[dict[str, object]]:
    """One row for each version, with its last decision."""
    last = {row["digest"]: row for row in report["decisions"]}
    figures: dict[object, dict[object, object]] = {}
    numbers: dict[object, object] = {}
    for row in report["versions"]:
        numbers[row["digest"]] = row["number"]
        figures.setdefault(row["digest"], {})[row["name"]] = row["value"]
    for digest, number in numbers.items():
        decision = last.get(digest, {})
        yield {
            "number": number,
            "digest": digest,
            "verdict": decision.get("verdict"),
            "decided_by": decision.get("decided_by"),
            "reason": decision.get("reason"),
            "held_out_loss": figures[digest].get("held_out_loss"),
            "memory_loss": figures[digest].get("memory_loss"),
            "serving": digest == serving,
        }


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else ""
        case float():
            return f"{value:.4f}"
        case _:
            return str(value)[:14]


def _decide(options: argparse.Namespace) -> int:
    with _decisions(options) as decisions:
        decisions.decide(options.number, options.verdict, options.reason)
        return _say_serving(decisions, options)


def _roll_back(options: argparse.Namespace) -> int:
    with _decisions(options) as decisions:
        decisions.roll_back(options.reason)
        return _say_serving(decisions, options)


def _say_serving(decisions: Decisions, options: argparse.Namespace) -> int:
    version = decisions.serving()
    number = 0 if version is None else version.number
    digest = None if version is None else version.manifest.digest.hex()
    if options.format == "json":
        print(json.dumps({"serving": number, "digest": digest}))
    elif version is None:
        print("no version serves: the base as it is")
    else:
        print(f"version {number} serves: {digest}")
    return 0


def _serving_digest(data: Path) -> str | None:
    try:
        named: object = json.loads((data / SERVING_FILE).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return named if isinstance(named, str) else None


@contextmanager
def _decisions(options: argparse.Namespace) -> Iterator[Decisions]:
    data = load_config(options.config).data
    if not (data / "tenant.sqlite").exists():
        raise ConfigError(f"{data / 'tenant.sqlite'} does not exist: this tenant has not joined")
    store = TenantStore(data / "tenant.sqlite")
    try:
        yield Decisions(store, VersionFiles(data / "versions"), data)
    except sqlite3.Error as error:
        raise ConfigError(
            f"{data / 'tenant.sqlite'} cannot be written: {error}. 'secagg tenant versions' shows "
            "what was decided"
        ) from None
    finally:
        store.close()
