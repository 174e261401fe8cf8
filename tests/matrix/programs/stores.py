# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Databases and caches."""
import glob
import signal
import time

from cell import HOST
from children import tool
from programs import program
from tap import check


@program("redis", "redis-server", "C; its own loop on epoll; one thread, forks to save",
         "redis-benchmark, 50 clients; BGSAVE; keys of up to 1 MiB")
def redis(cell):
    port = cell.port()
    cell.server(["redis-server", "--port", port, "--bind", HOST, "--save", "", "--appendonly", "no",
                 "--dir", cell.tmp, "--loglevel", "warning"], port)
    at = ["-h", HOST, "-p", port]
    bench = ["redis-benchmark"] + at + ["--csv"]
    cell.client(bench + ["-c", 50, "-n", 15000, "-t", "set,get"], keep=r'^"[^"]+"')
    for size in (1, 65536, 1 << 20):
        blob = cell.blob("blob%d" % size, size)
        cell.client(["redis-cli"] + at + ["-x", "SET", "key%d" % size], stdin=blob)
    cell.client(["redis-cli"] + at + ["BGSAVE"])
    cell.client(bench + ["-c", 5, "-P", 8, "-n", 5000, "-t", "incr,lpush,lpop"], keep=r'^"[^"]+"')
    for size in (1, 65536, 1 << 20):
        cell.client(["redis-cli", "--raw"] + at + ["GET", "key%d" % size], digest=True)


@program("memcached", "memcached", "C; libevent; 4 threads, connections handed over by a pipe",
         "memccapable (its protocol tests), memcslap")
def memcached(cell):
    port = cell.port()
    cell.server(["memcached", "-u", "nobody", "-l", HOST, "-p", port, "-U", 0], port)
    cell.client(["memccapable", "-h", HOST, "-p", port])
    cell.client(["memcslap", "--servers=%s:%d" % (HOST, port), "--concurrency=8", "--test=get",
                 "--execute-number=1000", "--initial-load=1000"], drop=r"\d+\.\d+ seconds")


POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")


@program("PostgreSQL", "postgresql-15", "C; epoll, latches; a process for each connection, forked",
         "pgbench -S -c 8 and pgbench -c 4; psql, 4 MB of rows")
def postgresql(cell):
    bins = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    check(bins, "postgresql is not installed")
    bins, port, user = bins[-1] + "/", cell.port(), (tool("setpriv"),) + POSTGRES[1:]
    data = cell.copy_of("postgres", "postgres", lambda path: cell.prepare(
        [bins + "initdb", "-D", path, "-A", "trust", "-N", "--no-instructions"], prefix=user))
    cell.server([bins + "postgres", "-D", data, "-p", port, "-c", "fsync=off",
                 "-c", "unix_socket_directories="], port, signal.SIGINT, prefix=user,
                quiet=True)
    at = ["-h", HOST, "-p", port, "-U", "postgres", "postgres"]
    wait_for([tool("pg_isready", ), "-q"] + at[:4], cell)
    cell.client([bins + "pgbench", "-i", "-q", "-s", 1] + at)
    done = r"number of transactions actually processed: .*|number of failed transactions: \d+"
    cell.client([bins + "pgbench", "-n", "-S", "-c", 8, "-t", 500] + at, keep=done)
    cell.client([bins + "pgbench", "-n", "-c", 4, "-t", 50] + at, keep=done)
    big = "select repeat(md5(g::text), 2000) from generate_series(1, 60) g"
    # asleep, until the connection has had time to move
    cell.client([bins + "psql", "-At", "-c", "select pg_sleep(0.3)", "-c", big] + at, digest=True)
    cell.client([bins + "psql", "-Atc", "select count(*) from pgbench_history"] + at)


@program("MariaDB", "mariadb-server", "C++; poll; a thread for each connection",
         "mysqlslap, 8 clients; mariadb, 4 MB of rows")
def mariadb(cell):
    port = cell.port()
    data = cell.copy_of("mariadb", "mysql", lambda path: cell.prepare(
        ["mariadb-install-db", "--no-defaults", "--user=mysql", "--datadir=" + path,
         "--auth-root-authentication-method=normal", "--skip-test-db"]))
    cell.server(["mariadbd", "--no-defaults", "--user=mysql", "--datadir=" + data,
                 "--bind-address=" + HOST, "--port=%d" % port, "--socket=%s/socket" % data,
                 "--pid-file=%s/pid" % data, "--innodb-buffer-pool-size=16M"], port, quiet=True)
    at = ["--no-defaults", "--protocol=tcp", "-h", HOST, "-P", port, "-u", "root"]
    cell.client(["mysqlslap"] + at + ["--auto-generate-sql", "--concurrency=8",
                                      "--number-of-queries=1500"], drop=r"\d+\.\d+ seconds")
    big = "select sleep(0.3); select seq, repeat(md5(seq), 2000) from seq_1_to_60"
    cell.client(["mariadb"] + at + ["-N", "-B", "-e", big, "mysql"], digest=True)


@program("etcd", "etcd-server", "Go; its run-time's own system calls", "etcdctl put and get",
         unreached="is a Go program")
def etcd(cell):
    port, peer = cell.port(), cell.port()
    url = "http://%s:%d" % (HOST, port)
    cell.server(["etcd", "--data-dir", cell.tmp + "/data", "--listen-client-urls", url,
                 "--advertise-client-urls", url, "--listen-peer-urls",
                 "http://%s:%d" % (HOST, peer), "--log-level", "error"], port, quiet=True)
    ctl = ["etcdctl", "--endpoints", "%s:%d" % (HOST, port)]
    env = {"ETCDCTL_API": "3"}
    time.sleep(0.3)
    for i in range(3):
        cell.client(ctl + ["put", "key%d" % i, "value" * 1000], env=env)
    cell.client(ctl + ["get", "--prefix", "key"], env=env)


def wait_for(cmd, cell, seconds=15):
    """Until a command succeeds."""
    end = time.monotonic() + seconds
    while cell.start(cmd, False).wait(5):
        check(time.monotonic() < end, "%s does not succeed" % cmd)
        time.sleep(0.05)
