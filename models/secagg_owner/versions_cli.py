"""`secagg owner versions` and `status`: every state of the owner's model, and what comes next.

secagg owner versions --config owner.toml                       # or: versions list
secagg owner versions compare 2 3 --config owner.toml
secagg owner versions rollback 2 --reason "worse on ours" --config owner.toml
secagg owner status --config owner.toml --format json

A rollback is a new version with the older one's bytes. Nothing leaves by it: the next `publish`,
`round` or `run` publishes it, and tenants that pin this owner's key accept it if they have admitted
the version that it restores. Nothing here needs the coordinator. Exit codes: 0 done; 2 there is no
such version, or it cannot be gone back to, and the message says why.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.errors import ConfigError
from secagg_owner.audit_gate import AUDIT_FILE, decode_audit
from secagg_owner.config import BlockModel, Config, OffsiteModel, load_config
from secagg_owner.registry import Comparison, Entry, ModelRegistry
from secagg_owner.state import MODELS, OwnerFiles, State
from secagg_wire.manifest import Manifest

if TYPE_CHECKING:
    import torch

RollBack = Callable[[argparse.Namespace], Entry]
_SHORT = 16


def add_commands(commands: Any, configured: argparse.ArgumentParser, roll_back: RollBack) -> None:
    """Register the commands; `roll_back` has the owner's subject and does it."""
    versions = commands.add_parser(
        "versions",
        help="this owner's model versions: list, compare, rollback",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = versions.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", parents=[configured], help="all of them, with lineage")
    listing.set_defaults(action=_list)
    comparing = actions.add_parser("compare", parents=[configured], help="what differs in two")
    comparing.add_argument("a", type=int, metavar="A")
    comparing.add_argument("b", type=int, metavar="B")
    comparing.set_defaults(action=_compare)
    back = actions.add_parser("rollback", parents=[configured], help="go back to one, bit for bit")
    back.add_argument("number", type=int, metavar="N")
    back.add_argument("--reason", required=True, metavar="TEXT", help="kept in the lineage")
    back.set_defaults(action=lambda options: _rolled_back(options, roll_back(options)))
    status = commands.add_parser(
        "status", parents=[configured], help="rounds, versions, the emulator, what is next"
    )
    status.set_defaults(action=_status)


def explicit(argv: list[str]) -> list[str]:
    """`versions` alone lists."""
    actions = ("list", "compare", "rollback", "-h", "--help")
    if argv[:1] == ["versions"] and argv[1:2] and argv[1] not in actions:
        return ["versions", "list", *argv[1:]]
    return argv


def _list(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = load_config(options.config)
    state = OwnerFiles(config.data).read_state()
    entries = ModelRegistry(config.data / MODELS).entries()
    if options.format == "json":
        return [asdict(entry) | {"current": entry.number == state.model} for entry in entries]
    return [_row(entry, state.model) for entry in entries]


def _rolled_back(options: argparse.Namespace, entry: Entry) -> list[dict[str, Any]]:
    return [asdict(entry) if options.format == "json" else _row(entry, entry.number)]


def _row(entry: Entry, current: int) -> dict[str, Any]:
    """The lineage in short; JSON has all of it."""
    made_from = {"start": "", "round": f"{entry.round}", "rollback": f"of {entry.restores}"}
    return {
        "model": entry.number,
        "made": f"{entry.kind} {made_from[entry.kind]}".strip(),
        "current": "yes" if entry.number == current else "",
        "published": entry.published_version or "",
        "plugged": entry.plugged_digest[:_SHORT],
        "update": entry.update_sha256[:_SHORT],
        **_rounded(entry.figures),
        "forced": "; ".join(entry.forced),
        "reason": entry.reason,
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in figures.items()}


# ---------------------------------------------------------------------- comparing


def _compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = load_config(options.config)
    registry = ModelRegistry(config.data / MODELS)
    found = registry.compare(options.a, options.b)
    distances = _distances(registry, options.a, options.b)
    if options.format == "json":
        return [asdict(found) | {"distances": distances}]
    return _comparison_rows(found, distances)


def _comparison_rows(found: Comparison, distances: Mapping[str, float]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"same_plugged": found.same_plugged}]
    rows += [
        {"differs": name, "a": _short(a), "b": _short(b)} for name, (a, b) in found.lineage.items()
    ]
    rows += [{"figure": name, "b_minus_a": f"{d:+.4f}"} for name, d in found.figures.items()]
    rows += [{"tensor": name, "distance": f"{d:.3g}"} for name, d in distances.items()]
    return rows


def _short(value: Any) -> Any:
    return value[:_SHORT] if isinstance(value, str) else json.dumps(value)


def _distances(registry: ModelRegistry, a: int, b: int) -> dict[str, float]:
    """|b - a| / max(|a|, |b|) of every tensor that is plugged in (Frobenius): 0 for the same.

    Of LoRA it is the product B A that is plugged in, whatever its factors are.
    """
    first, second = _plugged_tensors(registry, a), _plugged_tensors(registry, b)
    if differing := sorted(first.keys() ^ second.keys()):
        raise ConfigError(f"versions {a} and {b} change different tensors: {differing[:5]}")
    found = {}
    for name in sorted(first):
        one, other = first[name], second[name]
        size = max(float(one.norm()), float(other.norm()))
        found[name] = float((other - one).norm()) / size if size else 0.0
    return found


def _plugged_tensors(registry: ModelRegistry, number: int) -> dict[str, torch.Tensor]:
    from secagg_models import lora, updates
    from secagg_models.version import UpdateMeta

    meta = UpdateMeta.from_json(registry.entry(number).meta)
    match updates.load(registry.update(number), meta.shape):
        case lora.Adapter() as adapter:
            products = {lora.module_of(n): adapter.product(n) for n in adapter.b}
            return products | {name: tensor.double() for name, tensor in adapter.extra.items()}
        case weights:
            return {name: tensor.double() for name, tensor in weights.tensors.items()}


# ---------------------------------------------------------------------- status


def _status(options: argparse.Namespace) -> list[dict[str, Any]]:
    config = load_config(options.config)
    files = OwnerFiles(config.data)
    state, results = files.read_state(), files.results()
    entries = ModelRegistry(config.data / MODELS).entries()
    current = next((e for e in entries if e.number == state.model), None)
    facts = {
        "rounds_done": state.rounds_done,
        "rounds_wanted": config.round.rounds,
        "in_flight": state.in_flight,
        "last_outcome": results[-1]["outcome"] if results else "",
        "models": len(entries),
        "current": state.model,
        "published_version": 0 if current is None else current.published_version,
        "figures": {} if current is None else dict(current.figures),
        "forced": [] if current is None else list(current.forced),
        "emulator": _emulator(config),
        "next": _next(config, state, current),
    }
    if options.format == "json":
        return [facts]
    return [{name: value} for name, value in facts.items() if value not in ("", {}, [])]


def _next(config: Config, state: State, current: Entry | None) -> str:
    wanted = config.round.rounds
    if state.in_flight:
        return f"round {state.in_flight} is in flight; 'secagg owner run' goes on with it"
    if current is not None and not current.published_version:
        return f"version {current.number} is not published; 'secagg owner publish' publishes it"
    if state.rounds_done < wanted:
        return f"round {state.rounds_done + 1} of {wanted}; 'secagg owner run' opens it"
    if isinstance(config.model, OffsiteModel | BlockModel):
        return "all rounds are done; 'secagg owner plug-in' writes the tuned full model"
    return "all rounds are done; 'secagg owner run --rounds N' opens more"


def _emulator(config: Config) -> dict[str, Any]:
    """The package and what its audit says, from its files; nothing is loaded. Blocks have none."""
    match config.model:
        case OffsiteModel(emulator=folder):
            found = _package(folder)
            audited = "manifest" in found
            return found | ({"audit": _verdict(folder, found["manifest"])} if audited else {})
        case BlockModel(package=Path() as folder):
            return _package(folder)
        case _:
            return {}


def _package(folder: Path) -> dict[str, Any]:
    try:
        digest = Manifest.decode((folder / "manifest.json").read_bytes()).digest.hex()
    except (OSError, ConfigError) as error:
        return {"folder": str(folder), "problem": f"no package: {error}"}
    return {"folder": str(folder), "manifest": digest}


def _verdict(folder: Path, digest: str) -> str:
    """`passed`, `failed: CLAUSES`, or why there is none. The policy of today is the gate's part."""
    path = folder / AUDIT_FILE
    if not path.exists():
        return "none; run 'secagg owner audit'"
    try:
        audit = decode_audit(path.read_bytes(), str(path))
    except ConfigError as error:
        return f"unreadable: {error}"
    if audit.get("manifest_digest") != digest:
        return "of another package; run 'secagg owner audit' again"
    failed = [v["clause"] for v in audit.get("verdicts", []) if v.get("outcome") != "pass"]
    return "passed" if audit.get("passes") is True else f"failed: {', '.join(failed)}"
