#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Takes the times of tests/apps/ask in two ways, in turns, on one host.

    compare.py ROUNDS ONE OTHER    each a command, as a list in JSON

In each round each command is run twice: a process of its own with one connection, and one more
connection of a process that lives through all rounds. Prints one JSON object for each of the two
commands: lists of microseconds, and which processes have answered.
"""
import json
import subprocess
import sys
import time


class Way:
    def __init__(self, command):
        self.command = command
        self.said = {"fresh": [], "more": []}
        self.lives = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      text=True)

    def round(self):
        begin = time.monotonic()
        said = subprocess.run(self.command, input="\n", stdout=subprocess.PIPE, text=True).stdout
        took = round((time.monotonic() - begin) * 1e6)
        self.said["fresh"].append({**json.loads(said), "process": took})
        self.lives.stdin.write("\n")
        self.lives.stdin.flush()
        self.said["more"].append(json.loads(self.lives.stdout.readline()))

    def end(self):
        self.lives.stdin.close()
        self.lives.wait()
        print(json.dumps(self.said), flush=True)


ways = [Way(json.loads(command)) for command in sys.argv[2:4]]
for number in range(int(sys.argv[1])):
    for way in ways[::1 if number % 2 else -1]:
        way.round()
for way in ways:
    way.end()
