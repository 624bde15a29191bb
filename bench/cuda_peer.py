"""What PyTorch makes of the same work on the same GPU, as a graph: the limits of the machine, and the parts of a dense step of Llama-3.1-8B
(its products; its attention with grouped heads). Prints a line for each; run it after bench/cuda.ts, never beside it."""
import sys
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.nn.attention import SDPBackend, sdpa_kernel

LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, WIDE, VOCAB = 32, 4096, 32, 8, 128, 14336, 128256


def timed(run, repeats=20):
    """Median milliseconds of a graph's replay."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[repeats // 2]


def normal(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


with torch.no_grad():
    a, b = normal(8192, 8192), normal(8192, 8192)
    ms = timed(lambda: a @ b)
    print(f"product 8192^3 bf16: {2 * 8192**3 / ms / 1e9:.0f} TFLOP/s")
    big = normal(1 << 31)
    to = torch.empty_like(big)
    ms = timed(lambda: to.copy_(big))
    print(f"copy: {2 * 2 * big.numel() / ms / 1e9:.2f} TB/s")
    del a, b, big, to
    layers = [[normal(rows, cols) for rows, cols in ((HEADS * DIM + 2 * KV_HEADS * DIM, HIDDEN), (HIDDEN, HEADS * DIM), (2 * WIDE, HIDDEN), (HIDDEN, WIDE))] for _ in range(LAYERS)]
    head = normal(VOCAB, HIDDEN)
    for slots in (1, 8):
        x, y = normal(slots, HIDDEN), normal(slots, WIDE)

        def products():
            for q, o, up, down in layers:
                x @ q.T, x @ o.T, x @ up.T, y @ down.T
            x @ head.T

        print(f"products of a step, {slots} slots: {timed(products):.3f} ms")
        for i, name in enumerate(("q, k, v", "o", "gate and up", "down")):
            alone = timed(lambda: [(y if name == "down" else x) @ layer[i].T for layer in layers])
            print(f"  {name}: {alone / LAYERS * 1e3:.1f} us a layer")
    del layers, head
    for slots, length in ((1, 4096), (1, 32768), (8, 32768)):
        caches = [(normal(slots, KV_HEADS, length, DIM), normal(slots, KV_HEADS, length, DIM)) for _ in range(LAYERS)]
        q = normal(slots, HEADS, 1, DIM)

        def grouped():
            for k, v in caches:
                attention(q, k, v, enable_gqa=True)

        def rows():
            for k, v in caches:
                attention(q.view(slots, KV_HEADS, HEADS // KV_HEADS, DIM), k, v)

        print(f"attention of a step, {slots} x {length}: {min(timed(grouped), timed(rows)):.3f} ms", flush=True)
        del caches
    q, k, v = normal(1, HEADS, 32768, DIM), normal(1, HEADS, 32768, DIM), normal(1, HEADS, 32768, DIM)
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                ms = timed(lambda: attention(q, k, v, is_causal=True), 5)
            print(f"prefill attention 32k, {backend.name}: {2 * 32768**2 * HEADS * DIM / ms / 1e9:.0f} TFLOP/s")
        except RuntimeError as error:
            print(f"{backend.name}: {str(error)[:80]}", file=sys.stderr)
