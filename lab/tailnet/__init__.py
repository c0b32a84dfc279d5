"""The network path of the vendor's engineers, with real programs in network namespaces. Root only.

    engineer --+                   +-- pod      Tailscale as the chart starts it
    stranger --+----- router ------+-- proxy    nginx with the chart's configuration
    vendor ----+                   +-- servers  ClickHouse's listener, Prometheus, the cluster's DNS

The router enforces the chart's NetworkPolicies (`policies`). `vendor` has the coordination server
(`control`, a Go program on Tailscale's own test package) and a relay. `parts` builds the programs,
`listener` is a server that demands certificates of the access authority, `client` is what an
engineer runs, and `environment` starts all of it.
"""
