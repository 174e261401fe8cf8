# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs under rsock on two hosts exchange their data over RDMA: every byte, in order, once."""
import json
import time

import clock
from lab import check, needs
from programs import rows

RSOCK = ["rsock", "run"]
PORT = 7100
PROGRAM = "/tmp/rsock-transfer.py"

# One program for both ends. Its only argument, JSON, says what it does on each of its connections.
SOURCE = r'''
import hashlib, json, os, random, select, selectors, socket, sys, threading, time
o = dict(style="block", connections=1, out=0, take=0, first="both", end="shutdown", write=65536,
         read=65536, hold=False)
o.update(json.loads(sys.argv[1]))
noise = os.urandom(1 << 20)
lock = threading.Lock()


def tell(**what):
    with lock:
        print(json.dumps(what), flush=True)


def chunks(count, digest):
    at = 0
    while count:
        n = min(count, random.randint(1, o["write"]) if o["write"] > 1 else 1)
        at = (at + 4099) % (len(noise) - n) if n < len(noise) else 0
        data = noise[at:at + n]
        digest.update(data)
        count -= len(data)
        yield data


class Flow:
    def __init__(self, s):
        self.s, self.sent, self.got = s, hashlib.sha256(), hashlib.sha256()
        self.source, self.left, self.taken, self.eof = chunks(o["out"], self.sent), b"", 0, False
        self.done_out = False
        self.name = (s.getsockname() if o["role"] == "client" else s.getpeername())[1]

    def push(self):
        """Writes once, without sleeping; False when all is written."""
        if not self.left:
            self.left = memoryview(next(self.source, b""))
        if not self.left:
            if not self.done_out and o["end"] == "shutdown":
                self.s.shutdown(socket.SHUT_WR)
            self.done_out = True
            return False
        try:
            self.left = self.left[self.s.send(self.left):]
        except BlockingIOError:
            pass
        return True

    def pull(self):
        try:
            data = self.s.recv(o["read"])
        except BlockingIOError:
            return
        self.got.update(data)
        self.taken += len(data)
        self.eof |= not data or (o["end"] != "shutdown" and self.taken >= o["take"])

    def all_out(self):
        while self.push():
            pass

    def all_in(self):
        while not self.eof:
            self.pull()

    def block(self):
        if o["end"] != "shutdown" and not o["take"]:
            self.eof = True
        if o["first"] == "both":
            t = threading.Thread(target=self.all_out)
            t.start()
            self.all_in()
            t.join()
        elif o["first"] == o["role"]:
            self.all_out()
            self.all_in()
        else:
            self.all_in()
            self.all_out()

    def report(self):
        tell(connection=self.name, sent=self.sent.hexdigest(), got=self.got.hexdigest(), taken=self.taken)


def multiplex(flows):
    kinds = dict(poll=selectors.PollSelector, select=selectors.SelectSelector,
                 epoll=selectors.EpollSelector)
    sel = kinds[o["style"]]()
    for f in flows:
        f.s.setblocking(False)
        sel.register(f.s, selectors.EVENT_READ | selectors.EVENT_WRITE, f)
    live = len(flows)
    while live:
        ready = sel.select(30)
        if not ready:
            tell(error="nothing happens", left=live)
            sys.exit(3)
        for key, events in ready:
            f = key.data
            want = key.events
            if events & selectors.EVENT_WRITE and not f.push():
                want &= ~selectors.EVENT_WRITE
            if events & selectors.EVENT_READ:
                f.pull()
                if f.eof:
                    want &= ~selectors.EVENT_READ
            if want != key.events:
                if want:
                    sel.modify(f.s, want, f)
                else:
                    sel.unregister(f.s)
                    live -= 1


def sockets():
    if o["role"] == "client":
        return [socket.create_connection((o["address"], o["port"])) for _ in range(o["connections"])]
    with socket.create_server((o["address"], o["port"]), backlog=1000) as listener:
        return [listener.accept()[0] for _ in range(o["connections"])]


socks = sockets()
if o.get("settle"):
    tell(connected=True)
    sys.stdin.readline()  # until they have entered
flows = [Flow(s) for s in socks]
tell(start=time.monotonic())
if o["style"] == "block":
    ts = [threading.Thread(target=f.block) for f in flows]
    for t in ts:
        t.start()
    for t in ts:
        t.join()
else:
    multiplex(flows)
for f in flows:
    f.report()
tell(done=time.monotonic(), fds=len(os.listdir("/proc/self/fd")))
if o["hold"]:
    sys.stdin.readline()
'''


