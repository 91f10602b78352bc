"""Peers that stand between minws and something else: nginx, with minws behind it, and websocketd, with a program."""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from .ends import DEADLINE, End, Peer, PeerError

HERE = os.path.dirname(os.path.abspath(__file__))
POLL_PERIOD = 0.02  # seconds between two attempts to reach a program that is starting


def listening_socket():
    """Return a socket that listens on a free port of this machine."""
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen(64)
    return sock


class Nginx(Peer):
    """minws.connect through nginx to minws.serve."""
    name = 'nginx'
    how_to_get = 'apt-get install nginx openssl'
    roles = 'server',

    def is_here(self):
        return shutil.which('nginx') is not None and shutil.which('openssl') is not None

    def start(self, bench):
        Peer.start(self, bench)
        self.accepted = bench.accepted
        self.directory = tempfile.mkdtemp(prefix='nginx-')
        # It takes over listening sockets that it is told of, as at its upgrades; so no port can be lost to anybody.
        listeners = [listening_socket(), listening_socket()]
        self.ports = {tls: sock.getsockname()[1] for tls, sock in zip((False, True), listeners)}
        environ = dict(os.environ, NGINX=''.join('%d;' % sock.fileno() for sock in listeners))
        self.process = subprocess.Popen(
            ['nginx', '-p', self.directory, '-c', self.write_configuration()], env=environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[sock.fileno() for sock in listeners])
        for sock in listeners:
            sock.close()

    def write_configuration(self):
        plain, deflate = self.bench.port(deflate=False), self.bench.port(deflate=True)
        with open(os.path.join(HERE, 'nginx.conf')) as template:
            text = template.read() % dict(
                directory=self.directory, port=self.ports[False], tls_port=self.ports[True], plain=plain,
                deflate=deflate, certificate=self.bench.certificate, key=self.bench.key)
        name = os.path.join(self.directory, 'nginx.conf')
        with open(name, 'w') as file:
            file.write(text)
        return name

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory)

    def url(self, style, options):
        return Peer.url(self, style, options) + '%s/%s' % ('deflate' if options.deflate else 'plain', style)


class ProgramEnd(End):
    """A program that websocketd runs, through relay.py: a line of text is a message."""
    types = str,
    subprotocol = None
    extensions = []

    def __init__(self, sock):
        self.sock = sock
        self.lines = sock.makefile('rb')

    def send(self, message):
        self.sock.sendall(message.encode() + b'\n')

    def recv(self):
        line = self.lines.readline()
        if not line:
            raise ConnectionError('the program has ended')
        return line[:-1].decode()

    def release(self):
        self.lines.close()
        self.sock.close()


class Websocketd(Peer):
    """minws.connect to websocketd, which runs relay.py."""
    name = 'websocketd'
    how_to_get = 'apt-get install websocketd, or http://websocketd.com/'
    roles = 'server',
    # Programs see lines: no bytes (or, by an option, nothing else), and no close codes.
    unable = ('binary', 'close', 'subprotocol', 'deflate-text', 'deflate-binary', 'deflate-large',
              'deflate-fragments', 'tls')
    one_way = 'fragments', 'ping'

    def is_here(self):
        return shutil.which('websocketd') is not None

    def start(self, bench):
        Peer.start(self, bench)
        self.process = None
        self.relays = listening_socket()
        self.relays.settimeout(DEADLINE)

    def stop(self):
        self.relays.close()
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def listen(self, tls):
        with listening_socket() as free:  # it cannot be told of a socket, and takes port 0 for 80
            port = free.getsockname()[1]
        relay = [sys.executable, os.path.join(HERE, 'relay.py'), str(self.relays.getsockname()[1])]
        self.process = subprocess.Popen(
            ['websocketd', '--address=127.0.0.1', '--port=%d' % port] + relay,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.await_port(port)
        return port

    def await_port(self, port):
        deadline = time.monotonic() + DEADLINE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(('127.0.0.1', port)).close()
                return
            except OSError:
                time.sleep(POLL_PERIOD)
        raise PeerError('websocketd does not start (exit status %s)' % self.process.poll())

    def accept(self):
        sock, _ = self.relays.accept()
        sock.settimeout(DEADLINE)
        return ProgramEnd(sock)
