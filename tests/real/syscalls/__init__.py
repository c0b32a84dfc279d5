"""System calls that fail on purpose, by strace, and what a power cut leaves of those that did not.

| file | what |
|---|---|
| `strace.py` | starts a program under strace, or attaches to one for a while |
| `record.py` | what a traced program did to its files, read back from strace's log |
| `disk.py` | a disk that forgets what was not synced, fed with such a record |
| `writer.py` | the traced program: a spool and a ledger, and what it was told of each write |
"""
