"""Vocabularies that other people's trainers make, the GGUF files of them, and nasty texts."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models, trainers

from lockstep.oracle.llama_cpp import Post, ask_server
from lockstep.tokenizers.pre_tokenizers import pre_tokenizer

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<think>", "</think>", "<think", "[circle]")

NASTY = (
    *("", " ", "  ", "   a", "a   ", "\t\t\tx\t"),
    *("\n", "\n\n\n", "\r\n\r\n", " \n \n\t\n ", "\n a"),
    *("hello world", "Hello, WORLD!!", "it's we'll I'M they'RE don't 'tis '' ' s"),
    *("x'ſ 'S", "a''b"),
    *("0", "12345678901234", "1,234.50 3½ Ⅷ ٣٤٥ १२३ ²³"),
    *("v1.2.3-rc4", "0x0A <0x0A> <0xFF>"),
    *("😀👍🏽👩‍👩‍👧‍👦🏳️‍🌈", "a\u200db\u200c\u200b"),
    *("日本語のテキスト、中文。한국어", "ภาษาไทยไม่มีช่องว่าง"),
    *("مرحبا بالعالم، ١٢٣", "שלום עולם", "नमस्ते दुनिया"),
    *("e\u0301 é n\u0303 A\u030a\u0323", "ﬁ ﬂ Å Ω K"),
    *("\x00", "a\x00b\x01\x02\x7f\x80\x9f", "\u00a0\u2003\u3000x\u2028y\u2029z\x85"),
    *("\ufeffbom", "\ufffd"),
    *("▁", "▁▁ a▁b ▁", "Ġ Ċ ĠĠa"),
    *("\U0010ffff\U000e0001", "𝔘𝔫𝔦 𐍈 𠜎", "葛\U000e0100城市 a\U000e0101b"),
    *("<|im_end|>", "x<|im_start|>user\nhi<|im_end|>\n"),
    *("<|im_end", "<|endoftext|><|endoftext|>"),
    *("<think>a</think>", "<think <think>>", "a [circle]b"),
    *("<s></s><unk><pad>", "<bos><eos>"),
    *("a" * 300, "ab" * 200, " " * 129, "\n" * 65),
    *("=" * 200, "1" * 100, "é" * 70, "aA" * 50 + "!"),
    *("def f(x):\n    return x**2  # ok\n", '{"a": [1, 2, {"b": null}]}'),
    *("http://x.y/z?q=1&r=%20#f",),
    *("...!?;:", "a.b,c;d", "$5 €6 ^~`|+<=>", "(a)[b]{c}"),
    *("—–-‐ “q” ‘r’ «s»", "_a__b___", "C++ C# .NET"),
)  # fmt: skip


def nasty_texts() -> list[str]:
    """The listed texts and some that are drawn from their parts."""
    draw = random.Random(7)
    parts = [p for text in NASTY if len(text) < 60 for p in (text, *text.split(" ")) if p]
    mixed = ["".join(draw.choices(parts, k=draw.randint(2, 9))) for _ in range(120)]
    return [*NASTY, *mixed]


def corpus(n_lines: int = 1500) -> Iterator[str]:
    """Lines of made-up words in many scripts, with numbers, code and marks between them."""
    draw = random.Random(3)
    scripts = (
        *("abcdefghijklmnoprstuvwyz", "abcdefghilmnoprstu", "ABCDEFGHIJ", "абвгдежзиклмн"),
        *("日本語中文字漢", "กขคงจชญฐไมวรยน", "ابتثجحخدرس", "नमसतदयक", "한국어가나다"),
        *("éèüñçøå", "0123456789", "😀👍🏽\u200d"),
    )  # fmt: skip
    words = [
        "".join(draw.choices(alphabet, k=draw.randint(1, 7)))
        for alphabet in scripts
        for _ in range(40)
    ]
    words += [
        "it's",
        "don't",
        "hello",
        "world",
        "return",
        "def",
        "=",
        "==",
        "();",
        "...",
        "\t",
        "—",
    ]
    weights = [1 / (1 + draw.randint(0, 60)) for _ in words]
    for _ in range(n_lines):
        line = draw.choices(words, weights, k=draw.randint(1, 14))
        yield draw.choice((" ", " ", " ", "  ", "", "\n", "\n    ")).join(line) + draw.choice(
            "..?!\n"
        )


def bpe_metadata(splitter: Any, pre: str, vocab_size: int = 1200) -> dict[str, Any]:
    """What a GGUF file says of a byte-level BPE that the library trains."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    trained.train_from_iterator(corpus(), trainer)
    model = _model(trained)
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    n = len(pieces)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*pieces, *CONTROLS, *USER_DEFINED],
        "tokenizer.ggml.token_type": [1] * n + [3] * len(CONTROLS) + [4] * len(USER_DEFINED),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": n + 2,
        "tokenizer.ggml.bos_token_id": n,
        "tokenizer.ggml.add_bos_token": False,
    }


