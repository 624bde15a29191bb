"""Writes METHOD.json beside itself: what published implementations of KV policies keep of the same queries, keys and values.

    python tests/golden/policies/make_policies.py ORACLES [METHOD ...]

ORACLES is a folder with checkouts of the repositories that each file's head names, by their names. Nothing of them is copied: their
functions are called with inputs made here, and where they return tensors only, the values carry row numbers, which say what was kept.
"""

import importlib
import sys
from pathlib import Path

METHODS = {"snapKV": "snap_kv", "quest": "quest", "h2o": "h2o", "chunkKV": "chunk_kv", "pyramidInfer": "pyramid_infer", "infiniGen": "infini_gen", "clusterKV": "cluster_kv"}

if __name__ == "__main__":
    oracles, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(METHODS)
    sys.path.insert(0, str(Path(__file__).parent))
    for method in wanted:
        importlib.import_module(f"make_{METHODS[method]}").make(oracles)
