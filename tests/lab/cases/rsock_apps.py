# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Unmodified programs of Debian's packages between two hosts: on RDMA, over IPv4 and IPv6."""
import hashlib
import json
import os
import re
import time

import clock
from lab import check, needs
from programs import rows

RSOCK = ["rsock", "run"]
ECHO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../examples/asyncio_echo.py")

NGINX = """
daemon off;
user root;
worker_processes 2;
pid /tmp/nginx.pid;
error_log stderr;
events { }
http {
    access_log off;
    client_body_temp_path /tmp/nginx-a;
    proxy_temp_path /tmp/nginx-b;
    fastcgi_temp_path /tmp/nginx-c;
    uwsgi_temp_path /tmp/nginx-d;
    scgi_temp_path /tmp/nginx-e;
    server { listen 8080; listen [::]:8080; root /tmp/www; }
}
"""


def paths_while(process, host, seconds=60):
    """The paths of the host's connections as long as the process runs."""
    paths, end = set(), clock.now() + seconds
    while process.running() and clock.now() < end:
        paths |= {row["path"] for row in rows(host)}
        time.sleep(0.3)
    return paths


def packets(host):
    return sum(host.counters().values())


def addresses(host):
    return host.ip, "[%s]" % host.ip6


@needs(timeout=120)
def case_nginx_with_workers_and_curl_and_wrk(lab):
    a, b = lab.hosts
    body = os.urandom(3 << 20)
    b.run("mkdir -p /tmp/www", check=True)
    b.put("/tmp/nginx.conf", NGINX)
    b.put("/tmp/www/file", body)
    b.put("/tmp/www/small", b"x" * 100)
    server = b.spawn([*RSOCK, "nginx", "-p", "/tmp", "-c", "/tmp/nginx.conf", "-e", "stderr"])
    server.wait_listening(8080)
    for address in addresses(b):
        before = packets(a)
        load = a.spawn([*RSOCK, "wrk", "-t", "1", "-c", "8", "-d", "4",
                        "http://%s:8080/small" % address])
        paths = paths_while(load, a)
        said = load.good(10)
        check(re.search(r"requests in", said) and "Socket errors" not in said, said)
        check("rdma" in paths, "%s: paths: %s" % (address, paths))
        check(packets(a) > before, "the device has seen nothing")
        # Many times on one connection, which enters meanwhile.
        sums = a.run("%s curl -gsSf %s | sha256sum" % (
            " ".join(RSOCK), " ".join(["http://%s:8080/file" % address] * 8)), check=True, timeout=40)
        check(sums.stdout.split()[0] == hashlib.sha256(body * 8).hexdigest(), "not what was served")
    server.end()


def redis(lab, address, tests, clients):
    """`tests`: what redis-benchmark is to run."""
    a, b = lab.hosts
    server = b.spawn([*RSOCK, "redis-server", "--port", "6379", "--bind", address, "--save", "",
                      "--protected-mode", "no"])
    server.wait_listening(6379)
    load = a.spawn([*RSOCK, "redis-benchmark", "-h", address, "-n", "6000", "-c", clients, "-d",
                    "500", "-t", ",".join(tests), "-q"])
    paths = paths_while(load, b)
    said = load.good(60)
    for test in tests:
        check(re.search(r"\b%s\b.*requests per second" % test.upper(), said), load.story())
    check("rdma" in paths, "paths: %s" % paths)
    server.end()


@needs(timeout=90, also="siw")
def case_redis(lab):
    redis(lab, lab.hosts[1].ip, ("set", "get", "lpush", "lrange_100"), 20)


@needs(timeout=90)
def case_redis_over_IPv6(lab):
    redis(lab, lab.hosts[1].ip6, ("set", "get"), 10)


