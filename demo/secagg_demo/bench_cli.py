"""Measure what a round costs each party: CPU, memory and bytes, with every check on.

All parties run here, each in a process of its own, one after another. What passes between them is
the bytes of the wire; left out are sockets (gRPC, TLS), training, and disk and database: ledger,
store and spool are in memory. Above 64 tenants eight survivors, evenly spread, are measured so;
the others are as real, but share one process. Progress goes to stderr; with --format json the last
line of stdout is one JSON object:

  tenant_cpu_s            process CPU of one tenant over all steps: median over tenants and repeats
  tenant_cpu_by_step_s    the same for each step
  coordinator_cpu_s       process CPU of the coordinator over the round: median over repeats
  coordinator_cpu_by_step_s  the same for each step; what ends a step is part of it
  process_cpu_s           all parties together: median over repeats; above 64 tenants what the
                          measured tenants took, scaled to the cohort, and the coordinator
  shamir_s                of tenant_cpu_s and coordinator_cpu_s, what went into Shamir's scheme:
                          dealing the shares of one tenant's secrets (median), and rebuilding the
                          secrets of all at the coordinator; sealing, commitments and hashes are not
  upload_bytes_per_value  wire bytes up of one tenant in masked_input, per value
  keystream_gb_s          masks made and added, one core; aes_ctr_gb_s: AES-256-CTR alone, in turns
  keystream_fraction      the first over the second
  tenant_peak_rss_mb      peak memory of one tenant's process: median; MiB
  coordinator_peak_rss_mb the same of the coordinator's: largest
  exact                   every opened sum was the sum of the survivors' inputs
  opened_sum_sha256       SHA-256 of the opened sum as little-endian int64
  wire_bytes              of one tenant, by step, up and down: median over tenants and repeats
  measured_tenants        indices of the tenants that the figures of one tenant come from
  suite, neighbours, colluders, share_threshold  of the plan; neighbours = tenants: complete graph
  tenants, length, dropout, value_bits, repeat, threads, version

Inputs: tenant i draws numpy.random.default_rng(seed * 1000003 + i).integers(-m, m, D, numpy.int64,
endpoint=True) with m = 2**(B-1) - 1, and submits them times 2**(1-B), with weight 1 of 1: they lie
on the quantiser's grid, so that stochastic rounding changes nothing and anybody can compute the
sum. The last floor(N * F) tenants are silent from masked_input on, and their masks are rebuilt.

  secagg bench masking --tenants 10 --length 1000000 --dropout 0.2 --format json
  secagg bench masking --tenants 100 --neighbours 40 --colluders 5 --suite x25519 --length 100000
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secagg import __version__
from secagg.errors import ConfigError, Step
from secagg.plan import SUITES

if TYPE_CHECKING:
    from secagg_demo.bench_round import Measured

_PARTIES = ("tenant", "coordinator", "process")


def main(argv: list[str]) -> int:
    """Run `secagg bench ...`."""
    options = _parser().parse_args(argv)
    facts = _measure(options)
    print(json.dumps(facts) if options.format == "json" else _in_words(facts))
    return 0


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
sum              {verdict:>12} {opened_sum_sha256}

                            CPU ms                 bytes of a tenant
step                   tenant   coordinator              up            down"""


def _in_words(facts: dict[str, Any]) -> str:
    words = _WORDS.format_map(
        facts
        | {f"{party}_ms": facts[f"{party}_cpu_s"] * 1e3 for party in _PARTIES}
        | {"shamir_ms": facts["shamir_s"] * 1e3}
        | {"verdict": "exact" if facts["exact"] else "WRONG"}
    )
    tenant, coordinator = facts["tenant_cpu_by_step_s"], facts["coordinator_cpu_by_step_s"]
    steps = (
        f"{step:18}{tenant[step] * 1e3:11,.1f}{coordinator[step] * 1e3:14,.1f}"
        f"{traffic['up']:>16,}{traffic['down']:>16,}"
        for step, traffic in facts["wire_bytes"].items()
    )
    return "\n".join([words, *steps])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg bench", description=(__doc__ or "").split("\n")[0]
    )
    schemes = parser.add_subparsers(required=True, metavar="SCHEME")
    masking = schemes.add_parser(
        "masking",
        help="one round of masked aggregation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    masking.add_argument("--tenants", type=int, default=10, metavar="N")
    masking.add_argument("--length", type=int, default=1_000_000, metavar="D")
    masking.add_argument("--dropout", type=float, default=0.0, metavar="F", help="default 0")
    masking.add_argument("--value-bits", type=int, default=16, metavar="B", help="default 16")
    masking.add_argument("--suite", choices=SUITES, help="default: the plan's default")
    masking.add_argument(
        "--neighbours",
        type=int,
        metavar="K",
        help="holders of a tenant's shares; default: the plan's",
    )
    masking.add_argument("--colluders", type=int, metavar="C", help="default: the plan's default")
    masking.add_argument("--seed", type=int, default=0, metavar="S", help="inputs only; default 0")
    masking.add_argument("--repeat", type=int, default=1, metavar="R", help="rounds; default 1")
    masking.add_argument("--format", choices=("text", "json"), default="text")
    return parser
