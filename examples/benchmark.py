"""Measure minws beside other WebSocket libraries, on the device that you are interested in.

    python3 -m examples.benchmark                                          everything, a few minutes
    python3 -m examples.benchmark --only echo,import --peers minws,raw     some of it
    python3 -m examples.benchmark --only size --sizes 1024,67108864        other sizes, in bytes
    python3 -m examples.benchmark --svg benchmark.svg --json benchmark.json

On a phone this file and minws.py in one directory are enough: `python3 benchmark.py`. Other libraries are measured if
they are installed. `raw` is no WebSocket at all: a loop of recv and send, which is what the system itself costs.

Every server is a process of its own, which reports the CPU time (user and system) that it used. That is the figure to
trust when the machine has other things to do; how many messages passed per second depends on this client and on all the
rest. The client checks every byte that comes back. Servers have their default limits (minws has none, for the sake of
`scale` and `size`), no compression, no keepalive. These two show how the cost grows, of minws and raw alone: they have
a row for each number of connections and each size, and no bars in the chart.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import namedtuple
from functools import partial
from xml.sax.saxutils import escape

try:
    import resource
except ImportError:  # Windows
    resource = None
try:
    import minws
except ImportError:  # run as a file of the repository: minws.py is one directory up
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import minws

PATIENCE = 30                 # seconds beyond its time after which a child is killed; a phone starts Python in two
SIZE = 125                    # bytes of a small message: the most that a frame head of two bytes can announce
BATCH = 32                    # messages that an eager client sends in one go; two batches are in flight
SUBSCRIBERS = 100             # of a broadcast: with a few files, below the 256 that macOS lets a process open
CONNECTIONS = '1,100,1000,10000'
SIZES = '125,1024,16384,262144,1048576,16777216'
OTHER_FILES = 50              # that a process has open beside its connections, at most
MOST_HANDSHAKES = 1000        # a round: each leaves a port that cannot be used again for a minute
PYTHON = sys.executable or shutil.which('python3') or 'python'  # an app that embeds Python may not name one

# The example of RFC 6455 1.3; the key never changes, so that the client has nothing to compute.
ACCEPT = b's3pPLMBiTxaQ9kYGzzhZRbK+xOo='
REQUEST = (b'GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
           b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n')
RESPONSE = (b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
            b'Sec-WebSocket-Accept: ' + ACCEPT + b'\r\n\r\n')
CLOSE = b'\x88\x82\0\0\0\0\x03\xe8'  # a masked frame, with the code 1000


# -- Servers ----------------------------------------------------------------------------------------------------------
#
# Each serves a listening socket for ever, or is a coroutine that starts a server and returns it. It sends a message
# back to its sender or, if `push`, to all `clients`, an empty list (who stay until it ends), as the manual of the
# library would do it. It imports what it needs, as that may not be there.

def serve_raw(listener, push, clients):
    poller, known, buffer = minws.default_poller(), {}, memoryview(bytearray(1 << 18))
    poller.register(listener.fileno())
    while True:
        for fd in poller.poll(3600):
            if fd == listener.fileno():
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.recv(4096)
                sock.sendall(RESPONSE)
                known[sock.fileno()] = sock
                poller.register(sock.fileno())
                continue
            size = known[fd].recv_into(buffer)
            if size:
                for sock in known.values() if push else (known[fd],):
                    sock.sendall(buffer[:size])
            else:
                poller.unregister(fd)
                known.pop(fd).close()


def serve_minws(listener, push, clients):
    class Handler(minws.WebSocket):
        def received_message(self, message):
            (server.broadcast if push else self.send)(message.data, message.is_binary)

    server = minws.serve(Handler, sock=listener, ping_interval=None, max_size=None, max_connections=None)
    server.serve_forever()


def serve_minws_threads(listener, push, clients):
    def handler(ws):
        for message in ws:
            (server.broadcast if push else ws.send)(message)

    server = minws.serve(handler, sock=listener, ping_interval=None, max_size=None, max_connections=None)
    server.serve_forever()


async def serve_websockets(listener, push, clients):
    from websockets.asyncio.server import broadcast, serve

    async def handler(ws):
        if push:
            clients.append(ws)
        async for message in ws:
            if push:
                broadcast(clients, message)
            else:
                await ws.send(message)

    return await serve(handler, sock=listener, compression=None, ping_interval=None)


def serve_websockets_sync(listener, push, clients):
    from websockets.sync.server import broadcast, serve

    def handler(ws):
        if push:
            clients.append(ws)
        for message in ws:
            if push:
                broadcast(clients, message)
            else:
                ws.send(message)

    serve(handler, sock=listener, compression=None, ping_interval=None).serve_forever()


def serve_ws4py(listener, push, clients):
    from wsgiref.simple_server import make_server
    from ws4py.server.wsgirefserver import WebSocketWSGIRequestHandler, WSGIServer
    from ws4py.server.wsgiutils import WebSocketWSGIApplication
    from ws4py.websocket import WebSocket

    class Handler(WebSocket):
        def received_message(self, message):
            (server.manager.broadcast if push else self.send)(message.data, message.is_binary)

    class Quiet(WebSocketWSGIRequestHandler):
        def log_message(self, *arguments):
            pass

    server = make_server('127.0.0.1', 0, WebSocketWSGIApplication(handler_cls=Handler), WSGIServer, Quiet)
    server.socket.close()
    server.socket = listener
    server.initialize_websockets_manager()
    server.serve_forever()


def serve_aiohttp(listener, push, clients):
    from aiohttp import WSMsgType, web

    async def handler(request):
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        if push:
            clients.append(ws)
        async for message in ws:
            for client in clients if push else (ws,):
                await (client.send_str if message.type is WSMsgType.TEXT else client.send_bytes)(message.data)
        return ws

    app = web.Application()
    app.router.add_get('/', handler)
    web.run_app(app, sock=listener, access_log=None, print=None)


async def serve_tornado(listener, push, clients):
    from tornado import httpserver, web, websocket

    class Handler(websocket.WebSocketHandler):
        def open(self):
            self.set_nodelay(True)
            if push:
                clients.append(self)

        def on_message(self, message):
            for client in clients if push else (self,):
                client.write_message(message, isinstance(message, bytes))

    listener.setblocking(False)
    httpserver.HTTPServer(web.Application([('/', Handler)])).add_socket(listener)


async def serve_picows(listener, push, clients):
    from picows import WSListener, WSMsgType, ws_create_server

    class Handler(WSListener):
        def on_ws_connected(self, transport):
            if push:
                clients.append(transport)

        def on_ws_frame(self, transport, frame):
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code())
                transport.disconnect()
            else:
                for client in clients if push else (transport,):
                    client.send(frame.msg_type, frame.get_payload_as_bytes())

    return await ws_create_server(lambda request: Handler(), sock=listener)


# -- Codecs -----------------------------------------------------------------------------------------------------------
#
# Each returns two functions, for a library that can be used without a socket:
# parse(frames) gives a list of texts, as a server; build(text) a masked frame,
# as a client.

def codec_minws():
    parse = minws.Stream().receive
    build = minws.Stream(always_mask=True, expect_masking=False).encode
    return (lambda data: [str(message) for message in parse(data)],
            lambda text: build(minws.OPCODE_TEXT, text.encode()))


def codec_websockets():
    from websockets.frames import Frame, Opcode
    from websockets.server import ServerProtocol
    protocol = ServerProtocol()
    protocol.receive_data(REQUEST % 80)
    protocol.send_response(protocol.accept(protocol.events_received()[0]))

    def parse(data):
        protocol.receive_data(data)
        return [frame.data.decode() for frame in protocol.events_received()]

    return parse, lambda text: Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


def codec_wsproto():
    from wsproto.connection import Connection, ConnectionType
    from wsproto.events import TextMessage
    server, client = Connection(ConnectionType.SERVER), Connection(ConnectionType.CLIENT)

    def parse(data):
        server.receive_data(data)
        return [event.data for event in server.events()]

    return parse, lambda text: client.send(TextMessage(data=text))


# -- Peers ------------------------------------------------------------------------------------------------------------

Peer = namedtuple('Peer', 'modules serve codec')
Peer.__doc__ = """What its users import, '' if another peer stands for it; its functions above, None if it has none."""

PEERS = {
    'raw': Peer('select, socket', serve_raw, None),
    'minws': Peer('minws', serve_minws, codec_minws),
    'minws-threads': Peer('', serve_minws_threads, None),
    'websockets': Peer('websockets.asyncio.server', serve_websockets, codec_websockets),
    'websockets-sync': Peer('websockets.sync.server', serve_websockets_sync, None),
    'ws4py': Peer('ws4py.server.wsgirefserver, ws4py.websocket', serve_ws4py, None),
    'aiohttp': Peer('aiohttp.web', serve_aiohttp, None),
    'tornado': Peer('tornado.web, tornado.websocket', serve_tornado, None),
    'picows': Peer('picows', serve_picows, None),
    'wsproto': Peer('wsproto', None, codec_wsproto),
}


def package(name):
    """Return the package of a peer."""
    return (PEERS[name].modules or 'minws').replace(',', '.').split('.')[0]


def version(name):
    """Return the version of an installed peer, '?' if it cannot be had without importing it."""
    if package(name) == 'minws':
        return minws.__version__
    try:
        from importlib import metadata  # since Python 3.8
        return metadata.version(package(name))
    except ImportError:  # PackageNotFoundError is one
        return '?'


# -- Measuring --------------------------------------------------------------------------------------------------------
#
# A server is a child process: it prints its port, answers each line of stdin with the CPU time that it has used, and
# ends when its stdin does, so that it cannot outlive the parent.

def serve_child(name, push):
    """Be the server of a peer."""
    def answer():
        for _ in sys.stdin:
            print(repr(time.process_time()), file=answers, flush=True)
        os._exit(0)

    allow_files()
    listener = socket.socket(proto=socket.IPPROTO_TCP)  # asyncio sets TCP_NODELAY only if the socket says what it is
    listener.bind(('127.0.0.1', 0))
    listener.listen(128)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print, but not there
    print(listener.getsockname()[1], file=answers, flush=True)
    threading.Thread(target=answer, daemon=True).start()
    starting = PEERS[name].serve(listener, push, [])
    if starting is not None:
        import asyncio

        async def serve_forever():
            server = await starting
            await asyncio.Event().wait()
            return server  # which would be closed if nobody held it until here

        asyncio.new_event_loop().run_until_complete(serve_forever())  # asyncio.run() came after Python 3.6


class Server:
    """The parent's end of such a child, to be closed; `clients` are connections that last as long."""

    def __init__(self, name, push):
        self.raw, self.push, self.port, self.clients = name == 'raw', push, None, []
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [PYTHON, os.path.abspath(__file__), 'child', name] + ['push'] * push, env=environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)

    def close(self):
        self.kill()
        for file in [self.process.stdin, self.process.stdout, self.errors] + self.clients:
            file.close()

    def kill(self):
        """Kill the process; return the last line of its complaints, or ''."""
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        return last_line(self.errors.read())

    @contextlib.contextmanager
    def deadline(self, seconds):
        """Kill the process, so that all reading from it ends, if the block takes that long and PATIENCE.

        What goes wrong in the block is a ValueError, which also says what the process complained about.
        """
        seconds += PATIENCE
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            self.port = self.port or int(self.line())  # it is ready when it says so
            yield
        except (OSError, ValueError) as error:
            reason = str(error) if time.monotonic() < end else 'took more than %d s' % seconds
            raise ValueError(': '.join(filter(None, (reason, self.kill()))))
        finally:
            timer.cancel()

    def line(self):
        """Return the next line that the process prints."""
        line = self.process.stdout.readline()
        if not line:
            raise ValueError('ended')
        return line

    def cpu(self):
        """Return the seconds of CPU time that the process has used."""
        os.write(self.process.stdin.fileno(), b'\n')  # not buffered, so nothing is left over for close() to fail on
        return float(self.line())

    def crowd(self, count):
        """Return that many clients; new ones are answered once, one after the other, so that the server knows them."""
        sent, answer = wire(['hello'], self.raw)
        while len(self.clients) < count:
            self.clients.append(connect(self.port))
            if len(self.clients) == 1:  # its descriptor is the lowest free number, which is how many are open
                limit = allow_files()
                if self.clients[0].fileno() + count + OTHER_FILES > limit:
                    raise ValueError('the limit of open files, %d, does not allow it' % limit)
            self.clients[-1].sendall(sent)
            for client in self.clients if self.push else self.clients[-1:]:
                expect(client, answer)
        return self.clients[:count]


