#!/bin/sh
# test_native.sh [--fuzz COUNT [--seed N]] [isa ...]: builds and runs tests/native plain, then with UBSan, TSan and, where gcc has its library,
# ASan. --fuzz calls the entry points with arguments that nobody should give instead; not with TSan, for two of them may be one tensor, and
# its pieces then race as they must. A sanitizer that cannot start (TSan under some kernels' address randomisation) is told as skipped. Names
# choose instruction sets. SANITIZE="address undefined" chooses builds.
cd "$(dirname "$0")/.." || exit 1
failed=0
skipped=0
builds=${SANITIZE:-off undefined thread address}
for sanitize in $builds; do
  echo "== sanitize: $sanitize"
  asan=
  case "$sanitize $*" in "thread "*--fuzz*) echo "skipped: calls at random race by themselves"; skipped=$((skipped + 1)); continue ;; esac
  if [ $sanitize = address ]; then
    asan=$(gcc -print-file-name=libasan.so 2>/dev/null)
    [ -f "$asan" ] || { echo "skipped: Zig has no library for ASan and no gcc was found"; skipped=$((skipped + 1)); continue; }
  fi
  out=zig-out/native-$sanitize
  sh scripts/tool.sh zig build native -Dsanitize=$sanitize ${asan:+-Dasan="$asan"} --prefix "$out" || { failed=$((failed + 1)); continue; }
  if ! why=$("$out/bin/native" none 2>&1); then # runs no test: what fails here is the sanitizer's own start
    echo "skipped: a program with it does not start here: $(echo "$why" | grep -m 1 .)"
    skipped=$((skipped + 1))
    continue
  fi
  "$out/bin/native" "$@" || failed=$((failed + 1))
done
set -- $builds
echo "native: $(($# - failed - skipped)) of $# builds passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
