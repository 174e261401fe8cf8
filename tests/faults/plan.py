# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a run of the fault campaign does: a checked transfer and what strikes it, all from a seed."""
import random
from typing import NamedTuple

TOTAL = 64 << 20  # bytes of a run, at least, both directions of all connections

MODES = ("threads", "epoll", "poll", "select")
SENDS = ("send", "write", "writev", "sendmsg", "sendfile", "mixed")
RECVS = ("recv", "read", "readv", "waitall", "peek", "mixed")
ENDS = ("client", "server")

# What strikes one process, wherever it runs. Weights.
EVERYWHERE = {"stop": 4, "kill": 2, "descriptors": 2, "memory": 2, "forks": 3}
# What strikes the path between two hosts, or a host.
BETWEEN = {"block": 8, "flap": 3, "loss": 4, "delay": 1, "delete": 3}


class Fault(NamedTuple):
    at: float       # seconds after both ends have their connections
    what: str
    end: str        # whom it strikes
    seconds: float  # then it is over
    much: float     # how much: percent, milliseconds, what is left

    def __str__(self):
        return "at %.3f s: %s of the %s, for %.3f s (%g)" % (
            self.at, self.what, self.end, self.seconds, self.much)


class Plan(NamedTuple):
    seed: int
    options: dict   # of either end, for tests/apps/stream
    shared: list    # of both
    faults: list

    def __str__(self):
        lines = ["seed %d" % self.seed]
        lines += ["%s: stream %s" % (end, " ".join(map(str, self.command(end)))) for end in ENDS]
        return "\n".join(lines + [str(f) for f in self.faults])

    def command(self, end):
        return [end, *self.shared, *self.options[end]]

    def killed(self):
        return {f.end for f in self.faults if f.what == "kill"}

    def only(self, *what):
        return bool(self.faults) and all(f.what in what for f in self.faults)


def much_of(rng, what):
    if what == "loss":
        return round(10 ** rng.uniform(-1, 2), 2)  # 0.1 to 100 %
    if what == "delay":
        return rng.choice((1, 5, 20))
    if what == "descriptors":
        return rng.randrange(0, 4)
    if what == "memory":
        return rng.randrange(0, 4 << 20)
    return 0


def seconds_of(rng, what):
    if what in ("block", "loss"):
        return rng.choice((rng.uniform(0.01, 0.4), rng.uniform(0.4, 4)))
    if what == "flap":
        return rng.uniform(0.5, 3)
    if what == "delete":
        return rng.uniform(0.1, 1)
    return rng.uniform(0.01, 0.8)


def make(seed, hosts):
    """The plan of a seed; hosts: between two hosts, or within this one."""
    rng = random.Random("faults %d %s" % (seed, hosts))
    conns = rng.choice((2, 3, 4, 8, 16, 32))
    each = -(-TOTAL // (2 * conns))
    weights = dict(EVERYWHERE, **(BETWEEN if hosts else {}))
    kinds = rng.choices(list(weights), list(weights.values()), k=rng.choice((1, 1, 2, 3)))
    # Blocking means one connection after the other, and at both ends. A process that gets no memory or
    # descriptors must have all its own by then, and who was killed makes no more connections.
    blocking = not set(kinds) & {"descriptors", "memory", "kill"} and rng.random() < 0.2
    shared = ["--bytes", each, "--conns", conns, "--seed", rng.randrange(1 << 30)]
    if rng.random() < 0.3:
        shared.append("--halfclose")
    shared.append("--warm")
    options, faults = {}, []
    for end in ENDS:
        mode = "blocking" if blocking else rng.choice(MODES)
        options[end] = ["--mode", mode, "--send", rng.choice(SENDS), "--recv", rng.choice(RECVS)]
        if rng.random() < 0.5:
            options[end] += ["--chunk", rng.choice((1000, 4096, 65536))]
        if rng.random() < 0.3:
            options[end].append("--nonblock")
    for what in kinds:
        end = rng.choice(ENDS)
        if what == "forks":
            options[end] += ["--forks", rng.randrange(1, 20)]
            continue
        for _ in range(1 if what in ("kill", "delete") else rng.randrange(1, 4)):
            faults.append(Fault(rng.uniform(0, 1.0 if hosts else 0.4), what, end,
                                seconds_of(rng, what), much_of(rng, what)))
    return Plan(seed, options, shared, sorted(faults))
