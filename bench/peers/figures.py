"""Recall, percentiles, and ratios at equal recall. Plain Python: nothing to install."""

import json
import math

RECALLS = {"r095": 0.95, "r099": 0.99}


def percentile(values, percent):
    """The nearest-rank percentile."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[min(max(rank, 1), len(ordered)) - 1]


def median(values):
    """The lower one of two in the middle."""
    return percentile(values, 50)


def recall(found, nearest, rows):
    """Share of the nearest `rows` found: the mean, and what all but a twentieth of the
    queries reach."""
    shares = []
    for ids, near in zip(found, nearest, strict=True):
        near = set(near[:rows])
        shares.append(len(near.intersection(ids[:rows])) / len(near))
    return {"mean": sum(shares) / len(shares), "p5": percentile(shares, 5)}


def at_recall(points, target):
    """A figure at a recall, from points (recall, figure) of rising `ef`.

    Between two points it lies on a straight line of the figure's logarithm; before the
    first it is the first one's, beyond the last there is none.
    """
    if not points:
        return None
    if points[0][0] >= target:
        return points[0][1]
    for (low, before), (high, after) in zip(points, points[1:]):
        if low < target <= high:
            part = (target - low) / (high - low)
            return math.exp(math.log(before) * (1 - part) + math.log(after) * part)
    return None


def at_recall_or_last(points, target):
    """The figure at the recall and None; where it is not reached, the last point's figure
    and recall."""
    figure = at_recall(points, target)
    return (figure, None) if figure is not None else (points[-1][1], points[-1][0])


def ratios(name, peer, ours, theirs, ours_build_s, theirs_build_s):
    """Ours over a peer's: queries a second at each recall, and seconds to build.

    `ours` and `theirs` are points (recall, queries a second) of rising `ef`. Returns
    what the last line says of the pair, and a sentence for each recall not reached.
    """
    values, notes = {}, []
    for suffix, target in RECALLS.items():
        our_qps, our_last = at_recall_or_last(ours, target)
        their_qps, their_last = at_recall_or_last(theirs, target)
        for who, last in (("ours", our_last), (peer, their_last)):
            if last is not None:
                notes.append(
                    f"{name}: {who} never reaches {target}: "
                    f"its point at the most ef is taken, recall {last:.4f}"
                )
        values[f"{name}.qps_ratio_{peer}_{suffix}"] = round(our_qps / their_qps, 3)
    values[f"{name}.build_ratio_{peer}"] = round(ours_build_s / theirs_build_s, 3)
    return values, notes


def verdicts(values, takes_writes):
    """Which goals each ratio meets: lines of text. `takes_writes`: the peers that take
    inserts and deletes, as a set of names."""
    lines = []
    for key, value in sorted(values.items()):
        figure = key.split(".", 1)[1]
        if figure == "build_ratio_hnswlib":
            met, goal = value <= 0.5, "≤ 0.5"
        elif figure.startswith("qps_ratio_symphonyqg_"):
            met, goal = value >= 1.1, "≥ 1.1"
        elif figure.startswith("qps_ratio_") and peer_of(figure) in takes_writes:
            met, goal = value >= 2.0, "≥ 2"
        else:
            continue
        lines.append(f"{key}: {value} (goal {goal}) {'met' if met else 'missed'}")
    return lines


def peer_of(figure):
    """`hnswlib` of `qps_ratio_hnswlib_r095`."""
    return figure.removeprefix("qps_ratio_").rsplit("_", 1)[0]


def filtered(text):
    """What the example `filtered` wrote: the searches without a filter, and the rows of each
    kind of filter, the widest first."""
    whole, *rows = [json.loads(line) for line in text.splitlines()]
    kinds = {}
    for row in sorted(rows, key=lambda row: -row["percent"]):
        kinds.setdefault(row["filter"], []).append(row)
    return whole, kinds


def ranking_all(kinds):
    """Queries a second by the share that matches, where all that match are ranked: the median of
    all kinds, for what is ranked is as much whatever it is near to."""
    by_percent = {}
    for rows in kinds.values():
        for row in rows:
            by_percent.setdefault(row["percent"], []).append(row["qps_cpu_ranking_all"])
    return [(percent, median(by_percent[percent])) for percent in sorted(by_percent, reverse=True)]