class Transfer:
    """A pair of them; `both` is for both ends, the others for one."""

    def __init__(self, client, server, both, here=None, there=None, prefixes=(RSOCK, RSOCK)):
        both = {"address": server.ip, "port": PORT, **both}
        self.ends = []
        for host, role, own, prefix in ((server, "server", there, prefixes[1]),
                                        (client, "client", here, prefixes[0])):
            host.put(PROGRAM, SOURCE)
            what = {**both, **(own or {}), "role": role}
            process = host.spawn([*prefix, "python3", PROGRAM, json.dumps(what)],
                                 stdin=True)
            self.ends.append(process)
            if role == "server":
                process.wait_listening(PORT)
        self.server, self.client = self.ends

    def settle(self, count=1, timeout=30):
        """Until the connections of both are on RDMA, in both directions; then it begins."""
        end = clock.now() + timeout
        for process in self.ends:
            process.wait_line("connected", timeout)
        while True:
            time.sleep(0.4)  # a look takes the guest's only CPU away from what it looks at
            found = [rows(process.host) for process in self.ends]
            if all(len(r) == count and all(on_rdma(row) for row in r) for r in found):
                break
            check(clock.now() < end, "not on RDMA: %s" % found)
        for process in self.ends:
            process.write(b"\n")

    def results(self, end, timeout):
        end.wait_line(r'"done"|"error"', timeout)
        said = [json.loads(line) for line in end.text().splitlines()]
        check(not any("error" in line for line in said), "%s: %s" % (end, said[-3:]))
        return [line for line in said if "sent" in line]

    def verify(self, timeout=50):
        """Every byte that one has sent the other has got, on each connection."""
        theirs, ours = (self.results(end, timeout) for end in self.ends)
        for one, other in ((ours, theirs), (theirs, ours)):
            sent = {r["connection"]: r["sent"] for r in one}
            got = {r["connection"]: r["got"] for r in other}
            check(len(sent) == len(one), "not one line for each connection: %s" % one[:3])
            check(sent == got, "not what was sent: %s, %s" % (one[:3], other[:3]))

    def end(self):
        for end in self.ends:
            if end.running():
                end.write(b"\n")
        for end in self.ends:
            end.good(10)


def on_rdma(row):
    return row["tx_path"] == row["rx_path"] == "rdma"


def exchange(lab, both, here=None, there=None, timeout=50):
    """With `settle`, the first byte is on RDMA already; else they enter when some have gone by TCP."""
    a, b = lab.hosts
    both = {"hold": True, "settle": True, **both}
    t = Transfer(a, b, both, here, there)
    if both["settle"]:
        t.settle(both.get("connections", 1))
    t.verify(timeout)
    for host in (a, b):
        found = rows(host)
        check(found, "no connection on " + host.name)
        for row in found:
            tcp = row["tx_bytes"] - row["tx_fast_bytes"], row["rx_bytes"] - row["rx_fast_bytes"]
            check(row["enters"] and row["tx_fast_bytes"] + row["rx_fast_bytes"]
                  and (tcp == (0, 0) or not both["settle"]), "%s: %s" % (host.name, row))
            check(both["settle"] or tcp != (0, 0), "nothing went by TCP: %s" % row)
    t.end()


@needs(also="siw")
def case_sizes_both_ways_at_once(lab):
    for size in (1, 2, 1000, 65536, 262144, 262145, 1 << 20, 16 << 20):
        exchange(lab, {"out": size, "take": size, "settle": True}, timeout=20)


