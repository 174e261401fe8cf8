#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""MPI ranks exchange data and check all of it: mpi_exchange.py FILE

They go on until the first rank finds FILE. Each rank prints a line of JSON at its end. A wrong byte ends
all of them.
"""
import array
import itertools
import json
import os
import random
import socket
import sys

from mpi4py import MPI

SIZES = (1, 100, 4095, 70_000, 1_000_000)  # eager messages, and those that are asked for first


def expected(sender, receiver, turn, size):
    return random.Random("%d %d %d" % (sender, receiver, turn)).randbytes(size)


def must(condition, *what):
    if not condition:
        print("wrong:", *what, file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(1)


def main():
    world = MPI.COMM_WORLD
    rank, ranks = world.Get_rank(), world.Get_size()
    moved = 0
    for turn in itertools.count():
        size = SIZES[turn % len(SIZES)]
        # A ring in either direction, both ways at once.
        for step in (1, ranks - 1):
            to, source = (rank + step) % ranks, (rank - step) % ranks
            got = bytearray(size)
            world.Sendrecv([expected(rank, to, turn, size), MPI.BYTE], to, turn,
                           [got, MPI.BYTE], source, turn)
            must(got == expected(source, rank, turn, size), "sendrecv", turn, size, source)
            moved += size
        # Many at once, received in the opposite order.
        peers = [peer for peer in range(ranks) if peer != rank]
        boxes = {(peer, tag): bytearray(3000) for peer in peers for tag in range(8)}
        asked = [world.Irecv([box, MPI.BYTE], peer, 1000 + tag)
                 for (peer, tag), box in reversed(boxes.items())]
        asked += [world.Isend([expected(rank, peer, tag, 3000), MPI.BYTE], peer, 1000 + tag)
                  for tag in range(8) for peer in peers]
        MPI.Request.Waitall(asked)
        for (peer, tag), box in boxes.items():
            must(box == expected(peer, rank, tag, 3000), "irecv", turn, peer, tag)
        count = 1 + turn * 997 % 20_000
        ours = array.array("q", (rank * 1000 + turn + i for i in range(count)))
        total = array.array("q", bytes(8 * count))
        world.Allreduce([ours, MPI.INT64_T], [total, MPI.INT64_T], MPI.SUM)
        base = 1000 * ranks * (ranks - 1) // 2
        must(all(total[i] == base + ranks * (turn + i) for i in range(count)), "allreduce", turn)
        said = world.alltoall([(rank, peer, turn) for peer in range(ranks)])
        must(said == [(peer, rank, turn) for peer in range(ranks)], "alltoall", turn, said)
        world.Barrier()
        if rank == 0 and turn % 10 == 0:
            print("turn %d" % turn, flush=True)
        if world.bcast(rank == 0 and os.path.exists(sys.argv[1])):
            break
    print(json.dumps({"rank": rank, "host": socket.gethostname(), "moved": moved}), flush=True)


if __name__ == "__main__":
    main()
