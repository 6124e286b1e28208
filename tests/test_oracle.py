"""The oracle: transformers with our weights, really in the precision that it says."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_harness import EVERY_CONFIG, differences, drawn_batch, drawn_parameters

from lockstep.errors import UsageError
from lockstep.families import FAMILIES, Family
from lockstep.formats import HFDirectory

pytestmark = pytest.mark.torch
pytest.importorskip("transformers")

from lockstep.oracle import Oracle, StepRecord, hf_model, train  # noqa: E402

FAMILY = FAMILIES["qwen3"]
TINY = FAMILY.TINY


def answer(attention: Any, precision: Any = "float64") -> dict[str, Any]:
    oracle = hf_model(
        FAMILY, TINY, drawn_parameters(FAMILY, TINY), precision=precision, attention=attention
    )
    batch = drawn_batch(TINY, 2, 11)
    found = oracle.losses_and_gradients(batch.tokens_BT, batch.targets_BT)
    return {"logits": found.logits, "loss": np.array(found.loss), **found.gradients}


def test_float64_is_float64_in_every_module() -> None:
    found = differences(answer("eager"), answer("sdpa"))
    assert max(found.values()) < 1e-12, found


def test_a_float64_run_that_falls_back_to_float32_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = answer("sdpa")
    monkeypatch.setattr("lockstep.oracle.transformers_model.KeepFloat64", contextlib.nullcontext)
    found = differences(answer("eager"), exact)
    assert min(found["logits"], found["loss"]) > 1e-10


@pytest.mark.parametrize(("family", "config"), EVERY_CONFIG)
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_directory_that_transformers_saved_is_read(
    family: Family[Any], config: Any, shard_size: str, tmp_path: Path
) -> None:
    parameters = drawn_parameters(family, config)
    oracle = hf_model(family, config, parameters)
    oracle.model.save_pretrained(tmp_path, max_shard_size=shard_size)
    read = HFDirectory(tmp_path)
    assert family.from_hf(read.config) == config
    assert len(list(tmp_path.glob("*.safetensors"))) > (1 if shard_size == "20KB" else 0)
    back = family.hf_parameters(config, read)
    assert all(back[id].tobytes() == parameters[id].tobytes() for id in parameters)


def test_the_class_defaults_of_transformers_are_ours() -> None:
    import transformers

    for family in FAMILIES.values():
        config_class = getattr(transformers, family.hf_class).config_class
        sizes = {
            "vocab_size": 67,
            "hidden_size": 48,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 64,
        }
        short = family.from_hf({"model_type": config_class.model_type, **sizes})
        assert short == family.from_hf(json.loads(config_class(**sizes).to_json_string()))


def test_parameters_of_another_model_are_refused() -> None:
    parameters = drawn_parameters(FAMILY, TINY)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        hf_model(FAMILY, TINY, {k: v for k, v in parameters.items() if k != "norm.weight"})
    with pytest.raises(ValueError, match=r"embed\.weight"):
        hf_model(FAMILY, replace(TINY, vocab=TINY.vocab + 1), parameters)


def test_training_is_repeatable_and_reports_every_step() -> None:
    batch = drawn_batch(TINY, 2, 7)
    steps = [[(batch.tokens_BT, batch.targets_BT)]] * 4
    seen: list[StepRecord] = []

    def note(record: StepRecord, oracle: Oracle) -> None:
        seen.append(record)

    parameters = drawn_parameters(FAMILY, TINY)
    runs = [
        train(FAMILY, TINY, parameters, steps, [1e-3] * 4, first_step=5, on_step=note)
        for _ in range(2)
    ]
    assert [r.step for r in runs[0].steps] == [5, 6, 7, 8]
    assert seen == [*runs[0].steps, *runs[1].steps]
    assert runs[0].steps == runs[1].steps
    assert runs[0].steps[-1].loss < runs[0].steps[0].loss
    for id, array in runs[0].parameters.items():
        assert array.tobytes() == runs[1].parameters[id].tobytes()
        assert array.dtype == np.float32
        assert array.tobytes() != parameters[id].tobytes()


def test_training_refuses_what_has_no_meaning() -> None:
    batch = drawn_batch(TINY, 1, 5)
    parameters = drawn_parameters(FAMILY, TINY)
    step = [(batch.tokens_BT, batch.targets_BT)]
    with pytest.raises(UsageError, match="expected 1 learning rates, got 2"):
        train(FAMILY, TINY, parameters, [step], [1e-3, 1e-3])
    nothing = [(batch.tokens_BT, np.full_like(batch.targets_BT, -1))]
    with pytest.raises(UsageError, match="at least one target"):
        train(FAMILY, TINY, parameters, [nothing], [1e-3])
