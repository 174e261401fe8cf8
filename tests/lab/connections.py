# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The connections between hosts of which some may be plain, and why each is where it is."""
import json
import os
import time

import clock
from lab import check

RSOCK = ["rsock", "run", "--log=info"]  # it tells of links that are lost, and why
NOBODY = ("peer-plain", "no-route")  # why a connection with a plain peer is on TCP

# ENGINES_PLAIN=abc: nothing runs under rsock, to see what is its fault and what is not.
ALL_PLAIN = os.environ.get("ENGINES_PLAIN", "")


def prefix(host, plain=""):
    """What to put before a command on that host; plain: the names of the hosts without rsock."""
    return [] if host.name in plain + ALL_PLAIN else RSOCK


def ports(row):
    return {int(row[end].rpartition(":")[2]) for end in ("local", "peer")}


def connections(lab, wanted=None):
    """The rows of connections between two hosts; "host" and "to" are these. wanted: a port, or a list."""
    wanted = {wanted} if isinstance(wanted, int) else wanted and set(wanted)
    names = {ip: host.name for host in lab.hosts for ip in (host.ip, "[%s]" % host.ip6)}
    found = []
    looks = [(host, host.spawn(["rsock", "stat", "--json"])) for host in lab.hosts]  # at the same moment
    for host, look in looks:
        for row in json.loads(look.good()):
            row["host"] = host.name
            row["to"] = names.get(row["peer"].rpartition(":")[0])
            if row["to"] and row["to"] != host.name and not (wanted and wanted.isdisjoint(ports(row))):
                found.append(row)
    return found


def fast(row):
    return row["tx_path"] == row["rx_path"] == "rdma"


def on_tcp(row):
    return row["tx_path"] == row["rx_path"] == "tcp" and not row["tx_fast_bytes"] + row["rx_fast_bytes"]


def brief(row):
    return "%(host)s %(command)s %(local)s - %(peer)s: %(tx_path)s/%(rx_path)s %(reason)s" % row


def where_they_should_be(lab, wanted, plain="", least=1, excused=(), timeout=40):
    """Until at least so many connections are on RDMA in both directions, and all others have a
    reason: their peer is plain, or one of their ends says what is excused. Gives the rows."""
    if ALL_PLAIN:
        return []
    end = clock.now() + timeout
    while True:
        found = connections(lab, wanted)
        good = [row for row in found if fast(row)]
        why = {(row["local"], row["peer"]): row["reason"] for row in found}
        wrong = [row for row in found if not (
            on_tcp(row) and row["reason"] in (*NOBODY, *excused) if row["to"] in plain else
            fast(row) or {row["reason"], why.get((row["peer"], row["local"]))}.intersection(excused))]
        unseen = {name for name in plain if not any(row["to"] == name for row in found)}
        if len(good) >= least and not (wrong or unseen):
            return found
        check(clock.now() < end, "%d connections on rdma, at least %d should be; nothing with %s; not as "
              "they should be:\n%s\nof all:\n%s" % (
                  len(good), least, unseen, "\n".join(map(brief, wrong)),
                  "\n".join(map(brief, found))))
        time.sleep(0.3)


def until(condition, timeout, what):
    """Waits for the condition; gives what it gave."""
    end = clock.now() + timeout
    while not (so := condition()):
        check(clock.now() < end, "after %g s: %s" % (timeout, what() if callable(what) else what))
        time.sleep(0.3)
    return so
