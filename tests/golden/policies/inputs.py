"""Queries, keys and values that Python and TypeScript (read.ts) both make from a seed, exactly, and the form of the golden files.

A number is a sum of four bytes of a hash of its place, less its mean: whole numbers of about normal distribution, times a power of two.
Keys and values have at most 8 significant bits (a bfloat16 holds them). A row belongs to a topic of 25 rows, a query to any topic before
it: attention is neither even nor of one row.
"""

import base64
import hashlib
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from golden import write  # noqa: E402

KV_HEADS, GROUP, HEAD_DIM, TOPIC = 2, 2, 32, 25
HEADS = KV_HEADS * GROUP


def hashed(seed, count):
    """The 32-bit finisher of MurmurHash3 over seed * 2^20 + place, multiplied by the golden ratio."""
    x = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 20)) * np.uint64(0x9E3779B9) & np.uint64(0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    return x


def bells(seed, *shape):
    x = hashed(seed, int(np.prod(shape)))
    total = sum((x >> np.uint64(8 * i)) & np.uint64(255) for i in range(4)).astype(np.int64)
    return (total - 510).reshape(shape)


def inputs(seed, length, sharp=1):
    """q[length, heads, headDim], keys and values [kvHeads, length, headDim], f32. `sharp`, a power of two, multiplies the logits."""
    topics = bells(seed * 8, KV_HEADS, length // TOPIC + 1, HEAD_DIM)
    own = np.arange(length) // TOPIC
    keys = (bells(seed * 8 + 1, KV_HEADS, length, HEAD_DIM) + topics[:, own]) >> 3
    values = bells(seed * 8 + 2, KV_HEADS, length, HEAD_DIM) >> 2
    asked = (hashed(seed * 8 + 3, length) % (own + 1).astype(np.uint64)).astype(np.int64)
    wanted = np.repeat(topics[:, asked], GROUP, axis=0).transpose(1, 0, 2)
    q = bells(seed * 8 + 4, length, HEADS, HEAD_DIM) + wanted
    return (q * sharp / 256).astype(np.float32), (keys / 32).astype(np.float32), (values / 32).astype(np.float32)


def described(seed, length, sharp=1):
    """What a file says of its inputs; read.ts makes them again and compares the hash."""
    data = b"".join(np.ascontiguousarray(part, dtype="<f4").tobytes() for part in inputs(seed, length, sharp))
    return {"seed": seed, "length": length, "sharp": sharp, "sha256": hashlib.sha256(data).hexdigest()}


def tensor(values):
    values = np.asarray(values)
    kind = {"f": ("f32", "<f4"), "i": ("i32", "<i4")}[values.dtype.kind]
    data = base64.b64encode(np.ascontiguousarray(values, dtype=kind[1]).tobytes()).decode("ascii")
    return {"dtype": kind[0], "shape": list(values.shape), "data": data}


def gap(scores, kept):
    """Least score that was kept less the largest that was not, over all lists: how narrow the choice was."""
    narrowest = np.inf
    for row, chosen in zip(np.asarray(scores, dtype=np.float64), kept):
        taken = np.zeros(len(row), bool)
        taken[[i for i in chosen if i < len(row)]] = True
        if taken.any() and not taken.all():
            narrowest = min(narrowest, row[taken].min() - row[~taken].max())
    return float(narrowest)


def save(method, source, conventions, cases, maker=None):
    head = {"method": method, "source": source, "command": f"python tests/golden/policies/make_policies.py ORACLES {maker or method}", "conventions": conventions}
    head |= {"kvHeads": KV_HEADS, "heads": HEADS, "headDim": HEAD_DIM}
    path = HERE / f"{method}.json"
    write(path, head, cases=cases)
    print(method, path.stat().st_size, [(case["name"], case.get("gap")) for case in cases])
