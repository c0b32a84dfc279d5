"""`make bench`: what the agents cost, beside the programs an engineer would use instead.

`python -m lab.bench` runs everything, `--only NAME` a part, `--quick` shorter runs. One module a
measurement: `measure(lab)` returns rows. `figures` says what a row is, `lab` starts what is
measured, `peers` the programs beside it.
"""
