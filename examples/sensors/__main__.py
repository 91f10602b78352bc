"""Live charts of sensor readings, in any browser that can reach this machine:

    python3 -m examples.sensors [--host 0.0.0.0] [--port 9000] [--rate 10] [--source auto]
                                [--https] [--password [PASSWORD]] [--protect push|page|both] [--allow-host NAME]

The page and its socket share one port. Readings come from this machine (droid_sensor.py says from where), and from
every phone that pushes: `droid_sensor.py ADDRESS`, the line that is printed for Termux and QPython, or the page's own
button. hub.py says what goes over the wire and what keeps it within bounds, web.py what is answered over HTTP.
"""
import argparse
import base64
import contextlib
import errno
import os
import signal
import socket
import ssl
import struct
import sys
import threading

from examples.droid_sensor import Linux, Reader, Simulated, device_name
from examples.sensors import certificate, qr
from examples.sensors.hub import Hub
from examples.sensors.sources import add_source_options, find_source
from examples.sensors.web import Guard, Site, listen, quoted

HOME = os.path.join(os.path.expanduser('~'), '.minws')    # the key for https, and the secret behind the cookie
MOTION = ('m/s²', 'rad/s', '°/s', 'µT', '°')              # units of what a phone has and a laptop has not


##############################################################################
# Addresses
##############################################################################

SIOCGIFADDR = 0x8915          # linux/sockios.h


def local_addresses():
    """Return the IPv4 addresses of this machine, the one towards the default route first, without loopback."""
    found = [address_towards('192.0.2.1')]
    try:
        found += sorted(map(address_of_interface, (name for _, name in socket.if_nameindex())))
    except (OSError, AttributeError):  # Android forbids it, Windows came late to it
        pass
    try:
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    except (OSError, LookupError):
        pass
    return [address for address in dict.fromkeys(found) if address and not address.startswith('127.')]


