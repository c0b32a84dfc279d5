"""A Kubernetes of real components on this machine, with the chart in it: `make cluster`.

`parts` builds and fetches the programs and images. `machine` makes namespaces and control groups,
runs a command in them and removes everything; `inside` is the first process in them. `components`
starts the programs, `cluster` is their client, and `environment` adds the chart's needs: volumes,
LocalStack, a control plane, a ClickHouse.
"""