def iperf3(lab, seconds, more):
    """The paths of its connections."""
    a, b = lab.hosts
    server = b.spawn([*RSOCK, "iperf3", "-s", "-1", "-B", b.ip])
    server.wait_listening(5201)
    client = a.spawn([*RSOCK, "iperf3", "-c", b.ip, "-t", seconds, "-J", *more])
    paths = paths_while(client, a)
    said = json.loads(client.good(20))
    check("error" not in said, "%s" % said.get("error"))
    check(said["end"]["sum_received"]["bytes"] > 1 << 20, "%s" % said["end"])
    server.good(10)
    return paths


@needs(timeout=90, also="siw")
def case_iperf3(lab):
    for more in ([], ["-R"], ["-P", "4"]):
        # A busy machine may need two seconds for the first look at the paths.
        paths = [iperf3(lab, 2, more)]
        if "rdma" not in paths[0]:
            paths.append(iperf3(lab, 10, more))
        check("rdma" in paths[-1], "paths: %s" % paths)


@needs(timeout=90, also="siw")
def case_python_asyncio(lab):
    a, b = lab.hosts
    for address in (b.ip, b.ip6):
        where = "%s:7300" % address
        server = b.spawn([*RSOCK, "/usr/bin/python3", ECHO, "server", where])
        server.wait_listening(7300)
        load = a.spawn([*RSOCK, "/usr/bin/python3", ECHO, "client", where, "4"])
        paths = paths_while(load, a)
        check(float(load.good(20).split()[0]) > 10, load.story())
        check("rdma" in paths, "%s: paths: %s" % (address, paths))
        server.kill()


@needs(timeout=150, memory="768M")
def case_postgresql_and_pgbench(lab):
    """A process for each connection, forked by the one that has accepted it."""
    a, b = lab.hosts
    bindir = b.run("ls -d /usr/lib/postgresql/*/bin", check=True).stdout.split()[-1]
    b.run("mkdir -p /tmp/pg && chown postgres /tmp/pg", check=True)
    run = "runuser -u postgres -- env PATH=%s:$PATH " % bindir
    b.run(run + "initdb -D /tmp/pg/data -A trust --no-sync >/dev/null", check=True, timeout=60)
    b.run("echo 'host all all all trust' >>/tmp/pg/data/pg_hba.conf", check=True)
    server = b.spawn(run + "%s postgres -D /tmp/pg/data -k /tmp/pg -h '*' -c fsync=off" % " ".join(RSOCK))
    server.wait_listening(5432)
    b.run("for i in $(seq 50); do %s/pg_isready -q -h %s && exit; sleep 0.2; done; exit 1" % (bindir, b.ip),
          check=True, timeout=30)
    client = "%s " % " ".join(RSOCK) + "env PATH=%s:$PATH " % bindir
    for address in (b.ip, b.ip6):
        a.run(client + "pgbench -h %s -U postgres -i -q -s 1 postgres" % address, check=True,
              timeout=60)
        said = a.run(client + "pgbench -h %s -U postgres -c 4 -t 50 postgres" % address, check=True,
                     timeout=60).stdout
        check("processed: 200/200" in said, said)
        before = packets(a)
        load = a.spawn(client + "pgbench -h %s -U postgres -n -S -c 4 -T 8 postgres" % address)
        paths = paths_while(load, a)
        check("failed transactions: 0 " in load.good(40), load.story())
        check("rdma" in paths, "%s: paths: %s" % (address, paths))
        check(packets(a) > before, "the device has seen nothing")
        # A large result, byte for byte.
        query = "select string_agg(md5(i::text), '') from generate_series(1, 100000) i"
        here = a.run(client + "psql -h %s -U postgres -Atc \"%s\" postgres | sha256sum"
                     % (address, query), check=True, timeout=40).stdout
        want = hashlib.sha256("".join(hashlib.md5(str(i).encode()).hexdigest()
                                      for i in range(1, 100001)).encode() + b"\n").hexdigest()
        check(here.split()[0] == want, "not what was asked for")
    server.end()
