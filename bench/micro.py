# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The project's own programs: round trips, streams, connections."""
import json

from measure import MeasureError, Row, Task, chosen

SIZES = [1, 64, 1024, 16384, 65536]
WRITES = [65536, 1 << 20]
MESSAGES = [8, 64]
TIMEOUT = 15


def size_name(size):
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


def _lines(output):
    try:
        return {line["size"]: line for line in map(json.loads, output.splitlines())}
    except (ValueError, KeyError) as e:
        raise MeasureError(f"unreadable answer: {e}") from e


def _fast(line):
    path = line["path"]
    return None if path < 0 else bool(path & 0xf and path >> 4)


def _client_server(session, variant, program, args):
    """Runs `program server` and `program PORT`; returns the client's output."""
    mode = [a for a in args if a.startswith("--mode")]
    _, port = session.start_server([program, *mode, "server"], variant)
    return session.run_client([program, *args, port], variant, TIMEOUT)[0]


def _sized(name, variants, all_rows, rounds, only, command):
    """A task whose program prints one JSON line for each size; all_rows: {row: (size, field)}."""
    rows = {r: all_rows[r] for r in chosen(all_rows, only)}
    sizes = sorted({size for size, _ in rows.values()})

    def run(session, variant):
        lines = _lines(command(session, variant, ",".join(map(str, sizes))))
        if set(lines) != set(sizes):
            raise MeasureError("an answer is missing")
        return {row.name: (lines[size][field],
                           _fast(lines[size]) if variant.rsock else None)
                for row, (size, field) in rows.items()}

    return [Task(name, variants, list(rows), rounds, run)] if rows else []


def _pingpong(build, variants, rounds, seconds, only, mode):
    percentiles = [("median", "median"), ("p99", "99th percentile")]
    rows = {Row(f"pingpong/{mode}/{size}/{field}", f"round trip, {mode}, {title}",
                size_name(size), "ns", "low"): (size, field)
            for field, title in percentiles + [("p999", "99.9th percentile"), ("mean", "mean")]
            for size in SIZES
            if mode == "blocking" and (field in ("median", "p99") or size == 64)
            or size in (64, 1024) and field == "median"}

    def command(session, variant, sizes):
        if variant.key == "ring":
            return session.start([build / "bench/ring", f"--pingpong={sizes}",
                                  f"--seconds={seconds}", variant.server_cpu, variant.client_cpu],
                                 variant.client_cpu, False).wait(TIMEOUT)
        return _client_server(session, variant, build / "bench/pingpong",
                              [f"--mode={mode}", f"--sizes={sizes}", f"--seconds={seconds}"])

    return _sized(f"pingpong {mode}", variants.sockets_and_ring(), rows, rounds, only, command)


def _stream(build, variants, rounds, seconds, only):
    rows = {}
    for size in WRITES:
        rows[Row(f"stream/{size}/bandwidth", "one-way stream, bandwidth",
                 f"{size_name(size)} writes", "MB/s", "high")] = (size, "mb_s")
    for size in WRITES:
        rows[Row(f"stream/{size}/cpu", "one-way stream, CPU time of both ends",
                 f"{size_name(size)} writes", "s/GB", "low")] = (size, "cpu_s_gb")
    for size in MESSAGES:
        rows[Row(f"stream/{size}/messages", "one-way stream, small writes",
                 f"{size_name(size)} writes", "k/s", "high")] = (size, "msg_s")

    def command(session, variant, sizes):
        if variant.key == "ring":
            return session.start([build / "bench/ring", f"--stream={sizes}",
                                  f"--seconds={seconds}", variant.server_cpu, variant.client_cpu],
                                 variant.client_cpu, False).wait(TIMEOUT)
        return _client_server(session, variant, build / "bench/stream",
                              [f"--sizes={sizes}", f"--seconds={seconds}"])

    return _sized("stream", variants.sockets_and_ring(), rows, rounds, only, command)


def _connrate(build, variants, rounds, seconds, only):
    # A connection this short ends before it could enter the fast path: no check for that here.
    rows = chosen([Row("connrate", "connect, 100 B there and back, close", "connections", "/s",
                       "high")], only)

    def run(session, variant):
        out = _client_server(session, variant, build / "bench/connrate",
                             [f"--seconds={seconds}"])
        return {"connrate": (json.loads(out)["conn_s"], None)}

    return [Task("connrate", variants.sockets(), rows, rounds, run)] if rows else []


def tasks(build, variants, rounds, quick, only):
    needed = ["pingpong", "stream", "connrate", "ring"]
    missing = [n for n in needed if not (build / "bench" / n).exists()]
    if missing:
        return [], [f"the bench programs: build/bench/{missing[0]} is not there (run make first)"]
    short = 0.06 if quick else 0.12
    made = []
    for mode in ("blocking", "epoll", "poll"):
        made += _pingpong(build, variants, rounds, short, only, mode)
    made += _stream(build, variants, rounds, 0.1 if quick else 0.2, only)
    made += _connrate(build, variants, rounds, 0.15 if quick else 0.3, only)
    return made, []
