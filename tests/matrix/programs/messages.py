# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Queues, brokers and names."""
from cell import HOST
from children import PYTHON
from programs import program
from programs.stores import wait_for


@program("Mosquitto", "mosquitto", "C; its own loop on epoll; one thread",
         "mosquitto_pub and mosquitto_sub, 2000 messages, QoS 1")
def mosquitto(cell):
    port = cell.port()
    conf = cell.file("conf", "listener %d %s\nallow_anonymous true\nlog_dest stderr\nlog_type error\n"
                     "max_queued_messages 0\n" % (port, HOST))
    lines = cell.file("lines", "".join("%d %s\n" % (i, "x" * (i % 700)) for i in range(2000)))
    cell.server(["mosquitto", "-c", conf], port)
    at = ["-h", HOST, "-p", port, "-t", "t", "-q", 1]
    sub = ["mosquitto_sub"] + at + ["-i", "sub", "-c"]
    cell.client(sub + ["-E"])
    reader = cell.begin(sub + ["-C", 2000])
    cell.client(["mosquitto_pub"] + at + ["-l"], stdin=lines)
    cell.finish(reader, digest=True)


BEANS = """\
import socket, sys
s = socket.create_connection(('%s', int(sys.argv[1])))
f = s.makefile('rb')
def ask(line, body=None):
    s.sendall(line + b'\\r\\n' + (body + b'\\r\\n' if body is not None else b''))
    return f.readline().split()
total = 0
for i in range(6000):
    body = b'%%d ' %% i * (i %% 500)
    assert ask(b'put 0 0 60 %%d' %% len(body), body)[0] == b'INSERTED'
    if i %% 3:
        word, job, size = ask(b'reserve')
        total += len(f.read(int(size) + 2)) - 2
        assert ask(b'delete ' + job) == [b'DELETED']
print(total)
""" % HOST


@program("beanstalkd", "beanstalkd", "C; its own loop on epoll; one thread",
         "a Python client: 6000 jobs put, reserved, deleted")
def beanstalkd(cell):
    port = cell.port()
    cell.server(["beanstalkd", "-l", HOST, "-p", port], port)
    cell.client([PYTHON, "-c", BEANS, port])


ZMQ = """\
import hashlib, sys, zmq
c = zmq.Context()
def serve(url):
    s = c.socket(zmq.REP)
    s.bind(url)
    while True:
        m = s.recv_multipart()
        s.send_multipart([hashlib.sha256(b''.join(m)).digest(), m[-1]])
        if m[0] == b'end':
            break
    s.close(linger=2000)
    c.term()
def ask(url):
    s = c.socket(zmq.REQ)
    s.connect(url)
    h = hashlib.sha256()
    for i in range(6000):
        m = [b'ask', b'%d ' % i * (i % 2000)]
        s.send_multipart(m)
        digest, body = s.recv_multipart()
        assert digest == hashlib.sha256(b''.join(m)).digest() and body == m[1], i
        h.update(digest)
    s.send_multipart([b'end'])
    s.recv_multipart()
    print(h.hexdigest())
{'serve': serve, 'ask': ask}[sys.argv[1]](sys.argv[2])
"""


@program("ZeroMQ", "python3-zmq", "C++ and Python; epoll; threads for I/O", "1100 questions of up to 10 kB")
def zeromq(cell):
    port = cell.port()
    url = "tcp://%s:%d" % (HOST, port)
    cell.server([PYTHON, "-c", ZMQ, "serve", url], port, once=True)
    cell.client([PYTHON, "-c", ZMQ, "ask", url])


@program("BIND", "bind9", "C; libuv on epoll; several threads",
         "dig +tcp, 100 questions on as many connections; zone transfer of 20000 records")
def bind(cell):
    port = cell.port()
    cell.file("zone", "$TTL 60\n@ SOA a b 1 60 60 60 60\n@ NS a\na A 127.0.0.1\n" + "".join(
        "n%d A 10.0.%d.%d\n" % (i, i >> 8, i & 255) for i in range(20000)))
    conf = cell.file("conf", """\
options {
	directory "%(tmp)s";
	listen-on port %(port)d { %(host)s; };
	listen-on-v6 { none; };
	recursion no;
	dnssec-validation no;
	pid-file none;
	session-keyfile "%(tmp)s/key";
	allow-transfer { any; };
};
controls { };
zone "example" { type primary; file "zone"; };
""" % {"tmp": cell.tmp, "port": port, "host": HOST})
    names = cell.file("names", "".join("n%d.example A\n" % (i * 37) for i in range(100)))
    cell.server(["named", "-g", "-4", "-n", 2, "-c", conf], port, quiet=True)
    # it listens before it has read the zone
    wait_for(["sh", "-c", "dig @%s -p %d +tcp +short example soa | grep -q ." % (HOST, port)], cell)
    dig = ["dig", "@" + HOST, "-p", port, "+tcp", "+nostats", "+nocmd"]
    cell.client(dig + ["+short", "-f", names])
    for _ in range(3):
        cell.client(dig + ["example", "axfr"], digest=True)
