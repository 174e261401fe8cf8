# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Random programs of several processes, and the model that keeps them to what the kernel determines.

A program is a list of steps, each a tuple (process, operation, arguments...), done one after the other.
World.apply() checks a step against the model of what has happened so far: it raises Invalid when the
step makes no sense there, or when the kernel is free in its answer, and else returns what to tell the
process. So a program from which steps were taken is made whole by leaving out what became invalid.

What rsock is known to do otherwise (README, "Limits"; KNOWN of tests/conformance/run) is Invalid too,
each marked "known:" here.
"""
import copy
import random
import zlib

SMALL = 40000   # bytes that are in the receiver's queue once they were sent, whatever its buffer
CAPACITY = 250000   # bytes that a connection takes with nobody reading
IN, OUT, ERR, HUP, RDHUP = 0x1, 0x4, 0x8, 0x10, 0x2000


class Invalid(Exception):
    """The step makes no sense here, or the kernel does not determine what it shows."""


def need(condition, why="not now"):
    if not condition:
        raise Invalid(why)


class Listener:
    def __init__(self, family):
        self.family, self.refs, self.backlog, self.port = family, 0, [], None
        self.tcp = False

    def ended(self):
        for end in self.backlog:
            end.vanish()


class End:
    """One end of a connection: an open file description, as the kernel has it."""

    tcp = True

    def __init__(self):
        self.peer = None
        self.refs = 0
        self.unread = 0         # bytes sent to it and not received
        self.fin = False        # the peer sends no more
        self.reset = False
        self.wr_shut = self.rd_shut = False
        self.linger0 = self.nonblock = False
        self.open = True
        self.seen = True        # by a process that rsock reaches, and by one process at a time
        self.plain = False      # one end has never been with a process that rsock reaches

    def done(self):
        """Nothing more can come."""
        return self.fin or self.reset

    def vanish(self):
        """A connection that was not accepted when its listener ended."""
        self.open = False
        if self.peer.open:
            need(self.unread <= SMALL and self.peer.unread <= SMALL)
            self.peer.reset = True

    def ended(self):
        """The last descriptor was closed."""
        other = self.peer
        rst = self.unread > 0 or self.linger0
        # What is not yet in the other's queue may or may not be lost by a reset.
        need(not rst or other.unread <= SMALL, "reset")
        self.open = False
        if not other.open:
            return
        if rst and not (self.wr_shut and other.wr_shut):
            other.reset = True
        elif not self.reset:
            other.fin = True

    def events(self):
        e = 0
        if self.unread or self.done() or self.rd_shut:
            e |= IN
        if self.done() or self.rd_shut:
            e |= RDHUP
        if self.reset or (self.wr_shut and (self.fin or self.rd_shut)):
            e |= HUP
        return e | OUT


class Process:
    def __init__(self, name, kind, parent=None):
        self.name, self.kind, self.parent = name, kind, parent
        self.slots = {}         # slot: [Listener or End, close-on-exec]
        self.mail = []          # ends that were passed to it
        self.alive = True
        self.waits = None       # the step of a call that waits
        self.children = []      # not waited for
        self.next_slot = 10
        self.low = False        # 0, 1 or 2 was closed: a slot may be there, where popen() has its pipe

    @property
    def hooked(self):
        return self.kind == "self"


class World:
    def __init__(self):
        self.processes = {}
        self.ends = []

    # ---- what a step needs ----

    def process(self, name):
        p = self.processes.get(name)
        need(p and p.alive and not p.waits)
        return p

    def live(self):
        return [p for p in self.processes.values() if p.alive]

    def end(self, p, slot):
        need(slot in p.slots and p.slots[slot][0].tcp)
        return p.slots[slot][0]

    def idle_end(self, p, slot):
        """One that no other process waits for."""
        e = self.end(p, slot)
        need(not self.waiter(e))
        return e

    def waiter(self, e):
        for q in self.live():
            if q.waits and q.waits[1] in ("recv", "sleep") and q.slots[q.waits[2]][0] is e:
                return q
        return None

    def fresh(self, p, slot):
        need(slot not in p.slots and 0 <= slot < 1000)

    def holders(self, e):
        return [p for p in self.live() for s in p.slots.values() if s[0] is e]

    # ---- references ----

    def add(self, p, slot, what, cloexec=False):
        old = p.slots.get(slot)
        what.refs += 1
        p.slots[slot] = [what, bool(cloexec)]
        p.next_slot = max(p.next_slot, slot + 1)
        if old:
            self.drop(old[0])

    def remove(self, p, slot):
        self.drop(p.slots.pop(slot)[0])

    def drop(self, what):
        what.refs -= 1
        if what.refs == 0:
            what.ended()

    def handed(self, ends):
        """Another process, or program, gets them."""
        for e in ends:
            if not e.tcp:
                continue
            # known: what is left in the ring of a peer that has ended does not follow the descriptor
            need(not (e.unread and e.fin), "known: passed after the end")
            # known: rsock has taken the kernel's error, and a new one is another
            need(not e.reset or e.plain, "known: passed after a reset")
            need(not self.waiter(e))
            e.seen = e.peer.seen = False

    def dies(self, p, killed):
        p.alive = False
        p.waits = None
        for slot in list(p.slots):
            self.remove(p, slot)
        for what in p.mail:
            self.drop(what)
        for q in self.processes.values():
            if q.parent == p.name:
                q.parent = None

    def new_process(self, name, kind, parent):
        need(name not in self.processes)
        q = Process(name, kind, parent and parent.name)
        self.processes[name] = q
        if parent:
            parent.children.append(name)
        return q

    # ---- steps ----

    def apply(self, step):
        """[(process, command words)] for the player. Raises Invalid; the world is then unusable."""
        name, op, *a = step
        if op == "start":
            self.new_process(name, a[0], None)
            return []
        if op == "killed":
            p = self.processes.get(name)
            need(p and p.alive)
            if p.waits and p.waits[1] == "recv":
                need(self.end(p, p.waits[2]).unread == 0)
            self.dies(p, True)
            return []
        if op == "await":
            p = self.processes.get(name)
            need(p and p.alive and p.waits)
            waits, p.waits = p.waits, None
            return self.apply(waits) and []
        if op == "begin":
            return self.begin(self.process(name), name, a)
        return [(name, (op,) + getattr(self, "do_" + op)(self.process(name), *a))]

    def begin(self, p, name, a):
        """A call that waits: it shows what it did when it is awaited."""
        op, *rest = a
        if op == "recv":
            e = self.idle_end(p, rest[0])
            need(e.unread == 0 and not e.done() and not e.rd_shut and rest[1] > 0)
        elif op == "sleep":
            e = self.idle_end(p, rest[0])
            need(not e.events() & ~OUT)
        elif op == "accept":
            need(rest[1] in p.slots and not p.slots[rest[1]][0].tcp)
            need(not p.slots[rest[1]][0].backlog)
            self.fresh(p, rest[0])
            need(not any(q.waits and q.waits[1] == "accept" for q in self.live()))
        else:
            raise Invalid
        p.waits = (name, op, *rest)
        return [(name, (op,) + tuple(rest))]

    def do_listen(self, p, slot, family, cloexec):
        self.fresh(p, slot)
        self.add(p, slot, Listener(family), cloexec)
        return slot, family, cloexec

    def do_connect(self, p, slot, owner, listener, nonblock, cloexec):
        """To a listener that `owner` has."""
        self.fresh(p, slot)
        q = self.processes.get(owner)
        need(q and q.alive and listener in q.slots and not q.slots[listener][0].tcp)
        to = q.slots[listener][0]
        a, b = End(), End()
        a.peer, b.peer = b, a
        a.nonblock = bool(nonblock)
        a.seen = b.seen = p.hooked
        a.plain = b.plain = not p.hooked
        self.ends += [a, b]
        to.backlog.append(b)
        self.add(p, slot, a, cloexec)
        return slot, to, to.family, nonblock, cloexec

    def do_accept(self, p, slot, listener, cloexec):
        self.fresh(p, slot)
        need(listener in p.slots and not p.slots[listener][0].tcp)
        need(p.slots[listener][0].backlog)
        need(not any(q.waits and q.waits[1] == "accept" for q in self.live()))
        e = p.slots[listener][0].backlog.pop(0)
        self.add(p, slot, e, cloexec)
        if not p.hooked:
            e.seen = e.peer.seen = False
            e.plain = e.peer.plain = True
        return slot, listener, cloexec

    def do_send(self, p, slot, n, seed, how):
        e = self.idle_end(p, slot)
        gone = False
        need(n > 0)
        if e.wr_shut or e.reset:
            need(n <= SMALL)
        elif not e.peer.open:
            need(n <= 5000)
            gone = e.reset = True
        elif e.peer.rd_shut and e.peer.wr_shut:
            # what comes after SHUT_RDWR is answered by RST
            need(n <= 5000 and e.unread <= SMALL and e.peer.unread <= SMALL)
            gone = e.reset = e.peer.reset = True
        else:
            need(e.peer.unread + n <= CAPACITY)
            w = self.waiter(e.peer)
            # what is beyond the waiting call's share waits for the next one
            need(not w or w.waits[1] != "recv" or e.peer.unread + n <= w.waits[3])
            e.peer.unread += n
        return slot, n, seed, how, int(gone)

    def do_recv(self, p, slot, n, how):
        e = self.idle_end(p, slot)
        need(n > 0 and (e.unread >= n or e.done() or e.rd_shut))
        # after shutdown(SHUT_RD) the end is told at once, whatever is on its way
        need(not e.rd_shut or e.unread <= SMALL)
        e.unread -= min(n, e.unread)
        return slot, n, how

    def do_recvnb(self, p, slot, n):
        e = self.idle_end(p, slot)
        need(e.unread <= SMALL and n > 0)
        want = e.unread
        e.unread -= min(n, e.unread)
        return slot, n, want, int(e.done())

    def do_peek(self, p, slot, n):
        e = self.idle_end(p, slot)
        need(e.unread <= SMALL and n > 0)
        return slot, n, e.unread, int(e.done())

    def do_poll(self, p, slot, by_epoll):
        e = self.idle_end(p, slot)
        mask = IN | RDHUP
        if e.peer.unread <= SMALL:
            mask |= OUT
        return slot, mask, e.events() & (mask | HUP), by_epoll

    def do_sleep(self, p, slot, by_epoll):
        e = self.idle_end(p, slot)
        need(e.events() & ~OUT)
        return slot, by_epoll

    def do_soerror(self, p, slot):
        self.idle_end(p, slot)
        return (slot,)

    def do_warm(self, p, slot, other, slot2):
        """Bytes there and back, until the connection is fast: play.py knows how."""
        e = self.idle_end(p, slot)
        q = self.process(other)
        f = self.idle_end(q, slot2)
        need(f is e.peer)
        for x in (e, f):
            need(not x.unread and not x.done() and not x.wr_shut and not x.rd_shut)
            need(not x.nonblock)
        alone = all(len(self.holders(x)) == x.refs == 1 for x in (e, f))
        return slot, slot2, int(alone and e.seen and f.seen and p.hooked and q.hooked)

    def do_shut(self, p, slot, how):
        e = self.idle_end(p, slot)
        if how == 0 or how == 2:
            # what comes after it the kernel takes, but says end of file in between
            e.rd_shut = e.rd_shut or not e.reset
        if how == 1 or how == 2:
            if not e.reset and not e.wr_shut:
                e.wr_shut = True
                if e.peer.open:
                    e.peer.fin = True
        return slot, how

    def do_linger0(self, p, slot):
        e = self.idle_end(p, slot)
        e.linger0 = True
        return (slot,)

    def do_nonblock(self, p, slot, on, by_ioctl):
        self.idle_end(p, slot).nonblock = bool(on)
        return slot, on, by_ioctl

    def do_cloexec(self, p, slot, on):
        need(slot in p.slots)
        p.slots[slot][1] = bool(on)
        return slot, on

    def do_dup(self, p, slot, to, how):
        self.fresh(p, to)
        self.add(p, to, self.idle_end(p, slot), how == 2)
        return slot, to, how

    def do_onto(self, p, slot, to, cloexec):
        e = self.idle_end(p, slot)
        need(to in p.slots and to != slot)
        if p.slots[to][0].tcp:
            self.idle_end(p, to)
        self.add(p, to, e, cloexec)
        return slot, to, cloexec

    def do_inetd(self, p, slot):
        """On 0, 1 and 2, as inetd does."""
        e = self.idle_end(p, slot)
        need(slot > 2)
        self.handed([e])
        for i in range(3):
            self.add(p, i, e)
        return (slot,)

    def do_close(self, p, slot, by_range):
        need(slot in p.slots)
        if p.slots[slot][0].tcp:
            self.idle_end(p, slot)
        self.remove(p, slot)
        p.low |= slot < 3
        return slot, by_range

    def do_closeall(self, p, by_range):
        for slot in [s for s in p.slots if s > 2]:
            self.remove(p, slot)
        return (by_range,)

    # ---- processes ----

    def inherited(self, p):
        return [w[0] for w in p.slots.values() if not w[1]]

    def do_fork(self, p, new, how):
        self.handed([w[0] for w in p.slots.values()])
        q = self.new_process(new, p.kind, p)
        q.next_slot, q.low = p.next_slot, p.low
        for slot, (what, cloexec) in p.slots.items():
            self.add(q, slot, what, cloexec)
        if how == "daemon":
            p.children.remove(new)
            q.parent = None
        return new, how

    def start_child(self, p, new, kind, inetd):
        if inetd >= 0:
            need(inetd > 2)
            self.handed([self.end(p, inetd)])
        self.handed([w[0] for w in p.slots.values()] if inetd >= 0 else self.inherited(p))
        q = self.new_process(new, kind, p)
        q.low = p.low
        for slot, (what, cloexec) in p.slots.items():
            if not cloexec and not (inetd >= 0 and slot < 3):
                self.add(q, slot, what)
        for i in range(3 if inetd >= 0 else 0):
            self.add(q, i, p.slots[inetd][0])
        return new, kind, inetd

    def do_vfork(self, p, new, kind, inetd):
        return self.start_child(p, new, kind, inetd)

    def do_spawn(self, p, new, kind, inetd):
        return self.start_child(p, new, kind, inetd)

    def do_exec(self, p, kind):
        self.handed(self.inherited(p))
        for slot in [s for s, w in p.slots.items() if w[1]]:
            self.remove(p, slot)
        for what in p.mail:
            self.drop(what)
        p.mail = []
        p.kind = kind
        return (kind,)

    def do_badexec(self, p):
        self.handed(self.inherited(p))
        return ()

    def do_wait(self, p, child):
        need(child in p.children and not self.processes[child].alive)
        p.children.remove(child)
        return (child,)

    def do_system(self, p, slot, text, by_popen):
        e = self.idle_end(p, slot)
        need(not p.slots[slot][1] and not e.nonblock and slot > 2 and not p.low)
        need(e.peer.open and not e.wr_shut and not e.reset)
        need(e.peer.unread + len(text) <= CAPACITY)
        need(not self.waiter(e.peer))
        self.handed(self.inherited(p))
        e.peer.unread += len(text)
        return slot, text, by_popen

    def do_popen(self, p, slot, n):
        e = self.idle_end(p, slot)
        need(not p.slots[slot][1] and not e.nonblock and slot > 2 and not p.low)
        need(0 < n <= min(e.unread, 4000))
        self.handed(self.inherited(p))
        e.unread -= n
        return slot, n

    def do_pass(self, p, slot, to, by_mmsg):
        e = self.idle_end(p, slot)
        q = self.processes.get(to)
        need(q and q.alive)
        self.handed([e])
        e.refs += 1
        q.mail.append(e)
        return slot, to, by_mmsg

    def do_take(self, p, slot, by_mmsg, cloexec):
        self.fresh(p, slot)
        need(p.mail)
        e = p.mail.pop(0)
        self.add(p, slot, e, cloexec)
        e.refs -= 1
        return slot, by_mmsg, cloexec

    def do_getfd(self, p, slot, owner, theirs, cloexec):
        self.fresh(p, slot)
        q = self.process(owner)
        need(q is not p)
        e = self.idle_end(q, theirs)
        # known: who takes a descriptor of a fast connection does so without its owner
        need(e.plain, "known: pidfd_getfd")
        self.handed([e])
        self.add(p, slot, e, cloexec)
        return slot, owner, theirs, cloexec

    def do_kill(self, p, victim, sig):
        q = self.processes.get(victim)
        need(q and q.alive and q is not p)
        if q.waits and q.waits[1] == "recv":
            need(self.end(q, q.waits[2]).unread == 0)
        self.dies(q, True)
        return victim, sig

    def ends_by(self, p, code):
        self.dies(p, False)
        return (code,)

    do_exit = do__exit = do_quick_exit = do_return = ends_by


def sane(steps):
    """The steps without those that do not fit any more."""
    world, out = World(), []
    for s in steps:
        trial = copy.deepcopy(world)
        try:
            trial.apply(s)
        except Invalid:
            continue
        world = trial
        out.append(s)
    return out


# ---- the generator ----

class Generator:
    def __init__(self, seed):
        self.r = random.Random(zlib.crc32(b"luck %d" % seed))
        self.world, self.steps = World(), []
        self.names = 0

    def step(self, *s):
        """False: it was not valid."""
        trial = copy.deepcopy(self.world)
        try:
            trial.apply(s)
        except Invalid:
            return False
        self.world = trial
        self.steps.append(s)
        return True

    def name(self):
        self.names += 1
        return "p%d" % self.names

    def flip(self, percent):
        return int(self.r.random() * 100 < percent)

    def size(self):
        x = self.r.random()
        if x < 0.6:
            return self.r.randint(1, 2000)
        if x < 0.95:
            return self.r.randint(2000, 30000)
        return self.r.randint(30000, 120000)

    def how(self):
        return self.r.randrange(5)

    def kind(self):
        return self.r.choice(["self"] * 4 + ["plain", "static", "setuid"])

    def idle(self):
        return [p for p in self.world.live() if not p.waits]

    def a_process(self):
        return self.r.choice(self.idle())

    def an_end(self):
        """(process, slot) of an end, or None."""
        all_ = [(p, s) for p in self.idle() for s, w in p.slots.items() if w[0].tcp]
        return self.r.choice(all_) if all_ else None

    def other_end(self, e):
        all_ = [(p, s) for p in self.idle() for s, w in p.slots.items() if w[0] is e.peer]
        return self.r.choice(all_) if all_ else None

    def seed(self):
        return self.r.randrange(100000)

    # ---- groups of steps ----

    def connection(self):
        r = self.r
        listeners = [(p, s) for p in self.idle() for s, w in p.slots.items() if not w[0].tcp]
        if not listeners:
            return
        owner, ls = r.choice(listeners)
        client = self.a_process()
        slot = client.next_slot
        if self.flip(15) and owner is not client:
            # accept() waits for it
            to = owner.next_slot
            if self.step(owner.name, "begin", "accept", to, ls, self.flip(20)):
                self.step(client.name, "connect", slot, owner.name, ls, self.flip(20), self.flip(20))
                self.step(owner.name, "await")
        else:
            self.step(client.name, "connect", slot, owner.name, ls, self.flip(20), self.flip(20))
            if self.flip(10):
                self.step(client.name, "send", slot, self.size(), self.seed(), self.how())
            if self.flip(10):
                # fork server: the child accepts
                child = self.name()
                if not self.step(owner.name, "fork", child, "fork"):
                    return
                owner = self.world.processes[child]
            owner = self.world.processes[owner.name]
            to = owner.next_slot
            if not self.step(owner.name, "accept", to, ls, self.flip(20)):
                return
        owner, client = (self.world.processes[x.name] for x in (owner, client))
        if self.flip(15):
            # accept, fork, the parent closes; or it does so later
            child = self.name()
            if self.step(owner.name, "fork", child, "fork"):
                if self.flip(70):
                    self.step(owner.name, "close", to, 0)
                owner = self.world.processes[child]
        for p, s in ((client, slot), (owner, to)):
            if s in self.world.processes[p.name].slots and self.world.end(
                    self.world.processes[p.name], s).nonblock:
                self.step(p.name, "nonblock", s, 0, self.flip(50))
        if self.flip(85):
            self.step(client.name, "warm", slot, owner.name, to)

    def talk(self):
        x = self.an_end()
        if not x:
            return
        p, s = x
        n = self.size()
        if self.step(p.name, "send", s, n, self.seed(), self.how()) and self.flip(60):
            self.take_in(self.world.end(self.world.processes[p.name], s).peer)

    def take_in(self, e):
        holders = [(p, s) for p in self.idle() for s, w in p.slots.items() if w[0] is e]
        if not holders:
            return
        p, s = self.r.choice(holders)
        if e.unread and self.flip(70):
            self.step(p.name, "recv", s, self.r.randint(1, e.unread), self.how())
        elif e.unread or e.done():
            self.step(p.name, "recv", s, e.unread + (1000 if e.done() else 0) or 1, self.how())

    def receive(self):
        x = self.an_end()
        if not x:
            return
        p, s = x
        e = p.slots[s][0]
        what = self.r.randrange(6)
        if what < 2:
            self.take_in(e)
        elif what == 2:
            self.step(p.name, "recvnb", s, self.r.randint(1, max(2 * e.unread, 100)))
        elif what == 3:
            self.step(p.name, "peek", s, self.r.randint(1, 3000))
        elif what == 4:
            self.step(p.name, "poll", s, self.flip(50))
        else:
            self.step(p.name, "soerror", s)

    def blocked(self):
        """A call that waits while the other end does something."""
        x = self.an_end()
        if not x:
            return
        p, s = x
        e = p.slots[s][0]
        y = self.other_end(e)
        if not y or y[0] is p:
            return
        q, t = y
        if self.flip(60):
            n = self.r.randint(1, 5000)
            if not self.step(p.name, "begin", "recv", s, n, self.r.randrange(5)):
                return
            end = self.r.randrange(6)
            part = self.r.randint(1, n)
            if end == 0:
                self.step(p.name, "killed", self.r.choice(["KILL", "TERM"]))
                return
            if end == 1:
                self.step(q.name, "send", t, part, self.seed(), 0)
                self.step(q.name, "shut", t, 1)
            elif end == 2:
                self.step(q.name, "killed", "KILL")
            elif end == 3:
                self.step(q.name, "fork", self.name(), "fork")
            for i in (part, n - part):
                if i:
                    self.step(q.name, "send", t, i, self.seed(), self.how())
        else:
            if not self.step(p.name, "begin", "sleep", s, self.flip(50)):
                return
            end = self.r.randrange(4)
            if end == 0:
                self.step(q.name, "shut", t, 1)
            elif end == 1:
                self.step(q.name, "killed", "KILL")
            else:
                self.step(q.name, "send", t, self.r.randint(1, 5000), self.seed(), self.how())
        if not self.step(p.name, "await"):
            # others hold the other end too
            self.step(p.name, "killed", "KILL")

    def descriptors(self):
        x = self.an_end()
        if not x:
            return
        p, s = x
        what = self.r.randrange(12)
        if what < 3:
            self.step(p.name, "dup", s, p.next_slot, self.r.randrange(3))
        elif what == 3:
            to = self.r.choice(list(p.slots))
            self.step(p.name, "onto", s, to, self.flip(30))
        elif what == 4:
            self.step(p.name, "inetd", s)
        elif what < 8:
            self.step(p.name, "close", s, self.flip(30))
        elif what == 8:
            self.step(p.name, "cloexec", s, self.flip(50))
        elif what == 9:
            self.step(p.name, "nonblock", s, self.flip(50), self.flip(50))
        elif what == 10:
            self.step(p.name, "shut", s, self.r.choice([1, 1, 0, 2]))
        elif self.flip(30):
            self.step(p.name, "closeall", self.flip(50))
        elif self.flip(40):
            self.step(p.name, "linger0", s)

    def children(self):
        p = self.a_process()
        if len(self.world.live()) > 12:
            return
        ends = [s for s, w in p.slots.items() if w[0].tcp and s > 2]
        inetd = self.r.choice(ends) if ends and self.flip(40) else -1
        what = self.r.randrange(10)
        new = self.name()
        if what < 4:
            how = self.r.choice(["fork", "fork", "fork", "daemon", "clone", "_Fork"])
            if self.step(p.name, "fork", new, how) and self.flip(40):
                self.parting(p.name, new)
        elif what == 4:
            self.step(p.name, "vfork", new, self.kind(), inetd)
        elif what == 5:
            self.step(p.name, "spawn", new, self.kind(), inetd)
        elif what < 8:
            if inetd >= 0:
                self.step(p.name, "inetd", inetd)
            self.step(p.name, "exec", self.kind())
        elif what == 8 and ends:
            self.step(p.name, "system", self.r.choice(ends), "x" * self.r.randint(1, 20), self.flip(50))
        elif ends:
            s = self.r.choice(ends)
            if not self.step(p.name, "popen", s, self.r.randint(1, 200)):
                self.step(p.name, "badexec")

    def parting(self, *names):
        """Who shares a connection closes it, in any order."""
        for n in self.r.sample(names, self.r.randint(1, len(names))):
            p = self.world.processes[n]
            if p.alive and not p.waits and p.slots:
                self.step(n, "close", self.r.choice(list(p.slots)), self.flip(30))

    def passing(self):
        x = self.an_end()
        if not x:
            return
        p, s = x
        q = self.a_process()
        if self.flip(75):
            if self.step(p.name, "pass", s, q.name, self.flip(30)):
                if self.flip(50):
                    self.step(p.name, "close", s, 0)
                if self.flip(80):
                    self.step(q.name, "take", self.world.processes[q.name].next_slot, self.flip(40),
                              self.flip(30))
        else:
            self.step(q.name, "getfd", q.next_slot, p.name, s, self.flip(50))

    def take_mail(self):
        for p in self.idle():
            if p.mail and self.flip(50):
                self.step(p.name, "take", p.next_slot, self.flip(40), self.flip(30))

    def ending(self):
        if len(self.world.live()) < 2:
            return
        p = self.a_process()
        what = self.r.randrange(6)
        if what == 0:
            self.step(p.name, "killed", self.r.choice(["KILL", "TERM"]))
        elif what == 1:
            q = self.a_process()
            self.step(p.name, "kill", q.name, self.r.choice([9, 15]))
        elif what < 6:
            self.step(p.name, self.r.choice(["exit", "_exit", "quick_exit", "return"]),
                      self.r.randrange(5))
        for q in self.idle():
            for c in list(q.children):
                if self.flip(60):
                    self.step(q.name, "wait", c)

    def finish(self):
        """Everybody reads what there is, and ends; who cannot do so is killed by play.py."""
        for p in self.world.live():
            if p.waits and not self.step(p.name, "await"):
                self.step(p.name, "killed", "KILL")
        for _ in range(100):
            if not self.world.live():
                break
            p = self.r.choice(self.world.live())
            name = p.name
            for s in list(p.slots):
                p = self.world.processes[name]
                e = p.slots[s][0]
                if e.tcp and (e.unread or e.done()) and self.flip(75):
                    self.step(name, "recv", s, e.unread + (1000 if e.done() else 0), self.how())
                    self.step(name, "poll", s, 0)
            for c in list(self.world.processes[name].children):
                self.step(name, "wait", c)
            how = self.r.choice(["exit", "_exit", "quick_exit", "return"])
            if self.step(name, how, self.r.randrange(5)):
                continue
            # a reset would cost bytes of unknown number: read them first
            for q in self.world.live():
                for s in list(q.slots):
                    e = self.world.processes[q.name].slots[s][0]
                    if e.tcp and e.unread:
                        self.step(q.name, "recv", s, e.unread, 0)

    def program(self):
        r = self.r
        for _ in range(r.randint(2, 4)):
            self.step(self.name(), "start", r.choice(["self"] * 9 + ["plain"]))
        for p in list(self.world.live())[:r.randint(1, 2)]:
            self.step(p.name, "listen", p.next_slot, r.choice([4, 4, 6]), self.flip(10))
        for _ in range(r.randint(2, 4)):
            self.connection()
        for _ in range(r.randint(20, 45)):
            r.choices([self.connection, self.talk, self.receive, self.blocked, self.descriptors,
                       self.children, self.passing, self.take_mail, self.ending],
                      [5, 30, 15, 8, 20, 12, 8, 2, 4])[0]()
            if not self.idle():
                break
        self.finish()
        return self.steps


def generate(seed):
    return Generator(seed).program()


def text(step):
    return " ".join(str(x) for x in step)


def parse(line):
    return tuple(int(x) if x.lstrip("-").isdigit() else x for x in line.split())
