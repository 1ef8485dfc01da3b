"""Bytes that training holds: parameters, gradients and optimiser state, counted on the tensors.

Counted after an optimiser step and before gradients are dropped, which is the peak of the three.
Storages are counted once, so tied embeddings are too. Activations are not counted: they depend on
the batch, and a block's are fewer as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of each kind."""

    parameters: int
    gradients: int
    optimiser: int

    @property
    def total(self) -> int:
        """All three."""
        return self.parameters + self.gradients + self.optimiser


def held_by(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> Held:
    """What these modules and their optimiser hold now; buffers count as parameters."""
    parts = list(modules)
    parameters = [p for module in parts for p in module.parameters()]
    buffers = [b for module in parts for b in module.buffers()]
    states = [value for state in optimizer.state.values() for value in state.values()]
    return Held(
        _bytes([*parameters, *buffers]),
        _bytes(p.grad for p in parameters if p.grad is not None),
        _bytes(value for value in states if torch.is_tensor(value)),
    )


def held_in_a_step(
    modules: Sequence[nn.Module],
    trained: Sequence[nn.Parameter],
    loss: Callable[[], torch.Tensor],
) -> Held:
    """The peak of one AdamW step on `trained`; the step is not undone.

    Only `trained` may need gradients when this is called.
    """
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    loss().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    held = held_by(modules, optimizer)
    optimizer.zero_grad()
    return held


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
