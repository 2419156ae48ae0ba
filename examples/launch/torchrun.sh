#!/usr/bin/env bash
# One node, by torchrun: torchrun.sh SPEC PROCESSES [OPTIONS OF shardlang run]
set -euo pipefail
spec=$1 processes=$2
shift 2
exec torchrun --standalone --nproc-per-node "$processes" -m shardlang run "$spec" "$@"
