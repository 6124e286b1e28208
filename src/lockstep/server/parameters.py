"""The bodies of requests: every parameter with its type and its bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from lockstep.server.api_error import from_validation

MAX_CHOICES = 128
MAX_PROMPTS = 2048
MAX_TOP = 20
MAX_GUIDED = 1000  # texts to choose from: their grammar takes longer than in proportion

B = TypeVar("B", bound="Body")
Prompt = str | list[int]


def _many_texts(value: Any) -> Any:
    """One stop text, or several."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            f"expected a text or a list of texts, none of them empty, got {value!r:.80}"
        )
    return texts


def _many_prompts(value: Any) -> Any:
    """A text, texts, the ids of one prompt, or those of several."""
    if isinstance(value, str) or _is_ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(v, str) or _is_ids(v) for v in value):
        return value
    raise ValueError(
        "expected a text, a list of texts, a list of token ids, or a list of such lists, "
        f"got {value!r:.80}"
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(id) is int for id in value)


StopTexts = Annotated[list[str], BeforeValidator(_many_texts), Field(max_length=16)]
Prompts = Annotated[list[Any], BeforeValidator(_many_prompts), Field(max_length=MAX_PROMPTS)]
Bias = dict[str, Annotated[float, Field(ge=-100, le=100)]]


class Part(BaseModel):
    """What may be nested in a body: strict types, unknown keys kept for the template."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Body(Part):
    """A request's body; what it has besides the fields of its class is ignored, by name."""

    model: str | None = None

    @property
    def ignored(self) -> list[str]:
        """The parameters that have no effect here; null asks for nothing."""
        return sorted(name for name, value in (self.model_extra or {}).items() if value is not None)


class StreamOptions(Part):
    """What a stream says besides its text."""

    include_usage: bool = False


class ResponseFormat(Part):
    """The form that an answer must have."""

    type: Literal["text", "json_object", "json_schema", "grammar", "regex"] = "text"
    json_schema: dict[str, Any] | None = None
    value: str | None = None  # the grammar or the regular expression


class Sampled(Body):
    """What chat and completions share. `null` is the same as leaving a parameter out."""

    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    repeat_last_n: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: StopTexts = []
    ignore_eos: bool | None = None
    logit_bias: Bias | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None  # of Lark
    regex: str | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1, max_length=MAX_GUIDED)


def _joined_parts(value: Any) -> Any:
    """The text of a message that comes in parts."""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"expected parts of type text, got {kind}")
        texts.append(part["text"])
    return "".join(texts)


class Message(Part):
    """One message; what else it has goes to the template as it is."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_joined_parts)] = Field(
        None, validate_default=True
    )

    @field_validator("content")
    @classmethod
    def _only_calls_say_nothing(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and info.data.get("role", "assistant") != "assistant":
            raise ValueError("expected a text, got none")
        return content


class FunctionTool(Part):
    """A function that the model may ask for."""

    type: Literal["function"]
    function: dict[str, Any]


class ChatBody(Sampled):
    """`/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_PROMPTS)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(Sampled):
    """`/v1/completions`."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingBody(Body):
    """`/v1/embeddings`."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["last", "mean"] | None = None


class TokenizeBody(Body):
    """`/tokenize`."""

    prompt: str
    add_special_tokens: bool = True


class DetokenizeBody(Body):
    """`/detokenize`."""

    tokens: list[int]


def parse(kind: type[B], data: bytes) -> B:
    """The parameters of a body.

    Raises: ApiError naming the parameter that is missing, of another type or out of bounds.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error) from None
