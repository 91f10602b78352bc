"""One end of a connection as the checks use it, whoever implements it; what a peer is; and the ends that are minws."""
import codecs
import collections
import queue
import threading

import minws

DEADLINE = 10.0  # seconds for anything that should take a moment

SUBPROTOCOL = 'readings.v1'  # what servers know, beside others

# What a client asks for: names or None, whether to offer permessage-deflate, and the file of the certificate to trust
# (None: no TLS).
Options = collections.namedtuple('Options', 'subprotocols deflate cafile')


class PeerError(Exception):
    """A peer did not do what it was told."""


class End:
    """One end of an open connection; what waits raises an exception after DEADLINE seconds at most.

    Attributes: `subprotocol`, a str or None, and `extensions`, the list of names negotiated, as this end sees them;
    `types`, those of the messages that it can tell apart.
    """
    types = str, bytes

    def send(self, message):
        """Send a str as text, bytes as binary."""
        raise NotImplementedError

    def send_fragments(self, pieces, text):
        """Send one message, each of pieces (bytes, that may end within a character) a frame of it."""
        raise NotImplementedError

    def recv(self):
        """Return the next message, str or bytes."""
        raise NotImplementedError

    def ping(self):
        """Send a ping and wait for its pong."""
        raise NotImplementedError

    def close(self, code, reason):
        """Close, and return the code that the other end answered, None if this implementation does not tell."""
        raise NotImplementedError

    def closed(self):
        """Wait until the other end has closed; return its (code, reason)."""
        raise NotImplementedError

    def release(self):
        """Let go of the connection, whatever its state; raises nothing."""


class Peer:
    """An implementation of WebSocket. It is started once, and then makes connections as a client, a server, or both."""
    name = ''
    how_to_get = ''         # said when it is missing
    roles = ()              # of 'client' and 'server'
    unable = ()             # names of checks that make no sense with it
    one_way = ()            # names of checks that it can only be the receiving end of

    def is_here(self):
        """Tell whether it is installed."""
        raise NotImplementedError

    def start(self, bench):
        """Prepare; `bench` is the Bench with our servers and the certificate."""
        self.bench = bench
        self.ports = {}
        self.accepted = queue.Queue()

    def stop(self):
        """End all that start() and listen() began."""

    def connect(self, url, options):
        """Client: return the End of a new connection."""
        raise NotImplementedError

    def url(self, style, options):
        """Server: return where to connect to. `style` is that of our server, if the peer has one behind it."""
        tls = options.cafile is not None
        if tls not in self.ports:
            self.ports[tls] = self.listen(tls)
        return '%s://127.0.0.1:%d/' % ('wss' if tls else 'ws', self.ports[tls])

    def listen(self, tls):
        """Server: serve on a free port, and return it."""
        raise NotImplementedError

    def accept(self):
        """Server: return the End of the connection that was just made."""
        return self.accepted.get(timeout=DEADLINE)

    def forget(self):
        """Server: release connections that nobody accepted, because their check failed."""
        while not self.accepted.empty():
            self.accepted.get().release()


class Arrivals:
    """What one thread hands to another; after `end`, taking anything raises ConnectionError."""

    def __init__(self):
        self.items = queue.Queue()
        self.ended = threading.Event()
        self.last = None

    def put(self, item):
        self.items.put((item,))

    def end(self, code, reason):
        """There is no more: the connection ended with code and reason."""
        self.last = code, reason
        self.ended.set()
        self.items.put(None)

    def get(self):
        item = self.items.get(timeout=DEADLINE)
        if item is None:
            raise ConnectionError('closed with %r' % (self.last,))
        return item[0]

    def get_end(self):
        """Return the (code, reason) of the end."""
        if not self.ended.wait(DEADLINE):
            raise TimeoutError('the connection did not end')
        return self.last


class OurEnd(End):
    """A minws.WebSocket."""

    def __init__(self, ws):
        self.ws = ws

    @property
    def subprotocol(self):
        return self.ws.subprotocol

    @property
    def extensions(self):
        return [extension.name for extension in self.ws.extensions or ()]

    def send(self, message):
        self.ws.send(message)

    def send_fragments(self, pieces, text):
        self.ws.send(codecs.iterdecode(pieces, 'utf-8') if text else pieces)  # str pieces: whole characters

    def ping(self):
        if not self.ws.ping().wait(DEADLINE):
            raise TimeoutError('no pong')

    def close(self, code, reason):
        self.ws.close(code, reason)
        return self.closed()[0]

    def release(self):
        self.ws.close()


class ConnectedEnd(OurEnd):
    """What minws.connect returned: whoever calls recv reads."""

    def recv(self):
        return self.ws.recv(DEADLINE)

    def closed(self):
        try:
            message = self.ws.recv(DEADLINE)
        except minws.ConnectionClosed as error:
            return error.code, error.reason
        raise PeerError('a message instead of the end: %.40r' % (message,))


class ServedEnd(OurEnd):
    """A connection of minws.serve: its handler reads, and hands over what comes."""

    def __init__(self, ws):
        OurEnd.__init__(self, ws)
        self.arrivals = Arrivals()

    def recv(self):
        return self.arrivals.get()

    def closed(self):
        return self.arrivals.get_end()


def function_handler(accepted):
    """Return a handler function that puts a ServedEnd into the queue `accepted` for each connection."""
    def hand_over(ws):
        end = ServedEnd(ws)
        accepted.put(end)
        try:
            for message in ws:
                end.arrivals.put(message)
        except minws.ConnectionClosed:
            pass  # closed with another code than 1000 or 1001
        end.arrivals.end(ws.close_code, ws.close_reason)
    return hand_over


def class_handler(accepted):
    """Return a WebSocket class whose connections do the same in the server's loop."""
    class HandOver(minws.WebSocket):
        def opened(self):
            self.end = ServedEnd(self)
            accepted.put(self.end)

        def received_message(self, message):
            self.end.arrivals.put(str(message) if message.is_text else message.data)

        def closed(self, code, reason=None):
            self.end.arrivals.end(code, (reason or b'').decode())
    return HandOver
