#!/usr/bin/env bash
# Test bases in 8 and 4 bits in an environment of its own, .venv-quantization, which is set up first where it is not up to date:
# where torchao and bitsandbytes are installed, Transformers imports them at each start. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-quantization
stamp=$venv/.softprompt-installed  # holds the checksum of what was asked for; written last
wanted=$(cat pyproject.toml constraints.txt scripts/test_quantization.sh | cksum; pwd)

if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv --clear $venv
    echo "Installing torchao, bitsandbytes and softprompt into $venv; the first time this takes some minutes"
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
        -e '.[bitsandbytes,dev,torchao]'
    echo "$wanted" > $stamp
fi
OMP_NUM_THREADS=1 $venv/bin/python -m pytest \
    tests/bases/test_quantization.py tests/bases/test_dispatch.py tests/test_quantization_commands.py "$@"
