"""What a peer is to the benchmark.

All are built with 16 links (32 on level 0) and `ef_construction` 200, as their users have
them. `ef` means in all of them how many rows are kept in sight. Each runs in a process of
its own, see serve.py.
"""

from concurrent.futures import ThreadPoolExecutor

M = 16
EF_CONSTRUCTION = 200


class Engine:
    name = ""
    takes_inserts = True
    takes_deletes = True

    def build(self, base, is_l2, threads):
        """Instead of what was built before. Returns what `Clock.elapsed` does where it also
        does what is not to count, otherwise nothing."""
        raise NotImplementedError

    def set_ef(self, ef):
        """Called before searches, not within them."""

    def search_one(self, query, k, ef):
        """Ids, nearest first."""
        raise NotImplementedError

    def search(self, queries, k, ef, threads):
        """Ids of each query. Where the package has no call for many, a call for each."""
        if threads == 1:
            return [self.search_one(query, k, ef) for query in queries]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda query: self.search_one(query, k, ef), queries))

    def index_bytes(self):
        """What it holds elsewhere than in this process."""
        return None

    def close(self):
        """Leaves nothing behind."""
