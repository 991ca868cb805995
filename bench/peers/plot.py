"""Draws recall against queries a second: `plot.py FOLDER RESULT.json…`, one SVG a result."""

import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

TITLES = {
    "fashion": "Fashion-MNIST, 60,000 × 784, L2",
    "wink": "English word vectors, 331,479 × 100, cosine",
    "wink100000": "English word vectors, 100,000 × 100, cosine",
    "synth200000": "Synthetic embeddings, 200,000 × 768, cosine",
    "synth200000x1536": "Synthetic embeddings, 200,000 × 1536, cosine",
    "synth1000000": "Synthetic embeddings, 1,000,000 × 768, cosine",
}
# Label, colour, marker. Colours that are told apart with any kind of eyes (Okabe and Ito).
STYLES = {
    "ours": ("RuVector", "#D55E00", "o"),
    "symphonyqg": ("SymphonyQG (static)", "#000000", "s"),
    "rabitq_hnsw": ("RaBitQ HNSW", "#0072B2", "v"),
    "qdrant_int8": ("Qdrant int8 + rescore", "#CC79A7", "D"),
    "vsag_sq8": ("VSAG HGraph SQ8 + reorder", "#009E73", "^"),
    "faiss_hnsw": ("faiss HNSW", "#56B4E9", "P"),
    "faiss_sq8_refine": ("faiss HNSW SQ8 + refine", "#56B4E9", "X"),
    "hnswlib": ("hnswlib", "#E69F00", "<"),
    "usearch": ("usearch", "#7F7F7F", ">"),
    "pgvector": ("pgvector, through SQL", "#8B4513", "*"),
}
DASHED = ("symphonyqg", "faiss_sq8_refine")
RECALL_TICKS = (0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
RECALL_MIN = 0.7
RECALL_MAX = 0.9995
# Where nothing was missed a logarithm ends: such points lie here, out of the picture.
RECALL_ALL = 0.99999


def toward_one(recall):
    """Stretches the end of the axis, where engines differ."""
    return -np.log10(1 - np.minimum(recall, RECALL_ALL))


def back(value):
    return 1 - 10.0 ** -np.asarray(value)


def rising(points):
    """Without those that more `ef` took nowhere."""
    kept = []
    for recall, qps in points:
        if not kept or recall > kept[-1][0]:
            kept.append((recall, qps))
    return kept


def draw(report, threads, folder):
    figure, axes = plt.subplots(figsize=(8, 5))
    curves = report["curves"][threads]
    for engine in (name for name in STYLES if name in curves):
        label, colour, marker = STYLES[engine]
        points = [(p["recall"]["10"]["mean"], p["qps"]) for p in curves[engine]]
        points = [(recall, qps) for recall, qps in rising(points) if recall >= RECALL_MIN]
        if not points:
            continue
        first = engine == "ours"
        axes.plot(
            *zip(*points),
            label=label,
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=2.6 if first else 1.4,
            linestyle="--" if engine in DASHED else "-",
            zorder=3 if first else 2,
        )
    axes.set_yscale("log")
    axes.set_xscale("function", functions=(toward_one, back))
    axes.set_xlim(RECALL_MIN, RECALL_MAX)
    axes.set_xticks(RECALL_TICKS)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    axes.grid(which="major", color="#DDDDDD", linewidth=0.8)
    axes.grid(which="minor", axis="y", color="#EEEEEE", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    unit = "second" if report["clock"] == "wall" else "second of processor time"
    words = "one search thread" if threads == "1" else f"{threads} search threads"
    axes.set_xlabel("recall@10")
    axes.set_ylabel(f"queries a {unit}")
    axes.set_title(f"{TITLES.get(report['dataset'], report['dataset'])}; {words}", fontsize=11)
    axes.legend(
        fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), labelspacing=0.9
    )
    suffix = "" if threads == "1" else f"-{threads}-threads"
    path = folder / f"{report['dataset']}{suffix}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    print(f"  {path}")


def begin(folder):
    """Pictures are drawn into that folder from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    matplotlib.use("svg")
    # The same picture is the same file; text stays text.
    matplotlib.rcParams["svg.hashsalt"] = "ruvector"
    matplotlib.rcParams["svg.fonttype"] = "none"


def main():
    folder = Path(sys.argv[1])
    begin(folder)
    for name in sys.argv[2:]:
        report = json.loads(Path(name).read_text())
        for threads in report["curves"]:
            draw(report, threads, folder)


if __name__ == "__main__":
    main()
