"""`secagg owner audit` and the gate: what is refused, what is forced, and what is remembered."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from secagg.errors import ConfigError
from secagg.identity import Identity
from secagg_models.audit import attacks
from secagg_models.audit.policy import AuditPolicy, policy_of
from secagg_models.package import load_full_model
from secagg_models.split import Split
from secagg_owner import audit_gate, audit_page, cli
from secagg_owner.audit_gate import AUDIT_FILE, require_audit
from secagg_owner.emulator_package import read_emulator_package, write_emulator_package
from secagg_wire.enrol import create_keys
from secagg_wire.key_files import KeyFiles, Party
from tests.models import families
from tests.models.audited import SETTINGS, prose

SOURCE = "def function_{0}(value):\n    return value + {0}\n\n\n"
ANYTHING = policy_of({
    "audit": {"seeds_min": 1},
    "verbatim": {"middle_max": 1.0, "units_max": 1.0, "layers_max": 1.0},
    "ordering": {"gain_min": -9.0, "gap_min": -9.0},
    "upgrade": {"recovery_max": 9.0},
    "recovery": {"cosine_excess_max": 9.0, "cka_excess_max": 9.0},
})  # fmt: skip


@dataclass(frozen=True)
class Owned:
    """A model's folder and packages of it."""

    model: Path
    text: Path
    packages: dict[str, Path]

    def digest(self, name: str) -> bytes:
        return read_emulator_package(self.packages[name]).digest


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyFiles:
    return create_keys(tmp_path_factory.mktemp("keys") / "owner", Party("owner", "acme"))


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Owned:
    root = tmp_path_factory.mktemp("owned")
    model = families.build("llama", 6)
    attacks.heal(model, prose(0), 1 << 11, SETTINGS, seed=0, factor=3.0)
    model.save_pretrained(root / "model")
    ByT5Tokenizer(extra_ids=0).save_pretrained(root / "model")
    (root / "text").mkdir()
    for number in range(60):
        (root / "text" / f"m{number}.py").write_text(SOURCE.format(number) * 20)
    full = load_full_model(str(root / "model"))
    packages = {}
    for name, kept, moved in (
        ("copied", (1, 4), False), ("distilled", (1, 4), True), ("other", (2, 3), True)
    ):  # fmt: skip
        split = Split(6, 1, kept)
        emulator = attacks.own_copy(full.model)
        with_kept(emulator, split, moved)
        packages[name] = root / name
        write_emulator_package(root / name, full, emulator, split, distillation=None, identity=None)
    return Owned(root / "model", root / "text", packages)


def with_kept(model: Any, split: Split, moved: bool) -> None:
    """Cut the model down to the split; `moved` puts noise on its middle, as distillation would."""
    from secagg_models.families import layers_of, with_layers

    layers = layers_of(model)
    with_layers(model, [layers[layer] for layer in split.full_layers])
    if not moved:
        return
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in split.middle_layers:
            for parameter in layers_of(model)[layer].parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter += 0.5 * parameter.norm() * drawn / drawn.norm()


def audit(owned: Owned, name: str, *more: str) -> int:
    return cli.main([
        "audit", str(owned.packages[name]), "--full", str(owned.model), "--own-text",
        str(owned.text), "--text", str(owned.text), *more,
    ])  # fmt: skip


def test_copies_fail_with_exit_code_4_and_say_what_to_change(
    owned: Owned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(owned, "copied", "--weights-only", "--out", str(tmp_path)) == 4
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "verbatim.middle_max" in line]
    assert line.startswith("fail")
    assert "distil" in line
    assert lines[-1] == "does not pass: it may not leave"
    page = (tmp_path / "report.html").read_text()
    assert "It may not leave" in page
    assert "<svg" in page


