# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Proxies: the server is the proxy; what is behind it runs as the client does."""
import signal

from cell import HOST
from programs import program
from programs.web import fetch, fetch_late, nginx_server


@program("HAProxy", "haproxy", "C; its own loop on epoll; 2 threads",
         "ab -k and curl through it, to nginx", noise=r"open\(\) .* failed")
def haproxy(cell):
    behind, port = nginx_server(cell, beside=True), cell.port()
    conf = cell.file("conf", """\
global
	nbthread 2
defaults
	mode http
	timeout connect 5s
	timeout client 20s
	timeout server 20s
frontend f
	bind %s:%d
	default_backend b
backend b
	server s %s:%d
""" % (HOST, port, HOST, behind))
    cell.server(["haproxy", "-db", "-f", conf], port, signal.SIGINT)
    cell.client(["ab", "-q", "-k", "-c", 8, "-n", 3000, "http://%s:%d/small" % (HOST, port)],
                keep=r"^(Complete|Failed|Non-2xx).*")
    fetch(cell, port)


@program("stunnel", "stunnel4", "C; OpenSSL, poll; a thread for each connection",
         "curl by TLS through it, to nginx", noise=r"open\(\) .* failed|^N[.:N]* LOG")
def stunnel(cell):
    behind, port = nginx_server(cell, beside=True), cell.port()
    cell.prepare(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                  "/CN=localhost", "-addext", "subjectAltName=IP:" + HOST,
                  "-keyout", cell.tmp + "/key", "-out", cell.tmp + "/cert"])
    conf = cell.file("conf", "foreground = yes\npid =\n[web]\naccept = %s:%d\nconnect = %s:%d\n"
                     "cert = %s/cert\nkey = %s/key\n" % (HOST, port, HOST, behind, cell.tmp, cell.tmp))
    cell.server(["stunnel4", conf], port, quiet=True)
    fetch(cell, port, scheme="https", more=["--cacert", cell.tmp + "/cert"])


@program("tinyproxy", "tinyproxy", "C; poll; a thread for each connection",
         "curl through it, to nginx", noise=r"open\(\) .* failed")
def tinyproxy(cell):
    behind, port = nginx_server(cell, beside=True), cell.port()
    conf = cell.file("conf", "Port %d\nListen %s\nTimeout 20\nAllow %s\nLogFile \"/dev/stdout\"\n"
                     "LogLevel Critical\n" % (port, HOST, HOST))
    cell.server(["tinyproxy", "-d", "-c", conf], port)
    more = ["--proxy", "http://%s:%d" % (HOST, port)]
    fetch(cell, behind, keep_alive=False, more=more)
    fetch_late(cell, more)


@program("Squid", "squid", "C++; its own loop on epoll; one process besides helpers",
         "curl through it, to nginx", noise=r"open\(\) .* failed")
def squid(cell):
    behind, port = nginx_server(cell, beside=True), cell.port()
    cell.folder("squid", "proxy")
    conf = cell.file("conf", """\
http_port %s:%d
http_access allow all
cache deny all
pid_filename none
access_log none
cache_log %s/squid/log
coredump_dir none
netdb_filename none
pinger_enable off
shutdown_lifetime 0 seconds
logfile_rotate 0
visible_hostname localhost
""" % (HOST, port, cell.tmp))
    cell.server(["squid", "-N", "-f", conf], port, quiet=True)
    fetch(cell, behind, more=["--proxy", "http://%s:%d" % (HOST, port)])
