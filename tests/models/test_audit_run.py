"""All five audits in one report, for both tasks; and which text plays which part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import ByT5Tokenizer

from secagg.errors import ConfigError
from secagg_models.audit import texts
from secagg_models.audit.policy import AuditPolicy
from secagg_models.audit.run import BUDGETS, AuditBudget, Audited, run_audits, settings_for
from secagg_models.classifier import EncoderClassifier
from secagg_models.text import Corpus, SourceFile
from tests.models import families
from tests.models.audited import SETTINGS, SPLIT, classifier_pair, passages, trained_pair
from tests.models.audited import texts as tiny_texts
from tests.models.emulators import Pair

TINY_BUDGET = AuditBudget("quick", SETTINGS, 256, (256,), 256, 512, ("emulator",))


def audited(found: Pair) -> Audited:
    return Audited(found.full, found.emulator, found.split, "ab" * 32, "cd" * 32)


def test_a_classifier_is_audited_in_all_five_ways() -> None:
    found, text = classifier_pair()
    told: list[str] = []
    report = run_audits(
        audited(found), text, AuditPolicy(), TINY_BUDGET, seeds=2, on_progress=told.append
    )
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert all(value["results"][name] for name in value["results"])
    assert {verdict["outcome"] for verdict in value["verdicts"]} == {"pass", "fail"}
    assert not report.passes
    assert any(line.startswith("recovery: ") for line in told)
    assert set(report.seconds) == {"verbatim", "release", "ordering", "upgrade", "recovery"}


def test_without_text_only_weights_and_releases_are_audited() -> None:
    report = run_audits(audited(trained_pair()), None, AuditPolicy(), TINY_BUDGET)
    results = report.to_json()["results"]
    assert [name for name in results if results[name] is None] == [
        "ordering",
        "upgrade",
        "recovery",
    ]
    assert not report.passes


def test_an_encoder_without_a_task_can_be_audited_for_its_weights() -> None:
    from secagg_models.emulator import build_emulator

    full = families.build("roberta", SPLIT.layers)
    report = run_audits(
        audited(Pair("roberta", full, build_emulator(full, SPLIT), SPLIT)), None, AuditPolicy(),
        TINY_BUDGET,
    )  # fmt: skip
    assert report.verbatim.middle_share == 1.0


def test_an_unknown_budget_is_refused() -> None:
    with pytest.raises(ConfigError, match="--budget"):
        run_audits(audited(trained_pair()), None, AuditPolicy(), replace(TINY_BUDGET, name="huge"))


def test_windows_fit_the_models_memory_and_short_passages_come_in_larger_batches() -> None:
    quick = BUDGETS["quick"]
    token_settings = settings_for(trained_pair().full, quick, tiny_texts().attacker)
    assert token_settings.context == 32
    encoder = EncoderClassifier(families.build("roberta", 2), ("a", "b"))
    found = settings_for(encoder, quick, passages(1))
    assert (found.context, found.batch) == (11, quick.settings.batch * (256 // 11))


# ---------------------------------------------------------------------- texts


def corpus(name: str, *contents: str) -> Corpus:
    files = [SourceFile(f"{i}.py", content.encode()) for i, content in enumerate(contents)]
    return Corpus(name, tuple(files[:-2]), (files[-2],), (files[-1],))


def test_no_file_of_a_held_out_part_is_on_the_other_side() -> None:
    own = corpus("own", "same text", "first", "second", "third", "validation", "same text")
    tuned = corpus("theirs", "tuning", "their test", "validation", "their test")
    tokenizer = ByT5Tokenizer(extra_ids=0)
    chosen = texts.language_texts(tokenizer, own, [tuned], attacker_bytes=1 << 20)
    attacker = chosen.texts.attacker
    assert len(attacker.ids) == len("second") + 1  # the first and third file, less the copy
    assert len(chosen.texts.tuning[0].ids) == len("tuning") + 1
    assert [part["part"] for part in chosen.about["parts"]] == [
        "attacker", "held out", "tuning", "tuning, held out"
    ]  # fmt: skip


def test_an_attackers_text_ends_where_its_budget_does() -> None:
    own = corpus("own", *[f"text number {i}" for i in range(40)])
    chosen = texts.language_texts(ByT5Tokenizer(extra_ids=0), own, [], attacker_bytes=50)
    assert 50 <= len(chosen.texts.attacker.ids) < 80


def test_a_classifiers_text_is_a_folder_of_folders(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} passage {number}")
    chosen = texts.labelled_texts(tokenizer, ("good", "bad"), tmp_path)
    sizes = {part["part"]: part["files"] for part in chosen.about["parts"]}
    assert sum(sizes.values()) == 40
    assert abs(sizes["attacker"] - sizes["tuning"]) <= 1
    assert set(chosen.texts.held_out.labels) == {0, 1}
    with pytest.raises(ConfigError, match="ugly"):
        texts.labelled_texts(tokenizer, ("good", "ugly"), tmp_path)


def test_streams_of_different_length_are_merged_with_padding() -> None:
    short = replace(passages(1, 3), ids=passages(1, 3).ids[:, :5])
    both = texts.merged("both", [short, passages(2, 4)])
    assert both.ids.shape == (7, 11)
    assert (both.ids[:3, 5:] == both.pad).all()
