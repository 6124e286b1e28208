"""The process that renders chat templates, which are other people's programs.

It limits its own memory and its time for each request; whoever asks ends it when it is late.
Request and answer: a big-endian word with the length, then JSON. A request has `template` and, to
render it, `variables`; the answer has `text`, or the names that the template reads as `reads`, or
`fault` (syntax, refused, failed or large) with a `message`.
"""

from __future__ import annotations

import datetime
import json
import resource
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 5
MAX_TEXT = 1 << 24  # characters of a rendered conversation


class Refused(jinja2.TemplateError):
    """What a template says of messages that it does not take."""


class Generation(jinja2.ext.Extension):
    """The tag around an answer, which marks it for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012  # as the library declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The statements between the tags, in a scope of their own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_same")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _same(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> NoReturn:
    raise Refused(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """What transformers gives to a template, without access to Python's insides."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return environment


_ENVIRONMENT = _environment()
_compiled = lru_cache(16)(_ENVIRONMENT.from_string)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request, whatever the template does within the limits."""
    source = request["template"]
    try:
        if "variables" not in request:
            reads = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))
            _compiled(source)
            return {"reads": sorted(reads)}
        found, length = [], 0
        for piece in _compiled(source).generate(request["variables"]):
            found.append(piece)
            length += len(piece)
            if length > MAX_TEXT:
                return {"fault": "large", "message": f"more than {MAX_TEXT} characters"}
        text = "".join(found)
        text.encode("utf-8")
    except jinja2.TemplateSyntaxError as error:
        return {"fault": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except Refused as error:
        return {"fault": "refused", "message": str(error)}
    except MemoryError:
        return {"fault": "large", "message": "more than its share of the memory"}
    except RecursionError:
        return {"fault": "failed", "message": "it calls itself without end"}
    except Exception as error:  # a template can raise anything
        return {"fault": "failed", "message": f"{type(error).__name__}: {error}"}
    return {"text": text}


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, hard))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    while header := requests.read(4):
        request = json.loads(requests.read(struct.unpack(">I", header)[0]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS)
        data = json.dumps(answer(request)).encode("ascii")
        answers.write(struct.pack(">I", len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
