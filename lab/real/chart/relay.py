"""Relay connections from the loopback of one network namespace to that of another.

`nsenter --net=POD python relay.py /proc/PID/ns/net LISTEN:CONNECT ...`: listening sockets are made
in the namespace of the process, all others in the namespace of the first argument.
"""

import asyncio
import ctypes
import os
import socket
import sys

CLONE_NEWNET = 0x40000000  # linux/sched.h


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _serve(listener: socket.socket, port: int) -> None:
    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    server = await asyncio.start_server(come, sock=listener)
    await server.serve_forever()


async def main(namespace: str, pairs: list[str]) -> None:
    """Make the listeners, enter the namespace, print `ready`, serve until killed."""
    ports = [tuple(map(int, pair.split(":"))) for pair in pairs]
    listeners = [socket.create_server(("127.0.0.1", near)) for near, _ in ports]
    there = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(there, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    print("ready", flush=True)
    served = (_serve(one, far) for one, (_, far) in zip(listeners, ports, strict=True))
    await asyncio.gather(*served)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
