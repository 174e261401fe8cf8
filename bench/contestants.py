# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What is measured on two hosts: raw verbs, rsockets, kernel TCP and rsock on the same wire."""
import contextlib
import dataclasses
import json
import re
import shutil
import typing

import apps
import fastpath
from measure import MeasureError, Row, Task, Variant, chosen

TIMEOUT = 45
VERBS_PORT = 18515
RSTREAM_PORT = 7471
DEVICE = ("--ib-dev", "rxe0", "--gid-index", "1")  # rxe0's GID 1 is its IPv4 address
MIB = 1 << 20  # perftest's "MB"
# Messages each way of the two runs whose instructions are compared. The shorter one is long enough
# to have entered.
COUNTS = {"pingpong": (3000, 9000), "oneway": (6000, 15000)}
INSTRUCTION_ROUNDS = 2  # callgrind counts instead of measuring time
CALLGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
# Under callgrind on a busy machine the client needs more than the 2 s that a server waits for it.
# Nobody spins: how often they would is a matter of time, not of what a message costs.
COUNTED = {"RSOCK_WINDOW_MS": "60000", "RSOCK_SPIN_US": "0"}
RSOCKETS_SPIN = "/etc/rdma/rsocket/polling_time"  # us; read when a process begins
RDMA_PART = 0.9  # at least, of the messages that the longer run has more: the error is below 10 %

# The columns of the tables.
VERBS = Variant("verbs", "ib_write")
RSTREAM = Variant("rstream", "rstream")
RSTREAM_B = Variant("rstream_b", "rstream -T b")
TCP = Variant("tcp", "TCP")
RSOCK = Variant("rsock", "rsock", server_rsock=True, client_rsock=True)
BOTH = (TCP, RSOCK)
BLOCKING, SOCKETS = ("-T", "b"), ("-T", "s")  # options of rstream


@dataclasses.dataclass(frozen=True)
class Contestant:
    """`run(session)` returns {row: value}, all for the column of the variant."""
    key: str
    title: str
    variant: Variant
    needs: str  # a program
    rows: tuple
    run: typing.Callable


class LabTask(Task):
    def cells(self, variant):
        return [(row.name, variant.variant.key) for row in variant.rows]


# ---- programs

def verbs(session, program, size, iterations):
    """The last line of perftest's table, as numbers."""
    argv = [program, *DEVICE, "--size", size, "--iters", iterations]
    for _ in range(3):
        server, _ = session.start_server(argv, VERBS, VERBS_PORT)
        out, _, _ = session.run_watched([*argv, session.address], VERBS, TIMEOUT)
        server.wait(TIMEOUT)
        line = re.search(rf"^ *{size} +{iterations} +(.*)$", out, re.M)
        if not line:
            raise MeasureError(f"{program}: unreadable answer: {out[-200:]!r}")
        # "inf": on a busy machine it has not found out how fast its clock goes
        if "inf" not in line[1]:
            return [float(word) for word in line[1].split()]
    raise MeasureError(f"{program}: it could not calibrate its clock")


def rstream(session, variant, size, iterations, count, options, wrap=()):
    """`count` messages one way, then the other way, `iterations` times; see run_watched."""
    argv = ["rstream", "-S", size, "-I", iterations, "-C", count, *options]
    server, _ = session.start_server(argv, variant, RSTREAM_PORT, cm="s" not in options)
    result = session.run_watched([*wrap, *argv, "-s", session.address], variant, TIMEOUT)
    server.wait(TIMEOUT)
    return result


def rstream_us(session, variant, size, iterations, count):
    """Microseconds for one message over rsockets."""
    options = BLOCKING if variant is RSTREAM_B else ()
    out, _, _ = rstream(session, variant, size, iterations, count, options)
    try:
        return float(out.splitlines()[-1].split()[-1])
    except (IndexError, ValueError) as e:
        raise MeasureError(f"rstream: unreadable answer: {out[-200:]!r}") from e


