"""The benchmark around `secagg bench`: what it measures when, and what its report says of it."""

import dataclasses

import numpy as np
import pytest

from benchmarks import environments, measure, systems
from benchmarks.cases import (
    CKKS,
    FEDAVG,
    FLOWER,
    FULL,
    NVFLARE,
    OURS,
    PEERS,
    QUICK,
    USUAL,
    Case,
    Sweep,
)
from benchmarks.measure import Results, Run
from benchmarks.plots import draw, streams
from benchmarks.report import STEPS, break_even, markdown
from benchmarks.scale import deep_size


@pytest.mark.parametrize("text", ["10:1e6", "20:1000000:0.2", "5:100:0:8", "300:1e5:0.1:16:30"])
def test_a_case_is_what_its_key_says(text):
    case = Case.parse(text)
    assert Case.parse(case.key) == case


def test_the_programmes_cover_what_is_promised():
    by_name = {sweep.name: sweep for sweep in USUAL.sweeps}
    assert {5, 10, 20, 50, 100, 250, 1000} == {case.tenants for case in by_name["n"].cases}
    assert {0.0, 0.1, 0.2, 0.3} == {case.dropout for case in by_name["dropout"].cases}
    lengths = {case.length for sweep in FULL.sweeps for case in sweep.cases if sweep.name == "d"}
    assert lengths == {10**power for power in range(4, 9)}


@pytest.mark.parametrize("programme", [QUICK, USUAL, FULL])
def test_every_case_is_measured_once_a_turn_and_small_ones_come_first(programme):
    cases = list(programme.cases())
    assert len(set(cases)) == len(cases)
    assert cases[0].tenants * cases[0].length <= 500_000
    for case in cases:
        assert set(programme.peers(case)) <= set(PEERS)


def canned(case: Case, scale: float) -> dict:
    step = dict.fromkeys(STEPS, 0.001 * scale)
    return {
        "version": "0",
        "exact": True,
        "tenants": case.tenants,
        "length": case.length,
        "neighbours": min(case.tenants, 95),
        "share_threshold": 7,
        "tenant_cpu_s": 0.006 * scale,
        "tenant_cpu_by_step_s": step,
        "coordinator_cpu_s": 0.006 * scale,
        "coordinator_cpu_by_step_s": step,
        "process_cpu_s": 1.0,
        "shamir_s": 0.001,
        "keystream_gb_s": 7.0,
        "keystream_fraction": 0.9,
        "tenant_peak_rss_mb": 50,
        "coordinator_peak_rss_mb": 60,
        "wire_bytes": {name: {"up": case.length, "down": 1} for name in STEPS},
    }


def canned_ours(case: Case, name: str) -> dict:
    if name == OURS:
        return canned(case, case.tenants / 10)
    ckks = {"bits_per_value": 26.4, "bits_per_value_all_steps": 29.0, "holder_cpu_s": 0.012}
    return canned(case, 2.0) | ckks


class CannedPeer:
    def __init__(self, factor):
        self.factor = factor

    def measure(self, case):
        if case.dropout == 0.2:
            raise systems.FailedError("it halted the round")
        return {
            "version": "1",
            "client_cpu_s": 0.006 * self.factor,
            "server_cpu_s": 0.012 * self.factor,
            "bytes_up_per_param": 8.0,
        }


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "measure_ours", canned_ours)
    monkeypatch.setattr(
        measure, "measure_limits", lambda: {"keystream_gb_s": {"aes256_ctr_256_kib": 8.0}}
    )
    results = Results()
    peers = {FLOWER: CannedPeer(10), FEDAVG: CannedPeer(0.5), NVFLARE: CannedPeer(100)}
    Run(QUICK, peers, results, tmp_path / "results.json").measure()
    assert Results.read(tmp_path / "results.json") == results
    return results


def test_the_report_has_every_case_and_the_ratio_of_turns_side_by_side(results):
    report = markdown(QUICK, results)
    assert "| n = 10, d = 100,000 | 1 | secagg, masking 0 | 6.0 | 6.0 | 6.000 |  |  |" in report
    assert "|  | 1 | Flower SecAgg+ 1 | 60.0 | 120.0 | 8.000 | 10.0 | 20.0 |" in report
    assert "|  | 1 | secagg, ckks 0 | 12.0 | 12.0 | 6.000 | 2.0 | 2.0 |" in report
    for sweep in QUICK.sweeps[:3]:
        assert f"## Cost against {sweep.name} ({sweep.title})" in report
    assert "AES-256-CTR, 256 KiB at a time | 8.00 GB/s" in report
    assert "the machine is shared (load averages of " in report


def test_ckks_stands_beside_the_peer_that_encrypts_too(results):
    report = markdown(QUICK, results)
    row = (
        "| n = 10, d = 100,000 | 12.0 / 600.0 = 50.0 | 12.0 / 1,200.0 = 100.0 | 6.000 / 8.000 = 1.3"
    )
    assert f"{row} | 26.40 | 29.00 |" in report


