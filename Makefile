# What each target does is in scripts/; 'make help' lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

NODES ?= 3
COORDINATORS ?= 3
REPLICAS ?= 2
SEEDS ?= 1..500
MINUTES ?= 10

.PHONY: help quickstart up down add remove start stop status psql dsn ctl logs bench bench-failover bench-backfill bench-replication bench-engine sim soak fuzz sanitize build setup test test-aarch64 clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: ## install, build, start Postgres and a one-process cluster, load and search Fashion-MNIST
	@scripts/quickstart.sh

up: ## a cluster of separate processes: NODES=3 COORDINATORS=3 (or 1) REPLICAS=2
	@scripts/cluster.sh check up '$(NODES)' '$(COORDINATORS)' '$(REPLICAS)'
	@scripts/setup.sh
	@scripts/build.sh
	@scripts/cluster.sh up '$(NODES)' '$(COORDINATORS)' '$(REPLICAS)'
	@echo "make psql | status | logs | down;  one process again: make start PROC=node-2"

add: ## one more node beside those of make up; replicas move to it by themselves
	@scripts/cluster.sh add node

remove: ## move everything off a node, forget it, stop it, put its data aside: PROC=node-2
	@$(if $(PROC),,echo "error: say which: make remove PROC=node-2" >&2; exit 2;) scripts/cluster.sh remove '$(PROC)'

start: ## start one process again on its own data: PROC=node-2 (postgres too)
	@$(if $(PROC),,echo "error: say which: make start PROC=node-2" >&2; exit 2;) scripts/cluster.sh start '$(PROC)'

stop: ## stop one process: PROC=node-2
	@$(if $(PROC),,echo "error: say which: make stop PROC=node-2" >&2; exit 2;) scripts/cluster.sh stop '$(PROC)'

down: ## stop everything, keep the data
	@scripts/cluster.sh down

status: ## the processes, and the cluster's view of itself
	@scripts/cluster.sh status

psql: ## a SQL prompt in the private Postgres
	@. scripts/env.sh && dsn=$$(scripts/postgres.sh dsn) && exec "$$PG_BIN/psql" "$$dsn"

dsn: ## print the libpq connection string
	@scripts/postgres.sh dsn

ctl: ## ask the cluster: ARGS='lag --json' (status, map, lag, source, node, coordinator, rebalance, move, …)
	@scripts/cluster.sh ctl $(ARGS)

logs: ## follow all logs
	@scripts/cluster.sh logs

bench: ## freshness and SQL overhead, at the running quickstart
	@scripts/bench.sh

sim: ## a whole cluster from one seed, for many seeds: SEEDS=1..2000
	@scripts/sim.sh '$(SEEDS)'

soak: ## hundreds of random histories with crashes, against a real Postgres: SEEDS=1..300
	@SEEDS='$(if $(filter-out file,$(origin SEEDS)),$(SEEDS),1..300)' scripts/histories.sh

fuzz: ## mangled streams, COPY, wire messages and records, so long each: MINUTES=10
	@scripts/fuzz.sh '$(MINUTES)'

sanitize: ## the index engine's tests under AddressSanitizer
	@scripts/sanitize.sh

bench-backfill: ## the consumer's memory while it fills tables of 100,000 and 3,000,000 rows
	@scripts/bench-backfill.sh

bench-replication: ## COPY and single rows until searchable, consumer memory, pgbench: ARGS='full' (or 'quick copy single')
	@scripts/bench-replication.sh $(ARGS)

bench-engine: ## the engine beside hnswlib, faiss, usearch, Qdrant, VSAG, SymphonyQG…: QUICK=1, or ARGS='long' ('inserts', 'growth', 'memory', 'kernels')
	@QUICK='$(QUICK)' scripts/bench-engine.sh $(ARGS)

bench-failover: ## leader kill, node kill and a move under load, in a cluster of its own
	@scripts/bench-failover.sh

setup: ## install the Debian packages, compile RocksDB once
	@scripts/setup.sh

build: ## build and install binary and extension
	@scripts/setup.sh
	@scripts/build.sh

test: ## formatting, lints, unit, extension and integration tests
	@scripts/test.sh $(SUITES)

test-aarch64: ## the engine's kernels and index on 64-bit ARM, under emulation where need be
	@scripts/test-aarch64.sh

clean: ## stop everything and delete its data (build caches stay)
	@scripts/clean.sh
