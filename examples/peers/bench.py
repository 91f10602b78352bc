"""Our own servers, a certificate, and pairs of connected ends: one is minws, the other a peer."""
import collections
import contextlib
import os
import queue
import shutil
import ssl
import subprocess
import tempfile

import minws

from .ends import DEADLINE, SUBPROTOCOL, ConnectedEnd, Options, class_handler, function_handler
from .proxies import Nginx, Websocketd
from .python_peers import Aiohttp, WebsocketClient, WebsocketsTasks, WebsocketsThreads
from .script_peers import Chromium, Node

PEERS = (WebsocketsThreads, WebsocketsTasks, WebsocketClient, Aiohttp, Node, Chromium, Nginx, Websocketd)


class Row(collections.namedtuple('Row', 'peer role style')):
    """A peer class, its role, and the style of our server ('function', 'class', or None where there is none)."""

    def __str__(self):
        if self.role == 'client':
            return '%s -> serve(%s)' % (self.peer.name, self.style)
        return 'connect -> %s%s' % (self.peer.name, ' -> serve(%s)' % self.style if self.style else '')


def all_rows():
    """Yield the rows of the table, those in which minws is the server first."""
    for peer in PEERS:
        if 'client' in peer.roles:
            yield Row(peer, 'client', 'function')
            yield Row(peer, 'client', 'class')
    for peer in PEERS:
        if peer is Nginx:
            yield Row(peer, 'server', 'function')
            yield Row(peer, 'server', 'class')
        elif 'server' in peer.roles:
            yield Row(peer, 'server', None)


ROWS = list(all_rows())


class NotInstalled(Exception):
    """What is missing, and how to get it."""


class Bench:
    """What checks run on: servers and peers start when they are first needed, and end with the block."""

    def __enter__(self):
        self.accepted = queue.Queue()
        self.servers = {}
        self.peers = {}
        self.absent = {}
        self.directory = tempfile.mkdtemp(prefix='peers-')
        self.certificate = os.path.join(self.directory, 'certificate.pem')
        self.key = os.path.join(self.directory, 'key.pem')
        if shutil.which('openssl'):
            subprocess.check_output(
                ['openssl', 'req', '-x509', '-nodes', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1',
                 '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1,DNS:localhost',
                 '-keyout', self.key, '-out', self.certificate], stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *exception):
        with contextlib.ExitStack() as stack:  # each gets its turn, whatever the others raise
            stack.callback(shutil.rmtree, self.directory)
            for server in self.servers.values():
                stack.callback(server.shutdown)
            for peer in self.peers.values():
                stack.callback(peer.stop)

    # Our servers

    def server_context(self, tls):
        """Return the SSLContext of a server, None if tls is False."""
        if not tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def port(self, deflate=False, tls=False):
        """Return the port of a server of ours that has both styles."""
        if (deflate, tls) not in self.servers:
            routes = {'/function': function_handler(self.accepted), '/class': class_handler(self.accepted)}
            self.servers[deflate, tls] = minws.serve(
                routes, '127.0.0.1', 0, ssl=self.server_context(tls), compression='deflate' if deflate else None,
                subprotocols=['chat', SUBPROTOCOL], pages={'/page': b'<!doctype html><title>peers</title>'}).start()
        return self.servers[deflate, tls].port

    def page_url(self, options):
        """Return the URL of an empty page, from where a browser may connect to url(style, options)."""
        return 'http://127.0.0.1:%d/page' % self.port(options.deflate)

    def url(self, style, options):
        """Return where a client that wants `options` finds the handler of a style."""
        tls = options.cafile is not None
        return '%s://127.0.0.1:%d/%s' % ('wss' if tls else 'ws', self.port(options.deflate, tls), style)

    # Peers

    def is_missing(self, kind):
        """Tell whether the peer of a class is not installed."""
        if kind not in self.absent:
            self.absent[kind] = not kind().is_here()
        return self.absent[kind]

    def peer(self, kind):
        """Return the peer of a class, running; raises NotInstalled."""
        if kind not in self.peers:
            if self.is_missing(kind):
                raise NotInstalled(kind.how_to_get)
            peer = kind()
            peer.start(self)
            self.peers[kind] = peer
        return self.peers[kind]

    @contextlib.contextmanager
    def pair(self, row, subprotocols=None, deflate=False, tls=False):
        """Connect, and yield (our end, the peer's end)."""
        peer = self.peer(row.peer)
        if tls and not os.path.exists(self.certificate):
            raise NotInstalled('apt-get install openssl')
        options = Options(subprotocols, deflate, self.certificate if tls else None)
        ours, theirs = self.connected(row, peer, options)
        try:
            yield ours, theirs
        finally:  # the client first: it is the one whose end nobody reads
            for end in (theirs, ours) if row.role == 'client' else (ours, theirs):
                end.release()

    def connected(self, row, peer, options):
        while not self.accepted.empty():
            self.accepted.get().release()
        if row.role == 'client':
            theirs = peer.connect(self.url(row.style, options), options)
            return self.accepted.get(timeout=DEADLINE), theirs
        peer.forget()
        uri = peer.url(row.style, options)
        context = ssl.create_default_context(cafile=options.cafile) if options.cafile else None
        ours = minws.connect(
            uri, subprotocols=options.subprotocols, compression='deflate' if options.deflate else None, ssl=context,
            origin='/'.join(uri.split('/')[:3]).replace('ws', 'http', 1), proxy=None)
        return ConnectedEnd(ours), peer.accept()
