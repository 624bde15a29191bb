"""Writes ops/*.json: single ops by independent libraries, which the plain TypeScript device in tests/reference is checked against.

    python tests/golden/make_ops.py

norm, swiglu, attention: torch in float64. rope: transformers (its inverse frequencies are float32; angles in float64 from them).
cluster: k-means and the ranking of clusters written out in numpy and scipy, as lib/README.md defines them. Every input is
float32 or int32; results are float64 or int32. A case is { name, scalars, inputs, outputs }; a tensor is
{ dtype, shape, data }, its values little-endian in base64.
"""

import base64

import numpy as np
import scipy
import scipy.special
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from golden import HERE, write

draw = np.random.default_rng(7)
DTYPES = {"float32": "f32", "float64": "f64", "int32": "i32", "int64": "i32"}
VERSIONS = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "numpy": np.__version__, "scipy": scipy.__version__}


def normal(*shape):
    return draw.standard_normal(shape).astype(np.float32)


def tensor(values):
    values = np.asarray(values)
    values = values.astype(np.int32) if values.dtype == np.int64 else values
    data = base64.b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode("ascii")
    return {"dtype": DTYPES[str(values.dtype)], "shape": list(values.shape), "data": data}


def case(name, scalars, inputs, outputs):
    pack = lambda group: {key: tensor(value) for key, value in group.items()}
    return {"name": name, "scalars": scalars, "inputs": pack(inputs), "outputs": pack(outputs)}


def save(file, engine, cases):
    head = {"engine": engine, "version": ", ".join(f"{e} {VERSIONS[e]}" for e in engine.split(", "))}
    write(HERE / f"ops/{file}.json", head, cases=cases)
    print(file, [c["name"] for c in cases])


wide = lambda values: torch.from_numpy(np.asarray(values)).double()


def norms():
    cases = []
    for name, rows, hidden, eps, size in [("odd width", 3, 37, 1e-5, 1), ("wide", 2, 192, 1e-6, 40), ("near zero", 2, 16, 1e-5, 1e-4), ("all zero", 1, 8, 1e-6, 0)]:
        x, weight = normal(rows, hidden) * np.float32(size), 1 + normal(hidden) / 10
        y = torch.nn.functional.rms_norm(wide(x), (hidden,), wide(weight), float(np.float32(eps)))
        cases.append(case(name, {"eps": eps}, {"x": x, "weight": weight}, {"y": y.numpy()}))
    save("rmsnorm", "torch", cases)
    gate, up = normal(3, 41) * 6, normal(3, 41)
    y = torch.nn.functional.silu(wide(gate)) * wide(up)
    save("swiglu", "torch", [case("three rows", {}, {"gate": gate, "up": up}, {"y": y.numpy()})])


ROPES = {
    "plain": (32, 50_000.0, None),
    "linear": (32, 10_000.0, {"rope_type": "linear", "factor": 4.0}),
    "llama3": (64, 500_000.0, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
    "llama3, short original": (32, 10_000.0, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}),
    "yarn": (64, 1_000_000.0, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}),
    "yarn, betas": (32, 10_000.0, {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 512, "beta_fast": 16.0, "beta_slow": 2.0}),
    "yarn, attention factor": (32, 10_000.0, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "attention_factor": 0.75}),
    "yarn, mscale": (32, 10_000.0, {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 512, "mscale": 0.707, "mscale_all_dim": 1.0}),
    "yarn, not truncated": (32, 10_000.0, {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}),
}


