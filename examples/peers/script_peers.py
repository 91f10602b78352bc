"""Peers that speak JavaScript: node with the package ws, and Chromium. Both run session.js."""
import base64
import json
import os
import queue
import shutil
import subprocess
import threading

from examples.browser import Browser, find_browser

from .ends import DEADLINE, SUBPROTOCOL, End, Peer, PeerError

HERE = os.path.dirname(os.path.abspath(__file__))


def read(*names):
    """Return the text of a file."""
    with open(os.path.join(*names), encoding='utf-8') as file:
        return file.read()


def to_script(data):
    """Return bytes as a value that session.js takes for bytes."""
    return base64.b64encode(data).decode()


class SessionEnd(End):
    """A Session of session.js; `evaluate` returns the value of an expression where it lives."""

    def __init__(self, evaluate, facts):
        self.evaluate = evaluate
        self.number = facts['number']
        self.subprotocol = facts['subprotocol'] or None
        self.extensions = [facts['extensions'].split(';')[0]] if facts['extensions'] else []

    def call(self, method, *arguments):
        return self.evaluate('sessions[%d].%s(%s)' % (self.number, method, ', '.join(map(json.dumps, arguments))))

    def send(self, message):
        self.call('send', message if isinstance(message, str) else {'base64': to_script(message)})

    def send_fragments(self, pieces, text):
        self.call('sendFragments', [to_script(piece) for piece in pieces], text)

    def recv(self):
        message = self.call('recv')
        return message if isinstance(message, str) else base64.b64decode(message['base64'])

    def ping(self):
        self.call('ping')

    def close(self, code, reason):
        return self.call('close', code, reason)[0]

    def closed(self):
        return tuple(self.call('closed'))

    def release(self):
        self.evaluate('sessions[%d].socket.close()' % self.number)


def open_call(url, options, **settings):
    """Return the JavaScript that opens a connection; `settings` are for ws."""
    return 'open(%s)' % ', '.join(map(json.dumps, [url, options.subprotocols or [], settings or None]))


class Node(Peer):
    """The package ws, in one node process that evaluates what it is told to."""
    name = 'ws (node)'
    how_to_get = 'apt-get install nodejs npm; (cd examples/peers && npm install --no-package-lock)'
    roles = 'client', 'server'

    def is_here(self):
        if shutil.which('node') is None:
            return False
        return subprocess.call(['node', '-e', 'require("ws")'], cwd=HERE, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0

    def start(self, bench):
        Peer.start(self, bench)
        self.process = subprocess.Popen(['node', os.path.join(HERE, 'node_peer.js')], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.answers = queue.Queue()
        self.reader = threading.Thread(target=self.read_answers)
        self.reader.start()

    def read_answers(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line.decode()))
        self.answers.put({'error': 'node has ended'})

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()

    def evaluate(self, expression):
        """Return the value of an expression, or of the promise that it is. From one thread at a time."""
        self.process.stdin.write(expression.encode() + b'\n')
        self.process.stdin.flush()
        answer = self.answers.get(timeout=2 * DEADLINE)  # it has a deadline of its own
        if 'error' in answer:
            raise PeerError(answer['error'])
        return answer.get('value')

    def connect(self, url, options):
        settings = {'perMessageDeflate': {'threshold': 0} if options.deflate else False}
        if options.cafile is not None:
            settings['ca'] = read(options.cafile)
        return SessionEnd(self.evaluate, self.evaluate(open_call(url, options, **settings)))

    def listen(self, tls):
        pair = {'cert': read(self.bench.certificate), 'key': read(self.bench.key)} if tls else None
        return self.evaluate('listen(%s, %s)' % (json.dumps(SUBPROTOCOL), json.dumps(pair)))

    def accept(self):
        return SessionEnd(self.evaluate, self.evaluate('accept()'))

    def forget(self):
        self.evaluate('forget()')


class Chromium(Peer):
    """A page of our own server, for each of its ports."""
    name = 'Chromium'
    how_to_get = 'apt-get install chromium, or name one in the environment variable CHROMIUM'
    roles = 'client',
    unable = 'tls',  # it has no argument for a certificate to trust
    one_way = 'fragments', 'deflate-fragments', 'ping'  # pages can do neither

    def is_here(self):
        return find_browser() is not None

    def start(self, bench):
        Peer.start(self, bench)
        self.browser = Browser()
        self.pages = {}

    def stop(self):
        self.browser.close()

    def connect(self, url, options):
        page_url = self.bench.page_url(options)
        if page_url not in self.pages:
            page = self.pages[page_url] = self.browser.open(page_url)
            page.evaluate(read(HERE, 'session.js') + '0')
        page = self.pages[page_url]
        return SessionEnd(page.evaluate, page.evaluate(open_call(url, options)))
