"""`make localstack`: what localstack/compose.yaml runs, from the same files and without Docker.

`files` reads them with free ports in the place of the services' names, `parts` starts everything,
`arrivals` looks at what has come, `__main__` is the program.
"""
