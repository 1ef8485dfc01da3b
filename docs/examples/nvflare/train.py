"""A site's training with NVFLARE's Client API, as it was before: nothing in it knows of secagg."""

import numpy as np
import nvflare.client as flare

TRUTH = np.array([1.5, -2.0, 0.5, 3.0])


def private_data(site: str) -> tuple[np.ndarray, np.ndarray]:
    """Stands for what lies at the site: more rows at some sites than at others."""
    draw = np.random.default_rng(list(site.encode()))
    x = draw.normal(size=(200 + 40 * (sum(site.encode()) % 5), len(TRUTH)))
    return x, x @ TRUTH + draw.normal(scale=0.1, size=len(x))


def trained(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Some steps over rows drawn at random: no two trainings are the same."""
    draw = np.random.default_rng()
    for _ in range(40):
        rows = draw.choice(len(x), 64)
        weights = weights - 0.05 * x[rows].T @ (x[rows] @ weights - y[rows]) / len(rows)
    return weights.astype(np.float32)


def main() -> None:
    """Every round that the server starts."""
    flare.init()
    x, y = private_data(flare.get_site_name())
    while flare.is_running():
        model = flare.receive()
        params = {"numpy_key": trained(model.params["numpy_key"], x, y)}
        meta = {"NUM_STEPS_CURRENT_ROUND": len(x)}
        flare.send(flare.FLModel(params=params, params_type=flare.ParamsType.FULL, meta=meta))


if __name__ == "__main__":
    main()
