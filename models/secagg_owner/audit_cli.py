"""Audit an emulator package: does it protect the full model that it was made from?

secagg owner audit emulator --full shipped --out audit-report
secagg owner audit emulator --full MODEL --budget standard --text package:networkx --text FOLDER
secagg owner audit emulator --full MODEL --policy audit-policy.toml --releases data/releases.jsonl
secagg owner audit emulator --full MODEL --weights-only            # no training: seconds

Five audits: verbatim copies, the order of qualities, upgrade attacks, recovery
of hidden layers, and all packages together. `audit.json` goes into DIR, where the gate of
`publish` and `run` looks for it, and with `report.html` into --out. Signed with --keys.

The exit code is 0 where every clause of the policy passed, and 4 where one did not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from secagg.errors import ConfigError

if TYPE_CHECKING:
    from secagg.identity import Identity
    from secagg_models.audit.ordering import Tuning
    from secagg_models.audit.policy import AuditPolicy
    from secagg_models.audit.run import AuditBudget, Audited, AuditReport
    from secagg_models.audit.texts import ChosenTexts
    from secagg_models.package import LoadedModel
    from secagg_owner.emulator_package import EmulatorPackage

EXIT_REFUSED: Final = 4
_BUDGETS: Final = ("quick", "standard", "full")
_BYTES_PER_TOKEN: Final = 8
_LEAST_BYTES: Final = 1 << 21
_LORA_RANK: Final = 16


def add_commands(
    commands: Any, common: argparse.ArgumentParser, configured: argparse.ArgumentParser
) -> None:
    """Add `audit`."""
    audit = commands.add_parser(
        "audit",
        parents=[common],
        help="measure whether an emulator package protects the full model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument("package", type=Path, metavar="DIR", help="from `secagg owner emulate`")
    audit.add_argument("--full", required=True, metavar="MODEL",
                       help="shipped, minilm, a folder or a hub id")  # fmt: skip
    audit.add_argument("--policy", type=Path, metavar="FILE", help="TOML; without it the defaults")
    audit.add_argument("--budget", choices=_BUDGETS, default="quick",
                       help="about a minute, ten, or hours for a small model")  # fmt: skip
    audit.add_argument("--seeds", type=int, default=3, metavar="N")
    audit.add_argument("--text", action="append", metavar="SOURCE",
                       help="tuning text: a folder or package:NAME, repeatable; for a classifier "
                       "a folder with a folder of text files for each class")  # fmt: skip
    audit.add_argument("--own-text", type=Path, metavar="FOLDER",
                       help="text like that of the full model's training; without it this "
                       "Python's standard library")  # fmt: skip
    audit.add_argument("--pattern", default="**/*.py", help="which files of the folders")
    audit.add_argument("--update", choices=("edges", "lora"), default="edges",
                       help="what tenants tune")  # fmt: skip
    audit.add_argument("--releases", action="append", type=Path, default=[], metavar="PATH",
                       help="a release log (DATA/releases.jsonl) or an earlier package's folder, "
                       "repeatable")  # fmt: skip
    audit.add_argument("--weights-only", action="store_true",
                       help="no training: the audits of weights and releases alone")  # fmt: skip
    audit.add_argument("--keys", type=Path, metavar="DIR", help="the owner's keys: sign the audit")
    audit.add_argument("--threads", type=int, default=1, metavar="N")
    audit.add_argument("--out", type=Path, metavar="DIR", help="audit.json and report.html")
    audit.set_defaults(action=run_audit)


def run_audit(options: argparse.Namespace) -> int:
    """Audit, write, print; the exit code."""
    import torch
    from transformers.utils import logging

    from secagg_models.package import load_full_model
    from secagg_owner.emulator_package import read_emulator_package

    if options.seeds < 1 or options.threads < 1:
        raise ConfigError("--seeds and --threads are whole numbers from 1")
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    policy, identity = _policy(options.policy), _identity(options.keys)
    package = read_emulator_package(options.package)
    full = load_full_model(options.full)
    if full.digest != package.emulator.meta.full_digest:
        raise ConfigError(
            f"--full {options.full} has digest {full.digest}, and {options.package} was made from "
            f"{package.emulator.meta.full_digest}"
        )
    report = _audit(options, policy, package, full)
    _write(options, report.to_json(), identity)
    _print(options, report)
    return 0 if report.passes else EXIT_REFUSED


def _policy(path: Path | None) -> AuditPolicy:
    from secagg_models.audit.policy import AuditPolicy, load_policy

    return AuditPolicy() if path is None else load_policy(path)


def _identity(keys: Path | None) -> Identity | None:
    from secagg_wire.key_files import KeyFiles

    if keys is None:
        return None
    files = KeyFiles(keys)
    if files.party().role != "owner":
        raise ConfigError(f"{keys} holds the keys of {files.party()}, not of an owner")
    return files.identity()


def _audit(
    options: argparse.Namespace, policy: AuditPolicy, package: EmulatorPackage, full: LoadedModel
) -> AuditReport:
    from secagg_models.audit.run import BUDGETS, run_audits

    budget = BUDGETS[options.budget]
    texts = None if options.weights_only else _texts(options, full, budget)
    return run_audits(
        _audited(options, package, full),
        None if texts is None else texts.texts,
        policy,
        budget,
        seeds=options.seeds,
        tune=None if texts is None else _tuning(options, full, budget, texts),
        about_texts=None if texts is None else texts.about,
        on_progress=lambda line: print(line, file=sys.stderr, flush=True),
    )


def _texts(options: argparse.Namespace, full: LoadedModel, budget: AuditBudget) -> ChosenTexts:
    from secagg_models.audit import texts
    from secagg_models.text import corpus_of_folder, standard_library

    if full.task == "classification":
        if options.text:
            if len(options.text) > 1 or options.text[0].startswith(texts.PACKAGE):
                raise ConfigError("--text for a classifier is one folder, with a folder a class")
            folder = Path(options.text[0])
            return texts.labelled_texts(full.tokenizer, full.model.classes, folder)
        if options.full == "minilm":
            return texts.subject_texts(full.tokenizer)
        raise ConfigError(
            "--text: a classifier is audited on labelled text; give a folder that has a folder of "
            "text files for each class, or --weights-only"
        )
    own = standard_library()
    if options.own_text is not None:
        own = corpus_of_folder(options.own_text, name="own", pattern=options.pattern)
    sources = options.text or texts.DEFAULT_TUNING
    tuning = [texts.corpus_of(source, options.pattern) for source in sources]
    most = max(_LEAST_BYTES, _BYTES_PER_TOKEN * max(*budget.upgrade_tokens, budget.scratch_tokens))
    return texts.language_texts(full.tokenizer, own, tuning, attacker_bytes=most)


def _tuning(
    options: argparse.Namespace, full: LoadedModel, budget: AuditBudget, texts: ChosenTexts
) -> Tuning | None:
    """None is whole edge layers, the audit's default."""
    if options.update == "edges":
        return None
    from secagg_models.audit.ordering import UpdateTuning
    from secagg_models.audit.run import settings_for
    from secagg_models.lora import LoraShape

    settings = settings_for(full.model, budget, texts.texts.attacker)
    shape = LoraShape(_LORA_RANK, 1.0, _linear_names(full.model))
    return UpdateTuning(budget.tuning_tokens, settings, lora=shape)


