# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How processes on two hosts find each other by the RDMA CM: servers of several processes, whoever
answers where he should not, and keys."""
import json
import os
import signal
import time

import clock
from lab import BUILD, check, needs

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
        self.pids = json.loads(self.server.text().splitlines()[0])["pids"]
        self.client = self.a.spawn([*prefixes[0], "python3", PROGRAM, "client", address, port, how,
                                    count], stdin=True, env=env[0])
        self.said = 0

    def ask(self, what, n, timeout=30):
        self.tell(what, n)
        return self.answer(timeout)

    def tell(self, what, n):
        self.client.write(b"%s %d\n" % (what.encode(), n))

    def answer(self, timeout=30):
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
        end = clock.now() + timeout
        while True:
            self.ask("round", 1)
            found = self.rows()
            if sum(fast(row) for row in found) == count == len(found):
                return found
            check(clock.now() < end, "not on rdma: %s" % story(found))
            time.sleep(0.3)

    def until_decided(self, timeout=20):
        """Until each connection is on a fast path, or on TCP for good."""
        end = clock.now() + timeout
        while True:
            self.ask("round", 1)
            found = self.rows()
            if found and not any(row["reason"] == "starting" for row in found):
                return found
            check(clock.now() < end, "undecided: %s" % story(found))
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


@needs(timeout=120)
def case_both_stop_while_they_enter(lab):
    """For longer than one waits for a link that is being made; nobody is given up for that."""
    for i, pause in enumerate((0.004, 0.02)):
        pair = Pair(lab, "one", 1, port=PORT + i)
        pair.tell("connect", 20)
        time.sleep(pause)
        for end in (pair.server, pair.client):
            end.send_signal(signal.SIGSTOP)
        time.sleep(5.5)
        for end in (pair.client, pair.server):
            end.send_signal(signal.SIGCONT)
        pair.answer()
        pair.until_fast(20)
        pair.end()


ASK = os.path.join(BUILD, "tests/apps/ask")
# So that a crowd's processes have it by their fork: to load it is a third of what each of them does.
LOADED = {"LD_PRELOAD": os.path.join(BUILD, "librsock-rdma.so")}
OWN_DESCRIPTORS = 16  # as README has it: ten, and six for a device
LATE = ("no-route", "link-lost", "peer-left")
CLIENTS = 1000
AT_ONCE = 12  # of them, 8 have a worker and the others wait in the backlog

# How many entries of these processes the directory of the first one holds (conn_mgr/directory.c).
ENTRIES = r'''
import re, struct, sys
pids, found = {int(word) for word in sys.argv[1:]}, []
for line in open("/proc/%s/maps" % sys.argv[1]):
    begin, end, how = re.match("(\\w+)-(\\w+) (....)", line).groups()
    begin, end = int(begin, 16), int(end, 16)
    if how[3] == "s" and "/dev/zero" in line and end - begin == 16384 * 64:
        with open("/proc/%s/mem" % sys.argv[1], "rb") as memory:
            memory.seek(begin)
            words = struct.iter_unpack("<II56x", memory.read(end - begin))
        found.append(sum(state == 2 and pid in pids for state, pid in words))
print(max(found))
'''


def descriptors(host, pids):
    look = "; ".join("ls /proc/%d/fd | wc -l" % pid for pid in pids)
    return [int(n) for n in host.run(look, check=True).stdout.split()]


def entries(host, pids):
    return int(host.run(["python3", "-c", ENTRIES, *pids], check=True).stdout)


def cm_ids(host):
    """What is not a listener."""
    said = json.loads(host.run(["rdma", "-j", "res", "show", "cm_id"], check=True).stdout)
    return [row for row in said if row["state"] != "LISTEN"]


@needs(timeout=600)
def case_1000_clients_at_a_prefork_server_of_4_workers(lab):
    """A process, a link and perhaps a redirect for each client, and nothing is left of them."""
    a, b = lab.hosts
    server = b.spawn([*RSOCK, ASK, "serve", b.ip, PORT, 4, 2])
    pids = json.loads(server.wait_line("pids.*").string)["pids"]
    before = descriptors(b, pids)
    crowd = a.spawn([*RSOCK, ASK, b.ip, PORT, "crowd", CLIENTS, AT_ONCE], env=LOADED)
    most = 0
    while crowd.running():
        most = max(most, entries(b, pids))
        time.sleep(3)
    said = [json.loads(line) for line in crowd.good(1).splitlines()]
    check(len(said) == CLIENTS, crowd.story())
    on_rdma = [one for one in said if one["path"] == "rdma"]
    others = [one for one in said if one["path"] != "rdma"]
    check(all(one["fast"][0] and one["fast"][1] for one in on_rdma), on_rdma[:3])
    # One that is late on a machine that others use too is honest as well; many would be a defect.
    check(all(one["path"] == "tcp" and one["reason"] in LATE for one in others)
          and len(others) <= len(said) / 50, "%d others: %s" % (len(others), others[:3]))
    for pid in pids:
        served = sum(one["by"] == pid for one in on_rdma)
        check(served >= CLIENTS / 20, "%d of %s has served %d" % (pid, pids, served))
    check(server.running(), server.story())
    check(most, "nobody has entered the directory")
    end = clock.now() + 25  # links close when they have been idle for some seconds
    while True:
        left = [len(queue_pairs(host)) + len(cm_ids(host)) for host in (a, b)]
        now, entered = descriptors(b, pids), entries(b, pids)
        fine = not any(left) and not entered and all(
            n <= was + OWN_DESCRIPTORS for n, was in zip(now, before))
        if fine or clock.now() > end:
            break
        time.sleep(0.5)
    check(fine, "%d clients have left behind: queue pairs and ids on a and b %s; %d entries; descriptors "
          "of the workers %s, before %s" % (len(said), left, entered, now, before))


def cm_holder(host, port):
    """The pids that listen on the RDMA port; the kernel names the thread."""
    said = json.loads(host.run(["rdma", "-j", "res", "show", "cm_id"], check=True).stdout)
    threads = [row["pid"] for row in said if row.get("state") == "LISTEN" and
               str(row.get("src-addr", "")).endswith(":%d" % port)]
    return [int(host.run("sed -n 's/^Tgid:[^0-9]*//p' /proc/%d/status" % t, check=True).stdout)
            for t in threads]


@needs(timeout=120)
def case_another_worker_takes_over_when_the_holder_dies(lab):
    for how in ("prefork", "reuseport"):
        pair = Pair(lab, how, 3)
        pair.ask("connect", 12)
        pair.until_fast(12)
        pair.ask("close", 0)
        first = cm_holder(pair.b, PORT)
        check(len(first) == 1 and first[0] in pair.pids, "%s: %s" % (first, pair.pids))
        pair.b.run(["kill", "-9", first[0]], check=True)
        time.sleep(0.2)
        pair.ask("connect", 12)
        pair.until_fast(12)
        second = cm_holder(pair.b, PORT)
        check(len(second) == 1 and second[0] in pair.pids and second != first,
              "%s after %s" % (second, first))
        pair.end()


@needs(timeout=240, memory="1400M")
def case_1000_connections_use_one_queue_pair(lab):
    pair = Pair(lab, "one", 1)
    pair.ask("connect", 1000, 60)
    pair.until_fast(1000, 150)
    check([len(queue_pairs(host)) for host in (pair.a, pair.b)] == [1, 1],
          "queue pairs: %s, %s" % (queue_pairs(pair.a), queue_pairs(pair.b)))
    pair.end()


def case_families_and_listening_addresses(lab):
    b = lab.hosts[1]
    for address, listen, how in ((b.ip, "0.0.0.0", "one"), (b.ip6, "::", "one"),
                                 (b.ip6, b.ip6, "one"), (b.ip, "::", "one dual"),
                                 (b.ip6, "::", "one dual")):
        pair = Pair(lab, how, 1, address=address, listen=listen)
        pair.ask("connect", 3)
        pair.until_fast(3)
        pair.end()


CM_PEER = "tests/apps/cm_peer"


def cm_peer(host, *args):
    """A process that is none of ours on the RDMA CM (tests/apps/cm_peer.c)."""
    process = host.spawn([os.path.join(BUILD, CM_PEER), *args])
    if args[0] == "listen":
        process.wait_line("listening")
    return process


def no_harm(pair, rounds=3):
    """The program has noticed nothing: connect and a first round at once, every byte right."""
    said = pair.ask("connect", 1)
    check(said["worst"] < 0.5, "connect took %s s" % said["worst"])
    said = pair.ask("round", 1)
    check(said["worst"] < 0.5, "the first answer took %s s" % said["worst"])
    return pair.ask("round", rounds)


@needs(timeout=150)
def case_strangers_on_the_RDMA_port_of_a_plain_server(lab):
    b = lab.hosts[1]
    for how, reason in (("reject", "peer-plain"), ("bare", "peer-plain"), ("noise", "peer-plain"),
                        ("silent", "no-route"), ("mute", "no-route")):
        stranger = cm_peer(b, "listen", PORT, how)
        pair = Pair(lab, "one", 1, prefixes=(RSOCK, ()))
        no_harm(pair)
        found = pair.until_decided()
        check(story(found) == {("tcp", "tcp", reason): 1}, "%s: %s" % (how, story(found)))
        check("request" in stranger.text(), "%s was not asked: %s" % (how, stranger.story()))
        no_harm(pair)  # the second one finds it remembered
        pair.end()
        stranger.kill()


def case_redirects_without_end(lab):
    b = lab.hosts[1]
    strangers = [cm_peer(b, "listen", port, "redirect") for port in (PORT, PORT + 1)]
    pair = Pair(lab, "one", 1, prefixes=(RSOCK, ()))
    no_harm(pair)
    found = pair.until_decided()
    check(story(found) == {("tcp", "tcp", "protocol"): 1}, story(found))
    claims = sum(s.text().count('"heard": 2') for s in strangers)
    check(4 <= claims <= 20, "%d claims" % claims)
    pair.end()


PLAIN_SERVER = r'''
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    while True:
        s = listener.accept()[0]
        got = b""
        while data := s.recv(4096):
            got += data
            print("got", got.hex(), flush=True)
'''
PLAIN_CLIENT = r'''
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for i in range(40):
    s.sendall(b"line %d\n" % i)
    time.sleep(0.05)
print("sent", flush=True)
sys.stdin.readline()
'''
KEY = "/tmp/rsock.key"
MARK, RESUME = 16, 48  # docs/protocol.md
WHOLE = b"".join(b"line %d\n" % i for i in range(40))


def make_keys(hosts, *contents):
    for host, content in zip(hosts, contents):
        host.run(["rm", "-f", KEY])
        if content:
            host.put(KEY, content)
            host.run(["chmod", "600", KEY], check=True)


def squatted(lab, env, control=0):
    """What a plain server gets from a client under rsock, when another has its RDMA port.

    Waits for all that the program sends and `control` bytes more, and then for what should not come."""
    a, b = lab.hosts[:2]
    squatter = cm_peer(b, "listen", PORT, "squat")
    server = b.spawn(["python3", "-c", PLAIN_SERVER, b.ip, PORT])
    server.wait_listening(PORT)
    client = a.spawn([*RSOCK, "python3", "-c", PLAIN_CLIENT, b.ip, PORT], stdin=True, env=env)
    client.wait_line("sent", 20)
    end = clock.now() + 15
    while (len(server.text().split()[-1]) < 2 * (len(WHOLE) + control)
           and clock.now() < end):
        time.sleep(0.2)
    time.sleep(1)
    found = [row for row in json.loads(a.run(["rsock", "stat", "--json"]).stdout) if row["peer"]]
    got = bytes.fromhex(server.text().split()[-1])
    story_ = squatter.text()
    for process in (client, server, squatter):
        process.kill()
    return got, found, story_


def case_a_squatter_gets_nothing_without_the_key(lab):
    make_keys(lab.hosts, b"k" * 32, b"")
    got, found, story_ = squatted(lab, {"RSOCK_KEY_FILE": KEY})
    check("request" in story_ and "heard" not in story_, "squatter: " + story_)
    check(got == WHOLE, "the plain server has got %r" % got)
    check(story(found) == {("tcp", "tcp", "key"): 1}, story(found))


def case_a_squatter_without_keys_costs_control_bytes_only(lab):
    got, found, story_ = squatted(lab, None, MARK + RESUME)
    check('"heard": 2' in story_, "squatter: " + story_)
    # MARK and RESUME between two bytes of the stream, once. All else is the program's.
    at = next((i for i in range(len(got)) if got[i:i + 1] != WHOLE[i:i + 1]), len(got))
    check(WHOLE == got[:at] + got[at + MARK + RESUME:],
          "the plain server has got %r, %s, %s" % (got[at:at + 100], story(found), story_))
    check(story(found) == {("tcp", "tcp", "no-proof"): 1}, story(found))


@needs(timeout=120)
def case_keys(lab):
    env = {"RSOCK_KEY_FILE": KEY}
    for keys, envs, want in (
            ((b"k" * 32, b"k" * 32), (env, env), None),
            ((b"k" * 32, b"l" * 32), (env, env), "key"),
            ((b"k" * 32, b"k" * 32), (env, None), "key"),
            ((b"k" * 32, b"k" * 32), (None, env), "key"),
            ((b"k" * 15, b"k" * 15), (env, env), "key")):
        make_keys(lab.hosts, *keys)
        pair = Pair(lab, "one", 1, env=envs)
        pair.ask("connect", 2)
        if want:
            found = pair.until_decided()
            check(story(found) == {("tcp", "tcp", want): 2}, "%s: %s" % (keys, story(found)))
        else:
            pair.until_fast(2)
        pair.end()


@needs(timeout=90)
def case_requests_that_are_noise_are_rejected(lab):
    a, b = lab.hosts[:2]
    pair = Pair(lab, "one", 1)
    pair.ask("connect", 1)
    pair.until_fast(1)
    said = json.loads(cm_peer(a, "noise", a.ip, b.ip, PORT).good(40))
    check(said["accepted"] == 0 and said["unanswered"] == 0, said)
    pair.ask("connect", 2)
    pair.until_fast(3)
    pair.end()


@needs(hosts=3)
def case_a_claim_of_somebody_elses_connection_is_refused(lab):
    a, b, c = lab.hosts
    pair = Pair(lab, "one", 1)
    pair.ask("connect", 1)
    row = pair.until_fast(1)[0]
    victim = row["local"] + ">" + row["peer"]
    # A host that has no connection to the server at all is not even let in; nor is one that lies.
    lie = "%s:%s>%s" % (c.ip, row["local"].split(":")[-1], row["peer"])
    said = cm_peer(c, "claim", PORT, lie, victim).good()
    check(json.loads(said.splitlines()[0])["connect"] == 1, said)  # NOT_YET: no such connection
    # One that has a connection is let in for it, and gets no other one.
    plain = c.spawn(["python3", "-c", "import socket, time; s = socket.create_connection((%r, %d)); "
                     "print(s.getsockname()[1], flush=True); time.sleep(60)" % (b.ip, PORT)])
    plain.wait_line(r"\d+\n")
    own = "%s:%s>%s" % (c.ip, plain.text().strip(), row["peer"])
    said = [json.loads(x) for x in
            cm_peer(c, "claim", PORT, own, victim, own).good().splitlines()]
    check(said[0]["connect"] == 0, said)
    check((said[1]["type"], said[1]["code"], said[1]["reason"]) == (4, 4, "no-proof"), said)
    check(said[2]["type"] == 3, "its own connection: %s" % said)
    pair.ask("round", 3)
    pair.until_fast(1)
    pair.end()
