# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A RabbitMQ cluster: three nodes that speak Erlang's distribution protocol, and a quorum queue."""
import json
import os

from connections import fast, prefix, where_they_should_be
from lab import check, needs

LOAD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs/queue_load.py")
BIN = "/usr/lib/rabbitmq/bin/"
CLIENTS, DISTRIBUTION = 5672, 25672
CONFIG = """
loopback_users = none
log.console = true
log.file = false
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = rabbit@a
cluster_formation.classic_config.nodes.2 = rabbit@b
cluster_formation.classic_config.nodes.3 = rabbit@c
cluster_partition_handling = ignore
"""
ENV = {
    "RABBITMQ_MNESIA_BASE": "/tmp/rabbitmq", "RABBITMQ_LOGS": "-", "RABBITMQ_CONFIG_FILE": "/tmp/rabbitmq.conf",
    "RABBITMQ_ENABLED_PLUGINS_FILE": "/tmp/rabbitmq-plugins",
    # One scheduler for the one CPU, which does not spin.
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -setcookie lab",
}


class Cluster:
    def __init__(self, lab, plain):
        self.plain = plain
        self.hosts = lab.hosts
        self.servers = {}

    def start(self, host):
        env = {**ENV, "RABBITMQ_NODENAME": "rabbit@" + host.name}
        self.servers[host.name] = host.spawn([*prefix(host, self.plain), BIN + "rabbitmq-server"], env=env)

    def wait_started(self, host):
        self.servers[host.name].wait_line("Server startup complete", 300)

    def create(self):
        first, *others = self.hosts
        for host in self.hosts:
            host.run("rm -rf /tmp/rabbitmq /tmp/rabbitmq-*", check=True)
            host.put("/tmp/rabbitmq.conf", CONFIG)
        self.start(first)
        self.wait_started(first)
        for host in others:  # these join it
            self.start(host)
        for host in others:
            self.wait_started(host)

    def load(self, host, what, servers, first, count):
        return host.spawn([*prefix(host, self.plain), LOAD, what, ",".join(server.ip for server in servers),
                           first, count])

    def publish(self, host, servers, first, count):
        return json.loads(self.load(host, "publish", servers, first, count).good(90).splitlines()[-1])

    def consume(self, host, servers, first, count):
        return json.loads(self.load(host, "consume", servers, first, count).good(180).splitlines()[-1])


def rabbitmq(lab, plain=""):
    a, b, c = lab.hosts
    cluster = Cluster(lab, plain)
    cluster.create()
    # Between any two nodes there is one connection of the distribution, which has a row at each end that
    # is not plain.
    between = 2 * (3 - 2 * len(plain))
    where_they_should_be(lab, DISTRIBUTION, plain, least=between)
    said = cluster.publish(b, [a], 0, 300)
    check(not said["failures"], said)
    load = cluster.load(a, "consume", [b], 0, 300)
    check(not json.loads(load.good(90).splitlines()[-1])["failures"], load.story())
    found = where_they_should_be(lab, DISTRIBUTION, plain, least=between)
    moved = {(row["host"], row["to"]): row["tx_fast_bytes"] for row in found if fast(row)}
    check(all(count > 1 << 14 for count in moved.values()), "%s" % moved)

    # A node dies while messages are published: what was confirmed is on the others.
    load = cluster.load(b, "publish", [a, b], 1000, 800)
    load.wait_line("published 1100", 60)
    where_they_should_be(lab, CLIENTS)  # none of c is there now
    cluster.servers["a"].kill()
    said = json.loads(load.good(180).splitlines()[-1])
    check(said["failures"], "nobody has noticed")
    said = cluster.consume(c, [b], 1000, 800)
    check(not said["failures"], said)
    cluster.start(a)
    cluster.wait_started(a)
    where_they_should_be(lab, DISTRIBUTION, plain, least=between)
    said = cluster.publish(b, [a], 2000, 200)
    check(not said["failures"], said)
    said = cluster.consume(a, [b], 2000, 200)
    check(not said["failures"], said)


@needs(hosts=3, memory="1G", timeout=900)
def case_rabbitmq_cluster(lab):
    rabbitmq(lab)


@needs(hosts=3, memory="1G", timeout=900)
def case_rabbitmq_cluster_with_one_plain_host(lab):
    rabbitmq(lab, plain="c")
