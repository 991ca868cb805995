"""pgvector's HNSW through SQL, at the server that PEERS_PGVECTOR_DSN names.

Its work is done by the server's processes, so it has no processor time here. What is
loaded stays in one table, `engine_bench`, dropped at the end.
"""

import os
import struct
import threading

from clock import Clock
from engine import EF_CONSTRUCTION, M, Engine

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_ROWS = 500


def binary(vector):
    """The wire form of pgvector's type: dimensions, an unused number, floats."""
    return struct.pack(">HH", len(vector), 0) + vector.astype(">f4").tobytes()


class Pgvector(Engine):
    name = "pgvector"

    def __init__(self):
        self.connections = threading.local()
        self.ef = None

    def connection(self):
        """This thread's own, with `ef` set."""
        mine = self.connections
        if not hasattr(mine, "connection"):
            import psycopg

            dsn = os.environ["PEERS_PGVECTOR_DSN"]
            mine.connection = psycopg.connect(dsn, autocommit=True)
            mine.ef = None
            send_wires_as_vectors(mine.connection)
        if mine.ef != self.ef:
            mine.connection.execute(f"SET hnsw.ef_search = {self.ef}")
            mine.ef = self.ef
        return mine.connection

    def build(self, base, is_l2, threads):
        connection = self.connection()
        connection.execute("DROP TABLE IF EXISTS engine_bench")
        connection.execute(f"CREATE TABLE engine_bench (id int8, v vector({base.shape[1]}))")
        self.copy(connection, base)
        connection.execute("SET maintenance_work_mem = '4GB'")
        connection.execute(f"SET max_parallel_maintenance_workers = {threads - 1}")
        self.operator = "<->" if is_l2 else "<=>"
        operators = "vector_l2_ops" if is_l2 else "vector_cosine_ops"
        clock = Clock()
        connection.execute(
            f"CREATE INDEX engine_bench_v ON engine_bench USING hnsw (v {operators}) "
            f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        elapsed = clock.elapsed()
        connection.execute("CHECKPOINT")
        return {"seconds": elapsed["seconds"], "cpu_seconds": None}

    @staticmethod
    def copy(connection, base):
        with connection.cursor().copy("COPY engine_bench FROM STDIN BINARY") as copy:
            copy.write(COPY_HEADER)
            for start in range(0, len(base), COPY_ROWS):
                rows = []
                for row in range(start, min(start + COPY_ROWS, len(base))):
                    vector = binary(base[row])
                    rows.append(struct.pack(">hiqi", 2, 8, row, len(vector)) + vector)
                copy.write(b"".join(rows))
            copy.write(struct.pack(">h", -1))

    def set_ef(self, ef):
        self.ef = ef

    def search_one(self, query, k, ef):
        sql = f"SELECT id FROM engine_bench ORDER BY v {self.operator} %b LIMIT {k}"
        cursor = self.connection().cursor(binary=True)
        return [row[0] for row in cursor.execute(sql, (Wire(binary(query)),), prepare=True)]

    def index_bytes(self):
        sql = "SELECT pg_relation_size('engine_bench_v') + pg_table_size('engine_bench')"
        return self.connection().execute(sql).fetchone()[0]

    def close(self):
        self.connection().execute("DROP TABLE IF EXISTS engine_bench")


class Wire:
    """A vector in its wire form."""

    def __init__(self, content):
        self.content = content


def send_wires_as_vectors(connection):
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class WireDumper(Dumper):
        format = Format.BINARY

        def dump(self, value):
            return value.content

    found = connection.execute("SELECT oid FROM pg_type WHERE typname = 'vector'").fetchone()
    WireDumper.oid = found[0]
    connection.adapters.register_dumper(Wire, WireDumper)
