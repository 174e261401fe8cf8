# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Two or three hosts with RDMA devices, as User-Mode Linux guests on this machine.

    with Lab(2) as lab:
        a, b = lab.hosts
        server = b.spawn(["rping", "-s", "-a", b.ip, "-C", "3"])
        print(a.run(["rping", "-c", "-a", b.ip, "-C", "3", "-v"], timeout=20).stdout)
        server.good()

README.md beside this file says what such a host is like.
"""
import itertools
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from typing import NamedTuple

import clock
from frames import Parser, pack

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, os.environ.get("RSOCK_BUILD", "build"))

NIC = "vec0"  # what UML calls it; `guest` has the same
SO_SNDBUFFORCE = 32
WIRE_BUFFER = 8 << 20
INPUT_CHUNK = 1 << 15
LINE_ROOM = 3072  # see frames.py
BLOCK_ALL = """
qdisc replace dev {nic} root netem loss 100%
qdisc add dev {nic} ingress
filter add dev {nic} parent ffff: matchall action drop
""".format(nic=NIC)
UNBLOCK_ALL = "tc qdisc del dev {nic} root; tc qdisc del dev {nic} ingress".format(nic=NIC)
HEAL = "nft flush ruleset; " + UNBLOCK_ALL


class LabError(Exception):
    """What is wrong with a host, or with what runs on it."""


class TimedOut(LabError):
    pass


class Failed(Exception):
    """What a case found."""


def check(condition, what):
    if not condition:
        raise Failed(what)


def needs(**what):
    """For a case: hosts=N, device="rxe"|"siw"|None or a list of them, memory="512M",
    timeout=SECONDS.

    also="siw": the case runs a second time, with that device.
    alone=True: with nothing beside it, for it measures time.
    todo="what is known to be wrong": that it fails is shown, and counted neither way.
    netdevs="vlan" or a list: kinds of netdev that the kernel must know. Without, the case is shown as
    not run, and counted neither way.
    """
    def mark(case):
        case.needs = what
        return case
    return mark


class Result(NamedTuple):
    status: int  # as subprocess has it: negative for a signal
    stdout: str
    stderr: str


class Process:
    """A command that runs, or has run, in a guest. What it prints is in files of this machine."""

    def __init__(self, host, number, argv, sink):
        self.host = host
        self.number = number
        self.argv = argv
        self.status = None
        self.sink = sink  # gets the output instead of the files
        self.files = {kind: host.lab.open_log("%s.%d-%s.%s" % (
            host.name, number, os.path.basename(argv[0]), kind)) for kind in ("out", "err")}

    def __str__(self):
        return "%s: %s" % (self.host.name, " ".join(self.argv))

    def _take(self, kind, data):
        if self.sink:
            self.sink(data)
        else:
            self.files[kind].write(data)

    def data(self, kind="out"):
        """What it has printed so far: "out" or "err"."""
        fd = self.files[kind].fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def text(self, kind="out"):
        return self.data(kind).decode("utf-8", "backslashreplace")

    def story(self):
        return "%s: status %s, stdout %r, stderr %r" % (self, self.status, self.text()[-600:],
                                                        self.text("err")[-600:])

    def running(self):
        return self.status is None

    def wait(self, timeout=30):
        """Its exit status, as subprocess has it."""
        self.host.lab.until(lambda: self.status is not None, timeout, self.host, self.story)
        return self.status

    def wait_line(self, regex, timeout=10, kind="out"):
        """Until a line of its output matches; the match."""
        def look():
            return re.search(regex, self.text(kind), re.M)

        self.host.lab.until(lambda: look() or self.status is not None, timeout, self.host,
                            lambda: "no %r; %s" % (regex, self.story()))
        match = look()
        if not match:
            raise LabError("ended without %r; %s" % (regex, self.story()))
        return match

    def wait_listening(self, port, timeout=10):
        """Until its host has a listener on a TCP port."""
        self._wait_for("grep -q ':%04X [0-9A-F]*:0000 0A ' /proc/net/tcp /proc/net/tcp6" % port,
                       timeout)

    def wait_cm_listening(self, port, timeout=10):
        """Until its host has a listener on a port of the RDMA CM."""
        self._wait_for("rdma resource show cm_id | grep -q 'LISTEN.*:%d '" % port, timeout)

    def _wait_for(self, command, timeout):
        test = self.host.spawn("until %s; do sleep 0.01; done" % command)
        try:
            self.host.lab.until(lambda: not (test.running() and self.running()), timeout,
                                self.host, self.story)
            if test.running():
                raise LabError("ended too early; " + self.story())
        finally:
            if test.running():
                test.kill()

    def good(self, timeout=30):
        """Waits for its end, which must be exit status 0; what it has printed."""
        if self.wait(timeout):
            raise LabError(self.story())
        return self.text()

    def write(self, data):
        """For its stdin (needs spawn(stdin=True)); no data: the end of it."""
        chunks = [data[i:i + INPUT_CHUNK] for i in range(0, len(data), INPUT_CHUNK)] or [b""]
        for chunk in chunks:
            self.host.send(b"I", self.number, chunk)

    def send_signal(self, number, group=False):
        self.host.send(b"S", self.number, json.dumps([int(number), group]).encode())

    def end(self, number=signal.SIGTERM, timeout=5):
        """Ends it, and returns its exit status."""
        self.send_signal(number)
        return self.wait(timeout)

    def kill(self):
        """Ends it and all of its process group."""
        self.send_signal(signal.SIGKILL, group=True)
        return self.wait(5)

    def resize(self, rows, columns):
        self.host.send(b"W", self.number, json.dumps([rows, columns]).encode())


class Host:
    def __init__(self, lab, index, device):
        self.lab = lab
        self.name = "abc"[index]
        self.ip = "10.0.0.%d" % (index + 1)
        self.ip6 = "fd00::%d" % (index + 1)
        self.mac = "52:54:00:00:00:0%d" % (index + 1)
        self.kind = device  # rxe, siw or None
        self.device = device and device + "0"
        self.listening = False
        self.ready = False
        self.dead = None  # why
        self.room = LINE_ROOM
        self.swept = False
        self.processes = {}
        self.numbers = itertools.count(1)
        self.console = tempfile.TemporaryFile()
        self.line, self.guest_line = socket.socketpair()
        self.parser = Parser()
        self.sending = threading.Lock()

    # ---- commands

    def spawn(self, command, env=None, cwd="/", stdin=False, terminal=False, sink=None):
        """Starts a command: a list of words, or a line for the shell. See Process."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(map(str, command))
        process = Process(self, next(self.numbers), argv, sink)
        self.processes[process.number] = process
        self.send(b"R", process.number, json.dumps({
            "argv": argv, "env": env or {}, "cwd": cwd, "stdin": stdin,
            "terminal": terminal}).encode())
        return process

    def run(self, command, timeout=30, input=None, check=False, **how):
        """Runs a command to its end: (status, stdout, stderr). With check it must succeed."""
        process = self.spawn(command, stdin=input is not None, **how)
        if input:
            process.write(input.encode() if isinstance(input, str) else input)
        if input is not None:
            process.write(b"")
        try:
            process.wait(timeout)
        except TimedOut:
            process.kill()
            raise
        if check and process.status:
            raise LabError(process.story())
        return Result(process.status, process.text(), process.text("err"))

    def put(self, path, data):
        self.run(["sh", "-c", 'cat >"$1"', "sh", path], input=data, check=True)

    def get(self, path):
        process = self.spawn(["cat", path])
        process.good()
        return process.data()

    # ---- outages

    def block_roce(self):
        """RoCE gets nowhere from or to this host; TCP is not touched. See README.md, "Outages"."""
        if self.kind == "siw":
            raise ValueError("iWARP is TCP, and has no port of its own to block")
        self.lab.run_all([
            (host, self.roce_filter("" if host is self else "ether saddr " + self.mac))
            for host in self.lab.hosts if not host.dead])

    def unblock_roce(self):
        self.lab.run_all([(host, self.roce_filter()) for host in self.lab.hosts if not host.dead])

    def roce_filter(self, match=None):
        """Rules for nft: drop what matches; without: do not."""
        name = "inet roce_" + self.name
        rules = "table %s; delete table %s; " % (name, name)
        if match is not None:
            rules += ("table %s { chain in { type filter hook input priority 0; %s udp dport 4791 "
                      "drop; }; }" % (name, match))
        return ["nft", rules]

    def block_all(self):
        """No packet gets from or to this host. (Its link stays up.)"""
        self.run(["tc", "-batch", "-"], input=BLOCK_ALL, check=True)

    def unblock_all(self):
        self.run(UNBLOCK_ALL)

    def netem(self, what):
        """Whatever tc-netem(8) can do to what this host sends: "delay 5ms"; unblock_all ends it."""
        self.run("tc qdisc replace dev %s root netem %s" % (NIC, what), check=True)

    def loss(self, percent):
        """So many of the packets that this host sends are lost."""
        self.netem("loss %g%%" % percent)

    def crash(self):
        """As if the power was cut."""
        self.lab.tell_keeper("crash " + self.name)
        self.lab.until(lambda: self.dead, 5)

    # ---- looks

    def has_netdevs(self, kind):
        """Whether its kernel can make netdevs of a kind: "vlan", "bond", "macvlan" ..."""
        how = {"vlan": "link %s type vlan id 4000" % NIC, "macvlan": "link %s type macvlan" % NIC}
        return not self.run("ip link add name lab_try %s && ip link del lab_try"
                            % how.get(kind, "type " + kind)).status

    def counters(self):
        """The RDMA device's own: {"sent_pkts": 12, ...}"""
        folder = "/sys/class/infiniband/%s/ports/1/hw_counters" % self.device
        lines = self.run("cd %s && grep . *" % folder, check=True).stdout.splitlines()
        return {name: int(value) for name, value in (line.split(":") for line in lines)}

    def console_text(self):
        """What its kernel has said."""
        size = os.fstat(self.console.fileno()).st_size
        return os.pread(self.console.fileno(), size, 0).decode("utf-8", "backslashreplace")

    # ---- the line to it

    def send(self, kind, number=0, data=b""):
        with self.sending:
            packet = pack(kind, number, data)
            while packet:
                self.lab.until(lambda: self.room, 30, self)
                part, packet = packet[:self.room], packet[self.room:]
                with self.lab.changed:
                    self.room -= len(part)
                try:
                    self.line.sendall(part)
                except OSError as error:
                    raise LabError("host %s: %s" % (self.name, self.dead or error)) from None

    def received(self, data):
        for frame in self.parser.feed(data):
            self.take(*frame)
        if not data:
            self.dead = self.dead or "its line was closed"

    def take(self, kind, number, data):
        """A frame has come from the guest."""
        process = self.processes.get(number)
        match kind:
            case b"O" | b"E" if process:
                process._take("out" if kind == b"O" else "err", data)
            case b"X" if process:
                process.status = int(data)
            case b"A":
                self.room += number
            case b"L" if self.listening:
                self.dead = "restarted"
            case b"L":
                self.listening = True
            case b"Y":
                self.ready = True
            case b"F":
                self.dead = data.decode()
            case b"Z":
                self.swept = True

    def sweep(self):
        """Ends every process."""
        self.swept = False
        self.send(b"Z")
        self.lab.until(lambda: self.swept, 10, self)
        for process in self.processes.values():
            for file in process.files.values():
                file.close()
        self.processes.clear()


