# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The lab itself: commands on hosts, hosts that die, and nothing that outlives a lab."""
import glob
import os
import signal
import subprocess
import sys
import time

import clock
from lab import HERE, LabError, TimedOut, check, kernel, needs

LEFT_ALONE = """
import sys, time
sys.path.insert(0, %r)
from lab import Lab
lab = Lab(device=None)
lab.start()
for host in lab.hosts:
    host.spawn("sleep 1000")
    host.spawn("echo up; while :; do :; done").wait_line("up")
print(lab.folder, flush=True)
time.sleep(60)
""" % HERE


@needs(device=None)
def case_commands(lab):
    a, b = lab.hosts
    check(a.run("echo out; echo err >&2; exit 3") == (3, "out\n", "err\n"), "a run")
    check(a.run(["nosuch"]).status == 127, "a program that is not there")
    check(a.run("kill -9 $$").status == -signal.SIGKILL, "death by a signal")
    check(b.run("cat", input="x" * 100000).stdout == "x" * 100000, "stdin")
    check(b.run('echo "$A $PWD"', env={"A": "1"}, cwd="/tmp").stdout == "1 /tmp\n", "env, cwd")
    check(b.run("hostname; cat /proc/sys/kernel/hostname").stdout == "b\nb\n", "its name")
    data = os.urandom(3 << 20)
    a.put("/tmp/data", data[:200000])
    check(a.get("/tmp/data") == data[:200000], "a file there and back")
    check(not os.path.exists("/tmp/data"), "a guest has written to this machine")
    noisy = a.run("head -c 20000000 /dev/zero | tr '\\0' x")
    check(len(noisy.stdout) == 20000000, "much output")


@needs(device=None)
def case_commands_in_the_background(lab):
    a, _ = lab.hosts
    sleeper = a.spawn("echo ready; sleep 100 & sleep 100")
    sleeper.wait_line("^ready$")
    check(sleeper.running(), "it has ended")
    check(sleeper.kill() == -signal.SIGKILL, "its status")
    left = a.run("ps ax -o args | grep '^sleep'").stdout
    check(not left, "still there: " + left)
    start = clock.now()
    try:
        a.run("sleep 100", timeout=0.5)
        check(False, "no time-out")
    except TimedOut:
        check(clock.now() - start < 2, "a late time-out")


@needs(device=None)
def case_a_terminal(lab):
    printed = []
    shell = lab.hosts[0].spawn(["sh"], terminal=True, sink=printed.append)
    shell.resize(33, 111)
    shell.write(b"stty size; tty; sleep 100\n")
    time.sleep(0.3)
    shell.write(b"\3exit 5\n")
    check(shell.wait(5) == 5, shell.story())
    said = b"".join(printed).decode()
    check("33 111" in said and "/dev/pts/0" in said, said)


@needs(device=None)
def case_what_programs_expect_of_the_kernel(lab):
    a, _ = lab.hosts
    for what, command in (
            ("user, process and network namespaces", "unshare -Urpfn true"),
            ("control groups for RDMA", "grep -w rdma /sys/fs/cgroup/cgroup.controllers"),
            ("packet filter", "nft add table inet x && nft 'add chain inet x y { type filter hook "
                              "input priority 0; }' && nft add rule inet x y ct state new counter"),
            ("address translation", "nft add table ip n && nft 'add chain ip n p { type nat hook "
                                    "prerouting priority 0; }' && "
                                    "nft add rule ip n p tcp dport 1 redirect to :2"),
            ("traffic control", "tc qdisc add dev vec0 root handle 1: prio && tc filter add dev "
                                "vec0 parent 1: protocol ip u32 match ip dport 4791 0xffff "
                                "flowid 1:3 && tc qdisc del dev vec0 root"),
            ("virtual devices", "ip link add v0 type veth peer name v1 && "
                                "ip link add link vec0 name v2 type macvlan && "
                                "ip link del v2 && ip link del v0"),
            ("socket diagnosis", "ss -tan && ss -xan"),
            ("kTLS", "python3 -c 'import socket as s; l = s.create_server((\"\", 1)); "
                     "c = s.create_connection((\"127.0.0.1\", 1)); "
                     "c.setsockopt(s.IPPROTO_TCP, 31, b\"tls\")'"),
            ("io_uring", "python3 -c 'import ctypes as c; l = c.CDLL(None); "
                         "exit(l.syscall(425, 4, c.create_string_buffer(120)) < 0)'"),
            ("seccomp", "grep -q ^Seccomp /proc/self/status")):
        found = a.run(command)
        check(found.status == 0, "%s: %s" % (what, found))


