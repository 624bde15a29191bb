"""Quest: the attention of the paper's repository (evaluation/), called as the decode step of a layer from 2 on."""

import sys
import types

import numpy as np
import torch

from inputs import GROUP, HEAD_DIM, HEADS, KV_HEADS, described, gap, inputs, save, tensor

CONVENTIONS = (
    "rows: how many rows there are; the query is that of row rows - 1, which is in the cache. kept[heads][..]: the rows that drew attention, "
    "ascending. K = max(3, budget // page) pages of each query head, the last, perhaps open page among them and ranked like the others by the "
    "bounds of the rows it holds: nothing is always read. Ours always reads the open page beside its budget: compare cases of whole pages. "
    "scores[heads, pages]: sum over channels of max(q min, q max), not scaled. bounds[kvHeads, pages, 2, headDim]: min and max of each channel, "
    "as the same code answers queries of one channel. gap: least score of a kept page less the largest of one that was not."
)


class Layer(torch.nn.Module):
    """As much of an attention layer as quest's forward touches, around rows that are given."""

    def __init__(self, keys, values, page, budget):
        super().__init__()
        self.layer_id, self.head_dim, self.hidden_size, self.chunk_size, self.token_budget = 2, HEAD_DIM, HEADS * HEAD_DIM, page, budget
        self.num_heads, self.num_key_value_heads, self.num_key_value_groups = HEADS, KV_HEADS, GROUP
        self.past = tuple(part[None, :, :-1] for part in (keys, values))
        newest = {name: part[:, -1].reshape(1, 1, -1) for name, part in (("k", keys), ("v", values))}
        self.q_proj, self.o_proj = torch.nn.Identity(), torch.nn.Identity()
        self.k_proj, self.v_proj = (lambda _: newest["k"]), (lambda _: newest["v"])
        self.rotary_emb = lambda x, positions: (torch.ones(1, 1, HEAD_DIM), torch.zeros(1, 1, HEAD_DIM))

    def answer(self, quest, q):
        """Attention [heads, rows] and scores [heads, pages]."""
        seen = {}
        mask = quest.original_mask

        def recorded(scores, budget, page):
            seen["scores"] = scores[0, :, 0, ::page].numpy()
            return mask(scores, budget, page)

        quest.local_heavy_hitter_mask = recorded
        self.forward = types.MethodType(quest.forward, self)
        rows = self.past[0].shape[2] + 1
        _, attention, _ = self.forward(q.reshape(1, 1, -1), None, torch.tensor([[rows - 1]]), self.past, output_attentions=True, use_cache=True)
        return attention[0, :, 0].numpy(), seen["scores"]


def make(oracles):
    sys.path.insert(0, str(oracles / "Quest/evaluation"))
    import quest_attention as quest

    quest.original_mask = quest.local_heavy_hitter_mask
    cases = []
    for seed, length, page, budget in [(11, 592, 16, 128), (12, 600, 16, 96), (13, 304, 8, 64), (14, 320, 16, 16)]:
        q, keys, values = (torch.from_numpy(part) for part in inputs(seed, length))
        layer = Layer(keys, values, page, budget)
        attention, scores = layer.answer(quest, q[-1])
        kept = [np.flatnonzero(row).tolist() for row in attention]
        pages = -(-length // page)
        unit = lambda channel, sign: sign * torch.eye(HEAD_DIM)[channel].expand(HEADS, HEAD_DIM)
        bound = lambda sign: np.stack([sign * layer.answer(quest, unit(c, sign))[1][::GROUP] for c in range(HEAD_DIM)], -1)
        bounds = np.stack([bound(-1.0), bound(1.0)], 2)
        assert bounds.shape == (KV_HEADS, pages, 2, HEAD_DIM) and len({len(rows) for rows in kept}) <= 2
        options = {"page": page, "budget": budget}
        case = {"name": f"{length} rows, pages of {page}, budget {budget}", "oracle": "quest", "inputs": described(seed, length), "options": options, "rows": length}
        case |= {"gap": gap(scores, [sorted({row // page for row in rows}) for rows in kept]), "kept": kept, "scores": tensor(scores), "bounds": tensor(bounds)}
        cases.append(case)
    save("quest", "mit-han-lab/Quest 01c1623, evaluation/quest_attention.py; torch 2.8.0, transformers 4.57.1", CONVENTIONS, cases)
