"""What the server of examples.sensors answers over HTTP: the page, the files for a phone, POST, events, the password.

All of it runs in the server's loop and must not block; hub.py describes what is said.
"""
import gzip
import hashlib
import hmac
import html
import os
import time

import minws
from examples.sensors import hub as hubs
from examples.sensors import lines, recording
from examples.sensors.hub import ENCODE, Page, Phone, Refused, Session, clean, is_ours, network_of, parse

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE = os.path.join(HERE, 'page.html')
FILES = {'minws.py': os.path.abspath(minws.__file__),
         'droid_sensor.py': os.path.join(os.path.dirname(HERE), 'droid_sensor.py')}

RETRY = 200                   # milliseconds after which a page asks for events again
FREE_TRIES = 5                # wrong passwords; then each costs time
LONGEST_WAIT = 60             # seconds
PEER = 'Sensors-Peer'         # a header of our own: a page function is given the request, and this says who sent it

# In Termux and QPython this is run by Python as it comes; both have the standard library.
START = '''\
import os, ssl, sys, urllib.request
base, push = %(base)r, %(push)r
folder = os.path.join(os.path.expanduser('~'), 'minws-sensors')
os.makedirs(folder, exist_ok=True)
context = None if %(verified)r else ssl._create_unverified_context()
for name in ('minws.py', 'droid_sensor.py'):
    with urllib.request.urlopen(base + '/' + name, context=context) as answer:
        text = answer.read()
    with open(os.path.join(folder, name), 'wb') as file:
        file.write(text)
print('minws.py and droid_sensor.py are in ' + folder)
sys.path.insert(0, folder)
import droid_sensor
droid_sensor.main(%(arguments)r + [push])
'''

LOGIN = '''\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sensors: password</title>
<style>body { font: 16px/1.5 system-ui, sans-serif; max-width: 24em; margin: 18vh auto; padding: 0 16px; }
input, button { font: inherit; min-height: 44px; padding: 0 12px; }
input { width: 100%%; box-sizing: border-box; }</style>
</head><body><h1>Sensors</h1><p>%s</p>
<form method="post" action="/login"><p><label>Password<br><input name="password" type="password" autofocus
autocomplete="current-password" required></label></p><p><button>Open</button></p></form>
<p><a href="/">I came by a link that has the password in it</a></p></body></html>
'''


##############################################################################
# The password
##############################################################################

class Guard:
    """Who may push, and who may see the page. Without a password everybody may do both.

    The cookie is made with a secret, not from the password alone: as nobody can guess it, a right one is never made
    to wait, however often somebody else behind the same address was wrong.
    """

    def __init__(self, password='', protect='both', secret=b'', secure=False, port=0):
        self.password = password
        self.parts = {'none': (), 'push': ('push',), 'page': ('page',), 'both': ('push', 'page')}[
            protect if password else 'none']
        self.secret = secret or os.urandom(32)
        self.secure = secure
        self.cookie_name = 'minws%d' % port       # browsers keep one jar for all ports of a host
        self.wrong = {}                           # network → (tries, the monotonic time until which it waits)

    def protect(self):
        return 'both' if len(self.parts) == 2 else self.parts[0] if self.parts else 'none'

    def cookie(self):
        text = b'cookie ' + self.password.encode('utf-8')
        return hmac.new(self.secret, text, hashlib.sha256).hexdigest()

    def set_cookie(self):
        return '%s=%s; Path=/; Max-Age=31536000; HttpOnly; SameSite=Strict%s' % (
            self.cookie_name, self.cookie(), '; Secure' if self.secure else '')

    def knows(self, request):
        """Return whether the request has our cookie."""
        return same(request.cookies.get(self.cookie_name, ''), self.cookie())

    def check(self, request, network, given=None):
        """Raise Refused unless the request has the cookie, or the password as `given`, in its address or a header."""
        if given is None and self.knows(request):
            return
        if given is None:
            given = given_password(request)
        if not given:
            raise Refused('a password is needed: it is in the address that the server prints', status=401)
        tries, until = self.wrong.get(network, (0, 0))
        now = time.monotonic()
        if now < until:
            raise Refused('too many wrong passwords came from your address: wait %d seconds' % (until - now + 1),
                          status=429)
        if same(given, self.password):
            self.wrong.pop(network, None)
            return
        tries += 1
        wait = min(LONGEST_WAIT, 2 ** (tries - FREE_TRIES)) if tries >= FREE_TRIES else 0
        self.wrong.pop(network, None)
        self.wrong[network] = tries, now + wait
        while len(self.wrong) > hubs.MAX_ADDRESSES:
            del self.wrong[next(iter(self.wrong))]
        raise Refused('the password is wrong', status=401)

    def allows(self, part, request, network):
        """Return '' or the sentence that says why not."""
        if part not in self.parts:
            return ''
        try:
            self.check(request, network)
            return ''
        except Refused as refused:
            return str(refused)