def _linear_names(model: Any) -> tuple[str, ...]:
    """The last parts of the names of a layer's matrices: what LoRA can go into."""
    from secagg_models.families import layers_of

    names = {
        name.removesuffix(".weight").rpartition(".")[2]
        for name, parameter in layers_of(model)[0].named_parameters()
        if parameter.ndim == 2
    }
    return tuple(sorted(names))


def _audited(options: argparse.Namespace, package: EmulatorPackage, full: LoadedModel) -> Audited:
    from secagg_models.audit.run import Audited
    from secagg_owner.audit_gate import read_releases

    earlier, emulators = [], {}
    for path in options.releases:
        if path.is_dir():
            release, model = _earlier(path, full)
            earlier.append(release)
            emulators[release.manifest_digest] = model
        elif path.exists():
            earlier += read_releases(path)
        else:
            raise ConfigError(f"--releases {path}: there is no such file or folder")
    return Audited(
        full.model, package.emulator.model, package.emulator.meta.split, package.digest.hex(),
        full.digest, tuple(earlier), emulators,
    )  # fmt: skip


def _earlier(path: Path, full: LoadedModel) -> tuple[Any, Any]:
    """An earlier package's release and its model."""
    from secagg_models.audit.release import release_of
    from secagg_models.audit.verbatim import audit_verbatim
    from secagg_owner.emulator_package import read_emulator_package

    package = read_emulator_package(path)
    meta, model = package.emulator.meta, package.emulator.model
    if meta.split.layers != len(_layers(full)):
        raise ConfigError(f"--releases {path}: it is of a model of another depth")
    found = audit_verbatim(full.model, model, meta.split)
    release = release_of(
        full.model, meta.split, found,
        manifest_digest=package.digest.hex(), full_digest=meta.full_digest,
    )  # fmt: skip
    return release, model


def _layers(full: LoadedModel) -> Any:
    from secagg_models.families import layers_of

    return layers_of(full.model)


def _write(
    options: argparse.Namespace, audit: Mapping[str, Any], identity: Identity | None
) -> None:
    from secagg_owner.audit_gate import AUDIT_FILE, encode_audit
    from secagg_owner.audit_page import render

    data = encode_audit(audit, identity)
    try:
        (options.package / AUDIT_FILE).write_bytes(data)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / AUDIT_FILE).write_bytes(data)
            (options.out / "report.html").write_text(render(audit), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the audit: {error.filename}: {error.strerror}") from None


def _print(options: argparse.Namespace, report: AuditReport) -> None:
    if options.format == "json":
        print(json.dumps(report.to_json()))
        return
    for verdict in report.verdicts:
        print(f"{verdict.outcome:8} {verdict.clause:30} {verdict.sentence}")
    print("passes: it may leave" if report.passes else "does not pass: it may not leave")
