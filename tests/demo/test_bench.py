"""`secagg bench`: its contract, and that its figures are those of a round that opened rightly."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from secagg.costs import units_from_json
from secagg.errors import ConfigError, Step
from secagg.scheme import leaf_places
from secagg_demo import bench_round
from secagg_demo.bench_seats import Forked
from secagg_demo.bench_workload import Workload

KEYS = {
    "tenant_cpu_s",
    "tenant_cpu_by_step_s",
    "coordinator_cpu_s",
    "coordinator_cpu_by_step_s",
    "process_cpu_s",
    "shamir_s",
    "upload_bytes_per_value",
    "keystream_gb_s",
    "aes_ctr_gb_s",
    "keystream_fraction",
    "tenant_peak_rss_mb",
    "coordinator_peak_rss_mb",
    "exact",
    "opened_sum_sha256",
    "wire_bytes",
    "measured_tenants",
    "suite",
    "neighbours",
    "colluders",
    "share_threshold",
    "tenants",
    "length",
    "dropout",
    "value_bits",
    "repeat",
    "threads",
    "version",
}
CKKS_KEYS = KEYS | {
    "bits_per_value",
    "bits_per_value_all_steps",
    "holder_cpu_s",
    "scheme",
    "packing",
    "security",
    "degree",
    "modulus_bits",
    "digits",
    "committee",
}
STEPS = [
    "advertise_keys",
    "share_keys",
    "acknowledge",
    "masked_input",
    "consistency_check",
    "unmask",
]


def bench(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secagg", "bench", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def documented_sum_sha256(tenants: int, length: int, silent: int, bits: int, seed: int) -> str:
    """As `secagg bench masking --help` says, without our code."""
    most = 2 ** (bits - 1) - 1
    total = np.zeros(length, np.int64)
    for i in range(tenants - silent):
        rng = np.random.default_rng(seed * 1000003 + i)
        total += rng.integers(-most, most, length, np.int64, endpoint=True)
    return hashlib.sha256(total.astype("<i8").tobytes()).hexdigest()


def measured(scheme: str) -> dict:
    run = bench(
        scheme, "--tenants", 4, "--length", 1000, "--dropout", 0.25, "--seed", 7,
        "--format", "json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "masked_input" in run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def masking_figures() -> dict:
    return measured("masking")


@pytest.fixture(scope="module")
def ckks_figures() -> dict:
    return measured("ckks")


@pytest.fixture(params=["masking", "ckks"])
def figures(request) -> dict:
    return request.getfixturevalue(f"{request.param}_figures")


def test_the_last_line_is_one_object_with_the_documented_keys(masking_figures, ckks_figures):
    assert masking_figures.keys() == KEYS
    assert ckks_figures.keys() == CKKS_KEYS
    for figures in (masking_figures, ckks_figures):
        assert list(figures["wire_bytes"]) == STEPS


def test_anybody_can_recompute_the_opened_sum(figures):
    assert figures["exact"] is True
    assert figures["opened_sum_sha256"] == documented_sum_sha256(4, 1000, 1, 16, seed=7)


def test_costs_are_positive_and_add_up(figures):
    tenants, coordinator = figures["tenant_cpu_s"], figures["coordinator_cpu_s"]
    assert 0 < tenants < 10
    assert 0 < coordinator < 10
    assert figures["process_cpu_s"] > coordinator + tenants
    assert figures["tenant_peak_rss_mb"] > 5
    assert figures["coordinator_peak_rss_mb"] > 5
    fraction = figures["keystream_gb_s"] / figures["aes_ctr_gb_s"]
    assert figures["keystream_fraction"] == pytest.approx(fraction)


def test_wire_bytes_are_those_of_the_messages(masking_figures):
    wire = masking_figures["wire_bytes"]
    assert masking_figures["upload_bytes_per_value"] == wire["masked_input"]["up"] / 1000
    # 22 bits a value at n = 4, and one weight of 8 bits; what is beyond is headers and framing.
    packed = (1000 * 22 + 7) // 8 + 1
    assert packed < wire["masked_input"]["up"] < packed + 800
    small = [step for step in STEPS if step != "masked_input"]
    assert all(0 < wire[step]["up"] < 10_000 for step in small)
    assert all(0 < wire[step]["down"] < 20_000 for step in STEPS[:-1])
    assert wire["unmask"]["down"] == 0


def test_wire_bits_of_ciphertexts_are_those_of_packed_residues(ckks_figures):
    wire, degree = ckks_figures["wire_bytes"], ckks_figures["degree"]
    polynomials = -(-1001 // (degree * ckks_figures["digits"]))
    packed = polynomials * degree * sum(ckks_figures["modulus_bits"]) // 8
    sent = wire["masked_input"]["up"]
    assert packed < sent < packed + 800
    assert ckks_figures["bits_per_value"] == 8 * sent / 1000
    everything = sum(step["up"] for step in wire.values())
    assert ckks_figures["bits_per_value_all_steps"] == 8 * everything / 1000
    shares = 3 * 31 * (degree + 4) // 8  # three others' shares of one key
    assert shares < wire["share_keys"]["up"] < shares + 6000


def test_every_step_has_its_share_of_each_roles_costs(figures):
    for role in ("tenant", "coordinator"):
        by_step = figures[f"{role}_cpu_by_step_s"]
        assert list(by_step) == STEPS
        assert all(cost > 0 for cost in by_step.values())
    # Medians of steps do not add up to the median of sums, but nearly.
    total = sum(figures["coordinator_cpu_by_step_s"].values())
    assert figures["coordinator_cpu_s"] == pytest.approx(total)
    assert 0 < figures["shamir_s"] < figures["tenant_cpu_s"] + figures["coordinator_cpu_s"]


def test_the_plan_is_reported(figures, ckks_figures):
    assert figures["suite"] == "x25519-mlkem768"
    assert (figures["neighbours"], figures["colluders"], figures["share_threshold"]) == (4, 1, 3)
    assert figures["measured_tenants"] == [0, 1, 2]
    assert ckks_figures["scheme"] == "ckks"
    assert ckks_figures["packing"] == "coefficients"
    assert ckks_figures["security"] == "quantum"
    assert ckks_figures["committee"] == 4
    assert ckks_figures["holder_cpu_s"] == ckks_figures["tenant_cpu_s"]


def test_more_silent_tenants_than_a_round_survives_are_refused_in_one_sentence():
    run = bench("masking", "--tenants", 4, "--length", 10, "--dropout", 0.5, "--format", "json")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("secagg bench: a dropout of 0.5 silences 2 of 4 tenants")


@pytest.mark.parametrize(
    ("size", "clause"),
    [
        ({"tenants": 2}, "cohort"),
        ({"length": 0}, "layout"),
        ({"dropout": -0.5}, "silences"),
        ({"value_bits": 40}, "value_bits"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_starts(size, clause):
    sizes = {"tenants": 4, "length": 10, "dropout": 0.0, "value_bits": 16, "seed": 0} | size
    with pytest.raises(ConfigError, match=clause):
        Workload(**sizes).check()


@pytest.mark.parametrize("bits", [4, 8, 16, 25, 26, 32])
def test_inputs_lie_on_the_quantisers_grid(bits):
    workload = Workload(tenants=3, length=1000, dropout=0.0, value_bits=bits, seed=1)
    worst = np.random.default_rng(5).integers(0, 2**32, 1000, np.uint32)
    worst[:2] = 0, 2**32 - 1
    levels = workload.quantiser.levels(workload.values(2), 1.0, worst)
    most = 2 ** (bits - 1) - 1
    drawn = np.random.default_rng(1 * 1000003 + 2).integers(
        -most, most, 1000, np.int64, endpoint=True
    )
    assert np.array_equal(levels, drawn)


def test_inputs_drawn_in_blocks_are_the_documented_ones(monkeypatch):
    whole = Workload(tenants=3, length=1000, dropout=0.0, value_bits=16, seed=1)
    expected = whole.values(0)
    monkeypatch.setattr("secagg_demo.bench_workload._BLOCK", 7)
    assert np.array_equal(whole.values(0), expected)


def test_a_fraction_of_tenants_is_what_it_reads_as_in_decimal():
    assert Workload(100, 10, 0.29, 16, 0).silent == 29
    assert Workload(10, 10, 0.35, 16, 0).silent == 3


def nothing(*_: object) -> None:
    pass


def test_the_suite_and_the_graph_are_chosen():
    sparse = Workload(60, 50, 0.05, 16, 0, suite="x25519", neighbours=45, colluders=1)
    sparse.check()
    measured = bench_round.run_here(sparse, nothing)
    assert measured.exact
    assert (measured.plan.suite, measured.plan.share_count) == ("x25519", 45)
    assert measured.coordinator_shamir_s > 0
    assert all(tenant.shamir_s > 0 for tenant in measured.tenants)


def test_a_round_of_slots_under_a_committee_is_measured_too():
    workload = Workload(
        66, 50, 0.1, 16, 0, scheme="ckks", packing="slots", security="classical", committee=7
    )
    workload.check()
    measured = bench_round.run_here(workload, nothing)
    assert measured.exact
    assert measured.plan.same_holders == tuple(range(7))
    parameters = measured.plan.ckks
    assert (parameters.packing, parameters.security) == ("slots", "classical")
    assert measured.coordinator_shamir_s > 0
    assert all(tenant.shamir_s > 0 for tenant in measured.tenants)


def test_more_silent_tenants_than_a_committee_can_stand_are_refused():
    committee = Workload(66, 50, 0.4, 16, 0, scheme="ckks", committee=20)
    with pytest.raises(ConfigError, match="opens after 0 to"):
        committee.check()


def test_what_warms_up_has_the_ring_of_what_is_measured():
    workload = Workload(10, 100_000, 0.0, 16, 0, scheme="ckks")
    small = workload.warm_up()
    plans = [one.plan(one.roster(tuple(one.identities()))) for one in (workload, small)]
    assert plans[0].ckks == plans[1].ckks
    assert len(leaf_places(plans[1])) == 2


def test_unit_costs_are_printed_for_the_planner():
    run = bench("units")
    assert run.returncode == 0, run.stderr
    units = units_from_json(json.loads(run.stdout))
    assert 0 < units.mask_byte < 1e-7
    assert 0 < units.encrypted_residue < 1e-6


def test_tenants_beyond_the_sample_are_as_real(monkeypatch):
    monkeypatch.setattr(bench_round, "PROCESSES", 4)
    monkeypatch.setattr(bench_round, "SAMPLE", 2)
    measured = bench_round.measure_round(Workload(7, 100, 0.2, 16, 3), nothing)
    assert measured.exact
    assert [tenant.index for tenant in measured.tenants] == [0, 5]
    assert measured.opened_sum_sha256 == documented_sum_sha256(7, 100, 1, 16, seed=3)
    mean = sum(tenant.cpu_s for tenant in measured.tenants) / 2
    assert 6 * mean < measured.all_tenants_cpu_s < 7 * mean


def test_the_sample_is_spread_evenly_over_the_survivors():
    assert bench_round.measured_tenants(Workload(10, 10, 0.2, 16, 0)) == tuple(range(8))
    sampled = bench_round.measured_tenants(Workload(1000, 10, 0.1, 16, 0))
    assert sampled == (0, 128, 257, 385, 514, 642, 771, 899)


def test_a_round_in_one_process_shows_every_step_as_it_begins():
    seen = []
    measured = bench_round.run_here(
        Workload(5, 100, 0.2, 16, 0),
        nothing,
        lambda step, coordinator, events: seen.append((step, len(events))),
    )
    assert measured.exact
    assert [step for step, _ in seen] == list(Step)
    # Offers, keys, shares and views go to all; survivor sets and quorums to survivors.
    assert [count for _, count in seen] == [5, 5, 5, 5, 4, 4]


class Mortal:
    def die(self):
        raise SystemExit(1)


def test_the_death_of_a_party_ends_the_benchmark():
    party = Forked(Mortal(), nothing)
    with pytest.raises(RuntimeError, match="died"):
        party.ask("die")
