"""What schemathesis cannot know: which names are loaded. Answers are kept short, too."""

from __future__ import annotations

from typing import Any

import schemathesis

_NAMES = ("mood", "mood@2", "colour", "tiny-llama")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Else hardly a request would come further than a 404."""
    if isinstance(body, dict) and context.operation.path.startswith(("/v1/c", "/v1/predict")):
        if isinstance(model := body.get("model"), str):
            names = ("mood",) if context.operation.path.endswith("classify") else _NAMES
            body["model"] = names[len(model) % len(names)]
        for key in ("max_tokens", "max_completion_tokens", "n"):
            if isinstance(body.get(key), int) and body[key] > 3:
                body[key] = 3
    return body
