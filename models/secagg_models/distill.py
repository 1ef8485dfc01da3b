"""Distillation of an emulator's middle, as published for Offsite-Tuning (Xiao, Lin, Han 2023).

    loss = lm_weight * LM + kd_weight * KD,     KD = mean(((T - S)/rms(T))^2)

T and S are the outputs of the last middle layer of the full model and of the emulator, both fed the
emulator's own input to its middle; the published weights are 1 and 30. Only kept middle layers
train: embeddings and edges stay the owner's. LM is the next-token loss through the emulator's last
edge; an encoder has none, so there the first term is absent and KD is all. Positions that are
padding count in neither.

Dropout and layer drop are off, so that teacher and student see one input and a run is a function of
its configuration. A run that was killed goes on from its last checkpoint; in float32 and with as
many threads it ends in the same bits as one that was not.

Deliberately not here: any protection. How far the result is from the weights it came from is for
the owner's audit to measure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secagg.errors import ConfigError
from secagg_models import families, train
from secagg_models.families import LayerCall
from secagg_models.labelled import LabelledBatch
from secagg_models.series.batch import SeriesBatch
from secagg_models.split import Split

Optimizer = Literal["adamw", "muon"]
OPTIMIZERS: Final[tuple[Optimizer, ...]] = get_args(Optimizer)
_STATE = "checkpoint.json"
_CURVE_POINTS = 50
_NO_FORECASTER = "no emulator is distilled of a forecaster: tenants hold the forecaster itself"
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """All that decides the result, given model, split, text and software.

    The rate rises linearly over `warmup_steps` and falls linearly to `final_share`. `lr` is of the
    matrices, `other_lr` of gains and biases (None: the same). `muon` is Muon (Jordan et al. 2024)
    for the matrices and AdamW for the rest.
    """

    steps: int = 1000
    batch: int = 16
    context: int = 256
    lr: float = 1e-3
    other_lr: float | None = None
    optimizer: Optimizer = "adamw"
    kd_weight: float = 30.0
    lm_weight: float = 1.0
    warmup_steps: int = 20
    final_share: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    seed: int = 1
    precision: train.Precision = "auto"

    def __post_init__(self) -> None:
        for clause, least in (("steps", 0), ("batch", 1), ("context", 1), ("warmup_steps", 0)):
            if getattr(self, clause) < least:
                raise ConfigError(
                    f"distillation {clause} = {getattr(self, clause)}: at least {least}"
                )
        if not self.lr > 0 or not (self.other_lr is None or self.other_lr > 0):
            raise ConfigError("distillation lr and other_lr must be above 0")
        if not (self.kd_weight >= 0 and self.lm_weight >= 0 and self.kd_weight + self.lm_weight):
            raise ConfigError("distillation needs kd_weight or lm_weight above 0, neither below")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(
                f"distillation optimizer {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}"
            )

    def factor(self, step: int) -> float:
        """The rate's multiplier at a step counted from 0."""
        rise = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return rise * (1 - (1 - self.final_share) * step / self.steps)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a manifest."""
        return asdict(self) | {"betas": list(self.betas)}


@dataclass(frozen=True, slots=True)
class DistillationStep:
    """One finished step: LM in nats a token (None where there is no such term), and KD."""

    step: int
    steps: int
    lm: float | None
    kd: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Distilled:
    """What a run did. `config` has `lm_weight` 0 where the model has no language loss."""

    config: DistillationConfig
    curve: tuple[DistillationStep, ...]


ProgressCallback = Callable[[DistillationStep], None]


def has_language_loss(model: Any) -> bool:
    """Whether the model predicts next tokens, so that LM is a term of the loss."""
    if families.family_of(model).name == "bert":
        return False
    return callable(getattr(model, "get_output_embeddings", None)) and (
        model.get_output_embeddings() is not None
    )


def distill(
    full_model: Any,
    emulator: Any,
    split: Split,
    stream: train.Stream,
    config: DistillationConfig,
    *,
    checkpoints: Checkpoints | None = None,
    on_progress: ProgressCallback = lambda step: None,
) -> Distilled:
    """Train the emulator's middle in place, from the last checkpoint where there is one.

    Raises:
        ConfigError: the middle mixes kinds of attention; or the checkpoint is another run's.
    """
    if not has_language_loss(emulator):
        config = replace(config, lm_weight=0.0)
    if not families.has_one_kind_of_attention(full_model):
        raise ConfigError(
            "distillation runs the full middle under one mask, and this model mixes full and "
            "sliding attention; use a model with one kind (use_sliding_window = false)"
        )
    run = _Run.prepare(full_model, emulator, split, config)
    if checkpoints is not None:
        checkpoints.resume(run)
    every = max(1, config.steps // _CURVE_POINTS)
    while run.step < config.steps:
        done = run.train_step(stream)
        if done.step % every == 0 or done.step == config.steps:
            run.curve.append(done)
        if checkpoints is not None and checkpoints.due(done):
            checkpoints.save(run)
        on_progress(done)
    emulator.requires_grad_(False)
    return Distilled(config, tuple(run.curve))


@dataclass(slots=True, eq=False)
class _Run:
    """One process's run: the models, the optimisers, and how far it is."""

    full_model: Any
    emulator: Any
    split: Split
    config: DistillationConfig
    names: tuple[str, ...]
    optimizers: list[torch.optim.Optimizer]
    curve: list[DistillationStep]
    step: int = 0

    @classmethod
    def prepare(
        cls, full_model: Any, emulator: Any, split: Split, config: DistillationConfig
    ) -> _Run:
        full_model.train(False).requires_grad_(False)
        emulator.train(False).requires_grad_(False)
        for model in (full_model, emulator):
            train.use_fast_attention(model)
        prefix = families.layer_prefix(emulator)
        starts = tuple(f"{prefix}{layer}." for layer in split.middle_layers)
        trained = {n: p for n, p in emulator.named_parameters() if n.startswith(starts)}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        optimizers = _optimizers(list(trained.values()), config)
        return cls(full_model, emulator, split, config, tuple(trained), optimizers, [])

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        by_name = dict(self.emulator.named_parameters())
        return {name: by_name[name] for name in self.names}

    def train_step(self, stream: train.Stream) -> DistillationStep:
        config = self.config
        batch = stream.windows_at(config.seed, self.step, config.batch, config.context)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * config.factor(self.step)
        with _middles(self) as seen:
            lm = self._language_loss(batch)
        kd = relative_error(*_real_positions(seen, batch))
        loss = (
            config.kd_weight * kd if lm is None else config.lm_weight * lm + config.kd_weight * kd
        )
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        said = None if lm is None else float(lm.detach())
        return DistillationStep(self.step, config.steps, said, float(kd.detach()))

    def _language_loss(self, batch: train.Batch) -> torch.Tensor | None:
        """Run the emulator on a batch; its next-token loss where that is a term."""
        config = self.config
        if config.lm_weight and isinstance(batch, torch.Tensor):
            return train.token_loss(self.emulator, batch, config.precision).mean()
        wanted = train.has_bf16() if config.precision == "auto" else config.precision == "bfloat16"
        device = next(self.emulator.parameters()).device
        with torch.autocast(device.type, torch.bfloat16, enabled=wanted):
            match batch:
                case torch.Tensor():
                    self.emulator(input_ids=batch[:, :-1].to(device))
                case LabelledBatch():
                    there = batch.to(device)
                    self.emulator(input_ids=there.input_ids, attention_mask=there.attention_mask)
                case SeriesBatch():
                    raise ConfigError(_NO_FORECASTER)
        return None


