#!/usr/bin/env bash
# Run the tests against today's releases of all that softprompt requires, as `pip install softprompt` brings them, in an
# environment of their own, .venv-newest; torch aside, which is that of constraints.txt. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-newest
"${PYTHON:-python3}" -m venv --clear $venv
echo "Installing the newest releases that pyproject.toml allows into $venv"
torch=$(grep -E '^torch==' constraints.txt)
$venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --upgrade "$torch" -e ".[dev]"
$venv/bin/python -m pip list --disable-pip-version-check --format freeze | grep -iE \
    '^(accelerate|datasets|fastapi|gradio|huggingface_hub|openai|peft|pydantic|tokenizers|torch|transformers|trl)=='
scripts/chromium.sh
OMP_NUM_THREADS=1 $venv/bin/python -m pytest -n 2 -m "not long" "$@"
