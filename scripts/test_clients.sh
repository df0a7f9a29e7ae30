#!/usr/bin/env bash
# Ask a real server by the clients that people have: OpenAI's for Python and Node, LangChain, LiteLLM, and a task of
# lm-evaluation-harness, in an environment of their own, .venv-clients. Arguments go to scripts/clients.py.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-clients
python3 -m venv $venv
echo "Installing the clients into $venv; the first time this takes a minute or more"
$venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check "$(grep -E '^torch==' constraints.txt)" \
    -e . openai langchain-openai litellm "lm-eval[api]"
npm install --silent --no-fund --no-audit --prefix $venv/node openai
$venv/bin/python -m scripts.clients --node $venv/node "$@"
