"""Sessions: cached decode, generation, streaming; training steps and their accumulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.build import Built, OptimizerSpec, inference_program, training_program
from lockstep.engine.initialise import initialise
from lockstep.engine.packed import place_arrays
from lockstep.engine.sampling import Sampler, Sampling
from lockstep.engine.session import InferenceSession, Piece, generate
from lockstep.engine.streaming import stream_text
from lockstep.engine.trainer import IGNORED, Microbatch, TrainingSession
from lockstep.errors import InputError, UsageError
from lockstep.families import FAMILIES
from lockstep.ir import InferenceShape
from lockstep.tokenizers import Tokenizer, train_tokenizer

pytestmark = pytest.mark.usefixtures("quick_builds")

FAMILY = FAMILIES["qwen3"]
CONFIG = FAMILY.TINY
CONTEXT = 24
SHAPE = InferenceShape(context=CONTEXT, rows=5, slots=3, outs=4)
SHAPES = {w.id: w.shape for w in FAMILY.weights(CONFIG)}


def _parameters(seed: int = 1) -> dict[str, np.ndarray]:
    arrays = {id: np.empty(shape, np.float32) for id, shape in SHAPES.items()}
    initialise(arrays, "xavier_uniform", seed)
    return arrays


@pytest.fixture(scope="module")
def inference() -> Iterator[Built]:
    built = inference_program(FAMILY, CONFIG, SHAPE, threads=2)
    place_arrays(built.program, _parameters())
    yield built
    built.program.close()


@pytest.fixture
def session(inference: Built) -> InferenceSession:
    return InferenceSession(inference.program, SHAPE)


def test_chunks_and_single_tokens_give_the_same_bits(session: InferenceSession) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    at_once = session.prefill(ids)
    session.reset()
    for id in ids:
        one_by_one = session.decode(id)
    assert at_once.tobytes() == one_by_one.tobytes()
    session.reset(7)
    assert session.prefill(ids[7:]).tobytes() == at_once.tobytes(), "kept the first seven"


def test_what_else_is_in_a_pass_changes_no_bit(session: InferenceSession) -> None:
    prompts = {0: [3, 1, 4, 1, 5, 9, 2], 1: [2, 7, 1, 8], 2: [6, 6, 6]}
    alone = {}
    for slot, ids in prompts.items():
        alone[slot] = session.prefill(ids, slot).tobytes()
        session.reset(0, slot)
    session.read([Piece(0, [3, 1, 4], "none"), Piece(1, [2], "none")])
    session.read([Piece(2, [6], "all"), Piece(1, [7, 1], "none"), Piece(0, [1, 5], "last")])
    last = session.read([Piece(1, [8]), Piece(2, [6, 6], "all"), Piece(0, [9], "none")])
    assert [len(rows) for rows in last] == [1, 2, 0]
    assert last[0][0].tobytes() == alone[1]
    assert last[1][1].tobytes() == alone[2]
    assert session.decode(2, 0).tobytes() == alone[0]


def test_a_token_alone_goes_on_with_the_sequence_of_its_slot(session: InferenceSession) -> None:
    prompts = {0: [3, 1, 4], 1: [2, 7, 1, 8], 2: [6, 6, 5]}
    for slot, ids in prompts.items():
        session.prefill(ids[:-1], slot)
    found = {slot: session.decode(ids[-1], slot).tobytes() for slot, ids in prompts.items()}
    assert session.lengths == [3, 4, 3]
    for slot, ids in prompts.items():
        session.reset(0, slot)
        assert session.prefill(ids, slot).tobytes() == found[slot]


def test_a_pass_that_has_no_room_is_refused(session: InferenceSession) -> None:
    for pieces, expected in (
        ([Piece(0, [1] * 6)], "at most 5 tokens"),
        ([Piece(0, [1] * 5, "all")], "at most 4 rows of logits"),
        ([Piece(0, [1]), Piece(0, [2])], "different slots"),
        ([Piece(3, [1])], "different slots"),
        ([], "at least one piece"),
    ):
        with pytest.raises(UsageError, match=expected):
            session.read(pieces)
    assert session.lengths == [0, 0, 0]


def test_what_does_not_fit_is_refused_and_changes_nothing(session: InferenceSession) -> None:
    before = session.prefill([1, 2, 3])
    for ids, expected in (([], "at least one"), ([session.n_vocab], "token ids"), ([-1], "ids"),
                          ([0] * CONTEXT, f"at most {CONTEXT - 3}")):  # fmt: skip
        with pytest.raises(UsageError, match=expected):
            session.prefill(ids)
    with pytest.raises(UsageError, match="reset"):
        session.reset(4)
    session.reset(2)
    assert session.decode(3).tobytes() == before.tobytes()


def test_greedy_generation_ends_at_limit_stop_and_context(session: InferenceSession) -> None:
    def drawn(max_tokens: int, stop: tuple[int, ...] = ()) -> list[int]:
        session.reset()
        sampler = Sampler(Sampling())
        return list(generate(session, [7, 8], sampler, max_tokens=max_tokens, stop_ids=stop))

    free = drawn(6)
    assert len(free) == 6
    assert drawn(6) == free
    stop = free[2]
    assert drawn(6, (stop,)) == free[: free.index(stop) + 1]
    assert len(drawn(10**6)) == CONTEXT - 2 + 1, "the last one is drawn but not read"
    session.reset()
    logits_V = session.prefill([7, 8])
    assert int(logits_V.argmax()) == free[0]


def test_seeded_generation_repeats(session: InferenceSession) -> None:
    def drawn(seed: int) -> list[int]:
        session.reset()
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return list(generate(session, [1], sampler, max_tokens=12))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


ROWS = ["<svg>né €𝄞</svg><eos>", "<svg>aé bé cé 𝄞𝄞</svg><eos>"] * 4


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bpe", ROWS, 280, ["[circle]"])


@given(st.text(max_size=20))
def test_streamed_pieces_are_the_text_and_never_half_a_character(text: str) -> None:
    tokenizer = train_tokenizer("bpe", ROWS, 280, ["[circle]"])
    ids = tokenizer.encode(text)
    pieces = list(stream_text(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all("�" not in piece for piece in pieces) or "�" in text


def _stream(tokenizer: Tokenizer, text: str, **stops: tuple[str, ...]) -> list[str]:
    return list(stream_text(tokenizer, tokenizer.encode(text), **stops))  # type: ignore[arg-type]


def test_a_character_waits_for_its_last_byte(tokenizer: Tokenizer) -> None:
    by_byte = {tokenizer.token_bytes(id): id for id in range(tokenizer.vocab_size)}
    ids = [by_byte[bytes([byte])] for byte in "a€b".encode()]
    assert list(stream_text(tokenizer, ids)) == ["a", "€", "b"]
    assert list(stream_text(tokenizer, ids[:3])) == ["a", "�"], "cut short at the end"
    assert list(stream_text(tokenizer, [ids[1], ids[1], ids[0]])) == ["�", "�a"]


def test_nothing_of_a_stop_text_is_shown(tokenizer: Tokenizer) -> None:
    assert "".join(_stream(tokenizer, "ab</svg>cd", stop_texts=("</svg>",))) == "ab"
    assert "".join(_stream(tokenizer, "ab</sv", stop_texts=("</svg>",))) == "ab</sv"
    assert "".join(_stream(tokenizer, "a</s</svg>", stop_texts=("</svg>", "zz"))) == "a</s"
    assert "".join(_stream(tokenizer, "xyz", stop_texts=("", "y"))) == "x"
    eos = (tokenizer.eos_id,)
    ids = [*tokenizer.encode("ab"), *eos, *tokenizer.encode("cd")]
    assert "".join(stream_text(tokenizer, ids, stop_ids=eos)) == "ab"
    assert "".join(stream_text(tokenizer, ids)) == "abcd", "a control token is no text"
    assert "".join(stream_text(tokenizer, ids, show_control=True)) == "ab<eos>cd"


BATCH, TOKENS = 2, 6


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    adamw = OptimizerSpec(kind="adamw", weight_decay=0.1)
    built = training_program(FAMILY, CONFIG, batch=BATCH, tokens=TOKENS, optimizer=adamw, threads=2)
    yield built
    built.program.close()


Restarted = Callable[[], TrainingSession]


@pytest.fixture
def restarted(built: Built) -> Restarted:
    def get() -> TrainingSession:
        session = TrainingSession(built.program, batch=BATCH, tokens=TOKENS)
        moments = {id: np.zeros_like(array) for id, array in session.moments().items()}
        session.begin(_parameters(), moments)
        return session

    return get


def _batch(seed: int, n_ignored: tuple[int, ...]) -> Microbatch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, CONFIG.vocab, (len(n_ignored), TOKENS)).astype(np.int32)
    targets = rng.integers(0, CONFIG.vocab, (len(n_ignored), TOKENS)).astype(np.int32)
    for row, n in zip(targets, n_ignored, strict=True):
        row[TOKENS - n :] = IGNORED
    return Microbatch(tokens, targets)


def _only(batch: Microbatch, row: int) -> Microbatch:
    """The batch with the targets of one row."""
    targets = np.full_like(batch.targets, IGNORED)
    targets[row] = batch.targets[row]
    return Microbatch(batch.tokens, targets)


def test_accumulation_weights_tokens_not_sequences(restarted: Restarted) -> None:
    whole = _batch(3, (0, 5))
    halves = [_only(whole, row) for row in range(BATCH)]
    together = restarted()
    first = together.step([whole], lr=1e-3, max_grad_norm=0.0)
    gradients = {id: array.copy() for id, array in together.gradients().items()}
    apart = restarted()
    second = apart.step(halves, lr=1e-3, max_grad_norm=0.0)
    assert first.n_targets == second.n_targets == 7
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
    for id, array in apart.gradients().items():
        scale = np.abs(gradients[id]).max()
        np.testing.assert_allclose(array, gradients[id], rtol=0, atol=2e-6 * scale, err_msg=id)
    equal_weights = np.mean([restarted().step([half], lr=1e-3, max_grad_norm=0.0).loss
                             for half in halves])  # fmt: skip
    assert abs(equal_weights - first.loss) > 1e-3, "these halves would weigh differently"


def test_the_norm_is_that_before_clipping_and_clipping_bounds_the_step(
    restarted: Restarted,
) -> None:
    batch = _batch(4, (0, 0))
    session = restarted()
    free = session.step([batch], lr=1e-3, max_grad_norm=0.0)
    squares = sum(float((g.astype(np.float64) ** 2).sum()) for g in session.gradients().values())
    assert free.grad_norm == pytest.approx(np.sqrt(squares), rel=1e-6)
    clipped = restarted().step([batch], lr=1e-3, max_grad_norm=0.5 * free.grad_norm)
    assert clipped.grad_norm == free.grad_norm
    v = session.moments()["embed.weight@v"]
    halved = v.copy()
    restarted().step([batch], lr=1e-3, max_grad_norm=0.0)
    np.testing.assert_allclose(halved.max(), 0.25 * v.max(), rtol=1e-3)


def test_sgd_steps_against_the_gradient() -> None:
    sgd = OptimizerSpec(kind="sgd", weight_decay=0.1)
    built = training_program(FAMILY, CONFIG, batch=BATCH, tokens=TOKENS, optimizer=sgd, threads=2)
    session = TrainingSession(built.program, batch=BATCH, tokens=TOKENS)
    session.begin(_parameters())
    session.step([_batch(9, (0, 1))], lr=0.5, max_grad_norm=0.0)
    assert not session.moments()
    decay = {w.id: 0.1 * w.decay for w in FAMILY.weights(CONFIG)}
    for id, before in _parameters().items():
        gradient = session.gradients()[f"{id}@grad"] + decay[id] * before
        expected = before - 0.5 * gradient
        np.testing.assert_allclose(session.parameters()[id], expected, rtol=1e-5, atol=1e-7)


def test_a_step_repeats_bit_for_bit_and_learns(restarted: Restarted) -> None:
    batch = _batch(5, (0, 2))

    def run() -> tuple[list[float], str]:
        session = restarted()
        losses = [session.step([batch], lr=3e-3, max_grad_norm=1.0).loss for _ in range(8)]
        return losses, session.parameters_sha256()

    first, second = run(), run()
    assert first == second
    assert first[0][-1] < 0.7 * first[0][0]


def test_evaluation_changes_nothing(restarted: Restarted) -> None:
    session = restarted()
    before = session.parameters_sha256()
    batches = [_batch(6, (0, 1)), _batch(7, (3, 6))]
    loss = session.evaluate(batches)
    assert session.parameters_sha256() == before
    assert session.step(batches, lr=1e-3, max_grad_norm=1.0).loss == pytest.approx(loss, rel=1e-6)


def test_wrong_batches_and_parameters_are_refused(restarted: Restarted) -> None:
    session = restarted()
    with pytest.raises(UsageError, match="expected at least one target"):
        session.step([_batch(8, (TOKENS, TOKENS))], lr=1e-3, max_grad_norm=1.0)
    with pytest.raises(UsageError, match="expected shape"):
        session.step([_batch(8, (0,))], lr=1e-3, max_grad_norm=1.0)
    parameters = _parameters()
    parameters.pop("norm.weight")
    with pytest.raises(InputError, match=r"norm\.weight"):
        session.begin(parameters)
