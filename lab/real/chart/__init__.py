"""The chart, rendered by real Helm: `render` runs it, `pods` finds pods and containers in it.

`crds` checks the kinds that Kubernetes has no schema for, `reference` writes VALUES.md, and
`python -m lab.real.chart` is `make chart`. `altinity_operator`, `prometheus_operator` and
`clickhouse_image` are models of programs that no registry has. Each names the commit of its source.
"""
