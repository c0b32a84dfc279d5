"""Real programs for the tests: fetched, started and stopped from plain Python.

`install` fetches, `process` runs, `localstack`, `clickhouse` and `prometheus` start each program,
`kernel` makes control groups and small file systems. `tests/real/conftest.py` has their fixtures.
"""
