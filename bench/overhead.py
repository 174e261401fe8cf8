# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What rsock costs where it brings nothing: a peer without it, program start, calls on files."""
import dataclasses
import json
import os
import shutil
import statistics
import time

import apps
from measure import MeasureError, Row, Task, chosen

ONE_SIDED = "only one end runs rsock (all four share one core)"
TIMEOUT = 30


class Iperf3(apps.Iperf3):
    name, label, units = "iperf3", "iperf3", ("MB/s", "s/GB")

    def argv(self, session, port):
        return self.client(session, port, 1)

    def result(self, out):
        """(speed, how much work the CPU time was for)"""
        return self.read(out)


class Redis(apps.Redis):
    name, label, units = "redis", "redis GET, 50 clients", ("k/s", "us")

    def __init__(self, scale):
        super().__init__(50, 1, 0, ("get",))
        self.requests = int(20000 * scale)

    def argv(self, session, port):
        return self.client(session, port, self.requests)

    def result(self, out):
        return self.read(out)["get"], self.requests * 1e-6


class Connrate:
    name, label, units = "connrate", "connections", ("/s", "us")
    needs = ()

    def __init__(self, build, scale):
        self.program, self.seconds = build / "bench/connrate", 1.2 * scale

    def start_server(self, session, variant):
        return session.start_server([self.program, "server"], variant)

    def argv(self, session, port):
        del session
        return [self.program, f"--seconds={self.seconds}", port]

    @staticmethod
    def result(out):
        answer = json.loads(out)
        return answer["conn_s"], answer["with_warm_up"] * 1e-6


def _one_sided(load, variants, rounds, only):
    """All variants run at the same time on one core, so that the scheduler interleaves them.

    A machine that is half as fast for a second is so for all of them. One after the other, plain
    TCP differs from itself by more than 10 %.
    """
    speed, cpu = (Row(f"unused/{load.name}/{what}", ONE_SIDED, f"{load.label}, {what}", unit,
                      better, "one-sided")
                  for what, unit, better in (("speed", load.units[0], "high"),
                                             ("cpu", load.units[1], "low")))
    rows = chosen([speed, cpu], only)
    sharers = variants.one_sided()

    def run(session, _):
        running = []
        sharers.append(sharers.pop(0))  # another one starts first
        for v in sharers:
            running.append((v, *load.start_server(session, v)))
        clients = [session.start(load.argv(session, port), v.client_cpu, v.client_rsock)
                   for v, _, port in running]
        samples = {}
        for (v, server, _), client in zip(running, clients):
            rate, work = load.result(client.wait(TIMEOUT))
            server.stop()
            spent = server.cpu_seconds() + client.cpu_seconds()
            for row, value in ((speed, rate), (cpu, spent / work)):
                if row in rows:
                    samples[row.name, v.key] = value, None
        return samples

    together = dataclasses.replace(variants.plain, title="all at once")
    return [Task(f"unused {load.name}", [together], rows, rounds, run)] if rows else []


def _spawn_ms(program, env):
    begin = time.perf_counter_ns()
    pid = os.posix_spawn(program, [program], env)
    _, status = os.waitpid(pid, 0)
    if status:
        raise MeasureError(f"{program}: status {status}")
    return (time.perf_counter_ns() - begin) * 1e-6


def _startup(variants, rounds, times, only):
    rows = chosen([Row("startup", "start-up of a program", "true, from start to end", "ms", "low",
                       "with-without")], only)
    program = shutil.which("true")

    def run(session, variant):
        env, cpus = session.env(variant.rsock), os.sched_getaffinity(0)
        os.sched_setaffinity(0, {variant.server_cpu})
        try:
            return {"startup": (statistics.median(_spawn_ms(program, env) for _ in range(times)),
                                None)}
        finally:
            os.sched_setaffinity(0, cpus)

    return [Task("startup", variants.with_and_without(), rows, rounds, run)] if rows else []


def _calls(build, variants, rounds, only):
    rows = chosen([Row(f"calls/{call}", "a call that is not about sockets", label, "ns", "low",
                       "with-without")
                   for call, label in (("read", "read 1 B of /dev/zero"),
                                       ("write", "write 1 B to /dev/null"))], only)

    def run(session, variant):
        out = session.run_client([build / "bench/calls", "--seconds=0.2"], variant, 10)[0]
        answer = json.loads(out)
        return {r.name: (answer[r.name.split("/")[1] + "_ns"], None) for r in rows}

    return [Task("calls", variants.with_and_without(), rows, rounds, run)] if rows else []


def tasks(build, variants, rounds, quick, only):
    if not variants.have_rsock:
        return [], ["the cost of rsock when not used: there is no rsock"]
    made, skipped = [], []
    scale = 0.5 if quick else 1
    for load in (Iperf3(), Redis(scale), Connrate(build, scale)):
        if apps.missing_tool(load):
            skipped.append(f"{load.name} with one end plain: {apps.missing_tool(load)} is missing")
        else:
            made += _one_sided(load, variants, rounds if quick else 2 * rounds, only)
    made += _startup(variants, rounds, 50 if quick else 150, only)
    if (build / "bench/calls").exists():
        made += _calls(build, variants, rounds, only)
    return made, skipped
