"""Delivery by files, for installations without a way out: exports, and receipts for them.

`signed_file` is the form of both files, `export` what the commands do to the spools and to their
ledger, `cli` the commands. docs/air-gapped.md is for the people who carry the files.
"""
