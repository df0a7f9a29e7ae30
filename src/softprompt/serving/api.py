"""The HTTP API: one app of the endpoints, the gate before them, and the errors they answer.

Owns how the app is put together, and the endpoints for models, classification, prompts and the server's state. Does not
know how it is bound to a port (`server`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles

from softprompt.errors import SoftPromptError
from softprompt.prompts.card import Card
from softprompt.serving import completions, embeddings, metrics, predictions, schemas
from softprompt.serving.catalogue import Served
from softprompt.serving.classification import Classifier, Question
from softprompt.serving.completions import ReadyService, check_count, check_queue, problems, run_long
from softprompt.serving.engine import naming
from softprompt.serving.gate import Access, Gate, Prefix
from softprompt.serving.playground import ABSENT, PATHS, is_installed
from softprompt.serving.playground.mount import page_beside
from softprompt.serving.problems import ProblemError, find_problem
from softprompt.serving.service import Service
from softprompt.serving.streams import together, unless_gone

_DESCRIPTION = """\
One frozen language model behind any number of soft prompts. `model` names the prompt that a request is answered
behind; requests for different prompts share the model's batches.
"""


def get_service(request: Request) -> Service:
    """The service, whether or not it takes requests."""
    service: Service = request.app.state.service
    return service


AnyService = Annotated[Service, Depends(get_service)]

_open = APIRouter(tags=["Server"])
_figures = APIRouter(tags=["Server"])
_models = APIRouter(tags=["OpenAI"])
_tasks = APIRouter(tags=["Tasks"])
_prompts = APIRouter(tags=["Prompts"])


def make_app(
    service: Service, access: Access | None = None, *, playground: Path | None = None, root_path: str = ""
) -> FastAPI:
    """The ASGI app. Its lifespan starts and stops the service; until it has started, requests get a 503.

    Args:
        service: what answers.
        access: who may come in; default: everybody.
        playground: the folder whose training runs the playground at `/` shows; None: there is no playground.
        root_path: what a proxy puts before every path, such as "/llm"; whether or not the proxy takes it off.
    """
    access = access or Access()

    @asynccontextmanager
    async def live(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if playground is not None:  # first, since the server is taken for ready when the service is
                page = page_beside(
                    app,
                    playground,
                    body_limit=access.body_limit,
                    root_path=root_path,
                    stopping=lambda: service.status not in ("starting", "ready"),
                )
                await stack.enter_async_context(page)
            starting = asyncio.create_task(service.start())
            try:
                yield
            finally:
                starting.cancel()
                await asyncio.gather(starting, return_exceptions=True)
                await service.stop()

    app = _App(
        title="softprompt",
        version=version("softprompt"),
        description=_DESCRIPTION,
        lifespan=live,
        redoc_url=None,
        redirect_slashes=False,
        docs_url=None,
        exception_handlers=dict.fromkeys((400, 404, 405, ProblemError, RequestValidationError, SoftPromptError), _tell),
    )
    app.state.service = service
    # The one that is added last is the first that a request passes.
    app.add_middleware(Gate, metrics=service.metrics, access=access, page=None if playground is None else PATHS)
    if access.origins:  # before the gate, as a browser asks without a key whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-Id"],
        )
    if root_path:
        app.add_middleware(Prefix, root_path=root_path)
    # Only for the OpenAPI page: it is the gate that asks for the key.
    locked: list[Any] = [Depends(HTTPBearer(auto_error=False, description="An API key."))] if access.api_keys else []
    for router in (_models, completions.router, embeddings.router, _tasks, predictions.router, _prompts, _figures):
        app.include_router(router, dependencies=locked)
    app.include_router(_open)
    if playground is None:
        app.add_api_route("/", no_playground, include_in_schema=False)
    app.mount("/docs/files", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs")
    return app


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        # FastAPI describes a 422 of its own, which is a 400 here.
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema


async def _tell(_: Request, error: Exception) -> Response:
    return find_problem(error).response


@_open.head("/health", include_in_schema=False)
@_open.get("/health", summary="Whether the process lives", response_model=schemas.Status, responses=problems(503))
async def health(service: AnyService) -> schemas.Status:
    """A 503 once the engine has failed, after which the process ends. Needs no key."""
    service.check_engine()
    return schemas.Status(status="ok")


@_open.head("/ready", include_in_schema=False)
@_open.get("/ready", summary="Whether requests are answered", response_model=schemas.Status, responses=problems(503))
async def ready(service: AnyService) -> schemas.Status:
    """A 503 while the server starts or stops. Needs no key."""
    service.check("ready")
    return schemas.Status(status="ready")


@_open.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API's page, with files of our own: it needs no network."""
    root = request.scope["root_path"]
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="softprompt",
        swagger_js_url=f"{root}/docs/files/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/docs/files/swagger-ui.css",
        swagger_favicon_url=f"{root}/docs/files/favicon.png",
    )


