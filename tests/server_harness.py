"""A served model that is small enough to ask a hundred times, and a server around it."""

from __future__ import annotations

import atexit
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.build import inference_program
from lockstep.engine.initialise import initialise
from lockstep.engine.packed import place_arrays
from lockstep.engine.session import InferenceSession
from lockstep.families import FAMILIES
from lockstep.formats.hf_directory import write_hf_directory
from lockstep.ir import InferenceShape
from lockstep.server.listen import Listener, bind, configured
from lockstep.server.served import Served
from lockstep.server.service import Limits, Service
from lockstep.tokenizers import (
    ChatRenderer,
    ChatTemplate,
    ModelTemplates,
    Tokenizer,
    choose_template,
    train_tokenizer,
)

FAMILY = FAMILIES["qwen3"]
ROWS = ["<svg>né €𝄞</svg><eos>", '<svg>the cat sat {"on": [1, 2]}</svg><eos>'] * 4
TALK: list[Any] = [{"role": "user", "content": "the cat"}]
CONTEXT = 192
# Each shape is compiled once.
SHAPE = InferenceShape(context=CONTEXT, rows=32, slots=4, outs=8)
# One slot, passes of seven tokens and two rows of logits: everything is cut otherwise.
NARROW = InferenceShape(context=CONTEXT, rows=7, slots=1, outs=2)


RENDERER = ChatRenderer()  # one worker for all tests of a process
atexit.register(RENDERER.close)


@cache
def tiny_tokenizer() -> Tokenizer:
    """A byte-level tokenizer of a few words."""
    return train_tokenizer("bpe", ROWS, 300, ["[circle]"], "gpt-2")


def tiny_served(shape: InferenceShape = SHAPE, *, threads: int = 2, seed: int = 1) -> Served:
    """A random model with these slots; the same weights for the same seed."""
    tokenizer = tiny_tokenizer()
    config = replace(FAMILY.TINY, vocab=tokenizer.vocab_size, context=shape.context)
    built = inference_program(FAMILY, config, shape, threads=threads)
    arrays = {w.id: np.empty(w.shape, np.float32) for w in FAMILY.weights(config)}
    initialise(arrays, "xavier_uniform", seed)
    place_arrays(built.program, arrays)
    return around(InferenceSession(built.program, shape))


def around(session: InferenceSession) -> Served:
    """A session as a served model that chats as the template `plain` does."""
    return Served(
        name="tiny", session=session, tokenizer=tiny_tokenizer(), template=chatting("plain")
    )


def chatting(template: str) -> ChatTemplate:
    """A chat template by its name, or by its file."""
    said = ModelTemplates(where="tiny")
    return ChatTemplate(choose_template(said, template), said, RENDERER)


@dataclass
class Running:
    """A server in a thread of this process."""

    service: Service
    listener: Listener
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str, **labels: str) -> float:
        """A counter as it stands."""
        value = self.service.metrics.registry.get_sample_value(f"lockstep_{name}", labels)
        assert value is not None, f"no metric {name} {labels}"
        return value


@contextmanager
def running(
    served: Served, limits: Limits | None = None, *, api_key: str | None = None
) -> Iterator[Running]:
    """A server on loopback, until the block ends."""
    service = Service(served, limits or Limits(), api_key=api_key)
    bound = bind("127.0.0.1", 0)
    listener = Listener(service, configured(service, only_loopback=True), drain_s=10)
    thread = threading.Thread(target=listener.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield Running(service, listener, bound.getsockname()[1])
    finally:
        listener.drain()
        thread.join(20)
        assert not thread.is_alive()


def write_hf(directory: Path, *, seed: int = 1) -> Path:
    """The same random model as a Hugging Face directory, with its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = replace(FAMILY.TINY, vocab=tokenizer.vocab_size, context=CONTEXT)
    weights = FAMILY.weights(config)
    arrays = {w.id: np.empty(w.shape, np.float32) for w in weights}
    initialise(arrays, "xavier_uniform", seed)
    write_hf_directory(directory, FAMILY.to_hf(config), {w.hf: arrays[w.id] for w in weights})
    tokenizer.save(directory)
    stated = {"eos_token": tokenizer.eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(stated))
    return directory


def post(server: Running, path: str, body: Any, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, document and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        given = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection.request("POST", path, body, given)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.getheaders())
    finally:
        connection.close()
