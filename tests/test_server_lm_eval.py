"""lm-evaluation-harness against the server: tasks on data made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import NARROW, running, tiny_served

pytestmark = pytest.mark.usefixtures("quick_builds")

lm_eval = pytest.importorskip("lm_eval", reason="needs the package lm_eval[api]")

DOCS = [
    {"question": "the cat", "choices": [" sat", " né €", "</svg>"], "answer": 0},
    {"question": "<svg>the", "choices": [" the", " [1, 2]"], "answer": 1},
    {"question": "né", "choices": [" €", " 𝄞", " cat sat"], "answer": 2},
]
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
doc_to_text: "{{question}}"
target_delimiter: ""
num_fewshot: 0
"""
CHOICE = """task: tiny_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
WRITE = """task: tiny_write
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["zz"], max_gen_toks: 8, temperature: 0}
metric_list: [{metric: exact_match}]
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the harness warns of its own
def test_the_harness_reads_what_the_model_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        (tasks / f"{name}.yaml").write_text(text + COMMON % data)
    found = evaluated(tasks)
    for sample in found["tiny_choice"]:
        doc = sample["doc"]
        expected = [loglikelihood(doc["question"], choice) for choice in doc["choices"]]
        got = [(float(r[0][0]), bool(r[0][1])) for r in sample["resps"]]
        assert [g[0] for g in got] == pytest.approx([e[0] for e in expected], rel=1e-12)
        assert [g[1] for g in got] == [e[1] for e in expected]
        best = int(np.argmax([e[0] for e in expected]))
        assert sample["acc"] == (best == doc["answer"])
    assert {len(sample["resps"]) for sample in found["tiny_choice"]} == {2, 3}
    for sample in found["tiny_write"]:
        assert sample["resps"][0][0] == greedy(sample["doc"]["question"], 8)


def evaluated(tasks: Path) -> dict[str, list[dict[str, Any]]]:
    """What the harness logs of each task."""
    from lm_eval.tasks import TaskManager

    with running(tiny_served()) as server:
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "tiny",
                "base_url": f"{server.url}/v1/completions",
                "num_concurrent": 3,
                "max_length": 128,
            },
            tasks=["tiny_choice", "tiny_write"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    samples: dict[str, list[dict[str, Any]]] = results["samples"]
    return samples


def loglikelihood(context: str, continuation: str) -> tuple[float, bool]:
    """The log-probability of a continuation, read one token after another, and if it is greedy."""
    served = tiny_served(NARROW)
    n_context = len(served.tokenizer.encode(context))
    ids = served.tokenizer.encode(context + continuation)
    assert len(ids) > n_context
    logits_V = served.session.prefill(ids[:n_context])
    total, is_greedy = 0.0, True
    for id in ids[n_context:]:
        scores_V = logits_V.astype(np.float64)
        total += scores_V[id] - np.logaddexp.reduce(scores_V)
        is_greedy = is_greedy and int(scores_V.argmax()) == id
        logits_V = served.session.decode(id)
    return total, is_greedy


def greedy(prompt: str, n: int) -> str:
    """The likeliest text."""
    served = tiny_served(NARROW)
    ids = served.tokenizer.encode(prompt)
    logits_V = served.session.prefill(ids)
    drawn: list[int] = []
    while len(drawn) < n and int(logits_V.argmax()) not in served.tokenizer.stop_ids:
        drawn.append(int(logits_V.argmax()))
        logits_V = served.session.decode(drawn[-1])
    return b"".join(map(served.tokenizer.token_bytes, drawn)).decode("utf-8", "replace")