def same(one, other):
    """Return whether two texts are equal, in a time that does not tell how far they are."""
    return hmac.compare_digest(hashlib.sha256(one.encode('utf-8', 'replace')).digest(),
                               hashlib.sha256(other.encode('utf-8', 'replace')).digest())


def given_password(request):
    """Return the password in the address of a request, or in its header Authorization, '' if there is none."""
    scheme, _, token = request.headers.get('Authorization', '').partition(' ')
    if scheme.lower() == 'bearer':
        return token.strip()
    return request.query.get('password', '')


##############################################################################
# Answers
##############################################################################

SAFE = [('X-Content-Type-Options', 'nosniff'), ('Referrer-Policy', 'no-referrer'), ('X-Frame-Options', 'DENY'),
        ('Cache-Control', 'no-cache')]


def answer(status, content, kind='text/plain; charset=utf-8', headers=()):
    """Return a Response; `content` is bytes, text, or an iterator of bytes."""
    body = content.encode('utf-8') if isinstance(content, str) else content
    return minws.Response(status, None, [('Content-Type', kind)] + SAFE + list(headers), body)


def answer_json(status, value):
    return answer(status, ENCODE(value), 'application/json')


class Compressed:
    """A file as an answer: read and compressed once, and again when it has changed."""

    def __init__(self, path, kind):
        self.path = path
        self.kind = kind
        self._seen = None

    def __call__(self, request):
        stat = os.stat(self.path)
        if self._seen != (stat.st_mtime, stat.st_size):
            with open(self.path, 'rb') as file:
                self.plain = file.read()
            self.small = gzip.compress(self.plain, 9)
            self.tag = '"%s"' % hashlib.sha256(self.plain).hexdigest()[:20]
            self._seen = stat.st_mtime, stat.st_size
        headers = [('Vary', 'Accept-Encoding'), ('ETag', self.tag)]
        if self.tag in request.headers.get('If-None-Match', ''):
            return answer(304, b'', self.kind, headers)
        if takes_gzip(request):
            return answer(200, self.small, self.kind, headers + [('Content-Encoding', 'gzip')])
        return answer(200, self.plain, self.kind, headers)


def is_command(value):
    """Return whether an object that was posted is what a page says, and no reading: those have numbers."""
    return any(isinstance(value.get(command), dict) for command in ('marker', 'remove')) or set(value) == {'time'}


def takes_gzip(request):
    codings = [coding.replace(' ', '').lower() for coding in request.headers.get('Accept-Encoding', '').split(',')]
    return any(coding == 'gzip' or coding.startswith('gzip;') and not coding.endswith((';q=0', ';q=0.0'))
               for coding in codings)


