#!/usr/bin/env bash
# A model that a Hugging Face cache on this machine has already (of `hf download`, say); nothing is downloaded.
# Arguments after the model go to vllmrt up:
#   flox activate -- ./cached-model.sh Qwen/Qwen2.5-0.5B-Instruct
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: cached-model.sh ORG/NAME [ARGUMENT…]" >&2; exit 64; }
export VLLM_MODEL_ID=$1 VLLM_MODEL=${1#*/} VLLM_MODEL_SOURCES=hf-cache HF_HUB_OFFLINE=1
unset VLLM_MODEL_REVISION VLLM_SERVED_MODEL_NAME
shift
exec "$(dirname "$0")/serve-and-ask" "$@"
