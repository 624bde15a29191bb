"""SnapKV: the press of kvpress (scores averaged over a KV head's group) and the class of the paper's repository (per query head)."""

import sys

import torch
from kvpress import SnapKVPress

from inputs import GROUP, HEAD_DIM, HEADS, described, gap, inputs, save, tensor
from kvpress_stub import KVPRESS, pressed, scored, wide


class Recorder:
    """torch.nn.functional as the repository's class sees it; the last result stays here."""

    def __getattr__(self, name):
        def called(*args, **named):
            self.last = getattr(torch.nn.functional, name)(*args, **named)
            return self.last

        return called


CONVENTIONS = (
    "kept: rows kept per KV head (kvpress) or query head (snapkv), ascending, the window's own rows included and counted in budget. "
    "scores[heads, length - window]: the pooled mean (kvpress: over the window's queries and the group) or sum (snapkv) of their attention. "
    "Softmax over all rows, causal within the window, cut after it; pooling with padding kernel // 2: zeros that count in the mean, -inf in "
    "the max. gap: least kept score less largest dropped one. No ties."
)


def make(oracles):
    sys.path.insert(0, str(oracles / "SnapKV/snapkv/monkeypatch"))
    import snapkv_utils
    from snapkv_utils import SnapKVCluster, repeat_kv

    snapkv_utils.F = pooling_done = Recorder()
    torch.set_default_dtype(torch.float64)  # its mask is made in the default type

    cases = []
    for seed, length, window, kernel, budget in [(1, 600, 64, 5, 150), (2, 333, 32, 7, 80), (3, 400, 16, 1, 100)]:
        q, keys, _ = inputs(seed, length)
        press = SnapKVPress(compression_ratio=1 - (budget + 0.5) / length, window_size=window, kernel_size=kernel)
        kept, scores = pressed(press, q, keys), scored(press, q, keys)[:, : length - window]
        assert len(kept[0]) == budget
        cases.append({"name": f"kvpress window {window} kernel {kernel}", "oracle": "kvpress", "inputs": described(seed, length), "options": {"budget": budget, "window": window, "kernel": kernel, "pooling": "mean", "perHead": False}, "gap": gap(scores, kept), "kept": kept, "scores": tensor(scores)})
    for seed, length, window, kernel, budget, pooling in [(4, 600, 32, 5, 150, "mean"), (80, 450, 32, 7, 120, "max"), (6, 320, 16, 5, 64, "mean")]:
        q, keys, _ = inputs(seed, length)
        cluster = SnapKVCluster(window, budget, kernel, {"mean": "avgpool", "max": "maxpool"}[pooling])
        numbers = torch.arange(length, dtype=torch.float64)[:, None].expand(HEADS, length, HEAD_DIM)[None]
        _, values = cluster.update_kv(repeat_kv(wide(keys)[None], GROUP), wide(q).transpose(0, 1)[None], numbers, None, GROUP)
        kept = values[0, ..., 0].long().sort(-1).values.tolist()
        assert all(len(set(rows)) == budget for rows in kept)
        scores = pooling_done.last[0].numpy()
        cases.append({"name": f"snapkv window {window} kernel {kernel} {pooling}", "oracle": "snapkv", "inputs": described(seed, length), "options": {"budget": budget, "window": window, "kernel": kernel, "pooling": pooling, "perHead": True}, "gap": gap(scores, kept), "kept": kept, "scores": tensor(scores)})
    torch.set_default_dtype(torch.float32)
    save("snapKV", f"{KVPRESS}; FasterDecoding/SnapKV e216ddc", CONVENTIONS, cases)
