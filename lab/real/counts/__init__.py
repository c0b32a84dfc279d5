"""Count the cost of five pieces of work independently of the machine, against a baseline.

`workload` does the work, under valgrind's callgrind (instructions), tracemalloc (allocations) or
strace (system calls, fsyncs); `counting` runs it and reads the counts.
`python -m lab.real.counts` prints them next to the baseline, `--write` makes them the new one.
"""
