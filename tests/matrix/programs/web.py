# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Web servers."""
import signal

from cell import HOST
from children import PYTHON
from programs import program

MANY = 200  # requests on one connection, until it has moved


def fetch(cell, port, keep_alive=True, scheme="http", more=()):
    """curl: a file; a small one many times and a big one after that, on one connection; none."""
    url = "%s://%s:%d/" % (scheme, HOST, port)
    curl = ["curl", "-sS", "-f"] + list(more)
    cell.client(curl + [url + "file"], digest=True)
    if keep_alive:
        cell.client(curl + [url + "small"] * MANY + [url + "big"], digest=True)
    cell.client(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}"] + list(more) + [url + "none"])


LATE = """\
import http.server, sys, time
class Late(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(DATA)))
        self.end_headers()
        for part in DATA[:1000], DATA[1000:-1000], DATA[-1000:]:
            self.wfile.write(part)
            time.sleep(0.3)
    def log_message(self, *args):
        pass
DATA = open(sys.argv[2], 'rb').read()
http.server.ThreadingHTTPServer(('%s', int(sys.argv[1])), Late).serve_forever()
""" % HOST


def fetch_late(cell, more):
    """curl: a big file that comes when its connection, which has no other, has had time to move; and
    the connection lasts until `rsock stat` has been asked again."""
    port = cell.port()
    cell.server([PYTHON, "-c", LATE, port, cell.blob("late", 6 << 20)], port, beside=True)
    cell.client(["curl", "-sS", "-f"] + more + ["http://%s:%d/" % (HOST, port)], digest=True)


def content(cell):
    """The folder with what fetch() asks for."""
    cell.blob("www/big", 6 << 20)
    cell.blob("www/file", 1 << 20)
    cell.file("www/small", "small file\n")
    return cell.tmp + "/www"


def nginx_conf(cell, port, more=""):
    root = content(cell)
    return cell.file("nginx.conf", """\
daemon off;
worker_processes 2;
error_log stderr;
pid %(tmp)s/nginx.pid;
user nobody nogroup;
events { worker_connections 256; }
http {
	access_log off;
	sendfile on;
	client_body_temp_path %(tmp)s/1;
	proxy_temp_path %(tmp)s/2;
	fastcgi_temp_path %(tmp)s/3;
	uwsgi_temp_path %(tmp)s/4;
	scgi_temp_path %(tmp)s/5;
	server { listen %(host)s:%(port)d; root %(root)s; %(more)s }
}
""" % {"tmp": cell.tmp, "host": HOST, "port": port, "root": root, "more": more})


def nginx_server(cell, **how):
    port = cell.port()
    cell.server(["nginx", "-c", nginx_conf(cell, port), "-p", cell.tmp, "-e", "stderr"], port,
                signal.SIGQUIT, **how)
    return port


@program("nginx", "nginx", "C; its own loop on epoll; 2 worker processes that accept, sendfile",
         "wrk, 50 connections; curl", noise=r"open\(\) .* failed")
def nginx(cell):
    port = nginx_server(cell)
    cell.client(["wrk", "-t1", "-c50", "-d1s", "http://%s:%d/small" % (HOST, port)],
                keep="Socket errors.*|Non-2xx.*|requests in")
    fetch(cell, port)


def apache(mpm):
    @program("Apache, %s" % mpm, "apache2",
             {"prefork": "C; APR; prefork: a process for each connection, sendfile",
              "event": "C; APR, epoll; 2 processes with worker threads, sendfile"}[mpm],
             "ab -k, 8 connections; curl")
    def test(cell):
        port, root = cell.port(), content(cell)
        modules = "/usr/lib/apache2/modules/mod_"
        conf = cell.file("apache.conf", """\
ServerRoot %(tmp)s
ServerName localhost
Listen %(host)s:%(port)d
PidFile %(tmp)s/apache.pid
ErrorLog /dev/stderr
LogLevel error
User nobody
Group nogroup
LoadModule mpm_module %(modules)smpm_%(mpm)s.so
LoadModule authz_core_module %(modules)sauthz_core.so
KeepAlive On
MaxKeepAliveRequests 0
StartServers 2
EnableSendfile On
DocumentRoot %(root)s
""" % {"tmp": cell.tmp, "host": HOST, "port": port, "modules": modules, "mpm": mpm, "root": root})
        conf_text = open(conf).read().replace("mpm_module", "mpm_%s_module" % mpm)
        cell.file("apache.conf", conf_text)
        cell.server(["apache2", "-f", conf, "-D", "FOREGROUND"], port)
        cell.client(["ab", "-q", "-k", "-c", 8, "-n", 4000, "http://%s:%d/small" % (HOST, port)],
                    keep=r"^(Complete|Failed|Keep-Alive|Non-2xx).*")
        fetch(cell, port)


