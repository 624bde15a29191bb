#!/bin/sh
# on_gpu.sh [FOLDER] [BENCHMARK ARGUMENTS...]: on a machine with an NVIDIA GPU, all that can only be seen there: the checks of tests/cuda, a
# memory and a race checker over the case table and recorded steps where CUDA's toolkit has them, smallest cases first and for SECONDS_EACH (120) each, and the
# benchmark. Logs go to FOLDER. The library has to be built already (zig build -Dcuda); BUN names the runtime where it is not on the path.
cd "$(dirname "$0")/.." || exit 1
out=${1:-.}
[ $# -gt 0 ] && shift
bun=${BUN:-bun}
seconds=${SECONDS_EACH:-120}
failed=0
# cuBLASLt of a Python's packages, where the system has none
if [ -z "${RECALLKV_CUBLASLT+set}" ] && ! ldconfig -p 2>/dev/null | grep -q libcublasLt; then
  found=$(python3 -c 'import glob, site; print(*(f for s in site.getsitepackages() for f in glob.glob(s + "/nvidia/*/lib/libcublasLt.so.1[23]")))' 2>/dev/null)
  [ -n "$found" ] && export RECALLKV_CUBLASLT="${found%% *}"
fi
"$bun" run tests/cuda/check.ts >"$out/check.log" 2>&1 || failed=1
tail -n 60 "$out/check.log"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    more=""
    [ "$tool" = racecheck ] && more="--racecheck-report all"
    # shellcheck disable=SC2086
    timeout $((2 * seconds + 60)) compute-sanitizer --tool "$tool" $more --target-processes all "$bun" run tests/cuda/check.ts --seconds "$seconds" cases recorded >"$out/$tool.log" 2>&1
    echo "$tool: $(grep -E '^(cases|slots):|ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.log" || echo 'did not end')"
  done
fi
"$bun" run bench/cuda.ts "$@" >"$out/bench.log" 2>&1 || failed=1
tail -n 60 "$out/bench.log"
exit $failed