def connect(port):
    """Return a socket after its handshake; all calls wait without limit, see Server.deadline."""
    sock = socket.create_connection(('127.0.0.1', port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(REQUEST % port)
    head = b''
    while not head.endswith(b'\r\n\r\n'):  # no server says more of its own accord
        piece = sock.recv(4096)
        if not piece:
            raise ValueError('closed the connection')
        head += piece
    if not head.startswith(b'HTTP/1.1 101') or ACCEPT not in head:
        raise ValueError('answered the handshake with %s' % head.split(b'\r\n')[0].decode('latin-1'))
    return sock


def expect(sock, wanted):
    """Read the bytes wanted; anything else is a ValueError."""
    data = bytearray(len(wanted))
    rest = memoryview(data)
    while rest:
        size = sock.recv_into(rest)
        if not size:
            raise ValueError('closed the connection')
        rest = rest[size:]
    if data != wanted:
        raise ValueError('sent other bytes than those it was to send')


def allow_files():
    """Allow this process as many open files as can be had; return how many."""
    if resource is None:
        return float('inf')
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for soft in (10240, 1 << 14, hard):  # macOS says that there is no limit, and refuses more than 10240 or so
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return float('inf') if soft == resource.RLIM_INFINITY else soft


def environment():
    """Return the environment of a child, which imports minws from where we did."""
    path = [os.path.dirname(os.path.abspath(minws.__file__)), os.environ.get('PYTHONPATH')]
    # '' is no: what pip installs comes compiled, so what was only copied may keep its compiled form, too
    return dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, path)), PYTHONDONTWRITEBYTECODE='')


