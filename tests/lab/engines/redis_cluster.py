# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Redis Cluster on three hosts: three masters, each with its replica on the next host."""
import json
import os
import re

from connections import fast, ports, prefix, until, where_they_should_be
from lab import check, needs

LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs/redis_load.py")
MASTER, REPLICA = 7001, 7002  # the ports on each host, to begin with
BUS = [MASTER + 10000, REPLICA + 10000]
NODES = [(name, port) for port in (REPLICA, MASTER) for name in "abc"]


def folder(port):
    return "/tmp/redis-%d" % port


class Cluster:
    def __init__(self, lab, plain):
        self.lab = lab
        self.plain = plain
        self.hosts = {host.name: host for host in lab.hosts}
        self.servers = {}

    def start(self, name, port):
        host = self.hosts[name]
        host.run(["mkdir", "-p", folder(port)], check=True)
        self.servers[name, port] = host.spawn(
            [*prefix(host, self.plain), "redis-server", "--port", port, "--bind", host.ip, "--dir", folder(port),
             "--protected-mode", "no", "--save", "", "--cluster-enabled", "yes",
             "--cluster-node-timeout", 8000, "--repl-diskless-sync-delay", 0])
        self.servers[name, port].wait_listening(port)

    def cli(self, name, port, *words, **how):
        host = self.hosts[name]
        return host.run([*prefix(host, self.plain), "redis-cli", "-h", host.ip, "-p", port, *words],
                        **{"timeout": 30, "check": True, **how}).stdout

    def create(self):
        for name, port in NODES:
            self.hosts[name].run(["rm", "-rf", folder(port)], check=True)  # another case's
            self.start(name, port)
        # A replica is never put on the host of its master.
        said = self.cli("a", MASTER, "--cluster", "create",
                        *["%s:%d" % (host.ip, port) for port in (MASTER, REPLICA) for host in self.lab.hosts],
                        "--cluster-replicas", 1, "--cluster-yes", timeout=90)
        check("All 16384 slots covered" in said, said)
        self.wait_healthy()

    def healthy(self, nodes):
        for name, port in nodes:
            if "cluster_state:ok" not in self.cli(name, port, "cluster", "info"):
                return False
            said = self.cli(name, port, "info", "replication")
            if not re.search("role:slave(.|\n)*link_status:up|connected_slaves:1", said):
                return False
        return True

    def wait_healthy(self, nodes=NODES):
        until(lambda: self.healthy(nodes), 90, lambda: "not healthy: %s" % [
            self.cli(name, port, "cluster", "nodes") for name, port in nodes[:1]])

    def restart(self, nodes):
        """Each saves its data, ends, and carries on from there: a replica asks for what it lacks only,
        so that no master forks to save its data. (A fork takes all connections to TCP.)"""
        for name, port in nodes:
            self.cli(name, port, "shutdown", "save", check=False)
            self.servers[name, port].wait(20)
            self.start(name, port)
            self.wait_healthy()

    def full_resyncs(self):
        said = [self.cli(name, port, "info", "stats") for name, port in NODES]
        return sum(int(re.search(r"sync_full:(\d+)", text)[1]) for text in said)


class Load:
    def __init__(self, cluster, host):
        self.process = host.spawn(
            [*prefix(host, cluster.plain), LOAD, *["%s:%d" % (h.ip, port) for h in cluster.lab.hosts
                                                   for port in (MASTER, REPLICA)]], stdin=True)

    def begin(self, command):
        self.process.write(command.encode() + b"\n")

    def result(self, command, timeout=90):
        return json.loads(self.process.wait_line(r'^{"%s": (.*)}$' % command, timeout)[1])

    def write(self, first, count):
        command = "write %d %d" % (first, count)
        self.begin(command)
        said = self.result(command)
        check(said["written"] >= count and said["acknowledged"] >= count, said)

    def read(self, first, count):
        command = "read %d %d" % (first, count)
        self.begin(command)
        said = self.result(command)
        check(said["read"] == count and not said["wrong"], said)


def redis_cluster(lab, plain=""):
    a, b, _ = lab.hosts
    cluster = Cluster(lab, plain)
    cluster.create()
    load = Load(cluster, b)
    load.write(0, 600)
    load.read(0, 600)
    where_they_should_be(lab, [MASTER, REPLICA, *BUS], plain, excused=("forked",))

    cluster.restart(NODES)
    check(cluster.full_resyncs() == 0, "somebody has copied all data")
    load.write(600, 600)
    load.read(0, 1200)
    # Each host has two servers, and each server a bus connection to and from every other one.
    pairs = 3 - 2 * len(plain)
    found = where_they_should_be(lab, [MASTER, REPLICA, *BUS], plain, least=pairs * 2 * 2 * 2)
    for what in (MASTER, BUS[0], BUS[1]):
        here = [row for row in found if what in ports(row)]
        check(any(map(fast, here)), "no connection of port %d on rdma: %s" % (what, here))

    # One master dies while clients write. Its replica takes over, and has what was acknowledged.
    load.begin("write 1200 1500")
    load.process.wait_line("from 1200 on")
    victim = "a", MASTER
    cluster.servers[victim].kill()
    said = load.result("write 1200 1500")
    check(said["written"] >= 1500 and said["tries"] > 0, "nobody has noticed: %s" % said)
    load.read(0, 2700)
    nodes = cluster.cli("b", MASTER, "cluster", "nodes")
    check(re.search(r"%s:%d@\S* master,fail" % (a.ip, MASTER), nodes), nodes)
    check(nodes.count(" master ") + nodes.count(" myself,master ") == 3, nodes)
    cluster.start(*victim)
    cluster.wait_healthy()
    load.write(2700, 300)
    load.read(0, 3000)
    said = cluster.cli("b", MASTER, "--cluster", "check", "%s:%d" % (b.ip, MASTER))
    check("All 16384 slots covered" in said and "All nodes agree" in said, said)
    where_they_should_be(lab, [MASTER, REPLICA, *BUS], plain, excused=("forked",))
    said = b.run([*prefix(b, plain), "redis-benchmark", "--cluster", "-h", b.ip, "-p", MASTER, "-n", 2000, "-c",
                  6, "-t", "set,get", "-q"], check=True, timeout=60).stdout
    check(len(re.findall("requests per second", said)) >= 2, said)
    load.process.write(b"")
    load.process.good()


@needs(hosts=3, memory="1G", timeout=600)
def case_redis_cluster(lab):
    redis_cluster(lab)


@needs(hosts=3, memory="1G", timeout=600)
def case_redis_cluster_with_one_plain_host(lab):
    redis_cluster(lab, plain="c")
