"""Our engine beside its peers: same data, same machine, one run.

`side_by_side.py --program ENGINE_BENCH DATASET…`. All engines are built first, one after
the other; then they are searched in turn at each `ef`: ours, peer A, ours, peer B, and so
on, round after round, and medians are taken over the rounds. Where memory does not take all
of them at once, the peers come in groups, ours beside each group.

A ratio compares a peer with those slices of ours that ran just before its own, at equal
recall@10, interpolated between the measured `ef` (figures.at_recall). The last line printed is one
JSON object with nothing but ratios, ours ÷ peer: queries a second and seconds to build.
"""

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

import datasets
import figures
from engines import ENGINES, TAKE_WRITES
from process import Process, Refused

EFS = (10, 14, 20, 30, 40, 64, 100, 200, 400)
QUICK_EFS = (10, 20, 40, 100, 400)
# Builds are most of a quick run: left out is who says least that another does not.
QUICK_QUERIES = 500
QUICK_ROUNDS = 3
QUICK_WITHOUT = ("faiss_sq8_refine", "pgvector")
CLIENTS = (8, 32)
# The peers that are built by one thread too: whom the goals name.
BUILT_BY_ONE = ("hnswlib", "symphonyqg")
# Part of the available memory that is used, and what an engine takes of it, in sizes of the
# base: while it is built the base itself, the index, and what is sorted and copied.
MEMORY_PART = 0.6
BASES_PER_ENGINE = 3
EF_OF_HUNDRED = 100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("datasets", nargs="+", metavar="DATASET")
    parser.add_argument("--program", required=True, help="the built engine-bench")
    parser.add_argument("--results", required=True, type=Path, help="folder for DATASET.json")
    parser.add_argument("--peers", help="names, comma-separated")
    parser.add_argument("--together", type=int, help="peers at a time; what memory takes")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one thread, few ef and rounds")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: of the engine's process, where other work shares the machine",
    )
    options = parser.parse_args()
    if options.quick:
        options.queries = min(options.queries, QUICK_QUERIES)
        options.rounds = min(options.rounds, QUICK_ROUNDS)
    options.efs = QUICK_EFS if options.quick else EFS
    options.peers = peers(options.peers, options.quick)
    return options


def peers(wanted, quick):
    if wanted is None:
        has_server = "PEERS_PGVECTOR_DSN" in os.environ
        left_out = QUICK_WITHOUT if quick else () if has_server else ("pgvector",)
        return [name for name in ENGINES if name not in left_out]
    unknown = set(wanted.split(",")) - set(ENGINES)
    if unknown:
        raise SystemExit(f"error: no peer {', '.join(unknown)}; there are {', '.join(ENGINES)}")
    return wanted.split(",")


def available_bytes():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("no MemAvailable in /proc/meminfo")


def groups(options, name):
    """The peers, as many at a time as memory takes beside ours; at least one."""
    engines = MEMORY_PART * available_bytes() / (BASES_PER_ENGINE * datasets.base_bytes(name))
    size = options.together or max(1, int(engines) - 1)
    return [options.peers[i : i + size] for i in range(0, len(options.peers), size)]


