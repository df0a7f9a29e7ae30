#!/usr/bin/env bash
# Write the docs as a site into site/, with every link checked, in an environment of its own, .venv-docs. Nothing of
# softprompt is installed: its docstrings are read, and docs/commands.md is what `python -m scripts.help_page` wrote.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-docs
"${PYTHON:-python3}" -m venv $venv
mapfile -t packages < <(sed -n '/^docs = \[/p' pyproject.toml | grep -oE '"[^"]+"' | tr -d '"')
$venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt "${packages[@]}"
NO_MKDOCS_2_WARNING=1 $venv/bin/mkdocs build --quiet --strict "$@"
echo "The docs: site/index.html"
