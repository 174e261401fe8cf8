#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Echo servers and a client in plain Python, unaware of rsock but for one look at the path at the end.

    echo.py server PORT asyncio|threads|fork|prefork|reuseport [WORKERS]
    echo.py client PORT CONNS SECONDS
    echo.py burst PORT CONNS BYTES [PAUSE]

Servers print READY. Every message is 64 bytes; the server answers with its pid, its path for this
connection (-1: no rsock) and a copy of the message's tail. `client` goes on until all connections are
fast at both ends, or SECONDS have passed, and prints one line of JSON. `burst` checks the echo of random
bytes on many connections at once with asyncio (for the asyncio server only); PAUSE: each rests for so many
seconds behind its first bytes.
"""
import asyncio
import ctypes
import hashlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import threading
import time

SIZE = 64


def path_of(fd):
    try:
        return ctypes.CDLL(None).rsock_fd_path(fd)
    except AttributeError:
        return -1


def answer(sock, msg):
    head = b"%8d %4d " % (os.getpid(), path_of(sock.fileno()))
    return head + msg[len(head):]


def read_full(sock, n):
    out = b""
    while len(out) < n:
        part = sock.recv(n - len(out))
        if not part:
            break
        out += part
    return out


def listener(port, reuseport=False):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuseport:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", port))
    s.listen(128)
    return s


def serve_loop(lsock):
    """One worker: accepts and answers, by selectors."""
    sel = selectors.DefaultSelector()
    lsock.setblocking(False)
    sel.register(lsock, selectors.EVENT_READ)
    while True:
        for key, _ in sel.select():
            if key.fileobj is lsock:
                try:
                    c, _ = lsock.accept()
                except BlockingIOError:
                    continue
                sel.register(c, selectors.EVENT_READ)
                continue
            c = key.fileobj
            try:
                msg = read_full(c, SIZE)
            except ConnectionError:
                msg = b""
            if len(msg) < SIZE:
                sel.unregister(c)
                c.close()
            else:
                c.sendall(answer(c, msg))


def serve_thread(c):
    with c:
        while True:
            try:
                msg = read_full(c, SIZE)
            except ConnectionError:
                return
            if len(msg) < SIZE:
                return
            c.sendall(answer(c, msg))


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except ConnectionError:
        pass


async def serve_asyncio(port):
    server = await asyncio.start_server(echo, "127.0.0.1", port)
    print("READY", flush=True)
    async with server:
        await server.serve_forever()


def server(port, kind, workers):
    if kind == "asyncio":
        asyncio.run(serve_asyncio(port))
    elif kind == "threads":
        ls = listener(port)
        print("READY", flush=True)
        while True:
            c, _ = ls.accept()
            threading.Thread(target=serve_thread, args=(c,), daemon=True).start()
    elif kind == "fork":
        ls = listener(port)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("READY", flush=True)
        while True:
            c, _ = ls.accept()
            if os.fork() == 0:
                ls.close()
                serve_thread(c)
                os._exit(0)
            c.close()
    else:
        ls = listener(port) if kind == "prefork" else None
        ready_r, ready_w = os.pipe()
        for _ in range(workers):
            if os.fork() == 0:
                ls = ls or listener(port, reuseport=True)
                os.write(ready_w, b"r")
                serve_loop(ls)
                os._exit(0)
        for _ in range(workers):
            os.read(ready_r, 1)
        print("READY", flush=True)
        signal.pause()


def client(port, conns, seconds):
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(conns)]
    end = time.monotonic() + seconds
    rounds, wrong = 0, 0
    ours, theirs, pids = [], [], []
    while True:
        ours, theirs, pids = [], [], []
        for i, s in enumerate(socks):
            msg = (b"%08d %08d " % (i, rounds)).rjust(SIZE, b".")
            s.sendall(msg)
            got = read_full(s, SIZE)
            if len(got) != SIZE or got[14:] != msg[14:]:
                wrong += 1
                continue
            pids.append(int(got[:8]))
            theirs.append(int(got[9:13]))
            ours.append(path_of(s.fileno()))
        rounds += 1
        fast = all(p > 0 and p & 15 and p & 240 for p in ours + theirs)
        if (fast and rounds > 5) or time.monotonic() > end:
            break
        time.sleep(0.002)
    for s in socks:
        s.close()
    print(json.dumps({"rounds": rounds, "wrong": wrong, "ours": ours, "theirs": theirs,
                      "workers": len(set(pids)), "all_fast": fast}))
    return wrong != 0


async def burst_one(port, size, seed, pause):
    rng = random.Random(seed)
    data = rng.randbytes(size)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    digest = hashlib.sha256()

    async def receive():
        left = size
        while left:
            part = await reader.read(min(left, rng.randrange(1, 70000)))
            if not part:
                break
            digest.update(part)
            left -= len(part)

    task = asyncio.create_task(receive())
    at = 0
    while at < size:
        n = rng.randrange(1, 70000)
        writer.write(data[at:at + n])
        await writer.drain()
        if not at:
            await asyncio.sleep(pause)
        at += n
    await task
    writer.write_eof()
    extra = await reader.read()
    writer.close()
    return not extra and digest.digest() == hashlib.sha256(data).digest()


async def burst(port, conns, size, pause):
    good = await asyncio.gather(*(burst_one(port, size, i, pause) for i in range(conns)))
    print(json.dumps({"good": sum(good), "conns": conns}))
    return 0 if all(good) else 1


def main():
    kind, port = sys.argv[1], int(sys.argv[2])
    if kind == "server":
        return server(port, sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 4)
    if kind == "burst":
        pause = float(sys.argv[5]) if len(sys.argv) > 5 else 0
        return asyncio.run(burst(port, int(sys.argv[3]), int(sys.argv[4]), pause))
    return client(port, int(sys.argv[3]), float(sys.argv[4]))


if __name__ == "__main__":
    sys.exit(main())