def ropes():
    cases = []
    for name, (dim, theta, scaling) in ROPES.items():
        original = (scaling or {}).get("original_max_position_embeddings", 2048)
        config = transformers.LlamaConfig(
            hidden_size=2 * dim, num_attention_heads=2, head_dim=dim, rope_theta=theta, rope_scaling=dict(scaling) if scaling else None,
            max_position_embeddings=int(original * (scaling or {}).get("factor", 1)),
        )
        rotary = LlamaRotaryEmbedding(config)
        position = np.array([0, 1, 7, 511, 1999, 8191, 16383], dtype=np.int32)
        q = normal(len(position), 2, dim)
        angle = np.outer(position.astype(np.float64), rotary.inv_freq.numpy().astype(np.float64))
        cos, sin = (torch.from_numpy(np.concatenate([f(angle)] * 2, -1) * rotary.attention_scaling)[None] for f in (np.cos, np.sin))
        rotated, _ = apply_rotary_pos_emb(wide(q).transpose(0, 1)[None], wide(q).transpose(0, 1)[None], cos, sin)
        scalars = {"headDim": dim, "theta": theta, "scaling": scaling, "factor": float(rotary.attention_scaling)}
        outputs = {"frequencies": rotary.inv_freq.numpy(), "rotated": rotated[0].transpose(0, 1).numpy()}
        cases.append(case(name, scalars, {"position": position, "q": q}, outputs))
    save("rope", "transformers, torch", cases)