async def no_playground() -> None:
    """What stands in the place of the playground where there is none."""
    reason = "the playground is off: start the server with --playground" if is_installed() else ABSENT
    raise ProblemError(404, f"{reason}; the API is described at /docs", code="no_playground")


@_figures.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(401, 429, 500),
    },
)
async def read_metrics(service: AnyService) -> Response:
    """Requests, queue, tokens, latency by model, states kept, prompts loaded."""
    return Response(service.metrics.page(), headers={"Content-Type": metrics.CONTENT_TYPE})


@_models.get(
    "/v1/models",
    summary="The base and the prompts",
    response_model=schemas.ModelList,
    responses=problems(401, 429, 500),
)
async def list_models(service: AnyService) -> schemas.ModelList:
    """Everything that `model` can name now, with the prompts' cards."""
    return schemas.ModelList(data=[_describe(service, served) for served in service.catalogue.models])


@_models.get(
    "/v1/models/{model:path}",
    summary="The base or one prompt",
    response_model=schemas.Model,
    responses=problems(401, 404, 429, 500),
)
async def get_model(model: str, service: AnyService) -> schemas.Model:
    """By the base's name, a prompt's name, or `name@version`."""
    return _describe(service, service.catalogue.find(model))


def _describe(service: Service, served: Served) -> schemas.Model:
    base = service.engine.base
    return schemas.Model(
        id=served.name,
        created=served.loaded,
        name=served.name,
        version=served.version,
        parent=None if served.card is None else service.catalogue.base_name,
        num_virtual_tokens=served.virtual,
        max_model_len=base.room(served.virtual),
        card=None if served.card is None else _shown_card(service, served.card),
    )


def _shown_card(service: Service, card: Card) -> Card:
    """Without the name that the base has on this machine, which may be a path."""
    if card.base is None:
        return card
    return card.model_copy(update={"base": card.base.model_copy(update={"name": service.catalogue.base_name})})


async def _answer(service: Service, served: Served, question: Question) -> tuple[str, dict[str, float]]:
    with naming(served.id):
        return await _classifier(served).classify(service.engine, question)


@_tasks.post(
    "/v1/classify",
    summary="Classify texts, by one or many tasks",
    response_model=schemas.Classification,
    responses=problems(400, 401, 404, 408, 413, 429, 500, 503, 504),
)
async def classify(body: schemas.ClassifyRequest, request: Request, service: ReadyService) -> schemas.Classification:
    """Each text in the template of each task: the likeliest label, and every label's probability.

    The probabilities are those that `softprompt predict` gives. All texts and tasks share batches.
    """
    start = time.perf_counter()
    names = [body.model] if isinstance(body.model, str) else body.model
    inputs = [body.input] if isinstance(body.input, str) else body.input
    check_count(len(inputs) * len(names), f"{len(inputs)} texts times {len(names)} tasks", "input")
    tasks = [(served, _classifier(served)) for served in map(service.catalogue.find, names)]

    def ask() -> list[list[Question]]:
        return [classifier.ask(inputs, truncate=bool(body.truncate)) for _, classifier in tasks]

    size = sum(len(given) if isinstance(given, str) else sum(map(len, given.values())) for given in inputs)
    by_task = await run_long(size * len(tasks), ask)
    asked = [
        (index, served, questions[index])
        for index in range(len(inputs))
        for (served, _), questions in zip(tasks, by_task, strict=True)
    ]
    check_queue(service, len(inputs) * sum(max(1, len(served.members)) for served, _ in tasks))
    works = [partial(_answer, service, served, question) for _, served, question in asked]
    found = await unless_gone(request.receive, together(works))
    answers = [
        schemas.ClassificationAnswer(
            index=index, model=served.id, label=label, probabilities=probabilities, truncated=question.truncated
        )
        for (index, served, question), (label, probabilities) in zip(asked, found, strict=True)
    ]
    seconds = time.perf_counter() - start
    for (served, _), questions in zip(tasks, by_task, strict=True):
        tokens = sum(len(question.ids) for question in questions)
        service.metrics.finished(served.name, request.scope["route"].path, seconds, tokens, 0)
    tokens = sum(len(question.ids) for questions in by_task for question in questions)
    request.state.record.update(model=[served.id for served, _ in tasks], text_tokens=tokens)
    return schemas.Classification(
        id=f"classify-{uuid4().hex}",
        created=int(time.time()),
        data=answers,
        usage=schemas.Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens),
    )


