"""System calls that fail on purpose, by strace, and what a power cut leaves of those that did not.

| file | what |
|---|---|
| `strace.py` | starts a program under strace, or attaches to one for a while |
| `record.py` | what a traced program did to its files, read back from strace's log |
| `disk.py` | a disk that forgets unsynced writes, fed with such a record |
| `ptrace.py` | system calls altered on their way into the kernel: short writes, one chosen call |
| `short.py` | lets a running process write less than it asks for |
| `sweep.py` | every single call of an opening, failing in every way |
| `writer.py` | the traced program: a spool and a ledger, and the result of each write |
"""
