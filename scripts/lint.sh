#!/usr/bin/env bash
# Check the form of the code: layout, lint and types.
set -euo pipefail
cd "$(dirname "$0")/.."

.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
