"""Tiny networks of all three tasks, with batches of their own."""

from __future__ import annotations

import copy
from typing import Any

import torch

from secagg_models.blocks.network import BlockNetwork, divide
from secagg_models.blocks.tasks import Batch, ClassVector, NextPatch, NextToken
from secagg_models.classifier import EncoderClassifier
from secagg_models.labelled import LabelledBatch
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.forecaster import Forecaster, ForecasterShape
from tests.models.families import build

KINDS = ("tokens", "classes", "patches")


def network_of(kind: str, blocks: int = 3, layers: int = 6, **rest: Any) -> BlockNetwork:
    match kind:
        case "tokens":
            return divide(build("llama", layers), NextToken(), blocks, **rest)
        case "classes":
            model = EncoderClassifier(build("bert", layers), ["a", "b", "c", "d"])
            return divide(model.eval(), ClassVector(), blocks, **rest)
        case _:
            torch.manual_seed(3)
            shape = ForecasterShape(
                width=16, layers=layers, heads=2, intermediate=24, patch=4, context=24, horizon=8
            )
            return divide(Forecaster(shape).eval(), NextPatch(), blocks, **rest)


def batch_of(kind: str, count: int = 3, seed: int = 0) -> Batch:
    drawn = torch.Generator().manual_seed(seed)
    match kind:
        case "tokens":
            return torch.randint(3, 260, (count, 9), generator=drawn)
        case "classes":
            ids = torch.randint(3, 260, (count, 7), generator=drawn)
            mask = torch.ones_like(ids)
            mask[0, 5:] = 0
            return LabelledBatch(ids, mask, torch.arange(count) % 4)
        case _:
            values = torch.randn(count, 24 + 8, generator=drawn).cumsum(1)
            values[0, 3] = float("nan")
            return SeriesBatch(values, 24, 12)


def awake(network: BlockNetwork, seed: int = 1) -> BlockNetwork:
    """The same network with conditioning that is not at its quiet start."""
    again = copy.deepcopy(network)
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in again.conditioning.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=drawn))
    return again
