# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How connections over RDMA end, by will or by force, and who stays on TCP for which reason."""
import json
import re
import time

import clock
from lab import check, needs
from programs import rows

RSOCK = ["rsock", "run"]
PORT = 7200

# The byte at offset o of a direction is always the same: any prefix can be checked.
SOURCE = r'''
import json, os, socket, sys, time
role, address, port, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
wait = len(sys.argv) > 5
import random
unit = random.Random(7).randbytes(1 << 20)
PATTERN = unit * 3


def tell(**what):
    print(json.dumps(what), flush=True)


def connected():
    if role == "client":
        return socket.create_connection((address, port))
    with socket.create_server((address, port)) as listener:
        return listener.accept()[0]


def send(s, count=1 << 60):
    at = 0
    try:
        while at < count:
            i = at % len(unit)
            at += s.send(PATTERN[i:i + min(100000, count - at)])
    except OSError as e:
        return at, type(e).__name__
    return at, None


def receive(s, slow=0):
    at, error, good = 0, None, True
    try:
        while data := s.recv(65536):
            i = at % len(unit)
            good &= data == PATTERN[i:i + len(data)]
            at += len(data)
            if slow:
                time.sleep(slow)
    except OSError as e:
        error = type(e).__name__
    return at, error, good


s = connected()
tell(connected=True)
if wait:
    sys.stdin.readline()  # until it has entered
s.sendall(b"!") if role == "client" else s.recv(1)
s.sendall(b"!") if role == "server" else s.recv(1)
tell(ready=True)
if how == "send":
    tell(sent=send(s))
elif how.startswith("send="):
    tell(sent=send(s, int(how[5:])))
    s.close()
elif how == "receive":
    at, error, good = receive(s)
    tell(got=at, error=error, good=good)
elif how == "hold":
    time.sleep(60)
elif how == "unread":  # leaves what has come where it is
    time.sleep(0.5)
    s.close()
    time.sleep(0.5)
elif how == "fork":
    while data := s.recv(65536):
        pid = os.fork()
        if not pid:
            s.sendall(b"child " + data[:10])
            os._exit(0)
        os.waitpid(pid, 0)
        s.sendall(b"parent")
elif how == "forked":
    for i in range(3):
        s.sendall(b"0123456789" * 100)
        want = b"child 0123456789parent"
        got = b""
        while len(got) < len(want):
            got += s.recv(1000)
        tell(round=i, same=got == want)
    s.shutdown(socket.SHUT_WR)
    tell(eof=s.recv(1) == b"")
'''


def start(host, role, address, how, *more, prefix=(*RSOCK,), port=PORT):
    host.put("/tmp/ends.py", SOURCE)
    process = host.spawn([*prefix, "python3", "/tmp/ends.py", role, address, port, how, *more],
                         stdin=bool(more))
    if role == "server":
        process.wait_listening(port)
    return process


def pair(lab, client, server, port=PORT, **how):
    """Two ends whose connection is on RDMA in both directions."""
    a, b = lab.hosts
    ends = [start(b, "server", b.ip, server, "wait", port=port, **how),
            start(a, "client", b.ip, client, "wait", port=port, **how)]
    end = clock.now() + 15
    for process in ends:
        process.wait_line("connected")
    while True:
        time.sleep(0.3)
        found = [[row for row in rows(host) if (":%d" % port) in row["local"] + row["peer"]]
                 for host in lab.hosts]
        if all(len(r) == 1 and r[0]["tx_path"] == r[0]["rx_path"] == "rdma" for r in found):
            break
        check(clock.now() < end, "not on RDMA: %s" % found)
    for process in ends:
        process.write(b"\n")
    for process in ends:
        process.wait_line("ready")
    return ends[1], ends[0]


def last(process, timeout=20):
    process.wait(timeout)
    lines = process.text().splitlines()
    check(process.status == 0, process.story())
    return json.loads(lines[-1])


def case_close_with_unread_data_resets(lab):
    client, server = pair(lab, "send", "unread")
    said = last(client)["sent"]
    check(said[1] in ("ConnectionResetError", "BrokenPipeError"), "no reset: %s" % said)
    client, server = pair(lab, "unread", "send", port=PORT + 1)
    said = last(server)["sent"]
    check(said[1] in ("ConnectionResetError", "BrokenPipeError"), "no reset: %s" % said)


