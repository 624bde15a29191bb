"""ChunkKV: the press of kvpress over its SnapKV press, both without pooling (as the paper) and with it."""

from kvpress import ChunkKVPress, SnapKVPress

from inputs import described, gap, inputs, save, tensor
from kvpress_stub import KVPRESS, pressed, scored

CONVENTIONS = (
    "kept: rows kept, the same of every KV head, ascending. Token scores: the mean attention of the last `window` queries over queries and group, "
    "pooled by `kernel` (1: not), summed over KV heads, then averaged within each chunk, the last and shorter one too. Chunks begin at row 0 and "
    "go on through the window, whose rows score above all others: where length - window is a multiple of chunk, that is the best chunks before "
    "the window and the whole window; where it is not (aligned: false), the chunk that straddles its beginning is kept for the window's sake. "
    "budget: the rows kept, window included. scores[chunks]: of the chunks that lie before the window. gap: least kept less largest dropped of them."
)


def make(_oracles):
    cases = []
    for seed, length, window, chunk, kernel, chunks in [(31, 600, 40, 20, 1, 8), (32, 432, 32, 10, 1, 12), (33, 500, 60, 20, 5, 9), (34, 410, 32, 10, 1, 10)]:
        q, keys, _ = inputs(seed, length)
        count = -(-length // chunk)
        inner = SnapKVPress(compression_ratio=1 - (chunks + 0.5) / count, window_size=window, kernel_size=kernel)
        kept = pressed(ChunkKVPress(inner, chunk_length=chunk), q, keys)
        assert kept[0] == kept[1]
        before = (length - window) // chunk
        scores = scored(inner, q, keys)[:, : before * chunk].sum(0).reshape(before, chunk).mean(1)
        options = {"budget": len(kept[0]), "window": window, "chunk": chunk, "kernel": kernel}
        case = {"name": f"kvpress {length} rows, window {window}, chunks of {chunk}, kernel {kernel}", "oracle": "kvpress", "inputs": described(seed, length), "options": options}
        case |= {"aligned": (length - window) % chunk == 0, "gap": gap(scores[None], [sorted({row // chunk for row in kept[0]})])}
        cases.append(case | {"kept": kept[0], "scores": tensor(scores)})
    save("chunkKV", KVPRESS, CONVENTIONS, cases)
