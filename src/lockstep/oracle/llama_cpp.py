"""Llama.cpp asked about a GGUF file, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lockstep.errors import EnvironmentLacks, GateError

_WORKER = Path(__file__).with_name("llama_cpp_worker.py")
SECONDS = 600
PROBABILITIES = 1000  # tokens of a step whose probabilities are asked for
Post = tuple[str, dict[str, Any]]  # a path of the server, and the body that is sent there


@dataclass(frozen=True)
class Told:
    """What llama.cpp says: greedy tokens, and ids of texts.

    For each token it may give the logarithms of all probabilities that it was chosen from.
    """

    tokens: list[int]
    log_probabilities: list[dict[int, float]]
    plain_ids: list[list[int]]
    markup_ids: list[list[int]]


def ask_llama_cpp(
    path: Path, prompt: Sequence[int], max_tokens: int, texts: Sequence[str], n_vocab: int
) -> Told:
    """The greedy continuation of a prompt, and the ids of texts, as text and as markup.

    Raises: EnvironmentLacks if llama.cpp is not installed or does not end; GateError if it refuses
    the file.
    """
    completion = {
        "prompt": list(prompt), "n_predict": max_tokens, "temperature": 0, "return_tokens": True,
        "n_probs": min(n_vocab, PROBABILITIES), "cache_prompt": False,
    }  # fmt: skip
    tokenizing = [
        ("/tokenize", {"content": text, "add_special": False, "parse_special": markup})
        for markup in (False, True)
        for text in texts
    ]
    answer = ask_server(path, len(prompt) + max_tokens + 8, tokenizing, completion)
    ids = [each["tokens"] for each in answer["answers"]]
    return Told(
        tokens=answer["tokens"],
        log_probabilities=[
            {each["id"]: each["logprob"] for step in steps for each in step["top_logprobs"]}
            for steps in answer["steps"]
        ],
        plain_ids=ids[: len(texts)],
        markup_ids=ids[len(texts) :],
    )


def ask_server(
    path: Path, context: int, posts: Sequence[Post], completion: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What its server says: `answers` to the posts, `tokens` and `steps` of a completion.

    Raises: EnvironmentLacks if llama.cpp is not installed or does not end; GateError if it refuses
    the file.
    """
    if find_spec("xllamacpp") is None:
        raise EnvironmentLacks("llama.cpp is not installed", hint="pip install xllamacpp")
    sent = {"path": str(path), "context": context, "completion": completion, "posts": posts}
    try:
        done = subprocess.run(
            [sys.executable, str(_WORKER)],
            input=json.dumps(sent), capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EnvironmentLacks(
            f"llama.cpp gave no answer about {path.name} within {SECONDS} s",
            hint="end other programs, or use a faster machine",
        ) from error
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        raise GateError(f"llama.cpp refuses {path.name}: {(said or ['it aborted'])[0]:.200}")
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers
