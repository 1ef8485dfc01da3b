"""A block's package holds that block, the embeddings and the head verbatim, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.block_cut import BlockCut
from secagg_models.block_package import BlockMeta, LoadedBlock, read_block_files, write_block_files
from secagg_models.families import layer_prefix
from secagg_models.package import read_package
from secagg_models.split import full_name
from tests.models.families import CAUSAL
from tests.models.test_package import owned

CUT = BlockCut(6, 3, 1, "block")


def read(folder: Path, meta: Any) -> LoadedBlock:
    return read_block_files(folder, [path.name for path in folder.iterdir()], meta)


@pytest.mark.parametrize("kind", [*CAUSAL, "bert"])
def test_a_block_holds_its_layers_and_what_is_outside_all_layers(kind: str, tmp_path: Path) -> None:
    full = owned(kind)
    meta = write_block_files(tmp_path / "b", full, CUT, signed=True)
    block = read(tmp_path / "b", meta.to_json())
    assert block.meta == meta
    prefix, own = layer_prefix(full.model), full.model.state_dict()
    within = tuple(f"{prefix}{layer}." for layer in CUT.full_block)
    found = {full_name(CUT, prefix, n): t for n, t in block.model.state_dict().items()}
    assert set(found) == {n for n in own if not n.startswith(prefix) or n.startswith(within)}
    for name, tensor in found.items():
        assert torch.equal(tensor, own[name]), name
    assert {item.dtype for item in meta.layout.values()} <= {"bfloat16", "int64"}
    assert "Layers 2 to 3 of 6" in (tmp_path / "b" / "README.md").read_text()


def test_a_manifest_that_is_no_blocks_is_refused(tmp_path: Path) -> None:
    full = owned("llama")
    meta = write_block_files(tmp_path / "b", full, CUT, signed=True)
    good = meta.to_json()
    spoilt: list[dict[str, Any]] = [
        good | {"kind": "emulator"},
        good | {"task": "speech"},
        good | {"cut": good["cut"] | {"block": 5}},
        good | {"cut": good["cut"] | {"block": True}},
        good | {"cut": good["cut"] | {"held": "all"}},
        good | {"cut": good["cut"] | {"held": "half"}},
        good | {"cut": {"layers": 6}},
        good | {"cut": good["cut"] | {"blocks": 2}},
        good | {"full_digest": "00"},
        good | {"block_digest": "00" * 32},
        good | {"signed": 1},
        good | {"more": 1},
        {"kind": "block-model"},
    ]
    for broken in spoilt:
        with pytest.raises(ConfigError):
            read(tmp_path / "b", broken)
    with pytest.raises(ConfigError, match="of kind 'block-model', not emulator"):
        read_package(tmp_path / "b", [p.name for p in (tmp_path / "b").iterdir()], good)
    assert BlockMeta.from_json(good) == meta


def test_a_token_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    """Whoever's text has it could not train, and its owner would see who that is."""
    full = owned("llama")
    meta = write_block_files(tmp_path / "b", full, CUT, signed=True)
    full.tokenizer.add_tokens([f"project {name}" for name in "abcdefghij"])
    full.tokenizer.backend_tokenizer.save(str(tmp_path / "b" / "tokenizer.json"))
    with pytest.raises(ConfigError, match="token 265, and the model only 264"):
        read(tmp_path / "b", meta.to_json())
    with pytest.raises(ConfigError, match="token 265, and the model only 264"):  # at home already
        write_block_files(tmp_path / "c", full, CUT, signed=True)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["vocab", "vocab_file", "tokenizer_file", "init_inputs"])
def test_a_tokeniser_that_names_its_readers_files_is_refused(
    key: str, file: str, tmp_path: Path
) -> None:
    """Its vocabulary would be a private file, and whether it loads would tell that there is one."""
    private = tmp_path / "private.txt"
    private.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nprivate\n")
    meta = write_block_files(tmp_path / "b", owned("llama"), CUT, signed=True)
    (tmp_path / "b" / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "BertTokenizer"}
    asked: Any = [str(private)] if key == "init_inputs" else str(private)
    for name in {file, "tokenizer_config.json"}:
        told = settings | ({key: asked} if name == file else {})
        (tmp_path / "b" / name).write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=f"{file} has '{key}'"):
        read(tmp_path / "b", meta.to_json())


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (lambda: BlockCut(6, 7, 0, "all"), "take 1 to 6"),
        (lambda: BlockCut(6, 3, 3, "all"), "blocks 0 to 2"),
        (lambda: BlockCut(6, 3, 1, "some"), "held"),  # type: ignore[arg-type]
        (lambda: CUT.full_index(2), "layers 0 to 1"),
    ],
)
def test_a_cut_that_cannot_be_is_told(cut: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        cut()


def test_layers_are_counted_in_what_tenants_hold() -> None:
    whole = replace(CUT, held="all")
    assert (CUT.full_layers, CUT.trained) == ((2, 3), (0, 1))
    assert (whole.full_layers, whole.trained) == ((0, 1, 2, 3, 4, 5), (2, 3))


def test_a_cut_of_another_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="5 layers and the model has 6"):
        write_block_files(tmp_path / "b", owned("llama"), replace(CUT, layers=5), signed=False)