def test_the_break_even_lies_between_two_measured_cohorts(results):
    report = markdown(QUICK, results)
    assert "## Scheme against scheme (d = 100,000, nobody silent)" in report
    assert "- a tenant's CPU: `ckks` is the cheaper scheme from n = 20 on" in report
    assert "| 10 | 6.0 / 12.0 | 6.0 / 12.0 | 1.0 / 2.0 | 6.0 / 12.0 | 6.000 / 6.000 |" in report


def crossing(*differences: float) -> float | None:
    made = Results()
    for n, more in enumerate(differences, 1):
        for name, cpu in ((OURS, 1.0), (CKKS, 1.0 + more)):
            facts = {"tenant_cpu_s": cpu}
            made.add(Case(10 * n, 10), name, facts)
    return break_even(made, list(made.cases()), lambda one: one.client_s)


def test_the_break_even_is_interpolated_and_the_last_of_several():
    assert crossing(1, -1) == pytest.approx(15)
    assert crossing(3, -1) == pytest.approx(17.5)
    assert crossing(1, -1, 1, -1) == pytest.approx(35)
    assert crossing(1, 0.5) is crossing(-1, -2) is None


def test_scheme_against_scheme_needs_no_peers():
    programme = dataclasses.replace(
        QUICK, table=(), sweeps=(Sweep("schemes", "", (Case(5, 10), Case(300, 10))),)
    )
    assert [list(programme.peers(case)) for case in programme.cases()] == [[], []]
    assert [list(programme.ours(case)) for case in programme.cases()] == [[OURS, CKKS], [OURS]]


def test_a_committee_is_listed_where_the_cohort_is_too_large_to_hold_shares():
    assert [Case(n, 10).committee for n in (5, 64, 65, 100)] == [0, 0, 30, 30]


def test_a_case_that_is_measured_again_keeps_no_turn_of_an_earlier_run(results, tmp_path):
    once, other = Case(10, 100_000), Case(5, 10_000)
    before = results.turns[other.key]
    programme = dataclasses.replace(QUICK, table=(once,), sweeps=())
    Run(programme, {}, results, tmp_path / "again.json").measure()
    assert list(results.turns[once.key]) == [OURS, CKKS]
    assert results.turns[other.key] is before


def test_a_peer_that_fails_is_named_and_ends_nothing(results):
    report = markdown(QUICK, results)
    assert "- n = 10, d = 100,000, dropout 20%: flower failed (it halted the round)" in report


def test_a_run_out_of_time_says_what_it_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "measure_limits", dict)
    programme = QUICK.__class__(
        budget_s=-1.0, turns=2, table=(Case(10, 10),), sweeps=(),
        most_tenants=dict.fromkeys(PEERS, 0), most_work=dict.fromkeys(PEERS, 0.0),
    )  # fmt: skip
    results = Results()
    Run(programme, {}, results, tmp_path / "results.json").measure()
    assert results.left_out == ["n = 10, d = 10: the run had used up its time"]


def test_plots_are_written_and_the_same_again(results, tmp_path):
    first = draw(QUICK, results, tmp_path / "first", pixels=False)
    only = dataclasses.replace(QUICK, sweeps=QUICK.sweeps[:1])
    again = draw(only, results, tmp_path / "again", pixels=False)
    assert [path.name for path in first] == [
        "cost-against-n.svg",
        "cost-against-d.svg",
        "cost-against-dropout.svg",
        "cost-by-step.svg",
        "scheme-against-scheme.svg",
    ]
    assert all("AES limit" in path.read_text() for path in first[:3])
    assert first[0].read_bytes() == again[0].read_bytes()


def test_the_limit_counts_the_keystreams_that_a_round_needs():
    whole, lost = Case(10, 100), Case(10, 100, 0.2)
    assert streams(whole, 10, "tenant") == 10  # nine others and its own
    assert streams(whole, 10, "coordinator") == 10  # everybody's own
    assert streams(lost, 10, "coordinator") == 8 + 2 * 8
    # Either draws the other with k of n - 1: 1 - (1 - 1/2)^2 of the others.
    assert streams(Case(101, 100), 50, "tenant") == 1 + 75


def test_an_environment_that_cannot_be_made_leaves_its_peers_out(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "envs")
    monkeypatch.setattr(environments, "HARNESSES", tmp_path)
    monkeypatch.setattr(environments.sys, "executable", "/bin/false")
    for name in ("flower", "nvflare"):
        (tmp_path / f"{name}.txt").write_text("nothing==0\n")
    said = []
    assert systems.peers(PEERS, said.append) == {}
    assert len(said) == 2
    assert all("is left out: no environment" in line for line in said)


def test_the_size_of_what_is_held_counts_everything_once():
    vector = np.zeros(1000, np.int64)
    seen: set[int] = set()
    size = deep_size([{"a": vector, "b": [vector, bytes(500)]}], seen)
    assert 8500 < size < 9500
    assert deep_size([vector], seen) == 0
