"""The demonstration's federation under scheme `ckks`: processes over TLS, one killed in mid upload,
and evidence, report and page that are read as residues. No model is trained.
"""

import asyncio
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy
from rich.console import Console

from secagg_demo import nodes
from secagg_demo.cli import _parser
from secagg_demo.console import Narrator
from secagg_demo.evidence import (
    README_CKKS,
    BadEvidence,
    examine,
    load_planes,
    round_folder,
    write_readme,
)
from secagg_demo.federation import Federation, Kill, listen
from secagg_demo.journal import Journal, Timeline
from secagg_demo.page import render
from secagg_demo.processes import Children
from secagg_demo.report import write_json
from secagg_demo.results import DemoResult, RoundResult
from secagg_demo.settings import Settings
from secagg_demo.show import show
from secagg_demo.site import OWNER, Site, enrol
from secagg_demo.uniformity import Plane, Residues, planes_against_uniform
from secagg_models.recipe import Recipe
from tests.demo.canned import comparison

ROOT = Path(__file__).parents[2]
TENANTS = ("ada", "bob", "cyd", "dan", "eve")
LENGTH = 40_000
TINY = Recipe(
    steps_per_round=2, batch=2, context=64, warmup_steps=1, lr=1e-3, full_lr=1e-3,
    test_windows=4,
)  # fmt: skip
FAST_LEASE = {"seconds": 4.0, "grace_seconds": 0.5, "join_grace_seconds": 60.0}


async def run_federation(root: Path, kill: Kill) -> list[RoundResult]:
    site, journal = Site.prepare(root), Journal()
    write_readme(site.evidence, "ckks")
    digest, narrator = enrol(site, TENANTS), Narrator(Console(file=io.StringIO()))
    async with Children(site.logs, lambda c, e: listen(narrator, journal, c, e)) as children:
        federation = Federation(site, TENANTS, children, narrator, journal)
        port = await federation.start_coordinator(nodes.coordinator(site) | {"lease": FAST_LEASE})
        await federation.start_tenants(
            nodes.tenants(
                TENANTS, port=port, policy={"roster_digest": digest},
                training={
                    name: {"trainer": "vector", "seed": seed} for seed, name in enumerate(TENANTS)
                },
                slow=kill.victims, slow_bytes_per_second=60_000,
            )
        )  # fmt: skip
        owner = await federation.start_owner(nodes.vector_owner(port, 2, LENGTH, "ckks"))
        results = await federation.run_rounds(2, kill)
        assert await owner.ended() == 0
        assert federation.running[OWNER] is owner
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult]:
    """Two rounds; eve is killed in the second one's upload."""
    folder = tmp_path_factory.mktemp("ckks")
    rounds = asyncio.run(run_federation(folder, Kill(2, ("eve",))))
    result = DemoResult(
        task="text", rounds=tuple(rounds), comparison=None, parameters={"scheme": "ckks"},
        holdings=(), timeline=Timeline((), (), ()), seconds=1.0, seconds_by_part={},
    )  # fmt: skip
    write_json(result, folder)
    return folder, result


pytestmark = pytest.mark.processes


def test_a_tenant_killed_in_mid_upload_costs_its_own_input_only(finished) -> None:
    _, result = finished
    assert [entry.outcome for entry in result.rounds] == ["opened", "opened"]
    assert [entry.survivors for entry in result.rounds] == [TENANTS, TENANTS[:-1]]
    assert [(e.tenant, e.step) for e in result.rounds[1].excluded] == [("eve", "masked_input")]
    assert all(entry.evidence.exact_sum is True for entry in result.rounds)
    assert all(entry.transcript_holds for entry in result.rounds)
    assert all(entry.evidence.scheme == "ckks" for entry in result.rounds)


def test_every_residue_is_below_its_prime_and_uniform_and_the_levels_are_not(finished) -> None:
    folder, result = finished
    for entry in result.rounds:
        form = entry.evidence.form
        assert isinstance(form, Residues)
        for held in entry.evidence.held:
            evidence = round_folder(folder / "evidence", entry.evidence.round_number)
            planes = load_planes(evidence, held.tenant, form)
            assert [plane.modulus for plane in planes] == list(form.primes)
            assert all(plane.numbers.max() < plane.modulus for plane in planes)
            assert len(held.upload.by_plane) == len(form.primes)
            assert min(held.upload.high_bits_p, held.upload.low_bits_p) > 1e-6
            assert held.encoded.high_bits_p < 1e-100


def test_the_check_without_our_code_accepts_the_evidence_and_notices_a_change(
    finished, tmp_path
) -> None:
    folder, _ = finished

    def checked() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / ".ci/check_demo.py"), str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    accepted = checked()
    assert accepted.returncode == 0, accepted.stderr
    assert "uploads under ckks have their form" in accepted.stdout
    path = folder / "evidence/round-1/upload/ada.bin"
    kept = path.read_bytes()
    path.unlink()  # it may be a link into the coordinator's spool
    try:
        path.write_bytes(b"\xff" * 8 + kept[8:])
        assert "upload of ada is not of the plan's form" in checked().stderr
    finally:
        path.write_bytes(kept)


