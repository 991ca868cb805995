"""The peers that run in process: how each is built and searched, and which take writes."""

import json
import os
import shutil
import tempfile

import numpy as np

from clock import Clock
from engine import EF_CONSTRUCTION, M, Engine
from pgvector import Pgvector


class Hnswlib(Engine):
    name = "hnswlib"

    def build(self, base, is_l2, threads):
        import hnswlib

        self.index = hnswlib.Index("l2" if is_l2 else "ip", base.shape[1])
        self.index.init_index(len(base), ef_construction=EF_CONSTRUCTION, M=M)
        self.index.add_items(base, num_threads=threads)

    def set_ef(self, ef):
        self.index.set_ef(ef)

    def search_one(self, query, k, ef):
        return self.search(query, k, ef, 1)[0]

    def search(self, queries, k, ef, threads):
        return self.index.knn_query(queries, k, num_threads=threads)[0]


class FaissHnsw(Engine):
    """Vectors as they are. Faiss has no deletion from HNSW."""

    name = "faiss_hnsw"
    takes_deletes = False

    def make(self, dimensions, metric):
        return self.faiss.IndexHNSWFlat(dimensions, M, metric)

    def build(self, base, is_l2, threads):
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(threads)
        metric = faiss.METRIC_L2 if is_l2 else faiss.METRIC_INNER_PRODUCT
        self.graph = self.make(base.shape[1], metric)
        self.graph.hnsw.efConstruction = EF_CONSTRUCTION
        self.graph.train(base)
        self.graph.add(base)
        self.index = self.graph

    def set_ef(self, ef):
        self.graph.hnsw.efSearch = ef

    def search_one(self, query, k, ef):
        return self.index.search(query[None], k)[1][0]

    def search(self, queries, k, ef, threads):
        self.faiss.omp_set_num_threads(threads)
        found = self.index.search(queries, k)[1]
        self.faiss.omp_set_num_threads(1)
        return found


class FaissSq8Refine(FaissHnsw):
    """Eight bits a dimension; the nearest 2k are ranked by the vectors themselves."""

    name = "faiss_sq8_refine"

    def make(self, dimensions, metric):
        kind = self.faiss.ScalarQuantizer.QT_8bit
        return self.faiss.IndexHNSWSQ(dimensions, kind, M, metric)

    def build(self, base, is_l2, threads):
        super().build(base, is_l2, threads)
        self.flat = self.faiss.IndexFlat(base.shape[1], self.graph.metric_type)
        self.flat.add(base)
        self.index = self.faiss.IndexRefine(self.graph, self.flat)
        self.index.k_factor = 2


class Usearch(Engine):
    name = "usearch"

    def build(self, base, is_l2, threads):
        from usearch.index import Index

        self.index = Index(
            ndim=base.shape[1],
            metric="l2sq" if is_l2 else "cos",
            dtype="f32",
            connectivity=M,
            expansion_add=EF_CONSTRUCTION,
        )
        self.index.add(np.arange(len(base), dtype=np.uint64), base, threads=threads)

    def set_ef(self, ef):
        self.index.expansion_search = ef

    def search_one(self, query, k, ef):
        return self.index.search(query, k, threads=1).keys

    def search(self, queries, k, ef, threads):
        return self.index.search(queries, k, threads=threads).keys


class QdrantInt8(Engine):
    """Qdrant's engine in process: eight bits a dimension in RAM, twice as many rows ranked
    again by their vectors. Its build is `optimize`: to load points through Python is not
    counted against it."""

    name = "qdrant_int8"
    BATCH = 500
    shard = None

    def build(self, base, is_l2, threads):
        import qdrant_edge as qe

        self.qe = qe
        distance = qe.Distance.Euclid if is_l2 else qe.Distance.Dot
        eight_bits = qe.ScalarType.Int8
        config = qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(base.shape[1], distance),
            # The third: the KiB below which a segment is scanned.
            hnsw_config=qe.HnswIndexConfig(M, EF_CONSTRUCTION, 10, max_indexing_threads=threads),
            quantization_config=qe.ScalarQuantizationConfig(
                eight_bits, quantile=0.99, always_ram=True
            ),
            optimizers=qe.EdgeOptimizersConfig(
                default_segment_number=1, max_segment_size=10**9, indexing_threshold=1000
            ),
        )
        self.path = tempfile.mkdtemp(prefix="qdrant-", dir=os.environ.get("PEERS_TMP"))
        self.shard = qe.EdgeShard.create(self.path, config)
        for start in range(0, len(base), self.BATCH):
            rows = range(start, min(start + self.BATCH, len(base)))
            points = [qe.Point(row, base[row].tolist(), {}) for row in rows]
            self.shard.update(qe.UpdateOperation.upsert_points(points))
        clock = Clock()
        self.shard.optimize()
        return clock.elapsed()

    def set_ef(self, ef):
        rescored = self.qe.QuantizationSearchParams(rescore=True, oversampling=2.0)
        self.params = self.qe.SearchParams(hnsw_ef=ef, quantization=rescored)

    def search_one(self, query, k, ef):
        nearest = self.qe.Query.Nearest(query.tolist())
        found = self.shard.search(self.qe.SearchRequest(nearest, k, params=self.params))
        return [point.id for point in found]

    def close(self):
        if self.shard is not None:
            self.shard.close()
            self.shard = None
            shutil.rmtree(self.path, ignore_errors=True)


