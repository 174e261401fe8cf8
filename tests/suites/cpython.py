#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Runs CPython's own tests of one module, and tells the outcome of each the moment it is known.

    cpython.py [--match REGEX] [--without REGEX] [--only FILE] [--network] [--seconds N] MODULE RESULTS

Appends lines to the file RESULTS: first "has ID" for each, then "start ID" and "OUTCOME ID", where
OUTCOME is ok, skip, expected (a failure that was expected) or bad. The rest (tracebacks) goes to stderr.
A test that takes more than N seconds ends the process, with the stacks of all its threads. --match and
--without pick tests by their id; --only: no tests but those of the file, an id a line. --network: tests
that say they need a network, but use loopback only.
"""
import argparse
import faulthandler
import os
import random
import re
import signal
import sys
import unittest

RESULTS = None  # the path: no descriptor, for some tests count theirs
# What the tests may use beside CPU time: no network, no sound, no display.
RESOURCES = ["cpu", "subprocess", "walltime", "largefile"]


def say(outcome, test):
    fd = os.open(RESULTS, os.O_WRONLY | os.O_APPEND)
    os.write(fd, ("%s %s\n" % (outcome, " ".join(test.id().split()))).encode())
    os.close(fd)


class Result(unittest.TextTestResult):
    """Of subtests one that fails is enough. setUpClass and its like are told when they fail."""
    seconds = None

    def startTest(self, test):
        super().startTest(test)
        say("start", test)
        self.outcome = "ok"
        faulthandler.dump_traceback_later(self.seconds, exit=True)

    def stopTest(self, test):
        faulthandler.cancel_dump_traceback_later()
        say(self.outcome, test)
        super().stopTest(test)
        self.outcome = None

    outcome = None

    def bad(self, test):
        if self.outcome:
            self.outcome = "bad"
        else:
            say("bad", test)

    def addError(self, test, err):
        super().addError(test, err)
        self.bad(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.bad(test)

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err:
            self.bad(test)

    def addUnexpectedSuccess(self, test):
        super().addUnexpectedSuccess(test)
        self.bad(test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        if self.outcome == "ok":
            self.outcome = "skip"
        elif not self.outcome:
            say("skip", test)

    def addExpectedFailure(self, test, err):
        super().addExpectedFailure(test, err)
        self.outcome = "expected"


def each(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from each(test)
        else:
            yield test


def pick(suite, wanted):
    """The suite with those tests only. A class stays together, so that it is set up once."""
    return unittest.TestSuite(test for test in each(suite) if wanted(test.id()))


def main():
    global RESULTS
    parser = argparse.ArgumentParser()
    parser.add_argument("--match", default="")
    parser.add_argument("--without", default="(?!)")
    parser.add_argument("--only")
    parser.add_argument("--network", action="store_true", help="tests that want it, if only loopback")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("module")
    parser.add_argument("results")
    args = parser.parse_args()
    RESULTS = os.path.abspath(args.results)
    Result.seconds = args.seconds
    sys.path.pop(0)

    from test import support
    support.use_resources = RESOURCES + ["network"] * args.network
    support.verbose = False
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` may have it ignored
    random.seed(1)
    suite = unittest.defaultTestLoader.loadTestsFromName("test." + args.module)
    suite = pick(suite, lambda test: re.search(args.match, test)
                 and not re.search(args.without, test))
    if args.only:
        with open(args.only) as file:
            ids = set(file.read().split("\n"))
        suite = pick(suite, ids.__contains__)
    for test in each(suite):
        say("has", test)
    runner = unittest.TextTestRunner(stream=sys.stderr, verbosity=0, resultclass=Result, buffer=False)
    # Modules that are their own test_main() only (none of ours is) would have no test here.
    result = runner.run(suite)
    sys.exit(0 if result.testsRun else 1)


if __name__ == "__main__":
    main()
