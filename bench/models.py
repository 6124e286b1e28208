"""Makes models with drawn weights at the shapes that people run, through transformers.

python bench/models.py FOLDER [--models qwen3-0.6b,...] [--types F32,Q8_0] [--tiny]

Writes a Hugging Face directory FOLDER/NAME-hf and FOLDER/NAME-TYPE.gguf for each type. Weights
depend on the seed and on their names alone. Types other than F32 are written by llama.cpp's own
quantiser, so they need an interpreter with llama-cpp-python: this one, or `--llama-python PATH`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_tensors import ARCHITECTURES, HAS_GAINS_PLUS_ONE, Floats, stored
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
SEED = 1234
END = "<|endoftext|>"
N_LEARNED = 2048  # entries of the vocabulary that text uses; the rest is there for its size
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Shape:
    """A class of transformers with the settings of a published model, and what tiny changes."""

    model_class: str
    settings: dict[str, Any]
    tiny: dict[str, Any] = field(default_factory=dict)


COMMON = {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "rms_norm_eps": 1e-6}
TINY = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048,
}  # fmt: skip


def qwen35_rope(sections: list[int]) -> dict[str, Any]:
    """A quarter of each head turns, in three interleaved sections."""
    return {
        "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        "mrope_section": sections, "mrope_interleaved": True,
    }  # fmt: skip


SHAPES = {
    "qwen3-0.6b": Shape(
        "Qwen3ForCausalLM",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
         "vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 40960},
        {"head_dim": 64},
    ),
    "qwen2-0.5b": Shape(
        "Qwen2ForCausalLM",
        {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
         "rope_theta": 1e6, "max_position_embeddings": 32768},
    ),
    "gemma3-270m": Shape(
        "Gemma3ForCausalLM",
        {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
         "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
         "vocab_size": 262144, "rope_theta": 1e6, "max_position_embeddings": 32768,
         "sliding_window": 512, "query_pre_attn_scalar": 256, "pad_token_id": 0},
        {"num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 32,
         "query_pre_attn_scalar": 64},
    ),
    "qwen3.5-0.8b": Shape(
        "Qwen3_5ForCausalLM",
        {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
         "vocab_size": 248320, "max_position_embeddings": 262144, "linear_conv_kernel_dim": 4,
         "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
         "linear_num_value_heads": 16, "rope_parameters": qwen35_rope([11, 11, 10])},
        {"num_hidden_layers": 4, "head_dim": 128, "linear_key_head_dim": 64,
         "linear_value_head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
         "rope_parameters": qwen35_rope([6, 5, 5])},
    ),
    "llama-135m": Shape(
        "LlamaForCausalLM",
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
         "rope_theta": 1e5, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192},
    ),
}  # fmt: skip


def drawn(name: str, shape: tuple[int, ...], config: Any, seed: int) -> Floats:
    """The weights of one parameter, by its role: scales at which signals neither die nor explode.

    Matrices that add to the residual are smaller by the root of their number, so that an error of
    one layer is not magnified by those above it. Source: GPT-2.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    if name.endswith(".A_log"):
        return np.log(rng.uniform(0.25, 2.0, shape)).astype(np.float32)
    if name.endswith(".dt_bias"):  # the inverse of softplus of steps between 0.001 and 0.1
        step = np.exp(rng.uniform(math.log(1e-3), math.log(1e-1), shape))
        return (step + np.log(-np.expm1(-step))).astype(np.float32)
    is_gain = name.endswith("norm.weight")
    kind = config.model_type
    if is_gain or name.endswith(".bias"):
        scale = 0.1
    elif ".conv1d." in name:
        scale = 0.6
    elif ".embed_tokens." in name:
        scale = 0.02 if kind == "gemma3_text" else 0.06
    elif name.endswith(("o_proj.weight", "down_proj.weight", "out_proj.weight")):
        scale = 0.02 / math.sqrt(2 * config.num_hidden_layers)
    else:
        scale = 0.02
    values = rng.standard_normal(shape, np.float32)
    values *= np.float32(scale)
    is_plus_one = kind in HAS_GAINS_PLUS_ONE and "linear_attn" not in name
    return values + np.float32(1) if is_gain and not is_plus_one else values