def own(session, variant, program, *args):
    """The JSON line of a bench program."""
    mode = [a for a in args if a.startswith("--mode")]
    _, port = session.start_server([program, *mode, "server"], variant)
    line = json.loads(session.run_held([program, *args, "--hold", port], variant, TIMEOUT))
    if variant.rsock and line["path"] != fastpath.RDMA_BOTH_WAYS:
        raise MeasureError(f"{program.name}: not on RDMA both ways: path {line['path']:#x}")
    return line


@contextlib.contextmanager
def rsockets_sleep(session):
    """rsockets on both hosts do not spin before they sleep."""
    hosts = (session.a, session.b)
    for host in hosts:
        host.run(f"mkdir -p $(dirname {RSOCKETS_SPIN}) && echo 0 >{RSOCKETS_SPIN}", check=True)
    try:
        yield
    finally:
        for host in hosts:
            host.run(["rm", "-f", RSOCKETS_SPIN], check=True)


def instructions(session, variant, kind, options):
    """User-space instructions of the client for one message that it sends or receives."""
    found = []
    session.env.update(COUNTED)
    for count in COUNTS[kind]:
        shape = (count, 1) if kind == "pingpong" else (1, count)
        with rsockets_sleep(session):
            _, err, look = rstream(session, variant, 64, *shape, options, CALLGRIND)
        total = re.search(r"Collected : (\d+)", err)
        if not total:
            raise MeasureError(f"callgrind: unreadable answer: {err[-200:]!r}")
        by_tcp = sum(s["tx_bytes"] - s["tx_fast_bytes"] + s["rx_bytes"] - s["rx_fast_bytes"]
                     for s in look) / 64
        found.append((2 * count, int(total[1]), by_tcp))
    (few, less, tcp_few), (many, more, tcp_many) = found
    if variant.rsock and abs(tcp_many - tcp_few) > (1 - RDMA_PART) * (many - few):
        raise MeasureError(f"the runs differ in what went by TCP: {tcp_few:.0f} and "
                           f"{tcp_many:.0f} messages")
    return (more - less) / (many - few)


# ---- contestants by task

def _rsockets(rows, run):
    """rstream as it is by default (it never sleeps) and with blocking calls."""
    return [Contestant(v.key, v.title, v, "rstream", rows, lambda session, v=v: run(session, v))
            for v in (RSTREAM, RSTREAM_B)]


def _latency(build, quick):
    group = "64 B, half the round trip"
    blocking = Row("lab/latency/blocking/typical", group, "typical", "us", "low", "lab")
    epoll = Row("lab/latency/epoll/typical", group, "typical, epoll", "us", "low", "lab")
    mean = Row("lab/latency/blocking/mean", group, "mean", "us", "low", "lab")
    iterations, seconds = (1000, 0.2) if quick else (2000, 0.4)
    program = build / "bench/pingpong"

    def raw(session):
        # Its average is of no use: a guest's kernel that waits for this machine's CPU ruins it.
        _, _, typical, *_ = verbs(session, "ib_write_lat", 64, iterations)
        return {blocking: typical, epoll: typical}

    def pingpong(session, variant, mode):
        line = own(session, variant, program, f"--mode={mode}", f"--seconds={seconds}")
        typical, average = line["median"] / 2000, line["mean"] / 2000
        return {epoll: typical} if mode == "epoll" else {blocking: typical, mean: average}

    return "64 B latency", [
        Contestant("verbs", "ib_write_lat", VERBS, "ib_write_lat", (blocking, epoll), raw),
        *_rsockets((mean,), lambda session, variant: {
            mean: rstream_us(session, variant, 64, iterations, 1)}),
        *(Contestant(f"{v.key} {mode}", f"{v.title}, {mode}", v, program, rows,
                     lambda session, v=v, mode=mode: pingpong(session, v, mode))
          for mode, rows in (("blocking", (blocking, mean)), ("epoll", (epoll,))) for v in BOTH)]


