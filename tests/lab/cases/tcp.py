# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Without RDMA devices, programs under rsock on two hosts talk plain TCP."""
import json
import time

import clock
from lab import check, needs
from programs import Echo

REASONS = {False: ("no-route", "no-device"), True: ("peer-plain", "no-device")}  # by "server"


def row(host, server):
    """What `rsock stat` says of the one connection that a host has, once the search is over."""
    end = clock.now() + 10
    while True:
        rows = json.loads(host.run(["rsock", "stat", "--json"], check=True).stdout)
        rows = [row for row in rows if row["peer"] and row["server"] == server]
        if rows and rows[0]["reason"] != "starting" or clock.now() > end:
            check(len(rows) == 1, "not one connection: %s" % rows)
            return rows[0]
        time.sleep(0.05)


@needs(device=None)
def case_under_rsock_it_stays_on_TCP(lab):
    a, b = lab.hosts
    echo = Echo(a, b, b.ip, prefix=["rsock", "run"])
    echo.exchange(4 << 20)
    for host, server in ((a, False), (b, True)):
        found = row(host, server)
        check(found["path"] == "tcp" and found["reason"] in REASONS[server],
              "%s: %s" % (host.name, found))
        check(found["tx_bytes"] == found["rx_bytes"] == 4 << 20, "%s: %s" % (host.name, found))
        check(found["tx_fast_bytes"] == found["rx_fast_bytes"] == 0, "%s: %s" % (host.name, found))
    echo.exchange(4 << 20)
    echo.close()


@needs(device=None)
def case_plain_over_IPv6(lab):
    a, b = lab.hosts
    echo = Echo(a, b, b.ip6)
    echo.exchange(1 << 20)
    echo.close()
