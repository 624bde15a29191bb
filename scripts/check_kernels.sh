#!/bin/sh
# check_kernels.sh [NVCC]: builds the library with its CUDA kernels, for one GPU architecture, and holds the kernels in it against the list of
# cuda/kernels.h; then the tests of the CUDA device that need no GPU. Without NVCC it takes nvcc from its PyPI wheels (scripts/nvcc.txt);
# where they cannot be had, it says why and ends well.
set -u
cd "$(dirname "$0")/.." || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
skip() { echo "no kernels were built: $1"; exit 0; }
nvcc=${1:-}
if [ -z "$nvcc" ]; then
  command -v gcc >/dev/null || skip "nvcc wants gcc, and there is none"
  command -v python3 >/dev/null || skip "nvcc's wheels want Python, and there is none"
  python3 -m pip install --quiet --target "$scratch/cuda" -r scripts/nvcc.txt 2>"$scratch/pip.log" || skip "nvcc's wheels cannot be installed: $(tail -n 1 "$scratch/pip.log")"
  nvcc=$scratch/cuda/nvidia/cu13/bin/nvcc
fi
sh scripts/tool.sh zig build -Dcuda -Dnvcc="$nvcc" -Dgpu=90 --prefix "$scratch/out" || exit 1
library=$scratch/out/lib/librecallkv.so
sed -n '/^#define RKV_KERNELS(X)/,/[^\\]$/p' cuda/kernels.h | grep -o 'X([a-z0-9_]*, [a-z0-9_]*)' | sed 's/.*, \(.*\))/kernel_\1/' | sort >"$scratch/listed"
grep -ao '\.text\.kernel_[a-z0-9_]*' "$library" | sed 's/^\.text\.//' | sort -u >"$scratch/embedded"
echo "$(wc -l <"$scratch/embedded") kernels embedded, $(wc -l <"$scratch/listed") listed, library of $(wc -c <"$library") bytes"
diff "$scratch/listed" "$scratch/embedded" || exit 1
RECALLKV_LIB=$library sh scripts/tool.sh bun test tests/cuda 2>&1 | tail -n 5