def _model(trained: Any) -> Any:
    return json.loads(trained.to_str())["model"]


def sentencepiece_model(*, gemma: bool, vocab_size: int = 1500) -> bytes:
    """A SentencePiece BPE with byte fallback, as Llama's or as Gemma's is set up."""
    out = io.BytesIO()
    runs = ["▁" * n for n in range(2, 9)] + ["\n" * n for n in range(1, 6)] if gemma else []
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, model_type="bpe",
        vocab_size=vocab_size, byte_fallback=True, character_coverage=0.995,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=not gemma, allow_whitespace_only_pieces=True, split_digits=True,
        max_sentence_length=100_000, minloglevel=2, num_threads=1,
        user_defined_symbols=[*runs, *(["<table>"] if gemma else [])],
        control_symbols=["<start_of_turn>", "<end_of_turn>"] if gemma else [],
        **({"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>",
            "eos_piece": "<eos>", "bos_piece": "<bos>"} if gemma else {}),
    )  # fmt: skip
    return out.getvalue()


def sentencepiece_metadata(model: bytes, *, gemma: bool) -> dict[str, Any]:
    """What llama.cpp's converter writes of a SentencePiece model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    pieces = [
        # The converter spells the blanks of user-defined pieces as blanks.
        p.piece.replace("▁", " ") if p.type == 4 else p.piece
        for p in proto.pieces
    ]
    spec = proto.trainer_spec
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [p.score for p in proto.pieces],
        "tokenizer.ggml.token_type": [int(p.type) for p in proto.pieces],
        "tokenizer.ggml.bos_token_id": spec.bos_id,
        "tokenizer.ggml.eos_token_id": spec.eos_id,
        "tokenizer.ggml.unknown_token_id": spec.unk_id,
        "tokenizer.ggml.add_space_prefix": not gemma,
    }


def write_hf_tokenizer(make: str, path: Path) -> Path:
    """A directory as transformers writes it for a tokenizer of this make."""
    transformers = pytest.importorskip("transformers")
    if make in ("gemma", "llama"):
        from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

        path.mkdir()
        model = path.parent / f"{make}.model"
        model.write_bytes(sentencepiece_model(gemma=make == "gemma"))
        vocab, _, merges = SentencePieceExtractor(str(model)).extract()
        kind = transformers.GemmaTokenizer if make == "gemma" else transformers.LlamaTokenizer
        theirs = kind(vocab=vocab, merges=merges)
    else:
        facts = bpe_metadata(pre_tokenizer(make), make)
        pieces = facts["tokenizer.ggml.tokens"][: -len(CONTROLS) - len(USER_DEFINED)]
        kind = transformers.Qwen2Tokenizer if make == "qwen2" else transformers.GPT2Tokenizer
        theirs = kind(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=[tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]],
            **dict.fromkeys(("unk_token", "bos_token", "eos_token", "pad_token"), CONTROLS[0]),
        )
    theirs.add_special_tokens({"additional_special_tokens": list(CONTROLS[1:])}, False)
    theirs.add_tokens(list(USER_DEFINED))
    theirs.save_pretrained(path)
    return path


def prepend_blanks(path: Path) -> None:
    """Makes a directory put a blank in front of each text, as those of Llama 2 do."""
    file = path / "tokenizer.json"
    document = json.loads(file.read_text())
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepended = {"type": "Prepend", "prepend": "▁"}
    document["pre_tokenizer"] = None
    document["normalizer"] = {"type": "Sequence", "normalizers": [prepended, replaced]}
    for token in document["added_tokens"]:  # else each has to be found behind a blank
        token["normalized"] = False
    file.write_text(json.dumps(document))


def write_gguf(path: Path, metadata: dict[str, Any], chat_template: str | None = None) -> Path:
    """A file that llama.cpp opens: this tokenizer, and one layer of random weights."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    n_vocab, width = len(metadata["tokenizer.ggml.tokens"]), 32
    writer.add_block_count(1)
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(width)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width)
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, width), "output.weight": (n_vocab, width),
        "output_norm.weight": (width,), "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        **{f"blk.0.{name}.weight": (width, width) for name in square},
    }  # fmt: skip
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def differing(texts: Sequence[str], ours: Iterable[Any], theirs: Iterable[Any]) -> list[str]:
    """Which texts were answered differently, and how."""
    answers = zip(texts, ours, theirs, strict=True)
    return [f"{text!r:.70}: ours {a!s:.90}, theirs {b!s:.90}" for text, a, b in answers if a != b]


def ask_llama_cpp(path: Path, posts: Sequence[Post]) -> list[Any]:
    """What llama.cpp's server answers."""
    pytest.importorskip("xllamacpp", reason="llama.cpp is in the extra dev")
    answers: list[Any] = ask_server(path, 512, posts)["answers"]
    return answers
