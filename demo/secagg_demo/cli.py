"""Show it: owner, coordinator and tenants as processes over mTLS, one killed; then a report.

secagg demo
secagg demo --tenants 4 --rounds 2 --kill 1 --out build/demo --format json
secagg demo --task timeseries          # companies with real time series, not text
secagg demo --scheme ckks              # one-time CKKS keys in place of masks
secagg demo --tenants 5 --kill 2       # misses the quorum: a visible abort, nothing opened

Each tenant's private text is the source of one installed package, and each company's time series
are real ones that come inside installed libraries. In round 2 the last K tenants
get a SIGKILL in the middle of their uploads; in round 3 they are back. The report stands in
DIR/report.html and DIR/report.json, the evidence in DIR/evidence, what the processes said in
DIR/logs. Progress goes to standard error, the result to standard output.

Exit codes: 0 done; 1 a process failed; 2 wrong options; 3 an extra is not installed; 5 a round was
aborted and opened nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Run `secagg demo ...`."""
    options = _parser().parse_args(argv)
    from secagg_demo.show import show

    return show(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--task", choices=("text", "timeseries"), default="text", help="what tenants hold (text)"
    )
    parser.add_argument("--tenants", type=int, default=5, metavar="N", help="3 or more (5)")
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="(3)")
    parser.add_argument(
        "--kill", type=int, default=1, metavar="K", help="tenants killed in round 2 (1)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of data and training, never of keys (0)"
    )
    parser.add_argument("--scheme", choices=("masking", "ckks"), default="masking")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), metavar="DIR", help="(build/demo)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="the coordinator's; by default any free one"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    return parser
