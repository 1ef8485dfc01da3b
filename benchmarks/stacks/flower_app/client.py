"""The tenants: unprotected, under secagg, under Flower's SecAgg+; each call notes its CPU time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from secagg_embed.flower import secagg_mod

EXAMPLES = 100


def metered(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod around all others: when, and CPU seconds of the app with its mods."""
    began = time.process_time()
    reply = call_next(message, context)
    spent = time.process_time() - began
    folder = Path(str(context.node_config["secagg-folder"]))
    with (folder / "calls.txt").open("a") as calls:
        calls.write(f"{time.time()} {spent}\n")
    return reply


def trained(model: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """What costs next to nothing, and is never the same twice: no tenant sends an update again."""
    return model + np.float32(np.random.default_rng().uniform(0.001, 0.009))


plain = ClientApp()
protected = ClientApp()


@plain.train(mods=[metered])
@protected.train(mods=[metered, secagg_mod])
def train(message: Message, context: Context) -> Message:
    """One round at one tenant."""
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(trained(one)) for name, one in model.items()}),
            "metrics": MetricRecord({"num-examples": EXAMPLES}),
        }
    )
    return Message(content, reply_to=message)


class _Client(NumPyClient):
    def fit(self, parameters, config):  # type: ignore[no-untyped-def]
        return [trained(one) for one in parameters], EXAMPLES, {}


secaggplus = ClientApp(
    client_fn=lambda context: _Client().to_client(), mods=[metered, secaggplus_mod]
)
