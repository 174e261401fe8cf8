#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A server that gives away each connection that it has accepted, and a client.

    giver.py exec|stdin|passed|forked|ends PORT
    giver.py client PORT

exec: a child inherits the socket over its exec; stdin: as its standard input and output; passed: another
process gets it by SCM_RIGHTS; forked: a child goes on with it that was made when it had been used; ends: as
passed, by a program that inherits the listening socket over its exec, and ends then. Each gives back what it
reads. The client sends a line again and again until its standard input ends.
"""
import os
import signal
import socket
import sys
import time

ECHO = """
import os, sys
fd = int(sys.argv[1])
while data := os.read(fd, 65536):
    os.write(1 if fd == 0 else fd, data)
"""


def echo(s):
    while data := s.recv(65536):
        s.sendall(data)
    s.close()


def worker(channel):
    while True:
        data, fds, _, _ = socket.recv_fds(channel, 1, 1)
        if not data:
            os._exit(0)
        echo(socket.socket(fileno=fds[0]))


def become_echo(how, s):
    """In a child, which has nothing else open that matters."""
    if how == "stdin":
        os.dup2(s.fileno(), 0)
        os.dup2(s.fileno(), 1)
    else:
        s.set_inheritable(True)
    os.execv(sys.executable, [sys.executable, "-c", ECHO, "0" if how == "stdin" else str(s.fileno())])


def accept_one(listener, channel):
    s = socket.socket(fileno=listener).accept()[0]
    socket.send_fds(socket.socket(fileno=channel), [b"x"], [s.fileno()])
    os.kill(os.getpid(), signal.SIGKILL)  # before anybody can ask


def let_accept(listener, channel):
    """Each connection by a program of its own, which ends when it has passed it on."""
    for fd in listener, channel:
        fd.set_inheritable(True)
    while True:
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, __file__, "accept", str(listener.fileno()),
                                      str(channel.fileno())])
        os.wait()


def serve(how, port):
    ours, theirs = socket.socketpair()
    if how in ("passed", "ends") and os.fork() == 0:
        ours.close()
        worker(theirs)
    theirs.close()
    listener = socket.create_server(("127.0.0.1", port))
    print("READY", flush=True)
    if how == "ends":
        let_accept(listener, ours)
    while True:
        s = listener.accept()[0]
        if how == "forked":
            s.sendall(s.recv(65536))
        if how == "passed":
            socket.send_fds(ours, [b"x"], [s.fileno()])
        elif os.fork() == 0:
            listener.close()
            if how != "forked":
                become_echo(how, s)
            echo(s)
            os._exit(0)
        s.close()


def client(port):
    s = socket.create_connection(("127.0.0.1", port))
    f = s.makefile("rb")
    os.set_blocking(0, False)
    while True:
        s.sendall(b"line\n")
        if f.readline() != b"line\n":
            sys.exit("no echo")
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
        time.sleep(0.01)
    print("done")


if __name__ == "__main__":
    if sys.argv[1] == "client":
        client(int(sys.argv[2]))
    elif sys.argv[1] == "accept":
        accept_one(int(sys.argv[2]), int(sys.argv[3]))
    else:
        serve(sys.argv[1], int(sys.argv[2]))
