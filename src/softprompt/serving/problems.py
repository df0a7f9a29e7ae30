"""What goes wrong, as the API tells it: a status and OpenAI's error shape.

Owns which error has which status. Knows nothing of routes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Response
from fastapi.exceptions import RequestValidationError

from softprompt.errors import SoftPromptError, UnknownPromptError
from softprompt.serving.catalogue import RefusedPromptError, UnknownModelError
from softprompt.serving.engine import NotFiniteError, QueueFullError, StoppedError, TimeLimitError
from softprompt.serving.writer import ContextError
from softprompt.text import shorten, shown

# What pydantic calls the members of a union stands among the keys of an error's place. The others, such as "list[str]",
# are no identifiers.
_SCALARS = {"bool", "dict", "float", "int", "str"}
_MOST_FAULTS = 10
# The errors that have a status of their own, and what else their answer says.
_KNOWN: tuple[tuple[type[SoftPromptError], int, dict[str, Any]], ...] = (
    (TimeLimitError, 504, {"kind": "timeout_error", "code": "time_limit"}),
    (NotFiniteError, 500, {"kind": "server_error", "code": "not_finite"}),
    (StoppedError, 503, {"kind": "server_error", "code": "not_ready", "headers": {"Retry-After": "5"}}),
    (UnknownModelError, 404, {"param": "model", "code": "model_not_found"}),
    (UnknownPromptError, 404, {"param": "name", "code": "prompt_not_found"}),
    (RefusedPromptError, 409, {"param": "name", "code": "prompt_refused"}),
    (ContextError, 400, {"code": "context_length_exceeded"}),
)
_LONGEST_NAME = 64


class ProblemError(HTTPException):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do.
        kind: OpenAI's type of error.
        param: the field at fault.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def json(self) -> str:
        """The body. ASCII only, so that half a surrogate pair that a client sent can be shown to it."""
        return json.dumps(self.body)

    @property
    def response(self) -> Response:
        return Response(self.json, self.status_code, self.headers, "application/json")


def busy(message: str, code: str, seconds: float) -> ProblemError:
    """Too much at a time: try again after `seconds`."""
    wait = str(max(1, math.ceil(seconds)))
    return ProblemError(429, message, kind="rate_limit_error", code=code, headers={"Retry-After": wait})


def find_problem(error: Exception) -> ProblemError:
    """What the client is told of `error`. Of an error that nobody expected it learns nothing more."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(status := getattr(error, "status_code", None), int):
        return _of_framework(status, getattr(error, "headers", None))
    if isinstance(error, QueueFullError):
        return busy(str(error), "queue_full", error.retry_after)
    for kind, status, told in _KNOWN:
        if isinstance(error, kind):
            return ProblemError(status, str(error), **told)
    if isinstance(error, SoftPromptError):
        return ProblemError(400, str(error))
    return ProblemError(500, "the server has failed at this request", kind="server_error", code="internal_error")


def _of_framework(status: int, headers: Mapping[str, str] | None) -> ProblemError:
    messages = {
        400: "the body cannot be read: it must be JSON in UTF-8",
        404: "there is no such endpoint: see /docs",
        405: "the endpoint does not take this method: see /docs",
    }
    return ProblemError(status, messages.get(status, "the request cannot be answered"), headers=headers)


def _invalid(faults: Sequence[Any]) -> ProblemError:
    """One line for what pydantic found: for each field what is wrong with it, of the first ones."""
    by_field: dict[str, str] = {}
    found = _by_field(faults)
    for field, members in list(found.items())[:_MOST_FAULTS]:
        # Of a union's members, those that fit furthest are what was meant.
        furthest = max(_depth(fault) for fault in members)
        meant = [fault for fault in members if _depth(fault) == furthest]
        messages = " or ".join(dict.fromkeys(map(_explain, meant))).replace(" or should be ", " or ")
        if messages.startswith("should"):
            messages += f", not {shown(meant[0]['input'])}"
        by_field[shorten(_place(meant[0]) or field, _LONGEST_NAME)] = messages
    lines = [f"{place}: {messages}" if place else messages for place, messages in by_field.items()]
    if len(found) > _MOST_FAULTS:
        lines.append(f"and {len(found) - _MOST_FAULTS} more")
    return ProblemError(400, " ".join("; ".join(lines).split()), param=next(iter(by_field)) or None)


def _by_field(faults: Sequence[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for fault in faults:
        place = fault["loc"]
        # Of a body that is no JSON the place is a character's number.
        name = str(place[1]) if len(place) > 1 and fault["type"] != "json_invalid" else ""
        found.setdefault(name, []).append(fault)
    return found


def _depth(fault: Any) -> tuple[list[int], int]:
    return [part for part in fault["loc"] if isinstance(part, int)], len(fault["loc"])


def _place(fault: Any) -> str:
    """The path to the field, such as "messages.0.content"."""
    if fault["type"] == "json_invalid":
        return ""
    keys = (part for part in fault["loc"][1:] if part not in _SCALARS)
    parts = [part for part in keys if isinstance(part, int) or part.isidentifier()]
    return ".".join(map(str, parts))


def _explain(fault: Any) -> str:
    kind, message = fault["type"], str(fault["msg"])
    if kind == "json_invalid":
        return f"the body is not JSON: {fault['ctx']['error']}"
    if kind == "missing":
        return "is missing" if len(fault["loc"]) > 1 else "the request needs a body of JSON"
    if kind == "extra_forbidden":
        return "is not supported"
    if kind == "value_error":
        return "holds half a surrogate pair, which is no text"
    if kind == "model_attributes_type":
        return "the body must be a JSON object, with Content-Type: application/json"
    return message.removeprefix("Input ")
