module byoc-agents/lab/cluster/pause

go 1.23
