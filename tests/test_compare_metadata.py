"""`lockstep compare`: what of the metadata a run goes by, and what a conversion made of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from converted_pair import compared
from model_directories import byte_level_directory, sentencepiece_directory
from tokenizers.processors import TemplateProcessing

from lockstep.cli.main import main
from lockstep.engine.export_gguf import export_gguf, gguf_metadata, gguf_tensors
from lockstep.engine.source import open_source
from lockstep.engine.text import open_tokenizer
from lockstep.formats.gguf_write import write_gguf

TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "hf"
    byte_level_directory(path, "qwen3")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def edited(path: Path, change: Callable[[dict], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def another_end(path: Path) -> None:
    edited(path / "tokenizer_config.json", lambda c: c.update(eos_token="[circle]"))


def one_in_front(path: Path) -> None:
    changes = {"add_bos_token": True, "bos_token": "[circle]"}
    edited(path / "tokenizer_config.json", lambda c: c.update(changes))


def another_template(path: Path) -> None:
    text = TEMPLATE.replace("m.content", "m.content.strip()")
    (path / "chat_template.jinja").write_text(text)


def no_template(path: Path) -> None:
    (path / "chat_template.jinja").unlink()


def swapped_tokens(path: Path) -> None:
    def swap(document: dict) -> None:
        vocab = document["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    edited(path / "tokenizer.json", swap)


def swapped_merges(path: Path) -> None:
    def swap(document: dict) -> None:
        merges = document["model"]["merges"]
        merges[3], merges[4] = merges[4], merges[3]

    edited(path / "tokenizer.json", swap)


def digits_split_one_by_one(path: Path) -> None:
    def split(document: dict) -> None:
        digits = {"type": "Digits", "individual_digits": True}
        whole = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                 "use_regex": True}  # fmt: skip
        steps = [digits, whole]
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    edited(path / "tokenizer.json", split)


def lost_piece(path: Path) -> None:
    def lose(document: dict) -> None:
        left, right = document["model"]["merges"].pop()
        del document["model"]["vocab"][left + right]

    edited(path / "tokenizer.json", lose)


FAULTS = {
    swapped_merges: "merge 3: ",
    digits_split_one_by_one: "texts are split as smollm, not as gpt-2",
    lost_piece: ": no text, not text",
    another_end: "eos_token_id: ",
    one_in_front: "tokens before a text: [",
    another_template: "chat template, character 35: '.strip() }}",
    no_template: "chat template: none, not one",
    swapped_tokens: "and 1 more: 'b', not 'a'",
}


def converted(original: Path, folder: Path, fault: Callable[[Path], None] | None) -> list[str]:
    """A GGUF file of the original, which had this fault when it was converted."""
    path = folder / "hf"
    shutil.copytree(original, path)
    if fault is not None:
        fault(path)
    export_gguf(open_source(str(path)), folder / "model.gguf", "F32")
    return [str(folder / "model.gguf"), str(original)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_text_that_a_conversion_changed_is_named(
    fault: Callable[[Path], None], original: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, found = compared(converted(original, tmp_path, fault), capfd)
    assert found["metadata"]["verdict"] == "fail"
    assert FAULTS[fault] in found["metadata"]["reason"]
    assert (code, found["comparison"]["first_guilty"]) == (1, None)


def test_a_control_token_that_became_text_is_named(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def marked(special: bool) -> Callable[[Path], None]:
        def mark(document: dict) -> None:
            for token in document["added_tokens"]:
                token["special"] = special or token["content"] != "[circle]"

        return lambda path: edited(path / "tokenizer.json", mark)

    before = tmp_path / "before"
    shutil.copytree(original, before)
    marked(True)(before)
    code, found = compared(converted(before, tmp_path, marked(False)), capfd)
    assert (code, found["comparison"]["first_guilty"]) == (1, None)
    assert "'[circle]': text, not a control token" in found["metadata"]["reason"]


def named(path: Path, changes: dict[str, object]) -> None:
    """Names other tokens in tokenizer_config.json, with [circle] as a control token."""

    def mark(document: dict) -> None:
        for token in document["added_tokens"]:
            token["special"] = True

    edited(path / "tokenizer.json", mark)
    edited(path / "tokenizer_config.json", lambda c: c.update(changes))


MISNAMED = {
    "bos_token": ({"bos_token": "[circle]"}, {"bos_token": "<eos>"}, "bos_token_id: "),
    "unk_token": ({"unk_token": "[circle]"}, {"unk_token": "<eos>"}, "unknown_token_id: "),
    "no unk_token": ({"unk_token": "[circle]"}, {}, "unknown_token_id: none, not "),
    "add_eos_token": ({"add_eos_token": True}, {}, "token behind a text: none, not "),
    "an end too many": ({}, {"add_eos_token": True}, "token behind a text: "),
}


@pytest.mark.parametrize("case", MISNAMED)
def test_a_token_that_a_conversion_names_wrongly_is_named(
    case: str, original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right, wrong, expected = MISNAMED[case]
    before = tmp_path / "before"
    shutil.copytree(original, before)
    named(before, {"bos_token": None, "unk_token": None, "add_eos_token": False, **right})
    fault = {"bos_token": None, "unk_token": None, "add_eos_token": False, **wrong}
    code, found = compared(converted(before, tmp_path, lambda path: named(path, fault)), capfd)
    assert (code, found["comparison"]["first_guilty"]) == (1, None)
    assert expected in found["metadata"]["reason"]


def around(*pieces: str) -> Callable[[Path], None]:
    """Has tokenizer.json put the tokens before and behind `$A` to a text."""

    def change(document: dict) -> None:
        ids = {token["content"]: token["id"] for token in document["added_tokens"]}
        named = [piece for piece in pieces if piece != "$A"]
        document["post_processor"] = TemplateProcessing(
            single=list(pieces), special_tokens=[(piece, ids[piece]) for piece in named]
        ).__getstate__()
        document["post_processor"] = json.loads(document["post_processor"])

    return lambda path: edited(path / "tokenizer.json", change)


def configured(**changes: object) -> Callable[[Path], None]:
    return lambda path: edited(path / "config.json", lambda c: c.update(changes))


# What directories say of their tokens, each of which llama.cpp's converter reads in its own way.
# Two have no template: theirs would write another end token, or none.
SPOKEN: dict[str, list[Callable[[Path], None]]] = {
    "all tokens": [lambda p: named(p, {"bos_token": "[circle]", "unk_token": "[circle]"})],
    "objects": [lambda p: named(p, {"bos_token": {"content": "[circle]", "special": True}})],
    "only config.json": [configured(bos_token_id=0), lambda p: named(p, {})],
    "no tokenizer_config.json": [
        configured(eos_token_id=3), no_template,
        lambda p: (p / "tokenizer_config.json").unlink(),
    ],
    "no added token": [lambda p: named(p, {"bos_token": "a", "unk_token": "b"})],
    "an end behind each text": [lambda p: named(p, {"add_eos_token": True})],
    "both around, said": [
        lambda p: named(p, {"bos_token": "[circle]", "add_bos_token": True, "add_eos_token": True})
    ],
    "both around, shown": [
        around("[circle]", "$A", "<eos>"),
        lambda p: named(p, {"bos_token": "[circle]", "add_bos_token": None, "add_eos_token": None}),
    ],
    "another one behind": [
        around("$A", "[circle]"),
        lambda p: named(p, {"add_bos_token": None, "add_eos_token": None}),
        no_template,
    ],
    "shown, and denied": [around("[circle]", "$A", "<eos>"), lambda p: named(p, {})],
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("case", SPOKEN)
def test_tokens_as_the_converter_of_llama_cpp_names_them_pass(
    case: str, original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its class SpecialVocab, of the package gguf, reads the directory; the rest is our export."""
    path = tmp_path / "hf"
    shutil.copytree(original, path)
    for change in SPOKEN[case]:
        change(path)
    source = open_source(str(path))
    metadata = gguf_metadata(source, "F32")
    theirs = gguf.SpecialVocab(path, n_vocab=source.model.config.vocab)
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "eot": "eot", "eom": "eom"}
    for name, key in keys.items():
        metadata.pop(f"tokenizer.ggml.{key}_token_id", None)
        if name in theirs.special_token_ids:
            metadata[f"tokenizer.ggml.{key}_token_id"] = theirs.special_token_ids[name]
    for name in ("bos", "eos"):
        metadata.pop(f"tokenizer.ggml.add_{name}_token", None)
        if name in theirs.add_special_token:
            metadata[f"tokenizer.ggml.add_{name}_token"] = theirs.add_special_token[name]
    write_gguf(tmp_path / "model.gguf", metadata, gguf_tensors(source, "F32"))
    code, found = compared([str(tmp_path / "model.gguf"), str(path)], capfd)
    assert (found["metadata"]["reason"], code) == ("", 0)


