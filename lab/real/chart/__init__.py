"""The chart, rendered by real Helm: `render` runs it, `pods` finds what matters in it.

`crds` checks the kinds that Kubernetes has no schema for, `reference` writes VALUES.md, and
`python -m lab.real.chart` is `make chart`.
"""
