"""The Grafana dashboard, drawn with Grafana's component library instead of its server."""