def last_line(output):
    """Return the last line that is not empty, of bytes, as text."""
    return output.decode('utf-8', 'replace').strip().split('\n')[-1].strip()


def repeat(step, seconds, cpu, most=float('inf')):
    """Call `step`, which returns a number of messages, for some seconds, or until it was `most` of them.

    Return the microseconds of CPU time for one, by the clock `cpu`, and how many there were in a second.
    """
    count, used, started, passed = 0, cpu(), time.perf_counter(), 0
    while passed < seconds and count < most:
        count += step()
        passed = time.perf_counter() - started
    return (cpu() - used) / count * 1e6, count / passed


# -- Workloads --------------------------------------------------------------------------------------------------------
#
# Functions of a subject (an open Server, or where there is none, a Peer), the seconds it may take, and what varies.
# They return the microseconds of CPU time for one of what is counted, and how many there were in a second.

def readings(count):
    """Return different texts of SIZE characters, such as a sensor sends."""
    return [json.dumps({'sensor': 'accelerometer', 'values': [number / 7, 9.81, -number / 3], 'time': 1.7e9 + number})
            .ljust(SIZE)[:SIZE] for number in range(count)]


def wire(messages, raw):
    """Return what a client sends, and what the server is to answer, for texts and bytes."""
    frames = [minws.Frame(minws.OPCODE_TEXT, message.encode(), fin=1) if isinstance(message, str) else
              minws.Frame(minws.OPCODE_BINARY, message, fin=1) for message in messages]
    answer = b''.join(frame.build() for frame in frames)
    for frame in frames:
        frame.masking_key = os.urandom(4)
    sent = b''.join(frame.build() for frame in frames)
    return sent, sent if raw else answer


