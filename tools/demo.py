#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Run well-known programs over kernel TCP and then under rsock, and print both side by side.

    tools/demo.py [--plain] RSOCK

RSOCK is the `rsock` command. Every program is the distribution's own, unmodified. While a pair runs
under rsock, `rsock stat` is asked again and again which path each connection is on. The demo fails
when a connection that lived long enough for it was never on a fast path. With --plain only the
kernel TCP half runs.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

SAMPLE_SECONDS = 0.1  # between two looks at `rsock stat`
ENTER_SECONDS = 1.0  # a connection seen for this long must have been on a fast path
START_SECONDS = 10  # for a server to listen
RUN_SECONDS = 60  # for a client to finish
ECHO = pathlib.Path(__file__).resolve().parent.parent / "examples" / "asyncio_echo.py"


class Failure(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Work:
    """How much the programs have to do."""
    requests: tuple  # of redis: ((clients, requests), ...)
    seconds: int  # of iperf3 and the echo
    file_bytes: int  # that nginx serves
    fetches: int


WORK = Work(((1, 20000), (50, 100000)), 3, 256 << 20, 4)


class Runner:
    """Starts programs, plain or under rsock, each in a session of its own, and ends only those."""

    work = WORK
    address = "127.0.0.1"  # of the servers

    def __init__(self, folder, rsock=None):
        self.folder = folder
        self.prefix = [rsock, "run"] if rsock else []
        self.children = []

    def start(self, argv, **options):
        child = subprocess.Popen(self.prefix + [str(word) for word in argv], cwd=self.folder,
                                 stdin=subprocess.DEVNULL, start_new_session=True, text=True,
                                 **options)
        self.children.append(child)
        return child

    def serve(self, argv, port):
        """Start a server and return when it listens. Its output is shown if it does not."""
        log = self.folder / "server.log"
        with open(log, "w") as output:
            child = self.start(argv, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not listens(port):
            if child.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{argv[0]} does not listen on port {port}:\n{log.read_text()}")
            time.sleep(0.02)

    def ask(self, argv):
        """Run a client to its end and return what it printed."""
        child = self.start(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = child.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure(f"{argv[0]} did not finish within {RUN_SECONDS} s") from None
        if child.returncode:
            raise Failure(f"{argv[0]} exited with status {child.returncode}:\n{out}{err}")
        return out

    @staticmethod
    def free_port():
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]

    def config(self, name, text):
        """A file for a server; its path."""
        (self.folder / name).write_text(text)
        return self.folder / name

    def served_digest(self):
        return digest(self.folder / "www" / "file")

    def fetched_digest(self, path):
        """Of a file that a client has written, which is removed."""
        found = digest(path)
        path.unlink()
        return found

    def streams(self):
        """What `rsock stat` says of the connections of these programs."""
        out = subprocess.run([self.prefix[0], "stat", "--json"], check=True,
                             stdout=subprocess.PIPE).stdout
        return [s for s in json.loads(out) if s["local"] and self.owns(s["pid"])]

    def owns(self, pid):
        try:
            return os.getsid(pid) in {child.pid for child in self.children}
        except ProcessLookupError:
            return False

    def end(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for child in self.children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, sign)
            deadline = time.monotonic() + 3
            for child in self.children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0, deadline - time.monotonic()))
        self.children = []


class Watcher:
    """Asks `rsock stat` which paths the connections of a runner's programs are on."""

    def __init__(self, runner, every=SAMPLE_SECONDS, patience=ENTER_SECONDS):
        self.runner = runner
        self.every = every
        self.patience = patience
        self.connections = {}  # both ends' addresses -> Connection
        self.error = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def watch(self):
        while not self.stop.is_set():
            try:
                self.look()
            except (subprocess.CalledProcessError, ValueError, KeyError, Failure) as error:
                self.error = error
                return
            self.stop.wait(self.every)

    def look(self):
        found = self.runner.streams()
        now = time.monotonic()
        for stream in found:
            ends = frozenset((stream["local"], stream["peer"]))
            self.connections.setdefault(ends, Connection(now)).see(stream, now)

    def verdict(self):
        """The paths in a word or two, such as "shm x50"; Failure if one was never fast."""
        if self.error:
            raise Failure(f"`rsock stat` failed: {self.error}")
        connections = self.connections.values()
        slow = [c for c in connections if c.path == "tcp" and c.seconds() >= self.patience]
        if slow:
            raise Failure("not on a fast path under rsock:\n" +
                          "\n".join(f"  {c.describe()}" for c in slow))
        paths = collections.Counter(c.path for c in connections)
        if not set(paths) - {"tcp"}:
            raise Failure("no connection was seen on a fast path under rsock" +
                          "".join(f"\n  {c.describe()}" for c in connections))
        return ", ".join(f"{path} x{count}" for path, count in sorted(paths.items()))


class Connection:
    """One TCP connection: what was seen of its one or two ends under rsock."""

    def __init__(self, now):
        self.first = self.last = now
        self.path = "tcp"
        self.latest = None

    def see(self, stream, now):
        self.last = now
        self.latest = stream
        if stream["path"] != "tcp":
            self.path = stream["path"]

    def seconds(self):
        return self.last - self.first

    def describe(self):
        s = self.latest
        return (f"{s['command']} (pid {s['pid']}) {s['local']} - {s['peer']}: "
                f"{s['path']}, {s['reason'] or 'no reason given'}")


