# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Runs test functions, each within its time, and prints TAP."""
import signal
import subprocess
import sys
import time


class Failed(Exception):
    pass


def check(cond, what):
    if not cond:
        raise Failed(what)


class TimedOut(Exception):
    pass


def on_alarm(_sig, _frame):
    raise TimedOut("the test took too long")


def run_tests(tests, after, verbose=False):
    """tests: (name, ..., function, seconds); after() is called at the end of each. An exit status."""
    count = failed = 0
    print("TAP version 13")
    signal.signal(signal.SIGALRM, on_alarm)
    for name, *_, fn, seconds in tests:
        count += 1
        start = time.monotonic()
        why = None
        signal.alarm(seconds)
        try:
            fn()
        except (Failed, TimedOut, OSError, ValueError, KeyError, subprocess.SubprocessError) as e:
            why = "%s%s" % ("" if isinstance(e, Failed) else type(e).__name__ + ": ", e)
        finally:
            signal.alarm(0)
            after()
        print("%s %d - %s" % ("not ok" if why else "ok", count, name))
        if why:
            failed += 1
            for line in why.splitlines():
                print("#   " + line[:1500])
        if verbose:
            print("#   %.2f s" % (time.monotonic() - start))
        sys.stdout.flush()
    print("1..%d" % count)
    print("# %d of %d passed" % (count - failed, count))
    return 1 if failed else 0
