# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Plays a plan between two hosts of the lab, over RDMA."""
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lab"))

import clock                         # noqa: E402
from judge import entries, report    # noqa: E402
from lab import BUILD, Lab, LabError, TimedOut  # noqa: E402

PORT = 7300
LIMIT = {"descriptors": "--nofile", "memory": "--as"}
USED = {"descriptors": "ls /proc/%d/fd | awk '$1 < 512 && $1 > m { m = $1 } END { print m + 1 }'",
        "memory": "awk '{ print $1 * 4096 }' /proc/%d/statm"}


class Hosts:
    """Two hosts, kept from plan to plan; started anew when one is in a bad way."""

    def __init__(self):
        self.lab = None
        self.program = os.path.join(os.path.abspath(BUILD), "tests/apps/stream")

    def close(self):
        if self.lab:
            self.lab.stop()
            self.lab = None

    def hosts(self):
        if not self.lab:
            self.lab = Lab(2)
            self.lab.start()
        self.lab.reset()
        client, server = self.lab.hosts
        return {"client": client, "server": server}

    def play(self, plan, timeout):
        """As Here.play()."""
        try:
            return self.play_on(self.hosts(), plan, timeout)
        except (LabError, TimedOut) as e:
            self.close()
            raise TimeoutError(str(e)[-1500:])

    def play_on(self, hosts, plan, timeout):
        p = {}
        for end in ("server", "client"):
            words = ["rsock", "run", self.program, *plan.command(end), "--host", hosts["server"].ip,
                     "--port", PORT, "--progress", "/tmp/" + end]
            p[end] = hosts[end].spawn([str(w) for w in words])
            if end == "server":
                p[end].wait_listening(PORT)
        try:
            for end in p:
                p[end].wait_line("^UP$", 20)
            self.strike(plan, hosts, p)
        except LabError:
            if not plan.killed() and not all(p[end].status == 0 for end in p):
                raise
        for end in ("client", "server"):
            p[end].wait(timeout)
        return ({end: p[end].status for end in p}, {end: report(p[end].text()) for end in p},
                {end: entries(hosts[end].get("/tmp/" + end)) for end in p},
                "\n".join(p[end].story() for end in p))

    def strike(self, plan, hosts, p):
        start = clock.now()
        todo, over = list(plan.faults), []
        while (todo or over) and any(x.running() for x in p.values()):
            now = clock.now() - start
            while todo and todo[0].at <= now:
                fault = todo.pop(0)
                undo = self.one(fault, hosts[fault.end], p[fault.end], now)
                over += undo
            for item in [o for o in over if o[0] <= now]:
                item[1]()
                over.remove(item)
            time.sleep(0.002)
        for item in sorted(over, key=lambda o: o[0]):
            item[1]()

    @staticmethod
    def one(fault, host, process, now):
        """Does it; what is to be done later: (when, what)."""
        end = now + fault.seconds
        if fault.what == "kill":
            process.send_signal(signal.SIGKILL)
            return []
        if fault.what == "stop":
            process.send_signal(signal.SIGSTOP)
            return [(end, lambda: process.send_signal(signal.SIGCONT))]
        if fault.what == "block":
            host.block_roce()
            return [(end, host.unblock_roce)]
        if fault.what == "flap":
            turns, step = [], 0.15
            host.block_roce()
            for n in range(int(fault.seconds / step)):
                turns.append((now + (n + 1) * step, host.block_roce if n % 2 else host.unblock_roce))
            return turns + [(end + step, host.unblock_roce)]
        if fault.what == "loss":
            host.loss(fault.much)
            return [(end, host.unblock_all)]
        if fault.what == "delay":
            host.netem("delay %dms" % fault.much)
            return [(end, host.unblock_all)]
        if fault.what == "delete":
            deleting = host.spawn("rdma link delete rxe0")

            def add():
                deleting.good(10)
                host.run("rdma link add rxe0 type rxe netdev vec0", check=True)
            return [(end, add)]
        pid = int(host.run("pidof -s stream || true").stdout.strip() or 0)
        if not pid:
            return []
        used = int(host.run(USED[fault.what] % pid).stdout.strip() or 0)
        host.run("prlimit --pid %d %s=%d: || true" % (pid, LIMIT[fault.what], used + int(fault.much)))
        return [(end, lambda: host.run(
            "prlimit --pid %d %s=$(prlimit --pid %d %s -o HARD --noheadings): || true" % (
                pid, LIMIT[fault.what], pid, LIMIT[fault.what])))]
