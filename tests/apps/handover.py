#!/usr/bin/python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Both ends of one connection; the receiver does not read while the stream has to leave its fast path.

    handover.py fork-exit|fork-close|fork-kill|splice|syscall

fork-*: the receiver forks, so that everything unread has to come over TCP; the sender ends meanwhile.
splice, syscall: the sender, whose receiver is stopped, makes a call that only the kernel can do.
Prints "whole", or "reset" after a right beginning, or what is wrong.
"""
import ctypes
import os
import signal
import socket
import sys
import threading
import time

CHUNK = 65536
TAIL = b"TAIL" * 1000


def pattern(start, n):
    """Every 8 bytes say where they are; `start` and `n` are multiples of 8."""
    return b"".join(i.to_bytes(8, "big") for i in range(start // 8, (start + n) // 8))


def connect():
    """Two processes, each made before it has a socket: ("sender" or "receiver", its end)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    if os.fork() == 0:
        for _ in range(500):
            try:
                return "sender", socket.create_connection(address)
            except OSError:
                time.sleep(0.01)
        os._exit(1)
    with socket.create_server(address) as listener:
        return "receiver", listener.accept()[0]


def warm_up(role, s):
    """Enough back and forth for both directions to be fast, if they ever are."""
    for i in range(100):
        if role == "sender":
            s.sendall(b"x")
        if s.recv(1) != b"x":
            sys.exit("no echo")
        if role == "receiver":
            s.sendall(b"x")
        if i < 20:
            time.sleep(0.02)


def fill(s):
    """Sends until nothing is taken for a while; how many bytes were."""
    s.setblocking(False)
    sent, last = 0, time.monotonic()
    data = pattern(0, 9 << 20)
    while sent < len(data) and time.monotonic() - last < 0.5:
        try:
            sent += s.send(data[sent:sent + CHUNK])
            last = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    s.setblocking(True)
    return sent


def kernel_call(how, s):
    left = TAIL
    if how == "splice":
        r, w = os.pipe()
        os.write(w, TAIL)
        while left:
            left = left[os.splice(r, s.fileno(), len(left)):]
        return
    libc = ctypes.CDLL(None, use_errno=True)
    while left:
        n = libc.syscall(1, s.fileno(), left, len(left))
        if n < 0:
            sys.exit("write: %s" % os.strerror(ctypes.get_errno()))
        left = left[n:]


def send(how, s, tell):
    sent = fill(s)
    if how in ("splice", "syscall"):
        os.kill(os.getppid(), signal.SIGSTOP)
        threading.Timer(3, os.kill, (os.getppid(), signal.SIGCONT)).start()
        os.write(tell, b"%d" % sent)
        kernel_call(how, s)
        s.close()
        time.sleep(4)
        os._exit(0)
    os.write(tell, b"%d" % sent)
    time.sleep(1.5)  # the receiver forks in the middle of this
    if how == "fork-close":
        s.close()
    if how == "fork-kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def receive(how, s, told):
    sent = int(os.read(told, 100))
    tail = TAIL if how in ("splice", "syscall") else b""
    if not tail:
        time.sleep(1)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        time.sleep(2)
    got, end = bytearray(), "whole"
    try:
        while data := s.recv(CHUNK):
            got += data
    except ConnectionResetError:
        end = "reset"
    want = pattern(0, (sent + 7) // 8 * 8)[:sent] + tail
    if bytes(got) != want[:len(got)]:
        return "wrong bytes"
    if end == "whole" and len(got) != len(want):
        return "end of file after %d of %d bytes" % (len(got), len(want))
    return end


def main():
    how = sys.argv[1]
    told, tell = os.pipe()
    role, s = connect()
    warm_up(role, s)
    if role == "sender":
        send(how, s, tell)
    os.close(tell)
    print(receive(how, s, told))


main()
