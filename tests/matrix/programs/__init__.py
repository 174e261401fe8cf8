# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The programs of the matrix: what each is, how it is run, and which path is expected.

A function decorated by @program gets a Cell (cell.py), starts its servers and runs its clients.
"""
import dataclasses
import importlib
import typing

PROGRAMS = []


@dataclasses.dataclass(frozen=True)
class Program:
    name: str
    package: str  # whose version the table shows; tools/deps.sh has all that are needed
    model: str  # language, how it waits, processes and threads
    load: str  # what the clients do
    function: typing.Callable
    tcp: tuple = ()  # it stays on TCP for one of these reasons of `rsock stat`
    unreached: str = ""  # rsock cannot reach it, and `rsock run` says this
    noise: str = ""  # messages that come and go in plain runs too
    remark: str = ""


def program(name, package, model, load, **more):
    def wrap(function):
        PROGRAMS.append(Program(name, package, model, load, function, **more))
        return function
    return wrap


for _name in ("stores", "web", "proxies", "files", "messages", "tools", "languages"):
    importlib.import_module("programs." + _name)
