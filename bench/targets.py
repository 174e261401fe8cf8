# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What rsock aims at. A missed target is shown, it never fails the run.

A target is (row, column, operator, bound). The columns of the main table are ratios:
  tcp1, tcp2   how many times better rsock (across cores) is than kernel TCP on one core, on two
  ring         how many times worse rsock is than the bare ring
For `lab` rows (bench/lab) it is rsock's figure divided by that of the column: verbs, rstream,
rstream_b or tcp.
`unused` rows: rsock on one end only, relative to plain on both (below 1 is worse); undecided if the
bound is nearer than plain TCP is to itself. `startup`: milliseconds added.
"""

TARGETS = [
    ("pingpong/blocking/64/median", "ring", "<=", 2.5),
    ("pingpong/blocking/64/median", "tcp1", ">=", 5),
    ("pingpong/blocking/64/median", "tcp2", ">=", 40),
    ("pingpong/epoll/64/median", "ring", "<=", 6),
    ("iperf3/bandwidth", "tcp1", ">=", 3),
    ("iperf3/bandwidth", "tcp2", ">=", 3),
    ("iperf3/cpu", "tcp1", ">=", 2),  # half of TCP's CPU time
    ("iperf3/cpu", "tcp2", ">=", 2),
    ("redis/c1-P1/get", "tcp1", ">=", 2),
    ("redis/c1-P1/get", "tcp2", ">=", 6),
    ("redis/c1-P1/set", "tcp1", ">=", 2),
    ("redis/c1-P1/set", "tcp2", ">=", 6),
    ("redis/c50-P1/get", "tcp1", ">=", 2),
    ("redis/c50-P1/get", "tcp2", ">=", 2),
    ("redis/c50-P1/set", "tcp1", ">=", 2),
    ("redis/c50-P1/set", "tcp2", ">=", 2),
    *((f"unused/{what}/{by}", end, ">=", 0.97) for what in ("iperf3", "redis", "connrate")
      for by in ("speed", "cpu") for end in ("client", "server")),
    ("startup", "added", "<=", 1.0),
    ("lab/latency/blocking/typical", "verbs", "<=", 1.3),
    *(("lab/latency/blocking/mean", who, "<", 1) for who in ("rstream", "rstream_b")),
    ("lab/bandwidth", "verbs", ">=", 0.9),
    *(("lab/bandwidth", who, ">=", 1.5) for who in ("rstream", "rstream_b")),
    *((f"lab/instructions/{what}", "rstream_b", "<", 1) for what in ("pingpong", "oneway")),
]


def find(row, column):
    """(op, bound) or None."""
    return next(((op, bound) for r, c, op, bound in TARGETS if (r, c) == (row, column)), None)


def is_met(op, bound, value):
    return {">=": value >= bound, "<=": value <= bound, "<": value < bound}[op]
