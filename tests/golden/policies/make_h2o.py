"""H2O: the cache class of the paper's repository that really drops rows, and the observed-attention press of kvpress for its averages."""

import importlib.util

import numpy as np
import torch
from kvpress import ObservedAttentionPress

from inputs import GROUP, HEAD_DIM, HEADS, described, gap, inputs, save, tensor
from kvpress_stub import KVPRESS, attention_of, pressed, scored, wide

CONVENTIONS = (
    "h2o: a prompt of `prompt` rows, then one step for each row after it, whose query, key and value come with it; every step attends to what is "
    "held and itself, adds its attention to the sums, then one row goes. heavy + recent rows are held, recent ones are the newest, the step's "
    "own among them; heavy ones are the rest of largest sum. Sums are of attention probabilities of all queries of the prompt and of all steps, "
    "a dropped row's is gone, a new row's begins with its own query's. A KV head's sum is that of its group (per query head as the paper has "
    "it: heads of a group of one). kept[heads][heavy + recent]: original rows held after the prompt, ascending. dropped[steps][heads]: the row that "
    "went at each step. scores[heads, prompt]: the sums after the prompt. finalScores[heads, heavy + recent]: of the rows held at the end, "
    "finalKept, in their order. gap: over the prompt's choice; stepGap: second least less least sum among those that could go, over all steps."
)
AVERAGES = (
    "scores[kvHeads, length]: each sum divided by the number of queries that could see the row, mean over the group; kept: the best "
    "`budget` rows, none for being recent."
)


def held_attention(q, keys, held, group):
    """Attention of one query to the rows that each of `len(held)` heads holds, summed over `group` query heads."""
    logits = [wide(q[h * group : (h + 1) * group]) @ wide(keys[h * group // GROUP])[held[h]].T / HEAD_DIM**0.5 for h in range(len(held))]
    return torch.stack([one.softmax(-1).sum(0) for one in logits])[None, :, None]


def make(oracles):
    spec = importlib.util.spec_from_file_location("h2o", oracles / "H2O/h2o_hf/utils_real_drop/modify_llama.py")
    h2o = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(h2o)
    cases = []
    for seed, length, sharp, prompt, heavy, recent, group in [(21, 440, 1, 400, 64, 64, GROUP), (22, 260, 4, 120, 50, 50, GROUP), (23, 340, 4, 300, 240, 20, 1)]:
        q, keys, _ = inputs(seed, length, sharp)
        heads = HEADS // group
        attention = attention_of(q[:prompt], keys[:, :prompt]).reshape(heads, group, prompt, prompt).sum(1)[None]
        cache = h2o.H2OKVCache_LayerWise(heavy, recent)
        rows = torch.arange(prompt, dtype=torch.float64).expand(1, heads, prompt)[..., None]
        numbered = cache((rows, rows), attention)
        of = lambda pair: pair[0][0, ..., 0].long()
        scores, kept = attention[0].sum(1).numpy(), of(numbered).tolist()
        dropped, step_gap = [], np.inf
        for row in range(prompt, length):
            new = torch.full((1, heads, 1, 1), float(row), dtype=torch.float64)
            numbered = tuple(torch.cat([part, new], 2) for part in numbered)
            before = of(numbered)
            now = held_attention(q[row], keys, before, group)
            candidates = (now[0, :, 0, :-1] + cache.hh_score)[:, : heavy + 1].sort(-1).values
            step_gap = min(step_gap, float((candidates[:, 1] - candidates[:, 0]).min()))
            numbered = cache(numbered, now)
            dropped.append([(set(a.tolist()) - set(b.tolist())).pop() for a, b in zip(before, of(numbered))])
        options = {"heavy": heavy, "recent": recent, "perHead": group == 1}
        case = {"name": f"h2o {prompt} rows, {heavy} + {recent}, {length - prompt} steps, {heads} heads", "oracle": "h2o", "inputs": described(seed, length, sharp), "options": options}
        case |= {"prompt": prompt, "gap": gap(scores[:, : prompt - recent], kept), "stepGap": step_gap, "kept": kept, "scores": tensor(scores), "dropped": dropped}
        cases.append(case | {"finalKept": of(numbered).tolist(), "finalScores": tensor(cache.hh_score.numpy())})
    averages = []
    for seed, length, budget in [(24, 400, 100), (25, 600, 75)]:
        q, keys, _ = inputs(seed, length)
        attentions = attention_of(q, keys)
        press = ObservedAttentionPress(compression_ratio=1 - (budget + 0.5) / length)
        kept, scores = pressed(press, q, keys, attentions), scored(press, q, keys, attentions)
        case = {"name": f"kvpress {length} rows, budget {budget}", "oracle": "kvpress", "inputs": described(seed, length), "options": {"budget": budget}}
        averages.append(case | {"gap": gap(scores, kept), "kept": kept, "scores": tensor(scores)})
    save("h2o", f"FMInference/H2O ac75c2a, h2o_hf/utils_real_drop/modify_llama.py; {KVPRESS}", CONVENTIONS, cases)
    save("h2oRates", KVPRESS, AVERAGES, averages, "h2o")
