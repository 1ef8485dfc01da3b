"""The tenants' side: `mods=[secagg_mod]` is all that secure aggregation adds to it."""

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quickstart.task import accuracy_of, fit, load_data
from secagg_embed.flower import secagg_mod

app = ClientApp()


@app.train(mods=[secagg_mod])
def train(message, context):
    """Fit the model to this tenant's data."""
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    features, labels = load_data(context.node_config["seed"])
    model, loss = fit(model, features, labels, context.run_config["learning-rate"])
    arrays = ArrayRecord({name: Array(tensor) for name, tensor in model.items()})
    metrics = MetricRecord({"num-examples": len(labels), "train_loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate(mods=[secagg_mod])
def evaluate(message, context):
    """How good the model is on this tenant's data."""
    model = {name: array.numpy() for name, array in message.content["arrays"].items()}
    features, labels = load_data(context.node_config["seed"])
    accuracy = accuracy_of(model, features, labels)
    metrics = MetricRecord({"num-examples": len(labels), "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
