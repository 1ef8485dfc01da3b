"""A package is written and read as the same emulator, and anything that is not as said is refused.

Hashes and signatures are the manifest's (tests/wire/test_signed_manifest.py); here the files are
already those that a manifest names, and its author may be hostile.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from secagg.errors import ConfigError
from secagg_models import families
from secagg_models.base import model_digest
from secagg_models.classifier import EncoderClassifier
from secagg_models.emulator import build_emulator
from secagg_models.package import (
    EmulatorMeta,
    LoadedEmulator,
    LoadedModel,
    load_full_model,
    read_package,
    task_of,
    write_package,
)
from secagg_models.split import Split, full_name
from tests.models.families import CAUSAL, build

SPLIT = Split.uniform(6, 1, 2)


def owned(kind: str, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    model = build(kind).to(dtype).float()
    if kind in ("bert", "roberta"):
        model = EncoderClassifier(model, ["a", "b", "c"]).train(False).requires_grad_(False)
        model.to(dtype).float()
    tokenizer = letters()
    tokenizer.chat_template = "{{ messages }}"
    return LoadedModel(model, tokenizer, task_of(model), model_digest(model.state_dict()))


def letters() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i + 3 for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def write(folder: Path, full: LoadedModel) -> EmulatorMeta:
    emulator = build_emulator(full.model, SPLIT)
    with torch.no_grad():
        for layer in families.layers_of(emulator)[1:3]:
            for parameter in layer.parameters():
                parameter.mul_(1.001)
    return write_package(folder, full, emulator, SPLIT, distillation={"steps": 3}, signed=True)


def read(folder: Path, meta: Any) -> LoadedEmulator:
    return read_package(folder, {path.name for path in folder.iterdir()}, meta)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EmulatorMeta]:
    folder = tmp_path_factory.mktemp("package") / "emulator"
    return folder, write(folder, owned("llama"))


@pytest.mark.parametrize("kind", [*CAUSAL, "bert", "roberta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_read_has_the_owners_edges_bit_for_bit(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    full = owned(kind, dtype)
    meta = write(tmp_path / "e", full)
    assert EmulatorMeta.from_json(json.loads(json.dumps(meta.to_json()))) == meta
    found = read(tmp_path / "e", meta.to_json())
    assert model_digest(found.model.state_dict()) == meta.emulator_digest
    assert {item.dtype for item in meta.layout.values()} == {str(dtype).removeprefix("torch.")}
    prefix, own = families.layer_prefix(found.model), full.model.state_dict()
    middle = tuple(f"{prefix}{layer}." for layer in SPLIT.middle_layers)
    for name, tensor in found.model.state_dict().items():
        same = torch.equal(tensor, own[full_name(SPLIT, prefix, name)])
        assert same or name.startswith(middle)
    assert families.family_of(found.model).name == meta.family
    assert found.tokenizer("ab")["input_ids"] == full.tokenizer("ab")["input_ids"] != []


def test_a_package_says_nothing_of_where_it_came_from(llama: tuple[Path, EmulatorMeta]) -> None:
    folder, meta = llama
    names = {"README.md", "config.json", "model.safetensors", "tokenizer_config.json"}
    assert names <= {path.name for path in folder.iterdir()}
    assert not (folder / "generation_config.json").exists()
    for path in folder.iterdir():
        assert str(folder.parent).encode() not in path.read_bytes()
    assert "chat_template" not in (folder / "tokenizer_config.json").read_text()
    card = (folder / "README.md").read_text()
    assert "distilled for 3 steps" in card
    assert meta.emulator_digest in card


def test_an_unsigned_and_undistilled_package_says_so(tmp_path: Path) -> None:
    full = owned("llama")
    emulator = build_emulator(full.model, SPLIT)
    write_package(tmp_path, full, emulator, SPLIT, distillation=None, signed=False)
    card = (tmp_path / "README.md").read_text()
    assert "Unsigned" in card
    assert "verbatim" in card


def test_an_emulator_whose_edges_were_trained_is_not_written(tmp_path: Path) -> None:
    full = owned("llama")
    emulator = build_emulator(full.model, SPLIT)
    with torch.no_grad():
        emulator.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(ConfigError, match=r"model.layers.0.mlp.up_proj.weight"):
        write_package(tmp_path, full, emulator, SPLIT, distillation=None, signed=False)


def test_a_tokeniser_that_does_not_load_as_itself_is_not_shipped(tmp_path: Path) -> None:
    full = replace(owned("qwen2"), tokenizer=ByT5Tokenizer(extra_ids=0))
    with pytest.raises(ConfigError, match="ByT5Tokenizer"):
        write(tmp_path / "e", full)


def test_an_encoder_without_a_head_has_no_task() -> None:
    with pytest.raises(ConfigError, match="give it a head first"):
        task_of(build("bert"))


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(value)))

    return apply


def retensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def add(name: str, data: bytes = b"{}") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None  # type: ignore[func-returns-value]


NORM = "model.norm.weight"
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pickle": (add("pytorch_model.bin"), "does not have"),
    "code": (add("modeling.py", b"import os"), "does not have"),
    "another JSON file": (add("adapter_config.json"), "does not have"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "it needs"),
    "code by reference": (
        edit("config.json", lambda c: c | {"auto_map": {"AutoConfig": "x--y.Z"}}), "auto_map"),
    "code inside": (
        edit("config.json", lambda c: c | {"x": [{"auto_map": "x--y.Z"}]}), "auto_map"),
    "a tokeniser's code": (
        edit("tokenizer_config.json", lambda c: c | {"auto_map": {"AutoTokenizer": ["x", None]}}),
        "auto_map"),
    "a template": (
        edit("tokenizer_config.json", lambda c: c | {"chat_template": "{{ x }}"}), "chat_template"),
    "a kernel from a hub": (
        edit("config.json", lambda c: c | {"_attn_implementation": "x/y"}), "_attn"),
    "quantisation": (
        edit("config.json", lambda c: c | {"quantization_config": {"a": 1}}), "quantization"),
    "another type": (edit("config.json", lambda c: c | {"model_type": "t5"}), "'t5'"),
    "no type": (edit("config.json", lambda c: {"a": 1}), "is of type"),
    "a list": (edit("config.json", lambda c: [c]), "cannot be loaded"),
    "more layers": (edit("config.json", lambda c: c | {"num_hidden_layers": 9}), "9 layers"),
    "wider": (edit("config.json", lambda c: c | {"intermediate_size": 1 << 33}), "builds other"),
    "untied": (edit("config.json", lambda c: c | {"tie_word_embeddings": False}), "builds other"),
    "another function": (
        edit("config.json", lambda c: c | {"hidden_act": "no such thing"}), "cannot be loaded"),
    "one tensor less": (retensor(lambda t: t.pop(NORM)), "not those of its manifest"),
    "one tensor more": (
        retensor(lambda t: t.update(x=torch.zeros(1))), "not those of its manifest"),
    "another shape": (
        retensor(lambda t: t.update({NORM: torch.zeros(3)})), "not those of its manifest"),
    "another dtype": (
        retensor(lambda t: t.update({NORM: t[NORM].float()})), "not those of its manifest"),
    "another value": (
        retensor(lambda t: t.update({NORM: t[NORM] + 1})), "not the model of its manifest"),
    "no safetensors": (add("model.safetensors", b"\x80\x04."), "cannot be loaded"),
    "no JSON": (add("config.json", b"{"), "cannot be loaded"),
    "deep JSON": (add("config.json", b"[" * 200_000), "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_package_that_is_not_as_said_is_refused(
    case: str, llama: tuple[Path, EmulatorMeta], tmp_path: Path
) -> None:
    folder, meta = llama
    spoil, said = SPOILT[case]
    copied = tmp_path / "e"
    shutil.copytree(folder, copied)
    read(copied, meta.to_json())
    spoil(copied)
    with pytest.raises(ConfigError, match=said):
        read(copied, meta.to_json())


def spoilt_meta() -> dict[str, Callable[[dict[str, Any]], Any]]:
    return {
        "kind": lambda m: m | {"kind": "lora"},
        "task": lambda m: m | {"task": "speech"},
        "family": lambda m: m | {"family": "t5"},
        "another family": lambda m: m | {"family": "gpt2"},
        "another task": lambda m: m | {"task": "classification"},
        "split": lambda m: m | {"split": {"layers": 6, "edge": 1, "kept": [1]}},
        "full digest": lambda m: m | {"full_digest": "00"},
        "digest": lambda m: m | {"emulator_digest": "00" * 32},
        "upper case": lambda m: m | {"emulator_digest": "AB" * 32},
        "layout": lambda m: m | {"layout": {}},
        "layout type": lambda m: m | {"layout": []},
        "negative side": lambda m: m | {"layout": {"x": {"dtype": "float32", "shape": [-1]}}},
        "signed": lambda m: m | {"signed": 1},
        "distillation": lambda m: m | {"distillation": 3},
        "one more": lambda m: m | {"extra": 1},
        "one less": lambda m: {k: v for k, v in m.items() if k != "signed"},
    }


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["vocab", "vocab_file", "tokenizer_file", "init_inputs"])
def test_a_tokeniser_that_names_its_readers_files_is_refused(
    key: str, file: str, tmp_path: Path
) -> None:
    """Its vocabulary would be a private file, and whether it loads would tell that there is one."""
    meta = write(tmp_path / "e", owned("llama"))
    (tmp_path / "e" / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "BertTokenizer"}
    private = str(tmp_path / "private.txt")
    asked: Any = [private] if key == "init_inputs" else private
    for name in {file, "tokenizer_config.json"}:
        told = settings | ({key: asked} if name == file else {})
        (tmp_path / "e" / name).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"{file} has '{key}'"):
        read(tmp_path / "e", meta.to_json())


@pytest.mark.parametrize("case", spoilt_meta())
def test_a_manifest_that_says_something_else_is_refused(
    case: str, llama: tuple[Path, EmulatorMeta]
) -> None:
    folder, meta = llama
    with pytest.raises(ConfigError):
        read(folder, spoilt_meta()[case](meta.to_json()))


def test_the_full_digest_is_the_owners_word_alone(llama: tuple[Path, EmulatorMeta]) -> None:
    folder, meta = llama
    found = read(folder, replace(meta, full_digest="0" * 64).to_json())
    assert found.meta.full_digest == "0" * 64


def test_a_classifiers_folder_loads_as_a_full_model(tmp_path: Path) -> None:
    full = owned("bert", torch.float32)
    from secagg_models.classifier import save_classifier

    save_classifier(full.model, tmp_path)
    full.tokenizer.save_pretrained(tmp_path)
    found = load_full_model(str(tmp_path))
    assert (found.task, found.digest) == ("classification", full.digest)


def test_the_shipped_base_is_a_full_model_and_leaves_in_its_own_type(tmp_path: Path) -> None:
    full = load_full_model("shipped")
    layers = len(families.layers_of(full.model))
    split = Split.uniform(layers, 2, 1)
    emulator = build_emulator(full.model, split)
    meta = write_package(tmp_path / "e", full, emulator, split, distillation=None, signed=False)
    assert {item.dtype for item in meta.layout.values()} == {"bfloat16"}
    found = read(tmp_path / "e", meta.to_json())
    assert model_digest(found.model.state_dict()) == model_digest(emulator.state_dict())