def exchange(server, seconds, size=0, connections=1, batch=1, ahead=0):
    """Send a batch of messages on 1 % of the connections and read the answers, again and again.

    `ahead` batches more are in flight. If the server pushes, all connections get an answer, and all are counted.
    Without a size in bytes, messages are small texts.
    """
    messages = [os.urandom(size) for _ in range(batch)] if size else readings(batch)
    sent, answer = wire(messages, server.raw)
    # raw answers before it has read everything: it would wait for us to read, while we wait for it
    piece = 1 << 16 if server.raw else len(sent)
    with server.deadline(seconds + connections / 100):  # a slow phone takes 10 ms for a handshake
        everybody = server.crowd(connections)
        senders = everybody[::100]
        readers = everybody if server.push else senders

        def step():
            for at in range(0, len(sent), piece):
                for sender in senders:
                    sender.sendall(sent[at:at + piece])
                for reader in readers:
                    expect(reader, answer[at:at + piece])
            return len(readers) * batch

        for sender in senders * ahead:
            sender.sendall(sent)
        result = repeat(step, seconds, server.cpu)
        for reader in readers * ahead:
            expect(reader, answer)
        return result


def handshake(server, seconds):
    """Connect and close, and wait until the server has done so too, so that it does no work for us later."""
    def step():
        with connect(server.port) as sock, contextlib.suppress(OSError):  # a reset is an end as well
            sock.sendall(CLOSE)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        return 1

    with server.deadline(seconds):
        return repeat(step, seconds, server.cpu, MOST_HANDSHAKES)


