#!/usr/bin/env bash
# Check everything: the form of the code, then the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/lint.sh
.venv/bin/python -m pytest "$@"
