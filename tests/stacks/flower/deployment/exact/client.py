"""The tenants' side. A tenant with a file `hold` in its folder trains until it is killed."""

from __future__ import annotations

import threading
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from exact.deltas import WEIGHTS, trained
from secagg_embed.flower import secagg_mod

app = ClientApp()
unprotected = ClientApp()


@app.train(mods=[secagg_mod])
@unprotected.train()
def train(message: Message, context: Context) -> Message:
    folder = Path(str(context.node_config["secagg-folder"]))
    (folder / "training").touch()
    if (folder / "hold").exists():
        threading.Event().wait()
    config = message.content["config"]
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    after = trained(model, folder.name, int(config["server-round"]))
    return answer(message, {"arrays": after}, WEIGHTS[folder.name])


@app.evaluate(mods=[secagg_mod])
def evaluate(message: Message, context: Context) -> Message:
    folder = Path(str(context.node_config["secagg-folder"]))
    return answer(message, {}, WEIGHTS[folder.name])


def answer(message: Message, arrays: dict[str, dict], examples: int) -> Message:  # type: ignore[type-arg]
    content = RecordDict({"metrics": MetricRecord({"num-examples": examples})})
    for name, tensors in arrays.items():
        content[name] = ArrayRecord({key: Array(value) for key, value in tensors.items()})
    return Message(content, reply_to=message)
