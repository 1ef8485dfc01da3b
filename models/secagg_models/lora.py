"""LoRA by PEFT in the form that can be summed: B is trained, A is frozen and the same for all.

Averaging A and B separately is wrong, since mean(B_i A_i) is not mean(B_i) mean(A_i). With one
broadcast A the sum is exact: mean(B_i) A = mean(B_i A) (FFA-LoRA, Sun et al. 2024). The owner draws
A with orthonormal rows from a seed; between rounds it refactors B A by singular value decomposition
into a new orthonormal A and the B_0 from which the next round starts (FedSVD, Lee et al. 2025):
the product is unchanged, the row space too, and the coordinates are again balanced. What a tenant
exports is delta = B - B_0.

The scaling alpha / r is a number of the plan and holds whatever a tenant's rank is: a tenant of
lower rank trains only the first columns of B (`TrainingConfig.columns`), so its delta is zero in
the rest, the sum is exact and its rank stays hidden.

PEFT's traps that are guarded here: `set_adapter` makes A trainable again, so it is frozen after
every call that touches adapters, and `check_frozen` asserts that A is bit-identical and in no
optimiser; `init_lora_weights="orthogonal"` gives a non-zero B, so initialisation is ours;
`add_weighted_adapter` has cross terms, so it is not used.

Not here: training (train.py), the plain-text sum of anything (that is what the protocol is for).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from secagg.errors import ConfigError, UsageError

_PREFIX = "base_model.model."
_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What a plan fixes about the adapter: rank, scaling alpha / r, and the modules it acts on."""

    rank: int
    scaling: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora rank {self.rank}: at least 1 is needed")
        if not self.scaling > 0:
            raise ConfigError(f"lora scaling {self.scaling}: it must be above 0")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"lora targets {self.targets}: name each module once, at least one")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One version of the adapter, by the names under which PEFT saves its tensors.

    `a`: (rank, in_features) float32 with orthonormal rows, frozen; `b`: (out_features, rank)
    float32, the B_0 from which a round starts. The product is scaling * B A.
    """

    shape: LoraShape
    a: Mapping[str, torch.Tensor]
    b: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        if sorted(map(_pair_of, self.a)) != sorted(self.b):
            raise ConfigError("lora adapter: A and B do not name the same modules")
        for name, a in self.a.items():
            b = self.b[_pair_of(name)]
            if a.shape[0] != self.shape.rank or b.shape[1] != self.shape.rank:
                raise ConfigError(
                    f"lora adapter: {name} is {tuple(a.shape)} and its B {tuple(b.shape)}; "
                    f"rank {self.shape.rank} was expected"
                )

    def product(self, name_of_b: str) -> torch.Tensor:
        """What the adapter adds to a module's weight: scaling * B A, (out, in) float64."""
        b, a = self.b[name_of_b].double(), self.a[_pair_of(name_of_b)].double()
        return self.shape.scaling * b @ a


def _pair_of(name: str) -> str:
    old, new = ("lora_A", "lora_B") if "lora_A" in name else ("lora_B", "lora_A")
    return name.replace(old, new)


def draw_adapter(model: torch.nn.Module, shape: LoraShape, seed: int) -> Adapter:
    """The first adapter: A orthonormal from the owner's seed, B zero (so the model is unchanged).

    Raises: ConfigError if a target names no linear layer of the model, or the rank is too large.
    """
    a, b = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for name, module in sorted(_targets_of(model, shape).items()):
        a[f"{_PREFIX}{name}.lora_A.weight"] = _orthonormal_rows(
            name, shape.rank, module.in_features, generator
        )
        b[f"{_PREFIX}{name}.lora_B.weight"] = torch.zeros(module.out_features, shape.rank)
    return Adapter(shape, a, b)


def _targets_of(model: torch.nn.Module, shape: LoraShape) -> dict[str, torch.nn.Linear]:
    found = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in shape.targets and isinstance(module, torch.nn.Linear)
    }
    missing = set(shape.targets) - {name.rpartition(".")[2] for name in found}
    if missing:
        raise ConfigError(f"lora targets {sorted(missing)}: the model has no linear layer so named")
    return found


def _orthonormal_rows(name: str, rank: int, width: int, generator: torch.Generator) -> torch.Tensor:
    if rank > width:
        raise ConfigError(f"lora rank {rank}: {name} has only {width} inputs")
    gaussian = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    signs = r.diagonal().sign()  # fixes the one QR that every LAPACK must return
    rows: torch.Tensor = (q * signs).T.float().contiguous()
    return rows


