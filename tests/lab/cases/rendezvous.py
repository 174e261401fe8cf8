# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How processes on two hosts find each other by the RDMA CM: servers of several processes, whoever
answers where he should not, and keys."""
import json
import re
import time

from lab import check, needs

RSOCK = ["rsock", "run"]
PORT = 7300
PROGRAM = "/tmp/rsock-rendezvous.py"

# A server of one or several processes that echoes lines, and a client with many connections.
SOURCE = r'''
import json, os, selectors, signal, socket, sys, time
role, address, port, how, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
family = socket.AF_INET6 if ":" in address else socket.AF_INET


def tell(**what):
    os.write(1, (json.dumps(what) + "\n").encode())


def listener():
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6 and "dual" in how:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if "reuseport" in how:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((address, port))
    s.listen(1000)
    s.setblocking(False)
    return s


def serve(l):
    sel = selectors.DefaultSelector()
    sel.register(l, selectors.EVENT_READ)
    while True:
        for key, _ in sel.select():
            if key.fileobj is l:
                try:
                    s = l.accept()[0]
                except BlockingIOError:
                    continue
                sel.register(s, selectors.EVENT_READ)
                continue
            try:
                data = key.fileobj.recv(65536)
            except OSError as e:
                data = b""
                tell(pid=os.getpid(), error=type(e).__name__)
            if data:
                key.fileobj.sendall(b"%d " % os.getpid() + data)
            else:
                sel.unregister(key.fileobj)
                key.fileobj.close()


def server():
    shared = None if "reuseport" in how else listener()
    pids = []
    for _ in range(count - 1 if "one" in how else count):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(shared or listener())
        pids.append(pid)
    tell(pids=pids, pid=os.getpid())
    if "one" in how:
        serve(shared or listener())
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(60)


def client():
    """Reads commands: a number of new connections, or rounds of every one."""
    conns, files = [], []
    for line in sys.stdin:
        what, n = line.split()
        n = int(n)
        if what == "connect":
            worst = 0
            for _ in range(n):
                t = time.monotonic()
                s = socket.create_connection((address, port), timeout=20)
                worst = max(worst, time.monotonic() - t)
                conns.append(s)
                files.append(s.makefile("rb"))
            tell(connected=len(conns), worst=worst)
        elif what == "round":
            served, bad, worst = {}, 0, 0
            for r in range(n):
                for i, s in enumerate(conns):
                    t = time.monotonic()
                    try:
                        s.sendall(b"hello %d %d\n" % (i, r))
                        said = files[i].readline().split(b" ", 1)
                    except OSError as e:
                        bad += 1
                        continue
                    worst = max(worst, time.monotonic() - t)
                    if len(said) < 2 or said[1] != b"hello %d %d\n" % (i, r):
                        bad += 1
                        tell(bad=repr(said), index=i)
                    else:
                        served[said[0].decode()] = served.get(said[0].decode(), 0) + 1
                time.sleep(0.05)
            tell(rounds=n, served=served, bad=bad, worst=worst)
        elif what == "close":
            for s, f in zip(conns, files):
                f.close()
                s.close()
            conns, files = [], []
            tell(closed=True)


server() if role == "server" else client()
'''


class Pair:
    """A server on b, a client on a, and what they say to commands."""

    def __init__(self, lab, how, count=1, address=None, listen=None, port=PORT, env=(None, None),
                 prefixes=(RSOCK, RSOCK)):
        self.a, self.b = lab.hosts[:2]
        address = address or self.b.ip
        for host in (self.a, self.b):
            host.put(PROGRAM, SOURCE)
        self.server = self.b.spawn([*prefixes[1], "python3", PROGRAM, "server", listen or address,
                                    port, how, count], env=env[1])
        self.server.wait_line("pids")
        self.server.wait_listening(port)
        if count > 1 and "reuseport" in how:
            time.sleep(1)  # until all of them listen
        self.pids = json.loads(self.server.text().splitlines()[0])
        self.client = self.a.spawn([*prefixes[0], "python3", PROGRAM, "client", address, port, how,
                                    count], stdin=True, env=env[0])
        self.said = 0

    def ask(self, what, n, timeout=30):
        self.client.write(b"%s %d\n" % (what.encode(), n))
        self.client.wait_line(r"(.*\n){%d}" % (self.said + 1), timeout)
        self.said += 1
        said = json.loads(self.client.text().splitlines()[self.said - 1])
        check("bad" not in said or not said["bad"], "%s: %s" % (self.client, said))
        return said

    def rows(self):
        said = json.loads(self.a.run(["rsock", "stat", "--json"], check=True).stdout)
        return [row for row in said if row["peer"]]

    def until_fast(self, count, timeout=20):
        """Until so many connections of the client are on RDMA, both ways."""
        end = time.monotonic() + timeout
        while True:
            self.ask("round", 1)
            found = self.rows()
            if sum(fast(row) for row in found) == count == len(found):
                return found
            check(time.monotonic() < end, "not on rdma: %s" % story(found))
            time.sleep(0.3)

    def until_decided(self, timeout=20):
        """Until each connection is on a fast path, or on TCP for good."""
        end = time.monotonic() + timeout
        while True:
            self.ask("round", 1)
            found = self.rows()
            if found and not any(row["reason"] == "starting" for row in found):
                return found
            check(time.monotonic() < end, "undecided: %s" % story(found))
            time.sleep(0.3)

    def end(self):
        self.client.kill()
        self.server.kill()


def fast(row):
    return row["tx_path"] == "rdma" and row["rx_path"] == "rdma"


def story(found):
    count = {}
    for row in found:
        what = (row["tx_path"], row["rx_path"], row["reason"])
        count[what] = count.get(what, 0) + 1
    return count


def queue_pairs(host):
    """Those of user processes: the device's own have no pid."""
    said = json.loads(host.run(["rdma", "-j", "res", "show", "qp"], check=True).stdout)
    return [qp for qp in said if qp.get("type") == "RC" and "pid" in qp]


@needs(timeout=120)
def case_a_prefork_server_of_4_workers(lab):
    pair = Pair(lab, "prefork", 4)
    pair.ask("connect", 200)
    pair.until_fast(200, 60)
    said = pair.ask("round", 2)
    check(len(said["served"]) > 1, "one worker has served all: %s" % said)
    check(len(queue_pairs(pair.a)) <= 4, "queue pairs: %s" % queue_pairs(pair.a))
    pair.end()


@needs(timeout=120)
def case_a_SO_REUSEPORT_server_of_4_processes(lab):
    pair = Pair(lab, "reuseport", 4)
    pair.ask("connect", 200)
    pair.until_fast(200, 60)
    said = pair.ask("round", 2)
    check(len(said["served"]) == 4, "served by: %s" % said)
    check(len(queue_pairs(pair.a)) == 4, "queue pairs: %s" % queue_pairs(pair.a))
    pair.end()
