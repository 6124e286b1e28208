"""What the server asks of a model."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.engine.session import InferenceSession
from lockstep.tokenizers import ChatTemplate, ModelTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that can be asked, under the name that requests call it.

    Once the server runs, only its scheduler touches the session.
    """

    name: str
    session: InferenceSession
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