def codec(peer, seconds):
    texts = readings(BATCH)
    parse, build = peer.codec()

    def step():
        if parse(b''.join(map(build, texts))) != texts:
            raise ValueError('does not parse what it has built')
        return BATCH

    return repeat(step, seconds, time.process_time)


# getrusage comes second: on Linux it counts what the parent had in memory when it started the child
IMPORT = """
import sys, time
started = time.process_time()
import %s
used = time.process_time() - started
try:
    with open('/proc/self/statm') as file:
        size = int(file.read().split()[1]) * __import__('os').sysconf('SC_PAGE_SIZE')
except OSError:
    try:
        import resource
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
    except ImportError:
        size = 0
print([used * 1e6, size / 1048576.0])
"""


def import_it(peer, seconds):
    """Return the microseconds of CPU time of the import, and the MiB of memory in which the process then resides."""
    done = subprocess.run([PYTHON, '-c', IMPORT % peer.modules], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=PATIENCE, env=environment())
    if done.returncode:
        raise ValueError(last_line(done.stderr) or 'exit status %d' % done.returncode)
    return json.loads(last_line(done.stdout))


Workload = namedtuple('Workload', 'title measure uses columns varies')
Workload.__new__.__defaults__ = 'serve', ('/ minws', '/ raw', 'per second'), ''
Workload.__doc__ = """Its title, its function, what it needs of a Peer, the last columns of its table, and what varies.

The last column is what is measured beside CPU time. What varies is the name of an option, or '' if nothing does.
"""

WORKLOADS = {
    'echo': Workload('%d B text, one connection, 2 x %d in flight' % (SIZE, BATCH),
                     partial(exchange, batch=BATCH, ahead=1)),
    'pingpong': Workload('%d B text, one connection, one in flight' % SIZE, exchange),
    'broadcast': Workload('%d B text to %d connections, for each' % (SIZE, SUBSCRIBERS),
                          partial(exchange, connections=SUBSCRIBERS)),
    'large': Workload('1 MiB binary, one connection, one in flight', partial(exchange, size=1 << 20)),
    'handshake': Workload('connect, upgrade and close', handshake),
    'codec': Workload('build and parse a masked frame of %d B' % SIZE, codec, 'codec'),
    'import': Workload('by a new process', import_it, 'modules', ('/ minws', '/ raw', 'resident MiB')),
    'scale': Workload('%d B text, on 1 %% of the connections, one in flight' % SIZE, exchange,
                      columns=('/ first', '/ raw', 'per second'), varies='connections'),
    'size': Workload('binary, one connection, one in flight', exchange,
                     columns=('us / KiB', '/ raw', 'per second'), varies='size'),
}


def groups(name, peers, options):
    """Return lists of cases to be measured in turn; a case is its name, its peer, and a dict of what varies."""
    varies = WORKLOADS[name].varies
    if not varies:
        return [[(peer, peer, {}) for peer in peers if getattr(PEERS[peer], WORKLOADS[name].uses)]]
    return [[('%s %s' % (peer, readable(value) if varies == 'size' else value), peer, {varies: value})
             for value in getattr(options, varies)] for peer in ('minws', 'raw') if peer in peers]


def measure(name, cases, options):
    """Measure the cases in turn, round after round; return {case: row}.

    A row is a dict of what varies and of two lists, `us` and what is measured beside it, which have an item for each
    round. If the case failed, it also has `failed`, the reason.
    """
    workload = WORKLOADS[name]
    other = workload.columns[-1]
    rows = {case: dict(varied, us=[], **{other: []}) for case, _, varied in cases}
    with contextlib.ExitStack() as stack:
        subjects = [PEERS[peer] if workload.uses != 'serve' else
                    stack.enter_context(contextlib.closing(Server(peer, name == 'broadcast'))) for _, peer, _ in cases]
        # the first is not counted: libraries import and compile things when they are first needed
        for seconds in [options.seconds / 10] + [options.seconds] * options.rounds:
            for subject, (case, _, varied) in zip(subjects, cases):
                try:
                    if 'failed' not in rows[case]:
                        us, count = workload.measure(subject, seconds, **varied)
                        rows[case]['us'].append(us)
                        rows[case][other].append(count)
                except Exception as error:  # whatever a library does wrong: it is a row of the table
                    rows[case]['failed'] = str(error) or repr(error)
    for row in rows.values():
        del row['us'][:1], row[other][:1]
    return rows


