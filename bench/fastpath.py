# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The rsock under test: how to run a program with it, and whether its streams are really fast."""
import json
import os
import subprocess

RDMA_BOTH_WAYS = 0x22  # as rsock_fd_path() says it
FAST_SHARE = 0.9  # of the bytes of a process, for the process to count as on the fast path

_command = None


def preload_env(command):
    """({variable: value} that `rsock run` sets, None), or (None, why there is no rsock)."""
    global _command
    if not os.access(command, os.X_OK):
        return None, "build/rsock is not there (run make first)"
    try:
        out = subprocess.run([command, "run", "env", "-0"], capture_output=True, timeout=10,
                             check=True).stdout
    except (subprocess.SubprocessError, OSError) as e:
        said = (getattr(e, "stderr", None) or b"").decode(errors="replace").strip() or str(e)
        return None, f"`build/rsock run env` fails: {said}"
    inside = dict(v.split("=", 1) for v in out.decode().split("\0") if "=" in v)
    env = {k: v for k, v in inside.items() if os.environ.get(k) != v and k != "_"}
    if "LD_PRELOAD" not in env:
        return None, "build/rsock run sets no LD_PRELOAD"
    _command = command
    return env, None


def streams_of(pids):
    """What `rsock stat` says of these processes; None: no answer."""
    try:
        streams = []
        for pid in pids:
            text = subprocess.run([_command, "stat", "--json", str(pid)], capture_output=True,
                                  timeout=5, check=True, text=True).stdout
            streams += [s for s in json.loads(text) if s["pid"] == pid]
        return streams
    except (subprocess.SubprocessError, OSError, ValueError, KeyError):
        return None


def are_fast(pids):
    """Are the streams of these processes on the fast path? None: no stream there, or no answer."""
    streams = streams_of(pids)
    return None if streams is None else _share_is_fast(streams)


def fast_share(streams):
    """The part of the bytes of these streams that was on the fast path; None: there were none."""
    total = sum(s["tx_bytes"] + s["rx_bytes"] for s in streams)
    return sum(s["tx_fast_bytes"] + s["rx_fast_bytes"] for s in streams) / total if total else None


def big_streams(streams):
    """Those that matter: not iperf3's control connection."""
    total = sum(s["tx_bytes"] + s["rx_bytes"] for s in streams)
    return [s for s in streams if s["tx_bytes"] + s["rx_bytes"] > total / 1000]


def _share_is_fast(streams):
    share = fast_share(streams)
    if share is None:
        return None
    # A stream may have left since.
    return share >= FAST_SHARE and all(s["path"] in ("shm", "rdma") for s in big_streams(streams))
