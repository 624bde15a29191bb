#!/bin/sh
# test_native.sh [--fuzz COUNT [--seed N]] [isa ...]: builds and runs tests/native plain, then with UBSan, TSan and, where gcc has its library,
# ASan. --fuzz calls the entry points with arguments that nobody should give instead. Names choose instruction sets.
cd "$(dirname "$0")/.." || exit 1
failed=0
skipped=0
for sanitize in off undefined thread address; do
  echo "== sanitize: $sanitize"
  asan=
  if [ $sanitize = address ]; then
    asan=$(gcc -print-file-name=libasan.so 2>/dev/null)
    [ -f "$asan" ] || { echo "skipped: Zig has no library for ASan and no gcc was found"; skipped=$((skipped + 1)); continue; }
  fi
  out=zig-out/native-$sanitize
  sh scripts/tool.sh zig build native -Dsanitize=$sanitize ${asan:+-Dasan="$asan"} --prefix "$out" || { failed=$((failed + 1)); continue; }
  "$out/bin/native" "$@" || failed=$((failed + 1))
done
echo "native: $((4 - failed - skipped)) of 4 builds passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
