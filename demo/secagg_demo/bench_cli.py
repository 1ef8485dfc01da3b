"""Measure what a round costs each party: CPU, memory and bytes, with every check on.

All parties run here, each in a process of its own, one after another. What passes between them is
the bytes of the wire; left out are sockets (gRPC, TLS), training, and disk and database: ledger,
store and spool are in memory. Above 64 tenants eight survivors, evenly spread, are measured so;
the others are as real, but share one process. A process runs a small round before, as a node that
is not in its first round; for ckks with the same ring and primes, so that numba's kernels, which
are compiled once per machine and then cached, and tables are there before anything is measured.
Progress goes to stderr; with --format json the last line of stdout is one JSON object:

  tenant_cpu_s            process CPU of one tenant over all steps: median over tenants and repeats
  tenant_cpu_by_step_s    the same for each step
  coordinator_cpu_s       process CPU of the coordinator over the round: median over repeats
  coordinator_cpu_by_step_s  the same for each step; what ends a step is part of it
  process_cpu_s           all parties together: median over repeats; above 64 tenants what the
                          measured tenants took, scaled to the cohort, and the coordinator
  shamir_s                of tenant_cpu_s and coordinator_cpu_s, what went into Shamir's scheme:
                          dealing the shares of one tenant's secrets (median), and rebuilding the
                          secrets of all at the coordinator; no sealing, commitments and hashes.
                          ckks: dealing, checking and adding vectors of shares, and opening the sum
  upload_bytes_per_value  wire bytes up of one tenant in masked_input, per value
  keystream_gb_s          masks made and added, one core; aes_ctr_gb_s: AES-256-CTR alone, in turns
                          (ckks has no masks: measured all the same, as what the machine can do)
  keystream_fraction      the first over the second
  tenant_peak_rss_mb      peak memory of one tenant's process: median; MiB
  coordinator_peak_rss_mb the same of the coordinator's: largest
  exact                   every opened sum was the sum of the survivors' inputs
  opened_sum_sha256       SHA-256 of the opened sum as little-endian int64
  wire_bytes              of one tenant, by step, up and down: median over tenants and repeats
  measured_tenants        indices of the tenants that the figures of one tenant come from
  suite, neighbours, colluders, share_threshold  of the plan; neighbours = tenants: complete graph
  tenants, length, dropout, value_bits, repeat, threads, version

and for ckks, besides:

  bits_per_value          all bits that one tenant sends in masked_input, over D: the packed
                          ciphertexts with the weight and the padding of the last polynomial,
                          header, signatures and framing; 8 times upload_bytes_per_value
  bits_per_value_all_steps  the same over all six steps: with keys, dealt shares, what is released
  holder_cpu_s            tenant_cpu_s of those who hold shares; differs where a committee does
  scheme, packing, security, degree, modulus_bits, digits, committee  of the plan

Inputs: tenant i draws numpy.random.default_rng(seed * 1000003 + i).integers(-m, m, D, numpy.int64,
endpoint=True) with m = 2**(B-1) - 1, and submits them times 2**(1-B), with weight 1 of 1: they lie
on the quantiser's grid, so that stochastic rounding changes nothing and anybody can compute the
sum. The last floor(N * F) tenants are silent from masked_input on; their masks are rebuilt, or
their keys are not in the sum. A committee is the first C tenants.

`secagg bench units` prints what single operations take on this machine, as JSON for
`secagg plan --units FILE`.

  secagg bench masking --tenants 10 --length 1000000 --dropout 0.2 --format json
  secagg bench masking --tenants 100 --neighbours 40 --colluders 5 --suite x25519 --length 100000
  secagg bench ckks --tenants 10 --length 1000000 --format json
  secagg bench ckks --tenants 100 --committee 30 --length 100000
  secagg bench units > units.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secagg import __version__
from secagg.ckks.parameters import PACKINGS, SECURITIES
from secagg.errors import ConfigError, Step
from secagg.plan import SUITES

if TYPE_CHECKING:
    from secagg_demo.bench_round import Measured, TenantCost

_PARTIES = ("tenant", "coordinator", "process")


def main(argv: list[str]) -> int:
    """Run `secagg bench ...`."""
    options = _parser().parse_args(argv)
    if options.scheme == "units":
        print(json.dumps(_units(), indent=1))
        return 0
    facts = _measure(options)
    print(json.dumps(facts) if options.format == "json" else _in_words(facts))
    return 0


def _units() -> dict[str, float]:
    from secagg.calibration import measure
    from secagg.costs import units_to_json

    _say("unit costs")
    return units_to_json(measure(time.process_time))


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    # The wire is an extra: --help works without it.
    from secagg_demo.bench_rates import measure_rates
    from secagg_demo.bench_round import measure_round
    from secagg_demo.bench_workload import Workload

    workload = Workload(
        options.tenants,
        options.length,
        options.dropout,
        options.value_bits,
        options.seed,
        options.suite,
        options.neighbours or None,
        options.colluders,
        options.scheme,
        options.packing,
        options.security,
        options.committee,
    )
    workload.check()
    if options.repeat < 1:
        raise ConfigError("--repeat counts rounds: give 1 or more")
    _say("keystream")
    rates = measure_rates()
    rounds = []
    for number in range(1, options.repeat + 1):
        _say(f"round {number} of {options.repeat}")
        rounds.append(measure_round(workload, _say))
    return {
        **_costs(rounds, workload.length),
        "keystream_gb_s": rates.keystream_gb_s,
        "aes_ctr_gb_s": rates.aes_ctr_gb_s,
        "keystream_fraction": rates.keystream_gb_s / rates.aes_ctr_gb_s,
        "tenants": workload.tenants,
        "length": workload.length,
        "dropout": workload.dropout,
        "value_bits": workload.value_bits,
        "repeat": options.repeat,
        "threads": 1,
        "version": __version__,
    }


def _costs(rounds: Sequence[Measured], length: int) -> dict[str, Any]:
    tenants = [tenant for one in rounds for tenant in one.tenants]
    uploaded = _median(one.traffic[Step.MASKED_INPUT].up for one in tenants)
    plan = rounds[-1].plan
    return {
        "tenant_cpu_s": _median(one.cpu_s for one in tenants),
        "tenant_cpu_by_step_s": _by_step([one.cpu_by_step_s for one in tenants]),
        "coordinator_cpu_s": _median(one.coordinator_cpu_s for one in rounds),
        "coordinator_cpu_by_step_s": _by_step([one.coordinator_cpu_by_step_s for one in rounds]),
        "process_cpu_s": _median(one.all_tenants_cpu_s + one.coordinator_cpu_s for one in rounds),
        "shamir_s": _median(one.shamir_s for one in tenants)
        + _median(one.coordinator_shamir_s for one in rounds),
        "upload_bytes_per_value": uploaded / length,
        "tenant_peak_rss_mb": _median(one.peak_rss_mb for one in tenants),
        "coordinator_peak_rss_mb": max(one.coordinator_peak_rss_mb for one in rounds),
        "exact": all(one.exact for one in rounds),
        "opened_sum_sha256": rounds[-1].opened_sum_sha256,
        "wire_bytes": {
            step.label: {
                "up": int(_median(one.traffic[step].up for one in tenants)),
                "down": int(_median(one.traffic[step].down for one in tenants)),
            }
            for step in Step
        },
        "measured_tenants": [one.index for one in rounds[-1].tenants],
        "suite": plan.suite,
        "neighbours": plan.share_count,
        "colluders": plan.max_colluders,
        "share_threshold": plan.share_threshold,
        **_of_ckks(rounds[-1], tenants, length),
    }


def _of_ckks(last: Measured, tenants: Sequence[TenantCost], length: int) -> dict[str, Any]:
    plan, parameters = last.plan, last.plan.ckks
    if parameters is None:
        return {}
    sent = _median(sum(step.up for step in one.traffic.values()) for one in tenants)
    uploaded = _median(one.traffic[Step.MASKED_INPUT].up for one in tenants)
    holders = [one.cpu_s for one in tenants if one.index in plan.same_holders]
    return {
        "bits_per_value": 8 * uploaded / length,
        "bits_per_value_all_steps": 8 * sent / length,
        "holder_cpu_s": _median(holders),
        "scheme": plan.scheme,
        "packing": parameters.packing,
        "security": parameters.security,
        "degree": parameters.degree,
        "modulus_bits": list(parameters.modulus_bits),
        "digits": parameters.digits(plan.n, plan.ring_bits),
        "committee": len(plan.same_holders),
    }


def _by_step(costs: Sequence[Mapping[Step, float]]) -> dict[str, float]:
    return {step.label: _median(cost[step] for cost in costs) for step in Step}


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _say(what: str) -> None:
    print(f"secagg bench: {what}", file=sys.stderr, flush=True)


_WORDS = """\
{tenants} tenants, {length:,} values of {value_bits} bits, dropout {dropout}, {repeat} round(s)
suite {suite}, {neighbours} holders of a tenant's shares, {share_threshold} open them

