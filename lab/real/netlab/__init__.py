"""A customer's network in four network namespaces, made and deleted by the tests. Root only.

    pod --- router --+-- s3        the gateway endpoint's route: the S3 prefix
    10.42.0.10       +-- internet  the default route: SQS, the control plane, strangers

Both far sides answer the S3 prefix, with the same certificate: only the router's route decides.
`namespaces` makes them, `rules` turns a rendered NetworkPolicy into the router's nftables rules,
`wire` captures every packet at the router, `names` answers DNS there and logs every question,
`far` serves S3, SQS and the control plane by TLS on port 443 (`certificates`), `policy` runs
`byoc-agents policy`, `lab.iam` enforces the printed bucket policy, `pod` runs the daemons,
`escapes` are programs that try to get out, `lab` combines all of it.
"""