@needs(timeout=180, also="siw")
def case_256_MiB_both_ways_at_once(lab):
    exchange(lab, {"out": 256 << 20, "take": 256 << 20}, timeout=160)


def case_it_enters_in_the_middle_of_a_transfer(lab):
    exchange(lab, {"out": 24 << 20, "settle": False})


@needs(also="siw")
def case_client_speaks_first(lab):
    exchange(lab, {"first": "client"}, {"out": 4 << 20}, {"out": 4 << 20})


@needs(also="siw")
def case_server_speaks_first(lab):
    exchange(lab, {"first": "server"}, {"out": 4 << 20}, {"out": 4 << 20})


@needs(also="siw")
def case_one_way_and_half_close(lab):
    exchange(lab, {}, {"out": 8 << 20}, {"out": 0})
    exchange(lab, {}, {"out": 0}, {"out": 8 << 20})


@needs(timeout=120, also="siw")
def case_tiny_writes_and_reads(lab):
    exchange(lab, {"out": 20000, "write": 1})
    exchange(lab, {"out": 200000, "write": 100, "read": 77})


@needs(also="siw")
def case_huge_writes(lab):
    exchange(lab, {"out": 32 << 20, "write": 8 << 20, "read": 4 << 20})


@needs(timeout=120, also="siw")
def case_poll_select_and_epoll_programs(lab):
    for style in ("poll", "select", "epoll"):
        exchange(lab, {"style": style, "out": 4 << 20, "connections": 4}, timeout=30)
    exchange(lab, {"out": 4 << 20, "connections": 4}, {"style": "epoll"}, {"style": "block"})


@needs(timeout=120)
def case_200_connections_at_once(lab):
    exchange(lab, {"style": "epoll", "connections": 200, "out": 200000}, timeout=80)
    exchange(lab, {"style": "block", "connections": 50, "out": 400000}, timeout=50)


@needs(also="siw")
def case_exit_right_after_send(lab):
    a, b = lab.hosts
    for _ in range(5):
        t = Transfer(a, b, {"settle": True}, {"out": 1 << 20, "end": "exit"},
                     {"out": 0, "take": 1 << 20, "read": 5000, "end": "shutdown"})
        t.settle()
        t.verify(20)
        t.end()


def case_descriptors_do_not_leak(lab):
    a, b = lab.hosts
    a.put("/tmp/leak.py", LEAK)
    b.put("/tmp/leak.py", LEAK)
    server = b.spawn([*RSOCK, "python3", "/tmp/leak.py", "server", b.ip])
    server.wait_listening(PORT)
    said = json.loads(a.run([*RSOCK, "python3", "/tmp/leak.py", "client", b.ip], timeout=50,
                            check=True).stdout)
    check(said["after"] <= said["before"] + 2, "client: %s" % said)
    check(max(said["low"]) < 8, "low descriptors: %s" % said)
    said = json.loads(server.good())
    check(said["after"] <= said["before"] + 2, "server: %s" % said)


LEAK = r'''
import json, os, socket, sys, time
def fds():
    return sorted(int(f) for f in os.listdir("/proc/self/fd"))
def low():
    return [f for f in fds() if f < 1000]
role, address = sys.argv[1:]
def once():
    if role == "client":
        s = socket.create_connection((address, 7100))
        for _ in range(20):
            s.sendall(b"x" * 500)
            while len(s.recv(1000)) == 1000: pass
            time.sleep(0.005)
    else:
        s = listener.accept()[0]
        while data := s.recv(1000):
            s.sendall(data)
    s.close()
listener = socket.create_server((address, 7100)) if role == "server" else None
for i in range(10): once()
time.sleep(1 if role == "client" else 0)
before = len(fds())
for i in range(100): once()
time.sleep(1)
print(json.dumps(dict(before=before, after=len(fds()), low=low())))
'''
