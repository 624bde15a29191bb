"""What a press of kvpress wants to know of an attention layer, around queries, keys and values that are given."""

import kvpress  # noqa: F401
import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig

from inputs import GROUP, HEAD_DIM, HEADS, KV_HEADS

KVPRESS = "NVIDIA kvpress 0.5.5, torch 2.8.0, transformers 4.57.1"
wide = lambda values: torch.from_numpy(np.array(values)).double()


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, hidden_size=HEADS * HEAD_DIM)
        self.head_dim, self.q_proj = HEAD_DIM, nn.Identity()


def attention_of(q, keys, causal=True):
    """Probabilities [heads, queries, rows] in f64; queries are those of the last rows."""
    q, keys = wide(q), wide(keys).repeat_interleave(GROUP, 0)
    logits = torch.einsum("qhd,hkd->hqk", q, keys) / HEAD_DIM**0.5
    if causal:
        logits += torch.full(logits.shape[1:], -torch.inf, dtype=torch.float64).triu(keys.shape[1] - q.shape[0] + 1)
    return logits.softmax(-1)


def pressed(press, q, keys, attentions=None):
    """Rows that a press keeps, per KV head and ascending."""
    length = q.shape[0]
    numbers = torch.arange(length, dtype=torch.float64)[:, None].expand(KV_HEADS, length, HEAD_DIM)[None].contiguous()
    _, kept = press.compress(Layer(), *arguments(q, keys, numbers, attentions))
    return kept[0, ..., 0].long().sort(-1).values.tolist()


def scored(press, q, keys, attentions=None):
    return press.score(Layer(), *arguments(q, keys, None, attentions))[0].numpy()


def arguments(q, keys, values, attentions):
    length = q.shape[0]
    unturned = (torch.ones(1, length, HEAD_DIM).double(), torch.zeros(1, length, HEAD_DIM).double())
    attentions = None if attentions is None else attentions[None]
    return wide(q).reshape(1, length, -1), wide(keys)[None], values, attentions, {"position_embeddings": unturned}
