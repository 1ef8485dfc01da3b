"""Secure aggregation in Flower: a mod for the ClientApp, a strategy around any that averages.

    app = ClientApp()                                     # the tenant's side

    @app.train(mods=[secagg_mod])
    def train(message, context): ...                      # as it was

    strategy = SecureAggregation(                         # the side that starts rounds
        FedAvg(), roster=Path("roster.bin"), terms=Terms(clip=0.1, max_weight=10_000),
        run_config=context.run_config,
    )
    strategy.start(grid, initial_arrays, num_rounds=3)    # as it was

The names load when first used: a ClientApp, which Flower starts anew for every message, never
loads the coordinator's side.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secagg_embed.flower.courier import Pace
    from secagg_embed.flower.mod import SecaggMod, secagg_mod
    from secagg_embed.flower.strategy import SecureAggregation
    from secagg_embed.terms import Terms

_HOME = {
    "Pace": "secagg_embed.flower.courier",
    "SecaggMod": "secagg_embed.flower.mod",
    "SecureAggregation": "secagg_embed.flower.strategy",
    "Terms": "secagg_embed.terms",
    "secagg_mod": "secagg_embed.flower.mod",
}

__all__ = ["Pace", "SecaggMod", "SecureAggregation", "Terms", "secagg_mod"]


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'secagg_embed.flower' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
