"""What a tenant admits: an honest package, signed and pinned. Everything else is refused by the
clause that names why, whoever signed it, and nothing of it is joined or trained."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from secagg.cli import EXIT_PROTOCOL, EXIT_USAGE, exit_code
from secagg.errors import ConfigError
from secagg.identity import sha256
from secagg_models.admission.limits import Thresholds
from secagg_tenant import cli
from secagg_tenant.admit import CLAUSES, EmulatorRefused, Pins, admit, admitted_base
from secagg_tenant.config import Config, load_config
from secagg_tenant.connection import Connection
from secagg_tenant.session import Session
from secagg_tenant.store import TenantStore, read_report
from secagg_tenant.tenant import Tenant
from secagg_tenant.trainer import make_trainer
from secagg_wire.event_log import EventLog
from secagg_wire.key_files import KeyFiles
from secagg_wire.manifest import FORMAT
from secagg_wire.signed_manifest import MANIFEST_FILE, SIGNATURE_FILE, sign_manifest
from tests.coordinator.federation import Enrolled
from tests.models.crafted import CRAFTED, Crafting, leaky
from tests.tenant.packages import OTHER, OWNER, Package, make, make_classifier

KEY = Pins(OWNER.public_key)
Spoil = Callable[[Package], None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make(tmp_path_factory.mktemp("owner") / "emulator")


@pytest.fixture
def package(original: Package, tmp_path: Path) -> Package:
    folder = tmp_path / "emulator"
    shutil.copytree(original.folder, folder)
    return Package(folder, original.meta)


def refusal(package: Package, pins: Pins = KEY) -> tuple[str, str]:
    done = admit(package.folder, pins, seed=1)
    check = done.report.first_refusal
    assert check is not None
    assert not done.report.passed
    return check.clause, check.reason


def test_an_honest_package_passes_every_clause_in_order(package: Package) -> None:
    digest = sha256((package.folder / MANIFEST_FILE).read_bytes())
    done = admit(package.folder, Pins(OWNER.public_key, digest), seed=1)
    assert done.report.passed
    assert tuple(check.clause for check in done.report.checks) == CLAUSES
    assert (done.owner, done.digest) == ("acme", digest)
    spoken = json.loads(json.dumps(done.to_json(), allow_nan=False))
    assert spoken["verdict"] == "these checks passed"
    assert [check["number"] for check in spoken["checks"]] == list(range(1, len(CLAUSES) + 1))
    figures = [figure for check in spoken["checks"] for figure in check["figures"]]
    assert all(figure["inside"] and "limit" in figure and "margin" in figure for figure in figures)


def test_an_honest_classifier_passes(tmp_path: Path) -> None:
    done = admit(make_classifier(tmp_path / "e").folder, KEY, seed=1)
    assert done.report.passed, done.report.first_refusal


def replaced(name: str, data: bytes) -> Spoil:
    def spoil(package: Package) -> None:
        (package.folder / name).write_bytes(data)

    return spoil


def flipped(package: Package) -> None:
    def flip(tensors: dict[str, Any]) -> None:
        tensors["model.decoder.layers.0.fc1.weight"][0, 0] *= -1

    package.change_tensors(flip)


def linked(package: Package) -> None:
    (package.folder / "config.json").rename(package.folder.parent / "config.json")
    os.symlink(package.folder.parent / "config.json", package.folder / "config.json")


def unsigned(package: Package) -> None:
    package.sign(None)


def stripped(package: Package) -> None:
    (package.folder / SIGNATURE_FILE).unlink()


def signed_by_another(package: Package) -> None:
    package.sign(OTHER)


def signed_in_anothers_name(package: Package) -> None:
    """Another key's signature under the owner's key."""
    path = package.folder / SIGNATURE_FILE
    forged = sign_manifest((package.folder / MANIFEST_FILE).read_bytes(), OTHER)
    value = json.loads(forged.encode())
    value |= {"public_key": OWNER.public_key.hex(), "owner": "acme"}
    path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")


def manifest_edited(package: Package) -> None:
    path = package.folder / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"edge":1', b'"edge":2'))


def named(name: str) -> Spoil:
    """The owner signs a manifest with such a file name."""

    def spoil(package: Package) -> None:
        entry = {"sha256": "00" * 32, "size": 1}
        value = {"files": {name: entry}, "format": FORMAT, "meta": {"signed": True}}
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        (package.folder / MANIFEST_FILE).write_bytes(data)
        (package.folder / SIGNATURE_FILE).write_bytes(sign_manifest(data, OWNER).encode())

    return spoil


def configured(**values: Any) -> Spoil:
    """The owner signs a configuration that asks for more."""

    def spoil(package: Package) -> None:
        package.change("config.json", lambda config: config.update(values))
        package.sign()

    return spoil


def templated(package: Package) -> None:
    package.change("tokenizer_config.json", lambda c: c.update(chat_template="{{ messages }}"))
    package.sign()


def deep(package: Package) -> None:
    (package.folder / "config.json").write_text("[" * 200_000)
    package.sign()


def other_tensors(package: Package) -> None:
    flipped(package)
    package.sign()


def fewer_tensors(package: Package) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        del tensors["model.decoder.layers.0.fc1.bias"]

    package.change_tensors(drop)
    package.sign()


def pickled(package: Package) -> None:
    (package.folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    package.sign()


def signed_extra(package: Package) -> None:
    (package.folder / "extra.json").write_text("{}")
    package.sign()


SPOILT: list[tuple[Spoil, str, str]] = [
    (unsigned, "signature", "not signed"),
    (stripped, "signature", "not signed"),
    (signed_by_another, "signature", "is pinned"),
    (signed_in_anothers_name, "signature", "not over this manifest"),
    (manifest_edited, "signature", "not over this manifest"),
    (replaced(SIGNATURE_FILE, b"{}"), "signature", "not the JSON of a signature"),
    (replaced("pytorch_model.bin", pickle.dumps([1])), "files", "does not name"),
    (replaced("modeling_evil.py", b"print(1)"), "files", "does not name"),
    (replaced("notes.txt", b"hello"), "files", "does not name"),
    (flipped, "files", "is not the file"),
    (replaced("config.json", b"{}"), "files", "config.json has"),
    (linked, "files", "no plain file"),
    (named("../config.json"), "files", "not a plain file name"),
    (named("/etc/passwd.json"), "files", "not a plain file name"),
    (named("a/b.json"), "files", "not a plain file name"),
    (named(".hidden.json"), "files", "not a plain file name"),
    (named("weights.bin"), "files", "is none of"),
    (named("modeling.py"), "files", "is none of"),
    (configured(auto_map={"AutoModel": "evil.Model"}), "configuration", "auto_map"),
    (configured(activation_function="tanh"), "configuration", "activation_function 'tanh'"),
    (configured(architectures=["Evil"]), "configuration", "architecture 'Evil'"),
    (configured(hidden_size=1 << 30), "configuration", "hidden_size"),
    (configured(dropout=float("nan")), "configuration", "dropout is not finite"),
    (templated, "configuration", "chat_template"),
    (deep, "configuration", ""),
    (configured(num_hidden_layers=3), "layout", "layers"),
    (configured(ffn_dim=64), "layout", "builds other tensors"),
    (other_tensors, "layout", "not the model of its manifest"),
    (fewer_tensors, "layout", "not those of its manifest"),
    (pickled, "layout", "cannot be loaded"),
    (signed_extra, "layout", "extra.json"),
]


@pytest.mark.parametrize(("spoil", "clause", "words"), SPOILT)
def test_a_package_that_is_not_what_it_should_be_is_refused_before_its_model_is_looked_at(
    package: Package, spoil: Spoil, clause: str, words: str
) -> None:
    spoil(package)
    done = admit(package.folder, KEY, seed=1)
    check = done.report.first_refusal
    assert check is not None
    assert check.clause == clause
    assert words in check.reason
    assert done.emulator is None
    assert done.report.skipped == CLAUSES[CLAUSES.index(clause) + 1 :]


def test_the_pins_decide(package: Package) -> None:
    assert refusal(package, Pins(None))[0] == "signature"
    assert refusal(package, Pins(OTHER.public_key))[0] == "signature"
    clause, reason = refusal(package, Pins(OWNER.public_key, bytes(32)))
    assert clause == "manifest_digest"
    assert "is pinned" in reason


def test_what_is_no_package_is_refused_in_words(tmp_path: Path) -> None:
    done = admit(tmp_path / "nowhere", KEY)
    assert done.digest is None
    assert done.report.first_refusal is not None
    assert "is it a package?" in done.report.first_refusal.reason


@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_a_crafted_emulator_that_its_owner_signed_is_refused_by_name(
    tmp_path: Path, craft: Crafting
) -> None:
    done = admit(make(tmp_path / "e", craft).folder, KEY, seed=1)
    figures = [figure for check in done.report.checks for figure in check.figures]
    assert set(CRAFTED[craft]) <= {figure.name for figure in figures if not figure.inside}
    assert not done.report.passed
    assert done.report.skipped == ()


def configuration(tmp_path: Path, package: Package, **model: Any) -> Config:
    texts = tmp_path / "text"
    texts.mkdir(exist_ok=True)
    for number in range(40):
        (texts / f"m{number}.py").write_text(f"def ada_{number}(x):\n    return x + {number}\n" * 4)
    lines = {"emulator": str(package.folder), "owner_key": OWNER.public_key.hex()} | model
    path = tmp_path / "tenant.toml"
    path.write_text(
        f'coordinator = "localhost:8470"\nkeys = "keys"\ndata = "data"\n[policy]\n'
        f'roster_digest = "{"ab" * 32}"\n[training]\ntrainer = "lora"\ntext = "text"\n[model]\n'
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    )
    return load_config(path)


def test_a_tenant_trains_the_admitted_emulator_and_remembers_why(
    tmp_path: Path, package: Package
) -> None:
    digest = sha256((package.folder / MANIFEST_FILE).read_bytes()).hex()
    config = configuration(tmp_path, package, emulator_digest=digest)
    base = admitted_base(config)
    assert base.digest == package.meta["emulator_digest"]
    make_trainer(config, "ada").prepare()
    report = read_report(config.data / "tenant.sqlite")
    assert [row["passed"] for row in report["admissions"]] == [1, 1]
    assert report["admissions"][0]["digest"] == digest
    assert [row["event"] for row in report["audit"]] == ["emulator_admitted"] * 2
    with closing(TenantStore(config.data / "tenant.sqlite")) as store:
        kept = store.last_admission()
    assert kept is not None
    assert any("own text" in figure["where"] for c in kept["checks"] for figure in c["figures"])


def test_a_tenant_trains_no_emulator_that_is_refused_and_remembers_why(tmp_path: Path) -> None:
    config = configuration(tmp_path, make(tmp_path / "e", leaky))
    with pytest.raises(EmulatorRefused, match="not admitted") as refused:
        make_trainer(config, "ada").prepare()
    assert refused.value.clause in CLAUSES
    assert exit_code(refused.value) == EXIT_PROTOCOL
    (row,) = read_report(config.data / "tenant.sqlite")["admissions"]
    assert row["passed"] == 0


def test_a_session_says_what_it_admitted_and_does_not_begin_with_what_it_refused(
    enrolled: Enrolled, tmp_path: Path, package: Package
) -> None:
    async def scenario(config: Config) -> list[tuple[str, dict[str, Any]]]:
        events: list[tuple[str, dict[str, Any]]] = []
        log = EventLog(level="error")
        log.listen(lambda name, fields: events.append((name, fields)))
        with Tenant.open(config, log) as tenant:
            connection = Connection(config.coordinator, KeyFiles(config.keys), "ada", log, 1.0)
            try:
                work = asyncio.ensure_future(Session(tenant, connection).run())
                while not work.done() and "joining" not in [name for name, _ in events]:
                    await asyncio.sleep(0)
                work.cancel()
                await work
            except (asyncio.CancelledError, EmulatorRefused) as error:
                events.append((type(error).__name__, {}))
            finally:
                await connection.close()
        return events

    def enrolled_config(of: Package) -> Config:
        config = configuration(tmp_path, of)
        policy = {"roster_digest": enrolled.roster.digest.hex()}
        values = config.model_dump() | {"policy": policy, "keys": enrolled.keys["ada"].directory}
        values["model"] = config.model.model_dump(exclude_unset=True)
        return Config.model_validate(values)

    admitted = asyncio.run(scenario(enrolled_config(package)))
    assert [name for name, _ in admitted[:2]] == ["emulator_admitted", "joining"]
    digest = sha256((package.folder / MANIFEST_FILE).read_bytes()).hex()
    assert admitted[0][1]["manifest_sha256"] == digest
    assert admitted[0][1]["verdict"] == "these checks passed"
    refused = asyncio.run(scenario(enrolled_config(make(tmp_path / "e", leaky))))
    assert [name for name, _ in refused] == ["emulator_refused", "EmulatorRefused"]


def test_the_tensors_can_be_pinned_as_well(tmp_path: Path, package: Package) -> None:
    right = configuration(tmp_path, package, base_digest=package.meta["emulator_digest"])
    assert admitted_base(right).digest == package.meta["emulator_digest"]
    wrong = configuration(tmp_path, package, base_digest="00" * 32)
    with pytest.raises(ConfigError, match="base_digest pins"):
        admitted_base(wrong)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"base": "shipped"}, "exclude each other"),
        ({"owner_key": None}, "owner_key is needed"),
        ({"emulator": None, "emulator_digest": "00" * 32}, "emulator is not"),
        ({"emulator_digest": "xyz"}, "emulator_digest"),
    ],
)
def test_the_configuration_names_what_does_not_go_together(
    tmp_path: Path, package: Package, model: dict[str, Any], words: str
) -> None:
    configuration(tmp_path, package)
    path = tmp_path / "tenant.toml"
    lines = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in model]
    lines += [f"{key} = {json.dumps(value)}" for key, value in model.items() if value is not None]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_an_emulator_is_for_training_and_thresholds_are_known(
    tmp_path: Path, package: Package
) -> None:
    configuration(tmp_path, package)
    path = tmp_path / "tenant.toml"
    text = path.read_text()
    path.write_text(text.replace('trainer = "lora"\ntext = "text"', 'trainer = "vector"'))
    with pytest.raises(ConfigError, match="for trainer = 'lora'"):
        load_config(path)
    path.write_text(f"{text}[admission]\nspike = 3.5\n")
    assert load_config(path).admission == {"spike": 3.5}
    path.write_text(f"{text}[admission]\nspikes = 3.5\n")
    with pytest.raises(ConfigError, match="'spikes' is unknown"):
        load_config(path)


def test_the_command_prints_every_figure_beside_its_limit_and_exits_with_0(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration(tmp_path, package)
    assert cli.main(["admit", str(package.folder), "--config", str(tmp_path / "tenant.toml")]) == 0
    text = capsys.readouterr().out
    for words in ("1 ok      signature", "identity_attention", "<= 0.5", "margin", "Not caught"):
        assert words in text
    key = ["--owner-key", OWNER.public_key.hex()]
    assert cli.main(["admit", str(package.folder), *key, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "these checks passed"


def test_the_command_exits_with_4_and_names_the_clause(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = ["--owner-key", OWNER.public_key.hex()]
    pin = ["--emulator-digest", "00" * 32, "--format", "json"]
    assert cli.main(["admit", str(package.folder), *key, *pin]) == EXIT_PROTOCOL
    spoken = json.loads(capsys.readouterr().out)
    assert spoken["verdict"] == "refused"
    assert [c["clause"] for c in spoken["checks"] if not c["passed"]] == ["manifest_digest"]
    strict = tmp_path / "strict.toml"
    strict.write_text("spike = 1.0001\ngain_ratio = 99\n")
    options = [*key, "--thresholds", str(strict)]
    assert cli.main(["admit", str(package.folder), *options]) == EXIT_PROTOCOL
    text = capsys.readouterr().out
    assert "REFUSED spectrum" in text
    assert "gain_ratio lets more pass" in text
    with pytest.raises(ConfigError, match="--owner-key takes 64"):
        cli.main(["admit", str(package.folder), "--owner-key", "12"])
    assert exit_code(ConfigError("x")) == EXIT_USAGE


def test_limits_that_are_loosened_are_in_the_report(package: Package) -> None:
    done = admit(package.folder, KEY, Thresholds.from_json({"spike": 99}), seed=1)
    assert done.report.passed
    assert done.to_json()["loosened"] == ["spike"]


def test_a_database_of_the_version_before_gets_its_table(tmp_path: Path) -> None:
    path = tmp_path / "tenant.sqlite"
    TenantStore(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.executescript("DROP TABLE admission; PRAGMA user_version = 2")
    with closing(TenantStore(path)) as store:
        assert store.last_admission() is None
        store.add_admission(bytes(32), True, {"owner": "acme"})
        assert store.last_admission() == {"owner": "acme"}
