"""One peer in a process of its own: `serve.py PEER FOLDER QUERIES`.

Answers the commands that `engine-bench serve` does (bench/engine/src/serve.rs), one JSON
line for each: build, search, concurrent, memory. Searches of many queries go to the
package in one call where it has one; `concurrent` asks from Python's threads, one query at
a time, so a few microseconds of each, and the interpreter's lock, are Python's.
"""

import ctypes
import gc
import itertools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import figures
from clock import Clock, resident_bytes
from datasets import DataSet
from engines import ENGINES

RECALLS = (1, 10, 100)


class Server:
    def __init__(self, engine, data):
        self.new_engine = engine
        self.engine = None
        self.data = data
        self.resident_before = 0

    def build(self, threads="1"):
        self.close()
        self.resident_before = settled_bytes()
        self.engine = self.new_engine()
        base = self.data.base()
        clock = Clock()
        elapsed = self.engine.build(base, self.data.is_l2, int(threads)) or clock.elapsed()
        return {"rows": len(base), "threads": int(threads), **elapsed}

    def search(self, ef="100", k="10", threads="1"):
        ef, k, threads = int(ef), int(k), int(threads)
        queries = self.data.queries
        self.engine.set_ef(ef)
        clock = Clock()
        found = self.engine.search(queries, k, ef, threads)
        elapsed = clock.elapsed()
        found = [[int(row) for row in ids] for ids in found]
        recalls = {
            str(at): figures.recall(found, self.data.nearest, at) for at in RECALLS if at <= k
        }
        in_process = self.engine.index_bytes() is None
        return {
            "qps": len(queries) / elapsed["seconds"],
            "qps_cpu": len(queries) / elapsed["cpu_seconds"] if in_process else None,
            "recall": recalls,
        }

    def concurrent(self, ef="100", k="10", clients="1", seconds="2"):
        ef, k, clients = int(ef), int(k), int(clients)
        queries = self.data.queries
        self.engine.set_ef(ef)
        next_query = itertools.count()
        until = time.perf_counter() + float(seconds)

        def client(_):
            times = []
            while (asked := time.perf_counter()) < until:
                query = queries[next(next_query) % len(queries)]
                self.engine.search_one(query, k, ef)
                times.append(time.perf_counter() - asked)
            return times

        clock = Clock()
        with ThreadPoolExecutor(clients) as pool:
            times = [taken for part in pool.map(client, range(clients)) for taken in part]
        elapsed = clock.elapsed()
        return {
            "queries": len(times),
            "qps": len(times) / elapsed["seconds"],
            "p50_us": figures.percentile(times, 50) * 1e6,
            "p99_us": figures.percentile(times, 99) * 1e6,
        }

    def memory(self):
        resident = settled_bytes()
        elsewhere = self.engine.index_bytes()
        index = max(resident - self.resident_before, 0) if elsewhere is None else elsewhere
        return {"resident_bytes": resident, "index_bytes": index}

    def close(self):
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def answer(self, line):
        command, *options = line.split()
        if command not in ("build", "search", "concurrent", "memory"):
            raise ValueError(f"no command '{command}'")
        return getattr(self, command)(**dict(option.split("=") for option in options))


def settled_bytes():
    """Resident memory once what is free has been given back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return resident_bytes()


def main():
    name, folder, queries = sys.argv[1:]
    # Packages write to stdout as they please: the answers have it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(ENGINES[name], DataSet(folder, int(queries)))
    for line in sys.stdin:
        try:
            answer = server.answer(line)
        except Exception as error:  # Whatever a package raises is the answer.
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)
    server.close()


if __name__ == "__main__":
    main()
