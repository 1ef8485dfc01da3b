"""Experiments that are commands: `secagg experiment NAME`, over seeds, with intervals and a page.

An experiment is a module of this package with

    NAME, TITLE, QUESTION       strings; the question is answered by the findings
    SIZES                       ("quick", "default", "large") or some of them
    SEEDS                       how many seeds are run unless `--seeds` says otherwise
    jobs(size, seeds)           -> list[Job]: everything that is measured, as processes of their own
    summarise(size, results)    -> Summary: tables, findings, plots; `results` by the jobs' names

`frame.py` holds these values, `run.py` runs jobs and writes files, `worker.py` is the process of a
job, `page.py` turns a summary into Markdown, text and plots. `five-rows` is older and has its own
options.

Modules are named here and imported when they are asked for: help must work without an extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EXPERIMENTS: Final[Mapping[str, str]] = {
    "blocks": "block by block against end to end: from pretrained weights, from scratch, mixed",
    "budgets": "a block, LoRA, every layer, or only the head: at the same budgets",
    "tenants": "tenants of other distributions that drop out: federated, oracle, alone, pooled",
    "surprise": "windows drawn uniformly, or from a surprise band",
    "timeseries": "forecasts without training, and after federated training",
    "drift": "noticing drift, and recovering from it",
}
"""Every experiment's module in this package, and one line about it."""
