#!/bin/sh
# tool.sh NAME ARGS...: runs bun, deno or zig of node_modules: the platform's own package, which needs no install script and no Node start.
root=$(dirname "$0")/..
modules=$root/node_modules
name=$1
shift
case $name in
  bun) places="$modules/@oven/bun-*/bin/bun" ;;
  deno) places="$modules/@deno/*/deno" ;;
  zig) places="$modules/@zigc/*-*/bin/zig" ;;
  *) echo "tool.sh: unknown tool $name, want bun, deno or zig" >&2; exit 2 ;;
esac
for tool in $places; do
  [ -x "$tool" ] && exec "$tool" "$@"
done
echo "tool.sh: $name is not in node_modules: run npm ci first" >&2
exit 1
