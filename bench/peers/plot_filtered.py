"""Draws filtered searches: `plot_filtered.py FOLDER RESULT.json`, what the example `filtered`
of the engine wrote with `json=`. Above recall against how many rows match, below queries a
second; one line a kind of filter."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from figures import filtered, ranking_all
from plot import TITLES, begin

# Label, colour, marker. Colours that are told apart with any kind of eyes (Okabe and Ito).
STYLES = {
    "random": ("random rows", "#D55E00", "o"),
    "ball near": ("the rows nearest to the query", "#0072B2", "v"),
    "ball far": ("the rows farthest from it", "#56B4E9", "^"),
    "side near": ("its side of a plane", "#009E73", "s"),
    "side far": ("the other side", "#CC79A7", "D"),
}
UNFILTERED = "#000000"
RANKING_ALL = "#7F7F7F"
RECALL_GOAL = 0.95
RECALL_MIN = 0.94
PERCENT_TICKS = (90, 50, 25, 10, 5, 2, 1, 0.5, 0.1, 0.05, 0.01)
# Beyond the widest filter and the narrowest.
PERCENT_ENDS = (125, 0.0075)


def lines(axes, kinds, figure):
    for name, rows in kinds.items():
        label, colour, marker = STYLES[name]
        axes.plot(
            [row["percent"] for row in rows],
            [row[figure] for row in rows],
            label=label,
            color=colour,
            marker=marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=1.6,
            zorder=3,
        )


def tidy(axes):
    axes.grid(which="major", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def of_data(whole):
    """Its title, of the rows that were searched: maybe not all that it has."""
    name, *rest = TITLES.get(whole["data"], whole["data"]).split(", ")
    size = f"{whole['rows']:,} × {whole['dimensions']}"
    return ", ".join([name, size, *rest[-1:]])


def draw(whole, kinds):
    figure, (recall, speed) = plt.subplots(2, 1, figsize=(8, 8), sharex=True)
    figure.subplots_adjust(hspace=0.08)
    recall.axhline(RECALL_GOAL, color=RANKING_ALL, linestyle=":", linewidth=1.4, zorder=2)
    recall.annotate(
        "goal: 0.95 everywhere",
        (PERCENT_ENDS[0], RECALL_GOAL),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8.5,
        color="#555555",
    )
    without = {"color": UNFILTERED, "linestyle": "--", "linewidth": 1.4, "zorder": 2}
    recall.axhline(whole["recall"], **without)
    lines(recall, kinds, "recall")
    least = min(row["recall"] for rows in kinds.values() for row in rows)
    recall.set_ylim(min(RECALL_MIN, least - 0.01), 1.003)
    recall.set_ylabel("recall@10")
    title = f"Filtered search: {of_data(whole)}; ef = {whole['ef']}, one search thread"
    recall.set_title(title, fontsize=11)

    speed.axhline(whole["qps_cpu"], label="no filter", **without)
    speed.plot(
        *zip(*ranking_all(kinds)),
        label="ranking all that match",
        color=RANKING_ALL,
        linewidth=5,
        alpha=0.45,
        zorder=1,
    )
    lines(speed, kinds, "qps_cpu")
    speed.set_yscale("log")
    speed.yaxis.set_major_locator(LogLocator())
    speed.yaxis.set_minor_locator(NullLocator())
    speed.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))
    speed.set_ylabel("queries a second of processor time")
    speed.set_xscale("log")
    speed.set_xlim(*PERCENT_ENDS)
    speed.set_xticks(PERCENT_TICKS)
    speed.xaxis.set_minor_locator(NullLocator())
    speed.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g} %"))
    speed.tick_params(axis="x", labelsize=9)
    speed.set_xlabel("rows that match the filter")
    for axes in (recall, speed):
        tidy(axes)
    figure.align_ylabels()
    speed.legend(
        fontsize=8.5,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 1.04),
        labelspacing=0.9,
    )
    return figure


def main():
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    begin(folder)
    path = folder / "filtered.svg"
    draw(*filtered(result.read_text())).savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(f"  {path}")


if __name__ == "__main__":
    main()