class Run:
    """One data set: who is built, and what was measured."""

    def __init__(self, options, name):
        self.options = options
        self.name = name
        self.builds = defaultdict(dict)
        self.memory = {}
        # Answers of all rounds by threads, engine (ours: "ours before PEER"), and `ef`.
        self.slices = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        self.hundred = {}
        self.concurrent = defaultdict(dict)
        self.folder = datasets.folder(name)
        self.log = open(options.results / f"{name}.log", "w")
        self.ours = Process.ours(options.program, self.folder, options.queries, self.log)

    def measure(self):
        self.build(self.ours, by_one=True)
        for group in groups(self.options, self.name):
            self.measure_group(group)
        self.ours.end()
        self.log.close()

    def measure_group(self, names):
        queries = self.options.queries
        running = [Process.peer(peer, self.folder, queries, self.log) for peer in names]
        built = []
        for peer in running:
            try:
                self.build(peer, by_one=peer.name in BUILT_BY_ONE)
                built.append(peer)
            except Refused as refused:
                self.leave_out(refused)
        try:
            self.sweep(built, threads=1)
            if not self.options.quick:
                self.sweep(built, threads=2)
            if built:
                self.measure_once(built)
        finally:
            for peer in running:
                peer.end()

    def build(self, engine, by_one):
        """By one thread where wanted, and then by two: this one is searched."""
        counts = (1, 2) if by_one and not self.options.quick else (2,)
        for threads in counts:
            took = engine.ask("build", threads=threads)
            self.builds[engine.name][threads] = took
            cpu = took["cpu_seconds"]
            print(
                f"{self.name}: {engine.name} built by {threads}: {took['seconds']:.1f} s"
                + (f", {cpu:.1f} s of the processor" if cpu else ""),
                flush=True,
            )
        self.memory[engine.name] = engine.ask("memory")["index_bytes"] / took["rows"]

    def leave_out(self, refused):
        print(f"{self.name}: left out: {refused}", flush=True)

    def sweep(self, built, threads):
        """Takes from `built` who does not get through."""
        # The first round warms up, and does not count.
        for number in range(self.options.rounds + 1):
            for ef in self.options.efs:
                for peer in list(built):
                    try:
                        self.slice_of_both(peer, ef, threads, counts=number > 0)
                    except Refused as refused:
                        self.leave_out(refused)
                        built.remove(peer)
                        del self.slices[threads][peer.name]

    def slice_of_both(self, peer, ef, threads, counts):
        for engine, label in ((self.ours, before(peer.name)), (peer, peer.name)):
            answers = self.slices[threads][label][ef]
            answer = engine.ask("search", ef=ef, k=10, threads=threads)
            if counts:
                answers.append(answer)

    def measure_once(self, built):
        """Recall@100, and many clients at the least `ef` that reaches 0.95."""
        seconds = 0.5 if self.options.quick else 3
        for engine in (self.ours, *built):
            if engine.name in self.hundred:
                continue
            answer = engine.ask("search", ef=EF_OF_HUNDRED, k=100)
            self.hundred[engine.name] = answer["recall"]
            label = engine.name if engine is not self.ours else before(built[0].name)
            ef = next(
                (ef for ef, (recall, _) in self.curve(label).items() if recall >= 0.95),
                self.options.efs[-1],
            )
            for clients in CLIENTS:
                asked = {"ef": ef, "k": 10, "clients": clients, "seconds": seconds}
                answer = engine.ask("concurrent", **asked)
                self.concurrent[engine.name][clients] = {"ef": ef, **answer}

    def curve(self, label, threads=1):
        """By `ef`: recall@10, and the median of queries a second."""
        return {
            ef: (answers[0]["recall"]["10"]["mean"], figures.median(map(self.rate, answers)))
            for ef, answers in self.slices[threads][label].items()
            if answers
        }

    def rate(self, answer):
        by_cpu = answer.get("qps_cpu") if self.options.clock == "cpu" else None
        return by_cpu or answer["qps"]

    def seconds(self, name, threads):
        took = self.builds[name][threads]
        by_cpu = took["cpu_seconds"] if self.options.clock == "cpu" else None
        return by_cpu or took["seconds"]

    def measured(self):
        return [name for name in self.options.peers if name in self.slices[1]]

    def ratios(self):
        values, notes = {}, []
        for peer in self.measured():
            ours, theirs = (list(self.curve(of).values()) for of in (before(peer), peer))
            seconds = (self.seconds(who, 2) for who in ("ours", peer))
            of_pair, notes_of_pair = figures.ratios(self.name, peer, ours, theirs, *seconds)
            values |= of_pair
            notes += notes_of_pair
        return values, notes

    def report(self):
        """What was measured, for plots and tables."""
        curves = {
            threads: {"ours": self.of_all_ours(threads)}
            | {peer: self.points(peer, threads) for peer in self.measured()}
            for threads in self.slices
        }
        return {
            "dataset": self.name,
            "clock": self.options.clock,
            "queries": self.options.queries,
            "rounds": self.options.rounds,
            "curves": curves,
            "builds": self.builds,
            "bytes_a_row": self.memory,
            "recall_at_100_of_ef_100": self.hundred,
            "concurrent": self.concurrent,
        }

    def points(self, label, threads):
        answers = self.slices[threads][label]
        return [
            {
                "ef": ef,
                "recall": answers[ef][0]["recall"],
                "distances": answers[ef][0].get("distances"),
                "qps": qps,
            }
            for ef, (_, qps) in self.curve(label, threads).items()
        ]

    def of_all_ours(self, threads):
        """Medians over the slices before any peer."""
        slices = self.slices[threads]
        labels = [before(peer) for peer in self.measured()]
        slices["ours"] = {
            ef: [answer for label in labels for answer in slices[label][ef]]
            for ef in self.options.efs
        }
        return self.points("ours", threads)


def before(peer):
    return f"ours before {peer}"


def print_tables(report):
    name = report["dataset"]
    for threads, curves in report["curves"].items():
        print(f"\n{name}, {threads} search thread(s): recall@10 and queries a second by ef")
        for engine, points in curves.items():
            cells = [f"{p['ef']}: {p['recall']['10']['mean']:.4f} {p['qps']:.0f}" for p in points]
            print(f"  {engine:17}" + "  ".join(cells))
    print(f"\n{name}: recall@1, @10 (all but 5 %), @100 at ef 100; bytes a row; clients")
    for engine, recalls in report["recall_at_100_of_ef_100"].items():
        clients = (
            f"{count}: {answer['qps']:.0f}/s, p99 {answer['p99_us']:.0f} µs"
            for count, answer in report["concurrent"][engine].items()
        )
        print(
            f"  {engine:17}{recalls['1']['mean']:.4f}  {recalls['10']['mean']:.4f} "
            f"({recalls['10']['p5']:.1f})  {recalls['100']['mean']:.4f} "
            f"({recalls['100']['p5']:.2f})  {report['bytes_a_row'][engine]:7.0f}  "
            + "  ".join(clients)
        )


def main():
    options = arguments()
    options.results.mkdir(parents=True, exist_ok=True)
    values, notes = {}, []
    for name in options.datasets:
        run = Run(options, name)
        run.measure()
        report = run.report()
        (options.results / f"{name}.json").write_text(json.dumps(report, indent=1))
        print_tables(report)
        of_run, notes_of_run = run.ratios()
        values |= of_run
        notes += notes_of_run
    print()
    for line in (*notes, *figures.verdicts(values, TAKE_WRITES)):
        print(line)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