@needs(timeout=150)
def case_a_killed_sender_is_never_a_silent_cut(lab):
    for i in range(16):
        sends, port = ("client", "server")[i % 2], PORT + i
        ends = pair(lab, *(("send", "receive") if sends == "client" else ("receive", "send")),
                    port=port)
        victim, other = ends if sends == "client" else ends[::-1]
        time.sleep((0, 0.003, 0.02, 0.1, 0.25)[i % 5])
        victim.kill()
        said = last(other)
        check(said["good"], "wrong bytes: %s" % said)
        check(said["error"] == "ConnectionResetError", "a silent cut: %s" % said)


@needs(timeout=120)
def case_a_killed_receiver_is_noticed(lab):
    for i in range(8):
        sends, port = ("client", "server")[i % 2], PORT + i
        ends = pair(lab, *(("send", "receive") if sends == "client" else ("receive", "send")),
                    port=port)
        other, victim = ends if sends == "client" else ends[::-1]
        time.sleep((0, 0.01, 0.1)[i % 3])
        victim.kill()
        said = last(other)["sent"]
        check(said[1] in ("ConnectionResetError", "BrokenPipeError"), "not noticed: %s" % said)


@needs(timeout=120)
def case_RDMA_blocked_in_the_middle(lab):
    """The stream leaves for TCP, and not a byte is missing."""
    a, b = lab.hosts
    total = 256 << 20
    for i, (client, server) in enumerate(((f"send={total}", "receive"),
                                          ("receive", f"send={total}"))):
        ends = pair(lab, client, server, port=PORT + i,
                    prefix=("env", "RSOCK_LOG=info", *RSOCK))
        sender, receiver = (a, ends[1]) if client.startswith("send") else (b, ends[0])
        time.sleep(0.15)
        before = rows(sender)
        check(before and before[0]["tx_path"] == "rdma", "not on RDMA: %s" % before)
        a.block_roce()
        begin = clock.now()
        for end in ends:
            # Who hears of it from the other has perhaps sent all before it is sure.
            end.wait_line(r"(connected|answering) on[\s\S]*(is gone|peer-left)", 10, kind="err")
        took = clock.now() - begin
        said = last(receiver, 40)
        check(said == {"got": total, "error": None, "good": True}, "%s" % said)
        check(took < 2, "left after %.1f s" % took)
        for end in ends:
            end.good()
        a.unblock_roce()


ASK = """
import socket, sys, time
role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
unit = bytes(range(256)) * 16
if role == "client":
    s = socket.create_connection((address, port))
    turns, rest = 0, float(sys.argv[4]) if len(sys.argv) > 4 else 0
    while True:
        s.sendall(unit)
        got = b""
        while len(got) < len(unit):
            data = s.recv(65536)
            if not data:
                sys.exit("end of file")
            got += data
        if got != unit:
            sys.exit("wrong bytes")
        time.sleep(0.001)
        turns += 1
        if rest and turns % 2000 == 0:
            time.sleep(rest)
listener = socket.create_server((address, port))
s = listener.accept()[0]
while data := s.recv(65536):
    s.sendall(data)
"""


def wait_path(lab, path, seconds, client, server):
    """Both ends, both directions, while the programs run."""
    end = clock.now() + seconds
    while True:
        seen = [(r["tx_path"], r["rx_path"], r["reason"]) for e in lab.hosts for r in rows(e)]
        if len(seen) == 2 and all(s[:2] == (path, path) for s in seen):
            return seen
        check(client.running() and server.running(), client.story() + server.story())
        check(clock.now() < end, "not on %s: %s" % (path, seen))
        time.sleep(0.1)


@needs(timeout=150)
def case_RDMA_comes_back(lab):
    """Each time that RDMA is blocked for some seconds: to TCP, and back by itself."""
    a, b = lab.hosts
    for host in lab.hosts:
        host.put("/tmp/ask.py", ASK)
    server = b.spawn([*RSOCK, "python3", "/tmp/ask.py", "server", b.ip, str(PORT)])
    server.wait_listening(PORT)
    client = a.spawn([*RSOCK, "python3", "/tmp/ask.py", "client", b.ip, str(PORT)])

    wait_path(lab, "rdma", 20, client, server)
    for _ in range(3):
        a.block_roce()
        for _, _, reason in wait_path(lab, "tcp", 10, client, server):
            check(reason in ("link-lost", "peer-left"), reason)
        before = rows(a)[0]["tx_bytes"]
        time.sleep(2)
        check(rows(a)[0]["tx_bytes"] > before, "nothing moves")
        a.unblock_roce()
        wait_path(lab, "rdma", 40, client, server)
    check(rows(a)[0]["enters"] >= 8, "%s" % rows(a))
    client.kill()