def _bandwidth(build, quick):
    row = Row("lab/bandwidth", "64 KiB writes, one way", "bandwidth", "MB/s", "high", "lab")
    size, program = 65536, build / "bench/stream"
    count, seconds = (500, 0.3) if quick else (1000, 0.6)

    def raw(session):
        _, average, *_ = verbs(session, "ib_write_bw", size, 2 * count)
        return {row: average * MIB / 1e6}

    def stream(session, variant):
        line = own(session, variant, program, f"--sizes={size}", f"--seconds={seconds}")
        return {row: line["mb_s"]}

    return "64 KiB bandwidth", [
        Contestant("verbs", "ib_write_bw", VERBS, "ib_write_bw", (row,), raw),
        *_rsockets((row,), lambda session, variant: {
            row: size / rstream_us(session, variant, size, 1, count)}),
        *_both(program, row, stream)]


def _both(needs, row, run):
    """TCP and rsock, for one row."""
    return [Contestant(v.key, v.title, v, needs, (row,), lambda session, v=v: run(session, v))
            for v in BOTH]


class Iperf3(apps.Iperf3):
    """Its first second, on the way to RDMA, does not count."""

    @staticmethod
    def client(session, port, seconds):
        return [*apps.Iperf3.client(session, port, seconds), "--omit", "1"]


def _iperf3(build, quick):
    del build
    row = Row("lab/iperf3", "iperf3, one stream", "bandwidth", "MB/s", "high", "lab")
    seconds = 1 if quick else 2

    def run(session, variant):
        (bandwidth, _), _, _ = Iperf3().transfer(session, variant, seconds, seconds + 0.5)
        return {row: bandwidth}

    return "iperf3", _both("iperf3", row, run)


def _redis(clients, quick):
    who = "1 client" if clients == 1 else f"{clients} clients"
    row = Row(f"lab/redis/c{clients}", "redis-benchmark", f"GET, {who}", "k/s", "high", "lab")
    # One for all rounds: it remembers how many requests take how long.
    redis = apps.Redis(clients, 1, 1 if quick else 2, ("get",))

    return f"redis, {who}", _both("redis-benchmark", row, lambda session, variant: {
        row: redis.run(session, variant)[0]["get"]})


def _instructions(build, quick):
    del build, quick
    group = "64 B, user-space instructions of the client for each message sent or received"
    made = []
    for kind, label in (("pingpong", "there and back"), ("oneway", "one way")):
        row = Row(f"lab/instructions/{kind}", group, label, "", "low", "lab")
        for variant, options in ((RSTREAM_B, BLOCKING), (RSOCK, BLOCKING + SOCKETS)):
            made.append(Contestant(
                f"{variant.key} {kind}", f"{variant.title}, {label}", variant, "valgrind", (row,),
                lambda session, row=row, variant=variant, kind=kind, options=options: {
                    row: instructions(session, variant, kind, options)}))
    return "instructions", made


MAKERS = (_latency, _bandwidth, _iperf3, lambda build, quick: _redis(1, quick),
          lambda build, quick: _redis(50, quick), _instructions)


def tasks(build, rounds, quick, only):
    made, skipped = [], []
    for make in MAKERS:
        name, contestants = make(build, quick)
        rows = chosen(dict.fromkeys(row for c in contestants for row in c.rows), only)
        there = []
        for c in contestants:
            if not set(rows) & set(c.rows):
                continue
            if shutil.which(c.needs):
                there.append(c)
            else:
                skipped.append(f"{name}, {c.title}: {c.needs} is not there")
        often = min(rounds, INSTRUCTION_ROUNDS) if make is _instructions else rounds
        if there:
            made.append(LabTask(name, there, rows, often, _runner(rows)))
    return made, skipped


def _runner(rows):
    def run(session, contestant):
        return {(row.name, contestant.variant.key): (value, contestant.variant.rsock or None)
                for row, value in contestant.run(session).items() if row in rows}

    return run