def relative_error(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KD = mean(((T - S)/rms(T))^2), in float32."""
    teacher, student = teacher.float(), student.float()
    scale = teacher.pow(2).mean().sqrt()
    return ((teacher - student) / scale).pow(2).mean()


@contextmanager
def _middles(run: _Run) -> Iterator[dict[str, torch.Tensor]]:
    """Within it, a call of the emulator leaves both middles' outputs, for the emulator's input."""
    seen: dict[str, torch.Tensor] = {}
    layers, full = families.layers_of(run.emulator), families.layers_of(run.full_model)
    middle = [full[i] for i in run.split.full_middle_layers]

    def before(_: Any, positional: tuple[Any, ...], keyword: dict[str, Any]) -> None:
        rest = dict(keyword)
        hidden = positional[0] if positional else rest.pop("hidden_states")
        with torch.no_grad():
            call = LayerCall(hidden.detach(), positional[1:], rest)
            seen["teacher"] = families.run_layers(middle, call)

    def after(_: Any, __: Any, output: Any) -> None:
        seen["student"] = families.hidden_of(output)

    first, last = layers[run.split.middle_layers[0]], layers[run.split.middle_layers[-1]]
    handles = (
        first.register_forward_pre_hook(before, with_kwargs=True),
        last.register_forward_hook(after),
    )
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _real_positions(
    seen: Mapping[str, torch.Tensor], batch: train.Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher's and student's outputs at positions that are no padding."""
    teacher, student = seen["teacher"], seen["student"]
    match batch:
        case torch.Tensor():
            return teacher, student
        case LabelledBatch():
            real = batch.attention_mask.to(teacher.device).bool()
            return teacher[real], student[real]
        case SeriesBatch():
            raise ConfigError(_NO_FORECASTER)


def _optimizers(
    parameters: Sequence[torch.nn.Parameter], config: DistillationConfig
) -> list[torch.optim.Optimizer]:
    matrices = [p for p in parameters if p.ndim == 2]
    others = [p for p in parameters if p.ndim != 2]
    other_lr = config.lr if config.other_lr is None else config.other_lr
    adamw: dict[str, Any] = {"betas": config.betas, "weight_decay": config.weight_decay}
    matrix_group = {"params": matrices, "full_lr": config.lr}
    other_group = {"params": others, "full_lr": other_lr}
    match config.optimizer:
        case "adamw":
            return [torch.optim.AdamW([matrix_group, other_group], lr=config.lr, **adamw)]
        case "muon":
            if not hasattr(torch.optim, "Muon"):
                raise ConfigError("this torch has no Muon; use adamw, or torch 2.9 and later")
            muon = torch.optim.Muon([matrix_group], lr=config.lr, weight_decay=config.weight_decay)
            return [muon, torch.optim.AdamW([other_group], lr=other_lr, **adamw)]


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A folder with the last state of one run. `identity` says which run: a mapping of JSON values
    such as digests and the split; a state whose identity differs is never gone on from.

    Tensors are safetensors; the optimisers' state is read by torch with `weights_only`.
    """

    folder: Path
    identity: Mapping[str, Any]
    every: int = 100

    def due(self, done: DistillationStep) -> bool:
        """Whether the state after this step is to be kept."""
        return done.step % self.every == 0 or done.step == done.steps

    def save(self, run: _Run) -> None:
        """Write the state; a kill at any moment leaves this one or the one before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, optimizers = self._paths(run.step)
        save_file({n: p.detach().contiguous() for n, p in run.parameters.items()}, tensors)
        torch.save([optimizer.state_dict() for optimizer in run.optimizers], optimizers)
        state = {
            "identity": self._identity(run),
            "step": run.step,
            "curve": [point.to_json() for point in run.curve],
        }
        passing = self.folder / f"{_STATE}.new"
        passing.write_text(json.dumps(state))
        passing.replace(self.folder / _STATE)
        for path in self.folder.glob("step-*"):
            if path not in (tensors, optimizers):
                path.unlink()

    def resume(self, run: _Run) -> None:
        """Set a fresh run to the kept state, if there is one.

        Raises:
            ConfigError: the state is another run's, or cannot be read.
        """
        path = self.folder / _STATE
        if not path.exists():
            return
        try:
            state = json.loads(path.read_text())
            kept, mine = state["identity"], self._identity(run)
            differing = sorted(k for k in kept.keys() | mine.keys() if kept.get(k) != mine.get(k))
            if differing:
                raise ConfigError(
                    f"{self.folder} holds the checkpoint of another run: it differs in "
                    f"{', '.join(differing)}; remove it to start anew, or choose another folder"
                )
            self._load(run, state)
        except (OSError, SafetensorError, RuntimeError, *_MALFORMED) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"the checkpoint in {self.folder} cannot be read ({type(error).__name__}); remove "
                "the folder to start anew"
            ) from error

    def _load(self, run: _Run, state: Mapping[str, Any]) -> None:
        tensors, optimizers = self._paths(state["step"])
        kept, parameters = load_file(tensors), run.parameters
        if kept.keys() != parameters.keys():
            raise ValueError
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
        saved = torch.load(optimizers, weights_only=True)
        for optimizer, values in zip(run.optimizers, saved, strict=True):
            optimizer.load_state_dict(values)
        run.step = state["step"]
        run.curve[:] = [DistillationStep(**point) for point in state["curve"]]

    def _identity(self, run: _Run) -> dict[str, Any]:
        said = {**self.identity, **run.config.to_json(), "split": run.split.to_json()}
        return dict(json.loads(json.dumps(said)))

    def _paths(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"step-{step}.safetensors", self.folder / f"step-{step}.optimizers"
