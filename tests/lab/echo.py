#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A TCP echo whose bytes are checked by SHA-256.

    echo.py server ADDRESS PORT     one connection; prints what it has received at the end
    echo.py client ADDRESS PORT     for each number read from stdin: so many random bytes there and
                                    back on one connection, then prints what it sent and received

They print JSON, a line each: {"bytes": N, "sent": SHA-256, "received": SHA-256}
"""
import hashlib
import json
import os
import socket
import sys
import threading

CHUNK = 1 << 16


def tell(**what):
    print(json.dumps(what), flush=True)


def server(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        peer, _ = listener.accept()
    digest, count = hashlib.sha256(), 0
    with peer:
        while data := peer.recv(CHUNK):
            digest.update(data)
            count += len(data)
            peer.sendall(data)
    tell(bytes=count, received=digest.hexdigest())


def send(peer, count, digest):
    while count:
        data = os.urandom(min(count, CHUNK))
        digest.update(data)
        peer.sendall(data)
        count -= len(data)


def client(address, port):
    total = hashlib.sha256()
    with socket.create_connection((address, port)) as peer:
        for line in sys.stdin:
            count = left = int(line)
            sent, received = hashlib.sha256(), hashlib.sha256()
            sender = threading.Thread(target=send, args=(peer, count, sent), daemon=True)
            sender.start()
            while left:
                data = peer.recv(min(left, CHUNK))
                if not data:
                    sys.exit("the server has closed the connection")
                received.update(data)
                total.update(data)
                left -= len(data)
            sender.join()
            tell(bytes=count, sent=sent.hexdigest(), received=received.hexdigest())
    tell(total=total.hexdigest())


def main():
    match sys.argv[1:]:
        case ["server", address, port]:
            server(address, int(port))
        case ["client", address, port]:
            client(address, int(port))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
