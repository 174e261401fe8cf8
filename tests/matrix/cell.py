# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One program in one pairing: its servers and clients, what they said, and the path of their bytes."""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading

from children import RSOCK, Child, free_port, must_be_gone, sides, tool, tree, wait_port
from tap import check

HOST = "127.0.0.1"
# Of a connection with a peer without rsock; the latter may hide the former.
STARTING, ENDING = {"starting", "peer-plain"}, {"closing", "peer-closed"}
# What the program itself may do to it, whoever the peer is.
OWN = {"option", "call", "forked", "exec", "passed"}


class Watch(threading.Thread):
    """Asks `rsock stat --json` again and again about our children's connections on some ports."""

    PERIOD = 0.02

    def __init__(self, ports):
        super().__init__(daemon=True)
        self.ports, self.seen, self.wrong = ports, {}, None
        self.over = threading.Event()
        self.start()

    def look(self):
        # It fails for those that are not under rsock, or have ended, and answers for the others.
        said = subprocess.run([RSOCK, "stat", "--json", *map(str, tree(os.getpid()))],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10,
                              check=False)
        for row in json.loads(said.stdout):
            ends = [row[end].rsplit(":", 1)[-1] for end in ("local", "peer")]
            if any(int(e) in self.ports for e in ends if e):
                self.seen[row["pid"], row["fd"], row["local"], row["peer"]] = row

    def run(self):
        while not self.over.wait(self.PERIOD):
            try:
                self.look()
            except subprocess.TimeoutExpired:
                pass  # a busy machine; the next look sees as much
            except (OSError, ValueError, subprocess.SubprocessError) as e:
                self.wrong = "rsock stat: %s" % e

    def stop(self):
        self.over.set()
        self.join()
        check(self.wrong is None, self.wrong)
        return list(self.seen.values())


