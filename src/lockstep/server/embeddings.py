"""`/v1/embeddings`."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lockstep.server.events import Embedded
from lockstep.server.exchange import answer_whole, ignored_header, read_body
from lockstep.server.parameters import EmbeddingBody
from lockstep.server.preparation import embedding_generations
from lockstep.server.service import Answers, Service


async def embeddings(request: Request) -> Response:
    """Embeds texts: the last layer's normed output, of the last token or the mean of all."""
    service: Service = request.app.state.service
    body = await read_body(request, EmbeddingBody, service.limits)
    generations = await run_in_threadpool(embedding_generations, service, body)

    async def document(answers: Answers) -> dict[str, Any]:
        vectors: dict[int, NDArray[Any]] = {}
        async for event in answers.events():
            if isinstance(event, Embedded):
                vectors[event.index] = event.vector_D
        data = [
            {"object": "embedding", "index": i, "embedding": _spelled(vectors[i], body)}
            for i in sorted(vectors)
        ]
        n_tokens = sum(answers.n_prompt_tokens)
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return {"object": "list", "data": data, "model": service.served.name, "usage": usage}

    return await answer_whole(request, service.open(generations), document, ignored_header(body))


def _spelled(vector_D: NDArray[Any], body: EmbeddingBody) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32."""
    single_D = vector_D.astype("<f4")
    if body.encoding_format == "base64":
        return base64.b64encode(single_D.tobytes()).decode()
    return [float(x) for x in single_D.astype(np.float64)]