class Site:
    """The pages= and process_request= of a server, for one hub and one guard. `hosts` are names that it is called by
    beside the local ones; `scheme` http or https, with the `fingerprint` of a certificate that nobody else vouches for.
    """

    def __init__(self, hub, guard=None, hosts=(), scheme='http', fingerprint=''):
        self.hub = hub
        self.guard = guard or Guard()
        self.hosts = list(hosts)
        self.scheme = scheme
        self.fingerprint = fingerprint
        hub.rights = self.rights
        page = Compressed(PAGE, 'text/html; charset=utf-8')
        self.pages = {'/': page, '/push': self.push, '/events': self.events, '/login': self.login,
                      '/start': self.start, '/data.csv': self.csv}
        self.pages.update(hub.station.pages)
        self.watched = ['/', '/ws', '/events', '/data.csv'] + list(hub.station.routes) + list(hub.station.pages)
        for name, path in FILES.items():
            self.pages['/' + name] = Compressed(path, 'text/x-python; charset=utf-8')

    def admit(self, connection, request):
        """The process_request hook: who asks for what, and may that be? What a socket is refused it hears when it is
        open, as a close code: browsers show no status."""
        try:
            minws.check_host(request, self.hosts or 'local')
        except minws.HandshakeError as error:
            return answer(error.status, 'this server does not know itself by that name; if it is yours, start it with '
                          '--allow-host NAME\n' if error.status == 421 else '%s\n' % error)
        address = connection.peer_address[0]
        request.headers[PEER] = address
        path = request.pathname
        if path == '/' and 'password' in request.query:
            return self._enter(request, request.query['password'])
        if path in self.watched:
            refusal = self.guard.allows('page', request, network_of(address))
        elif path == '/push':
            refusal = self.guard.allows('push', request, network_of(address))
        else:
            return None
        if path in ('/ws', '/push'):
            connection.refusal = refusal
            if minws.is_upgrade(request) or not refusal:
                return None
        if path == '/' and refusal:
            return self._form(refusal, 401)
        return refusal and answer_json(401, {'refused': {'text': refusal}}) or None

    def rights(self, request, address):
        """Return what the page that made the request may do."""
        known = not self.guard.parts or self.guard.knows(request)
        forwarded = any(name in request.headers for name in ('Forwarded', 'X-Forwarded-For', 'Via'))
        return {'push': 'push' not in self.guard.parts or known, 'password': known,
                'remove': hubs.is_loopback(address[0]) and not forwarded}

    # The password

    def _form(self, text, status):
        policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        return answer(status, LOGIN % html.escape(text), 'text/html; charset=utf-8',
                      [('Content-Security-Policy', policy)])

    def _enter(self, request, password):
        """Make a cookie of the right password: from now on it is not in the address any more."""
        try:
            if self.guard.parts:
                self.guard.check(request, network_of(request.headers[PEER]), given=password or ' ')
        except Refused as refused:
            return self._form(str(refused), refused.status)
        cookie = [('Set-Cookie', self.guard.set_cookie())] if self.guard.parts else []
        return answer(303, '', headers=[('Location', '/')] + cookie)

    def login(self, request):
        fields = minws.Request('GET', '/?' + request.body.decode('latin-1')).query
        return self._enter(request, fields.get('password', ''))

    # Devices and pages without a socket

    def push(self, request):
        """Answer POST /push."""
        try:
            if request.method != 'POST':
                raise Refused('this is for devices: a WebSocket, or POST', status=405)
            network = network_of(request.headers[PEER])
            visitor = self.hub.visitor(network)
            if not visitor.admits(len(request.body)):
                raise Refused('too much comes from your address', status=429)
            return answer_json(200, self._post(request, network, visitor))
        except Refused as refused:
            return answer_json(refused.status, {'refused': {'text': str(refused)}})

    def _post(self, request, network, visitor):
        session = Session(self.hub, network, lambda text: None)
        try:
            values = parse(request.body.decode('utf-8', 'replace'))
        except Refused:
            values = None
        if values and any(map(is_command, values)):
            may = self.rights(request, (request.headers[PEER], 0))
            answers = [self.hub.command(value, visitor, may) for value in values[:hubs.COMMANDS]]
            return next((found for found in answers if found is not None), {})
        if values is not None and (not values or is_ours(values[0])):
            taken = session.take(values)
        else:
            taken = self._post_lines(request, visitor, session)
        return {'device': session.device.name if session.device else None, 'taken': taken, 'time': 1000 * time.time()}

    def _post_lines(self, request, visitor, session):
        """Take what apps and scripts post that know nothing of this server; return how many readings were in it."""
        if not visitor.messages.take(request.body.count(b'\n')):
            raise Refused('too much comes from your address', status=429)
        try:
            return session.take_moments(lines.parse_post(request.headers.get('Content-Type', ''), request.body))
        except ValueError as error:
            raise Refused(str(error), status=400)

    # The recording

    def csv(self, request):
        """Answer GET /data.csv?since=…&device=…: the recording, in pieces; they are made in a thread of their own."""
        visitor, since = self.hub.visitor(request.headers[PEER]), request.query.get('since')
        if self.hub.archive is None:
            return answer(404, 'nothing is recorded here: start the server with --record FILE\n')
        if not visitor.stories.take():
            return answer(429, 'this address asks for the recording too often\n')
        try:
            table = recording.csv(self.hub.archive.path, None if since is None else float(since),
                                  request.query.get('device'))
            return answer(200, table, 'text/csv; charset=utf-8',
                          [('Content-Disposition', 'attachment; filename="readings.csv"')])
        except ValueError:
            return answer(400, 'since is a number of seconds since 1970, not %s\n' % clean(since, 40))
        except OSError as error:
            return answer(500, '%s\n' % error)

    def events(self, request):
        """Answer GET /events: all that is new, as server-sent events; the browser comes back for more by itself.

        Once a body may be an iterable, this is the one place to yield the batches as they come.
        """
        address = request.headers[PEER]
        last = request.headers.get('Last-Event-ID', '') or request.query.get('last', '')
        try:
            number, messages = self.hub.poll(last, self.hub.visitor(address), self.rights(request, (address, 0)))
        except Refused as refused:
            return answer_json(refused.status, {'refused': {'text': str(refused)}})
        messages = messages or [ENCODE({'time': [None, 1000 * time.time()]})]
        data = ['data: %s\n' % text.replace('\n', '\ndata: ') for text in messages]
        # the number stands at the last: who does not get that far asks for all of it again
        return answer(200, 'retry: %d\n%sid: %s\n\n' % (RETRY, '\n'.join(data), number), 'text/event-stream')

    # The files for a phone

    def start(self, request):
        """Answer GET /start: the script that fetches the two files and pushes to here."""
        host = request.headers['Host']
        password = request.query.get('password', '')
        query = '?password=' + quoted(password) if password else ''
        push = '%s://%s/push%s' % ('wss' if self.scheme == 'https' else 'ws', host, query)
        script = START % {'base': '%s://%s' % (self.scheme, host), 'push': push,
                          'arguments': ['--fingerprint', self.fingerprint] if self.fingerprint else [],
                          'verified': not self.fingerprint}
        return answer(200, script, 'text/x-python; charset=utf-8')


def quoted(text):
    """Return text as part of an address."""
    safe = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~'
    return ''.join(c if c in safe else ''.join('%%%02X' % byte for byte in c.encode('utf-8')) for c in text)


def listen(hub, host, port, site=None, **options):
    """Return the Server of a hub, not started; OSError if it cannot listen there. `options` are those of serve()."""
    site = site or Site(hub)
    handlers = {'/ws': type('HubPage', (Page,), {'hub': hub}), '/push': type('HubPhone', (Phone,), {'hub': hub})}
    handlers.update(hub.station.routes)
    server = minws.serve(handlers, host, port, pages=site.pages, process_request=site.admit, hosts=None,
                         max_size=hubs.MAX_MESSAGE, **options)
    hub.attach(server)
    return server