def attended(q, keys, values, seen, scale):
    """q[heads, d] over the rows `seen` of keys[kvHeads, n, d]: the output and the log-sum-exp of the scaled logits, by head."""
    group = q.shape[0] // keys.shape[0]
    out, lse = [], []
    for head in range(q.shape[0]):
        rows = seen[head // group]
        k, v = wide(keys[head // group][rows]), wide(values[head // group][rows])
        out.append(torch.nn.functional.scaled_dot_product_attention(wide(q[head])[None], k, v, scale=scale)[0].numpy())
        lse.append(float(torch.logsumexp(k @ wide(q[head]) * scale, 0)))
    return np.stack(out), np.array(lse)


def attentions():
    cases = []
    for name, heads, kv_heads, d, rows, count, window in [
        ("group 2, whole prompt", 6, 3, 16, 23, 23, 0), ("group 1, chunk after a context", 2, 2, 8, 40, 9, 0), ("group 8, one kv head", 8, 1, 32, 17, 5, 0),
        ("window of 7 positions", 4, 2, 16, 30, 12, 7),
    ]:
        q, k, v = normal(count, heads, d) * 2, normal(kv_heads, rows, d), normal(kv_heads, rows, d)
        results = []
        for i in range(count):
            last = rows - count + i
            first = max(0, last - window + 1) if window else 0
            results.append(attended(q[i], k, v, [np.arange(first, last + 1)] * kv_heads, d**-0.5))
        outputs = {"attended": np.stack([r[0] for r in results]), "lse": np.stack([r[1] for r in results])}
        cases.append(case(name, {"window": window, "scale": d**-0.5}, {"q": q, "keys": k, "values": v}, outputs))
    save("attend_chunk", "torch", cases)

    cases = []
    for name, heads, kv_heads, d, rows, sink, tail, picked in [
        ("sink, index and tail", 6, 3, 16, 50, 4, 41, [9, 1, 0]), ("tail alone", 4, 2, 8, 12, 0, 5, [0, 0]), ("index alone", 4, 1, 16, 33, 0, 33, [11]),
    ]:
        q, k, v = normal(heads, d) * 2, normal(kv_heads, rows, d), normal(kv_heads, rows, d)
        index = np.full((kv_heads, max(1, *picked, 0)), -1, dtype=np.int32)
        for head, n in enumerate(picked):
            index[head, :n] = draw.permutation(np.arange(sink, tail))[:n]
        seen = [np.concatenate([np.arange(sink), index[h][index[h] >= 0], np.arange(tail, rows)]) for h in range(kv_heads)]
        out, lse = attended(q, k, v, seen, d**-0.5)
        scalars = {"sink": sink, "tailBegin": tail, "rowEnd": rows, "scale": d**-0.5}
        cases.append(case(name, scalars, {"q": q, "keys": k, "values": v, "index": index}, {"attended": out, "lse": lse}))
    save("attend", "torch", cases)


def kmeans(keys, clusters, rounds):
    """Labels and centroids in float64, the rounds that were needed, and the narrowest margin by which a label was chosen."""
    keys = keys.astype(np.float64)
    n = len(keys)
    centroids = keys[[((2 * c + 1) * n) // (2 * clusters) for c in range(clusters)]].copy()
    labels, margin = np.full(n, -1), np.inf
    for done in range(1, rounds + 1):
        length = np.linalg.norm(centroids, axis=1)
        cosine = keys @ (centroids / np.where(length > 0, length, 1)[:, None]).T / np.linalg.norm(keys, axis=1)[:, None]
        new = cosine.argmax(1)  # the first of equals
        if clusters > 1:
            best = np.sort(cosine, 1)
            margin = min(margin, (best[:, -1] - best[:, -2]).min())
        changed = (new != labels).any()
        labels = new
        for c in range(clusters):
            if (labels == c).any():
                centroids[c] = keys[labels == c].mean(0)
        if not changed:
            break
    return labels, centroids, done, margin


def clusters():
    cases = []
    blobs = np.repeat(normal(9, 16) * 3, 30, 0)[draw.permutation(270)] + normal(270, 16)
    cone = normal(200, 32) + 4  # a large common component, as keys after rotation have
    for name, keys, count, rounds in [
        ("blobs", blobs, 9, 20), ("one cone, 16 rows a cluster", cone, 13, 20), ("cut after 3 rounds", cone, 13, 3), ("one cluster", normal(25, 8), 1, 20),
        ("as many clusters as rows", normal(6, 8), 6, 20),
    ]:
        labels, centroids, done, margin = kmeans(keys, count, rounds)
        assert margin > 2e-6, f"{name}: a label was chosen by {margin}, which float32 may decide otherwise"
        scalars = {"clusters": count, "iterations": rounds, "roundsNeeded": done, "margin": float(margin) if count > 1 else None}
        cases.append(case(name, scalars, {"keys": keys}, {"labels": labels, "centroids": centroids}))
        print(name, done, margin, np.bincount(labels, minlength=count).tolist())
    save("kmeans", "numpy", cases)

    cases = []
    for name, heads, kv_heads, count, budget in [("group 2", 4, 2, 7, 40), ("group 1, last cluster trimmed", 2, 2, 7, 25), ("budget above all rows", 6, 2, 5, 400)]:
        d, sizes = 16, draw.integers(1, 20, (kv_heads, count))
        sizes[0, 2] = 0  # nobody's cluster: never chosen
        q, centroids = normal(heads, d) * 2, normal(kv_heads, count, d)
        offsets = np.concatenate([np.full((kv_heads, 1), 5), 5 + np.cumsum(sizes, 1)], 1)
        group, scale = heads // kv_heads, d**-0.5
        scores = np.full((kv_heads, count), -np.inf)
        order, index = np.full((kv_heads, count), -1), np.full((kv_heads, budget), -1)
        for h in range(kv_heads):
            live = sizes[h] > 0
            logits = q[h * group:(h + 1) * group].astype(np.float64) @ centroids[h][live].astype(np.float64).T * scale
            scores[h, live] = scipy.special.softmax(logits, axis=1).sum(0)
            best = [c for c in np.argsort(-scores[h], kind="stable") if live[c]]
            order[h, :len(best)] = best
            rows = np.concatenate([np.arange(offsets[h, c], offsets[h, c + 1]) for c in best])[:budget]
            index[h, :len(rows)] = rows
        inputs = {"q": q, "centroids": centroids, "offsets": offsets}
        cases.append(case(name, {"scale": scale, "budget": budget}, inputs, {"scores": scores, "order": order, "index": index}))
    save("select", "numpy, scipy", cases)


norms()
ropes()
attentions()
clusters()
