"""Calls of tools in what a model writes: JSON between two tags, as Qwen and Hermes have it."""

from __future__ import annotations

import json
import uuid
from typing import Any

from lockstep.engine.streaming import n_begun

BEGIN, END = "<tool_call>", "</tool_call>"


class ToolCalls:
    """Takes text as it comes; what is no call of a tool is content."""

    def __init__(self) -> None:
        self._held = ""
        self.n_calls = 0

    def push(self, text: str, *, is_last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """The content and the calls that are certain by now."""
        self._held += text
        content, calls = "", list[dict[str, Any]]()
        while (begin := self._held.find(BEGIN)) >= 0:
            end = self._held.find(END, begin)
            if end < 0 and not is_last:
                break
            content += self._held[:begin]
            stop = end + len(END) if end >= 0 else len(self._held)
            written, self._held = self._held[begin:stop], self._held[stop:]
            call = self._call(written.removeprefix(BEGIN).removesuffix(END))
            if call is None:
                content += written
            else:
                calls.append(call)
        certain = len(self._held) if is_last else self._certain(begin)
        content, self._held = content + self._held[:certain], self._held[certain:]
        return content, calls

    def _certain(self, begin: int) -> int:
        """How many characters at the beginning cannot be a part of a call."""
        if begin >= 0:
            return begin
        return len(self._held) - n_begun(self._held, (BEGIN,))

    def _call(self, text: str) -> dict[str, Any] | None:
        """The call in OpenAI's form; None if the text is none."""
        try:
            said = json.loads(text)
        except ValueError:
            return None
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            return None
        given = said.get("arguments", {})
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        self.n_calls += 1
        return {
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": said["name"], "arguments": arguments},
        }