@needs(device=None)
def case_a_crash_is_noticed(lab):
    a, b = lab.hosts
    waiting = b.spawn("sleep 100")
    b.crash()
    for use in (waiting.wait, lambda: b.run("true")):
        try:
            use()
            check(False, "a dead host answers")
        except TimedOut:
            check(False, "its death is not noticed")
        except LabError:
            pass
    check(a.run("true").status == 0, "the other one is gone too")


def of_lab(folder):
    """Processes of this machine that belong to a lab."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                if folder.encode() in file.read():
                    found.append(int(path.split("/")[2]))
        except OSError:
            pass
    return found


@needs(hosts=0)
def case_nothing_outlives_a_killed_lab(_):
    for victim in ("lab", "keeper", "kernel"):
        lab = subprocess.Popen([sys.executable, "-c", LEFT_ALONE], stdout=subprocess.PIPE)
        try:
            folder = lab.stdout.readline().decode().strip()
            members = sorted(of_lab(folder))
            names = {pid: open("/proc/%d/comm" % pid).read().strip() for pid in members}
            kernels = [pid for pid in members if os.path.basename(kernel()).startswith(names[pid])]
            keepers = [pid for pid in members if names[pid] == "keeper"]
            check(len(keepers) == 1 and len(kernels) >= 6, "its processes: %s" % names)
            os.kill({"lab": lab.pid, "keeper": keepers[0], "kernel": kernels[0]}[victim],
                    signal.SIGKILL)
            if victim == "kernel":
                time.sleep(0.5)
                alone = [pid for pid in of_lab(folder) if os.getpgid(pid) == kernels[0]]
                check(not alone, "the dead guest's processes run on: %s" % alone)
                lab.kill()
            end = clock.now() + 3
            while of_lab(folder) and clock.now() < end:
                time.sleep(0.02)
            check(not of_lab(folder), "%s killed: %s left" % (victim, of_lab(folder)))
        finally:
            lab.kill()
            lab.wait()
        check(not os.path.exists(folder), "left: " + folder)
        left = glob.glob("/dev/shm/vm_file*") + glob.glob("/dev/shm/rsock-lab*")
        check(not left, "left in /dev/shm: %s" % left)


DONTFORK = r"""
import ctypes, mmap, os
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SIZE, FIXED_NOREPLACE = 1 << 20, 0x100000
HOW = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
ours = libc.mmap(None, SIZE, *HOW, -1, 0)
ctypes.memset(ours, 65, SIZE)
assert libc.madvise(ours, SIZE, mmap.MADV_DONTFORK) == 0
if os.fork() == 0:
    theirs = libc.mmap(ours, SIZE, HOW[0], HOW[1] | FIXED_NOREPLACE, -1, 0)
    print(theirs == ours, ctypes.string_at(theirs, 2), flush=True)
    ctypes.memset(theirs, 66, SIZE)
    os._exit(0)
os.wait()
print(ctypes.string_at(ours, 2))
"""


@needs(device=None)
def case_a_child_does_not_reach_what_it_did_not_get(lab):
    """Without kernel.patch it reads and writes its parent's memory."""
    said = lab.hosts[0].run(["/usr/bin/python3", "-c", DONTFORK], check=True).stdout
    check(said == "True b'\\x00\\x00'\nb'AA'\n", said)
