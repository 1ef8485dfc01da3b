"""LoRA by PEFT in the form that can be summed: B is trained, A is frozen and the same for all.

Averaging A and B separately is wrong, since mean(B_i A_i) is not mean(B_i) mean(A_i). With one
broadcast A the sum is exact: mean(B_i) A = mean(B_i A) (FFA-LoRA, Sun et al. 2024). The owner draws
A with orthonormal rows from a seed; between rounds it refactors B A by singular value decomposition
into a new orthonormal A and the B_0 from which the next round starts (FedSVD, Lee et al. 2025):
the product is unchanged, the row space too, and the coordinates are again balanced. What a tenant
exports is delta = B - B_0.

With `LoraShape.layers` the adapter lies in those layers of the model alone (the edge layers of an
emulator, Xiao, Lin, Han 2023), and with `LoraShape.extra` some tensors are trained whole beside it:
a classifier's head, which no base model brings along. They are summed like B.

The scaling alpha / r is a number of the plan and holds whatever a tenant's rank is: a tenant of
lower rank trains only the first columns of B (`TrainingConfig.columns`), so its delta is zero in
the rest, the sum is exact and its rank stays hidden.

PEFT's traps that are guarded here: `set_adapter` makes A trainable again, so it is frozen after
every call that touches adapters, and `check_frozen` asserts that A is bit-identical and in no
optimiser; `init_lora_weights="orthogonal"` gives a non-zero B, so initialisation is ours;
`add_weighted_adapter` has cross terms, so it is not used.

Linear layers and GPT-2's Conv1D (a linear layer whose weight is stored transposed) are supported.

Not here: training (train.py), the plain-text sum of anything (that is what the protocol is for),
adding the product to a model's own weights (plug_in.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D

from secagg.errors import ConfigError, UsageError
from secagg_models.families import layer_prefix

_PREFIX = "base_model.model."
_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class LoraShape:
    """What a plan fixes about the adapter: rank, scaling alpha / r, and the modules it acts on.

    `targets` are the last parts of module names; `layers` the layers in which they count (none: the
    whole model); `extra` names tensors of the model that are trained whole.
    """

    rank: int
    scaling: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"lora rank {self.rank}: at least 1 is needed")
        if not 0 < self.scaling < math.inf:
            raise ConfigError(f"lora scaling {self.scaling}: it must be above 0 and finite")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"lora targets {self.targets}: name each module once, at least one")
        if list(self.layers) != sorted(set(self.layers)) or min(self.layers, default=0) < 0:
            raise ConfigError(f"lora layers {self.layers}: whole numbers from 0, ascending")
        if list(self.extra) != sorted(set(self.extra)) or any("lora_" in n for n in self.extra):
            raise ConfigError(f"lora extra tensors {self.extra}: name each once, in order")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """One version of the adapter, by the names under which PEFT saves its tensors.

    `a`: (rank, in_features) float32 with orthonormal rows, frozen; `b`: (out_features, rank)
    float32, the B_0 from which a round starts. The product is scaling * B A. `extra`: the tensors
    of `LoraShape.extra`, float32, by the model's own names.
    """

    shape: LoraShape
    a: Mapping[str, torch.Tensor]
    b: Mapping[str, torch.Tensor]
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_other_names(self.extra, self.shape.extra)
        if sorted(map(_pair_of, self.a)) != sorted(self.b):
            raise ConfigError("lora adapter: A and B do not name the same modules")
        for name, a in self.a.items():
            b = self.b[_pair_of(name)]
            if a.shape[0] != self.shape.rank or b.shape[1] != self.shape.rank:
                raise ConfigError(
                    f"lora adapter: {name} is {tuple(a.shape)} and its B {tuple(b.shape)}; "
                    f"rank {self.shape.rank} was expected"
                )

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that a round changes and sums, by name."""
        return {**self.b, **self.extra}

    def product(self, name_of_b: str) -> torch.Tensor:
        """What the adapter adds to a module's weight: scaling * B A, (out, in) float64."""
        b, a = self.b[name_of_b].double(), self.a[_pair_of(name_of_b)].double()
        return self.shape.scaling * b @ a


def _pair_of(name: str) -> str:
    old, new = ("lora_A", "lora_B") if "lora_A" in name else ("lora_B", "lora_A")
    return name.replace(old, new)


def module_of(name: str) -> str:
    """The model's module to which a tensor of an adapter belongs."""
    return name.removeprefix(_PREFIX).rpartition(".lora_")[0]


