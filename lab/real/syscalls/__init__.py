"""Make system calls fail with strace, and simulate a power cut after those that succeeded.

| file | what |
|---|---|
| `strace.py` | starts a program under strace, or attaches to one for a while |
| `record.py` | reads the file operations of a traced program from strace's log |
| `disk.py` | a disk that forgets unsynced writes, fed with such a record |
| `ptrace.py` | system calls altered on their way into the kernel: short writes, one chosen call |
| `short.py` | lets a running process write less than it asks for |
| `sweep.py` | lets every single call of an opening fail in every way |
| `writer.py` | the traced program: a spool and a ledger, and the result of each write |
"""
