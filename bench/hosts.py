# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Sessions on two hosts of the lab: what measure.Session is on one machine.

The server runs on host b, the client on host a. What is measured under rsock must have been on
RDMA: `rsock stat` on the hosts says so, and so do the counters of the RDMA devices.
"""
import itertools
import json
import pathlib
import sys
import time

import fastpath
from measure import MeasureError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests/lab"))

from lab import Lab, LabError  # noqa: E402

RSOCK = ("rsock", "run")
PACKET = 4096  # bytes that one packet of the devices carries at most
LOOK_AGAIN = 0.3  # seconds later, while some connection has yet to enter
ERROR_HEAD, ERROR_TAIL = 100, 300  # characters of a long message that are kept
CLOSING = ("peer-left", "peer-closed", "closing")  # reasons of `rsock stat`


class Hosts:
    """The lab: booted when it is needed first, and again when it broke."""

    def __init__(self):
        self.lab = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.lab:
            self.lab.stop()

    def get(self):
        """(a, b), with no processes."""
        try:
            if self.lab and self.lab.alive():
                self.lab.reset()
            else:
                self.__exit__()
                self.lab = Lab(2)
                self.lab.start()
        except LabError:
            self.__exit__()
            self.lab = None
            raise
        return self.lab.hosts

    def session(self):
        return HostSession(self)

    def describe(self):
        """For machine.describe()'s result."""
        a, _ = self.get()
        return {"guest_kernel": a.run(["uname", "-r"], check=True).stdout.strip(),
                "device": a.device, "mtu": self.lab.mtu,
                "perftest": a.run("ib_write_lat --version").stdout.strip() or None}


class Server:
    """What apps.py wants of a server."""
    pid = None  # of no use here

    def __init__(self, process):
        self.process = process

    def wait(self, seconds):
        return self.process.good(seconds)


class HostSession:
    """One measurement: starts programs and ends them all."""

    tmp = "/tmp"
    ports = itertools.count(20000)

    def __init__(self, hosts):
        self.hosts = hosts
        self.proof = None

    def __enter__(self):
        try:
            self.a, self.b = self.hosts.get()
        except LabError as e:
            raise _measure_error(e) from e
        self.address = self.b.ip
        self.env = {"LC_ALL": "C", "BENCH_ADDRESS": self.address}
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, LabError):
            raise _measure_error(error) from error

    def free_port(self):
        return next(self.ports)

    # ---- programs

    def start_server(self, argv, variant, port=None, cm=False):
        """Waits until `port` listens (of the RDMA CM with `cm`); without a port, for the number
        that the program prints."""
        process = self._spawn(self.b, argv, variant.server_rsock)
        if port is None:
            port = int(process.wait_line(r"^\d+$")[0])
        elif cm:
            process.wait_cm_listening(port)
        else:
            process.wait_listening(port)
        return Server(process), port

    def run_client(self, argv, variant, seconds, look=()):
        """Runs a client, at most `seconds`. Returns (output, was it on RDMA).

        look = (_, times): asks `rsock stat` on host b at these times, and checks as _prove says.
        """
        before = self.counters()
        process = self._spawn(self.a, argv, variant.client_rsock)
        if not look:
            return process.good(seconds), None
        looks, begin = [], time.monotonic()
        for at in look[1] if variant.rsock else ():
            found = []
            while not self._ended(process, begin + at - time.monotonic()):
                found = streams(self.b) or found
                if not any(s["reason"] == "starting" for s in found):
                    break
                at += LOOK_AGAIN
            looks += [{"b": found}] if found else []
        out = process.good(seconds)
        self._prove(variant, looks, before)
        return out, variant.rsock or None

    def run_held(self, argv, variant, seconds):
        """The same for a program that prints one line and then waits for the end of its stdin, so
        that nothing disturbs it and both ends can be asked. Returns its output."""
        before = self.counters()
        process = self._spawn(self.a, argv, variant.client_rsock, stdin=True)
        process.wait_line("^.+$", seconds)
        looks = [{h.name: streams(h) for h in (self.a, self.b)}] if variant.rsock else []
        self._prove(variant, looks, before, fastpath.FAST_SHARE)
        process.write(b"")
        return process.good(seconds)

    def run_watched(self, argv, variant, seconds, every=0.3):
        """The same for a program that no look disturbs, with a look every so many seconds.

        Returns (stdout, stderr, the last look at host a).
        """
        before, last, ending = self.counters(), [], False
        process = self._spawn(self.a, argv, variant.client_rsock)
        while variant.rsock and not self._ended(process, every):
            found = streams(self.a)
            before_that, ending = ending, any(s["reason"] in CLOSING for s in found)
            if found and (not last or not ending or before_that):
                last = found  # but one look may fall into its end
        process.good(seconds)
        self._prove(variant, [{"a": last}] if variant.rsock else [], before)
        return process.text(), process.text("err"), last

    def _spawn(self, host, argv, rsock, **how):
        return host.spawn([*(RSOCK if rsock else ()), *argv], env=self.env, **how)

    def _ended(self, process, seconds):
        """After `seconds`, or at the end of the process."""
        end = time.monotonic() + seconds
        while process.running() and time.monotonic() < end:
            with self.hosts.lab.changed:
                self.hosts.lab.changed.wait(max(0, end - time.monotonic()))
        return not process.running()

    # ---- the proof

    def counters(self):
        return {h.name: h.counters() for h in (self.a, self.b)}

    def _prove(self, variant, looks, before, share=0.0):
        """Fails unless it was measured what was meant to be.

        rsock: every look says RDMA, for `share` of the bytes at least, and the devices' counters
        can have carried them. TCP: the devices were still. Others: they were not.
        """
        now = self.counters()
        moved = {name: {key: value - before[name][key] for key, value in counters.items()
                        if value != before[name][key]} for name, counters in now.items()}
        self.proof = {"counters": moved, "looks": looks}
        packets = sum(m.get("sent_pkts", 0) for m in moved.values())
        if (packets == 0) != (variant.key == "tcp"):
            raise MeasureError(f"{packets} RDMA packets: {moved}")
        if not variant.rsock:
            return
        if not looks:
            raise MeasureError("ended before anybody could look at its path")
        for look in looks:
            for name, found in look.items():
                _on_rdma(name, found, share)
        fast = max(sum(s["tx_fast_bytes"] + s["rx_fast_bytes"] for s in found)
                   for look in looks for found in look.values())
        if packets < fast / PACKET:
            raise MeasureError(f"{packets} RDMA packets cannot have carried {fast} bytes")


def streams(host):
    """What `rsock stat --json` says of the connections there."""
    said = host.run(["rsock", "stat", "--json"], timeout=10, check=True).stdout
    return [s for s in json.loads(said) if s["peer"]]


def _on_rdma(name, found, share):
    big = fastpath.big_streams(found)
    if not big:
        raise MeasureError(f"host {name} has no connection under rsock")
    for s in big:
        if s["path"] != "rdma":
            raise MeasureError(f"not on RDMA but on {s['path']}: {s['command']} on host {name}, "
                               f"{s['local']} to {s['peer']}: {s['reason'] or 'no reason given'}")
    if fastpath.fast_share(big) < share:
        raise MeasureError(f"only {fastpath.fast_share(big):.0%} of the bytes on RDMA: {big}")


def _measure_error(error):
    text = " ".join(str(error).split())
    if len(text) > ERROR_HEAD + ERROR_TAIL:
        text = text[:ERROR_HEAD] + " ... " + text[-ERROR_TAIL:]
    return MeasureError(text)