class Lab:
    """device is rxe, siw or None, or a list with one of these for each host. With logs, a folder,
    what the commands print is kept there."""

    def __init__(self, hosts=2, device="rxe", mtu=4200, memory="512M", logs=None):
        devices = [device] * hosts if device is None or isinstance(device, str) else device
        self.mtu = mtu
        self.memory = memory
        self.logs = logs
        self.hosts = [Host(self, index, devices[index]) for index in range(hosts)]
        self.changed = threading.Condition()
        self.folder = self.keeper = self.reader = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    # ---- start and stop

    def start(self, timeout=30):
        kernel()  # may take minutes, once
        self.folder = tempfile.mkdtemp(prefix="rsock-lab-")
        wires, programs = self.make_wires()
        cpus = sorted(os.sched_getaffinity(0))
        for index, host in enumerate(self.hosts):
            fds = [host.guest_line.fileno(), wires[index].fileno()]
            programs.append({
                "name": host.name, "argv": self.kernel_command(host, *fds), "fds": fds,
                "output": host.console.fileno(), "cpu": cpus[index % len(cpus)]})
        self.start_keeper(programs)
        for end in wires + [host.guest_line for host in self.hosts]:
            end.close()
        self.reader = threading.Thread(target=self.read_lines, daemon=True)
        self.reader.start()
        for host in self.hosts:
            self.until(lambda: host.listening, timeout, host)
            host.send(b"C", 0, json.dumps(self.config(host)).encode())
        for host in self.hosts:
            self.until(lambda: host.ready, timeout, host)
        shutil.rmtree(self.folder)  # only the boot needs it

    def make_wires(self):
        """(each guest's end of its wire, programs needed for that)"""
        if len(self.hosts) == 2:
            wires, programs = self.wire(), []
        else:
            pairs = [self.wire() for _ in self.hosts]
            wires = [pair[0] for pair in pairs]
            self.hub_ends = [pair[1] for pair in pairs]
            fds = [end.fileno() for end in self.hub_ends]
            self.hub_output = tempfile.TemporaryFile()
            programs = [{"name": "hub", "argv": [os.path.join(HERE, "hub"), *map(str, fds)],
                         "fds": fds, "output": self.hub_output.fileno(), "cpu": None}]
        return list(wires), programs

    @staticmethod
    def wire():
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            try:
                end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, WIRE_BUFFER)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WIRE_BUFFER)
        return ends

    def kernel_command(self, host, line, wire):
        return [
            kernel(), "mem=" + self.memory, "root=/dev/root", "rootfstype=hostfs", "rootflags=/",
            "ro", 'init="%s"' % os.path.join(HERE, "guest"), "quiet", "con=null", "con0=null,fd:1",
            "con1=fd:%d" % line, "uml_dir=" + self.folder, "umid=" + host.name,
            "%s:transport=fd,fd=%d,vec=0,mtu=%d,mac=%s" % (NIC, wire, self.mtu, host.mac)]

    def start_keeper(self, programs):
        alive = os.pidfd_open(os.getpid())
        inherited = [alive] + [fd for p in programs for fd in p["fds"] + [p["output"]]]
        config = {"parent": alive, "folder": self.folder, "programs": programs}
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        self.keeper_errors = tempfile.TemporaryFile()
        self.keeper = subprocess.Popen(
            own_namespace() + [os.path.join(HERE, "keeper"), json.dumps(config)], env=env,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.keeper_errors,
            pass_fds=inherited, start_new_session=True)
        os.close(alive)

    def config(self, host):
        """What the guest is told to be."""
        return {
            "name": host.name, "mtu": self.mtu, "mhz": clock_rate(),
            "keep": [path for path in (ROOT, BUILD) if os.path.exists(path)],
            "addresses": [host.ip + "/24", host.ip6 + "/64"],
            "hosts": [(h.name, h.ip, h.ip6) for h in self.hosts],
            "device": host.kind and (host.device, host.kind),
            "env": {"PATH": BUILD + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash",
                    "LANG": "C.UTF-8", "TERM": "dumb", "RSOCK_BUILD": BUILD}}

    def stop(self):
        if self.keeper:
            self.keeper.stdin.close()
            try:
                self.keeper.wait(10)
            except subprocess.TimeoutExpired:
                self.keeper.kill()  # its children die with it
                self.keeper.wait()
            self.keeper = None
        if self.reader:
            self.reader.join(5)  # all lines have come to their ends
            self.reader = None
        for host in self.hosts:
            host.line.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tell_keeper(self, command):
        self.keeper.stdin.write((command + "\n").encode())
        self.keeper.stdin.flush()

    # ---- while it is up

    def alive(self):
        return not any(host.dead for host in self.hosts)

    def reset(self):
        """As after the boot: no processes, the network in order. (Files stay.)"""
        for host in self.hosts:
            host.sweep()
        for process in [host.spawn(HEAL) for host in self.hosts]:
            process.wait()

    @staticmethod
    def run_all(commands):
        """Runs commands [(host, command)] at the same time; all must succeed."""
        for process in [host.spawn(command) for host, command in commands]:
            process.good()

    def read_lines(self):
        """A thread: takes what comes from the guests and the keeper."""
        with selectors.DefaultSelector() as selector:
            for host in self.hosts:
                selector.register(host.line, selectors.EVENT_READ, host.received)
            selector.register(self.keeper.stdout, selectors.EVENT_READ, self.deaths)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        data = os.read(key.fd, 1 << 20)
                    except OSError:
                        data = b""
                    if not data:
                        selector.unregister(key.fileobj)
                    with self.changed:
                        key.data(data)
                        self.changed.notify_all()

    def deaths(self, data):
        """The keeper says so. Without it they are all dead."""
        names = data.decode().split()
        for host in self.hosts:
            if host.name in names or not data:
                host.dead = host.dead or "its kernel has ended"

    def until(self, condition, timeout, host=None, what=lambda: ""):
        """Waits for the condition. With a host: fails when that dies first."""
        end = clock.now() + timeout
        with self.changed:
            while not condition():
                if host and host.dead:
                    raise LabError("host %s: %s; %s; its console: %s%s" % (
                        host.name, host.dead, what(), host.console_text()[-2000:],
                        self.keeper_story()))
                left = end - clock.now()
                if left <= 0:
                    raise TimedOut("after %g s: %s" % (timeout, what() or host and host.name))
                self.changed.wait(left)

    def keeper_story(self):
        size = os.fstat(self.keeper_errors.fileno()).st_size
        return os.pread(self.keeper_errors.fileno(), size, 0).decode("utf-8", "backslashreplace")

    def open_log(self, name):
        if not self.logs:
            return tempfile.TemporaryFile(buffering=0)
        os.makedirs(self.logs, exist_ok=True)
        return open(os.path.join(self.logs, name), "w+b", buffering=0)


def kernel(found=[]):
    """The path of the kernel; the first time this may have to build it."""
    if not found:
        script = subprocess.run([os.path.join(HERE, "kernel")], stdout=subprocess.PIPE)
        if script.returncode:
            raise LabError("no kernel for the lab")
        found.append(script.stdout.decode().rstrip("\n"))
    return found[0]


def own_namespace(found=[]):
    """Words to put before a command, so that it is process 1 of a namespace and nothing that it
    starts can outlive it. An ordinary user needs a user namespace for that; where these are not
    allowed the keeper must do without."""
    if not found:
        words = ["unshare", "--pid", "--fork", "--kill-child"]
        for more in ([], ["--user", "--map-current-user"]):
            tried = subprocess.run(words + more + ["true"], capture_output=True)
            if tried.returncode == 0:
                found.append(words + more + ["--"])
                break
        else:
            found.append([])
    return found[0]


def clock_rate():
    with open("/proc/cpuinfo") as file:
        match = re.search(r"^cpu MHz\s*: (\S+)", file.read(), re.M)
    return match[1] if match else "2000.000"
