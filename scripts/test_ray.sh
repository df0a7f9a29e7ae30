#!/usr/bin/env bash
# Test train-many, predict and serving over Ray in an environment of its own, .venv-ray, which is set up first where it is not up to date.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-ray
stamp=$venv/.softprompt-installed  # holds the checksum of what was asked for; written last
wanted=$(cat pyproject.toml constraints.txt scripts/test_ray.sh | cksum; pwd)

if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv --clear $venv
    echo "Installing Ray and softprompt into $venv; the first time this takes some minutes"
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
        -e '.[ray]' httpx hypothesis openai psutil pytest
    # Without the constraints: what speaks to S3 needs an older python-dateutil.
    $venv/bin/python -m pip install --quiet --disable-pip-version-check 'moto[server]' s3fs
    echo "$wanted" > $stamp
fi
OMP_NUM_THREADS=1 $venv/bin/python -m pytest tests/many/test_rays.py tests/evaluation/test_rays.py tests/serving/test_ray.py "$@"
