"""The recipe of the tiny model that the tests train, and LoRA in all of its layers."""

from secagg_models.lora import LoraShape
from secagg_models.recipe import Recipe

TINY = Recipe(
    packages=("a", "b", "c"),
    rounds=2,
    steps_per_round=3,
    batch=2,
    context=16,
    rank=3,
    scaling=2.0,
    targets=("q_proj", "down_proj"),
    precision="float32",
)

SHAPE = LoraShape(TINY.rank, TINY.scaling, TINY.targets)