class VsagSq8(Engine):
    """HGraph over eight bits a dimension, ranked again by the vectors. The library inserts
    and marks rows as deleted; its Python package only builds and searches."""

    name = "vsag_sq8"

    def build(self, base, is_l2, threads):
        import pyvsag

        pyvsag.set_logger_off()
        params = {
            "dtype": "float32",
            "metric_type": "l2",
            "dim": base.shape[1],
            "index_param": {
                "base_quantization_type": "sq8_uniform",
                "precise_quantization_type": "fp32",
                "use_reorder": True,
                "max_degree": 2 * M,
                "ef_construction": EF_CONSTRUCTION,
                "build_thread_count": threads,
            },
        }
        self.index = pyvsag.Index("hgraph", json.dumps(params))
        ids = np.arange(len(base), dtype=np.int64)
        self.index.build(base.ravel(), ids, len(base), base.shape[1])

    def search_one(self, query, k, ef):
        params = json.dumps({"hgraph": {"ef_search": max(ef, k)}})
        return self.index.knn_search(query, k, params)[0]


class RabitqHnsw(Engine):
    """HNSW over RaBitQ codes of eight bits a dimension around sixteen centroids."""

    name = "rabitq_hnsw"
    BITS = 8
    CENTROIDS = 16

    def build(self, base, is_l2, threads):
        import faiss
        import rabitqlib

        faiss.omp_set_num_threads(threads)
        clusters = faiss.Kmeans(base.shape[1], self.CENTROIDS, niter=10, seed=1)
        clusters.train(base)
        nearest = clusters.index.search(base, 1)[1][:, 0].astype(np.uint32)
        centroids = clusters.centroids.astype(np.float32)
        self.index = rabitqlib.HnswIndex(
            base.shape[1], len(base), M, EF_CONSTRUCTION, self.BITS, "l2"
        )
        self.index.build(base, centroids, nearest, threads)

    def search_one(self, query, k, ef):
        return self.search(query[None], k, ef, 1)[0]

    def search(self, queries, k, ef, threads):
        return integers_of(self.index.search(queries, k, max(ef, k), threads))


class SymphonyQg(Engine):
    """One-bit codes beside the links, ranked exactly on the way. Static."""

    name = "symphonyqg"
    takes_inserts = False
    takes_deletes = False

    def build(self, base, is_l2, threads):
        import rabitqlib

        self.index = rabitqlib.SymqgIndex(base.shape[1], 2 * M, "l2")
        self.index.build(base, EF_CONSTRUCTION, threads)

    def search_one(self, query, k, ef):
        return self.search(query[None], k, ef, 1)[0]

    def search(self, queries, k, ef, threads):
        return integers_of(self.index.search(queries, k, max(ef, k), threads))


def integers_of(pair):
    """Ids and distances, in whichever order a release returns them."""
    return next(part for part in pair if np.issubdtype(part.dtype, np.integer))


ENGINES = {
    engine.name: engine
    for engine in (
        Hnswlib,
        FaissHnsw,
        FaissSq8Refine,
        Usearch,
        QdrantInt8,
        VsagSq8,
        RabitqHnsw,
        SymphonyQg,
        Pgvector,
    )
}

# Who takes inserts and deletes; the others are read only, or never forget.
TAKE_WRITES = {e.name for e in ENGINES.values() if e.takes_inserts and e.takes_deletes}
