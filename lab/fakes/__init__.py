"""Scripted receivers for tests of every daemon: `http` speaks HTTP, `s3` stores objects.

Shipped with the package, like `lab.fakes.core`, so that no test file mocks.
"""
