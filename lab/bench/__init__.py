"""`make bench`: the cost of the daemons, compared with the programs used instead of them.

`python -m lab.bench` runs everything, `--only NAME` a part, `--quick` shorter runs. One module per
measurement: `measure(lab)` returns rows. `figures` defines a row, `lab` starts the programs
under measurement, `peers` the programs that they are compared with.
"""