a tenant         {tenant_ms:12,.1f} ms CPU {tenant_peak_rss_mb:8,.0f} MiB
the coordinator  {coordinator_ms:12,.1f} ms CPU {coordinator_peak_rss_mb:8,.0f} MiB
all parties      {process_ms:12,.1f} ms CPU
secret sharing   {shamir_ms:12,.1f} ms CPU of a tenant and the coordinator
a value up       {upload_bytes_per_value:12.4f} bytes
masks            {keystream_gb_s:12.2f} GB/s; {keystream_fraction:.2f} of AES {aes_ctr_gb_s:.2f}
sum              {verdict:>12} {opened_sum_sha256}{ring}

                            CPU ms                 bytes of a tenant
step                   tenant   coordinator              up            down"""


def _in_words(facts: dict[str, Any]) -> str:
    words = _WORDS.format_map(
        facts
        | {f"{party}_ms": facts[f"{party}_cpu_s"] * 1e3 for party in _PARTIES}
        | {"shamir_ms": facts["shamir_s"] * 1e3}
        | {"verdict": "exact" if facts["exact"] else "WRONG", "ring": _ring_in_words(facts)}
    )
    tenant, coordinator = facts["tenant_cpu_by_step_s"], facts["coordinator_cpu_by_step_s"]
    steps = (
        f"{step:18}{tenant[step] * 1e3:11,.1f}{coordinator[step] * 1e3:14,.1f}"
        f"{traffic['up']:>16,}{traffic['down']:>16,}"
        for step, traffic in facts["wire_bytes"].items()
    )
    return "\n".join([words, *steps])


def _ring_in_words(facts: dict[str, Any]) -> str:
    if "degree" not in facts:
        return ""
    return (
        f"\nring             degree {facts['degree']}, log2 Q {sum(facts['modulus_bits'])}, "
        f"{facts['digits']} digits of packing {facts['packing']}; "
        f"{facts['bits_per_value']:.2f} bits a value"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg bench", description=(__doc__ or "").split("\n")[0]
    )
    schemes = parser.add_subparsers(required=True, metavar="SCHEME", dest="scheme")
    masking = _scheme(schemes, "masking", "one round of masked aggregation")
    masking.add_argument(
        "--neighbours",
        type=int,
        metavar="K",
        help="holders of a tenant's shares; default: the plan's",
    )
    masking.set_defaults(packing=PACKINGS[0], security=SECURITIES[0], committee=0)
    ckks = _scheme(schemes, "ckks", "one round under one-time CKKS keys")
    ckks.add_argument("--packing", choices=PACKINGS, default=PACKINGS[0])
    ckks.add_argument("--security", choices=SECURITIES, default=SECURITIES[0])
    ckks.add_argument(
        "--committee",
        type=int,
        default=0,
        metavar="C",
        help="how many tenants hold the shares; needed above 64 tenants, else all do",
    )
    ckks.set_defaults(neighbours=None)
    schemes.add_parser("units", help="what single operations take on this machine, as JSON")
    return parser


def _scheme(schemes: Any, name: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = schemes.add_parser(
        name,
        help=summary,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tenants", type=int, default=10, metavar="N")
    parser.add_argument("--length", type=int, default=1_000_000, metavar="D")
    parser.add_argument("--dropout", type=float, default=0.0, metavar="F", help="default 0")
    parser.add_argument("--value-bits", type=int, default=16, metavar="B", help="default 16")
    parser.add_argument("--suite", choices=SUITES, help="default: the plan's default")
    parser.add_argument("--colluders", type=int, metavar="C", help="default: the plan's default")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="inputs only; default 0")
    parser.add_argument("--repeat", type=int, default=1, metavar="R", help="rounds; default 1")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser
