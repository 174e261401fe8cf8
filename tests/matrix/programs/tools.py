# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Tools that measure networks or connect things to them."""
import signal

from cell import HOST
from programs import program


@program("iperf3", "iperf3", "C; select; one thread", "2 streams; both directions at once")
def iperf3(cell):
    for more in (["-P", 2], ["--bidir"]):
        port = cell.port()
        cell.server(["iperf3", "-s", "-1", "-p", port, "--bind", HOST], port, once=True, quiet=True)
        cell.client(["iperf3", "-c", HOST, "-p", port, "-t", 1, "-J"] + more,
                    keep=r'"error".*|"num_streams":\s*\d+')


@program("sockperf", "sockperf", "C++; recvfrom; one thread",
         "ping-pong and throughput, checked for lost and doubled messages")
def sockperf(cell):
    port = cell.port()
    cell.server(["sockperf", "sr", "--tcp", "-i", HOST, "-p", port], port, signal.SIGINT, quiet=True)
    for kind in ("pp", "tp"):
        cell.client(["sockperf", kind, "--tcp", "-i", HOST, "-p", port, "-t", 1],
                    keep=r"# dropped messages.*|Test ended|errors.*")


@program("qperf", "qperf", "C; blocking; a process for each client, forked", "tcp_bw, tcp_lat")
def qperf(cell):
    port, other = cell.port(), cell.port()
    cell.server(["qperf", "-lp", port], port)
    cell.client(["qperf", "-lp", port, "-ip", other, "-t", 1, HOST, "tcp_bw", "tcp_lat"],
                keep=r"^tcp_\w+|^ +\w+(?= +=)")


def netcat(kind, listen, connect):
    @program("netcat (%s)" % kind, "netcat-" + kind,
             "C; %s; one thread" % {"openbsd": "poll", "traditional": "select"}[kind],
             "32 MiB each way at once")
    def test(cell):
        port = cell.port()
        there, back = cell.blob("there", 32 << 20), cell.blob("back", (32 << 20) - 1)
        nc = "nc." + kind
        with open(back, "rb") as source:
            cell.server([nc] + listen + [port], port, once=True, stdin=source)
        cell.client([nc] + connect + [HOST, port], stdin=there, digest=True)


netcat("openbsd", ["-l", "-N", HOST], ["-N"])
netcat("traditional", ["-l", "-q", 2, "-s", HOST, "-p"], ["-q", 2])


@program("socat", "socat", "C; select; a process for each connection, forked",
         "32 MiB there and back, twice; a program (cat) behind it")
def socat(cell):
    blob = cell.blob("blob", 32 << 20)
    # It waits until the pipe takes one page, and must not write more: nobody else empties the pipe.
    for behind, piece in (("PIPE", 4096), ("EXEC:cat", 8192)):
        port = cell.port()
        cell.server(["socat", "-t60", "-b%d" % piece, "TCP-LISTEN:%d,bind=%s,fork,reuseaddr" % (port, HOST), behind], port)
        for _ in range(2):
            cell.client(["socat", "-t60", "-", "TCP:%s:%d" % (HOST, port)], stdin=blob, digest=True)
