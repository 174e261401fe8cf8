# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs that a test starts on this host, plain and under rsock, and ends; nothing of them stays."""
import ctypes
import glob
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from tap import Failed, check

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PYTHON = "/usr/bin/python3"
PAIRINGS = ("rsock/rsock", "rsock/plain", "plain/rsock", "plain/plain")


def build_dir():
    b = os.environ.get("RSOCK_BUILD", "build")
    if os.path.isabs(b) or os.path.isdir(b):
        return os.path.abspath(b)
    return os.path.join(ROOT, b)


BUILD = build_dir()
RSOCK = os.path.join(BUILD, "rsock")


def tree(pid):
    """A process and all its living descendants."""
    kids = {}
    for p in os.listdir("/proc"):
        if not p.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % p) as f:
                w = f.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if w[0] != "Z":
            kids.setdefault(int(w[1]), []).append(int(p))
    out, todo = [], [pid]
    while todo:
        p = todo.pop()
        out.append(p)
        todo += kids.get(p, [])
    return out


class Child:
    def __init__(self, cmd, rsock=False, limits=(), env=None, stdin=None, cwd=None, prefix=(),
                 session=False):
        """prefix goes in front of everything (setpriv ...); limits are (resource, soft = hard).

        session: a session of its own, for a server that signals its process group.
        """
        full = list(prefix) + ([RSOCK, "run"] if rsock else []) + [str(c) for c in cmd]
        self.cmd, self.name = full, os.path.basename(str(cmd[0]))
        self.out_file = tempfile.TemporaryFile()
        self.err_file = tempfile.TemporaryFile()
        self.copier = None
        # a limit of file sizes must not stop what the program prints
        piped = any(what == resource.RLIMIT_FSIZE for what, _ in limits)
        e = dict(os.environ)
        e.pop("LD_PRELOAD", None)
        e.update(env or {})

        def limit():
            for what, value in limits:
                resource.setrlimit(what, (value, value))

        self.p = subprocess.Popen(full, stdin=stdin or subprocess.DEVNULL,
                                  stdout=subprocess.PIPE if piped else self.out_file,
                                  stderr=self.err_file, env=e, cwd=cwd, start_new_session=session,
                                  preexec_fn=limit if limits else None)
        CHILDREN.append(self)
        if piped:
            self.copier = threading.Thread(target=self.copy, daemon=True)
            self.copier.start()

    def copy(self):
        while part := os.read(self.p.stdout.fileno(), 65536):
            os.write(self.out_file.fileno(), part)

    @property
    def pid(self):
        return self.p.pid

    def text(self, which="out"):
        f = self.out_file if which == "out" else self.err_file
        data = os.pread(f.fileno(), 1 << 24, 0)
        return data.decode("utf-8", "backslashreplace")

    def data(self):
        return os.pread(self.out_file.fileno(), 1 << 28, 0)

    def wait_line(self, regex, seconds=10):
        """Until stdout has a line that matches; the match."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            m = re.search(regex, self.text(), re.M)
            if m:
                return m
            if self.p.poll() is not None:
                break
            time.sleep(0.005)
        m = re.search(regex, self.text(), re.M)
        if m:
            return m
        raise Failed("%s: no %r; %s" % (" ".join(self.cmd), regex, self.story()))

    def wait(self, seconds):
        try:
            rc = self.p.wait(seconds)
            if self.copier:
                self.copier.join(2)
            return rc
        except subprocess.TimeoutExpired:
            stacks = ""
            for t in glob.glob("/proc/%d/task/*/wchan" % self.pid):
                try:
                    with open(t) as f:
                        stacks += " " + f.read()
                except OSError:
                    pass
            raise Failed("%s: still running after %s s (%s); %s"
                         % (" ".join(self.cmd), seconds, stacks.strip(), self.story())) from None

    def story(self):
        return "status %s, stdout %r, stderr %r" % (self.p.poll(), self.text()[-400:],
                                                    self.text("err")[-400:])

    def good(self, seconds=30):
        rc = self.wait(seconds)
        check(rc == 0, "%s: %s" % (" ".join(self.cmd), self.story()))
        return self.text()

    def end(self, sig=signal.SIGTERM, seconds=5):
        if self.p.poll() is None:
            self.p.send_signal(sig)
        try:
            self.p.wait(seconds)
        except subprocess.TimeoutExpired:
            self.p.kill()
            self.p.wait()
            raise Failed("%s: did not end by %s" % (" ".join(self.cmd), sig)) from None


CHILDREN = []


def descendants():
    """Everything alive that a test has started: orphans come to us, see become_subreaper()."""
    return [p for p in tree(os.getpid()) if p != os.getpid()]


def become_subreaper():
    """Processes that outlive their parents become ours, and so cannot get lost."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(36, 1, 0, 0, 0):  # PR_SET_CHILD_SUBREAPER
        raise OSError(ctypes.get_errno(), "prctl")


def end_children():
    """At the end of a test nothing of it stays."""
    for _ in range(20):
        left = descendants()
        if not left:
            break
        for p in left:
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.005)
    for c in CHILDREN:
        c.p.wait(5)
        c.out_file.close()
        c.err_file.close()
    CHILDREN.clear()
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def free_port(family=socket.AF_INET):
    """None that the kernel might give to some client before the server has it."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
        low = int(f.read().split()[0])
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as s:
            try:
                s.bind((host, random.randrange(10000, low) if low > 20000 else 0))
            except OSError:
                continue
            return s.getsockname()[1]


def wait_port(port, child, seconds=10):
    """Until somebody listens, without connecting."""
    end = time.monotonic() + seconds
    want = ":%04X" % port
    while time.monotonic() < end:
        for name in ("/proc/net/tcp", "/proc/net/tcp6"):
            with open(name) as f:
                for line in f:
                    w = line.split()
                    if w[3] == "0A" and w[1].endswith(want):
                        return
        if child.p.poll() is not None:
            break
        time.sleep(0.01)
    raise Failed("nobody listens on the port: " + child.story())


def tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    check(path, "%s is not installed" % name)
    return path


def sides(pairing):
    s, c = pairing.split("/")
    return s == "rsock", c == "rsock"


def connections_left(port):
    """Connections of a port that are more than TIME-WAIT."""
    p = subprocess.run([tool("ss"), "-Htan", "( sport = :%d or dport = :%d )" % (port, port)],
                       capture_output=True, timeout=10, check=True)
    return [l for l in p.stdout.decode().splitlines() if l.strip() and not l.startswith("TIME-WAIT")]


def traces():
    return set(os.listdir("/dev/shm")), {n for n in os.listdir("/tmp") if "rsock" in n}


def must_be_gone(port, seconds=4):
    """No process of a test lives, and no connection of the port."""
    end = time.monotonic() + seconds
    while True:
        left = connections_left(port)
        procs = descendants()
        if not left and not procs:
            break
        if time.monotonic() > end:
            raise Failed("left behind: connections %s, processes %s" % (left, procs))
        time.sleep(0.05)


def must_be_clean(port, before, seconds=4):
    """Nothing is left behind by processes that have ended."""
    must_be_gone(port, seconds)
    after = traces()
    check(after[0] <= before[0], "left in /dev/shm: %s" % (after[0] - before[0]))
    check(after[1] <= before[1], "left in /tmp: %s" % (after[1] - before[1]))