def listens(port):
    """Does anyone in this network namespace listen on the port? Asks without connecting."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table) as lines:
            for line in lines:
                words = line.split()
                if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                    return True
    return False


# ---- the programs: each returns [(title, figure, unit)] ----

def redis(runner):
    port = runner.free_port()
    runner.serve(["redis-server", "--port", port, "--bind", runner.address, "--save", "",
                  "--appendonly", "no", "--protected-mode", "no", "--dir", runner.folder], port)
    figures = []
    for clients, requests in runner.work.requests:
        out = runner.ask(["redis-benchmark", "-h", runner.address, "-p", port, "-t", "set,get",
                          "-c", clients, "-n", requests, "--csv"])
        for row in csv.DictReader(out.splitlines()):
            figures.append((f"redis {row['test']}, {clients} client{'s' * (clients > 1)}",
                            float(row["rps"]), "/s"))
    return figures


def iperf3(runner):
    port = runner.free_port()
    runner.serve(["iperf3", "-s", "-1", "-p", port], port)
    out = json.loads(runner.ask(["iperf3", "-c", runner.address, "-p", port,
                                 "-t", runner.work.seconds, "-J"]))
    if "error" in out:
        raise Failure(f"iperf3: {out['error']}")
    return [("iperf3, 1 stream", out["end"]["sum_received"]["bits_per_second"] / 1e9, "Gbit/s")]


def serve_file(runner):
    """nginx, and the URL of its file."""
    port = runner.free_port()
    config = runner.config("nginx.conf", f"""\
daemon off;
{"user root;" if os.getuid() == 0 else ""}
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    sendfile on;
    client_body_temp_path .;
    proxy_temp_path .;
    fastcgi_temp_path .;
    uwsgi_temp_path .;
    scgi_temp_path .;
    server {{
        listen {runner.address}:{port};
        root www;
    }}
}}
""")
    runner.serve(["nginx", "-p", runner.folder, "-c", config, "-e", "stderr"], port)
    return f"http://{runner.address}:{port}/file"


def nginx(runner):
    url, work = serve_file(runner), runner.work
    copies = [runner.folder / f"copy{i}" for i in range(work.fetches)]
    argv = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*",
            "--write-out", "%{size_download} %{time_total}\n"]
    for copy in copies:
        argv += ["--output", copy, url]
    fetched = [line.split() for line in runner.ask(argv).splitlines()]
    want = runner.served_digest()
    for copy in copies:
        if runner.fetched_digest(copy) != want:
            raise Failure(f"nginx and curl: {copy.name} is not the file that was served")
    size = sum(int(words[0]) for words in fetched)
    seconds = sum(float(words[1]) for words in fetched)
    return [(f"nginx to curl, {work.file_bytes >> 20} MiB, SHA-256 equal", size / seconds / 1e6,
             "MB/s")]


def asyncio(runner):
    where = f"{runner.address}:{runner.free_port()}"
    runner.serve(["/usr/bin/python3", ECHO, "server", where], int(where.rsplit(":", 1)[1]))
    out = runner.ask(["/usr/bin/python3", ECHO, "client", where, runner.work.seconds])
    return [("python asyncio echo, 64 B", float(out.split()[0]), "/s")]


PAIRS = (redis, iperf3, nginx, asyncio)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def make_file(folder):
    (folder / "www").mkdir()
    block = os.urandom(1 << 20)
    with open(folder / "www" / "file", "wb") as file:
        for i in range(WORK.file_bytes >> 20):
            file.write(i.to_bytes(8, "little") + block[8:])


def run_pair(pair, folder, rsock=None):
    """([(title, figure, unit)], paths) of one pair of programs."""
    runner = Runner(folder, rsock)
    try:
        if not rsock:
            return pair(runner), None
        with Watcher(runner) as watcher:
            figures = pair(runner)
        return figures, watcher.verdict()
    except Failure as failure:
        raise Failure(f"{pair.__name__} {'under rsock' if rsock else 'plain'}: {failure}") from None
    finally:
        runner.end()


def show(plain, fast, paths):
    for i, (title, figure, unit) in enumerate(plain):
        line = f"  {title:<38}{number(figure, unit):>18}"
        if fast:
            ratio = fast[i][1] / figure
            line += f"{number(fast[i][1], unit):>18}  {bold(f'{ratio:6.2f}x')}   {paths}"
        print(line, flush=True)


def number(figure, unit):
    return f"{figure:,.1f} {unit}" if figure < 100 else f"{figure:,.0f} {unit}"


def bold(text):
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def main():
    parser = argparse.ArgumentParser(description="Known programs, plain and under rsock.")
    parser.add_argument("--plain", action="store_true", help="kernel TCP only")
    parser.add_argument("rsock", help="the rsock command")
    args = parser.parse_args()
    rsock = str(pathlib.Path(args.rsock).resolve())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rsock-demo."))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("demo: terminated"))
    try:
        make_file(folder)
        head = f"  {'both ends on this host':<38}{'kernel TCP':>18}"
        if not args.plain:
            head += f"{'rsock run':>18}  {'ratio':>7}   connections"
        print(bold(head), flush=True)
        for pair in PAIRS:
            plain, _ = run_pair(pair, folder)
            fast, paths = (None, None) if args.plain else run_pair(pair, folder, rsock)
            show(plain, fast, paths)
    except Failure as failure:
        sys.exit(f"\ndemo: FAILED: {failure}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
