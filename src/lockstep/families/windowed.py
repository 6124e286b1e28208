"""Qwen's sliding windows: the first layers see every position, the others the last few only."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.errors import InputError, UsageError
from lockstep.families.decoder import MAX_LAYERS, MAX_SIZE, DecoderConfig
from lockstep.families.keys import AGAIN, WISH, Keys

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedConfig(DecoderConfig):
    """A decoder whose layers from `windowed_from` on see `window` positions; 0: all see all."""

    window: int = 0
    windowed_from: int = 0

    def __post_init__(self) -> None:
        DecoderConfig.__post_init__(self)
        for name, most in (("window", MAX_SIZE), ("windowed_from", self.layers)):
            size = getattr(self, name)
            if not isinstance(size, int) or not 0 <= size <= most:
                raise UsageError(
                    f"config {name}: expected a whole number from 0 to {most}, got {size!r:.40}",
                    hint="choose a number in this range",
                )

    def window_of(self, layer: int) -> int:
        """How many positions a layer sees; 0 is all."""
        return self.window if layer >= self.windowed_from else 0

    @property
    def layer_types(self) -> list[str]:
        """What Hugging Face calls each layer."""
        return [SLIDING if self.window_of(i) else FULL for i in range(self.layers)]


def hf_window(keys: Keys, layers: int) -> dict[str, int]:
    """The fields of a window from a Hugging Face config.

    Raises: InputError if a layer without a window follows one that has it.
    """
    layers = min(layers, MAX_LAYERS)
    is_on = keys.take("use_sliding_window", bool, False)
    # What transformers takes where the key is not there; null is no window.
    window = keys.take("sliding_window", int, 0 if "sliding_window" in keys else 4096)
    if is_on and keys.take("sliding_window", int, 1) < 1:
        raise InputError(
            f"{keys.where} sliding_window: expected at least 1, as use_sliding_window is on, "
            f"got {window}",
            hint=AGAIN,
        )
    first = min(keys.take("max_window_layers", int, 28), layers)
    types = keys.take_list("layer_types")
    if types is not None and is_on:
        first = next((i for i, kind in enumerate(types) if kind != FULL), layers)
    if not is_on or not window or first == layers:
        window = first = 0
    expected = [SLIDING if window and i >= first else FULL for i in range(layers)]
    if types not in (None, expected):
        raise InputError(
            f"{keys.where} layer_types: expected {first or layers} times {FULL}, then {SLIDING} "
            f"where a window is on, got {', '.join(map(str, types or []))!s:.80}",
            hint=WISH,
        )
    return {"window": window, "windowed_from": first}


def hf_window_keys(config: WindowedConfig) -> dict[str, object]:
    """What a Hugging Face config holds of a window."""
    if not config.window:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": config.window,
        "max_window_layers": config.windowed_from,
        "layer_types": config.layer_types,
    }


def no_gguf_window(config: WindowedConfig, arch: str) -> None:
    """Refuses to write a window: llama.cpp reads no key of one for these architectures.

    Source: src/models/qwen2.cpp and qwen3.cpp of https://github.com/ggml-org/llama.cpp, whose
    layers share a cache of all positions.
    Raises: UsageError naming the layers that have one.
    """
    if config.window:
        raise UsageError(
            f"export: expected {arch} layers that see every position, got layers "
            f"{config.windowed_from} to {config.layers - 1} that see the last {config.window}: "
            f"llama.cpp reads no window for {arch}, whatever key a file has, so that there they "
            "would see all",
            hint="export with --to hf or --to c, which keep the window",
        )


def gguf_window(keys: Keys, arch: str, context: int) -> dict[str, str]:
    """Insists that a file names no window that hides a position of its context.

    Returns the key that then means nothing, with the reason.
    Raises: InputError, because llama.cpp lets these layers see all, and the trainer did not.
    """
    key = f"{arch}.attention.sliding_window"
    window = keys.take(key, int, 0)
    if 0 < window < context:
        raise InputError(
            f"{keys.where} {key}: expected none below the context of {context}, got {window}: "
            f"llama.cpp reads no window for {arch}, and which layers have it is not said",
            hint="run the Hugging Face directory of the model, whose config.json says it",
        )
    return {f"{arch}.attention.sliding_window_pattern": "of windows that hide nothing"}