def with_ends(original: Path, path: Path, names: list[str]) -> list[int]:
    """A copy whose configuration has these tokens end an answer, too; their ids."""
    shutil.copytree(original, path)
    document = json.loads((path / "tokenizer.json").read_text())
    ids = {tag["content"]: tag["id"] for tag in document["added_tokens"]}
    ids |= document["model"]["vocab"]
    ends = [ids[name] for name in names]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return ends


def test_a_token_that_no_longer_ends_an_answer_is_named(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, file = tmp_path / "before", tmp_path / "model.gguf"
    ends = with_ends(original, before, ["[circle]", "a", "b"])
    source = open_source(str(before))
    metadata = gguf_metadata(source, "F32")
    del metadata["tokenizer.ggml.eos_token_ids"]  # which llama.cpp does not know
    write_gguf(file, metadata, gguf_tensors(source, "F32"))
    code, found = compared([str(file), str(before)], capfd)
    assert (code, found["comparison"]["first_guilty"]) == (1, None)
    reason = found["metadata"]["reason"].partition("tokens that end an answer: ")[2]
    ours, _, theirs = reason.partition(", not ")
    lost = set(json.loads(theirs)) - set(json.loads(ours))  # GGUF has other keys for three
    assert lost == {max(ends)}


@pytest.mark.torch
@pytest.mark.parametrize("names", [["[circle]", "a"], ["[circle]", "a", "b", "c"]])
def test_all_tokens_that_end_an_answer_are_kept_and_those_that_llama_cpp_loses_are_named(
    names: list[str], original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = with_ends(original, tmp_path / "before", names)
    command = ["export", str(tmp_path / "before"), "--to", "gguf", "-o", str(tmp_path / "m.gguf")]
    assert main([*command, "--json"]) == 0
    lost = json.loads(capfd.readouterr().out)["ends_lost_to_llama_cpp"]
    by_id = dict(zip(ends, names, strict=True))
    assert lost == [by_id[id] for id in sorted(ends)[2:]]
    assert set(ends) < open_tokenizer(open_source(str(tmp_path / "m.gguf"))).stop_ids
    code, found = compared([str(tmp_path / "m.gguf"), str(tmp_path / "before")], capfd)
    assert (code, found["metadata"]["reason"]) == (0, "")
    assert main([*command, "--force"]) == 0
    said = capfd.readouterr().out
    assert bool(lost) == ("llama.cpp will not end an answer at" in said)
    assert all(piece in said for piece in lost)


@pytest.mark.torch
def test_the_text_of_a_faithful_conversion_passes(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, found = compared(converted(original, tmp_path, None), capfd)
    assert (code, found["metadata"]["reason"]) == (0, "")
    assert found["metadata"]["compared"] > 5


@pytest.mark.torch
@pytest.mark.parametrize("make", ["gemma", "llama"])
def test_sentencepiece_of_a_faithful_conversion_passes(
    make: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original = sentencepiece_directory(tmp_path / "original", make)
    code, found = compared(converted(original, tmp_path, None), capfd)
    assert (code, found["metadata"]["verdict"]) == (0, "pass"), found["metadata"]["reason"]


@pytest.mark.torch
@pytest.mark.parametrize("make", ["gemma", "llama"])
def test_scores_in_another_order_than_the_merges_are_named(
    make: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def turned(path: Path) -> None:
        def turn(document: dict) -> None:
            document["model"]["merges"][-50:] = document["model"]["merges"][:-51:-1]

        edited(path / "tokenizer.json", turn)

    original = sentencepiece_directory(tmp_path / "original", make)
    code, found = compared(converted(original, tmp_path, turned), capfd)
    assert (code, found["comparison"]["first_guilty"]) == (1, None)
    assert "is merged before" in found["metadata"]["reason"]


def test_an_original_without_a_tokenizer_has_its_text_not_compared(
    original: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = converted(original, tmp_path, None)
    bare = tmp_path / "bare"
    shutil.copytree(original, bare)
    (bare / "tokenizer.json").unlink()
    code, found = compared([names[0], str(bare)], capfd)
    assert found["metadata"]["verdict"] == "pass"
    assert found["metadata"]["compared"] == 1
    assert "were not compared" in found["metadata"]["reason"]
    code, found = compared([str(bare), names[0]], capfd)
    assert code == 1
    assert "this has none that can be read" in found["metadata"]["reason"]
