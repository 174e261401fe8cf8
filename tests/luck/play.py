# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Plays a program (program.py) with processes of its own, and tells what each step showed.

This process drives the others over unix sockets, one step at a time, so what they do is totally ordered
and rsock has no part in the driving.
"""
import ctypes
import os
import select
import signal
import socket
import subprocess
import time

import program

STEP_S = 25      # rsock's own waits (fork 2 s, exec and exit 10 s) end before
WARM_S = 1.0     # to become fast; most take 20 ms
LEFT_S = 5.0     # for what is left behind
PR_SET_CHILD_SUBREAPER = 36


class Hang(Exception):
    pass


class Ended(Exception):
    """A process that should be there is not."""


class Player:
    serial = 0

    def __init__(self, programs, prefix):
        """programs: {"self", "static", "setuid": path}; prefix: what starts a program under rsock."""
        Player.serial += 1
        self.address = "luck.%d.%d" % (os.getpid(), Player.serial)
        self.programs, self.prefix = programs, prefix
        self.world = program.World()
        self.lines, self.pids, self.pidfds = {}, {}, {}
        self.warm = []      # (expected to be fast, is)
        self.log = []
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    # ---- lines to the processes ----

    def wait_readable(self, fds, deadline=None):
        end = deadline or time.monotonic() + STEP_S
        r, _, _ = select.select(fds, [], [], max(0, end - time.monotonic()))
        if not r:
            raise Hang
        return r

    def hello(self, name):
        """Until `name` has said hello; others that do so are welcome too."""
        end = time.monotonic() + STEP_S
        while True:
            self.wait_readable([self.door], end)
            line, _ = self.door.accept()
            self.wait_readable([line], end)
            words = line.recv(200).decode().split()
            if len(words) != 3:
                raise Ended("no hello")
            old = self.lines.pop(words[1], None)
            if old:
                old.close()
            self.lines[words[1]] = line
            if self.pids.get(words[1]) != int(words[2]):
                self.pids[words[1]] = int(words[2])
                self.pidfds[words[1]] = os.pidfd_open(int(words[2]))
            if words[1] == name:
                return

    def tell(self, name, *words):
        try:
            self.lines[name].send(" ".join(str(w) for w in words).encode())
        except OSError:
            raise Ended(self.how_ended(name))

    def answer(self, name):
        self.wait_readable([self.lines[name]])
        try:
            got = self.lines[name].recv(4096).decode()
        except OSError:
            got = ""
        if not got:
            raise Ended(self.how_ended(name))
        return got

    def ask(self, name, *words):
        self.tell(name, *words)
        return self.answer(name)

    def how_ended(self, name):
        time.sleep(0.05)
        try:
            _, status = os.waitpid(self.pids[name], os.WNOHANG)
            return "%s has ended by itself: status %#x" % (name, status)
        except OSError:
            return "%s has ended by itself" % name

    def gone(self, name):
        """Until the process has ended, and all that it had is closed."""
        self.wait_readable([self.pidfds[name]])
        os.close(self.pidfds.pop(name))
        self.lines.pop(name).close()

    # ---- steps ----

    def start(self, name, kind):
        path = self.programs["static" if kind == "static" else "self"]
        prefix = self.prefix if kind == "self" else []
        env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        env.update(LUCK_SELF=self.programs["self"], LUCK_STATIC=self.programs["static"],
                   LUCK_SETUID=self.programs["setuid"])
        subprocess.Popen(prefix + [path, self.address, name], env=env, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=self.errors, start_new_session=True)
        self.hello(name)
        return " started"

    def both_fast(self, *ends):
        paths = [int(self.ask(name, "path", slot)) for name, slot in ends]
        return all(p & 0x0f and p & 0xf0 for p in paths)

    def warm_up(self, name, slot, other, slot2, expected):
        end = time.monotonic() + WARM_S
        fast = False
        for i in range(10000):
            for a, b in (((name, slot), (other, slot2)), ((other, slot2), (name, slot))):
                for who, first in ((a, 1), (b, 0)):
                    got = self.ask(who[0], "warm", who[1], first)
                    if got != " done":
                        return got
            if not self.prefix or not expected:
                if i == 1:
                    return " done"
                continue
            fast = self.both_fast((name, slot), (other, slot2))
            if fast or time.monotonic() > end:
                break
            time.sleep(0.003)
        self.warm.append(fast)
        return " done"

    def settle(self, name, op, a):
        """Before a step whose answer depends on whether the end of the peer has been heard of."""
        p = self.world.processes.get(name)
        if op in ("send", "soerror", "shut", "pass", "recvnb") and p and a[0] in p.slots:
            e = p.slots[a[0]][0]
            if e.tcp and e.done():
                self.ask(name, "settle", a[0], e.events() & (program.HUP | program.RDHUP))

    def do(self, step):
        """What the step showed."""
        name, op, *a = step
        self.settle(name, op, a)
        if op == "start":
            self.world.apply(step)
            return self.start(name, a[0])
        if op == "killed":
            self.world.apply(step)
            os.kill(self.pids[name], getattr(signal, "SIG" + a[0]))
            self.gone(name)
            return " killed"
        if op == "await":
            self.world.apply(step)
            return self.answer(name)
        (_, words), = self.world.apply(step)
        if op == "begin":
            self.tell(name, *words)
            time.sleep(0.002)   # so that it sleeps when the next step comes
            return " begun"
        words = [w.port if isinstance(w, program.Listener) else w for w in words]
        if op == "warm":
            return self.warm_up(name, words[1], a[1], words[2], words[3])
        if op in ("exit", "_exit", "quick_exit", "return"):
            self.tell(name, *words)
            self.gone(name)
            return " ended"
        if op in ("wait", "kill"):
            words[1] = self.pids[words[1]]
        elif op == "getfd":
            words[2:4] = [self.pids[a[1]], self.ask(a[1], "fd", a[2]).strip()]
        self.tell(name, *words)
        if op == "exec":
            r = self.wait_readable([self.door, self.lines[name]])
            if self.door not in r and self.lines[name].recv(1, socket.MSG_PEEK):
                return self.answer(name)
            self.hello(name)
            return " executed"
        if op == "listen":
            port = self.answer(name)
            p = self.world.processes[name]
            p.slots[a[0]][0].port = int(port.split()[1])
        got = self.answer(name)
        if op in ("fork", "vfork", "spawn"):
            self.hello(a[0])
        elif op == "kill":
            self.gone(a[0])
        return got

    def left_behind(self):
        """Processes that are still there when all have ended."""
        for pidfd in self.pidfds.values():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self.wait_readable([pidfd])
        end = time.monotonic() + LEFT_S
        while time.monotonic() < end:
            try:
                if not os.waitpid(-1, os.WNOHANG)[0]:
                    time.sleep(0.002)
            except ChildProcessError:
                return 0
        return self.kill_all()

    def kill_all(self):
        n = 0
        for pidfd in self.pidfds.values():
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for _ in range(1000):
            with open("/proc/self/task/%d/children" % os.getpid()) as f:
                children = f.read().split()
            if not children:
                break
            n = max(n, len(children))
            for c in children:
                os.kill(int(c), signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
            time.sleep(0.002)
        return n

    def stacks(self):
        """What everybody sleeps in, when a step hangs."""
        out = []
        for name in self.pidfds:
            for thread in os.listdir("/proc/%d/task" % self.pids[name]):
                try:
                    with open("/proc/%d/task/%s/wchan" % (self.pids[name], thread)) as f:
                        out.append("%s/%s: %s" % (name, thread, f.read()))
                except OSError:
                    pass
        return out

    def play(self, steps, expected=None, plant=None):
        """
        Fills in .log, a line for each step. It ends where it differs from `expected`, or hangs. The
        step number `plant` lies.
        """
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.door.bind("\0" + self.address)
        self.door.listen(64)
        self.errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
        try:
            for i, step in enumerate(steps):
                try:
                    shown = self.do(step)
                except Hang:
                    self.log.append(program.text(step) + " -> HANG " + "; ".join(self.stacks()))
                    return self
                except Ended as e:
                    self.log.append(program.text(step) + " -> " + str(e))
                    return self
                if i == plant:
                    shown += " (planted)"
                self.log.append(program.text(step) + " ->" + shown)
                if expected is not None and self.log[i] != expected[i]:
                    return self
            self.log.append("left behind: %d" % self.left_behind())
        finally:
            self.kill_all()
            for line in self.lines.values():
                line.close()
            for fd in self.pidfds.values():
                os.close(fd)
            self.door.close()
            os.lseek(self.errors, 0, os.SEEK_SET)
            said = os.read(self.errors, 100000).decode("utf-8", "replace")
            os.close(self.errors)
            self.log += ["stderr: " + line for line in said.splitlines()]
        return self
