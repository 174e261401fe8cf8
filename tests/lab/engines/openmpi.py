# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Open MPI over its TCP transport: a rank on each of three hosts, in place of ssh the lab."""
import json
import os

from connections import connections, fast, prefix, until, where_they_should_be
from lab import check, needs

EXCHANGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs/mpi_exchange.py")
STOP = "/tmp/stop"
OPTIONS = ["--mca pml ob1", "--mca btl tcp,self", "--mca btl_tcp_if_include vec0", "--mca btl_tcp_port_min_v4 9000",
           "--mca btl_tcp_port_range_v4 10", "--mca oob tcp", "--mca oob_tcp_if_include vec0",
           "--mca plm_rsh_no_tree_spawn 1", "--mca plm_rsh_agent /tmp/agent", "--mca mpi_yield_when_idle 1"]
TRANSPORT = range(9000, 9010)
ENV = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

# What mpirun takes for ssh: it leaves the command in a file, for the lab to start it there.
AGENT = """#!/bin/sh
host=$1
shift
printf '%s\\n' "$*" >/tmp/start-$host.new
mv /tmp/start-$host.new /tmp/start-$host
"""


def openmpi(lab, plain=""):
    a, *others = lab.hosts
    for host in lab.hosts:  # only the first calls it, all look for it
        host.put("/tmp/agent", AGENT)
        host.run("chmod +x /tmp/agent; rm -f /tmp/start-* %s" % STOP, check=True)
    run = a.spawn([*prefix(a, plain), "mpirun", "--leave-session-attached", *" ".join(OPTIONS).split(),
                   "--host", "a,b,c", "-np", 3,
                   "/usr/bin/python3", EXCHANGE, STOP], env=ENV)
    for host in others:
        path = "/tmp/start-" + host.name
        a.run("until [ -e %s ]; do sleep 0.1; done" % path, check=True)
        host.spawn(" ".join(prefix(host, plain)) + " " + a.get(path).decode(), env=ENV)
    run.wait_line("turn 10", 60)
    # One connection between any two ranks, which has a row at each end that is not plain.
    pairs = 3 - 2 * len(plain)
    where_they_should_be(lab, TRANSPORT, plain, least=2 * pairs)
    until(lambda: len([row for row in connections(lab, TRANSPORT) if fast(row) and row["tx_fast_bytes"] > 1 << 20])
          == 2 * pairs, 60, "they move too little")
    a.put(STOP, "")
    said = [json.loads(line) for line in run.good(120).splitlines() if line.startswith("{")]
    check({row["host"] for row in said} == set("abc"), "%s" % said)


@needs(hosts=3, memory="1G", timeout=600)
def case_openmpi(lab):
    openmpi(lab)


@needs(hosts=3, memory="1G", timeout=600)
def case_openmpi_with_one_plain_host(lab):
    openmpi(lab, plain="c")
