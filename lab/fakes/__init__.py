"""Scripted receivers for tests of every daemon: `http` is a server, `s3` stores objects.

They replace mocks in the tests, the demo and the lab.
"""
