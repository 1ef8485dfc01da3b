"""Loading the base model: the shipped one, a local folder, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer, PreTrainedModel

from secagg.errors import ConfigError
from secagg_models import text, train
from secagg_models.base import SHIPPED, load_base, model_digest


def test_the_shipped_base_reads_held_out_source_well_below_two_nats_a_byte() -> None:
    base = load_base(SHIPPED)
    held_out = text.encode("stdlib", text.standard_library().test, base.tokenizer)
    loss = train.evaluate(base.model, held_out, context=256, max_windows=24)
    assert loss < 1.3
    assert sum(p.numel() for p in base.model.parameters()) > 2_000_000
    assert base.model.config.num_hidden_layers >= 12


def test_the_shipped_files_stay_small_and_ask_for_no_code() -> None:
    import secagg_models.base as module

    folder = Path(module.__file__).parent / "base"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 25 << 20
    assert {f.suffix for f in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    assert "auto_map" not in (folder / "config.json").read_text()


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def test_a_local_folder_loads_and_is_named_by_its_tensors(tiny_model: Any, tmp_path: Path) -> None:
    base = load_base(str(_saved(tiny_model, tmp_path)))
    assert base.digest == model_digest(tiny_model.state_dict())
    assert not any(p.requires_grad for p in base.model.parameters())


def test_models_that_load_in_several_threads_at_once_are_tied_as_ever(
    tiny_model: Any, tmp_path: Path
) -> None:
    folder, tie = _saved(tiny_model, tmp_path), PreTrainedModel.tie_weights
    with ThreadPoolExecutor(6) as pool:
        digests = {base.digest for base in pool.map(load_base, [str(folder)] * 12)}
    assert digests == {load_base(str(folder)).digest}
    assert PreTrainedModel.tie_weights is tie


def test_the_digest_tells_names_shapes_types_and_values_apart() -> None:
    one = {"a": torch.zeros(2, 3)}
    digests = {
        model_digest(tensors)
        for tensors in (
            one,
            {"b": torch.zeros(2, 3)},
            {"a": torch.zeros(3, 2)},
            {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
            {"a": torch.full((2, 3), 1e-40)},
        )
    }
    assert len(digests) == 5
    assert model_digest(one) == model_digest({"a": torch.zeros(3, 2).T})


def test_pickled_weights_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    _saved(tiny_model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="no safetensors"):
        load_base(str(tmp_path))


def test_a_model_that_needs_its_own_code_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    _saved(tiny_model, tmp_path)
    config = (tmp_path / "config.json").read_text()
    config = config.replace(
        '"model_type": "llama"',
        '"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M"}',
    )
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "m.py").write_text("raise SystemExit('code of the model ran')\n")
    with pytest.raises(ConfigError, match="cannot load"):
        load_base(str(tmp_path))
