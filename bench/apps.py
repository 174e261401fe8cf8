# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Unmodified programs: redis, iperf3, nginx with wrk."""
import csv
import io
import json
import os
import pathlib
import re
import shutil

from measure import MeasureError, Row, Task, chosen

TIMEOUT = 20
FIRST_REQUESTS = 2000  # of redis-benchmark, before its rate is known
NGINX_CONF = """\
{user}
daemon off;
worker_processes 1;
error_log error.log crit;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 1000000000;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	server {{
		listen 127.0.0.1:{port};
		root www;
	}}
}}
"""


class Redis:
    """redis-benchmark against a fresh redis-server, for about `seconds` a test."""
    needs = ("redis-server", "redis-benchmark")

    def __init__(self, clients, pipeline, seconds, tests=("get", "set")):
        self.clients, self.pipeline, self.seconds, self.tests = clients, pipeline, seconds, tests
        self.rate = {}  # requests a second, by variant: sizes the next run

    @staticmethod
    def start_server(session, variant):
        port = session.free_port()
        return session.start_server(
            ["redis-server", "--bind", session.address, "--port", port, "--save", "",
             "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no",
             "--dir", session.tmp], variant, port)

    def client(self, session, port, requests):
        return ["redis-benchmark", "-h", session.address, "-p", port, "-c", self.clients,
                "-P", self.pipeline, "-n", requests, "-t", ",".join(self.tests), "-q", "--csv"]

    @staticmethod
    def read(out):
        """{test: requests a second}"""
        try:
            table = csv.DictReader(io.StringIO(out[out.index('"test"'):]))
            return {t["test"].lower(): float(t["rps"]) for t in table}
        except (ValueError, KeyError) as e:
            raise MeasureError(f"redis-benchmark: unreadable answer: {out[-200:]!r}") from e

    def run(self, session, variant):
        """Returns ({test: requests a second}, fast)."""
        server, port = self.start_server(session, variant)
        if variant.key not in self.rate:
            out, _ = session.run_client(self.client(session, port, FIRST_REQUESTS), variant,
                                        TIMEOUT)
            self.rate[variant.key] = min(self.read(out).values())
        requests = max(FIRST_REQUESTS, int(self.rate[variant.key] * self.seconds))
        times = [self.seconds * (i + 0.5) for i in range(len(self.tests))]
        out, fast = session.run_client(self.client(session, port, requests), variant, TIMEOUT,
                                       ([server.pid], times))
        rps = self.read(out)
        self.rate[variant.key] = min(rps.values())
        return rps, fast


class Iperf3:
    """One stream with iperf3's defaults."""
    needs = ("iperf3",)

    @staticmethod
    def start_server(session, variant):
        port = session.free_port()
        return session.start_server(
            ["iperf3", "--server", "--one-off", "--bind", session.address, "--port", port], variant,
            port)

    @staticmethod
    def client(session, port, seconds):
        return ["iperf3", "--client", session.address, "--port", port, "--time", seconds,
                "--json"]

    @staticmethod
    def read(out):
        """(MB/s, GB in all)"""
        try:
            received = json.loads(out)["end"]["sum_received"]
            return received["bits_per_second"] / 8e6, received["bytes"] / 1e9
        except (ValueError, KeyError) as e:
            raise MeasureError(f"iperf3: unreadable answer: {out[-200:]!r}") from e

    def transfer(self, session, variant, seconds=1, look=0.7):
        """Returns (what read() does, fast, server); asks for the path after `look` seconds."""
        server, port = self.start_server(session, variant)
        out, fast = session.run_client(self.client(session, port, seconds), variant, TIMEOUT,
                                       ([server.pid], [look]))
        server.wait(TIMEOUT)
        return self.read(out), fast, server

    def run(self, session, variant):
        """Returns (MB/s, CPU seconds per GB of both programs, fast)."""
        (bandwidth, gigabytes), fast, server = self.transfer(session, variant)
        cpu = server.cpu_seconds() + session.last_client.cpu_seconds()
        return bandwidth, cpu / gigabytes, fast


