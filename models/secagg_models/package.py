"""An emulator as it leaves the owner: config.json, model.safetensors, the tokeniser and a card.

`write_package` puts those files into a folder and returns what a manifest says about them;
`read_package` takes a folder whose files were held against a signed manifest already
(`secagg_wire.signed_manifest`, which this module never sees) and that manifest's `meta`.

Weights are stored in the narrowest type that holds every edge and embedding exactly as the owner
has it (bfloat16 for the shipped base): what tenants tune is bit for bit what the owner plugs into.
The distilled middle is rounded to that type before its digest is taken.

Reading runs nobody's code: plain names, JSON without references to code or templates, safetensors
whose names, shapes and types are the manifest's, a configuration that builds exactly those tensors
(built without memory first), transformers' own classes with `trust_remote_code` off, and at the end
the digest over all tensors. Whether the tensors themselves are harmless is for the tenant's
admission test.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from secagg.errors import ConfigError
from secagg_models import classifier, families
from secagg_models.base import load_base, model_digest
from secagg_models.distill import has_language_loss
from secagg_models.emulator import changed_outside_middle
from secagg_models.split import Split

KIND: Final = "emulator"
Task = Literal["causal-lm", "classification"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)
WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.json"
CARD_FILE: Final = "README.md"
TOKENIZER_FILES: Final = frozenset({
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
    "vocab.txt",
})  # fmt: skip
FILES: Final = TOKENIZER_FILES | {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE}
_NEEDED = (WEIGHTS_FILE, CONFIG_FILE, "tokenizer_config.json")
# Keys by which a configuration names code to fetch, templates to run or another loader.
_CODE = frozenset({
    "auto_map", "chat_template", "custom_pipelines", "quantization_config",
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation",
})  # fmt: skip
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_SOURCES = ("vocab", "merges", "init_inputs")
_SOURCES_END = ("_file", "_files", "_kwargs", "_object")
_FROM_CONFIG: Any = AutoModelForCausalLM.from_config  # transformers leaves it untyped
_ONE_FILE = 1 << 60
_PROBE = "def mean(values): return sum(values) / 7  # é"
_MAX_JSON_BYTES = 1 << 27
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "I64": "int64"}
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Shape and type of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """What a manifest has to say about a model before it is loaded: `layers` are the stored ones,
    `digest` is over the tensors as they load, in float32."""

    task: Task
    family: str
    layers: int
    layout: Mapping[str, TensorLayout]
    digest: str

    def is_typed(self) -> bool:
        """Whether every value is of its type and in its range; they came as JSON."""
        sides = [side for item in self.layout.values() for side in item.shape]
        return (
            self.task in TASKS
            and self.family in {family.name for family in families.FAMILIES}
            and is_digest(self.digest)
            and type(self.layers) is int
            and all(type(side) is int and 0 <= side < 1 << 40 for side in sides)
            and all(item.dtype in _DTYPES.values() for item in self.layout.values())
        )


def is_digest(value: str) -> bool:
    """Whether this is a SHA-256 in hex."""
    return len(value) == 64 and set(value) <= _HEX


def layout_to_json(layout: Mapping[str, TensorLayout]) -> dict[str, Any]:
    """JSON values, for a manifest."""
    return {n: {"dtype": item.dtype, "shape": list(item.shape)} for n, item in layout.items()}


def layout_from_json(value: Any) -> dict[str, TensorLayout]:
    """Inverse of `layout_to_json`; what is not of that form raises what Python raises."""
    return {n: TensorLayout(tuple(item["shape"]), item["dtype"]) for n, item in value.items()}


@dataclass(frozen=True, slots=True)
class EmulatorMeta:
    """What a manifest says about an emulator; digests are `base.model_digest`, in hex.

    `emulator_digest` is over the tensors as they load, in float32; `layout` is of the file.
    `distillation` is `DistillationConfig.to_json()`, or None where nothing was distilled. `signed`
    says whether a signature has to lie beside the manifest, so that it cannot be dropped.
    """

    task: Task
    family: str
    split: Split
    full_digest: str
    emulator_digest: str
    layout: Mapping[str, TensorLayout]
    distillation: Mapping[str, Any] | None
    signed: bool

    def to_json(self) -> dict[str, Any]:
        """JSON values for `Manifest.meta`."""
        return {
            "kind": KIND,
            "task": self.task,
            "family": self.family,
            "split": self.split.to_json(),
            "full_digest": self.full_digest,
            "emulator_digest": self.emulator_digest,
            "layout": layout_to_json(self.layout),
            "distillation": None if self.distillation is None else dict(self.distillation),
            "signed": self.signed,
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> EmulatorMeta:
        """Inverse of `to_json`.

        Raises:
            ConfigError: another kind, or not these keys with these types.
        """
        if meta.get("kind") != KIND:
            raise ConfigError(f"the manifest is of kind {str(meta.get('kind'))[:40]!r}, not {KIND}")
        try:
            found = cls(
                meta["task"],
                meta["family"],
                Split.from_json(meta["split"]),
                meta["full_digest"],
                meta["emulator_digest"],
                layout_from_json(meta["layout"]),
                None if meta["distillation"] is None else dict(meta["distillation"]),
                meta["signed"],
            )
            exact = found.to_json() == dict(meta) and found._is_typed()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            exact = False
        if not exact:
            raise ConfigError("the manifest does not describe an emulator package of this format")
        return found

    @property
    def described(self) -> DescribedModel:
        """What loading it is held against."""
        return DescribedModel(
            self.task, self.family, self.split.emulator_layers, self.layout, self.emulator_digest
        )

    def _is_typed(self) -> bool:
        typed = self.described.is_typed() and type(self.signed) is bool
        return typed and is_digest(self.full_digest)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model in float32 that trains nothing, its tokeniser, its task, and `model_digest` (hex)."""

    model: Any
    tokenizer: Any
    task: Task
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class LoadedEmulator:
    """An emulator that was read from its package, and what the manifest says about it."""

    model: Any
    tokenizer: Any
    meta: EmulatorMeta

    @property
    def digest(self) -> str:
        """What an update names as its base."""
        return self.meta.emulator_digest


