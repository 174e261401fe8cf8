# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which connections go over RDMA: routes, netdevs on top of others, addresses, and devices that come
and go while bytes are on their way; limits and permissions, and what the log says of them."""
import contextlib
import ipaddress
import json
import re
import time

import clock
from lab import LabError, check, needs

RSOCK = ["rsock", "run", "--log=info"]
PORT = 7300

# A client and a server of one connection. Commands on stdin: "send N", "close". The byte at offset o of
# a direction is always the same.
SOURCE = r'''
import json, random, socket, sys, threading
role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
source = sys.argv[4] if len(sys.argv) > 4 else None
unit = random.Random(7).randbytes(1 << 20)
pattern = unit * 2


def tell(**what):
    print(json.dumps(what), flush=True)


def connected():
    if role == "client":
        return socket.create_connection((address, port), source_address=source and (source, 0))
    family, kind, _, _, name = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
        listener.listen()
        return listener.accept()[0]


s = connected()
tell(connected=True)


def receive():
    at, good, error = 0, True, None
    try:
        while data := s.recv(65536):
            i = at % len(unit)
            good = good and data == pattern[i:i + len(data)]
            at += len(data)
            if at >> 22 != (at - len(data)) >> 22:
                tell(at=at)
    except OSError as e:
        error = type(e).__name__
    tell(got=at, good=good, error=error)


reader = threading.Thread(target=receive)
reader.start()
sent = 0
for line in sys.stdin:
    words = line.split()
    if words[0] == "close":
        break
    end = sent + int(words[1])
    while sent < end:
        i = sent % len(unit)
        sent += s.send(pattern[i:i + min(100000, end - sent)])
    tell(sent=sent)
s.shutdown(socket.SHUT_WR)
reader.join()
'''


class Connection:
    """One connection under rsock from a host to an address of another."""

    def __init__(self, client, server, address, port=PORT, source=None, prefixes=(RSOCK, RSOCK)):
        for host in (client, server):
            host.put("/tmp/routes.py", SOURCE)
        program = ["python3", "/tmp/routes.py"]
        self.server = server.spawn([*prefixes[1], *program, "server", address, port], stdin=True)
        self.server.wait_listening(port)
        self.client = client.spawn([*prefixes[0], *program, "client", address, port,
                                    *([source] if source else [])], stdin=True)
        self.ends = [self.client, self.server]
        self.sent = {end: 0 for end in self.ends}
        for end in self.ends:
            end.wait_line("connected")

    def send(self, count, ends=None):
        for end in ends or self.ends:
            self.sent[end] += count
            end.write(b"send %d\n" % count)

    def close(self, timeout=60):
        """Every byte that one has sent the other has got."""
        for end in self.ends:
            end.write(b"close\n")
        for end, other in ((self.client, self.server), (self.server, self.client)):
            end.good(timeout)
            said = json.loads([line for line in end.text().splitlines() if "got" in line][-1])
            check(said == {"got": self.sent[other], "good": True, "error": None},
                  "%s has got %s, %d were sent" % (end, said, self.sent[other]))

    def rows(self, timeout=10):
        """Of the client and of the server, once both know where they are."""
        end = clock.now() + timeout
        while True:
            found = [row(process) for process in self.ends]
            if all(r and r["reason"] != "starting" for r in found) or clock.now() > end:
                return found
            time.sleep(0.2)

    def expect(self, path, reason=None, device=None):
        found = self.rows()
        what = "%s\n%s\n%s" % (found, self.client.text("err"), self.server.text("err"))
        check(found[0] and found[0]["path"] == path, "not on %s: %s" % (path, what))
        if reason:
            check(found[0]["reason"] == reason, "not %s: %s" % (reason, what))
        if device:
            check(found[0]["device"] == found[1]["device"] == device, what)
        if path == "tcp":
            check(not found[0]["device"], what)

    def log(self, regex, end=None):
        text = (end or self.client).text("err")
        check(re.search(regex, text), "no %r in the log: %s" % (regex, text))

    def no_log(self, regex, end=None):
        text = (end or self.client).text("err")
        check(not re.search(regex, text), "%r in the log: %s" % (regex, text))


def row(process):
    said = process.host.run(["rsock", "stat", "--json"], check=True).stdout
    found = [r for r in json.loads(said) if r["peer"]]
    check(len(found) <= 1, "more than one connection: %s" % found)
    return found[0] if found else None


def setup(host, lines):
    """Shell lines, each of which must succeed."""
    host.run("set -e\n" + lines, check=True)


def gid_of(host, netdev, address, timeout=5):
    """The RoCE v2 GID index of an address, once it is in the table."""
    look = ("cd /sys/class/infiniband/rxe0/ports/1 && for i in 0 1 2 3 4 5 6 7 8 9; do "
            "echo $i $(cat gid_attrs/ndevs/$i gids/$i 2>/dev/null); done")
    tail = address.split(".")
    wanted = "ffff:%02x%02x:%02x%02x" % tuple(map(int, tail)) if len(tail) == 4 else None
    end = clock.now() + timeout
    while clock.now() < end:
        for line in host.run(look).stdout.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == netdev and (
                    words[2].endswith(wanted) if wanted else same_ip6(words[2], address)):
                return int(words[0])
        time.sleep(0.1)
    raise LabError("%s has no GID of %s on %s" % (host.name, address, netdev))


def same_ip6(gid, address):
    return ipaddress.ip_address(gid) == ipaddress.ip_address(address)


# ---------------------------------------------------------------- the plain netdev

def case_the_log_names_device_port_gid_and_mtu(lab):
    a, b = lab.hosts
    for number, address in enumerate((b.ip, b.ip6)):
        c = Connection(a, b, address, port=PORT + number)
        c.send(1 << 20)
        c.expect("rdma", device="rxe0")
        gid = gid_of(a, "vec0", a.ip6 if ":" in address else a.ip)
        c.log(r"connected on rxe0 port 1 gid %d mtu 4096 by vec0" % gid)
        c.log(r"a peer connects on rxe0 port 1 gid \d+ mtu 4096 by vec0", c.server)
        c.close()


def case_v4_mapped_addresses(lab):
    a, b = lab.hosts
    c = Connection(a, b, "::ffff:" + b.ip)
    c.send(1 << 20)
    c.expect("rdma", device="rxe0")
    c.log("gid %d " % gid_of(a, "vec0", a.ip))
    c.close()


def case_link_local_addresses(lab):
    a, b = lab.hosts
    said = b.run("ip -br -6 addr show dev vec0 scope link", check=True).stdout
    address = re.search(r"fe80::[0-9a-f:]+", said)[0] + "%vec0"
    c = Connection(a, b, address)
    c.send(1 << 20)
    c.expect("rdma", device="rxe0")
    c.close()


def case_the_mtu_of_the_netdev_and_of_the_route(lab):
    a, b = lab.hosts
    setup(a, "ip route replace %s dev vec0 src %s mtu 2300" % (b.ip, a.ip))
    try:
        c = Connection(a, b, b.ip)
        c.send(1 << 20)
        c.expect("rdma")
        c.log("mtu 2048 by vec0")
        c.close()
    finally:
        setup(a, "ip route del %s" % b.ip)


def case_another_own_address_is_this_host(lab):
    a = lab.hosts[0]
    setup(a, "ip addr add 10.0.0.51/24 dev vec0")
    try:
        c = Connection(a, a, "10.0.0.51", source=a.ip)
        c.send(1 << 20)
        time.sleep(0.5)
        c.no_log("connected on")
        said = json.loads(a.run(["rsock", "stat", "--json"], check=True).stdout)
        paths = {r["path"] for r in said if r["peer"]}
        check(paths == {"shm"}, "not on shm: %s" % said)
        c.close()
    finally:
        setup(a, "ip addr del 10.0.0.51/24 dev vec0")


# ---------------------------------------------------------------- routes

@contextlib.contextmanager
def device_on(host, netdev):
    """The RDMA device of a host is moved to another netdev, and back again."""
    setup(host, "rdma link delete rxe0; rdma link add rxe0 type rxe netdev " + netdev)
    try:
        yield
    finally:
        host.run("rdma link delete rxe0; rdma link add rxe0 type rxe netdev vec0")
        gid_of(host, "vec0", host.ip)
        gid_of(host, "vec0", host.ip6)


@needs(netdevs="macvlan")
def case_a_netdev_without_RDMA(lab):
    """There is a device, on another netdev: TCP at once, and the RDMA CM is not asked."""
    a, b = lab.hosts
    setup(a, "ip link add rs_m link vec0 type macvlan; ip link set rs_m up")
    try:
        with device_on(a, "rs_m"):
            c = Connection(a, b, b.ip)
            c.send(1 << 20)
            c.expect("tcp", "no-device")
            c.log("a route leaves by vec0: no RDMA port is behind it")
            c.no_log("rdma port|connected on")
            c.close()
    finally:
        a.run("ip link del rs_m")


@needs(hosts=3)
def case_by_another_host(lab):
    """a reaches b through c: RoCE v2 is routed like any UDP."""
    a, b, c = lab.hosts
    setup(c, "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/all/"
             "send_redirects; echo 0 >/proc/sys/net/ipv4/conf/vec0/send_redirects; "
             "ip route add 10.1.0.0/24 dev vec0; ip route add 10.2.0.0/24 dev vec0")
    setup(a, "ip addr add 10.1.0.1/24 dev vec0; ip route add 10.2.0.0/24 via %s src 10.1.0.1" % c.ip)
    setup(b, "ip addr add 10.2.0.2/24 dev vec0; ip route add 10.1.0.0/24 via %s src 10.2.0.2" % c.ip)
    try:
        gid = gid_of(a, "vec0", "10.1.0.1")
        gid_of(b, "vec0", "10.2.0.2")
        conn = Connection(a, b, "10.2.0.2")
        conn.send(1 << 20)
        conn.expect("rdma", device="rxe0")
        conn.log("gid %d " % gid)
        conn.close()
    finally:
        a.run("ip route del 10.2.0.0/24; ip addr del 10.1.0.1/24 dev vec0")
        b.run("ip route del 10.1.0.0/24; ip addr del 10.2.0.2/24 dev vec0")
        c.run("echo 0 >/proc/sys/net/ipv4/ip_forward; ip route del 10.1.0.0/24; "
              "ip route del 10.2.0.0/24")


@needs(hosts=3, device=["rxe", None, "rxe"])
def case_by_another_host_to_one_without_RDMA(lab):
    a, b, c = lab.hosts
    setup(c, "echo 1 >/proc/sys/net/ipv4/ip_forward")
    setup(a, "ip route add %s via %s" % (b.ip, c.ip))
    try:
        conn = Connection(a, b, b.ip)
        conn.send(1 << 20)
        conn.expect("tcp")
        check(conn.rows()[0]["reason"] in ("peer-plain", "no-route"), conn.rows())
        conn.no_log("connected on")
        conn.close()
    finally:
        a.run("ip route del %s" % b.ip)
        c.run("echo 0 >/proc/sys/net/ipv4/ip_forward")


@needs(device="siw")
def case_an_iWARP_port_is_found_by_its_netdev(lab):
    a, b = lab.hosts
    c = Connection(a, b, b.ip)
    c.send(1 << 20)
    c.expect("rdma", device="siw0")
    c.no_log("a route leaves")
    c.close()


# ---------------------------------------------------------------- netdevs on top of others

@contextlib.contextmanager
def on_top(lab, netdev, add):
    """A netdev on each host, 10.5.0.1 and .2, fd05::1 and ::2."""
    try:
        for number, host in enumerate(lab.hosts, 1):
            # No netdev answers for the address of another: the answer has its own MAC address.
            setup(host, "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore\n{add}\n"
                        "ip link set {d} up\nip addr add 10.5.0.{n}/24 dev {d}\n"
                        "ip addr add fd05::{n}/64 dev {d} nodad".format(add=add, d=netdev, n=number))
        yield
    finally:
        for host in lab.hosts:
            host.run("ip link del %s; echo 0 >/proc/sys/net/ipv4/conf/all/arp_ignore" % netdev)


@needs(netdevs="vlan")
def case_a_VLAN(lab):
    a, b = lab.hosts
    with on_top(lab, "rs_v", "ip link add rs_v link vec0 mtu 1500 type vlan id 5"):
        for number, (own, other) in enumerate((("10.5.0.1", "10.5.0.2"), ("fd05::1", "fd05::2"))):
            gid = gid_of(a, "rs_v", own)
            gid_of(b, "rs_v", other)
            c = Connection(a, b, other, port=PORT + number)
            c.send(1 << 20)
            c.expect("rdma", device="rxe0")
            c.log("connected on rxe0 port 1 gid %d mtu 1024 by rs_v" % gid)
            c.close()


@needs(netdevs="macvlan")
def case_a_macvlan(lab):
    a, b = lab.hosts
    with on_top(lab, "rs_m", "ip link add rs_m link vec0 type macvlan mode bridge"):
        with device_on(a, "rs_m"), device_on(b, "rs_m"):
            gid = gid_of(a, "rs_m", "10.5.0.1")
            gid_of(b, "rs_m", "10.5.0.2")
            c = Connection(a, b, "10.5.0.2")
            c.send(1 << 20)
            c.expect("rdma", device="rxe0")
            c.log("gid %d mtu 4096 by rs_m" % gid)
            c.close()


@needs(netdevs=["bond", "macvlan"])
def case_a_bond(lab):
    """Of one macvlan and one netdev that leads nowhere."""
    a, b = lab.hosts
    with on_top(lab, "rs_b", """
            ip link add rs_b type bond mode active-backup
            ip link add rs_s link vec0 type macvlan mode bridge
            ip link add rs_d type dummy
            ip link set rs_s master rs_b
            ip link set rs_d master rs_b
            ip link set rs_b type bond active_slave rs_s"""):
        try:
            with device_on(a, "rs_b"), device_on(b, "rs_b"):
                gid = gid_of(a, "rs_b", "10.5.0.1")
                gid_of(b, "rs_b", "10.5.0.2")
                c = Connection(a, b, "10.5.0.2")
                c.send(1 << 20)
                c.expect("rdma", device="rxe0")
                c.log("gid %d mtu 1024 by rs_b" % gid)
                c.close()
        finally:
            for host in lab.hosts:
                host.run("ip link del rs_s; ip link del rs_d")


# ---------------------------------------------------------------- while it runs

def wait_path(connection, path, timeout=10):
    end = clock.now() + timeout
    while True:
        found = [row(process) for process in connection.ends]
        if all(r["path"] == path for r in found):
            return
        check(clock.now() < end, "not on %s: %s\n%s\n%s" % (
            path, found, connection.client.text("err"), connection.server.text("err")))
        time.sleep(0.1)


def case_an_address_goes_and_comes(lab):
    a, b = lab.hosts
    setup(a, "ip addr add 10.0.0.61/24 dev vec0")
    try:
        gid_of(a, "vec0", "10.0.0.61")
        c = Connection(a, b, b.ip, source="10.0.0.61")
        c.send(1 << 20)
        c.expect("rdma", device="rxe0")
        setup(a, "ip addr del 10.0.0.61/24 dev vec0")
        c.send(1 << 20)
        c.client.wait_line("is gone", kind="err")
        setup(a, "ip addr add 10.0.0.61/24 dev vec0")
        wait_path(c, "tcp")
        c.close()
        gid_of(a, "vec0", "10.0.0.61")
        c = Connection(a, b, b.ip, source="10.0.0.61", port=PORT + 1)
        c.send(1 << 20)
        c.expect("rdma", device="rxe0")
        c.close()
    finally:
        a.run("ip addr del 10.0.0.61/24 dev vec0")


@needs(timeout=120)
def case_the_device_goes_and_comes_while_bytes_are_on_their_way(lab):
    a, b = lab.hosts
    for number, victim in enumerate((b, a)):
        c = Connection(a, b, b.ip, port=PORT + number)
        c.expect("rdma", device="rxe0")
        c.send(48 << 20)
        for end in c.ends:
            end.wait_line('"at"')
        began = clock.now()
        deleting = victim.spawn("rdma link delete rxe0")
        deleting.good(10)  # the kernel waits until nobody has it open
        took = clock.now() - began
        wait_path(c, "tcp")
        setup(victim, "rdma link add rxe0 type rxe netdev vec0")
        gid_of(victim, "vec0", victim.ip)
        c.close()
        check(took < 5, "the device could not be removed for %.1f s" % took)


# Many connections of one pair of processes. The client makes one for each line of its stdin.
ECHOES = r"""
import socket, sys, threading
role, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


