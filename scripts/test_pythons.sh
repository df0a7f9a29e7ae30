#!/usr/bin/env bash
# For the oldest and the newest Python: build wheel and sdist, import each with the core dependencies alone, then run the
# fast tests, in environments of their own, .venv-3.10 and .venv-3.13. PYTHONS names others. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

for version in ${PYTHONS:-3.10 3.13}; do
    python=$(command -v "python$version" || true)
    if [ -z "$python" ] || ! "$python" --version >/dev/null 2>&1; then
        echo "error: there is no python$version: install it, or name those that are there: PYTHONS=\"3.11 3.12\"" >&2
        exit 1
    fi
    venv=.venv-$version
    dist=$venv/dist
    pip() { $venv/bin/python -m pip --disable-pip-version-check "$@"; }
    "$python" -m venv --clear $venv
    echo "Python $version: building and installing the packages in $venv"
    pip install --quiet --no-compile build
    $venv/bin/python -m build --outdir $dist . >/dev/null  # the wheel is made of the sdist
    for package in $dist/*.whl $dist/*.tar.gz; do
        pip install --quiet --no-compile -c constraints.txt --force-reinstall --no-deps "$package"
        pip install --quiet --no-compile -c constraints.txt "$package"
        (cd $venv && bin/python -c "
import softprompt
for name in softprompt.__all__:
    getattr(softprompt, name)")
        (cd $venv && bin/softprompt --version)
    done
    pip install --quiet --no-compile -c constraints.txt -e ".[dev]"
    OMP_NUM_THREADS=1 $venv/bin/python -m pytest -n 2 -m "not real and not slow and not long" "$@"
done
