"""Errors as OpenAI's interface spells them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
# What was expected, by pydantic's type of an error, with bounds by pydantic's names.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "finite_number": "a number that is finite",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "an object",
    "string_type": "a text",
    "too_long": "at most {max_length} items",
    "too_short": "{min_length} or more items",
}


class ApiError(Exception):
    """Ends a request with a status, and a body that says what to change.

    `unread` says that the body of the request has not come to its end.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None,
        retry_s: int | None = None, unread: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.unread = unread
        self.headers = {} if retry_s is None else {"Retry-After": str(retry_s)}

    @property
    def body(self) -> dict[str, Any]:
        """The document of the answer."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, server)
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}


def invalid(param: str, message: str, *, code: str | None = None) -> ApiError:
    """The error of one parameter."""
    return ApiError(400, f"{param}: {message}", param=param, code=code)


def from_validation(error: ValidationError) -> ApiError:
    """The error of the first parameter that has the wrong type or is out of bounds."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"body: expected JSON: {first['msg']}", code="invalid_json")
    param = ".".join(map(str, first["loc"]))[:120]  # a key of the body is as long as it likes
    if not param:
        return ApiError(400, f"body: {_said(first)}", code="invalid_type")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return invalid(param, _said(first), code=code)


def _said(first: ErrorDetails) -> str:
    kind = first["type"]
    bounds = {
        name: int(bound) if isinstance(bound, float) and bound.is_integer() else bound
        for name, bound in first.get("ctx", {}).items()
    }
    if kind == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if kind == "missing":
        return "expected a value, got none"
    found = bounds.get("actual_length") or json.dumps(first["input"], ensure_ascii=False)
    if kind not in _EXPECTED:
        return f"{first['msg']}, got {found!s:.80}"
    return f"expected {_EXPECTED[kind].format(**bounds)}, got {found!s:.80}"
