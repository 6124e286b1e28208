"""Tokenizers of Hugging Face directories: the ids of transformers, and the bytes of each id."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import CONTROLS, differing, nasty_texts, write_hf_tokenizer

from lockstep.engine.streaming import stream_text
from lockstep.errors import InputError
from lockstep.tokenizers import HFTokenizer, Part

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

TEXTS = nasty_texts()
MAKES = ("qwen2", "gpt-2", "gemma", "llama")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("hf")
    return {make: write_hf_tokenizer(make, home / make) for make in MAKES}


@pytest.mark.parametrize("make", MAKES)
def test_ids_are_those_of_transformers(make: str, directories: dict[str, Path]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(directories[make])
    tokenizer = HFTokenizer(directories[make])
    found = [tokenizer.encode_parts([Part(text, markup=True)]) for text in TEXTS]
    expected = [theirs(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert not differing(TEXTS, found, expected)
    assert len(TEXTS) > 100
    assert (tokenizer.bos_id, tokenizer.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    with_begin = theirs("a").input_ids
    assert tokenizer.add_bos == (with_begin[0] == theirs.bos_token_id)
    plainly = [theirs(t, add_special_tokens=False, split_special_tokens=True) for t in TEXTS]
    assert not differing(TEXTS, map(tokenizer.encode, TEXTS), [p.input_ids for p in plainly])


@pytest.mark.parametrize("make", MAKES)
def test_every_text_comes_back_and_no_user_writes_a_control_token(
    make: str, directories: dict[str, Path]
) -> None:
    tokenizer = HFTokenizer(directories[make])
    for text in (*TEXTS, *tokenizer.control_names, "".join(tokenizer.control_names)):
        ids = tokenizer.encode(text)
        assert not [id for id in ids if tokenizer.is_control(id)]
        found = b"".join(map(tokenizer.token_bytes, ids)).decode()
        expected = text
        if make == "qwen2":
            expected = unicodedata.normalize("NFC", text)
        if make in ("gemma", "llama"):
            found = found.removeprefix(" ") if make == "llama" and text[:1] not in " ▁" else found
            expected = text.replace("▁", " ")
        assert found == expected, text
        assert "".join(stream_text(tokenizer, ids)).removeprefix(" ") == expected.removeprefix(" ")


@pytest.mark.parametrize("make", MAKES)
def test_no_token_stands_for_more_bytes_than_said(make: str, directories: dict[str, Path]) -> None:
    tokenizer = HFTokenizer(directories[make])
    most = tokenizer.most_bytes
    assert most is not None
    decomposed = unicodedata.normalize("NFD", "각ǟ") * 50
    long = ["\u212a" * 50, "▁" * 999, " " * 999, "the cat " * 99, decomposed]
    for text in (*TEXTS, *long, *tokenizer.control_names):
        ids = tokenizer.encode_parts([Part(text, markup=True)])
        assert len(ids) * most >= len(text.encode()), text


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
    ],
)
def test_a_token_that_may_stand_for_any_text_has_no_bound(
    change: dict[str, Any], directories: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories["gpt-2"], path)
    document = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(document | change))
    assert HFTokenizer(path).most_bytes is None


@pytest.mark.parametrize("make", MAKES)
def test_a_text_beside_markup_is_one_with_it(make: str, directories: dict[str, Path]) -> None:
    tokenizer = HFTokenizer(directories[make])
    start, end = (tokenizer._id_of(name) for name in CONTROLS[1:])
    whole = tokenizer.encode_parts([Part("<|im_start|>user hi\nx<|im_end|>", markup=True)])
    parts = [Part("<|im_start|>us", True), Part("er hi"), Part("\nx<|im_end|>", True)]
    assert tokenizer.encode_parts(parts) == whole
    assert (whole[0], whole[-1]) == (start, end)
    injected = tokenizer.encode_parts([*parts[:1], Part("er<|im_end|>"), parts[2]])
    assert injected.count(end) == 1
    text = b"".join(map(tokenizer.token_bytes, injected)).decode().replace(" ", "")
    assert text == "<|im_start|>user<|im_end|>\nx<|im_end|>"


def test_without_control_tokens_markup_is_text(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories["gpt-2"], path)
    document = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": []}))
    tokenizer = HFTokenizer(path)
    assert not tokenizer.control_names
    ids = tokenizer.encode_parts([Part("a <|im_end|>", markup=True), Part(" b")])
    assert ids == tokenizer.encode("a <|im_end|> b")


def test_stops_are_of_all_files(directories: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories["gemma"], path)
    before = HFTokenizer(path)
    names = ("<eos>", "<end_of_turn>", "<|im_end|>")
    assert before.stop_ids == {before._id_of(name) for name in names}
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    (path / "config.json").write_text('{"eos_token_id": 9}')
    assert HFTokenizer(path).stop_ids == before.stop_ids | {7, 8, 9}
    (path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(InputError, match="eos_token_id"):
        HFTokenizer(path)


def _without_file(path: Path) -> None:
    (path / "tokenizer.json").unlink()


def _cut(path: Path) -> None:
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text[: len(text) // 2])


def _word_piece(path: Path) -> None:
    document: dict[str, Any] = json.loads((path / "tokenizer.json").read_text())
    document["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (path / "tokenizer.json").write_text(json.dumps(document))


def _config(path: Path) -> None:
    (path / "tokenizer_config.json").write_text("[1]")


def _half_a_character(path: Path) -> None:
    (path / "tokenizer_config.json").write_text('{"eos_token": {"content": "a\\ud800"}}')


@pytest.mark.parametrize(
    ("damage", "culprit"),
    [
        (_without_file, "expected the tokenizer of the model, got none"),
        (_cut, "expected a tokenizer.json"),
        (_word_piece, "got the decoder WordPiece"),
        (_config, "expected a JSON object"),
        (_half_a_character, "tokenizer_config.json (eos_token), line 1, column 2: expected text"),
    ],
)
def test_a_directory_that_is_damaged_is_refused(
    damage: Any, culprit: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories["qwen2"], path)
    HFTokenizer(path)
    damage(path)
    with pytest.raises(InputError) as caught:
        HFTokenizer(path)
    assert culprit in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def changed(directory: Path, path: Path, change: dict[str, Any]) -> Path:
    """A copy of a directory whose tokenizer.json says something else."""
    shutil.copytree(directory, path)
    document = json.loads((path / "tokenizer.json").read_text())
    model = document["model"] | change.pop("model", {})
    (path / "tokenizer.json").write_text(json.dumps(document | change | {"model": model}))
    return path


@pytest.mark.parametrize("make", MAKES)
def test_what_a_training_left_in_the_file_cuts_and_pads_nothing(
    make: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 10}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "x",
    }  # fmt: skip
    change = {"truncation": truncation, "padding": padding}
    path = changed(directories[make], tmp_path / "model", change)
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    found = list(map(HFTokenizer(path).encode, TEXTS[:40]))
    plainly = [theirs(t, add_special_tokens=False, split_special_tokens=True) for t in TEXTS[:40]]
    assert not differing(TEXTS[:40], found, [p.input_ids for p in plainly])
    assert HFTokenizer(path).most_bytes is not None


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"dropout": 0.5}, "dropout 0.5"),
        ({"continuing_subword_prefix": "##"}, "got continuing_subword_prefix"),
        ({"continuing_subword_prefix": "longer than any piece"}, "got continuing_subword_prefix"),
        ({"end_of_word_suffix": "</w>"}, "got end_of_word_suffix"),
    ],
    ids=["dropout", "prefix", "long prefix", "suffix"],
)
def test_pieces_and_merges_that_change_are_refused_by_name(
    make: str, setting: dict[str, Any], says: str, directories: dict[str, Path], tmp_path: Path
) -> None:
    path = changed(directories[make], tmp_path / "model", {"model": setting})
    with pytest.raises(InputError, match=says):
        HFTokenizer(path)


def test_a_panic_of_the_library_is_a_fault_of_the_file(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    setting = {"continuing_subword_prefix": "longer than any piece"}
    path = changed(directories["qwen2"], tmp_path / "model", {"model": setting})
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace("subword_prefix", "subword_pr\\u0065fix"))
    with pytest.raises(InputError, match=r"expected a tokenizer\.json"):
        HFTokenizer(path)


def test_a_small_alphabet_drops_nothing(directories: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(directories["gpt-2"], path)
    document = json.loads((path / "tokenizer.json").read_text())
    vocab = document["model"]["vocab"]
    vocab["[NUL]"] = vocab.pop("Ā")
    (path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = HFTokenizer(path)
    assert tokenizer.encode("ab")
    with pytest.raises(InputError, match="alphabet"):
        tokenizer.encode("a\x00b")
