#!/bin/sh
# Builds zig-out/lib/librecallkv.so when its sources changed. Arguments go to zig build (-Dsanitize=undefined, -Dcuda, ship).
cd "$(dirname "$0")/.." && exec sh scripts/tool.sh zig build "$@"