class Cell:
    """What a program's function gets: it starts servers and runs clients."""

    def __init__(self, pairing, tmp, shared):
        self.pairing, self.tmp, self.shared = pairing, tmp, shared
        self.server_rsock, self.client_rsock = sides(pairing)
        self.ports, self.servers = [], []
        self.output = []  # what must be the same in every pairing
        self.messages = set()  # lines that are met in some order: none that plain/plain has not
        self.unreached = set()  # what `rsock run` said of programs that it cannot reach
        self.watch = Watch(self.ports)

    # ---- what they work on

    def port(self):
        self.ports.append(free_port())
        return self.ports[-1]

    def file(self, name, text, mode=0o644):
        path = os.path.join(self.tmp, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, mode)
        return path

    def blob(self, name, size):
        """A file of so many random bytes, the same in every pairing."""
        path = self.file(name, "")
        with open(path, "wb") as f:
            f.write(random.Random(size).randbytes(size))
        return path

    def folder(self, name, owner=None):
        path = os.path.join(self.tmp, name)
        os.makedirs(path)
        if owner:
            os.chmod(path, 0o700)
            subprocess.run(["chown", owner, path], check=True)
        return path

    def copy_of(self, name, owner, make):
        """A copy of a folder that make(path) fills once for all cells."""
        path = os.path.join(self.shared, name)
        if not os.path.exists(path):
            made = self.folder(name + ".new", owner)
            make(made)
            shutil.move(made, path)
        subprocess.run(["cp", "-a", path, self.tmp], check=True)
        return os.path.join(self.tmp, name)

    def prepare(self, cmd, seconds=60, prefix=()):
        """A program that is neither end."""
        return self.start(cmd, False, prefix=prefix).good(seconds)

    # ---- what they say

    def normal(self, text):
        text = text.replace(self.tmp, "TMP")
        for i, port in enumerate(self.ports):
            text = re.sub(r"(?<!\d)%d(?!\d)" % port, "PORT%d" % i, text)
        return text

    def note(self, text):
        """Messages, whose order and numbers do not matter."""
        for line in self.normal(text).splitlines():
            if line.startswith("rsock: "):
                self.unreached.add(line)
            elif line.strip():
                self.messages.add(re.sub(r"0x[0-9a-f]+|\d+", "N", line))

    # ---- the two ends

    def start(self, cmd, rsock, env=None, **how):
        return Child([tool(cmd[0])] + list(cmd[1:]), rsock=rsock, cwd=self.tmp,
                     session=True, env={"HOME": self.tmp, **(env or {})}, **how)

    def server(self, cmd, port=None, stop=signal.SIGTERM, once=False, quiet=False, beside=False,
               **how):
        """Starts a server and waits for its port.

        stop: the signal that ends it; once: it ends by itself, and its output counts; quiet: what
        it prints does not count; beside: behind a proxy, it runs as the client does.
        """
        s = self.start(cmd, self.client_rsock if beside else self.server_rsock, **how)
        self.servers.append((s, stop, once, quiet))
        if port:
            wait_port(port, s, 20)
        return s

    def begin(self, cmd, **how):
        """A client that runs on; finish() ends it."""
        return self.start(cmd, self.client_rsock, **how)

    def finish(self, child, seconds=60, keep=None, drop=None, digest=False, status=0):
        """keep, drop: of the output, only (all but) what matches counts; digest: binary."""
        rc = child.wait(seconds)
        check(rc == status, "%s: %s" % (" ".join(child.cmd), child.story()))
        if digest:
            text = hashlib.sha256(child.data()).hexdigest()
        elif keep:
            text = "\n".join(m.group(0) for m in re.finditer(keep, child.text(), re.M))
        else:
            text = re.sub(drop, "", child.text(), flags=re.M) if drop else child.text()
        self.output.append("%s: %s" % (child.name, self.normal(text)))
        self.note(child.text("err"))
        return child.text()

    def client(self, cmd, stdin=None, env=None, **how):
        """Runs a client to its end; its output."""
        source = open(stdin, "rb") if stdin else None
        try:
            return self.finish(self.begin(cmd, stdin=source, env=env), **how)
        finally:
            if source:
                source.close()

    def end(self):
        """Ends the servers, the last first; nothing of them may stay."""
        for s, stop, once, quiet in reversed(self.servers):
            if once:
                s.wait(30)
            else:
                s.end(stop, 15)
            self.output.append("%s: status %d" % (s.name, s.p.returncode))
            if quiet:
                self.note("".join(re.findall("^rsock: .*\n", s.text("err"), re.M)))
                continue
            self.note(s.text("err"))
            if once:
                self.output.append("%s: %s" % (s.name, hashlib.sha256(s.data()).hexdigest()))
            else:
                self.note(s.text())
        self.rows = self.watch.stop()
        for port in self.ports:
            must_be_gone(port)

    # ---- the path

    def must_be(self, program):
        """Checks the path; (its word, the reasons why it is TCP)."""
        both, either = self.server_rsock and self.client_rsock, self.server_rsock or self.client_rsock
        total = sum(r["tx_bytes"] + r["rx_bytes"] for r in self.rows)
        fast = sum(r["tx_fast_bytes"] + r["rx_fast_bytes"] for r in self.rows)
        paths, reasons = ({r[key] for r in self.rows} - {""} for key in ("path", "reason"))
        said = "%d connections seen, %d of %d bytes fast, paths %s, reasons %s" % (
            len(self.rows), fast, total, sorted(paths), sorted(reasons))
        mute = [r for r in self.rows if r["path"] == "tcp" and not r["reason"]]
        check(not mute, "on TCP without a reason: %s" % mute[:3])
        if not either:
            check(not self.rows, "rsock knows connections of plain programs: " + said)
            return "tcp", set()
        if program.unreached:
            check(any(program.unreached in line for line in self.unreached),
                  "`rsock run` did not say that it %s: %s" % (program.unreached, self.unreached))
        else:
            check(not self.unreached, "on stderr: %s" % self.unreached)
            # A process that inherits a plain connection has no row for it.
            check(self.rows or (program.tcp and not both), "no connection was seen")
        if both and program.tcp:
            check(not fast or fast * 2 < total, "it is on shared memory, against the table: " + said)
            check(reasons & set(program.tcp), "not the reason of the table: " + said)
            return "tcp", reasons & set(program.tcp)
        if both and not program.unreached:
            check(fast * 2 >= total > 0, "mostly not on shared memory: " + said)
            return "shm", set()
        check(fast == 0 and paths <= {"tcp"}, "left TCP with a peer without rsock: " + said)
        check(reasons <= STARTING | ENDING | OWN | set(program.tcp), "unexpected reasons: " + said)
        return "tcp", reasons - ENDING or reasons
