# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The RDMA devices work, between all hosts, and RoCE can be cut off alone."""
import re

from lab import check, needs
from programs import Echo, rping


def case_rping_both_ways(lab):
    a, b = lab.hosts
    rping(a, b, b.ip)
    rping(b, a, a.ip)
    check(a.counters()["sent_pkts"] > 20, "the device has not counted: %s" % a.counters())


def case_rping_over_IPv6(lab):
    a, b = lab.hosts
    rping(a, b, b.ip6)


@needs(device="siw")
def case_rping_over_iWARP(lab):
    a, b = lab.hosts
    rping(a, b, b.ip)
    rping(b, a, a.ip)


@needs(device="siw")
def case_rping_over_iWARP_and_IPv6(lab):
    a, b = lab.hosts
    rping(a, b, b.ip6)


@needs(device=["rxe", None])
def case_one_host_without_a_device(lab):
    a, b = lab.hosts
    check(a.run("ibv_devinfo").status == 0, "a has no device")
    check(b.run("ibv_devinfo").status != 0, "b has a device")


def write_latency(client, server):
    """The typical time of ib_write_lat, in microseconds."""
    command = ["ib_write_lat", "--ib-dev", "rxe0", "--gid-index", "1", "--iters", "200"]
    serving = server.spawn(command)
    serving.wait_listening(18515)
    said = client.run(command + [server.ip], check=True).stdout
    serving.good()
    # bytes, iterations, min, max, typical ...
    row = re.search(r"^ *2 +200 +\S+ +\S+ +(\S+)", said, re.M)
    check(row, "no latency: " + said)
    return float(row[1])


def case_perftest_measures(lab):
    # "inf" on a busy machine: it has not found out how fast its clock goes
    for _ in range(5):
        latency = write_latency(*lab.hosts)
        if latency != float("inf"):
            break
    check(1 < latency < 10000, "the typical latency is %g us" % latency)


def case_RoCE_blocked_while_TCP_goes_on(lab):
    a, b = lab.hosts
    echo = Echo(a, b, b.ip)
    echo.exchange(1 << 20)
    for blocker in (a, b):
        blocker.block_roce()
        pinging = b.spawn(["rping", "-s", "-a", b.ip, "-C", "5"])
        pinging.wait_cm_listening(7174)
        client = a.spawn(["rping", "-c", "-a", b.ip, "-C", "5", "-v"])
        echo.exchange(4 << 20)
        Echo(a, b, b.ip, port=7001).close()
        check(client.running() and not client.text(), "RoCE is not blocked: " + client.story())
        client.kill()
        pinging.kill()
        blocker.unblock_roce()
        rping(a, b, b.ip)
    echo.exchange(1 << 20)
    echo.close()


def case_nothing_passes_while_all_is_blocked(lab):
    a, b = lab.hosts
    echo = Echo(a, b, b.ip)
    echo.exchange(1000)
    a.block_all()
    echo.calling.write(b"1000\n")
    echo.asked += 1
    before = echo.calling.text()
    check(a.run("sleep 0.5").status == 0 and echo.calling.text() == before, "it still passes")
    a.unblock_all()
    echo.exchange(1000)  # TCP sends the lost ones again
    echo.close()
    rping(a, b, b.ip)


def case_TCP_and_RDMA_survive_loss(lab):
    a, b = lab.hosts
    b.loss(3)
    echo = Echo(a, b, b.ip)
    echo.exchange(2 << 20)
    echo.close()
    rping(a, b, b.ip)
    lost = b.run("tc -s qdisc show dev vec0", check=True).stdout
    check(int(re.search(r"dropped (\d+)", lost)[1]) > 0, "nothing was lost: " + lost)


@needs(hosts=3)
def case_three_hosts_reach_each_other(lab):
    a, b, c = lab.hosts
    for client, server in ((a, b), (b, c), (c, a)):
        rping(client, server, server.ip)
        rping(client, server, server.ip6)
        echo = Echo(client, server, server.ip)
        echo.exchange(8 << 20)
        echo.close()
