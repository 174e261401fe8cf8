# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""PostgreSQL streaming replication: a primary, two synchronous standbys on other hosts, a failover."""
import re
import shlex

from connections import prefix, until, where_they_should_be
from lab import check, needs

PORT = 5432
DATA = "/tmp/pg/data"
OPTIONS = ["fsync=off", "listen_addresses=*", "unix_socket_directories=/tmp/pg", "shared_buffers=16MB",
           "synchronous_commit=on", "wal_keep_size=256MB", "max_wal_senders=8", "hot_standby=on"]
SUMS = """select (select count(*) from pgbench_history), (select sum(abalance) from pgbench_accounts),
(select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
(select coalesce(sum(delta), 0) from pgbench_history),
(select md5(string_agg(aid || ':' || abalance, ',' order by aid)) from pgbench_accounts)"""


class Replication:
    def __init__(self, lab, plain):
        self.plain = plain
        self.servers = {}
        self.bindir = lab.hosts[0].run("ls -d /usr/lib/postgresql/*/bin", check=True).stdout.split()[-1]

    def command(self, host, *words):
        """A line for the shell: the words under rsock, as the user postgres."""
        return "runuser -u postgres -- env PATH=%s:$PATH %s" % (
            self.bindir, " ".join([*prefix(host, self.plain), *(shlex.quote(str(word)) for word in words)]))

    def run(self, host, *words, timeout=60):
        return host.run(self.command(host, *words), timeout=timeout, check=True).stdout

    def sql(self, client, server, text):
        return self.run(client, "psql", "-h", server.ip, "-Atc", text, "postgres").strip()

    def set(self, server, what):
        self.sql(server, server, "alter system set " + what)
        self.sql(server, server, "select pg_reload_conf()")

    def start(self, host):
        options = [word for option in OPTIONS for word in ("-c", option)]
        server = self.servers[host.name] = host.spawn(self.command(host, "postgres", "-D", DATA, *options))
        server.wait_line("ready to accept", 60, "err")

    def make_primary(self, host):
        host.run("mkdir -p /tmp/pg && chown postgres /tmp/pg && rm -rf " + DATA, check=True)
        self.run(host, "initdb", "-D", DATA, "-A", "trust", "--no-sync", timeout=90)
        host.run("for what in all replication; do echo host $what all all trust; done >>%s/pg_hba.conf" % DATA,
                 check=True)
        self.start(host)

    def make_standby(self, host, primary):
        host.run("mkdir -p /tmp/pg && chown postgres /tmp/pg && rm -rf " + DATA, check=True)
        self.run(host, "pg_basebackup", "-D", DATA, "--no-sync", "-X", "stream", "-c", "fast", "-R", "-d",
                 "host=%s application_name=%s" % (primary.ip, host.name), timeout=90)
        self.start(host)

    def streaming(self, primary, count, state):
        until(lambda: self.sql(primary, primary, "select count(*) from pg_stat_replication where state = "
                               "'streaming' and sync_state = '%s'" % state) == str(count), 40,
              lambda: self.sql(primary, primary, "select * from pg_stat_replication"))

    def pgbench(self, client, server, *words):
        return self.command(client, "pgbench", "-h", server.ip, *words, "postgres")


def sums(replication, host):
    """What all replicas must agree on; it must add up."""
    said = replication.sql(host, host, SUMS)
    count, *balances, _ = said.split("|")
    check(len(set(balances)) == 1, said)
    return int(count), said


def replication_case(lab, plain=""):
    a, b, c = lab.hosts
    them = Replication(lab, plain)
    them.make_primary(a)
    them.run(b, "pgbench", "-h", a.ip, "-i", "-q", "-s", 1, "postgres")
    for host in (b, c):
        them.make_standby(host, a)
    them.set(a, "synchronous_standby_names = 'FIRST 2 (b, c)'")
    them.streaming(a, 2, "sync")

    load = b.spawn(them.pgbench(b, a, "-c", 3, "-T", 25, "-n"))
    # Two rows of b's standby and its clients, and two of c's standby.
    where_they_should_be(lab, PORT, plain, least=6 if plain else 8)
    said = load.good(60)
    check("failed transactions: 0 " in said, said)
    done = int(re.search(r"actually processed: (\d+)", said)[1])
    here = sums(them, a)
    check(here[0] == done, "%s of %d" % (here, done))
    for host in (b, c):
        until(lambda: sums(them, host) == here, 20, "not what the primary has")

    # The primary dies while clients write. What was committed is on the standbys.
    load = b.spawn(them.pgbench(b, a, "-c", 3, "-T", 60, "-n", "-P", 1))
    load.wait_line(r"progress: 3", 30, "err")
    them.servers[a.name].kill()
    a.run("pkill -KILL -x postgres; rm -rf " + DATA)
    load.wait(30)
    said = load.text()
    done += int(re.search(r"actually processed: (\d+)", said)[1])
    them.set(b, "synchronous_standby_names = 'FIRST 1 (c)'")
    check(them.sql(b, b, "select pg_promote()") == "t", "not promoted")
    count, _ = sums(them, b)
    check(done <= count <= done + 3, "%d of at least %d transactions are left" % (count, done))

    # The other standby follows the new primary, and so does the old one, made anew.
    them.set(c, "primary_conninfo = 'host=%s user=postgres application_name=c'" % b.ip)
    them.streaming(b, 1, "sync")
    them.make_standby(a, b)
    them.streaming(b, 1, "async")
    load = a.spawn(them.pgbench(a, b, "-c", 2, "-T", 20, "-n"))
    where_they_should_be(lab, PORT, plain, least=6)
    said = load.good(60)
    check("failed transactions: 0 " in said, said)
    here = sums(them, b)
    check(here[0] == count + int(re.search(r"actually processed: (\d+)", said)[1]), "%s" % (here,))
    for host in (a, c):
        until(lambda: sums(them, host) == here, 20, "not what the new primary has")


@needs(hosts=3, memory="1G", timeout=600)
def case_postgresql_replication(lab):
    replication_case(lab)


@needs(hosts=3, memory="1G", timeout=600)
def case_postgresql_replication_with_one_plain_host(lab):
    replication_case(lab, plain="c")
