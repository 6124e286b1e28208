"""The process that asks llama.cpp: it aborts on a vocabulary that it dislikes, so it is alone.

Input: a JSON object with `path` and `requests`. A request has `texts`, `add_special` and
`parse_special`, and is answered with the tokens of each text, as objects with `id` and `piece`; or
it has `messages` and `max_tokens`, and is answered with the greedy answer, as its server gives it.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp


def main() -> None:
    request = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to stdout
    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    params.n_ctx, params.n_parallel, params.warmup, params.port = 512, 1, False, 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def post(path: str, body: dict[str, Any]) -> Any:
        headers = {"content-type": "application/json"}
        url = f"{server.listening_address}{path}"
        sent = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(sent, timeout=120) as answer:
            return json.load(answer)

    answers = []
    for one in request["requests"]:
        if "messages" in one:
            answers.append(post("/v1/chat/completions", {**one, "temperature": 0}))
            continue
        how = {key: one[key] for key in ("add_special", "parse_special")} | {"with_pieces": True}
        answers.append(
            [post("/tokenize", {"content": text, **how})["tokens"] for text in one["texts"]]
        )
    with os.fdopen(out, "w") as file:
        json.dump(answers, file)
        file.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
