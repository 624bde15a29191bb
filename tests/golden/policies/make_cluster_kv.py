"""ClusterKV: grouping and selection of the paper's repository (accuracy/). Its k-means and the gather of rows are CUDA: centroids are given
(scikit-learn's k-means of the directions of keys, raw means), and the gather is done here as its own loop beside the CUDA call does it."""

import importlib
import sys
import types

import numpy as np
import torch
from sklearn.cluster import KMeans

from inputs import GROUP, HEADS, KV_HEADS, described, inputs, save, tensor

CONVENTIONS = (
    "Rows [0, sink) stay apart; rows [sink, prompt) belong to clusters; the query is row prompt's, which is held. centroids[kvHeads, clusters, "
    "headDim] are given. order[kvHeads][prompt - sink]: rows by cluster, ascending within one, of largest cosine to their row; sizes[kvHeads][clusters]. "
    "scores[heads, clusters]: query . centroid, neither scaled nor shared by the group. kept[heads][budget - sink]: rows chosen by each query "
    "head, best cluster first, ascending within one, the last cluster cut off; the budget counts the sinks, and neither counts nor cuts what came "
    "after the prompt. labelGap: least distance of a row's best cosine from its second. gap: narrowest distance of neighbours in rank, down to the "
    "first cluster that was not taken."
)


class Torch:
    """torch as the repository sees it, on the CPU; what it joined last stays here."""

    def __getattr__(self, name):
        return getattr(torch, name)

    def full(self, *args, **named):
        return torch.full(*args, **{**named, "device": "cpu"})

    def cat(self, parts, **named):
        self.joined = torch.cat(parts, **named)
        return self.joined


def gather(needed, _, starts, ends, indices, out):
    for head in range(len(needed)):
        parts = [indices[head * len(indices) // len(needed), starts[head, i] : ends[head, i]] for i in range(needed[head])]
        rows = torch.cat(parts)
        out[head, : len(rows)] = rows


def clusters_of(keys, count, seed):
    """Raw means of k-means clusters of directions; none is empty."""
    found = KMeans(count, random_state=seed, n_init=1).fit(keys / np.linalg.norm(keys, axis=1, keepdims=True)).labels_
    return np.stack([keys[found == c].mean(0) for c in range(count)]).astype(np.float32)


def make(oracles):
    for name in ("pylibraft", "pylibraft.cluster", "pylibraft.neighbors", "pylibraft.config", "rmm", "clusterkv", "clusterkv._clusterkv_knl"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["pylibraft"].config = sys.modules["pylibraft.config"]
    sys.modules["pylibraft.config"].set_output_as = lambda _: None
    sys.modules["pylibraft.neighbors"].ivf_flat = None
    sys.modules["clusterkv._clusterkv_knl"].search_indices = gather
    given = []
    sys.modules["pylibraft.cluster"].KMeansParams = None
    sys.modules["pylibraft.cluster"].fit = lambda _, keys: (given.pop(0), None, None)
    package = types.ModuleType("accuracy")
    package.__path__ = [str(oracles / "ClusterKV/accuracy")]
    sys.modules["accuracy"] = package
    code = importlib.import_module("accuracy.cluster_attention")
    code.torch = seen = Torch()

    cases = []
    for seed, prompt, sink, count, budget in [(71, 500, 16, 30, 128), (72, 416, 16, 5, 100), (73, 333, 4, 60, 64)]:
        q, keys, _ = inputs(seed, prompt + 1)
        centroids = [torch.from_numpy(clusters_of(keys[h, sink:prompt], count, seed)) for h in range(KV_HEADS)]
        given.extend(centroids)
        all_keys = torch.from_numpy(keys)[None]
        key_centroids, order, _, sizes, ends = code.build_cluster(all_keys[:, :, sink:prompt], count, False, None, GROUP, None)
        query = torch.from_numpy(q[prompt])[None, :, None]
        repeated = code.repeat_kv(all_keys, GROUP)
        numbers = torch.arange(prompt + 1, dtype=torch.float32)[None, None, :, None].expand(repeated.shape)
        code.cluster_attn_out(query, repeated, numbers, None, prompt, key_centroids, order, sizes, ends, GROUP, 2, budget, sink, "truc", None)
        read = seen.joined[0, :, :, 0].long()
        assert read.shape[1] == budget + 1 and all(len(set(rows.tolist())) == budget + 1 for rows in read)
        kept = read[:, sink:-1].tolist()
        scores = (query[0] @ key_centroids[0].transpose(1, 2))[:, 0].numpy()
        ordered = -np.sort(-scores, 1)
        taken = [int(np.searchsorted(np.cumsum(sizes[h].numpy()[np.argsort(-scores[h])]), budget - sink)) + 1 for h in range(HEADS)]
        unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
        cosines = [np.sort(unit(keys[h, sink:prompt]) @ unit(centroids[h].numpy()).T, 1) for h in range(KV_HEADS)]
        case = {"name": f"{prompt} rows, {count} clusters, budget {budget}", "oracle": "clusterkv", "inputs": described(seed, prompt + 1), "options": {"budget": budget, "sink": sink}, "prompt": prompt, "clusters": count}
        case |= {"gap": float(min((ordered[h, :n] - ordered[h, 1 : n + 1]).min() for h, n in enumerate(taken))), "labelGap": float(min((c[:, -1] - c[:, -2]).min() for c in cosines))}
        case |= {"sizes": sizes[::GROUP].tolist(), "order": (order + sink).tolist(), "kept": kept, "scores": tensor(scores)}
        cases.append(case | {"centroids": tensor(torch.stack(centroids).numpy())})
    save("clusterKV", "sjtu-zhao-lab/ClusterKV cb66a22, accuracy/cluster_attention.py; torch 2.8.0, transformers 4.57.1, scikit-learn 1.9.1", CONVENTIONS, cases)
