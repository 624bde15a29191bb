"""What the Python makers of golden files share: how logits are stored, how a file is written, how a model is measured."""

import base64
import json
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def base64_of(values):
    """Little-endian float32 values as base64."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def write(path, head, **lists):
    """JSON with one key of an item a line, so that a change of one array is a change of one line."""
    pair = lambda key, value, indent: f"{indent}{json.dumps(key)}: {json.dumps(value)}"
    block = lambda item: "    {\n" + ",\n".join(pair(k, v, "      ") for k, v in item.items()) + "\n    }"
    parts = [pair(k, v, "  ") for k, v in head.items()]
    parts += [f"  {json.dumps(k)}: [\n" + ",\n".join(block(item) for item in items) + "\n  ]" for k, items in lists.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def step_of(row):
    """Log-probabilities of a row of logits, its best id (the lower one of a tie) and how far the second lies behind, in nats."""
    row = row.float()
    best = int(torch.argmax(row))
    rest = row.clone()
    rest[best] = -torch.inf
    return torch.log_softmax(row.double(), -1), best, float(row[best] - rest.max())


@torch.no_grad()
def measure(model, tokens, steps=64, teacher=None, positions=()):
    """Reads `tokens` in one pass, then feeds one token at a time: the best one, or the teacher's."""
    out = model(torch.tensor([tokens]), use_cache=True)
    kept = {p: out.logits[0, p].float() for p in positions if p < len(tokens)}
    row, fed, logprob, gap, bests = out.logits[0, -1], [], [], [], []
    for step in range(len(teacher) if teacher else steps):
        logs, best, behind = step_of(row)
        token = teacher[step] if teacher else best
        fed.append(token)
        logprob.append(round(float(logs[token]), 6))
        gap.append(round(behind, 6))
        bests.append(best)
        out = model(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
        row = out.logits[0, -1]
        if len(tokens) + step in positions:
            kept[len(tokens) + step] = row.float()
    result = {"teacher": fed, "best": bests} if teacher else {"greedy": fed}
    result |= {"logprob": logprob, "gap": gap}
    if positions:
        result["logits"] = [{"position": p, "f32": base64_of(kept[p].numpy())} for p in positions]
    return result
