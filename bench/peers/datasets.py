"""Data sets: folders with `base.npy`, `query.npy` (f32), `gt_ids.npy` (the row numbers of
each query's exact nearest hundred) and `meta.json`.

Vectors of cosine sets are stored with length one, so that the cosine, the inner product
and L2 order them alike.
"""

import json
import os
from pathlib import Path

import numpy as np

NEAREST = 100


def root():
    """Where the peers and their data live, outside of any clone."""
    cache = os.environ.get("RUVECTOR_CACHE", Path.home() / ".cache" / "ruvector")
    return Path(os.environ.get("PEERS_ROOT", Path(cache) / "peers"))


def folder(name):
    return root() / "data" / name


def base_bytes(name):
    return (folder(name) / "base.npy").stat().st_size


class DataSet:
    """The metric and the queries; the base is read by who builds."""

    def __init__(self, path, queries_max):
        self.path = Path(path)
        meta = json.loads((self.path / "meta.json").read_text())
        self.is_l2 = meta["metric"] == "l2"
        queries = np.load(self.path / "query.npy", mmap_mode="r")[:queries_max]
        self.queries = np.array(queries)
        nearest = np.load(self.path / "gt_ids.npy", mmap_mode="r")[:queries_max]
        self.nearest = nearest.tolist()

    def base(self):
        return np.load(self.path / "base.npy")


def ground_truth(base, queries, is_l2, threads):
    import faiss

    faiss.omp_set_num_threads(threads)
    metric = faiss.METRIC_L2 if is_l2 else faiss.METRIC_INNER_PRODUCT
    return faiss.knn(queries, base, NEAREST, metric=metric)[1].astype(np.int32)


def save(name, base, queries, metric):
    """Writes a data set; `base` may be the memory-mapped `base.npy` of its folder."""
    path = folder(name)
    path.mkdir(parents=True, exist_ok=True)
    if not isinstance(base, np.memmap):
        np.save(path / "base.npy", np.ascontiguousarray(base, np.float32))
    queries = np.ascontiguousarray(queries, np.float32)
    np.save(path / "query.npy", queries)
    nearest = ground_truth(base, queries, metric == "l2", os.cpu_count())
    np.save(path / "gt_ids.npy", nearest)
    # Last: a folder with this file is complete.
    meta = {"name": name, "metric": metric, "n": base.shape[0], "d": base.shape[1]}
    (path / "meta.json").write_text(json.dumps(meta, indent=1))