class Nginx:
    """wrk with 64 keep-alive connections fetches a file of 1 KiB from one worker."""
    needs = ("nginx", "wrk")

    def run(self, session, variant):
        port, where = session.free_port(), session.tmp / "nginx"
        (where / "www").mkdir(parents=True, exist_ok=True)
        (where / "www/file").write_bytes(b"x" * 1024)
        user = "user www-data;" if os.geteuid() == 0 else ""
        (where / "conf").write_text(NGINX_CONF.format(user=user, port=port))
        server, _ = session.start_server(
            ["nginx", "-p", where, "-c", where / "conf", "-e", where / "error.log"], variant, port)
        server.sleep(0.05)
        workers = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
        out, fast = session.run_client(
            ["wrk", "-t1", "-c64", "-d1s", f"http://127.0.0.1:{port}/file"], variant, TIMEOUT,
            ([int(w) for w in workers.split()], [0.6]))
        rate = re.search(r"Requests/sec:\s*([\d.]+)", out)
        if not rate or re.search(r"Non-2xx|Socket errors", out):
            raise MeasureError(f"wrk: {out[-300:]!r}")
        return float(rate[1]), fast


def _redis_task(variants, rounds, seconds, only, clients, pipeline):
    redis = Redis(clients, pipeline, seconds)
    who = "1 client" if clients == 1 else f"{clients} clients"
    rows = chosen([Row(f"redis/c{clients}-P{pipeline}/{test}", "redis-benchmark",
                       f"{test.upper()}, {who}" + (f", -P {pipeline}" if pipeline > 1 else ""),
                       "k/s", "high") for test in ("get", "set")], only)

    def run(session, variant):
        rps, fast = redis.run(session, variant)
        return {r.name: (rps[r.name.rsplit("/", 1)[1]], fast) for r in rows}

    name = f"redis {who} -P {pipeline}"
    return [Task(name, variants.sockets(), rows, rounds, run)] if rows else []


def _iperf3_task(variants, rounds, only):
    rows = chosen([Row("iperf3/bandwidth", "iperf3, one stream", "bandwidth", "MB/s", "high"),
                   Row("iperf3/cpu", "iperf3, one stream", "CPU time of both ends", "s/GB", "low")],
                  only)

    def run(session, variant):
        bandwidth, cpu, fast = Iperf3().run(session, variant)
        values = {"iperf3/bandwidth": (bandwidth, fast), "iperf3/cpu": (cpu, fast)}
        return {r.name: values[r.name] for r in rows}

    return [Task("iperf3", variants.sockets(), rows, rounds, run)] if rows else []


def _nginx_task(variants, rounds, only):
    rows = chosen([Row("nginx", "nginx and wrk, 64 connections, 1 KiB file", "requests", "k/s",
                       "high")], only)

    def run(session, variant):
        return {"nginx": Nginx().run(session, variant)}

    return [Task("nginx", variants.sockets(), rows, rounds, run)] if rows else []


def missing_tool(app):
    # Debian keeps nginx in sbin, which not every PATH has.
    return next((n for n in app.needs if not shutil.which(n)), None)


def tasks(build, variants, rounds, quick, only):
    del build
    made, skipped = [], []
    seconds = 0.25 if quick else 0.4
    for app, make in ((Redis, lambda: [t for c, p in ((1, 1), (50, 1), (50, 16)) for t in
                                       _redis_task(variants, rounds, seconds, only, c, p)]),
                      (Iperf3, lambda: _iperf3_task(variants, rounds, only)),
                      (Nginx, lambda: _nginx_task(variants, rounds, only))):
        if missing_tool(app):
            skipped.append(f"{app.__name__.lower()}: {missing_tool(app)} is not installed")
        else:
            made += make()
    return made, skipped