# -- Tables and the chart ---------------------------------------------------------------------------------------------

INFINITE = float('inf')


def readable(size):
    """Return a number of bytes as text."""
    power = 2 if size % (1 << 20) == 0 else 1 if size % 1024 == 0 else 0
    return '%d %s' % (size >> 10 * power, ('B', 'KiB', 'MiB')[power])


def figure(number):
    """Return a number with three digits, without exponents, '-' for what is not known."""
    return '%.*f' % (2 if number < 9.995 else 1 if number < 99.95 else 0, number) if 0 < number < INFINITE else '-'


def median(row, key='us'):
    """Return the median of a row, infinite if it failed."""
    return INFINITE if 'failed' in row else statistics.median(row[key])


def cell(rows, case, column):
    """Return the text of a column of a row."""
    peer, us = case.split()[0], median(rows[case])
    if column == 'us / KiB':
        return figure(us * 1024 / rows[case]['size'])
    if not column.startswith('/ '):
        return figure(median(rows[case], column))
    first = next(other for other in rows if other.split()[0] == peer)
    base = first if column == '/ first' else case.replace(peer, column[2:], 1)
    return figure(us / (median(rows[base]) or INFINITE)) if base in rows else '-'


def ranked(rows):
    """Return the cases, those that take least first, those that failed last."""
    return sorted(rows, key=lambda case: median(rows[case]))


def table(name, rows):
    """Return the lines of a markdown table, at most 80 columns."""
    _, _, _, columns, varies = WORKLOADS[name]
    cells = [(varies or 'peer', 'us (low-high)') + columns]
    for case in rows if varies else ranked(rows):
        spread = 'failed' if 'failed' in rows[case] else '%s (%s-%s)' % tuple(
            figure(choose(rows[case]['us'])) for choose in (statistics.median, min, max))
        cells.append([case, spread] + [cell(rows, case, column) for column in columns])
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ['-' * widths[0]] + ['-' * (width - 1) + ':' for width in widths[1:]])
    lines = ['', '%s: %s' % (name, WORKLOADS[name].title), '']
    for first, *others in cells:
        others = [text.rjust(width) for text, width in zip(others, widths[1:])]
        lines.append('| %s |' % ' | '.join([first.ljust(widths[0])] + others))
    for case in rows:
        if 'failed' in rows[case]:
            lines += [''] + textwrap.wrap('%s failed: %s' % (case, rows[case]['failed']), 80)
    return lines


WIDTH, MARGIN, LEFT, ROOM = 400, 12, 122, 162  # of the chart, its margin, where bars begin, the longest bar
NOTE = 62  # characters of a line below the bars

SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="%s">
<style>
svg { width: 100%%; max-width: 720px; height: auto; font: 12px system-ui, sans-serif; background: #fff; fill: #1f2328 }
.title { font-size: 15px; font-weight: bold } .workload { font-weight: bold } .note { fill: #59636e; font-size: 11px }
.bar { fill: #b4bec9 } .ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
svg { background: #0d1117; fill: #e6edf3 } .note { fill: #9198a1 } .bar { fill: #4a535e } .ours { fill: #4493f8 }
}
</style>
%s
</svg>
"""
BAR = ('<g><text x="%d" y="%d">%s</text><rect x="%d" y="%d" width="%.2f" height="11" class="%s"/>'
       '<text x="%.2f" y="%d">%s</text></g>')


def chart(results, notes):
    """Return an SVG with a group of bars for each workload in which nothing varies; notes are lines below them."""
    title = 'minws %s beside others: CPU time' % minws.__version__
    parts, y = [], 24

    def text(x, content, kind):
        parts.append('<text x="%d" y="%d" class="%s">%s</text>' % (x, y, kind, escape(content)))

    text(MARGIN, title, 'title')
    y += 18
    text(MARGIN, 'The shorter the better; × is how many times that of minws', 'note')
    for name, rows in results.items():
        if WORKLOADS[name].varies:
            continue
        y += 34
        text(MARGIN, name, 'workload')
        text(LEFT, WORKLOADS[name].title, 'note')
        longest = max([median(row) for row in rows.values() if 'failed' not in row] or [0]) or 1
        for peer in ranked(rows):
            y += 19
            us, times = median(rows[peer]), cell(rows, peer, '/ minws')
            label = 'failed' if us == INFINITE else figure(us) + ' µs' if us < 10000 else figure(us / 1000) + ' ms'
            label += '' if times == '-' or peer == 'minws' else ' · %s×' % times
            width = 0 if us == INFINITE else ROOM * us / longest
            parts.append(BAR % (MARGIN, y, peer, LEFT, y - 10, width, 'bar ours' if peer.startswith('minws') else 'bar',
                                LEFT + width + 5, y, label))
    y += 20
    for line in notes:
        y += 15
        text(MARGIN, line, 'note')
    return SVG % (WIDTH, y + MARGIN, WIDTH, escape(title), '\n'.join(parts))


# -- Command line -----------------------------------------------------------------------------------------------------

def machine():
    """Return a dict of what the figures depend on."""
    model = platform.processor()
    with contextlib.suppress(OSError):  # Linux; boards say Model or Hardware, others model name
        with open('/proc/cpuinfo', encoding='utf-8', errors='replace') as file:
            fields = dict(map(str.strip, line.split(':', 1)) for line in file if ':' in line)
        model = fields.get('Model') or fields.get('model name') or fields.get('Hardware') or model
    return {'system': platform.platform(), 'model': model or platform.machine(), 'CPUs': os.cpu_count(),
            'Python': '%s %s' % (platform.python_implementation(), platform.python_version())}


def some_of(known):
    """Return a type for argparse: some names out of `known`, with commas between them."""
    def names(text):
        for name in text.split(','):
            if name not in known:
                raise argparse.ArgumentTypeError('%s is none of %s' % (name, ', '.join(known)))
        return [name for name in known if name in text.split(',')]
    return names


def numbers(text):
    """Return the numbers in a text, the lowest first; a type for argparse."""
    return sorted(set(map(int, text.split(','))))


def parse_arguments():
    parser = argparse.ArgumentParser(description='Measure minws beside other WebSocket libraries.')
    parser.add_argument('--seconds', type=float, default=1, help='for each measurement (%(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='measurements of each peer (%(default)s)')
    parser.add_argument('--only', type=some_of(WORKLOADS), default=list(WORKLOADS), metavar='WORKLOAD,...',
                        help='some of %s' % ', '.join(WORKLOADS))
    parser.add_argument('--peers', type=some_of(PEERS), default=list(PEERS), metavar='PEER,...',
                        help='some of %s' % ', '.join(PEERS))
    parser.add_argument('--connections', type=numbers, default=CONNECTIONS, metavar='NUMBER,...',
                        help='for scale (%(default)s)')
    parser.add_argument('--sizes', type=numbers, default=SIZES, metavar='BYTES,...', dest='size',
                        help='for size (%(default)s)')
    parser.add_argument('--svg', metavar='FILE', help='write a bar chart')
    parser.add_argument('--json', metavar='FILE', help='write all figures')
    options = parser.parse_args()
    if options.seconds <= 0 or min([options.rounds] + options.connections + options.size) < 1:
        parser.error('nothing is measured in no time')
    return options


def main():
    options = parse_arguments()
    absent = [peer for peer in options.peers if importlib.util.find_spec(package(peer)) is None]
    peers = [peer for peer in options.peers if peer not in absent]
    facts = machine()
    facts['versions'] = {package(peer): version(peer) for peer in peers if peer != 'raw'}
    notes = textwrap.wrap('%(model)s, %(CPUs)s CPUs, %(system)s, %(Python)s' % facts, NOTE)
    notes += textwrap.wrap(', '.join('%s %s' % item for item in sorted(facts['versions'].items())), NOTE)
    if absent:
        notes += textwrap.wrap('Not installed: ' + ', '.join(absent), NOTE)
    print('\n'.join(notes), flush=True)
    results = {}
    for name in options.only:
        results[name] = {}
        for group in groups(name, peers, options):
            results[name].update(measure(name, group, options))
        print('\n'.join(table(name, results[name])), flush=True)
    for path, content in ((options.svg, chart(results, notes)),
                          (options.json, json.dumps({'machine': facts, 'workloads': results}, indent=1))):
        if path:
            with open(path, 'w', encoding='utf-8') as file:
                file.write(content)


if __name__ == '__main__':
    try:
        if sys.argv[1:2] == ['child']:
            serve_child(sys.argv[2], sys.argv[3:] == ['push'])
        else:
            main()
    except KeyboardInterrupt:
        sys.exit('interrupted')
    except OSError as error:
        sys.exit(str(error))
