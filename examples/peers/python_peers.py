"""Peers that are Python packages: websockets in threads and in asyncio, websocket-client, and aiohttp.

Each is imported when it is used: none of them has to be there.
"""
import asyncio
import contextlib
import importlib.util
import ssl
import threading

from .ends import DEADLINE, SUBPROTOCOL, Arrivals, End, Peer, PeerError


class PythonPeer(Peer):
    """A package, of which `module` is there if the package is (and is new enough)."""
    module = ''
    how_to_get = 'pip install -r examples/peers/requirements.txt'

    def is_here(self):
        try:
            return importlib.util.find_spec(self.module) is not None
        except ImportError:  # not even its package
            return False


def context(options):
    """Return the SSLContext of a client, None without TLS."""
    return None if options.cafile is None else ssl.create_default_context(cafile=options.cafile)


def choose(ws, offered):
    """Return our subprotocol if it is offered; websockets' own choice refuses clients that offer none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


# -- websockets -------------------------------------------------------------------------------------------------------

class WebsocketsEnd(End):
    """What both of its flavours share."""

    def __init__(self, ws):
        self.ws = ws
        self.subprotocol = ws.subprotocol
        self.extensions = [extension.name for extension in ws.protocol.extensions]


class ThreadEnd(WebsocketsEnd):
    """A connection whose methods block."""

    def __init__(self, ws, leave=lambda: None):
        WebsocketsEnd.__init__(self, ws)
        self.leave = leave      # called when the connection is no longer needed

    def send(self, message):
        self.ws.send(message)

    def send_fragments(self, pieces, text):
        self.ws.send(pieces, text=text)

    def recv(self):
        return self.ws.recv(DEADLINE)

    def ping(self):
        if not self.ws.ping().wait(DEADLINE):
            raise TimeoutError('no pong')

    def close(self, code, reason):
        self.ws.close(code, reason)
        return self.ws.close_code

    def closed(self):
        from websockets.exceptions import ConnectionClosed
        try:
            message = self.ws.recv(DEADLINE)
        except ConnectionClosed:
            return self.ws.close_code, self.ws.close_reason
        raise PeerError('a message instead of the end: %.40r' % (message,))

    def release(self):
        self.ws.close()
        self.leave()


class WebsocketsThreads(PythonPeer):
    """The package websockets, its threading implementation."""
    name = 'websockets sync'
    module = 'websockets.sync.server'
    roles = 'client', 'server'
    # It reads in one thread while it writes in another, inside one TLS object, which loses data now and then: of 1,500
    # handshakes with a server of the standard library, 3 requests never arrived (websockets 17.4, CPython 3.11).
    unable = 'tls',

    def start(self, bench):
        PythonPeer.start(self, bench)
        self.servers = []

    def stop(self):
        for server, thread in self.servers:
            server.shutdown()
            thread.join(DEADLINE)

    def connect(self, url, options):
        from websockets.sync.client import connect
        stack = contextlib.ExitStack()  # what connect returns is only promised to be a context manager
        ws = stack.enter_context(connect(url, subprotocols=options.subprotocols, ssl=context(options), proxy=None,
                                         compression='deflate' if options.deflate else None))
        return ThreadEnd(ws, stack.close)

    def listen(self, tls):
        from websockets.sync.server import serve
        server = serve(self.handle, '127.0.0.1', 0, ssl=self.bench.server_context(tls), subprotocols=[SUBPROTOCOL],
                       select_subprotocol=choose)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.servers.append((server, thread))
        return server.socket.getsockname()[1]

    def handle(self, ws):
        released = threading.Event()
        self.accepted.put(ThreadEnd(ws, released.set))
        released.wait()


# -- asyncio ----------------------------------------------------------------------------------------------------------

class EventLoop:
    """An asyncio loop in a thread, that runs coroutines for other threads."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine):
        """Return the result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(DEADLINE)

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(DEADLINE)
        self.loop.close()


class AsyncioPeer(PythonPeer):
    """A peer in an event loop of its own."""
    roles = 'client', 'server'

    def start(self, bench):
        PythonPeer.start(self, bench)
        self.loop = EventLoop()
        self.loop.run(self.prepare())

    def stop(self):
        self.loop.run(self.end())
        self.loop.stop()

    async def prepare(self):
        """Begin what connections need."""

    async def end(self):
        """End servers and clients."""

    def connect(self, url, options):
        return self.loop.run(self.open(url, options))

    async def open(self, url, options):
        """Return the End of a new connection."""
        raise NotImplementedError

    def listen(self, tls):
        return self.loop.run(self.serve(self.bench.server_context(tls)))

    async def serve(self, context):
        """Serve, with TLS if context is not None, and return the port."""
        raise NotImplementedError


class WebsocketsTaskEnd(WebsocketsEnd):
    """A connection in an EventLoop."""

    def __init__(self, ws, loop):
        WebsocketsEnd.__init__(self, ws)
        self.loop = loop

    def send(self, message):
        self.loop.run(self.ws.send(message))

    def send_fragments(self, pieces, text):
        self.loop.run(self.ws.send(pieces, text=text))

    def recv(self):
        return self.loop.run(self.ws.recv())

    def ping(self):
        self.loop.run(self.ping_and_wait())

    async def ping_and_wait(self):
        await (await self.ws.ping())

    def close(self, code, reason):
        self.loop.run(self.ws.close(code, reason))
        return self.ws.close_code

    def closed(self):
        self.loop.run(self.ws.wait_closed())
        return self.ws.close_code, self.ws.close_reason

    def release(self):
        self.loop.run(self.ws.close())


class WebsocketsTasks(AsyncioPeer):
    """The package websockets, its asyncio implementation."""
    name = 'websockets asyncio'
    module = 'websockets.asyncio.server'

    async def prepare(self):
        self.servers = []

    async def end(self):
        for server in self.servers:
            server.close()
            await server.wait_closed()

    async def open(self, url, options):
        from websockets.asyncio.client import connect
        ws = await connect(url, subprotocols=options.subprotocols, ssl=context(options), proxy=None,
                           compression='deflate' if options.deflate else None)
        return WebsocketsTaskEnd(ws, self.loop)

    async def serve(self, context):
        from websockets.asyncio.server import serve
        self.servers.append(await serve(self.handle, '127.0.0.1', 0, ssl=context, subprotocols=[SUBPROTOCOL],
                                        select_subprotocol=choose))
        return self.servers[-1].sockets[0].getsockname()[1]

    async def handle(self, ws):
        self.accepted.put(WebsocketsTaskEnd(ws, self.loop))
        await ws.wait_closed()


class AiohttpEnd(End):
    """It answers pings itself, as only then does aiohttp tell of pongs; and so somebody must always be reading."""

    def __init__(self, ws, loop, subprotocol):
        self.ws = ws
        self.loop = loop
        self.subprotocol = subprotocol
        self.extensions = ['permessage-deflate'] if ws.compress else []
        self.arrivals = Arrivals()
        self.pongs = Arrivals()

    async def read(self):
        """Hand over what comes until the connection ends."""
        from aiohttp import WSMsgType
        while True:
            message = await self.ws.receive()
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                self.arrivals.put(message.data)
            elif message.type == WSMsgType.PING:
                await self.ws.pong(message.data)
            elif message.type == WSMsgType.PONG:
                self.pongs.put(bytes(message.data))
            else:
                break
        end = (message.data, message.extra) if message.type == WSMsgType.CLOSE else (self.ws.close_code, '')
        self.arrivals.end(*end)
        self.pongs.end(*end)

    def send(self, message):
        self.loop.run(self.ws.send_str(message) if isinstance(message, str) else self.ws.send_bytes(message))

    def recv(self):
        return self.arrivals.get()

    def ping(self):
        self.loop.run(self.ws.ping(b'Schlagzahl'))
        if self.pongs.get() != b'Schlagzahl':
            raise PeerError('a pong for another ping')

    def close(self, code, reason):
        self.loop.run(self.ws.close(code=code, message=reason.encode()))
        return self.ws.close_code

    def closed(self):
        return self.arrivals.get_end()

    def release(self):
        self.loop.run(self.ws.close())


class Aiohttp(AsyncioPeer):
    """The package aiohttp."""
    name = 'aiohttp'
    module = 'aiohttp'
    one_way = 'fragments', 'deflate-fragments'  # it sends whole messages only

    async def prepare(self):
        from aiohttp import ClientSession
        self.runners = []
        self.session = ClientSession()

    async def end(self):
        await self.session.close()
        for runner in self.runners:
            await runner.cleanup()

    async def open(self, url, options):
        ws = await self.session.ws_connect(url, protocols=options.subprotocols or (), ssl=context(options) or True,
                                           compress=15 if options.deflate else 0, autoping=False)
        end = AiohttpEnd(ws, self.loop, ws.protocol)
        end.reader = asyncio.ensure_future(end.read())
        return end

    async def serve(self, context):
        from aiohttp import web
        application = web.Application()
        application.router.add_get('/', self.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0, ssl_context=context).start()
        self.runners.append(runner)
        return runner.addresses[0][1]

    async def handle(self, request):
        from aiohttp import web
        ws = web.WebSocketResponse(protocols=[SUBPROTOCOL], autoping=False)
        await ws.prepare(request)
        end = AiohttpEnd(ws, self.loop, ws.ws_protocol)
        self.accepted.put(end)
        await end.read()
        return ws


# -- websocket-client -------------------------------------------------------------------------------------------------

class WebsocketClientEnd(End):
    """It reads when it is told to, and at no other time."""
    extensions = []

    def __init__(self, ws):
        self.ws = ws
        self.subprotocol = ws.subprotocol

    def send(self, message):
        send = self.ws.send if isinstance(message, str) else self.ws.send_binary
        send(message)

    def send_fragments(self, pieces, text):
        from websocket import ABNF
        opcode = ABNF.OPCODE_TEXT if text else ABNF.OPCODE_BINARY
        for index, piece in enumerate(pieces):
            self.ws.send_frame(ABNF.create_frame(piece, ABNF.OPCODE_CONT if index else opcode,
                                                 fin=int(index == len(pieces) - 1)))

    def recv(self):
        from websocket import ABNF
        opcode, data = self.ws.recv_data()
        if opcode == ABNF.OPCODE_CLOSE:
            raise ConnectionError('closed with %r' % (data,))
        return data.decode() if opcode == ABNF.OPCODE_TEXT else bytes(data)

    def ping(self):
        from websocket import ABNF
        self.ws.ping('Schlagzahl')
        opcode, frame = self.ws.recv_data_frame(control_frame=True)
        if (opcode, bytes(frame.data)) != (ABNF.OPCODE_PONG, b'Schlagzahl'):
            raise PeerError('%s instead of a pong' % frame)

    def close(self, code, reason):
        self.ws.close(code, reason.encode())
        return None

    def closed(self):
        from websocket import ABNF
        opcode, data = self.ws.recv_data()
        if opcode != ABNF.OPCODE_CLOSE:
            raise PeerError('a message instead of the end: %.40r' % (data,))
        self.ws.shutdown()  # the close frame is answered, but TCP would stay open
        return int.from_bytes(data[:2], 'big'), data[2:].decode()

    def release(self):
        self.ws.close()


class WebsocketClient(PythonPeer):
    """The package websocket-client."""
    name = 'websocket-client'
    module = 'websocket'
    roles = 'client',
    unable = 'deflate-text', 'deflate-binary', 'deflate-large', 'deflate-fragments'

    def connect(self, url, options):
        import websocket
        return WebsocketClientEnd(websocket.create_connection(
            url, timeout=DEADLINE, subprotocols=options.subprotocols, sslopt={'ca_certs': options.cafile}))
