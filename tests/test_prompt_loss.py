"""The tags in front of rows: read by the model, predicted only if that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from training_run import ALONE, TRAIN, error_of, new_run, small_corpus, train

from lockstep.artifacts import RunDir
from lockstep.artifacts.metrics import read_metrics
from lockstep.artifacts.train_settings import TrainSettings
from lockstep.data.pack import IGNORED, PACKINGS, Windows
from lockstep.data.rows import read_rows
from lockstep.proof.canary import SETTINGS
from lockstep.tokenizers import Tokenizer
from lockstep.training.prepare import DATASET, TRAIN_FILE, windows_of
from lockstep.training.settings import DEFAULTS

pytestmark = pytest.mark.usefixtures("quick_builds")

SHORT = (*TRAIN, *ALONE, "--total-tokens=64", "--epochs=4")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run with four steps of training, by default settings as to the prompts."""
    data = tmp_path_factory.mktemp("data")
    small_corpus().save(data)
    run = new_run(tmp_path_factory.mktemp("runs") / "tags")
    assert train(run, "--data", str(data), *SHORT) == 0
    return run


def windows(run: RunDir, **changed: object) -> Windows:
    values = {**vars(TrainSettings.load(run.path)), **changed}
    rows = read_rows(run.path / DATASET / TRAIN_FILE)
    return windows_of(rows, Tokenizer.load(run.tokenizer), TrainSettings(**values))


@pytest.mark.parametrize("packing", PACKINGS)
def test_tags_are_no_targets_and_all_else_is(run: RunDir, packing: str) -> None:
    tokenizer = Tokenizer.load(run.tokenizer)
    tags = [tokenizer.token_id(tag) for tag in tokenizer.tags]
    plain = windows(run, packing=packing, prompt_loss=True, seq_len=256)
    without = windows(run, packing=packing, prompt_loss=False, seq_len=256)
    assert np.array_equal(plain.inputs_WT, without.inputs_WT), "the model still reads them"
    is_tag = np.isin(plain.targets_WT, tags)
    assert is_tag.sum() > 0
    assert np.array_equal(without.targets_WT, np.where(is_tag, IGNORED, plain.targets_WT))


def test_windows_within_a_prompt_are_left_out(run: RunDir) -> None:
    every = windows(run, packing="stream", prompt_loss=True, seq_len=2)
    some = windows(run, packing="stream", prompt_loss=False, seq_len=2)
    assert len(some) < len(every)
    assert (some.targets_WT != IGNORED).any(axis=1).all()


def test_the_default_the_canary_and_the_record(run: RunDir) -> None:
    assert DEFAULTS["prompt_loss"] is False
    assert SETTINGS["prompt_loss"] is True, "the runbook's canary has the loss on everything"
    assert TrainSettings.load(run.path).prompt_loss is False
    seen = read_metrics(run.metrics)[-1].tokens_seen
    assert 0 < seen < 4 * 128, "tokens that no loss is taken at do not count as trained on"


def test_it_is_fixed_when_a_training_is_resumed(
    run: RunDir, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    assert train(run, "--resume", "--prompt-loss", "--json") == 2
    assert "--prompt-loss is False, got True" in error_of(capfd.readouterr().out)
