"""Real programs for the tests: fetched, started and stopped from plain Python.

`install` fetches, `process` runs, `localstack`, `clickhouse` and `prometheus` say how each
program is started, `kernel` makes control groups and small file systems. Fixtures over all of
them are in `tests/real/conftest.py`.
"""
