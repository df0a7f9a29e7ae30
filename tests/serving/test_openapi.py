"""The OpenAPI description: complete, and true."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.serving import schemas
from softprompt.serving.gate import Access
from softprompt.serving.local import LocalEngine
from softprompt.serving.service import Service
from tests.serving.conftest import living, make_app
from tests.serving.plain import PlainEngine

pytest.importorskip("schemathesis", reason="it needs Python 3.11")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(base, library):
    return make_app(Service(PlainEngine(base), library), Access(api_keys=["a"])).openapi()


def operations(page):
    return {(method, path): one for path, some in page["paths"].items() for method, one in some.items()}


def test_every_operation_is_described(page):
    found = operations(page)
    assert set(found) == {
        ("get", "/health"),
        ("get", "/ready"),
        ("get", "/metrics"),
        ("get", "/v1/models"),
        ("get", "/v1/models/{model}"),
        ("post", "/v1/completions"),
        ("post", "/v1/chat/completions"),
        ("post", "/v1/classify"),
        ("post", "/v1/embeddings"),
        ("post", "/v1/predict"),
        ("get", "/v1/library"),
        ("get", "/v1/prompts"),
        ("post", "/v1/prompts/load"),
        ("post", "/v1/prompts/unload"),
    }
    for (_, path), one in found.items():
        assert one["summary"]
        assert one["description"]
        assert one["tags"]
        assert one["responses"]["200"]["content"]
        assert "422" not in one["responses"]
        for status, answer in one["responses"].items():
            if status != "200":
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
        assert ("security" in one) == (path not in ("/health", "/ready"))
    names = json.dumps(page)
    assert "ValidationError" not in names


@pytest.mark.parametrize(
    "model", [schemas.CompletionRequest, schemas.ChatRequest, schemas.ClassifyRequest, schemas.PredictRequest]
)
def test_the_examples_are_requests(model):
    for example in model.model_json_schema()["examples"]:
        model.model_validate(example)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, []),
        # Behind names that are loaded lie refusals that the description has in words only, such as texts too long.
        pytest.param(
            {"SCHEMATHESIS_HOOKS": "tests.serving.schemathesis_hooks"},
            ["--exclude-checks", "positive_data_acceptance"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_schemathesis_finds_nothing(base, library, tmp_path, environment, words):
    """Requests made from the description, right ones and wrong ones, and what is answered compared with it."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", "--generation-deterministic", "--max-examples=10"]
    with living(LocalEngine(base), library) as live:
        run = subprocess.run(
            [*command, f"{live.url}/openapi.json", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert live.get("/health").status_code == 200
    assert run.returncode == 0, run.stdout
    assert int(re.search(r"(\d+) generated", run.stdout)[1]) > 500
