"""Errors as OpenAI's interface spells them."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


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
    param = ".".join(map(str, first["loc"]))
    if not param:
        return ApiError(400, f"body: {_said(first)}", code="invalid_type")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return invalid(param, _said(first), code=code)


def _said(first: ErrorDetails) -> str:
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("missing", "value_error"):
        return message
    return f"{message}, got {first['input']!r:.80}"