apache("prefork")
apache("event")


@program("lighttpd", "lighttpd", "C; its own loop on epoll; one process, sendfile", "curl, ab -k")
def lighttpd(cell):
    port, root = cell.port(), content(cell)
    conf = cell.file("conf", 'server.document-root = "%s"\nserver.port = %d\nserver.bind = "%s"\n'
                     'server.username = "nobody"\nserver.groupname = "nogroup"\n'
                     'server.max-keep-alive-requests = 100000\n' % (root, port, HOST))
    cell.server(["lighttpd", "-D", "-f", conf], port, signal.SIGINT)
    cell.client(["ab", "-q", "-k", "-c", 8, "-n", 4000, "http://%s:%d/small" % (HOST, port)],
                keep=r"^(Complete|Failed|Keep-Alive|Non-2xx).*")
    fetch(cell, port)


@program("Python http.server", "python3", "Python; a thread for each connection", "curl")
def http_server(cell):
    port = cell.port()
    cell.server([PYTHON, "-m", "http.server", port, "--bind", HOST, "--directory", content(cell),
                 "--protocol", "HTTP/1.1"], port, signal.SIGINT, quiet=True)
    fetch(cell, port)


@program("gunicorn", "gunicorn", "Python; prefork: 2 workers of 4 threads that accept", "ab -k, curl")
def gunicorn(cell):
    port = cell.port()
    cell.file("wsgi.py", """\
BIG = bytes(range(256)) * 24576
def app(environ, start):
    path = environ["PATH_INFO"]
    body = {"/big": BIG, "/file": BIG[:1 << 20], "/small": b"small file\\n"}.get(path, b"")
    start("200 OK" if body else "404 Not Found", [("Content-Length", str(len(body)))])
    return [body]
""")
    cell.server(["gunicorn", "-b", "%s:%d" % (HOST, port), "-w", 2, "-k", "gthread", "--threads", 4,
                 "--keep-alive", 20, "--log-level", "error", "--worker-tmp-dir", cell.tmp,
                 "wsgi:app"], port)
    cell.client(["ab", "-q", "-k", "-c", 4, "-n", 1500, "http://%s:%d/small" % (HOST, port)],
                keep=r"^(Complete|Failed|Non-2xx).*")
    fetch(cell, port)


@program("PHP built-in server", "php-cli", "C; poll; one process", "curl")
def php(cell):
    port = cell.port()
    cell.server(["php", "-n", "-q", "-S", "%s:%d" % (HOST, port), "-t", content(cell)], port,
                signal.SIGINT, quiet=True)
    fetch(cell, port, keep_alive=False)
    # without keep-alive: the file comes when the connection has had time to move
    cell.file("www/slow.php", "<?php usleep(300000); readfile('big');")
    cell.client(["curl", "-sS", "http://%s:%d/slow.php" % (HOST, port)], digest=True)


@program("Node.js http", "nodejs", "JavaScript; libuv on epoll; one thread for I/O",
         "Node.js, 8 keep-alive connections")
def node(cell):
    port = cell.port()
    serve = cell.file("serve.js", """\
const big = Buffer.alloc(256 << 10, 'rsock');
require('http').createServer((q, s) => {
	let n = 0;
	q.on('data', (d) => { n += d.length; });
	q.on('end', () => q.url === '/big' ? s.end(big) : s.end(`${q.url} ${n}`));
}).listen(+process.argv[2], '%s');
process.on('SIGTERM', () => process.exit(0));
""" % HOST)
    ask = cell.file("ask.js", """\
const http = require('http'), hash = require('crypto').createHash('sha256');
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
function get(path, body) {
	return new Promise((resolve, reject) => {
		const q = http.request({ host: '%s', port: +process.argv[2], path, agent,
					 method: body ? 'POST' : 'GET' }, (s) => {
			const parts = [];
			s.on('data', (d) => parts.push(d));
			s.on('end', () => resolve(Buffer.concat(parts)));
		});
		q.on('error', reject);
		q.end(body);
	});
}
(async () => {
	for (let i = 0; i < 60; i++) {
		const all = [];
		for (let j = 0; j < 16; j++)
			all.push(get(`/${i}/${j}`, j %% 4 ? null : Buffer.alloc(i * 1000)));
		all.push(get('/big'));
		for (const part of await Promise.all(all))
			hash.update(part);
	}
	console.log(hash.digest('hex'));
	agent.destroy();
})();
""" % HOST)
    cell.server(["node", serve, port], port)
    cell.client(["node", ask, port])
