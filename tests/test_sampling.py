"""Choosing tokens, learning rates and initial weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockstep.engine.initialise import Init, initialise
from lockstep.engine.sampling import (
    Sampler,
    Sampling,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise,
    softmax,
)
from lockstep.engine.schedule import Schedule
from lockstep.errors import GateError, UsageError

scores = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40, unique=True).map(np.array)


def _oracle(processor: Any, scores_V: np.ndarray, history: list[int] | None = None) -> np.ndarray:
    torch = pytest.importorskip("torch")
    ids = torch.tensor([history or [0]])
    found: np.ndarray = processor(ids, torch.tensor(scores_V[None]).clone())[0].numpy()
    return found


@pytest.mark.torch
@given(scores, st.integers(1, 50))
def test_top_k_is_that_of_transformers(scores_V: np.ndarray, k: int) -> None:
    from transformers import TopKLogitsWarper

    expected = _oracle(TopKLogitsWarper(k), scores_V)
    np.testing.assert_array_equal(keep_top_k(scores_V, k), expected)


@pytest.mark.torch
@given(scores, st.floats(0.05, 0.999))
def test_top_p_is_that_of_transformers(scores_V: np.ndarray, p: float) -> None:
    from transformers import TopPLogitsWarper

    expected = _oracle(TopPLogitsWarper(p), scores_V)
    np.testing.assert_array_equal(keep_top_p(scores_V, p), expected)


@pytest.mark.torch
@given(scores, st.floats(0.001, 0.999))
def test_min_p_is_that_of_transformers(scores_V: np.ndarray, p: float) -> None:
    from transformers import MinPLogitsWarper

    expected = _oracle(MinPLogitsWarper(p), scores_V)
    np.testing.assert_array_equal(keep_min_p(scores_V, p), expected)


@pytest.mark.torch
@given(scores, st.floats(0.5, 3.0), st.data())
def test_repeat_penalty_is_that_of_transformers(
    scores_V: np.ndarray, penalty: float, data: st.DataObject
) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    tokens = st.lists(st.integers(0, len(scores_V) - 1), min_size=1, max_size=9)
    history = data.draw(tokens)
    expected = _oracle(RepetitionPenaltyLogitsProcessor(penalty), scores_V, history)
    np.testing.assert_allclose(penalise(scores_V, history, penalty), expected, rtol=1e-15)


@pytest.mark.torch
@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_schedule_is_that_of_transformers(decay: str) -> None:
    import torch
    from transformers import get_scheduler

    ours = Schedule(decay=decay, peak_lr=3e-4, warmup_steps=7, total_steps=40)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    name = "constant_with_warmup" if decay == "constant" else decay
    theirs = get_scheduler(name, optimizer, num_warmup_steps=7, num_training_steps=40)
    for step in range(1, 41):
        optimizer.step()
        theirs.step()
        assert ours.rate(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-12)


def test_schedule_ends_at_its_share_and_gives_what_a_float32_can_hold() -> None:
    schedule = Schedule(peak_lr=1e-3, warmup_steps=2, total_steps=10, final_share=0.1)
    rates = [schedule.rate(step) for step in range(1, 11)]
    assert rates[:2] == [float(np.float32(5e-4)), float(np.float32(1e-3))]
    assert rates[-1] == float(np.float32(1e-4))
    assert all(rate == float(np.float32(rate)) for rate in rates)
    assert rates[1:] == sorted(rates[1:], reverse=True)


@pytest.mark.parametrize("wrong", [{"peak_lr": 0.0}, {"warmup_steps": 11}, {"total_steps": 0}])
def test_schedule_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Schedule(**{"peak_lr": 1e-3, "total_steps": 10, **wrong})


def test_greedy_takes_the_highest_and_the_penalty_can_change_it() -> None:
    logits_V = np.array([0.0, 3.0, 2.9], np.float32)
    assert Sampler(Sampling()).choose(logits_V) == 1
    penalised = Sampling(repeat_penalty=1.5, repeat_window=2)
    assert Sampler(penalised).choose(logits_V, [1]) == 2
    assert Sampler(penalised).choose(logits_V, [1, 0, 0]) == 1, "outside of the window"


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    sampler = Sampler(Sampling(temperature=1.0, seed=5))
    drawn = [sampler.choose(logits_V) for _ in range(4000)]
    counts = Counter(drawn)
    assert [counts[i] / 4000 for i in range(4)] == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    again = Sampler(Sampling(temperature=1.0, seed=5))
    assert drawn[:50] == [again.choose(logits_V) for _ in range(50)]
    other = Sampler(Sampling(temperature=1.0, seed=6))
    assert drawn[:50] != [other.choose(logits_V) for _ in range(50)]


def test_filtered_tokens_are_never_drawn() -> None:
    logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    for sampling in (Sampling(temperature=1.0, top_k=2), Sampling(temperature=1.0, min_p=0.5)):
        sampler = Sampler(sampling)
        assert {sampler.choose(logits_V) for _ in range(200)} == {0, 1}


def test_low_temperature_sharpens() -> None:
    probabilities = softmax(np.array([1.0, 2.0]) / 0.1)
    assert probabilities[1] > 0.9999
    assert probabilities.sum() == pytest.approx(1.0)


def any_logits(width: Any) -> Any:
    """All finite numbers, of any size."""
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=width)
    kind = np.float32 if width == 32 else np.float64
    return st.lists(numbers, min_size=1, max_size=20).map(lambda found: np.array(found, kind))


EQUAL_V = np.zeros(7, np.float32)
WIDE_V = np.array([3e38, -3e38, 1.0, 3e38], np.float32)
PLAIN: dict[str, Any] = {"temperature": 0.5, "repeat_penalty": 1.0, "top_k": 0, "top_p": 1.0,
                         "min_p": 0.0, "seed": 0}  # fmt: skip


@given(
    logits_V=any_logits(32) | any_logits(64),
    temperature=st.floats(0, 100),
    repeat_penalty=st.floats(0, 100, exclude_min=True),
    top_k=st.integers(0, 30),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
@example(logits_V=WIDE_V, **{**PLAIN, "temperature": 1e-310})
@example(logits_V=WIDE_V, **{**PLAIN, "temperature": 5e-324, "top_k": 2, "top_p": 0.9})
@example(logits_V=WIDE_V, **{**PLAIN, "repeat_penalty": 1e-308})
@example(logits_V=WIDE_V, **{**PLAIN, "repeat_penalty": 5e-324, "min_p": 0.1})
@example(logits_V=EQUAL_V, **{**PLAIN, "top_p": 1e-300})
def test_whatever_is_asked_for_a_token_is_drawn(logits_V: np.ndarray, **asked: Any) -> None:
    sampler = Sampler(Sampling(**asked))
    history = list(range(0, len(logits_V), 2))
    for _ in range(3):
        assert 0 <= sampler.choose(logits_V, history) < len(logits_V)


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-9])
def test_a_temperature_that_nothing_can_be_divided_by_is_greedy(temperature: float) -> None:
    logits_V = np.array([0.0, 3.0, 2.9, -1e30], np.float32)
    for seed in range(20):
        assert Sampler(Sampling(temperature=temperature, seed=seed)).choose(logits_V) == 1


def test_a_penalty_that_leaves_no_number_keeps_what_is_forbidden() -> None:
    scores_V = np.array([2.0, -2.0, -np.inf, 0.0])
    for penalty in (5e-324, 1e-308, 100.0):
        found = penalise(scores_V, [0, 1, 2, 3], penalty)
        assert found[2] == -np.inf
        assert np.isfinite(found[[0, 1, 3]]).all()
        assert found[0] > 0 >= found[1]


@pytest.mark.parametrize("logits", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_that_are_no_numbers_are_refused(logits: list[float]) -> None:
    with pytest.raises(GateError, match="NaN or nothing but"):
        Sampler(Sampling()).choose(np.array(logits))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 2.0}, {"seed": -1}]
)
def test_sampling_refuses_nonsense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Sampling(**wrong)


def _parameters() -> dict[str, np.ndarray]:
    names = {"a.weight": (300, 200), "b.weight": (64, 32), "norm.weight": (9,), "a.bias": (7,)}
    return {name: np.full(shape, np.nan, np.float32) for name, shape in names.items()}


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("normal_0p02", 0.02),
        ("xavier_normal", (2 / 500) ** 0.5),
        ("xavier_uniform", (2 / 500) ** 0.5),
        ("kaiming_uniform", (2 / 200) ** 0.5),
        ("zeros", 0.0),
    ],
)
def test_initial_weights_have_the_deviation_of_their_scheme(init: Init, deviation: float) -> None:
    parameters = _parameters()
    initialise(parameters, init, seed=1)
    assert parameters["a.weight"].std() == pytest.approx(deviation, rel=0.02)
    assert abs(parameters["a.weight"].mean()) <= 0.001
    assert (parameters["norm.weight"] == 1).all()
    assert (parameters["a.bias"] == 0).all()


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    first, second, third = _parameters(), _parameters(), _parameters()
    initialise(first, "xavier_uniform", seed=1)
    initialise(dict(reversed(second.items())), "xavier_uniform", seed=1)
    initialise(third, "xavier_uniform", seed=2)
    assert all((first[n] == second[n]).all() for n in first)
    assert (first["a.weight"] != third["a.weight"]).any()
