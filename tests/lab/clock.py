# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The time for which this machine ran.

Where it is a virtual machine on a busy host, it may stand still for seconds. What the kernel counts
as stolen from the CPUs does not count for the time-outs of the lab, nor for what it measures.
"""
import os
import time

STEAL = 8  # the column of /proc/stat, in ticks of all CPUs together


def stolen():
    """Seconds since boot, on average of the CPUs."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = int(stat.readline().split()[STEAL])
    return ticks / os.sysconf("SC_CLK_TCK") / os.cpu_count()


def now():
    """Seconds since some moment."""
    return time.monotonic() - stolen()
