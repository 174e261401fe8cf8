# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Where RDMA is of no use, connect() and the first byte under rsock take as long as without."""
import json
import os
import statistics
import time
from typing import Callable, NamedTuple

import clock
from lab import BUILD, HERE, check, needs
from programs import rows

RSOCK = ["rsock", "run"]
ASK = os.path.join(BUILD, "tests/apps/ask")
COMPARE = os.path.join(HERE, "compare.py")
PLAIN_PORT, PORT = 7400, 7401
ROUNDS = 15

# By how much the median may exceed that of the plain program, in microseconds, or by half of it.
# In the first connection of a process rsock sets itself up: 3 to 8 ms in a guest with its one CPU,
# 30 on a busy machine (0.4 ms outside of the lab); "rsock run" and the exit add 30 to 130 ms. Whoever
# waits for the RDMA CM's time-outs waits for 100 ms and more.
SLACK = {("fresh", "connect"): 60000, ("fresh", "first"): 60000, ("fresh", "process"): 300000,
         ("more", "connect"): 5000, ("more", "first"): 10000}


def serve(host, prefix, port):
    server = host.spawn([*prefix, ASK, "serve", host.ip, port, 1, 1000])
    server.wait_line("pids")
    return server


def command(prefix, server, port):
    return json.dumps([*prefix, ASK, server.ip, str(port)])


def compare(a, b, prefix):
    """Of the plain program and of the other, in turns: the median may be a little more."""
    said = a.run([COMPARE, ROUNDS, command([], b, PLAIN_PORT), command(prefix, b, PORT)],
                 timeout=50, check=True).stdout
    plain, other = map(json.loads, said.splitlines())
    story = []
    for (kind, what), slack in SLACK.items():
        usual, took = (statistics.median(times[what] for times in way[kind])
                       for way in (plain, other))
        story.append("%s %s %.1f, plain %.1f ms" % (kind, what, took / 1000, usual / 1000))
        check(took <= usual + max(usual / 2, slack), "late: " + "; ".join(story))


def until_decided(holder, timeout=20):
    """It asks on and on, until rsock says what its path is; every answer is checked."""
    said = json.loads(holder.wait_line(r".*\n", timeout)[0])
    check("error" not in said, holder.story())
    check(said["asked"] > 2, said)


def row(host, reasons, end):
    """The one connection that the holder has, at one of its ends: on TCP, and why."""
    while True:
        found = rows(host)
        if len(found) == 1 and found[0]["reason"] != "starting" or clock.now() > end:
            break
        time.sleep(0.1)
    check(len(found) == 1, "%s: not one connection: %s" % (host.name, found))
    one = found[0]
    check(one["path"] == one["tx_path"] == one["rx_path"] == "tcp" and one["reason"] in reasons
          and not one["enters"] and not one["tx_fast_bytes"] + one["rx_fast_bytes"],
          "%s: %s, not %s" % (host.name, one, reasons))


def as_fast_as_plain(lab, prefixes, reasons):
    """`prefixes`, `reasons`: of the client on a, the server on b; no reasons: it has no rsock."""
    a, b = lab.hosts
    servers = [serve(b, [], PLAIN_PORT), serve(b, prefixes[1], PORT)]
    holder = a.spawn([*prefixes[0], ASK, b.ip, PORT, "settle"], stdin=True)
    holder.write(b"\n")
    compare(a, b, prefixes[0])
    until_decided(holder)
    end = clock.now() + 15  # an accepted connection waits for its peer for ten seconds
    for host, why in ((a, reasons[0]), (b, reasons[1])):
        if why:
            row(host, why, end)
    holder.write(b"")
    holder.good()
    for server in servers:
        check(server.running(), server.story())


class Arrangement(NamedTuple):
    client: list  # what it runs under
    server: list
    why_client: list  # one of these is its reason; none: it has no rsock to ask
    why_server: list
    asked: bool  # the client has tried RDMA
    device: object = "rxe"  # see lab.needs
    before: Callable = None  # what to do to the hosts, and ...
    after: Callable = None  # ... to undo


def no_permission(lab):
    lab.hosts[1].run("chmod 600 /dev/infiniband/*", check=True)


def permission(lab):
    lab.hosts[1].run("chmod 666 /dev/infiniband/*", check=True)


NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Of a server that nobody asks over RDMA: it cannot know why.
NOT_ASKED = ["peer-plain", "no-route"]

ARRANGEMENTS = {
    "RDMA_blocked_from_the_first_connection_on": Arrangement(
        RSOCK, RSOCK, ["no-route"], NOT_ASKED, True, before=lambda lab: lab.hosts[0].block_roce()),
    "only_the_client_under_rsock": Arrangement(RSOCK, [], ["peer-plain"], [], True),
    "only_the_server_under_rsock": Arrangement([], RSOCK, [], ["peer-plain"], False),
    "a_client_without_a_device": Arrangement(
        RSOCK, RSOCK, ["no-device"], NOT_ASKED, False, device=[None, "rxe"]),
    "a_server_without_a_device": Arrangement(
        RSOCK, RSOCK, NOT_ASKED, ["no-device"], True, device=["rxe", None]),
    "a_server_without_an_RDMA_listener": Arrangement(
        RSOCK, [*NOBODY, *RSOCK], ["peer-plain"], ["no-permission"], True,
        before=no_permission, after=permission),
}


def make_case(how):
    @needs(device=how.device, alone=True)
    def case(lab):
        a = lab.hosts[0]
        if how.before:
            how.before(lab)
        try:
            before = a.counters() if how.asked else None
            as_fast_as_plain(lab, (how.client, how.server), (how.why_client, how.why_server))
            if before:
                check(a.counters()["sent_pkts"] > before["sent_pkts"], "RDMA was not tried")
        finally:
            if how.after:
                how.after(lab)

    return case


globals().update(("case_" + name, make_case(how)) for name, how in ARRANGEMENTS.items())
