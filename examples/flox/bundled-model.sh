#!/usr/bin/env bash
# The model that comes with vllmrt, as a Python package; nothing is downloaded. Arguments go to vllmrt up:
#   flox activate -- ./bundled-model.sh
set -euo pipefail
export VLLM_MODEL_ORG=vllmrt VLLM_MODEL=tiny VLLM_MODEL_SOURCES=package
unset VLLM_MODEL_ID VLLM_MODEL_REVISION VLLM_SERVED_MODEL_NAME
exec "$(dirname "$0")/serve-and-ask" "$@"
