"""The text of one answer, as far as it is certain, with the tokens that it is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from lockstep.engine.streaming import CertainText, shown_bytes
from lockstep.server.scores import Token
from lockstep.tokenizers import ModelTokenizer

Part = tuple[str, list[Token]]


class Transcript:
    """A token is told with the text that it ends in; those of a stop text are never told."""

    def __init__(
        self, tokenizer: ModelTokenizer, stop_texts: Sequence[str], *, shows_control: bool = False
    ) -> None:
        self._tokenizer, self._shows_control = tokenizer, shows_control
        self._text = CertainText(stop_texts)
        self._n_told = 0  # characters
        self._tokens: deque[tuple[int, int, Token]] = deque()  # where its characters begin and end

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._text.stopped

    def push(self, token: Token) -> Part:
        """Takes the next token; the text that is certain by now, and its tokens."""
        begin = self._text.n_read
        spelled = shown_bytes(self._tokenizer, token.id, show_control=self._shows_control)
        text = self._text.push(spelled)
        self._tokens.append((begin, self._text.n_read, token))
        return text, self._told(text)

    def finish(self) -> Part:
        """What was held back, when nothing follows any more."""
        text = self._text.finish()
        tokens = self._told(text)
        if not self.stopped:
            tokens += [token for _, _, token in self._tokens]
        self._tokens.clear()
        return text, tokens

    def _told(self, text: str) -> list[Token]:
        """The tokens that go with the next text."""
        self._n_told += len(text)
        tokens = []
        while self._tokens and self._is_told(*self._tokens[0][:2]):
            tokens.append(self._tokens.popleft()[2])
        return tokens

    def _is_told(self, begin: int, end: int) -> bool:
        return end <= self._n_told or (self.stopped and begin < self._n_told)
