"""The configuration files of the demonstration's nodes, as each operator would write its own.

Two things differ from a real deployment, and both are said in the files' own words: every tenant
writes down what it encoded (`[demonstration]`), and the tenants that will be killed have a cap on
their upload's speed, so that there is a middle to kill them in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg.plan import Scheme
from secagg_demo.site import Site

if TYPE_CHECKING:
    from secagg_models.recipe import Recipe, Rounds, SeriesRecipe

# A killed process is noticed after its lease and its grace; a starting one has longer.
# Both are generous: seven processes train on the machine's few cores, and a lease that ends because
# a tenant had to wait for a core would cost it the round.
LEASE = {"seconds": 8.0, "grace_seconds": 3.0, "join_grace_seconds": 90.0}


def coordinator(site: Site, port: int = 0) -> dict[str, Any]:
    """The coordinator keeps evidence of every round."""
    return {
        "keys": "keys",
        "data": "data",
        "evidence": site.evidence,
        "drain_seconds": 0.0,
        "listen": {"host": "127.0.0.1", "port": port},
        "lease": LEASE,
    }


def tenants(
    names: Sequence[str],
    *,
    port: int,
    policy: Mapping[str, Any],
    training: Mapping[str, Mapping[str, Any]],
    model: Mapping[str, Any] | None = None,
    slow: Sequence[str] = (),
    slow_bytes_per_second: int = 0,
) -> dict[str, dict[str, Any]]:
    """One configuration a tenant; `slow` ones upload no faster than the cap."""
    return {
        name: {
            "coordinator": f"127.0.0.1:{port}",
            "keys": "keys",
            "data": "data",
            "policy": dict(policy),
            "training": dict(training[name]),
            **({} if model is None else {"model": dict(model)}),
            "upload": {"max_bytes_per_second": slow_bytes_per_second if name in slow else 0},
            "demonstration": {"encoded_dir": "encoded"},
        }
        for name in names
    }


def vector_owner(port: int, rounds: int, length: int, scheme: Scheme = "masking") -> dict[str, Any]:
    """An owner of no model: tenants submit vectors of their own."""
    return {
        "coordinator": f"127.0.0.1:{port}",
        "keys": "keys",
        "data": "data",
        "model": {"kind": "vector", "length": length},
        "round": {"rounds": rounds, "scheme": scheme},
    }


def offsite_owner(
    port: int, recipe: Recipe, emulator: Path, scheme: Scheme = "masking"
) -> dict[str, Any]:
    """The owner of the full model."""
    lora = {"rank": recipe.rank, "scaling": recipe.scaling, "targets": recipe.targets}
    model = {
        "kind": "offsite",
        "full": "shipped",
        "emulator": emulator,
        "update": recipe.update,
        "embeddings": recipe.embeddings and recipe.update == "edges",
        "seed": recipe.seed,
        **(lora if recipe.update == "lora" else {}),
    }
    return _training_owner(port, recipe, model, scheme) | {"text": {"windows": 16}}


def series_owner(port: int, recipe: SeriesRecipe, scheme: Scheme = "masking") -> dict[str, Any]:
    """The owner of an update of a forecaster that everybody has."""
    lora = {
        "rank": recipe.rank, "scaling": recipe.scaling, "targets": recipe.targets,
        "seed": recipe.seed,
    }  # fmt: skip
    model = {
        "kind": recipe.update,
        "base": recipe.base,
        **(lora if recipe.update == "lora" else {}),
    }
    return _training_owner(port, recipe, model, scheme) | {"series": {"windows": 64}}


def _training_owner(
    port: int, recipe: Rounds, model: Mapping[str, Any], scheme: Scheme
) -> dict[str, Any]:
    """Weights are 1, since every tenant trains on as many windows."""
    return {
        "coordinator": f"127.0.0.1:{port}",
        "keys": "keys",
        "data": "data",
        "model": dict(model),
        "training": {
            "steps": recipe.steps_per_round,
            "batch": recipe.batch,
            "context": recipe.context,
            "lr": recipe.lr,
            "warmup_steps": recipe.warmup_steps,
            "decay_share": recipe.decay_share,
            "final_share": recipe.final_share,
            "seed": recipe.seed,
            "precision": recipe.precision,
        },
        "round": {
            "rounds": recipe.rounds,
            "max_weight": 1,
            "scheme": scheme,
            "server_rate": recipe.server_rate,
        },
    }


def text_training(text: str) -> dict[str, Any]:
    """A tenant that trains on the files in its own folder, and on nothing else."""
    return {"trainer": "lora", "text": text, "evaluation_windows": 8}


def series_training(series: str) -> dict[str, Any]:
    """The same with time series."""
    return {"trainer": "series", "series": series, "evaluation_windows": 32}
