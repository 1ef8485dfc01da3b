"""The side that starts rounds. It leaves the model that it ends with in the file `out`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Result

from exact.deltas import CLIP, MAX_WEIGHT, VALUE_BITS, start
from secagg_embed.flower import SecureAggregation, Terms

app = ServerApp()
unprotected = ServerApp()


@app.main()
def protected_rounds(grid: Grid, context: Context) -> None:
    terms = Terms(
        clip=CLIP, value_bits=VALUE_BITS, max_weight=MAX_WEIGHT,
        scheme=str(context.run_config["scheme"]),  # type: ignore[arg-type]
    )  # fmt: skip
    strategy = SecureAggregation(
        FedAvg(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4),
        roster=Path(str(context.run_config["roster"])),
        terms=terms,
        run_config=context.run_config,
    )
    keep(strategy.start(grid, initial(), num_rounds=int(context.run_config["rounds"])), context)


@unprotected.main()
def plain_rounds(grid: Grid, context: Context) -> None:
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=5)
    keep(strategy.start(grid, initial(), num_rounds=1), context)


def initial() -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in start().items()})


def keep(result: Result, context: Context) -> None:
    if result.arrays:
        arrays = {name: array.numpy() for name, array in result.arrays.items()}
        np.savez(str(context.run_config["out"]), **arrays)
