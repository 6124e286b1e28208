"""Qwen's sliding windows: the first layers see every position, the others the last few only."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.errors import InputError, UsageError
from lockstep.families.decoder import MAX_LAYERS, MAX_SIZE, DecoderConfig
from lockstep.families.keys import WISH, Keys

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
    window = keys.take("sliding_window", int, 0)
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
