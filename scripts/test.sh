#!/usr/bin/env bash
# Check the form of the code, then run the tests but those marked `long`. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/lint.sh
scripts/chromium.sh
# Two at a time with a thread each: the tests' models are too small to keep more threads busy.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 -m "not long" --durations=10 "$@"
