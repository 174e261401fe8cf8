# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a measurement is made of: variants, rows, tasks, child processes that do not outlive it."""
import ctypes
import dataclasses
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import time
import typing

import fastpath

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class MeasureError(Exception):
    """A measurement could not be made."""


@dataclasses.dataclass(frozen=True)
class Variant:
    key: str
    title: str
    server_cpu: int = 0
    client_cpu: int = 0
    server_rsock: bool = False
    client_rsock: bool = False

    @property
    def rsock(self):
        return self.server_rsock and self.client_rsock


class Variants:
    """The columns of the tables, as far as this machine and this build have them."""

    def __init__(self, cpus, have_rsock):
        a, b = cpus[0], cpus[-1]
        self.cpus = cpus
        self.across = a != b
        self.tcp1 = Variant("tcp1", "TCP 1 core", a, a)
        self.tcp2 = Variant("tcp2", "TCP 2 cores", a, b)
        self.rsock1 = Variant("rsock1", "rsock 1 core", a, a, True, True)
        self.rsock = Variant("rsock", "rsock", a, b, True, True)
        self.ring = Variant("ring", "ring", a, b)
        self.plain = Variant("plain", "plain", a, a)
        self.again = Variant("again", "plain again", a, a)
        self.client = Variant("client", "client rsock", a, a, False, True)
        self.server = Variant("server", "server rsock", a, a, True, False)
        self.have_rsock = have_rsock

    def _there(self, variants):
        return [v for v in variants
                if (self.have_rsock or not (v.server_rsock or v.client_rsock))
                and (self.across or v.key not in ("tcp2", "rsock", "ring"))]

    def sockets(self):
        return self._there([self.tcp1, self.tcp2, self.rsock1, self.rsock])

    def sockets_and_ring(self):
        return self._there([self.tcp1, self.tcp2, self.rsock1, self.rsock, self.ring])

    def one_sided(self):
        """Plain twice: how far the two differ is the noise of the comparison."""
        return self._there([self.plain, self.client, self.again, self.server])

    def with_and_without(self):
        both = [dataclasses.replace(self.plain, title="without"),
                Variant("rsock", "with rsock", self.cpus[0], self.cpus[0], True, True)]
        return both if self.have_rsock else both[:1]


@dataclasses.dataclass(frozen=True)
class Row:
    name: str  # unique, for --only and results.json
    group: str  # the heading that it stands under
    label: str
    unit: str
    better: str  # "low" or "high"
    table: str = "main"  # "main", "one-sided", "with-without" or "lab"


@dataclasses.dataclass
class Task:
    """`run(session, variant)` returns {row name: (value, on the fast path: True, False, None)}.

    One that measures several variants at a time has (row name, variant key) as keys.
    """
    name: str
    variants: list
    rows: list
    rounds: int
    run: typing.Callable

    def cells(self, variant):
        """[(row name, variant key)] that one run of `variant` is for."""
        return [(row.name, variant.key) for row in self.rows]


def chosen(rows, only):
    return [r for r in rows if only is None or re.search(only, r.name)]


class Child:
    """A program in its own process group, pinned to a CPU or (None) not, with its output in files."""

    def __init__(self, argv, cpu, env, where):
        self.name = pathlib.Path(argv[0]).name
        self.out, self.err = where.with_suffix(".out"), where.with_suffix(".err")
        self.usage, self.code = None, None

        def settle():
            os.setpgid(0, 0)
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(self.out, "w") as out, open(self.err, "w") as err:
            try:
                self.popen = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL,
                                              stdout=out, stderr=err, env=env, cwd=where.parent,
                                              preexec_fn=settle)
            except OSError as e:
                raise MeasureError(f"{self.name}: {e}") from e
        self.pid = self.popen.pid
        self.pidfd = os.pidfd_open(self.pid)

    def sleep(self, seconds):
        """Waits for `seconds` or for the end of the program; True if it has ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(0, seconds) * 1000))

    def _reap(self):
        _, status, self.usage = os.wait4(self.pid, 0)
        self.code = self.popen.returncode = os.waitstatus_to_exitcode(status)
        os.close(self.pidfd)

    def wait(self, seconds):
        """Returns what the program printed. The CPU time of it is in cpu_seconds() then."""
        if not self.sleep(seconds):
            raise MeasureError(f"{self.name}: not finished after {seconds:.0f} s")
        self._reap()
        if self.code != 0:
            raise MeasureError(f"{self.name}: exit code {self.code}: {self.last_words()}")
        return self.out.read_text()

    def cpu_seconds(self):
        return self.usage.ru_utime + self.usage.ru_stime

    def last_words(self):
        lines = (self.err.read_text(errors="replace") or
                 self.out.read_text(errors="replace")).strip().splitlines()
        return lines[-1][:200] if lines else "(silent)"

    def stop(self):
        if self.code is not None:
            return
        for sig in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.pid, sig)
            except ProcessLookupError:
                pass
            if self.sleep(3):
                break
        self._reap()
        try:
            os.killpg(self.pid, signal.SIGKILL)  # what it forked and left behind
        except ProcessLookupError:
            pass


class Session:
    """One measurement: starts children and ends them all."""

    address = "127.0.0.1"  # of servers
    proof = None  # what was seen of the path, for the record

    def __init__(self, tmp, rsock_env):
        self.tmp, self.rsock_env, self.children = tmp, rsock_env, []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for child in reversed(self.children):
            child.stop()

    @staticmethod
    def free_port():
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    def env(self, rsock):
        return {**os.environ, "LC_ALL": "C", **(self.rsock_env if rsock else {})}

    def start(self, argv, cpu, rsock):
        child = Child(argv, cpu, self.env(rsock), self.tmp / f"child{len(self.children)}")
        self.children.append(child)
        return child

    def start_server(self, argv, variant, port=None):
        """Waits until `port` listens; without a port, for the number that the program prints."""
        child = self.start(argv, variant.server_cpu, variant.server_rsock)
        for _ in range(500):
            if port is None and child.out.read_text().endswith("\n"):
                return child, int(child.out.read_text())
            if port is not None and listens(port):
                return child, port
            if child.sleep(0.01):
                raise MeasureError(f"{child.name}: ended at once: {child.last_words()}")
        raise MeasureError(f"{child.name}: does not listen")

    def run_client(self, argv, variant, seconds, look=()):
        """Runs a client, at most `seconds`. Returns (output, fast).

        look = (pids, times): asks `rsock stat` about these processes at these times. fast is None
        where there was nothing to ask or nobody answered.
        """
        child = self.start(argv, variant.client_cpu, variant.client_rsock)
        fast, begin = None, time.monotonic()
        if look and variant.rsock:
            pids, times = look
            for at in times:
                if child.sleep(begin + at - time.monotonic()):
                    break
                seen = fastpath.are_fast(pids)
                if seen is not None:
                    fast = seen if fast is None else fast and seen
        self.last_client = child
        return child.wait(seconds), fast


def listens(port):
    want = f":{port:04X}"
    with open("/proc/self/net/tcp", encoding="ascii") as f:
        return any(line.split()[1].endswith(want) and line.split()[3] == "0A"
                   for line in f.readlines()[1:])