def load_full_model(source: str) -> LoadedModel:
    """The owner's full model: `shipped`, `minilm`, a classifier's folder, or any causal model's
    folder or hub id.

    Raises:
        ConfigError: it cannot be loaded, or is of no supported family or task.
    """
    from secagg_models.minilm import MINILM, load_minilm

    if source == MINILM:
        model, tokenizer = load_minilm()
        return LoadedModel(model, tokenizer, "classification", model_digest(model.state_dict()))
    if classifier.is_classifier(Path(source)):
        model = classifier.load_classifier(Path(source))
        tokenizer = _load_tokenizer(Path(source))
        return LoadedModel(model, tokenizer, "classification", model_digest(model.state_dict()))
    base = load_base(source)
    task = task_of(base.model)
    return LoadedModel(base.model, base.tokenizer, task, base.digest)


def is_classifiers_folder(source: str) -> bool:
    """Whether `load_full_model` would find a classifier of ours there."""
    return classifier.is_classifier(Path(source))


def task_of(model: Any) -> Task:
    """What a model does. Raises: ConfigError where it is neither of the two tasks."""
    if isinstance(model, classifier.EncoderClassifier):
        return "classification"
    families.family_of(model)
    if has_language_loss(model):
        return "causal-lm"
    if type(model).__name__ == "Forecaster":
        raise ConfigError("packages hold models of text or labels: tenants have a forecaster whole")
    raise ConfigError(
        f"{type(model).__name__} is an encoder without a task: give it a head first "
        "(secagg_models.classifier.EncoderClassifier and save_classifier)"
    )


def write_package(
    folder: Path,
    full: LoadedModel,
    emulator: Any,
    split: Split,
    *,
    distillation: Mapping[str, Any] | None,
    signed: bool,
) -> EmulatorMeta:
    """Write a package's files into an empty folder.

    Raises:
        ConfigError: edges or embeddings of the emulator are not the full model's.
    """
    changed = changed_outside_middle(full.model, emulator, split)
    if changed:
        raise ConfigError(
            f"the emulator's edges and embeddings are not the full model's: {changed[:5]} differ; "
            "only its middle may be trained"
        )
    digest, layout = write_model_files(folder, full, emulator, exact_dtype(emulator, split))
    meta = EmulatorMeta(
        task_of(emulator),
        families.family_of(emulator).name,
        split,
        full.digest,
        digest,
        layout,
        distillation,
        signed,
    )
    (folder / CARD_FILE).write_text(card(meta), encoding="utf-8")
    return meta


def write_model_files(
    folder: Path, full: LoadedModel, model: Any, dtype: torch.dtype
) -> tuple[str, dict[str, TensorLayout]]:
    """Write a model's files beside the full model's tokeniser; its digest in float32, its layout.

    Raises:
        ConfigError: the tokeniser would load as another one there, or be refused by who reads it.
    """
    stored = copy.deepcopy(model).to(dtype)
    digest = model_digest(_in_float32(stored.state_dict()))
    _save(stored, full.tokenizer, folder)
    _refuse_foreign_files(folder)
    _check_tokenizer(folder, full.tokenizer)
    _refuse_unknown_tokens(folder, full.tokenizer, model)
    return digest, _layout_of_file(folder / WEIGHTS_FILE)


