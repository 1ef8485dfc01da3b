"""The side that starts rounds: the strategy that was there, inside SecureAggregation."""

from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import new_model
from secagg_embed.flower import SecureAggregation, Terms

app = ServerApp()


@app.main()
def main(grid, context):
    """Some rounds; the model ends up in the file `out`."""
    config = context.run_config
    strategy = SecureAggregation(
        FedAvg(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4),
        roster=Path(config["roster"]),
        terms=Terms(clip=4.0, max_weight=1000, scheme=config["scheme"]),
        run_config=config,
        metrics={"train_loss": 10.0},
    )
    initial = ArrayRecord({name: Array(tensor) for name, tensor in new_model().items()})
    result = strategy.start(grid, initial, num_rounds=config["num-server-rounds"])
    np.savez(config["out"], **{name: array.numpy() for name, array in result.arrays.items()})
