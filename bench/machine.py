# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The machine: which two CPUs to use, what to write beside the figures, where to put files."""
import contextlib
import datetime
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile


def _cpu_file(cpu, name):
    try:
        return pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/{name}").read_text().strip()
    except OSError:
        return ""


def two_cpus():
    """Two CPUs of different cores, in one package where there is a choice; or one."""
    cpus = sorted(os.sched_getaffinity(0))
    first = cpus[0]
    siblings = _cpu_file(first, "topology/thread_siblings_list")
    others = [c for c in cpus[1:]
              if not siblings or _cpu_file(c, "topology/thread_siblings_list") != siblings]
    package = _cpu_file(first, "topology/physical_package_id")
    near = [c for c in others if _cpu_file(c, "topology/physical_package_id") == package]
    return [first] + (near or others or cpus[1:])[:1]


def _first_line(*argv):
    try:
        p = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = (p.stdout + p.stderr).strip().splitlines()
    return lines[0] if p.returncode == 0 and lines else None


def _model():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def describe(build, cpus):
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _model(),
        "cpus": os.cpu_count(),
        "cpus_used": cpus,
        "virtual": " hypervisor" in pathlib.Path("/proc/cpuinfo").read_text(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load_before": list(os.getloadavg()),
        "commit": _first_line("git", "-C", build.parent, "describe", "--always", "--dirty"),
        "redis": _first_line("redis-server", "--version"),
        "iperf3": _first_line("iperf3", "--version"),
        "nginx": _first_line("nginx", "-v"),
    }


@contextlib.contextmanager
def temp_dir():
    """A directory that other users may enter: nginx's worker is one."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="rsock-bench-"))
    try:
        path.chmod(0o755)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