def serve(s):
    while data := s.recv(65536):
        s.sendall(data)


if role == "server":
    listener = socket.create_server((address, port))
    while True:
        threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
kept = []
for line in sys.stdin:
    s = socket.create_connection((address, port))
    kept.append(s)
    sent = bytes(range(256)) * 400
    threading.Thread(target=s.sendall, args=[sent]).start()
    got = b""
    while len(got) < len(sent):
        got += s.recv(65536)
    print("same" if got == sent else "other", s.getsockname()[1], flush=True)
"""


def echoes(lab):
    a, b = lab.hosts
    for host in (a, b):
        host.put("/tmp/echoes.py", ECHOES)
    server = b.spawn([*RSOCK, "python3", "/tmp/echoes.py", "server", b.ip, PORT], stdin=True)
    server.wait_listening(PORT)
    client = a.spawn([*RSOCK, "python3", "/tmp/echoes.py", "client", b.ip, PORT], stdin=True)
    return client, server


def one_more(client, count, path, reasons, timeout=10):
    client.write(b"\n")
    port = client.wait_line(r"(?:same (\d+)\n){%d}" % count)[1]
    end = clock.now() + timeout
    while True:
        said = client.host.run(["rsock", "stat", "--json"], check=True).stdout
        last = [r for r in json.loads(said) if r["local"].endswith(":" + port)][0]
        if last["reason"] != "starting":
            break
        check(clock.now() < end, "%s\n%s" % (last, client.text("err")))
        time.sleep(0.1)
    check(last["path"] == path and (last["reason"] in reasons), "%s, not %s %s\n%s" % (
        last, path, reasons, client.text("err")))


def case_processes_that_live_through_all_of_it(lab):
    """The same two processes: a device, none, one again; first at one end, then at the other."""
    a, b = lab.hosts
    client, server = echoes(lab)
    count = 0
    for victim in (a, b):
        count += 1
        one_more(client, count, "rdma", [""])
        victim.spawn("rdma link delete rxe0").good(10)
        count += 1
        one_more(client, count, "tcp", ["no-device"] if victim is a else ["peer-plain", "no-route"])
        setup(victim, "rdma link add rxe0 type rxe netdev vec0")
        gid_of(victim, "vec0", victim.ip)
        if victim is b:
            time.sleep(8)  # a cannot know that b has a device again, and asks later
    count += 1
    one_more(client, count, "rdma", [""])
    client.write(b"")
    client.good()
    server.end()


@needs(device=None)
def case_a_device_comes_to_processes_that_had_none(lab):
    a, b = lab.hosts
    client, server = echoes(lab)
    one_more(client, 1, "tcp", ["no-device"])
    for host in (b, a):
        setup(host, "rdma link add rxe0 type rxe netdev vec0")
    gid_of(a, "vec0", a.ip)
    gid_of(b, "vec0", b.ip)
    time.sleep(5.5)  # without an RDMA listener the client's control thread may sleep: it looks anew
    one_more(client, 2, "rdma", [""])
    for host in (b, a):
        host.spawn("rdma link delete rxe0").good(10)
    client.write(b"")
    client.good()
    server.end()


# ---------------------------------------------------------------- limits and permissions

def user(*more):
    """As somebody who may do little."""
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *more]


def refused(lab, prefix, reason, text):
    a, b = lab.hosts
    c = Connection(a, b, b.ip, prefixes=([*prefix, *RSOCK], RSOCK))
    c.send(1 << 20)
    c.expect("tcp", reason)
    c.log(text)
    lines = [line for line in c.client.text("err").splitlines() if re.search(text, line)]
    check(len(lines) == 1, "told more than once: %s" % lines)
    c.close()


def case_little_memory_may_be_locked(lab):
    refused(lab, user("prlimit", "--memlock=65536:65536"), "memlock",
            r"registering memory .* failed: RLIMIT_MEMLOCK is 64 KiB; raise it with `ulimit -l")


def case_no_permission(lab):
    a = lab.hosts[0]
    for device in ("rdma_cm", "uverbs0"):
        setup(a, "chmod 600 /dev/infiniband/" + device)
        try:
            refused(lab, user(), "no-permission", "no permission.*needs read and write")
        finally:
            setup(a, "chmod 666 /dev/infiniband/" + device)


def case_a_control_group_has_no_more(lab):
    a = lab.hosts[0]
    group = "/sys/fs/cgroup/rs_few"
    setup(a, "echo +rdma >/sys/fs/cgroup/cgroup.subtree_control; mkdir " + group)
    try:
        for limit in ("hca_object=2", "hca_handle=0"):
            setup(a, "echo rxe0 hca_handle=max hca_object=max >{g}/rdma.max; "
                     "echo rxe0 {l} >{g}/rdma.max".format(g=group, l=limit))
            refused(lab, ["sh", "-c", 'echo $$ >%s/cgroup.procs; exec "$@"' % group, "sh"],
                    "rdma-limit", "failed: a control group limits RDMA; raise hca_handle")
    finally:
        a.run("rmdir " + group)
