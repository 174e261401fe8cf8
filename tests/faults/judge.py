# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Was anything lost? What both ends of a run say, and what a killed one had noted before it died."""
import json
import struct

ENTRY = struct.Struct("qqq")  # struct progress of tests/apps/stream.c
GOOD, TOO_EARLY = 1, 2        # its `end`; 0: not yet, negative: -errno
LOST = 3                      # stream's exit status when it lost the other end and all else was right


def entries(data):
    return list(ENTRY.iter_unpack(data))


def report(text):
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else None


def judge(plan, status, said, progress):
    """What is wrong with a run, or None. All by end: exit status, report, entries of --progress."""
    if not plan.killed():
        for end in status:
            if status[end] != 0 or not said[end] or not said[end]["ok"]:
                return "the %s: status %s, %s" % (end, status[end], said[end])
        for one, other in (("client", "server"), ("server", "client")):
            if said[one]["tx_hash"] != said[other]["rx_hash"]:
                return "the %s sent other bytes than the other end received" % one
        return None
    for end, other in (("client", "server"), ("server", "client")):
        if end in plan.killed():
            if status[end] not in (0, -9, 137, LOST):
                return "the %s, which was killed: status %s, %s" % (end, status[end], said[end])
            continue
        if status[end] not in (0, LOST):
            return "the %s: status %s, %s" % (end, status[end], said[end])
        if other not in plan.killed():
            continue
        for n, (ours, theirs) in enumerate(zip(progress[end], progress[other])):
            if ours[2] == TOO_EARLY and ours[1] < theirs[0]:
                return ("a silent cut: connection %d of the %s had an end of file after %d bytes, %d "
                        "were sent" % (n, end, ours[1], theirs[0]))
            if ours[1] > theirs[0] + (1 << 16):
                return "connection %d of the %s has %d bytes, %d were sent" % (n, end, ours[1], theirs[0])
    return None


def fast_share(said):
    """How much of what was received came by the fast path; None: nobody lived to tell."""
    told = [s for s in said.values() if s]
    total = sum(s["rx"] for s in told)
    return sum(s["rx_fast"] for s in told) / total if total else None
