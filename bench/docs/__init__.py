"""The generated documents: `python -m bench.docs` writes them, with `--check` it compares them.

One file a document: `methods.py` (docs/methods.md, and a table in README.md), `speed.py` (a table
in README.md), `claims.py` (docs/claims.md), `tasks.py` (docs/tasks.md). They read what the library
says of itself and what the benchmarks stored.
"""