def attach(model: Any, adapter: Adapter) -> PeftModel:
    """Put PEFT's LoRA layers into the model (in place) and load the adapter into them."""
    config = LoraConfig(
        r=adapter.shape.rank,
        lora_alpha=adapter.shape.scaling * adapter.shape.rank,  # type: ignore[arg-type]
        target_modules=list(adapter.shape.targets),
        lora_dropout=0.0,
        bias="none",
        use_rslora=False,
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config, adapter_name=_ADAPTER)
    install(peft_model, adapter)
    return peft_model


def install(model: PeftModel, adapter: Adapter) -> None:
    """Load A and B_0 into a model that `attach` returned, and freeze everything but B."""
    parameters = _adapter_parameters(model)
    wanted = {**adapter.a, **adapter.b}
    _refuse_other_names(parameters.keys(), wanted.keys())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != wanted[name].shape:
                raise ConfigError(
                    f"lora adapter: {name} is {tuple(wanted[name].shape)} in the adapter and "
                    f"{tuple(parameter.shape)} in the model"
                )
            parameter.copy_(wanted[name])
    freeze_a(model)


def freeze_a(model: PeftModel) -> None:
    """Only B asks for gradients. Call it after every PEFT call that touches adapters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)


def trained_parameters(model: PeftModel) -> list[torch.nn.Parameter]:
    """The B parameters, in the order of their names: what an optimiser is given, and no more."""
    parameters = _adapter_parameters(model)
    return [parameters[name] for name in sorted(parameters) if "lora_B" in name]


def check_frozen(model: PeftModel, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
    """Raises: UsageError if A changed by one bit, asks for gradients, or is being optimised."""
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in _adapter_parameters(model).items():
        if "lora_A" not in name:
            continue
        if parameter.requires_grad or id(parameter) in optimised:
            raise UsageError(f"{name} is being trained; call freeze_a after touching adapters")
        if not torch.equal(parameter.detach().cpu(), adapter.a[name]):
            raise UsageError(f"{name} is no longer the A that the owner sent; install it again")


def trainable_state(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of B by name, float32 on the CPU."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in _adapter_parameters(model).items()
        if "lora_B" in name
    }


def delta_of(state: Mapping[str, torch.Tensor], adapter: Adapter) -> dict[str, torch.Tensor]:
    """What a tenant exports: B - B_0 by name. It is private until it is protected."""
    _refuse_other_names(state.keys(), adapter.b.keys())
    return {name: state[name] - adapter.b[name] for name in adapter.b}


def add_delta(adapter: Adapter, mean_delta: Mapping[str, torch.Tensor]) -> Adapter:
    """The adapter with B_0 + mean delta: exact, because A is the same for everybody."""
    _refuse_other_names(mean_delta.keys(), adapter.b.keys())
    b = {name: adapter.b[name] + mean_delta[name].float() for name in adapter.b}
    return replace(adapter, b=b)


def refactor(adapter: Adapter) -> Adapter:
    """FedSVD: the same product from a new orthonormal A and its B_0, directions sorted by strength.

    The rank is kept. Rows that B did not use stay in A (they complete the basis), so nothing is
    lost for the next round. Signs are fixed, so that everybody computes the same bytes.
    """
    a, b = {}, {}
    for name_b in sorted(adapter.b):
        name_a = _pair_of(name_b)
        a[name_a], b[name_b] = _balanced(adapter.a[name_a], adapter.b[name_b])
    return replace(adapter, a=a, b=b)


def _balanced(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    basis, triangle = torch.linalg.qr(a.double().T)  # a = triangle' basis'
    rotated = b.double() @ triangle.T  # (out, r)
    _, _, right = torch.linalg.svd(rotated, full_matrices=rotated.shape[0] < rotated.shape[1])
    rows = right @ basis.T  # (r, in), orthonormal
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()  # (r, 1)
    return (largest * rows).float(), (rotated @ right.T * largest.T).float()


def next_round(
    adapter: Adapter, mean_delta: Mapping[str, torch.Tensor], server_rate: float = 1.0
) -> Adapter:
    """The owner's work between rounds: add the opened mean times `server_rate`, then refactor.

    A rate above 1 makes up for what the mean loses: what only one of n tenants learnt arrives
    divided by n (the server's learning rate of Reddi et al. 2021, "Adaptive Federated
    Optimization", with plain SGD as the server's optimiser).
    """
    scaled = {name: server_rate * part for name, part in mean_delta.items()}
    return refactor(add_delta(adapter, scaled))


def _adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {
        name.replace(f".{_ADAPTER}.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_A" in name or "lora_B" in name
    }


def _refuse_other_names(given: Iterable[str], wanted: Iterable[str]) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        raise ConfigError(
            f"lora adapter: other tensors than the plan's; missing {missing[:5]}, "
            f"unexpected {extra[:5]}"
        )
