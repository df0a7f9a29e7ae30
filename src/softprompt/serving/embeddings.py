"""The endpoint /v1/embeddings: texts as vectors, in OpenAI's shape, behind a prompt that was trained for it or none.

Owns the way of such a request. Does not know how the app is put together (`api`).
"""

from __future__ import annotations

import base64
import time
from functools import partial

from fastapi import APIRouter, Request, Response
from torch import Tensor

from softprompt.models.embedding import embedding
from softprompt.serving import schemas
from softprompt.serving.catalogue import Served
from softprompt.serving.completions import ReadyService, as_texts, check_count, check_queue, encode, problems
from softprompt.serving.engine import naming
from softprompt.serving.problems import ProblemError
from softprompt.serving.streams import together, unless_gone

router = APIRouter(tags=["OpenAI"])


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    response_model=schemas.Embeddings,
    responses=problems(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def embed(body: schemas.EmbeddingRequest, request: Request, service: ReadyService) -> Response:
    """Texts as they stand, each behind the prompt's virtual tokens: the mean of their tokens' final hidden states, of
    length 1.

    For prompts that were trained to embed (PEFT's FEATURE_EXTRACTION), and the base alone.
    """
    start = time.perf_counter()
    served = service.catalogue.find(body.model)
    _check(served)
    width = service.engine.base.hidden_size
    if body.dimensions not in (None, width):
        raise ProblemError(400, f"dimensions is {body.dimensions}: embeddings here have {width}", param="dimensions")
    texts = as_texts(body.input)
    check_count(len(texts), f"{len(texts)} texts", "input")
    encoded = await encode(service, texts)
    check_queue(service, len(texts))
    works = [partial(service.engine.states, served.prompt, ids) for ids in encoded]
    with naming(served.id):
        found = await unless_gone(request.receive, together(works))
    tokens = sum(map(len, encoded))
    service.metrics.finished(served.name, request.scope["route"].path, time.perf_counter() - start, tokens, 0)
    request.state.record.update(model=served.id, text_tokens=tokens)
    write = _in_base64 if body.encoding_format == "base64" else Tensor.tolist
    vectors = enumerate(map(embedding, found))
    answer = schemas.Embeddings(
        data=[schemas.Embedding(index=index, embedding=write(vector)) for index, vector in vectors],
        model=served.id,
        usage=schemas.EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return Response(answer.model_dump_json(), media_type="application/json")


def _in_base64(vector: Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _check(served: Served) -> None:
    """Refuse what was trained for another kind of answer.

    Raises:
        ProblemError: it was, or is an ensemble.
    """
    kind = None if served.prompt is None else served.prompt.task_type
    if served.members or kind not in (None, "FEATURE_EXTRACTION"):
        raise ProblemError(
            400, f"{served.id} was trained for other answers than embeddings", param="model", code="no_embedding"
        )