def test_the_readmes_own_code_gives_the_reported_figures(finished, monkeypatch, capsys) -> None:
    folder, result = finished
    monkeypatch.chdir(folder / "evidence")
    assert (folder / "evidence/README.txt").read_text() == README_CKKS
    names: dict[str, object] = {}
    steps = README_CKKS[README_CKKS.index("1. The sum") :]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", steps, re.MULTILINE)
    sums, counts, p = (re.sub(r"^    ", "", one, flags=re.MULTILINE) for one in blocks)
    exec(sums, names)
    assert capsys.readouterr().out.split("\n")[:2] == ["1 True", "2 True"]
    exec(counts.replace("TENANT", "ada"), names)
    names["scipy"] = scipy
    exec(p.replace("scipy.stats", "p = scipy.stats"), names)
    first = json.loads((folder / "report.json").read_text())["rounds"][0]
    assert first["uniformity_p"] == pytest.approx(names["p"])
    assert first["uniformity"]["ada"]["chi_square"] == pytest.approx(names["chi_square"])
    assert first["uniformity_p"] == result.rounds[0].evidence.held[0].upload.high_bits_p


def test_report_and_page_name_scheme_parameters_and_bits_a_value(finished) -> None:
    folder, result = finished
    report = json.loads((folder / "report.json").read_text())
    first, evidence = report["rounds"][0], result.rounds[0].evidence
    upload = (folder / "evidence/round-1/upload/ada.bin").stat().st_size
    assert first["bits_per_value"] == pytest.approx(8 * upload / LENGTH)
    assert first["bits_per_value"] == 8 * first["upload_bytes_per_value"]
    assert first["ckks"] == json.loads((folder / "evidence/round-1/plan.json").read_text())["ckks"]
    page = render(result, folder / "evidence")
    HTMLParser().feed(page)
    assert f"degree N = {first['ckks']['degree']:,}" in page
    assert f"{evidence.bits_per_value:.2f} bits a value" in page
    assert "its key is in no sum of shares that was released" in page
    assert "mask seed" not in page
    assert "residue, as a fraction of its prime" in page
    assert page.count("<svg") == 2


def test_a_trained_demonstration_has_the_same_page(finished) -> None:
    folder, result = finished
    whole = dataclasses.replace(result, comparison=comparison())
    assert "Did it learn?" in render(whole, folder / "evidence")


@pytest.mark.slow
def test_the_whole_command_under_ckks(tmp_path: Path, capsys) -> None:
    """With very little training; one tenant is killed in round 2 and back in round 3."""
    out = tmp_path / "demo"
    command = ["--scheme", "ckks", "--tenants", "4", "--format", "json", "--out", str(out)]
    assert show(_parser().parse_args(command), TINY) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["scheme"] for entry in report["rounds"]] == ["ckks"] * 3
    assert [len(entry["survivors"]) for entry in report["rounds"]] == [4, 3, 4]
    assert all(entry["exact_sum"] and entry["transcript_holds"] for entry in report["rounds"])
    checked = subprocess.run([sys.executable, ROOT / ".ci/check_demo.py", out])
    assert checked.returncode == 0


def test_an_upload_of_another_length_is_named(finished, tmp_path) -> None:
    folder, _ = finished
    source, target = folder / "evidence/round-1", tmp_path / "round-1"
    for name in ("plan.json", "opened_sum.npy", "upload/ada.bin", "encoded/ada.npy"):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((source / name).read_bytes())
    upload = target / "upload/ada.bin"
    upload.write_bytes(upload.read_bytes() + b"\0")
    with pytest.raises(BadEvidence, match=r"ada\.bin holds"):
        examine(tmp_path, 1, ("ada",))


def test_residues_in_one_part_of_the_range_fail_the_test() -> None:
    rng, prime = np.random.default_rng(1), 16760833
    uniform = rng.integers(0, prime, 100_000, dtype=np.uint64)
    narrow = rng.integers(0, prime - prime // 64, 100_000, dtype=np.uint64)
    assert planes_against_uniform([Plane(uniform, prime)]).high_bits_p > 1e-4
    assert planes_against_uniform([Plane(narrow, prime)]).high_bits_p < 1e-6
    both = planes_against_uniform([Plane(uniform, prime), Plane(narrow, prime)])
    assert both.by_plane[0] > 1e-4 > 1e-6 > both.by_plane[1]


def test_the_command_takes_both_schemes_and_no_other() -> None:
    assert Settings(scheme="ckks").scheme == "ckks"
    with pytest.raises(Exception, match="--scheme is one of masking, ckks"):
        Settings(scheme="none")  # type: ignore[arg-type]