def draw_adapter(model: torch.nn.Module, shape: LoraShape, seed: int) -> Adapter:
    """The first adapter: A orthonormal from the owner's seed, B zero (so the model is unchanged).

    Raises: ConfigError if a target names no linear layer of the model, or the rank is too large.
    """
    a, b = {}, {}
    generator = torch.Generator().manual_seed(seed)
    for name, module in sorted(targets_of(model, shape).items()):
        outputs, inputs = _size_of(module)
        a[f"{_PREFIX}{name}.lora_A.weight"] = _orthonormal_rows(name, shape.rank, inputs, generator)
        b[f"{_PREFIX}{name}.lora_B.weight"] = torch.zeros(outputs, shape.rank)
    parameters = dict(model.named_parameters())
    _refuse_other_names(set(shape.extra) & parameters.keys(), shape.extra)
    extra = {n: parameters[n].detach().to("cpu", torch.float32, copy=True) for n in shape.extra}
    return Adapter(shape, a, b, extra)


def targets_of(model: torch.nn.Module, shape: LoraShape) -> dict[str, torch.nn.Module]:
    """The linear layers on which an adapter of this shape acts, by name.

    Raises: ConfigError naming the targets that the model does not have.
    """
    refuse_wrapped(model)
    within = tuple(f"{layer_prefix(model)}{layer}." for layer in shape.layers)
    found: dict[str, torch.nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in shape.targets
        and isinstance(module, (torch.nn.Linear, Conv1D))
        and (not within or name.startswith(within))
    }
    missing = set(shape.targets) - {name.rpartition(".")[2] for name in found}
    if missing:
        raise ConfigError(f"lora targets {sorted(missing)}: the model has no linear layer so named")
    empty = [start for start in within if not any(name.startswith(start) for name in found)]
    if empty:
        raise ConfigError(f"lora layers {empty}: no target lies in them")
    return found


def refuse_wrapped(model: torch.nn.Module) -> None:
    """Raises: UsageError if PEFT's layers are in the model already: its tensors have other names.

    PEFT wraps in place, so the reference that was given to `attach` is wrapped as well.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UsageError("an adapter is in the model already; detach it, or use install")


def _size_of(module: torch.nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer, whichever way its weight lies."""
    first, second = (int(side) for side in module.weight.shape)  # type: ignore[union-attr]
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _orthonormal_rows(name: str, rank: int, width: int, generator: torch.Generator) -> torch.Tensor:
    if rank > width:
        raise ConfigError(f"lora rank {rank}: {name} has only {width} inputs")
    gaussian = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    signs = r.diagonal().sign()  # fixes the one QR that every LAPACK must return
    rows: torch.Tensor = (q * signs).T.float().contiguous()
    return rows


def refuse_foreign(model: torch.nn.Module, adapter: Adapter) -> None:
    """Raises: ConfigError naming the modules of a bare model that the adapter does not fit."""
    modules, parameters = targets_of(model, adapter.shape), dict(model.named_parameters())
    _refuse_other_names(map(module_of, adapter.b), modules)
    _refuse_other_names(set(adapter.extra) & parameters.keys(), adapter.extra)
    differing = [
        f"{name} has {_size_of(modules[name])} outputs and inputs, its adapter "
        f"{(b.shape[0], adapter.a[_pair_of(pair)].shape[1])}"
        for pair, b in adapter.b.items()
        if _size_of(modules[name := module_of(pair)])
        != (b.shape[0], adapter.a[_pair_of(pair)].shape[1])
    ]
    differing += [
        f"{name} is {tuple(parameters[name].shape)} in the model and {tuple(tensor.shape)} here"
        for name, tensor in adapter.extra.items()
        if parameters[name].shape != tensor.shape
    ]
    if differing:
        raise ConfigError(f"lora adapter of another model: {'; '.join(differing[:5])}")


def attach(model: Any, adapter: Adapter) -> PeftModel:
    """Put PEFT's LoRA layers into the model (in place) and load the adapter into them.

    The modules are spelled out one by one, so PEFT's own matching of suffixes and layer numbers
    decides nothing. Raises: ConfigError if the adapter is of another model.
    """
    refuse_foreign(model, adapter)
    modules = targets_of(model, adapter.shape)
    config = LoraConfig(
        r=adapter.shape.rank,
        lora_alpha=adapter.shape.scaling * adapter.shape.rank,  # type: ignore[arg-type]
        target_modules=sorted(modules),
        lora_dropout=0.0,
        bias="none",
        use_rslora=False,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in modules.values()),
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    )
    peft_model = get_peft_model(model, config, adapter_name=_ADAPTER)
    install(peft_model, adapter)
    return peft_model


