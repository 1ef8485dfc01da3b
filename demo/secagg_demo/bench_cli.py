"""Measure what a round costs each party: CPU, memory and bytes, with every check on.

All parties run here, each in a process of its own, one after another. What passes between them is
the bytes of the wire; left out are sockets (gRPC, TLS), training, and disk and database: ledger,
store and spool are in memory. Progress goes to stderr; with --format json the last line of stdout
is one JSON object:

  tenant_cpu_s            process CPU of one tenant over all steps: median over tenants and repeats
  coordinator_cpu_s       process CPU of the coordinator over the round: median over repeats
  process_cpu_s           all parties together: median over repeats
  upload_bytes_per_value  wire bytes up of one tenant in masked_input, per value
  keystream_gb_s          masks made and added, one core; aes_ctr_gb_s: AES-256-CTR alone, in turns
  keystream_fraction      the first over the second
  tenant_peak_rss_mb      peak memory of one tenant's process: median; MiB
  coordinator_peak_rss_mb the same of the coordinator's: largest
  exact                   every opened sum was the sum of the survivors' inputs
  opened_sum_sha256       SHA-256 of the opened sum as little-endian int64
  wire_bytes              of one tenant, by step, up and down: median over tenants and repeats
  tenants, length, dropout, value_bits, repeat, threads, version

Inputs: tenant i draws numpy.random.default_rng(seed * 1000003 + i).integers(-m, m, D, numpy.int64,
endpoint=True) with m = 2**(B-1) - 1, and submits them times 2**(1-B), with weight 1 of 1: they lie
on the quantiser's grid, so that stochastic rounding changes nothing and anybody can compute the
sum. The last floor(N * F) tenants are silent from masked_input on, and their masks are rebuilt.

  secagg bench masking --tenants 10 --length 1000000 --dropout 0.2 --format json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from typing import Any

from secagg import __version__
from secagg.errors import ConfigError, Step

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
        options.tenants, options.length, options.dropout, options.value_bits, options.seed
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
    traffic = [one for measured in rounds for one in measured.traffic]
    uploaded = _median(one[Step.MASKED_INPUT].up for one in traffic)
    return {
        "tenant_cpu_s": _median(cpu for one in rounds for cpu in one.tenant_cpu_s),
        "coordinator_cpu_s": _median(one.coordinator_cpu_s for one in rounds),
        "process_cpu_s": _median(one.all_tenants_cpu_s + one.coordinator_cpu_s for one in rounds),
        "upload_bytes_per_value": uploaded / workload.length,
        "keystream_gb_s": rates.keystream_gb_s,
        "aes_ctr_gb_s": rates.aes_ctr_gb_s,
        "keystream_fraction": rates.keystream_gb_s / rates.aes_ctr_gb_s,
        "tenant_peak_rss_mb": _median(mb for one in rounds for mb in one.tenant_peak_rss_mb),
        "coordinator_peak_rss_mb": max(one.coordinator_peak_rss_mb for one in rounds),
        "exact": all(one.exact for one in rounds),
        "opened_sum_sha256": rounds[-1].opened_sum_sha256,
        "wire_bytes": {
            step.label: {
                "up": int(_median(one[step].up for one in traffic)),
                "down": int(_median(one[step].down for one in traffic)),
            }
            for step in Step
        },
        "tenants": workload.tenants,
        "length": workload.length,
        "dropout": workload.dropout,
        "value_bits": workload.value_bits,
        "repeat": options.repeat,
        "threads": 1,
        "version": __version__,
    }


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _say(what: str) -> None:
    print(f"secagg bench: {what}", file=sys.stderr, flush=True)


_WORDS = """\
{tenants} tenants, {length:,} values of {value_bits} bits, dropout {dropout}, {repeat} round(s)

a tenant         {tenant_ms:12,.1f} ms CPU {tenant_peak_rss_mb:8,.0f} MiB
the coordinator  {coordinator_ms:12,.1f} ms CPU {coordinator_peak_rss_mb:8,.0f} MiB
all parties      {process_ms:12,.1f} ms CPU
a value up       {upload_bytes_per_value:12.4f} bytes
masks            {keystream_gb_s:12.2f} GB/s; {keystream_fraction:.2f} of AES {aes_ctr_gb_s:.2f}
sum              {verdict:>12} {opened_sum_sha256}

bytes of one tenant               up            down"""


def _in_words(facts: dict[str, Any]) -> str:
    words = _WORDS.format_map(
        facts
        | {f"{party}_ms": facts[f"{party}_cpu_s"] * 1e3 for party in _PARTIES}
        | {"verdict": "exact" if facts["exact"] else "WRONG"}
    )
    steps = (
        f"{step:20}{traffic['up']:>16,}{traffic['down']:>16,}"
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
    masking.add_argument("--seed", type=int, default=0, metavar="S", help="inputs only; default 0")
    masking.add_argument("--repeat", type=int, default=1, metavar="R", help="rounds; default 1")
    masking.add_argument("--format", choices=("text", "json"), default="text")
    return parser
