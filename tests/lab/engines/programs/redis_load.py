#!/usr/bin/python3 -SsE
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A client of a Redis Cluster that knows what every key must hold.

    redis_load.py HOST:PORT...

Commands on stdin; each is answered by a line of JSON, {COMMAND: {...}}:
    write FIRST COUNT   stores these keys, in batches that a replica has acknowledged (WAIT), and goes
                        on until the cluster has taken them all
    read FIRST COUNT    reads them back
"""
import hashlib
import json
import socket
import sys
import time

BATCH = 25
PATIENCE = 3  # seconds, for one answer
SLOTS = 16384


def slot_of(key):
    """CRC-16/XMODEM, as the specification of Redis Cluster has it."""
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = crc << 1 ^ (0x1021 if crc & 0x8000 else 0)
    return (crc & 0xffff) % SLOTS


def key_of(number):
    return b"key:%d" % number


def value_of(number):
    """1 byte to 4 KB, now and then 100 KB."""
    digest = hashlib.sha256(key_of(number)).digest()
    size = 100_000 if digest[0] == 0 else 1 + int.from_bytes(digest[1:3], "big") % 4096
    return (digest * (size // len(digest) + 1))[:size]


class RedisError(Exception):
    pass


class Node:
    """A connection to a server."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, PATIENCE)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, *commands):
        parts = []
        for words in commands:
            parts.append(b"*%d\r\n" % len(words))
            for word in words:
                word = word if isinstance(word, bytes) else str(word).encode()
                parts.append(b"$%d\r\n%s\r\n" % (len(word), word))
        self.socket.sendall(b"".join(parts))

    def answer(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection has ended")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self.bulk(int(rest))
        if kind == b"*":
            return [self.answer() for _ in range(int(rest))]
        return rest

    def bulk(self, size):
        if size < 0:
            return None
        data = self.file.read(size + 2)
        if len(data) != size + 2:
            raise ConnectionError("the connection has ended")
        return data[:-2]

    def ask(self, *commands):
        self.send(*commands)
        return [self.answer() for _ in commands]


class Cluster:
    def __init__(self, seeds):
        self.seeds = seeds
        self.nodes = {}
        self.owners = []  # (first slot, last slot, address)

    def node(self, address):
        if address not in self.nodes:
            self.nodes[address] = Node(address)
        return self.nodes[address]

    def drop(self, address):
        if address in self.nodes:
            self.nodes.pop(address).close()

    def look(self):
        """Which master has which slots."""
        for address in self.seeds:
            try:
                slots, = self.node(address).ask([b"CLUSTER", b"SLOTS"])
                if slots and not isinstance(slots, RedisError):
                    self.owners = [(first, last, (master[0].decode(), master[1]))
                                   for first, last, master, *_ in slots]
                    return
            except OSError:
                self.drop(address)

    def by_owner(self, numbers):
        groups = {}
        for number in numbers:
            slot = slot_of(key_of(number))
            for first, last, address in self.owners:
                if first <= slot <= last:
                    groups.setdefault(address, []).append(number)
        return groups

    def each_batch(self, numbers, action):
        """action(node, some of the numbers) gives those that it did; until all are done."""
        left, tries = set(numbers), 0
        while left:
            done = set()
            for address, group in self.by_owner(sorted(left)).items():
                try:
                    for at in range(0, len(group), BATCH):
                        did = action(self.node(address), group[at:at + BATCH])
                        if not did:
                            break
                        done |= did
                except OSError:
                    self.drop(address)
            left -= done
            if left:
                tries += 1
                time.sleep(0.2)
                self.look()
        return tries


def write(cluster, numbers):
    told = {"written": 0, "acknowledged": 0}

    def action(node, batch):
        *said, replicas = node.ask(*[[b"SET", key_of(n), value_of(n)] for n in batch],
                                   [b"WAIT", 1, 1000 * PATIENCE - 500])
        done = {n for n, answer in zip(batch, said) if answer == b"OK"}
        told["written"] += len(done)
        if replicas >= 1:
            told["acknowledged"] += len(done)
        if told["written"] % 100 < BATCH:
            print("%d from %d on" % (told["written"], numbers[0]), flush=True)
        return done

    told["tries"] = cluster.each_batch(numbers, action)
    return told


def read(cluster, numbers):
    wrong = []

    def action(node, batch):
        said = node.ask(*[[b"GET", key_of(n)] for n in batch])
        done = {n for n, answer in zip(batch, said) if not isinstance(answer, RedisError)}
        wrong.extend(n for n, answer in zip(batch, said) if n in done and answer != value_of(n))
        return done

    tries = cluster.each_batch(numbers, action)
    return {"read": len(numbers), "wrong": wrong, "tries": tries}


def main():
    cluster = Cluster([(host, int(port)) for host, port in
                       (word.rsplit(":", 1) for word in sys.argv[1:])])
    cluster.look()
    for line in sys.stdin:
        what, first, count = line.split()
        numbers = range(int(first), int(first) + int(count))
        said = (write if what == "write" else read)(cluster, numbers)
        print(json.dumps({line.strip(): said}), flush=True)


if __name__ == "__main__":
    main()
