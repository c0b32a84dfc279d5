"""`make localstack`: the services of localstack/compose.yaml, from the same files, without Docker.

`files` reads them with free ports instead of the services' names, `parts` starts everything,
`arrivals` prints received data, `__main__` is the program.
"""