@needs(timeout=100)
def case_idle_connections_are_parked(lab):
    """Each time that the client rests: to TCP, and back with what it sends then."""
    a, b = lab.hosts
    parks = ["env", "RSOCK_PARK_MS=300", *RSOCK]
    for host in lab.hosts:
        host.put("/tmp/ask.py", ASK)
    server = b.spawn([*parks, "python3", "/tmp/ask.py", "server", b.ip, str(PORT)])
    server.wait_listening(PORT)
    client = a.spawn([*parks, "python3", "/tmp/ask.py", "client", b.ip, str(PORT), "5"])
    for _ in range(3):
        wait_path(lab, "rdma", 20, client, server)
        reasons = [reason for _, _, reason in wait_path(lab, "tcp", 20, client, server)]
        check(reasons == ["parked", "peer-left"], reasons)
    client.kill()


def case_RDMA_out_for_a_moment(lab):
    """As when a host gets no CPU, or a switch converges: it passes, and the stream is where it was."""
    a, _ = lab.hosts
    total = 320 << 20

    def retries():
        return sum(host.counters()["completer_retry_err"] for host in lab.hosts)

    client, server = pair(lab, f"send={total}", "receive", prefix=("env", "RSOCK_LOG=info", *RSOCK))
    before = retries()
    time.sleep(0.3)
    a.block_roce()
    time.sleep(0.4)
    a.unblock_roce()
    check(last(server, 40) == {"got": total, "error": None, "good": True}, server.story())
    check(retries() > before, "it was not out")
    for end in client, server:
        end.good()
        check(not re.search("has failed|link-lost|peer-left", end.text("err")), end.text("err"))


@needs(also="siw")
def case_fork_with_a_live_connection(lab):
    client, server = pair(lab, "forked", "fork")
    check(last(client) == {"eof": True}, client.story())
    check(client.text().count('"same": true') == 3, client.story())
    server.good()
    client, server = pair(lab, "fork", "forked", port=PORT + 1)
    check(last(server) == {"eof": True}, server.story())
    check(server.text().count('"same": true') == 3, server.story())
    client.good()


def stays_on_tcp(lab, reasons, prefixes):
    """`reasons`: of the client and the server, None where it is not under rsock."""
    a, b = lab.hosts
    server = start(b, "server", b.ip, "hold", prefix=prefixes[1])
    client = start(a, "client", b.ip, "hold", prefix=prefixes[0])
    client.wait_line("ready", 5)
    server.wait_line("ready", 5)
    end = clock.now() + 20  # the window of an accepted one is ten seconds
    for host, want in ((a, reasons[0]), (b, reasons[1])):
        while want:
            found = [row for row in rows(host) if "listen" not in row["path"]]
            if found and found[0]["reason"] != "starting" or clock.now() > end:
                check(found and found[0]["path"] == "tcp" and found[0]["reason"] in want,
                      "%s: %s, not %s" % (host.name, found, want))
                break
            time.sleep(0.1)
    client.kill()
    server.kill()


def case_only_the_client_runs_rsock(lab):
    stays_on_tcp(lab, (("peer-plain",), None), (RSOCK, ()))


def case_only_the_server_runs_rsock(lab):
    stays_on_tcp(lab, (None, ("peer-plain",)), ((), RSOCK))


def user(*more):
    """As somebody who may do little."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *more]


def case_no_permission_on_the_devices(lab):
    for host in lab.hosts:
        host.run("chmod 600 /dev/infiniband/*", check=True)
    stays_on_tcp(lab, (("no-permission",), None), (user(*RSOCK), RSOCK))


def case_little_memory_may_be_locked(lab):
    for host in lab.hosts:
        host.run("chmod 666 /dev/infiniband/*", check=True)
    limited = user("prlimit", "--memlock=65536:65536", *RSOCK)
    stays_on_tcp(lab, (("memlock",), None), (limited, RSOCK))
    stays_on_tcp(lab, (("memlock", "peer-plain"), ("memlock", "peer-plain", "no-route")),
                 (RSOCK, limited))


def case_as_much_may_be_locked_as_by_default(lab):
    """8 MiB, for a user without privileges: enough for a link and its first connections."""
    for host in lab.hosts:
        host.run("chmod 666 /dev/infiniband/*", check=True)
    prefix = user("prlimit", "--memlock=8388608:8388608", *RSOCK)
    for end in pair(lab, "hold", "hold", prefix=prefix):
        end.kill()
