"""InfiniGen: the functions of the paper's repository (speedup/infinigen), called for the heads of a group together where rows are shared."""

import sys

import numpy as np
import torch

from inputs import GROUP, HEAD_DIM, HEADS, KV_HEADS, described, inputs, save, tensor

CONVENTIONS = (
    "The prompt is rows [0, prompt); the guessed query is row prompt's. skew[kvHeads, headDim, headDim]: directions in columns, from the "
    "singular vectors of the group's queries one after the other (float16, as the code has it; columns in its order: the weightiest last; signs "
    "are free). channels[kvHeads][n]: the n = floor(partial * headDim) columns of largest sum of |query . column| over the prompt's queries of "
    "the group, largest first. scores[heads, prompt]: q . k over these columns, divided by sqrt(headDim) (the code multiplies the query's weights "
    "by it beforehand). A row counts where its score > its head's largest - alpha; each head reads min(floor(mean of the counts over heads), "
    "budget) rows: the count of a head is not limited by the budget before the mean. chosen[heads][..]: best first. counts[heads]. "
    "gap: least chosen score less the largest not chosen; skewGap: likewise of channel sums, relative to the largest; countGap: distance of "
    "the nearest score to its head's threshold."
)


def make(oracles):
    sys.path.insert(0, str(oracles / "InfiniGen/speedup/infinigen"))
    from infinigen.kv_selection_controller import speculate_attention
    from infinigen.partial_weight_generation_controller import partial_weight_index_generation, set_partial_cache, set_partial_weight
    from infinigen.skewing_controller import skew

    cases = []
    for seed, prompt, sharp, partial, alpha, budget in [(51, 400, 4, 0.3, 4, 100), (52, 512, 8, 0.3, 4, 200), (53, 300, 4, 0.5, 4, 60), (54, 333, 4, 0.2, 2, 20)]:
        q, keys, _ = (torch.from_numpy(part) for part in inputs(seed, prompt + 1, sharp))
        asked = q[:prompt].reshape(prompt, KV_HEADS, GROUP, HEAD_DIM).transpose(1, 2).reshape(1, prompt * GROUP, KV_HEADS, HEAD_DIM)
        rows = keys[:, :prompt].transpose(0, 1)
        unit = torch.eye(HEAD_DIM, dtype=torch.float16).repeat(KV_HEADS, 1)
        turned, turned_keys = skew(asked, rows[None], unit.clone(), unit.clone(), KV_HEADS, HEAD_DIM)
        assert torch.equal(turned, turned_keys)
        basis = turned.float().reshape(KV_HEADS, HEAD_DIM, HEAD_DIM).transpose(1, 2)
        skewed = torch.einsum("bnhd,hdc->bnhc", asked, basis)
        index = partial_weight_index_generation(skewed.reshape(1, prompt * GROUP, -1), KV_HEADS, HEAD_DIM, partial)
        sums = skewed.abs().sum(1)[0].sort(-1, descending=True).values
        count = index.shape[-1]
        by_head = index.repeat_interleave(GROUP, 1)
        every = rows.repeat_interleave(GROUP, 1)
        turn = basis.repeat_interleave(GROUP, 0)
        cache = set_partial_cache(torch.einsum("nhd,hdc->nhc", every, turn), by_head, HEADS, HEAD_DIM)
        weights = torch.block_diag(*turn.transpose(1, 2)) * HEAD_DIM**-0.5
        hidden = q[prompt].reshape(1, 1, -1)
        chosen = speculate_attention(hidden, set_partial_weight(weights, by_head, HEADS, HEAD_DIM), cache, HEADS, alpha, budget)[:, 0].T
        guess = torch.nn.functional.linear(hidden, weights).reshape(HEADS, HEAD_DIM).gather(1, by_head[0])
        scores = torch.einsum("hc,nhc->hn", guess, cache).numpy()
        best = scores.max(1, keepdims=True) - alpha
        ordered = -np.sort(-scores, 1)
        n = chosen.shape[1]
        case = {"name": f"{prompt} rows, {partial} of the channels, alpha {alpha}, budget {budget}", "oracle": "infinigen", "inputs": described(seed, prompt + 1, sharp)}
        case |= {"options": {"partial": partial, "alpha": alpha, "budget": budget}, "prompt": prompt, "gap": float((ordered[:, n - 1] - ordered[:, n]).min())}
        case |= {"skewGap": float(((sums[:, count - 1] - sums[:, count]) / sums[:, 0]).min()), "countGap": float(np.abs(scores - best).min())}
        case |= {"counts": (scores > best).sum(1).tolist(), "channels": index[0].tolist(), "chosen": chosen.tolist()}
        cases.append(case | {"skew": tensor(basis.contiguous().numpy()), "scores": tensor(scores)})
    save("infiniGen", "snu-comparch/InfiniGen 3754f52, speedup/infinigen; torch 2.8.0", CONVENTIONS, cases)
