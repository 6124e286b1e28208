"""Reading and writing the settings that the configs of all dense decoders share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lockstep.errors import InputError
from lockstep.families.decoder import Activation, DecoderConfig
from lockstep.families.keys import AGAIN, Keys
from lockstep.families.rope import Scaling
from lockstep.families.rope_config import (
    gguf_scaling,
    gguf_scaling_keys,
    hf_rope,
    hf_scaling_keys,
)
from lockstep.families.source import TensorSource

ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Keys of a Hugging Face config that do not change what the model computes.
HF_IGNORED = {
    "_name_or_path": "where it was loaded from",
    "architectures": "the class is known from model_type",
    "bos_token_id": "the tokenizer's business",
    "chunk_size_feed_forward": "how transformers runs it",
    "dtype": "weights are read as float32 whatever they are stored as",
    "eos_token_id": "the tokenizer's business",
    "id2label": "only for classifiers",
    "initializer_range": "only for new weights",
    "is_encoder_decoder": "none of these is one",
    "label2id": "only for classifiers",
    "model_type": "chose the family",
    "output_attentions": "how transformers runs it",
    "output_hidden_states": "how transformers runs it",
    "pad_token_id": "padding is never fed",
    "problem_type": "only for classifiers",
    "return_dict": "how transformers runs it",
    "torch_dtype": "the older name of dtype",
    "transformers.js_config": "how transformers.js runs it",
    "transformers_version": "who wrote it",
    "use_cache": "how transformers runs it",
}


def hf_settings(
    keys: Keys,
    *,
    head_dim: int | None,
    tied: bool = False,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    rope: Callable[[Keys, int], tuple[float, Scaling | None]] = hf_rope,
) -> dict[str, Any]:
    """The fields of `DecoderConfig` from a Hugging Face config.

    `head_dim` and `tied` are the class's defaults, `activation` its key for that and the default;
    `rope` reads theta and scaling of a context.
    Raises: InputError naming the key that is missing, of another type or not supported.
    """
    width, heads = keys.take("hidden_size", int), keys.take("num_attention_heads", int)
    keys.only("attention_dropout", 0.0, 0)
    keys.only(activation[0], *ACTIVATIONS)
    context = keys.take("max_position_embeddings", int)
    theta, scaling = rope(keys, context)
    return {
        "vocab": keys.take("vocab_size", int),
        "width": width,
        "ffn": keys.take("intermediate_size", int),
        "layers": keys.take("num_hidden_layers", int),
        "heads": heads,
        "kv_heads": keys.take("num_key_value_heads", int, heads),
        "head_dim": keys.take("head_dim", int, head_dim or width // max(heads, 1)),
        "context": context,
        "eps": keys.take("rms_norm_eps", float, 1e-6),
        "theta": theta,
        "tied": keys.take("tie_word_embeddings", bool, tied),
        "activation": ACTIVATIONS[keys.take(activation[0], str, activation[1])],
        "scaling": scaling,
    }


def hf_keys(config: DecoderConfig) -> dict[str, object]:
    """The Hugging Face keys of the shared settings.

    Rope is written as before transformers 5, which later versions read as well.
    """
    names: dict[Activation, str] = {ours: hf for hf, ours in ACTIVATIONS.items()}
    keys: dict[str, object] = {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.eps,
        "rope_theta": config.theta,
        "tie_word_embeddings": config.tied,
        "hidden_act": names[config.activation],
        "attention_dropout": 0.0,
    }
    if config.scaling is not None:
        keys["rope_scaling"] = hf_scaling_keys(config.scaling)
    return keys


def gguf_settings(keys: Keys, arch: str, source: TensorSource) -> dict[str, Any]:
    """The fields of `DecoderConfig` from GGUF metadata; what it leaves out, the tensors show.

    Raises: InputError naming the key that is missing, of another type or not supported.
    """
    if len(source.shapes.get("token_embd.weight", ())) != 2:
        raise InputError(f"{keys.where}: expected a matrix token_embd.weight, got none", hint=AGAIN)
    vocab, width = source.shapes["token_embd.weight"]
    heads = keys.take(f"{arch}.attention.head_count", int)
    head_dim = keys.take(f"{arch}.attention.key_length", int, width // max(heads, 1))
    context = keys.take(f"{arch}.context_length", int)
    keys.only(f"{arch}.attention.value_length", head_dim)
    keys.only(f"{arch}.attention.causal", True)
    keys.only(f"{arch}.rope.dimension_count", head_dim)
    keys.only(f"{arch}.vocab_size", vocab)
    keys.only(f"{arch}.embedding_length", width)
    return {
        "vocab": vocab,
        "width": width,
        "ffn": keys.take(f"{arch}.feed_forward_length", int),
        "layers": keys.take(f"{arch}.block_count", int),
        "heads": heads,
        "kv_heads": keys.take(f"{arch}.attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "context": context,
        "eps": keys.take_f32(f"{arch}.attention.layer_norm_rms_epsilon"),
        "theta": keys.take_f32(f"{arch}.rope.freq_base", 10000.0),
        "tied": "output.weight" not in source.shapes,
        "scaling": gguf_scaling(keys, arch, context),
    }


def gguf_keys(config: DecoderConfig, arch: str) -> dict[str, object]:
    """The GGUF metadata of the shared settings."""
    return {
        "general.architecture": arch,
        f"{arch}.block_count": config.layers,
        f"{arch}.context_length": config.context,
        f"{arch}.embedding_length": config.width,
        f"{arch}.feed_forward_length": config.ffn,
        f"{arch}.attention.head_count": config.heads,
        f"{arch}.attention.head_count_kv": config.kv_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.value_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.eps,
        f"{arch}.rope.dimension_count": config.head_dim,
        f"{arch}.rope.freq_base": config.theta,
        **gguf_scaling_keys(config.scaling, arch),
    }


def architecture_keys(arch: str, metadata: Mapping[str, object]) -> Keys:
    """The metadata keys that describe the graph; the others are the tokenizer's or about the file.

    Raises: InputError if the file holds another architecture.
    """
    if metadata.get("general.architecture") != arch:
        found = metadata.get("general.architecture")
        raise InputError(
            f"gguf general.architecture: expected {arch!r}, got {found!r:.60}", hint=AGAIN
        )
    own = {k: v for k, v in metadata.items() if k.startswith(f"{arch}.")}
    return Keys("gguf metadata", own)
