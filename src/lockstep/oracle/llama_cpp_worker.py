"""The process that asks llama.cpp: it aborts on a vocabulary that it dislikes, so it is alone.

Reads a JSON object with `path`, `context`, `completion` (a body for this path of its server, or
null) and `posts` (other paths and bodies). Writes the tokens of the completion, for each of them
the probabilities of the step, and the answers to the posts.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp

SECONDS = 300  # for one answer


def main() -> None:
    """Answers on the stdout that it was started with; llama.cpp logs to stdout itself."""
    asked = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    params = xllamacpp.CommonParams()
    params.model.path = asked["path"]
    params.n_ctx, params.n_parallel, params.warmup, params.port = asked["context"], 1, False, 0
    # What is compared is the model: not a cache in halves, nor attention that rounds to them.
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = off
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> Any:
        headers = {"content-type": "application/json"}
        url = f"{server.listening_address}{path}"
        sent = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(sent, timeout=SECONDS) as answer:
            return json.load(answer)

    # Where a token ends inside of a character the server leaves its probabilities out of the answer
    # to a longer request, so each step is asked for by itself.
    first = asked["completion"]
    tokens = post("/completion", first)["tokens"] if first else []
    steps = [
        post("/completion", {**first, "prompt": first["prompt"] + tokens[:i], "n_predict": 1})
        for i in range(len(tokens))
    ]
    answers = {
        "tokens": tokens,
        "steps": [step.get("completion_probabilities", []) for step in steps],
        "answers": [post(path, body) for path, body in asked["posts"]],
    }
    with os.fdopen(out, "w") as file:
        json.dump(answers, file)
        file.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
