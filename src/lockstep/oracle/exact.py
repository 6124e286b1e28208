"""Float64 all the way through transformers, whose modules cast to float32 inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CASTS = (torch.Tensor.to, torch.Tensor.type)


class KeepFloat64(TorchFunctionMode):  # type: ignore[misc]
    """Turns every request for float32 into one for float64 while it is active.

    Norms, rope tables and the softmax of attention ask for float32 whatever the model's type is;
    without this a "float64" run has float32 in the middle.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs one torch function with its float32 arguments replaced."""
        if func is torch.Tensor.float:
            return args[0].double()
        new_kwargs = {k: _wider(v) for k, v in (kwargs or {}).items()}
        new_args = tuple(_wider(a) for a in args) if func in _CASTS else args
        return func(*new_args, **new_kwargs)


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