def _check_tokenizer(folder: Path, own: Any) -> None:
    """Transformers picks a tokeniser's class by the model's type: what loads may be another one."""
    if _load_tokenizer(folder)(_PROBE)["input_ids"] != own(_PROBE)["input_ids"]:
        raise ConfigError(
            f"the model's tokeniser ({type(own).__name__}) does not load as itself beside this "
            "type of model; save it as the class that transformers has for the model"
        )


def exact_dtype(emulator: Any, split: Split) -> torch.dtype:
    """The narrowest type that holds everything outside the middle exactly."""
    prefix = families.layer_prefix(emulator)
    return narrowest_dtype(emulator, tuple(f"{prefix}{n}." for n in split.middle_layers))


def narrowest_dtype(model: Any, without: tuple[str, ...] = ()) -> torch.dtype:
    """The narrowest type that holds every tensor exactly, names that begin so aside."""
    frozen = [
        t
        for n, t in model.state_dict().items()
        if not n.startswith(without) and t.is_floating_point()
    ]
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(t.to(dtype).to(t.dtype), t) for t in frozen):
            return dtype
    return torch.float32


def _save(stored: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(stored, classifier.EncoderClassifier):
        _anonymise(stored.encoder.config)
        classifier.save_classifier(stored, folder)
    else:
        _anonymise(stored.config)
        stored.save_pretrained(folder, max_shard_size=_ONE_FILE)
    templates = getattr(tokenizer, "chat_template", None)
    try:
        tokenizer.chat_template = None
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = templates
    for path in folder.iterdir():
        if path.name not in FILES:  # generation defaults, loaders' notes
            path.unlink()


def _anonymise(config: Any) -> None:
    """Where the owner keeps the model, and code that it came with, are nobody's business."""
    config.name_or_path = ""
    for name in ("auto_map", "custom_pipelines"):
        if hasattr(config, name):
            delattr(config, name)


def card(meta: EmulatorMeta) -> str:
    """The package's README: what it is, in words; the manifest has the rest."""
    split, steps = meta.split, (meta.distillation or {}).get("steps", 0)
    trained = f"distilled for {steps} steps" if steps else "not distilled: they are verbatim"
    signature = (
        "`manifest.sig.json` is the owner's signature over `manifest.json`."
        if meta.signed
        else "**Unsigned**: nobody vouches for this package. It is for trials alone."
    )
    return (
        f"# An emulator of a {meta.family} model ({meta.task})\n\n"
        f"The first and last {split.edge} of {split.layers} layers as their owner has them; of "
        f"the {len(split.full_middle_layers)} between them {split.keep} stay, {trained} "
        "(Offsite-Tuning; Xiao, Lin, Han 2023). Tune the edges against it; the owner plugs the "
        f"protected sum of such updates into the full model.\n\n{signature}\n\n"
        f"Full model `{meta.full_digest}`, this emulator `{meta.emulator_digest}` (SHA-256 over "
        "tensors).\n"
    )


def read_package(folder: Path, names: Collection[str], meta: Mapping[str, Any]) -> LoadedEmulator:
    """Load an emulator whose files `names` were held against the manifest that says `meta`.

    Raises:
        ConfigError: anything is not as `meta` says, or asks for code.
    """
    said = EmulatorMeta.from_json(meta)
    model, tokenizer = read_model_files(folder, names, said.described)
    return LoadedEmulator(model, tokenizer, said)


def read_model_files(folder: Path, names: Collection[str], said: DescribedModel) -> tuple[Any, Any]:
    """The model and the tokeniser of a package, held against what its manifest says.

    Raises:
        ConfigError: anything is not as said, or asks for code or for files of its reader; or the
            tokeniser has tokens that the model has not: who holds text with such a one in it could
            not train on it.
    """
    strange = sorted(set(names) - FILES)
    missing = sorted(set(_NEEDED) - set(names))
    if strange or missing:
        raise ConfigError(
            f"package {folder}: files that a model does not have: {strange[:5]}; files that "
            f"it needs: {missing}"
        )
    try:
        _check_json(folder, names)
        _refuse_foreign_files(folder)
        if _layout_of_file(folder / WEIGHTS_FILE) != said.layout:
            raise ConfigError(f"package {folder}: its tensors are not those of its manifest")
        _check_configuration(folder, said)
        model, tokenizer = _load(folder, said.task)
    except ConfigError:
        raise
    except Exception as error:  # libraries' own kinds; that of tokenizers is bare
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"package {folder} cannot be loaded: {reason}") from error
    if model_digest(model.state_dict()) != said.digest:
        raise ConfigError(f"package {folder}: what loads is not the model of its manifest")
    _refuse_unknown_tokens(folder, tokenizer, model)
    return model, tokenizer


