"""A tiny model with random weights that one can talk to, as transformers writes it."""

from __future__ import annotations

from pathlib import Path

import transformers
from tokenizer_files import write_hf_tokenizer

TEMPLATES = Path(__file__).parent / "chat_templates"


def write_chat_model(path: Path, *, template: str | None = "qwen3", context: int = 8192) -> Path:
    """A Hugging Face directory: Qwen3 of two layers, the tokenizer of the tests, a template."""
    import torch

    write_hf_tokenizer("qwen2", path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
        max_position_embeddings=context, initializer_range=0.3,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )  # fmt: skip
    transformers.Qwen3ForCausalLM(config).save_pretrained(path)
    if template is not None:
        source = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
        (path / "chat_template.jinja").write_text(source, encoding="utf-8")
    return path
