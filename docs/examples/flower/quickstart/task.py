"""The model, a logistic regression, and each tenant's own data."""

import numpy as np

FEATURES = 20
EXAMPLES = 400


def new_model():
    """Weights and bias before the first round."""
    return {"weights": np.zeros(FEATURES, np.float32), "bias": np.zeros(1, np.float32)}


def load_data(seed):
    """Stands for reading this tenant's files: the same question, other patients."""
    noise = np.random.default_rng(seed)
    features = noise.normal(0, 1, (EXAMPLES, FEATURES))
    truth = np.linspace(-1, 1, FEATURES)
    return features, (features @ truth + noise.normal(0, 0.5, EXAMPLES) > 0).astype(float)


def fit(model, features, labels, learning_rate, steps=20):
    """The model after some steps of gradient descent on random batches, and its loss.

    The batches are drawn anew in each round and each run: a tenant never sends one update twice.
    """
    weights, bias = model["weights"].astype(float), model["bias"].astype(float)
    batches = np.random.default_rng()
    for _ in range(steps):
        batch = batches.choice(len(labels), 100)
        error = _predict(weights, bias, features[batch]) - labels[batch]
        weights -= learning_rate * features[batch].T @ error / len(batch)
        bias -= learning_rate * error.mean()
    after = {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    return after, loss_of(after, features, labels)


def loss_of(model, features, labels):
    """Cross-entropy."""
    guess = np.clip(_predict(model["weights"], model["bias"], features), 1e-6, 1 - 1e-6)
    return float(-np.mean(labels * np.log(guess) + (1 - labels) * np.log(1 - guess)))


def accuracy_of(model, features, labels):
    """Share of labels that are guessed right."""
    guess = _predict(model["weights"], model["bias"], features) > 0.5
    return float(np.mean(guess == labels))


def _predict(weights, bias, features):
    return 1 / (1 + np.exp(-(features @ weights + bias)))
