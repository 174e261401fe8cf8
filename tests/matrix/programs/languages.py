# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs of a few lines, for the network calls of a language's own library."""
import os

from cell import HOST
from children import PYTHON, ROOT
from programs import program

ECHO = os.path.join(ROOT, "tests/apps/echo.py")


@program("Python asyncio", "python3", "Python; asyncio on epoll; one thread",
         "asyncio, 1 connection with 3 MiB, 20 with 400 kB")
def asyncio(cell):
    port = cell.port()
    cell.server([PYTHON, ECHO, "server", port, "asyncio"], port)
    for conns, size in ((1, 3 << 20), (20, 400000)):
        # the bytes come when the connections have had time to move
        cell.client([PYTHON, ECHO, "burst", port, conns, size, 0.3])


MANAGER = """\
import multiprocessing as mp, multiprocessing.managers as mm, queue, sys
class M(mm.BaseManager): pass
where, jobs = ('%s', int(sys.argv[2])), queue.Queue()
M.register('jobs', (lambda: jobs) if sys.argv[1] == 'serve' else None)
def work(i):
    m = M(where, b'key')
    m.connect()
    q, got = m.jobs(), 0
    for k in range(200):
        q.put((i, k, bytes(k * 50)))
        got += len(q.get()[2])
    return got
if sys.argv[1] == 'serve':
    M(where, b'key').get_server().serve_forever()
else:
    with mp.Pool(4) as pool:
        print(sum(pool.map(work, range(12), 1)))
""" % HOST


@program("Python multiprocessing", "python3", "Python; a thread for each connection; forked clients",
         "a manager's queue, used by a pool of 4 processes")
def multiprocessing(cell):
    port = cell.port()
    cell.server([PYTHON, "-c", MANAGER, "serve", port], port)
    cell.client([PYTHON, "-c", MANAGER, "ask", port])


ASK_LINES = """\
import hashlib, socket, sys, threading
def talk(i):
    s = socket.create_connection(('%s', int(sys.argv[1])))
    f, h = s.makefile('rb'), hashlib.sha256()
    for k in range(500):
        s.sendall(b'%%d %%d %%s\\n' %% (i, k, b'x' * (k * 7 %% 5000)))
        h.update(f.readline())
    s.shutdown(socket.SHUT_WR)
    assert f.read() == b''
    out[i] = h.hexdigest()
out = {}
ts = [threading.Thread(target=talk, args=(i,)) for i in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
print(len(out), sorted(out.items()))
""" % HOST


def lines(name, package, model, interpreter, text, client=None, **more):
    """A server that gives back every line in capital letters."""
    @program(name, package, model, "4 connections, 500 lines each", **more)
    def test(cell):
        port = cell.port()
        path = cell.file("server" + os.path.splitext(interpreter[-1])[1], text.replace("HOST", HOST))
        cmd = [path if word.startswith("FILE") else word for word in interpreter]
        cell.server(cmd + [port], port)
        if client:
            path = cell.file("client", client.replace("HOST", HOST))
            cell.client(interpreter[:-1] + [path, port])
        cell.client([PYTHON, "-c", ASK_LINES, port])


lines("Perl", "perl", "Perl; IO::Socket; a process for each connection, forked", ["perl", "FILE"], """\
use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
$SIG{TERM} = sub { exit 0 };
my $l = IO::Socket::INET->new(LocalAddr => 'HOST', LocalPort => $ARGV[0], Listen => 10,
			      ReuseAddr => 1) or die "listen: $!";
for (;;) {
	my $c = $l->accept() or next;
	if (fork() == 0) {
		close $l;
		$c->autoflush(1);
		print $c uc($_) while <$c>;
		exit 0;
	}
	close $c;
}
""")

lines("Ruby", "ruby", "Ruby; poll; a thread for each connection", ["ruby", "FILE"], """\
require 'socket'
trap('TERM') { exit! 0 }
server = TCPServer.new('HOST', ARGV[0].to_i)
loop do
  Thread.new(server.accept) do |c|
    while (line = c.gets)
      c.write(line.upcase)
    end
    c.close
  end
end
""")

lines("Tcl", "tcl", "Tcl; channels on epoll; one thread", ["tclsh", "FILE"], """\
proc serve {c} {
	if {[gets $c line] >= 0} {
		puts $c [string toupper $line]
	} elseif {[eof $c]} {
		close $c
	}
}
proc accept {c host port} {
	fconfigure $c -blocking 0 -buffering line -translation lf
	fileevent $c readable [list serve $c]
}
socket -server accept -myaddr HOST [lindex $argv 0]
vwait forever
""")

lines("Lua", "lua-socket", "Lua; LuaSocket, select; one thread", ["lua5.4", "FILE"], """\
local socket = require("socket")
local l = assert(socket.bind("HOST", tonumber(arg[1])))
local all = { l }
while true do
	for _, s in ipairs((socket.select(all))) do
		if s == l then
			table.insert(all, l:accept())
		else
			local line = s:receive("*l")
			if line then
				s:send(line:upper() .. "\\n")
			else
				s:close()
				for i, c in ipairs(all) do
					if c == s then table.remove(all, i) end
				end
			end
		end
	end
end
""")

lines("Erlang", "erlang-base", "Erlang; gen_tcp, epoll; light processes on several threads",
      ["escript", "FILE.erl"], """\
#!/usr/bin/env escript
%%! +S 2:2
main([Port]) ->
    {ok, L} = gen_tcp:listen(list_to_integer(Port), [binary, {packet, line}, {buffer, 65536},
        {ip, {127, 0, 0, 1}}, {active, false}, {reuseaddr, true}]),
    accept(L).
accept(L) ->
    {ok, C} = gen_tcp:accept(L),
    P = spawn(fun() -> receive go -> inet:setopts(C, [{active, once}]), serve(C) end end),
    ok = gen_tcp:controlling_process(C, P),
    P ! go,
    accept(L).
serve(C) ->
    receive
        {tcp, C, Line} ->
            ok = gen_tcp:send(C, string:uppercase(Line)),
            inet:setopts(C, [{active, once}]),
            serve(C);
        {tcp_closed, C} -> ok
    end.
""")

lines("Java", "openjdk-17-jdk-headless", "Java; NIO Selector on epoll; one thread besides its own",
      ["java", "-Xmx64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "FILE.java"], """\
import java.net.*;
import java.nio.*;
import java.nio.channels.*;
public class Server {
	static ByteBuffer upper(ByteBuffer b) {
		for (int i = b.position(); i < b.limit(); i++)
			if (b.get(i) >= 'a' && b.get(i) <= 'z')
				b.put(i, (byte)(b.get(i) - 32));
		return b;
	}
	public static void main(String[] args) throws Exception {
		Selector selector = Selector.open();
		ServerSocketChannel l = ServerSocketChannel.open();
		l.bind(new InetSocketAddress("HOST", Integer.parseInt(args[0])));
		l.configureBlocking(false);
		l.register(selector, SelectionKey.OP_ACCEPT);
		ByteBuffer b = ByteBuffer.allocateDirect(65536);
		for (;;) {
			selector.select();
			for (SelectionKey k : selector.selectedKeys()) {
				if (k.isAcceptable()) {
					SocketChannel c = l.accept();
					c.configureBlocking(false);
					c.register(selector, SelectionKey.OP_READ);
					continue;
				}
				SocketChannel c = (SocketChannel)k.channel();
				b.clear();
				if (c.read(b) < 0) {
					c.close();
					continue;
				}
				b.flip();
				upper(b);
				while (b.hasRemaining())
					c.write(b);
			}
			selector.selectedKeys().clear();
		}
	}
}
""")