def _refuse_foreign_files(folder: Path) -> None:
    """Transformers opens what some settings name, wherever it lies: a vocabulary that is a tenant's
    own private file, or a load that fails where it has none. Who saves a tokeniser writes none."""
    for name in _SETTINGS:
        if not (path := folder / name).exists():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"package {folder}: {name} cannot be read") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"package {folder}: {name} is no JSON object")
        for key, value in settings.items():
            if value and (key in _SOURCES or key.endswith(_SOURCES_END)):
                raise ConfigError(
                    f"package {folder}: {name} has {key[:60]!r}, which may name files of its "
                    "reader; it is refused"
                )


def _refuse_unknown_tokens(folder: Path, tokenizer: Any, model: Any) -> None:
    inner = getattr(model, "encoder", model)
    rows = inner.get_input_embeddings().num_embeddings
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= rows:
        raise ConfigError(
            f"package {folder}: its tokeniser has token {last}, and the model only {rows} tokens; "
            "resize the model's embeddings, or take the tokens out"
        )


def _check_json(folder: Path, names: Collection[str]) -> None:
    for name in sorted(n for n in names if n.endswith(".json")):
        path = folder / name
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ConfigError(f"package {folder}: {name} is above {_MAX_JSON_BYTES} bytes")
        asked = sorted(_CODE & set(_keys_of(json.loads(path.read_text(encoding="utf-8")))))
        if asked:
            raise ConfigError(
                f"package {folder}: {name} has {', '.join(asked)}, which would run code or change "
                "how the model is loaded; it is refused"
            )


def _keys_of(value: Any) -> Iterator[str]:
    """Keys that are set to a text or a structure, at any depth outside a vocabulary."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as table:
                yield from (k for k, inner in table.items() if inner and _could_name_code(inner))
                waiting += [inner for key, inner in table.items() if key != "vocab"]
            case list() as items:
                waiting += items
            case _:
                pass


def _could_name_code(value: Any) -> bool:
    return isinstance(value, str | list | dict)


def _check_configuration(folder: Path, said: DescribedModel) -> None:
    """Hold the tensors that the configuration would build against the layout; allocates none."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    inner = config.get("encoder", {}) if said.task == "classification" else config
    kinds = next(f.model_types for f in families.FAMILIES if f.name == said.family)
    if inner.get("model_type") not in kinds:
        raise ConfigError(
            f"package {folder}: config.json is of type {str(inner.get('model_type'))[:40]!r}, and "
            f"the manifest says {said.family}"
        )
    layers = inner.get("num_hidden_layers", inner.get("n_layer"))
    if layers != said.layers:
        raise ConfigError(
            f"package {folder}: config.json has {layers} layers, and the manifest says "
            f"{said.layers}"
        )
    with torch.device("meta"):
        skeleton = _skeleton(folder, config, said.task)
    built = {name: tuple(t.shape) for name, t in skeleton.state_dict().items()}
    tied = {"lm_head.weight"} if inner.get("tie_word_embeddings", True) else set()
    stored = {name: item.shape for name, item in said.layout.items()}
    differing = sorted(
        name
        for name in built.keys() | stored.keys()
        if built.get(name) != stored.get(name) and not (name in tied and name not in stored)
    )
    if differing:
        raise ConfigError(
            f"package {folder}: config.json builds other tensors than the file holds: "
            f"{differing[:5]}"
        )


def _skeleton(folder: Path, config: Mapping[str, Any], task: Task) -> Any:
    match task:
        case "classification":
            return classifier.build_classifier(config)
        case "causal-lm":
            read = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return _FROM_CONFIG(read, trust_remote_code=False)


def _load(folder: Path, task: Task) -> tuple[Any, Any]:
    match task:
        case "classification":
            return classifier.load_classifier(folder), _load_tokenizer(folder)
        case "causal-lm":
            base = load_base(str(folder))
            return base.model, base.tokenizer


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{folder}: its tokeniser cannot be loaded: {reason}") from error


def _layout_of_file(path: Path) -> dict[str, TensorLayout]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in sorted(file.keys())}
        return {
            name: TensorLayout(tuple(part.get_shape()), _DTYPES[part.get_dtype()])
            for name, part in slices.items()
        }


def _in_float32(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
