"""What llama.cpp computes: the logarithms of the probabilities of every next token.

As a program, the process that asks it. Input: a JSON object with `path`, `prompts` (lists of ids),
`n_vocab` and `forced`. Output: for each prompt, the logarithms by id.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

from lockstep.ir import Array


def next_logprobs(path: Path, prompts: list[list[int]], n_vocab: int, forced: int) -> Array:
    """The logarithms of the probabilities after each prompt, from a process of its own.

    `forced` is the token that is chosen next, whatever its probability: the server says nothing of
    one that is no whole character.

    Shapes: (prompts, n_vocab)
    """
    asked = {"path": str(path), "prompts": prompts, "n_vocab": n_vocab, "forced": forced}
    request = json.dumps(asked)
    done = subprocess.run(
        [sys.executable, __file__], input=request, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.array(json.loads(done.stdout))


def main() -> None:
    request = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to stdout
    params = xllamacpp.CommonParams()
    params.model.path = request["path"]
    params.n_ctx, params.n_parallel, params.warmup, params.port = 512, 1, False, 0
    params.cpuparams.n_threads = 1
    server = xllamacpp.Server(params)

    def logprobs(ids: list[int]) -> list[float]:
        body: dict[str, Any] = {"prompt": ids, "n_predict": 1, "n_probs": request["n_vocab"]}
        body |= {"logit_bias": [[request["forced"], 1e4]], "cache_prompt": False}
        sent = urllib.request.Request(
            f"{server.listening_address}/completion",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(sent, timeout=120) as answer:
            first = json.load(answer)["completion_probabilities"][0]
        by_id = {one["id"]: one["logprob"] for one in first["top_logprobs"]}
        return [by_id[id] for id in range(request["n_vocab"])]

    answers = [logprobs(ids) for ids in request["prompts"]]
    with os.fdopen(out, "w") as file:
        json.dump(answers, file)
        file.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
