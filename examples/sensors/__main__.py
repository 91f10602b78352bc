"""Live charts of sensor readings, in any browser that can reach this machine:

    python3 -m examples.sensors [--host 0.0.0.0] [--port 9000] [--rate 10] [--source auto]
                                [--https] [--password [PASSWORD]] [--protect push|page|both] [--allow-host NAME]
                                [--record FILE] [--replay FILE [--speed 1]]

The page and its socket share one port. Readings come from this machine (sources.py says from where), and from every
phone that pushes: `droid_sensor.py ADDRESS`, the line that is printed for Termux and QPython, or the page's own button.
hub.py says what goes over the wire and what keeps it within bounds, web.py what is answered over HTTP, recording.py
what a recording is.
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
import time

from examples.droid_sensor import Linux, Reader, Simulated, device_name, positive
from examples.sensors import certificate, qr
from examples.sensors.hub import Hub, Refused, clean, is_number, sensors_of
from examples.sensors.recording import Archive, Recorder, RecordingError, moment, reader_of, replay
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
# Replay
##############################################################################

class Playback:
    """Let the devices of a recording say again what they said, as if it were now; start() and stop() as of a Reader."""

    simulated = False

    def __init__(self, hub, path, speed):
        self.name = 'the recording %s, %g times as fast as it was' % (path, speed)
        self.source = self            # as far as a name goes
        self._hub = hub
        self._path = path
        self._speed = speed
        self._devices = {}            # name -> Device
        self._began = None            # (when the first reading was due here, when it was taken)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name='playback', daemon=True)

    def start(self):
        self._thread.start()

    def stop(self, timeout=4.0):
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self):
        self._hub.notice('replay', 'what is seen here was recorded before: %s' % self.name)
        try:
            for record in replay(self._path, self._speed, self._stopping):
                self._play(record)
            self._hub.notice('replay', 'the recording %s has ended' % self._path)
        except OSError as error:
            self._hub.notice('replay', 'the recording %s cannot be read any further: %s' % (self._path, error))

    def _play(self, record):
        hello, marker = record.get('hello'), record.get('marker')
        if isinstance(hello, dict) and isinstance(hello.get('device'), str):
            device = self._device(hello['device'])
            if device is not None:
                device.simulated, device.rate = hello.get('simulated') is True, self._rate(hello)
                device.repeat = hello['repeat'] / self._speed if is_number(hello.get('repeat')) else 0
                device.sensors(sensors_of(hello.get('sensors'))[0])
        elif isinstance(marker, dict):
            self._hub.mark(clean(marker.get('text')), 'the recording')
        elif isinstance(record.get('s'), dict) and isinstance(record.get('d'), str):
            device = self._device(record['d'])
            if device is not None:
                device.reading(self._moved(moment(record)), record['s'])

    def _device(self, name):
        """Return the Device of that name in the recording, None if there are too many."""
        if name not in self._devices:
            try:
                self._devices[name] = self._hub.add(name, 'recording', 0)
            except Refused:           # which the page says
                self._devices[name] = None
        return self._devices[name]

    def _rate(self, hello):
        rate = hello.get('rate')
        return rate * self._speed if is_number(rate) and rate > 0 else 0

    def _moved(self, stamp):
        """Return when a reading is due now that was taken at `stamp`."""
        if self._began is None:
            self._began = time.time(), stamp
        return self._began[0] + (stamp - self._began[1]) / self._speed


##############################################################################
# Command line
##############################################################################

def announce(readers, archive, places):
    """Print the source and every address; flushed, because a program may wait for the lines."""
    source = readers[0].source
    print('source: %s%s' % (source.name, ' (invented values)' if source.simulated else ''))
    if any(isinstance(reader.source, Simulated) for reader in readers[1:]):
        print('a simulated phone stands beside it, because this machine measures no motion')
    if archive is not None:
        print('all readings are recorded into %s' % archive.path)
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
    parser.add_argument('--record', metavar='FILE', help='append all readings to a file: SQLite if its name ends in '
                        '.db, else JSON lines')
    parser.add_argument('--replay', metavar='FILE', help='show a recording instead of what this machine measures')
    parser.add_argument('--speed', type=positive, default=1.0, metavar='N',
                        help='N times as fast as it was (default: 1)')


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
    device = hub.add(name, source.name, rate, source.simulated, source.repeat)
    reader = Reader(source, rate, device)
    device.on_removed = lambda: reader.stop(0)
    return reader


def archive_of(arguments, hub):
    """Return the Archive that the arguments ask for, or None; RecordingError."""
    if arguments.replay:
        reader_of(arguments.replay).close()       # whether it is there is said at once
        if arguments.record and os.path.realpath(arguments.record) == os.path.realpath(arguments.replay):
            raise RecordingError('a recording cannot be replayed into itself: give --record another file')
    return Archive(Recorder(arguments.record), hub.notice) if arguments.record else None


def readers_of(arguments, hub, name):
    """Return what is to be started and stopped; the first is the one that the person at the terminal is told of."""
    if arguments.replay and arguments.source == 'auto':
        return [Playback(hub, arguments.replay, arguments.speed)]
    source = find_source(arguments.source, arguments.sensors)
    readers = [read_into(hub, source, name, arguments.rate)]
    if arguments.replay:
        readers.append(Playback(hub, arguments.replay, arguments.speed))
    elif arguments.source == 'auto' and not measures_motion(source):
        readers.append(read_into(hub, Simulated(), 'simulated phone', arguments.rate))
    return readers


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
    name, hosts, hub = arguments.name or device_name(), page_addresses(arguments.host), Hub()
    try:
        security, fingerprint = security_of(arguments, hosts)
    except (OSError, ValueError) as error:
        return complain('https is not possible: %s' % error)
    guard, scheme = guard_of(arguments, security is not None, arguments.port), 'https' if security else 'http'
    site = Site(hub, guard, arguments.allow_host, scheme, fingerprint)
    try:
        server = listen(hub, arguments.host, arguments.port, site, ssl=security)
    except OSError as error:
        return complain(sentence(error, arguments.host, arguments.port))
    try:
        hub.archive = archive_of(arguments, hub)
    except RecordingError as error:
        server.shutdown()
        return complain(error)
    places = Places(arguments.allow_host + hosts, server.port, guard, scheme, fingerprint)
    hub.about = places.about(name)
    return run(hub, readers_of(arguments, hub, name), places)


def complain(text):
    print(text, file=sys.stderr)
    return 1


def run(hub, readers, places):
    """Serve and read until the program is told to end; return the exit status."""
    ending = Ending()
    announce(readers, hub.archive, places)
    hub.server.start()
    for part in [hub.archive] * (hub.archive is not None) + readers:
        part.start()
    try:
        hub.stop(ending.wait())
    finally:
        for reader in readers:
            reader.stop()
    try:
        if hub.archive is not None:
            hub.archive.close()
    except RecordingError as error:
        return complain(error)
    print('stopped', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