def _classifier(served: Served) -> Classifier:
    if served.reader is not None:
        raise ProblemError(
            400, f"{served.id} does not choose a label for a text: use /v1/predict", param="model", code="no_labels"
        )
    if served.classifier is None:
        raise ProblemError(
            400, f"{served.id} has no classification task: use /v1/completions", param="model", code="no_labels"
        )
    return served.classifier


@_prompts.get(
    "/v1/prompts", summary="The prompts", response_model=schemas.PromptList, responses=problems(401, 429, 500)
)
async def list_prompts(service: AnyService) -> schemas.PromptList:
    """The prompts that are loaded, and those that could not be."""
    return schemas.PromptList(
        data=[_loaded(served) for served in service.catalogue.prompts],
        refused=[
            schemas.RefusedPrompt(name=name, reason=reason)
            for name, reason in sorted(service.catalogue.refused.items())
        ],
    )


@_prompts.get(
    "/v1/library",
    summary="Every version in the library",
    response_model=schemas.Library,
    responses=problems(400, 401, 429, 500),
)
def list_library(service: AnyService) -> schemas.Library:
    """Loaded or not, with the versions' cards."""
    library, catalogue = service.library, service.catalogue
    loaded = {served.id for served in catalogue.prompts}
    refused, data = dict(catalogue.refused), []
    for name in library.names():
        try:
            library.entry(name)  # where the current version is damaged, it says how
            for entry in library.versions(name):
                version = schemas.LibraryVersion(
                    id=f"{name}@{entry.version}",
                    name=name,
                    version=entry.version,
                    current=entry.current,
                    loaded=f"{name}@{entry.version}" in loaded,
                    num_virtual_tokens=entry.num_virtual_tokens,
                    bytes=entry.bytes,
                    card=_shown_card(service, entry.card),
                )
                data.append(version)
        except SoftPromptError as error:
            refused.setdefault(name, str(error).replace(f"{library.folder}/", ""))
    faults = [schemas.RefusedPrompt(name=name, reason=reason) for name, reason in sorted(refused.items())]
    return schemas.Library(data=data, refused=faults)


@_prompts.post(
    "/v1/prompts/load",
    summary="Load a prompt of the library",
    response_model=schemas.LoadedPrompt,
    responses=problems(400, 401, 404, 408, 409, 413, 429, 500, 503, 504),
)
async def load_prompt(body: schemas.LoadRequest, request: Request, service: ReadyService) -> schemas.LoadedPrompt:
    """Its state is computed, then it takes the place of the version that is loaded, at once.

    Requests under way are finished by the version that they began with.
    """
    served = await unless_gone(request.receive, service.load(body.name))
    request.state.record.update(model=served.id)
    return _loaded(served)


@_prompts.post(
    "/v1/prompts/unload",
    summary="Unload a prompt",
    response_model=schemas.LoadedPrompt,
    responses=problems(400, 401, 404, 408, 413, 429, 500),
)
async def unload_prompt(body: schemas.UnloadRequest, request: Request, service: AnyService) -> schemas.LoadedPrompt:
    """It takes no new requests; those under way are finished. The library keeps it."""
    served = service.unload(body.name)
    request.state.record.update(model=served.id)
    return _loaded(served)


def _loaded(served: Served) -> schemas.LoadedPrompt:
    return schemas.LoadedPrompt(
        id=served.id,
        name=served.name,
        version=served.version or 0,
        num_virtual_tokens=served.virtual,
        labels=None if served.classifier is None else served.classifier.labels,
        loaded=served.loaded,
    )
