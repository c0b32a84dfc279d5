"""Counts that do not depend on the machine: what five pieces of work cost, held by a baseline.

`workload` does the work, under valgrind's callgrind (instructions), tracemalloc (allocations) or
strace (system calls, fsyncs); `counting` runs it and reads the counts.
`python -m lab.real.counts` prints them next to the baseline, `--write` makes them the new one.
"""
