"""Real clients against a real server: each one's answers equal those of a plain request.

    scripts/test_clients.sh

Owns the clients' calls and the comparison. The server is `softprompt serve` with SmolLM2-135M and a prompt made of a
sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from benchmarks.movies import TASK, load_movies
from benchmarks.server import serving

import softprompt as sp

NAME = "sentiment"
QUESTION = [{"role": "user", "content": "Name a colour."}]
TOKENS = 12

NODE = """
import OpenAI from 'openai';
const client = new OpenAI({baseURL: process.argv[2] + '/v1', apiKey: 'none'});
const body = JSON.parse(process.argv[3]);
const whole = await client.chat.completions.create(body);
let streamed = '';
for await (const part of await client.chat.completions.create({...body, stream: true})) {
  streamed += part.choices[0]?.delta?.content ?? '';
}
const again = await client.chat.completions.create(
  {...body, messages: [...body.messages, whole.choices[0].message, {role: 'user', content: 'Another.'}]});
console.log(JSON.stringify([whole.choices[0].message.content, streamed, again.choices.length]));
"""


def by_openai(url: str, body: dict[str, Any]) -> list[str]:
    import openai

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(**body).choices[0].message
        parts = client.chat.completions.create(**body, stream=True)
        streamed = "".join(part.choices[0].delta.content or "" for part in parts)
        more = [*body["messages"], whole, {"role": "user", "content": "Another."}]
        assert client.chat.completions.create(**{**body, "messages": more}).choices
    return [whole.content or "", streamed]


def by_node(url: str, body: dict[str, Any], folder: Path) -> list[str]:
    script = folder / "clients.mjs"
    script.write_text(NODE, encoding="utf-8")
    done = subprocess.run(["node", str(script), url, json.dumps(body)], capture_output=True, text=True, check=True)
    whole, streamed, again = json.loads(done.stdout)
    assert again == 1
    return [whole, streamed]


def by_langchain(url: str, body: dict[str, Any]) -> list[str]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=NAME, base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=TOKENS)
    messages = [(one["role"], one["content"]) for one in body["messages"]]
    return [str(model.invoke(messages).content), "".join(str(part.content) for part in model.stream(messages))]


def by_litellm(url: str, body: dict[str, Any]) -> list[str]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network for prices
    import litellm

    asked = {**body, "model": f"openai/{NAME}", "api_base": f"{url}/v1", "api_key": "none"}
    parts = litellm.completion(**asked, stream=True)
    whole = litellm.completion(**asked).choices[0].message.content
    return [whole, "".join(part.choices[0].delta.content or "" for part in parts)]


def by_harness(url: str, base: sp.Base, folder: Path, rows: list[Any]) -> float:
    """The accuracy that lm-evaluation-harness finds on a multiple-choice task."""
    data = folder / "films.jsonl"
    lines = [json.dumps({"text": row.columns["text"], "target": row.label}) for row in rows]
    data.write_text("\n".join(lines), encoding="utf-8")
    task = {
        "task": "films",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Review: {{text}}\nSentiment:",
        "doc_to_choice": TASK.labels,
        "doc_to_target": "target",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "films.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    settings = {
        "model": NAME,
        "base_url": f"{url}/v1/completions",
        "tokenizer_backend": "huggingface",
        "tokenizer": base.model.name_or_path,
        "num_concurrent": 4,
    }
    words = ["--model", "local-completions", "--tasks", "films", "--include_path", str(folder)]
    words += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
    words += ["--output_path", str(folder / "harness")]
    command = [sys.executable, "-m", "lm_eval", "run", *words]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    (found,) = (folder / "harness").rglob("results_*.json")
    return float(json.loads(found.read_text())["results"]["films"]["acc,none"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", type=Path, required=True, help="where npm has put the openai package")
    parser.add_argument("--rows", type=int, default=40, help="of the harness' task")
    options = parser.parse_args()
    base = sp.load_base("smollm2-135m", dtype="float32")
    prompt = sp.SoftPrompt.from_text(base, "Classify this review as positive or negative:", num_virtual_tokens=8)
    prompt = sp.SoftPrompt(prompt.embeddings, prompt.card.replace(task=TASK.model_dump()))
    rows = load_movies()[: options.rows]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sp.PromptLibrary(folder / "library").add(NAME, prompt)
        with serving("smollm2-135m", folder / "library", "--no-playground", "--dtype", "float32") as (url, _):
            body = {"model": NAME, "messages": QUESTION, "max_tokens": TOKENS, "temperature": 0}
            plain = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
            expected = plain["choices"][0]["message"]["content"]
            node = json.loads((options.node / "node_modules/openai/package.json").read_text())["version"]
            for name, answers in {
                f"openai {version('openai')} (Python)": by_openai(url, body),
                f"openai {node} (Node)": by_node(url, body, options.node),
                f"langchain-openai {version('langchain-openai')}": by_langchain(url, body),
                f"litellm {version('litellm')}": by_litellm(url, body),
            }.items():
                if answers != [expected, expected]:
                    raise SystemExit(f"{name}: {answers}, not {expected!r}")
                print(f"{name}: whole and streamed answers equal the plain request's")
            found = by_harness(url, base, folder, rows)
    own = sp.predict(base, prompt, TASK, [row.columns for row in rows])
    labels = [TASK.labels[row.label] for row in rows]
    accuracy = sum(one.label == label for one, label in zip(own, labels, strict=True)) / len(rows)
    print(f"lm_eval {version('lm_eval')}: accuracy {found:.3f} on {len(rows)} films, by `sp.predict` {accuracy:.3f}")
    if abs(found - accuracy) > 1e-9:
        raise SystemExit("the harness and `sp.predict` differ")


if __name__ == "__main__":
    main()
