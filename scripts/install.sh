#!/usr/bin/env bash
# Set up .venv in the repository's root with the dev extras; does nothing where that is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.softprompt-installed     # holds the checksum of what was asked for; written last
running=$venv/.softprompt-installing  # left by an install that was killed: what pip did until then cannot be trusted
wanted=$(cat pyproject.toml constraints.txt | cksum; pwd)

if [ -x $venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "error: there is no $python: install Python 3.10 or newer, or set PYTHON to one" >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: softprompt needs Python 3.10 or newer, and $python is $("$python" --version 2>&1): set PYTHON to one" >&2
    exit 1
fi

rm -f $stamp
if [ -e $running ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
    echo "Making $venv with $python"
    "$python" -m venv --clear $venv
fi

echo "Installing softprompt and its dependencies into $venv; the first time this takes a minute or more"
quiet=--quiet
if [ -t 1 ]; then quiet=; fi
touch $running
status=0
$venv/bin/python -m pip install $quiet --no-compile --disable-pip-version-check -c constraints.txt -e ".[dev]" || status=$?
rm -f $running
if [ $status -ne 0 ]; then
    echo "error: pip could not install softprompt, see above; run this again when that is mended" >&2
    exit 1
fi
# Compile what the commands and tests import, once; all of what pip installed would take a minute.
PYTHONDONTWRITEBYTECODE= $venv/bin/python -W ignore -c "
import datasets, matplotlib.pyplot, pytest, sklearn.metrics
import softprompt.cli, softprompt.demo, softprompt.models.peft, softprompt.training" >/dev/null
echo "$wanted" > $stamp