def test_a_whole_audit_is_bound_to_package_and_model_signed_and_lets_the_package_pass(
    owned: Owned, keys: KeyFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small(monkeypatch)
    policy = tmp_path / "policy.toml"
    policy.write_text(toml_of(ANYTHING))
    code = audit(
        owned, "distilled", "--policy", str(policy), "--seeds", "2", "--keys",
        str(keys.directory), "--out", str(tmp_path / "report"), "--format", "json",
    )  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert code == 0, [v for v in printed["verdicts"] if v["outcome"] != "pass"]
    stored = json.loads((owned.packages["distilled"] / AUDIT_FILE).read_bytes())
    assert stored["manifest_digest"] == owned.digest("distilled").hex()
    assert stored["full_digest"] == load_full_model(str(owned.model)).digest
    assert stored["results"]["verbatim"]["middle_share"] == 0.0
    assert {point["attack"] for point in stored["results"]["upgrade"]["points"]} == {
        "heal", "duplicate", "outputs"
    }  # fmt: skip
    assert printed == {name: value for name, value in stored.items() if name != "signature"}
    public = keys.identity().public_key
    assert audit_gate.signed_by(stored, public)
    assert not audit_gate.signed_by(stored | {"passes": False}, public)
    assert not audit_gate.signed_by(stored, bytes(32))
    passage = require_audit(
        owned.packages["distilled"], owned.digest("distilled"), ANYTHING,
        data=tmp_path / "data", owner_key=public,
    )  # fmt: skip
    assert not passage.forced
    assert (tmp_path / "data" / "releases.jsonl").exists()
    assert not (tmp_path / "data" / "forced.jsonl").exists()
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("<svg") == 5


def test_the_tuned_update_may_be_lora(
    owned: Owned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    assert audit(owned, "distilled", "--seeds", "1", "--update", "lora") == 4  # no interval
    assert "fail     ordering.gap_min" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--releases", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--full", "shipped"], "digest"),
        (["--policy", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_what_does_not_fit_is_said_by_name(owned: Owned, arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        audit(owned, "distilled", "--weights-only", *arguments)


def test_another_subset_beside_an_earlier_package_fails_by_log_and_by_folder(
    owned: Owned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit(owned, "distilled", "--weights-only")
    require_audit(owned.packages["distilled"], owned.digest("distilled"), AuditPolicy(), "trial",
                  data=tmp_path)  # fmt: skip
    for source in (tmp_path / "releases.jsonl", owned.packages["distilled"]):
        capsys.readouterr()
        assert audit(owned, "other", "--weights-only", "--releases", str(source)) == 4
        assert "fail     release.one_subset" in capsys.readouterr().out


# ---------------------------------------------------------------------- the gate


def gate(owned: Owned, name: str, data: Path, policy: AuditPolicy = ANYTHING, **more: Any) -> Any:
    return require_audit(owned.packages[name], owned.digest(name), policy, data=data, **more)


@pytest.fixture
def audited(owned: Owned) -> Owned:
    """Both packages with a finished audit whose figures are good."""
    for name in ("distilled", "other"):
        audit(owned, name, "--weights-only")
        path = owned.packages[name] / AUDIT_FILE
        stored = json.loads(path.read_bytes())
        stored["figures"] |= {
            "gain": interval_json(), "gap": interval_json(), "upgrade_gap": 1.0,
            "points": [{"attack": "heal", "tokens": 9, "recovery": 0.1, "saved": None,
                        "at_least": False}],
            "cosine_excess": interval_json(), "cka_excess": interval_json(),
        }  # fmt: skip
        path.write_text(json.dumps(stored))
    return owned


def interval_json() -> dict[str, float]:
    return {"mean": 0.05, "low": 0.04, "high": 0.06, "count": 3}


def test_what_fails_is_refused_with_the_clause_and_the_cure(audited: Owned, tmp_path: Path) -> None:
    strict = replace(ANYTHING, verbatim=replace(ANYTHING.verbatim, layers_max=0.1))
    with pytest.raises(ConfigError, match=r"verbatim.layers_max: .*smaller --edge.*--force"):
        gate(audited, "distilled", tmp_path, strict)
    assert not list(tmp_path.iterdir())


def test_the_policy_of_today_rules_an_audit_of_yesterday(audited: Owned, tmp_path: Path) -> None:
    assert not gate(audited, "distilled", tmp_path).forced
    strict = replace(ANYTHING, audit=replace(ANYTHING.audit, budget_min="standard"))
    with pytest.raises(ConfigError, match=r"audit.budget_min"):
        gate(audited, "distilled", tmp_path, strict)


def test_a_package_without_an_audit_of_its_own_is_refused(audited: Owned, tmp_path: Path) -> None:
    (audited.packages["copied"] / AUDIT_FILE).unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="never audited"):
        gate(audited, "copied", tmp_path)
    other = (audited.packages["other"] / AUDIT_FILE).read_bytes()
    (audited.packages["distilled"] / AUDIT_FILE).write_bytes(other)
    with pytest.raises(ConfigError, match="of another package"):
        gate(audited, "distilled", tmp_path)
    (audited.packages["distilled"] / AUDIT_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="not an audit of format"):
        gate(audited, "distilled", tmp_path)


def test_force_needs_a_reason_and_the_reason_is_kept(audited: Owned, tmp_path: Path) -> None:
    strict = replace(ANYTHING, verbatim=replace(ANYTHING.verbatim, layers_max=0.1))
    with pytest.raises(ConfigError, match="not empty"):
        gate(audited, "distilled", tmp_path, strict, force_reason="  ")
    passage = gate(audited, "distilled", tmp_path, strict, force_reason="a trial with friends")
    assert passage.forced
    assert passage.refused == ("verbatim.layers_max",)
    gate(audited, "distilled", tmp_path, strict, force_reason="and once more")
    lines = [json.loads(line) for line in (tmp_path / "forced.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["a trial with friends", "and once more"]
    assert lines[0]["manifest_digest"] == audited.digest("distilled").hex()
    assert len((tmp_path / "releases.jsonl").read_text().splitlines()) == 1


def test_a_reason_is_not_kept_where_nothing_was_forced(audited: Owned, tmp_path: Path) -> None:
    passage = gate(audited, "distilled", tmp_path, force_reason="just in case")
    assert (passage.forced, passage.reason) == (False, "")
    assert not (tmp_path / "forced.jsonl").exists()


def test_a_second_subset_is_refused_though_its_audit_knew_nothing_of_the_first(
    audited: Owned, tmp_path: Path
) -> None:
    gate(audited, "distilled", tmp_path)
    with pytest.raises(ConfigError, match=r"release.one_subset"):
        gate(audited, "other", tmp_path)
    gate(audited, "distilled", tmp_path)


def test_a_package_that_was_forced_without_an_audit_still_counts(
    audited: Owned, tmp_path: Path
) -> None:
    (audited.packages["copied"] / AUDIT_FILE).unlink(missing_ok=True)
    passage = gate(audited, "copied", tmp_path, force_reason="in a hurry")
    assert passage.refused == ("audit.missing",)
    with pytest.raises(ConfigError, match=r"release.one_subset"):
        gate(audited, "other", tmp_path)


def test_a_block_that_left_before_counts_among_the_layers_shown(
    audited: Owned, tmp_path: Path
) -> None:
    tight = replace(ANYTHING, verbatim=replace(ANYTHING.verbatim, layers_max=0.5))
    block = {"manifest_digest": "11" * 32, "full_digest": "22" * 32}
    for layers, shown, refused in ((5, [1, 2], False), (6, [0], False), (6, [1, 2], True)):
        data = tmp_path / f"{layers}-{len(shown)}"
        data.mkdir()
        line = json.dumps(block | {"layers": layers, "shown": shown})
        (data / audit_gate.BLOCKS_FILE).write_text(line + "\n")
        if refused:
            with pytest.raises(ConfigError, match=r"verbatim.layers_max"):
                gate(audited, "distilled", data, tight)
        else:
            assert not gate(audited, "distilled", data, tight).forced


def test_an_unsigned_audit_is_refused_where_a_signature_is_asked_for(
    audited: Owned, keys: KeyFiles, tmp_path: Path
) -> None:
    identity: Identity = keys.identity()
    with pytest.raises(ConfigError, match=r"audit.signature"):
        gate(audited, "distilled", tmp_path, owner_key=identity.public_key)
    path = audited.packages["distilled"] / AUDIT_FILE
    path.write_bytes(audit_gate.encode_audit(json.loads(path.read_bytes()), identity))
    assert not gate(audited, "distilled", tmp_path, owner_key=identity.public_key).forced


def test_a_damaged_release_log_is_an_error_and_not_an_empty_one(
    audited: Owned, tmp_path: Path
) -> None:
    (tmp_path / "releases.jsonl").write_text('{"half a line')
    with pytest.raises(ConfigError, match="line 1"):
        gate(audited, "distilled", tmp_path)


def test_the_page_escapes_what_it_shows(audited: Owned) -> None:
    stored = json.loads((audited.packages["distilled"] / AUDIT_FILE).read_bytes())
    stored["verdicts"][0]["sentence"] = "<script>alert(1)</script>"
    assert "<script>" not in audit_page.render(stored)


# ---------------------------------------------------------------------- smaller audits


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick budget at the size of the tiny model."""
    from secagg_models.audit import run

    budget = run.AuditBudget("quick", SETTINGS, 512, (256, 512), 256)
    monkeypatch.setitem(run.BUDGETS, "quick", budget)  # type: ignore[arg-type]


def toml_of(policy: AuditPolicy) -> str:
    lines = []
    for table, clauses in policy.to_json().items():
        lines.append(f"[{table}]")
        lines += [
            f"{name} = {json.dumps(value)}" for name, value in clauses.items() if value is not None
        ]
    return "\n".join(lines)