def model(shape: Shape, *, tiny: bool, seed: int) -> Any:
    """The model of transformers with its drawn weights."""
    model_class = getattr(transformers, shape.model_class)
    settings = {**COMMON, **shape.settings, **({**TINY, **shape.tiny} if tiny else {})}
    config = model_class.config_class(**settings)
    made = model_class(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():  # a tied head is listed once
            parameter.copy_(torch.from_numpy(drawn(name, tuple(parameter.shape), config, seed)))
    return made.eval()


def tokenizer(n_entries: int, seed: int) -> Tokenizer:
    """Byte-level BPE learned from made-up words, with unused entries up to the size asked for."""
    whole = json.loads(learned(min(N_LEARNED, n_entries), seed))
    vocabulary = whole["model"]["vocab"]
    for i in range(len(vocabulary), n_entries):
        vocabulary[f"<unused{i}>"] = i
    return Tokenizer.from_str(json.dumps(whole))


@cache
def learned(n_entries: int, seed: int) -> str:
    """What is learned, as JSON: once for all models that are made."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choice(syllables, size=rng.integers(1, 4))) for _ in range(3000)]
    text = (" ".join(rng.choice(words, size=40)) + ".\n" for _ in range(2000))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_entries,
        show_progress=False,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(text, trainer)
    return str(made.to_str())


def write_hf(made: Any, words: Tokenizer, folder: Path) -> None:
    """A directory as transformers writes it."""
    made.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


def write_gguf(made: Any, words: Tokenizer, name: str, path: Path) -> None:
    """A float32 file as llama.cpp's converter writes it."""
    config = made.config
    architecture = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, config)
    add_tokenizer(writer, words)
    for parameter, values in made.named_parameters():
        how = stored(parameter, config)
        writer.add_tensor(how.name, how.to_gguf(values.detach().numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    """The sizes of the model and how its positions are encoded."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config.model_type != "qwen2":
        writer.add_key_length(head)
        writer.add_value_length(head)
    if config.model_type == "llama":
        writer.add_rope_dimension_count(head)
        writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    if config.model_type == "qwen3_5_text":
        assert config.linear_num_key_heads == config.linear_num_value_heads
        writer.add_rope_dimension_count(int(head * rope["partial_rotary_factor"]))
        writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
        writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)


def add_tokenizer(writer: gguf.GGUFWriter, words: Tokenizer) -> None:
    """The vocabulary with the kinds of its entries, and the merges."""
    whole = json.loads(words.to_str())["model"]
    entries = sorted(whole["vocab"], key=whole["vocab"].get)
    kinds = [
        gguf.TokenType.UNUSED if e.startswith("<unused") else gguf.TokenType.NORMAL for e in entries
    ]
    kinds[words.token_to_id(END)] = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # whose pattern SPLIT is
    writer.add_token_list(entries)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in whole["merges"]])
    writer.add_bos_token_id(words.token_to_id(END))
    writer.add_eos_token_id(words.token_to_id(END))
    writer.add_add_bos_token(False)


def make(name: str, options: argparse.Namespace) -> None:
    """One model in all its types."""
    shape = SHAPES[name]
    label = f"{name}-tiny" if options.tiny else name
    plain = options.folder / f"{label}-F32.gguf"
    made = model(shape, tiny=options.tiny, seed=options.seed)
    words = tokenizer(made.config.vocab_size, options.seed)
    write_hf(made, words, options.folder / f"{label}-hf")
    write_gguf(made, words, label, plain)
    print(plain, flush=True)
    del made
    for kind in options.types.split(","):
        if kind != "F32":
            path = options.folder / f"{label}-{kind}.gguf"
            command = [options.llama_python, str(HERE / "quantise.py"), plain, path, kind]
            subprocess.run(command, check=True)
            print(path, flush=True)


def main() -> None:
    """Makes what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--types", default="F32,F16,Q8_0,Q5_K_M,Q4_K_M")
    parser.add_argument("--tiny", action="store_true", help="few and small layers, all parts there")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--llama-python", default=sys.executable, help="has llama-cpp-python")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        make(name, options)


if __name__ == "__main__":
    main()
