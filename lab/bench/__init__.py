"""`make bench`: what the agents cost, compared with the programs an engineer would use instead.

`python -m lab.bench` runs everything, `--only NAME` a part, `--quick` shorter runs. One module a
measurement: `measure(lab)` returns rows. `figures` defines a row, `lab` starts the programs
under measurement, `peers` the programs that they are compared with.
"""