def address_towards(address):
    """Return our own address on the way to another one; a datagram socket that connects sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, 9))
            return sock.getsockname()[0]
        except OSError:
            return ''


def address_of_interface(name):
    """Return the IPv4 address of a network interface, '' if it has none."""
    try:
        import fcntl
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack('256s', name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    except (ImportError, OSError):
        return ''


def page_addresses(host):
    """Return the hosts that a browser can open when the server listens at host."""
    if host in ('', '0.0.0.0', '::'):
        return local_addresses() + ['localhost']
    return ['[%s]' % host if ':' in host else host]


class Places:
    """Under which addresses the server is reached, and how: for people, for phones, and for the page."""

    def __init__(self, hosts, port, guard, scheme, fingerprint=''):
        self.port = port
        self.guard = guard
        self.scheme = scheme
        self.hosts = hosts
        self.fingerprint = fingerprint

    def page(self, host, password=False):
        """Return the address of the page; with the password in it if there is one and it is wanted."""
        query = '?password=' + quoted(self.guard.password) if password and self.guard.parts else ''
        return '%s://%s:%d/%s' % (self.scheme, host, self.port, query)

    def push(self):
        return '%s://%s:%d/push' % ('wss' if self.scheme == 'https' else 'ws', self.hosts[0], self.port)

    def start(self, password=False):
        """Return the lines that make a phone push when they are pasted there.

        Termux comes with curl and without Python, QPython with Python and without a shell.
        """
        query = '?password=' + quoted(self.guard.password) if password and self.guard.parts else ''
        address = '%s://%s:%d/start%s' % (self.scheme, self.hosts[0], self.port, query)
        # what the script then connects to must have the fingerprint
        blind = bool(self.fingerprint)
        context = ", context=__import__('ssl')._create_unverified_context()" if blind else ''
        return {'termux': "pkg install -y python termux-api && curl -fs%sS '%s' | python" % ('k' * blind, address),
                'qpython': "exec(__import__('urllib.request').request.urlopen('%s'%s).read())" % (address, context)}

    def about(self, title):
        """Return what the info for a page tells of this, a function of what the page may do."""
        codes = {}

        def about(may):
            known = may.get('password', False)
            text = self.page(self.hosts[0], known)
            if text not in codes:
                codes[text] = [''.join('01'[bool(dark)] for dark in row) for row in qr.modules(text)]
            return {'title': title, 'addresses': [self.page(host) for host in self.hosts], 'push': self.push(),
                    'start': self.start(known), 'qr': {'text': text, 'rows': codes[text]},
                    'protect': self.guard.protect(), 'secure': self.scheme == 'https'}

        return about


##############################################################################
# Command line
##############################################################################

def announce(source, simulation, places):
    """Print the source and every address; flushed, because a program may wait for the lines."""
    print('source: %s%s' % (source.name, ' (invented values)' if source.simulated else ''))
    if simulation:
        print('a simulated phone stands beside it, because this machine measures no motion')
    guard = places.guard
    print('open in a browser, on this machine or on a phone in the same network:')
    for host in places.hosts:
        print('    %s' % places.page(host, password='page' in guard.parts))
    if sys.stdout.isatty():
        with contextlib.suppress(UnicodeEncodeError):     # a console that has no blocks
            print(qr.terminal(places.page(places.hosts[0], password=True)))
    print('phones push to %s' % places.push())
    start = places.start(password='push' in guard.parts)
    print('a phone pushes when this is pasted into Termux (with the app Termux:API from the same store):')
    print('    %s' % start['termux'])
    print('or this into the console of QPython:')
    print('    %s' % start['qpython'])
    if guard.parts:
        print('the password is %s' % guard.password)
        if places.scheme == 'http':
            print('it travels unencrypted, as all readings do: whoever listens in this network can read it; '
                  '--https ends that')
    if places.fingerprint:
        print('browsers do not know who made the certificate and ask once; its SHA-256 fingerprint is')
        print('    %s' % places.fingerprint)
    print('Ctrl-C ends it', flush=True)


def sentence(error, host, port):
    """Return what to tell a person whose server cannot listen."""
    if error.errno == errno.EADDRINUSE:
        return 'port %d is in use by another program: stop that, or choose another port with --port' % port
    return 'cannot listen at %s, port %d: %s' % (host, port, error.strerror or error)


def port_number(text):
    """Return the number in text; argparse makes a usage message of the errors."""
    if not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError('a port is a number from 0 to 65535, not %s' % text)
    return int(text)


def add_server_options(parser):
    parser.add_argument('--host', default='0.0.0.0', help='address to listen at (default: every one of this machine)')
    parser.add_argument('--port', type=port_number, default=9000, help='0 takes a free one (default: 9000)')
    parser.add_argument('--allow-host', action='append', default=[], metavar='NAME',
                        help='a public name that a router or a tunnel has for this machine; may be repeated')
    parser.add_argument('--https', action='store_true', help='with a certificate that is made for this machine')
    parser.add_argument('--cert', metavar='FILE', help='https with a certificate of your own')
    parser.add_argument('--key', metavar='FILE', help='its key, if that is another file')
    parser.add_argument('--password', nargs='?', const='', default=None, metavar='PASSWORD',
                        help='what one must know; made up if none is given')
    parser.add_argument('--protect', choices=('push', 'page', 'both'), default='both',
                        help='what the password is for (default: both)')


def security_of(arguments, hosts):
    """Return (the SSLContext that the arguments ask for or None, the fingerprint of a certificate that we made or '');
    OSError or ValueError if a file is not there or not right."""
    if not (arguments.https or arguments.cert):
        return None, ''
    names = [host for host in hosts + arguments.allow_host if not is_address(host)]
    addresses = [host.strip('[]') for host in hosts + ['127.0.0.1'] if is_address(host)]
    files = (arguments.cert, arguments.key) if arguments.cert else certificate.ensure(HOME, addresses, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    return context, '' if arguments.cert else certificate.fingerprint(files[0])


def is_address(host):
    return ':' in host or not host.strip('0123456789.')


def secret_of(directory):
    """Return the bytes that cookies are made with, kept in a file so that they outlive the server."""
    path = os.path.join(directory, 'secret')
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
                                                        'wb') as file:
            file.write(os.urandom(32))
        with open(path, 'rb') as file:
            secret = file.read()
    except OSError:               # nothing can be kept: whoever was in must give the password again
        secret = b''
    return secret if len(secret) == 32 else os.urandom(32)


def guard_of(arguments, secure, port):
    """Return the Guard that the arguments ask for."""
    if arguments.password is None:
        return Guard()
    password = arguments.password or base64.b32encode(os.urandom(10)).decode('ascii').lower()
    return Guard(password, arguments.protect, secret_of(HOME), secure, port)


def measures_motion(source):
    """Return whether a source has what a phone would show; what is not known yet counts as if it had."""
    return not isinstance(source, Linux) or any(probe.meaning.unit in MOTION for probe in source.probes())


def read_into(hub, source, name, rate):
    """Return a Reader of a source, not started, whose readings go to a new device."""
    device = hub.add(name, source.name, rate, source.simulated)
    reader = Reader(source, rate, device)
    device.on_removed = lambda: reader.stop(0)
    return reader


class Ending:
    """Ctrl-C, or being told to end, from the moment that this is made; in the main thread."""

    def __init__(self):
        self._ended = threading.Event()
        self.reason = ''
        for number, reason in ((signal.SIGINT, 'Ctrl-C was pressed'), (signal.SIGTERM, 'the server was told to end')):
            signal.signal(number, lambda *_, reason=reason: self._end(reason))

    def _end(self, reason):
        self.reason = reason
        self._ended.set()

    def wait(self):
        """Return the sentence that says what ended the program."""
        while not self._ended.wait(1):    # Windows hears Ctrl-C between two waits
            pass
        return self.reason


def parse_arguments(argv):
    parser = argparse.ArgumentParser(prog='python3 -m examples.sensors', description='Live charts of sensor readings.')
    add_server_options(parser)
    add_source_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Serve until Ctrl-C; return the exit status."""
    arguments = parse_arguments(argv)
    source = find_source(arguments.source, arguments.sensors)
    name, hosts = arguments.name or device_name(), page_addresses(arguments.host)
    try:
        security, fingerprint = security_of(arguments, hosts)
    except (OSError, ValueError) as error:
        print('https is not possible: %s' % error, file=sys.stderr)
        return 1
    hub, scheme = Hub(), 'https' if security else 'http'
    guard = guard_of(arguments, security is not None, arguments.port)
    site = Site(hub, guard, arguments.allow_host, scheme, fingerprint)
    try:
        server = listen(hub, arguments.host, arguments.port, site, ssl=security)
    except OSError as error:
        print(sentence(error, arguments.host, arguments.port), file=sys.stderr)
        return 1
    places = Places(arguments.allow_host + hosts, server.port, guard, scheme, fingerprint)
    hub.about = places.about(name)
    readers = [read_into(hub, source, name, arguments.rate)]
    if arguments.source == 'auto' and not measures_motion(source):
        readers.append(read_into(hub, Simulated(), 'simulated phone', arguments.rate))
    ending = Ending()
    announce(source, len(readers) > 1, places)
    server.start()
    for reader in readers:
        reader.start()
    try:
        hub.stop(ending.wait())
    finally:
        for reader in readers:
            reader.stop()
    print('stopped', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
