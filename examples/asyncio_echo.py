#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""An ordinary asyncio echo server and client. Neither knows anything of rsock.

    asyncio_echo.py server [ADDRESS:]PORT
    asyncio_echo.py client [ADDRESS:]PORT [SECONDS] [SIZE]

The client sends SIZE bytes, waits until they are back, and so on for SECONDS. It checks every byte
and prints the round trips per second.
"""

import asyncio
import os
import sys
import time

DEFAULT = "127.0.0.1"


async def echo(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(address, port):
    server = await asyncio.start_server(echo, address, port)
    async with server:
        await server.serve_forever()


async def ask(address, port, seconds, size):
    reader, writer = await asyncio.open_connection(address, port)
    trips = 0
    start = now = time.monotonic()
    while now - start < seconds:
        message = os.urandom(size)
        writer.write(message)
        if await reader.readexactly(size) != message:
            sys.exit("the echo differs")
        trips += 1
        now = time.monotonic()
    writer.close()
    await writer.wait_closed()
    print(f"{trips / (now - start):.0f} round trips/s")


def split(where):
    address, _, port = where.rpartition(":")
    return address or DEFAULT, int(port)


def main():
    match sys.argv[1:]:
        case ["server", where]:
            asyncio.run(serve(*split(where)))
        case ["client", where, *rest]:
            seconds = float(rest[0]) if rest else 2.0
            size = int(rest[1]) if len(rest) > 1 else 64
            asyncio.run(ask(*split(where), seconds, size))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
