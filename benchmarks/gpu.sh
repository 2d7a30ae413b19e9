#!/usr/bin/env bash
# What needs a GPU, in parts of a few minutes that go on where a call before them stopped:
#
#   benchmarks/gpu.sh test        pytest -m gpu, after all kernels are compiled at once
#   benchmarks/gpu.sh sanitize    compute-sanitizer's memcheck and racecheck, on small shapes
#   benchmarks/gpu.sh bench       ours beside PyTorch, the cheap settings first
#
# Runs from the working tree with nothing installed. Results and logs go to $OUT (benchmarks/results/gpu unless set); what
# lies in $DONE, an $OUT of an earlier call, is not done again. SECONDS_LEFT: start nothing after so many seconds (240).
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT="${OUT:-benchmarks/results/gpu}" PYTHONPATH=".:backends:tests${PYTHONPATH:+:$PYTHONPATH}"
export CUPY_CACHE_DIR="${CUPY_CACHE_DIR:-${TMPDIR:-/tmp}/ddpm_ref_kernels}" MPLCONFIGDIR="${MPLCONFIGDIR:-${TMPDIR:-/tmp}/ddpm_ref_matplotlib}"
mkdir -p "$OUT"
[ -n "${DONE:-}" ] && cp -n "$DONE"/*.json "$OUT"/ 2>/dev/null
exec python3 -m benchmarks.gpu "$@" --out "$OUT" --seconds "${SECONDS_LEFT:-240}"