def install(model: PeftModel, adapter: Adapter) -> None:
    """Load A, B_0 and the extra tensors into a model that `attach` returned, and freeze the rest.

    Raises: ConfigError naming the tensors that the model does not have in this form.
    """
    refuse_other_tensors(model, adapter)
    parameters = _adapter_parameters(model) | _extra_parameters(model, adapter.shape.extra)
    with torch.no_grad():
        for name, tensor in {**adapter.a, **adapter.trained}.items():
            parameters[name].copy_(tensor)
    freeze_a(model, adapter.shape.extra)


def refuse_other_tensors(model: PeftModel, adapter: Adapter) -> None:
    """As `refuse_foreign`, for a model that `attach` returned."""
    parameters = _adapter_parameters(model) | _extra_parameters(model, adapter.shape.extra)
    wanted = {**adapter.a, **adapter.trained}
    _refuse_other_names(parameters, wanted)
    for name, parameter in parameters.items():
        if parameter.shape != wanted[name].shape:
            raise ConfigError(
                f"lora adapter: {name} is {tuple(wanted[name].shape)} in the adapter and "
                f"{tuple(parameter.shape)} in the model"
            )


def freeze_a(model: PeftModel, extra: Collection[str] = ()) -> None:
    """Only B and `extra` ask for gradients. Call it after every PEFT call that touches adapters."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name or name.removeprefix(_PREFIX) in extra)


def trained_parameters(model: PeftModel, extra: Collection[str] = ()) -> list[torch.nn.Parameter]:
    """The B parameters in the order of their names, then `extra`: what an optimiser is given."""
    parameters = _adapter_parameters(model)
    matrices = [parameters[name] for name in sorted(parameters) if "lora_B" in name]
    return matrices + list(_extra_parameters(model, extra).values())


def check_frozen(model: PeftModel, adapter: Adapter, optimizer: torch.optim.Optimizer) -> None:
    """Raises: UsageError if A changed by one bit, or anything is trained but B and `extra`."""
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in trained_parameters(model, adapter.shape.extra)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in trained and (parameter.requires_grad or id(parameter) in optimised):
            raise UsageError(f"{name} is being trained; call freeze_a after touching adapters")
    for name, parameter in _adapter_parameters(model).items():
        if "lora_A" in name and not torch.equal(parameter.detach().cpu(), adapter.a[name]):
            raise UsageError(f"{name} is no longer the A that the owner sent; install it again")


def trainable_state(model: PeftModel, extra: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """A copy of B and of `extra` by name, float32 on the CPU."""
    matrices = {n: p for n, p in _adapter_parameters(model).items() if "lora_B" in n}
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in (matrices | _extra_parameters(model, extra)).items()
    }


def delta_of(state: Mapping[str, torch.Tensor], adapter: Adapter) -> dict[str, torch.Tensor]:
    """What a tenant exports: B - B_0 by name. It is private until it is protected."""
    _refuse_other_names(state.keys(), adapter.trained)
    return {name: state[name] - start for name, start in adapter.trained.items()}


def add_delta(adapter: Adapter, mean_delta: Mapping[str, torch.Tensor]) -> Adapter:
    """The adapter with B_0 + mean delta: exact, because A is the same for everybody."""
    _refuse_other_names(mean_delta.keys(), adapter.trained)
    moved = {name: start + mean_delta[name].float() for name, start in adapter.trained.items()}
    return replace(
        adapter, b={n: moved[n] for n in adapter.b}, extra={n: moved[n] for n in adapter.extra}
    )


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


def _extra_parameters(model: PeftModel, names: Collection[str]) -> dict[str, torch.nn.Parameter]:
    parameters = dict(model.named_parameters()) if names else {}
    return {n: parameters[_PREFIX + n] for n in sorted(names) if _PREFIX + n in parameters}


def carry_residual(
    residual: Mapping[str, torch.Tensor], old: Adapter, new: Adapter
) -> dict[str, torch.Tensor]:
    """A quantisation residual of B under the old A, as one of B under the new A.

    Refactoring keeps the row space, so residual A_old = carried A_new holds exactly.
    """
    _refuse_other_names(residual, new.trained)
    carried = {name: residual[name] for name in new.extra}
    for name in new.b:
        pair = _pair_of(name)
        turn = old.a[pair].double() @ new.a[pair].double().T  # (r, r)
        carried[name] = (residual[name].double() @ turn).float()
    return carried


def _refuse_other_names(given: Iterable[str], wanted: Iterable[str]) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        raise ConfigError(
            f"lora adapter: other tensors than the plan's; missing {missing[:5]}, "
            f"unexpected {extra[:5]}"
        )
