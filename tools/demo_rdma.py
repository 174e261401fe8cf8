#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The demo between two hosts: what `make demo` shows, over RDMA, and RDMA cut off meanwhile.

    tools/demo_rdma.py

Boots two hosts of the lab (tests/lab/README.md) and runs unmodified programs from host a to host b,
plain and under rsock. For each pair it shows the figures, which path `rsock stat` saw, and how many
packets the RDMA devices have counted. Then RoCE is blocked in the middle of a transfer, which must
carry on over TCP without losing a byte. Fails when anything is not as it should be.
"""
import itertools
import json
import pathlib
import signal
import sys
import time

sys.dont_write_bytecode = True

import demo
from demo import Failure, bold, number

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "lab"))

from lab import Lab, LabError  # noqa: E402

WORK = demo.Work(((1, 3000), (50, 10000)), 4, 32 << 20, 2)
FOLDER = pathlib.PurePosixPath("/tmp/demo")
PORTS = itertools.count(20000)
LOOK_SECONDS = 0.4  # between two looks at `rsock stat`, which take the host's only CPU
ENTER_SECONDS = 3.0
CUT_FILE_MIB = 96
CUT_RATE_MIB = 16  # MiB/s: slow enough for there to be a middle
CUT_AFTER = 1.5  # seconds
MOVE_SECONDS = 5.0  # in which a connection must have left a dead path
LOOK = "rsock stat --json && cat /sys/class/infiniband/rxe0/ports/1/hw_counters/rcvd_pkts"
PROGRAM = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*"]


class HostsRunner:
    """What demo.Runner is on one machine: servers run on host b, clients on host a."""

    work = WORK
    folder = FOLDER

    def __init__(self, lab, rsock):
        self.a, self.b = lab.hosts
        self.address = self.b.ip
        self.prefix = ["rsock", "run"] if rsock else []

    @staticmethod
    def free_port():
        return next(PORTS)

    def config(self, name, text):
        self.b.put(FOLDER / name, text)
        return FOLDER / name

    def serve(self, argv, port):
        process = self.b.spawn(self.prefix + argv, cwd=str(FOLDER))
        process.wait_listening(port)
        return process

    def begin(self, argv):
        return self.a.spawn(self.prefix + argv, cwd=str(FOLDER))

    def ask(self, argv):
        return self.begin(argv).good(demo.RUN_SECONDS)

    def served_digest(self):
        return sha256(self.b, FOLDER / "www" / "file")

    def fetched_digest(self, path):
        found = sha256(self.a, path)
        self.a.run(["rm", path], check=True)
        return found

    def streams(self):
        try:
            return [s for host in (self.a, self.b) for s in streams(host)]
        except LabError as error:
            raise Failure(str(error)) from None


def streams(host):
    return connections(host.run(["rsock", "stat", "--json"], timeout=10, check=True).stdout)


def connections(said):
    return [s for s in json.loads(said) if s["peer"]]


def sha256(host, path):
    return host.run(["sha256sum", path], check=True).stdout.split()[0]


def make_file(lab, mib):
    a, b = lab.hosts
    for host in (a, b):
        host.run(["mkdir", "-p", FOLDER / "www"], check=True)
    b.run(f"head -c {mib}M /dev/urandom >{FOLDER}/www/file", check=True)


def packets(lab):
    """That the RDMA devices have sent so far."""
    return sum(host.counters()["sent_pkts"] for host in lab.hosts)


def run_pair(lab, pair, rsock):
    """(figures, paths, packets of the RDMA devices)"""
    lab.reset()
    runner = HostsRunner(lab, rsock)
    before = packets(lab)
    paths = None
    try:
        if rsock:
            with demo.Watcher(runner, LOOK_SECONDS, ENTER_SECONDS) as watcher:
                figures = pair(runner)
            paths = watcher.verdict()
            if any(c.path not in ("rdma", "tcp") for c in watcher.connections.values()):
                raise Failure(f"a path between two hosts that cannot be: {paths}")
        else:
            figures = pair(runner)
    except (Failure, LabError) as error:
        how = "under rsock" if rsock else "plain"
        raise Failure(f"{pair.__name__} {how}: {error}") from None
    sent = packets(lab) - before
    if rsock and not sent:
        raise Failure(f"{pair.__name__}: on {paths}, but the RDMA devices have sent nothing")
    if not rsock and sent:
        raise Failure(f"{pair.__name__} plain: the RDMA devices have sent {sent} packets")
    return figures, paths, sent


def show_pairs(lab):
    print(bold(f"  {'host a to host b':<38}{'kernel TCP':>16}{'rsock run':>16}   "
               f"{'connections':<16}{'packets of the RDMA devices':>28}"), flush=True)
    for pair in demo.PAIRS:
        plain, _, none = run_pair(lab, pair, False)
        fast, paths, sent = run_pair(lab, pair, True)
        for i, (title, figure, unit) in enumerate(plain):
            counted = f"{none} and {sent:,}" if i == 0 else ""
            print(f"  {title:<38}{number(figure, unit):>16}{number(fast[i][1], unit):>16}   "
                  f"{paths if i == 0 else '':<16}{counted:>28}", flush=True)


# ---- RDMA cut off

class Transfer:
    """curl on host a, from nginx on host b, and what is seen of its connection."""

    def __init__(self, lab):
        self.lab = lab
        self.runner = HostsRunner(lab, True)
        url = demo.serve_file(self.runner)
        self.copy = FOLDER / "copy"
        self.start = time.monotonic()
        self.curl = self.runner.begin([*PROGRAM, "--limit-rate", f"{CUT_RATE_MIB}M",
                                       "--output", self.copy, url])
        self.last = {"rx_bytes": 0, "rx_fast_bytes": 0}
        self.packets = lab.hosts[0].counters()["rcvd_pkts"]

    def seconds(self):
        return time.monotonic() - self.start

    def look(self):
        """One line of the story; the connection as it is now, or None."""
        said = self.runner.a.run(LOOK, timeout=10, check=True).stdout
        at = said.rindex("]") + 1
        found, counted = connections(said[:at]), int(said[at:])
        if not found:
            return None
        s = found[0]
        fast = s["rx_fast_bytes"] - self.last["rx_fast_bytes"]
        slow = s["rx_bytes"] - self.last["rx_bytes"] - fast
        print(f"  {self.seconds():5.1f} s  path {s['path']:<5} {s['reason'] or '-':<12}"
              f"{fast / 1e6:8.1f} MB by RDMA{slow / 1e6:8.1f} MB by TCP"
              f"{counted - self.packets:9,} packets", flush=True)
        self.last, self.packets = s, counted
        return s

    def until(self, condition, seconds, what):
        """Looks until a look is as wished."""
        end = time.monotonic() + seconds
        while self.curl.running():
            s = self.look()
            if s and condition(s):
                return s
            if time.monotonic() > end:
                raise Failure(f"{what} within {seconds:g} s: {s}")
            time.sleep(LOOK_SECONDS)
        raise Failure(f"curl has ended, and {what}: {self.curl.story()}")


def cut(lab):
    lab.reset()
    make_file(lab, CUT_FILE_MIB)
    a, b = lab.hosts
    print(bold(f"\n  nginx to curl under rsock, {CUT_FILE_MIB} MiB at {CUT_RATE_MIB} MiB/s; RoCE "
               "is blocked in the middle:"), flush=True)
    t = Transfer(lab)
    t.until(lambda s: s["rx_path"] == "rdma" and t.seconds() > CUT_AFTER, 2 * ENTER_SECONDS,
            "not on RDMA")
    a.block_roce()
    blocked = time.monotonic()
    print(bold(f"  {t.seconds():5.1f} s  host a drops all RoCE packets from now on"), flush=True)
    s = t.until(lambda s: s["path"] == "tcp", MOVE_SECONDS, "has not left RDMA")
    took = time.monotonic() - blocked
    # Who has not noticed by itself hears of it from the other.
    reasons = {"a": s["reason"], "b": "".join(s["reason"] for s in streams(b)[:1])}
    if "link-lost" not in reasons.values() or set(reasons.values()) - {"link-lost", "peer-left"}:
        raise Failure(f"it has left RDMA for another reason: {reasons}")
    while t.curl.running():
        t.look()
        time.sleep(LOOK_SECONDS)
    t.curl.good()
    fast, everything = t.last["rx_fast_bytes"], t.last["rx_bytes"]
    if not 0 < fast < everything:
        raise Failure(f"{fast} of {everything} bytes by RDMA: it was not cut in the middle")
    want, got = t.runner.served_digest(), t.runner.fetched_digest(t.copy)
    print(f"  The connection was seen on TCP {took:.1f} s after that, because of {reasons['b']} on "
          f"host b, {reasons['a']} on host a.\n  {fast / 1e6:.0f} MB came by RDMA, the rest by "
          "TCP.\n"
          f"  SHA-256 on host b: {want}\n  SHA-256 on host a: {got}")
    if want != got:
        raise Failure("the file is not the one that was served")
    print("  Every byte is there, once and in order; curl and nginx have noticed nothing.")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated"))
    try:
        with Lab(2) as lab:
            a, b = lab.hosts
            release = a.run(["uname", "-r"], check=True).stdout.strip()
            print(f"  Two User-Mode Linux hosts ({release}), {a.ip} and {b.ip}, each with a "
                  f"Soft-RoCE device ({a.device}).\n  Soft-RoCE is slower than kernel TCP here: "
                  "this shows paths and safety. For speed, compare rsock\n  with raw verbs on the "
                  "same devices: make bench-lab.\n")
            make_file(lab, WORK.file_bytes >> 20)
            show_pairs(lab)
            cut(lab)
    except (Failure, LabError) as failure:
        sys.exit(f"\ndemo: FAILED: {failure}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted")


if __name__ == "__main__":
    main()
