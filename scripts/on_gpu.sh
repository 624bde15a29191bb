#!/bin/sh
# on_gpu.sh [FOLDER]: on a machine with an NVIDIA GPU, all that can only be seen there: the checks of tests/cuda, a memory and a race
# checker over the case table where CUDA's toolkit has them, and the benchmark. Logs go to FOLDER. The library has to be built already
# (zig build -Dcuda); BUN names the runtime where it is not on the path.
cd "$(dirname "$0")/.." || exit 1
out=${1:-.}
bun=${BUN:-bun}
failed=0
"$bun" run tests/cuda/check.ts >"$out/check.log" 2>&1 || failed=1
tail -n 60 "$out/check.log"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    timeout 150 compute-sanitizer --tool "$tool" --target-processes all "$bun" run tests/cuda/check.ts cases >"$out/$tool.log" 2>&1
    echo "$tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool.log" || echo 'did not end')"
  done
fi
[ -f bench/cuda.ts ] && { "$bun" run bench/cuda.ts >"$out/bench.log" 2>&1; tail -n 60 "$out/bench.log"; }
exit $failed
