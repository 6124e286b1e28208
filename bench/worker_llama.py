"""llama.cpp's side of the inference benchmark, in a process of its own.

python worker_llama.py MODEL.gguf CONTEXT THREADS f16|f32 last|every

With an interpreter that has llama-cpp-python. Positions are evaluated in batches of up to 512, as
its own tools do; the cache has the type that is named.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
import numpy as np
from protocol import answer_requests
from timing import Engine, Logits, Tokens, requests_of

BATCH = 512  # llama.cpp's default size of what is computed at once
CACHE_TYPES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16}


class LlamaCpp(Engine):
    """A model and one sequence in a cache."""

    def __init__(self, path: str, context: int, threads: int, cache: str) -> None:
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = context
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = CACHE_TYPES[cache]
        if cache == "f32":  # its flash attention rounds to half precision on the way
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.swa_full = False  # as llama-cli: windows keep what they see
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise SystemExit(f"{path}: llama.cpp does not load it")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.n_entries = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def rewind(self, position: int) -> bool:
        """Forgets the positions from this one on; False if the model's state cannot."""
        memory = llama_cpp.llama_get_memory(self.context)
        return bool(llama_cpp.llama_memory_seq_rm(memory, 0, position, -1))

    def evaluate(self, tokens: Tokens, position: int, *, every: bool) -> Logits:
        """Logits of every token, or of the last one."""
        found = [
            self._evaluate_batch(tokens[i : i + BATCH], position + i, every=every)
            for i in range(0, len(tokens), BATCH)
        ]
        return np.concatenate(found) if every else found[-1]

    def _evaluate_batch(self, tokens: Tokens, position: int, *, every: bool) -> Logits:
        batch, n = self.batch, len(tokens)
        batch.n_tokens = n
        for i in range(n):
            batch.token[i] = int(tokens[i])
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == n - 1
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise SystemExit(f"llama_decode answers {code}")
        n_rows = n if every else 1
        logits = llama_cpp.llama_get_logits(self.context)
        rows = np.ctypeslib.as_array(logits, (n_rows, self.n_entries))
        return rows.copy() if every else rows


def main() -> None:
    """Loads the model that was asked for and answers."""
    path, context, threads, cache, _ = sys.argv[1:]  # it always can give all logits
    answer_requests(requests_of(LlamaCpp(path, int(context), int(threads), cache)))


if __name__ == "__main__":
    main()
