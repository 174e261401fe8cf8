# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs that several cases run on the hosts."""
import json
import os

from lab import HERE, check

ECHO = os.path.join(HERE, "echo.py")
RPING_PORT = 7174


def rping(client, server, address, count=5):
    """RDMA between two hosts: send, write and read, on a connection of the RDMA CM."""
    serving = server.spawn(["rping", "-s", "-a", address, "-C", count])
    serving.wait_cm_listening(RPING_PORT)
    said = client.run(["rping", "-c", "-a", address, "-C", count, "-v"], timeout=20, check=True)
    check(said.stdout.count("ping data: rdma-ping-") == count, "rping: %r" % said.stdout)
    serving.good(10)


def rows(host):
    """What `rsock stat` says of the connections of a host."""
    said = json.loads(host.run(["rsock", "stat", "--json"], check=True).stdout)
    return [row for row in said if row["peer"]]


class Echo:
    """One TCP connection between two hosts whose bytes are checked."""

    def __init__(self, client, server, address, port=7000, prefix=()):
        self.serving = server.spawn([*prefix, ECHO, "server", address, port])
        self.serving.wait_listening(port)
        self.calling = client.spawn([*prefix, ECHO, "client", address, port], stdin=True)
        self.asked = 0

    def exchange(self, count, timeout=20):
        """So many bytes there and back, unchanged."""
        self.asked += 1
        self.calling.write(b"%d\n" % count)
        self.calling.wait_line(r"(.*\n){%d}" % self.asked, timeout)
        said = json.loads(self.calling.text().splitlines()[self.asked - 1])
        check(said["bytes"] == count and said["sent"] == said["received"], "echo: %s" % said)

    def close(self):
        self.calling.write(b"")
        ours = json.loads(self.calling.good().splitlines()[-1])
        theirs = json.loads(self.serving.good())
        check(ours["total"] == theirs["received"], "echo: %s, %s" % (ours, theirs))
