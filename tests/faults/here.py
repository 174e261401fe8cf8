# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Plays a plan within this host: two processes, over shared memory."""
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time

from judge import entries, report

ROOM = 32  # descriptors: what a process has, and so many, are left at most


class Ended(Exception):
    pass


class Process:
    def __init__(self, prefix, program, words, folder, end):
        self.progress = os.path.join(folder, end + ".progress")
        self.out = open(os.path.join(folder, end + ".out"), "w+")
        self.err = open(os.path.join(folder, end + ".err"), "w+")
        self.child = subprocess.Popen(
            [*prefix, program, *map(str, words), "--progress", self.progress], stdout=self.out,
            stderr=self.err, stdin=subprocess.DEVNULL)

    def text(self, file=None):
        with open((file or self.out).name) as f:
            return f.read()

    def wait_line(self, start, deadline):
        while time.monotonic() < deadline:
            for line in self.text().splitlines(True):
                if line.startswith(start) and line.endswith("\n"):
                    return line.split()
            if self.child.poll() is not None:
                break
            time.sleep(0.002)
        raise Ended("no %s" % start)

    def limit(self, what, value):
        """The soft limit; None: as high as it may be. The process may have ended."""
        try:
            hard = resource.prlimit(self.child.pid, what)[1]
            resource.prlimit(self.child.pid, what, (hard if value is None else value, hard))
        except (ProcessLookupError, PermissionError):
            pass

    def used(self, what):
        try:
            if what == resource.RLIMIT_NOFILE:
                # The highest of the program's own: rsock's are out of its way.
                low = [int(n) for n in os.listdir("/proc/%d/fd" % self.child.pid)]
                return max(n for n in low if n < 512) + 1
            with open("/proc/%d/statm" % self.child.pid) as f:
                return int(f.read().split()[0]) * resource.getpagesize()
        except (OSError, ValueError, IndexError):
            return None

    def strike(self, fault):
        """Does it, and returns what ends it."""
        if fault.what == "kill":
            self.child.send_signal(signal.SIGKILL)
            return None
        if fault.what == "stop":
            self.child.send_signal(signal.SIGSTOP)
            return lambda: self.child.send_signal(signal.SIGCONT)
        what = {"descriptors": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}[fault.what]
        used = self.used(what)
        if used is not None:
            self.limit(what, used + int(fault.much))
        return lambda: self.limit(what, None)

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        self.out.close()
        self.err.close()


class Here:
    """`build` is the build folder; plays many plans at a time."""

    def __init__(self, build):
        self.prefix = [os.path.join(build, "rsock"), "run"]
        self.program = os.path.join(build, "tests/apps/stream")

    def play(self, plan, timeout):
        """Exit statuses, reports and entries, by end, and what was printed; TimeoutError: it hangs."""
        folder = tempfile.mkdtemp(prefix="rsock-faults-")
        deadline = time.monotonic() + timeout
        p = {}
        try:
            p["server"] = Process(self.prefix, self.program, plan.command("server"), folder, "server")
            port = p["server"].wait_line("PORT", deadline)[1]
            p["client"] = Process(self.prefix, self.program, plan.command("client") + ["--port", port],
                                  folder, "client")
            strikes = threading.Thread(target=self.strike, args=(plan, p, deadline))
            strikes.start()
            try:
                for end in ("client", "server"):
                    p[end].child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError("it hangs: the %s" % end)
            finally:
                strikes.join()
            return ({end: p[end].child.returncode for end in p},
                    {end: report(p[end].text()) for end in p},
                    {end: self.entries(p[end]) for end in p},
                    "".join("%s: %s%s" % (end, p[end].text(), p[end].text(p[end].err)) for end in p))
        finally:
            for x in p.values():
                x.close()
            shutil.rmtree(folder)

    @staticmethod
    def entries(p):
        try:
            with open(p.progress, "rb") as f:
                return entries(f.read())
        except OSError:
            return []

    @staticmethod
    def strike(plan, p, deadline):
        try:
            for end in p:
                p[end].wait_line("UP", deadline)
        except Ended:
            return
        start = time.monotonic()
        over = []  # (when, what to do)
        todo = list(plan.faults)
        while todo or over:
            now = time.monotonic() - start
            while todo and todo[0].at <= now:
                fault = todo.pop(0)
                undo = p[fault.end].strike(fault)
                if undo:
                    over.append((now + fault.seconds, undo))
            for item in [o for o in over if o[0] <= now]:
                item[1]()
                over.remove(item)
            time.sleep(0.002)
