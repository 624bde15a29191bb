#!/bin/sh
# tool.sh NAME ARGS...: runs bun, deno or zig of node_modules. It starts the platform's binary itself: the wrappers beside it cost a Node
# start each time, and need an install script that npm may have blocked (where it ran, bun's has moved the binary into its own package).
root=$(dirname "$0")/..
modules=$root/node_modules
name=$1
shift
case $name in
  bun) places="$modules/bun/bin/bun.exe $modules/@oven/bun-*/bin/bun" ;;
  deno) places="$modules/@deno/*/deno" ;;
  zig) places="$modules/@zigc/*-*/bin/zig" ;;
  *) echo "tool.sh: unknown tool $name, want bun, deno or zig" >&2; exit 2 ;;
esac
for tool in $places; do # a place-holder of bun's package is a few bytes long
  [ -x "$tool" ] && [ "$(wc -c <"$tool")" -gt 1000000 ] && exec "$tool" "$@"
done
echo "tool.sh: $name is not in node_modules: run npm ci first" >&2
exit 1
