"""Sources of readings beyond those that a phone or a board has itself, named by --source:

    udp                         lines in datagrams at Teleplot's port, 47269; another: udp:PORT, udp:HOST:PORT
    serial:/dev/ttyUSB0         lines of a microcontroller; serial:/dev/ttyUSB0@9600 (default: 115200 bits a second)
    stdin                       lines of standard input
    cmd:COMMAND                 lines that a program prints, which is started again when it ends
    sensorserver://HOST:PORT    a phone with the app SensorServer (default port: 8080)

lines.py says what a line may be. `find_source` and `add_source_options` know these and all of droid_sensor.py.
"""
import argparse
import os
import re
import select
import signal
import socket
import subprocess
import threading

from examples import droid_sensor
from examples.droid_sensor import Source, SourceError, Stamped, end_child, start_child
from examples.sensors.lines import NOTE, Lines, State, decoded, moments, parse
from examples.sensors.sensorserver import PORT, SensorServer

TELEPLOT_PORT = 47269
DATAGRAM = 1 << 16            # bytes; UDP has none that is longer
MAX_SENDERS = 32              # whose headers and clocks are kept apart
TURN = 0.2                    # seconds after which a source that waits looks whether it was closed


##############################################################################
# Lines from somewhere
##############################################################################

class LineSource(Source):
    """What lines have in common, wherever they come from. To override: `pieces()`, which yields bytes."""

    paced = True
    patience = 30.0           # many a device has something to say twice a minute
    whole = True              # whether the first line is there from its beginning

    def __init__(self):
        super().__init__()
        self.note = ''        # the last line if no reading was in it
        self._closed = threading.Event()

    def readings(self, period):
        self._closed.clear()
        lines, state = Lines(self.whole), State()
        for data in self.pieces():
            yield from self.taken(lines.feed(data), state)
        if not self._closed.is_set():
            yield from self.taken(lines.end(), state)
        raise SourceError(self.ending())

    def taken(self, text, state):
        """Yield the readings in whole lines of text."""
        found = parse(text, state)
        self.note = state.note
        for _, stamp, reading, sensors in moments(found, ''):
            self.sensors.update(sensors)
            wanted = {sensor: values for sensor, values in reading.items() if self.wants(sensor)}
            if wanted:
                yield Stamped(wanted, stamp)

    def pieces(self):
        raise NotImplementedError

    def arrivals(self, descriptor):
        """Yield whenever a descriptor has something, until the source is closed."""
        while not self._closed.is_set():
            if is_ready(descriptor):
                yield

    def ending(self):
        """Return why `pieces` ended."""
        return 'it ended' + (': %s' % self.note if self.note else '')

    def close(self):
        self._closed.set()

    def silence(self):
        return 'the last line was %r' % self.note if self.note else ''


def is_ready(descriptor):
    """Wait for something to read, at most a TURN; return whether there is."""
    if hasattr(select, 'poll'):  # select() cannot watch a descriptor above 1023
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(TURN * 1000))
    return bool(select.select([descriptor], [], [], TURN)[0])


class Udp(LineSource):
    """Datagrams with lines in them, as Teleplot's clients send; every sender has its own headers and clock."""

    name = 'udp'

    def __init__(self, host='', port=TELEPLOT_PORT):
        super().__init__()
        self.host = host
        self.port = port      # if this was 0, the one that it got
        self._states = {}     # sender -> State; what it said holds while nobody listens, too

    def readings(self, period):
        self._closed.clear()
        states = self._states
        with self._socket() as sock:
            self.port = sock.getsockname()[1]
            for _ in self.arrivals(sock):
                data, sender = sock.recvfrom(DATAGRAM)
                if sender not in states and len(states) >= MAX_SENDERS:
                    del states[next(iter(states))]
                states[sender] = states.pop(sender, None) or State()
                yield from self.taken(decoded(data), states[sender])

    def _socket(self):
        family = socket.AF_INET6 if ':' in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.bind((self.host, self.port))
        except OSError as error:
            sock.close()
            raise SourceError('cannot listen at UDP port %d (%s)' % (self.port, error.strerror))
        return sock

    def silence(self):
        return super().silence() or 'nobody sends to UDP port %d' % self.port


class Serial(LineSource):
    """The lines of a microcontroller at a serial port, opened as a file; a FIFO will do, too."""

    name = 'serial'
    whole = False             # it was printing before we came

    def __init__(self, path, speed=115200):
        super().__init__()
        self.path = path
        self.speed = speed

    def pieces(self):
        descriptor = self._open()
        try:
            for _ in self.arrivals(descriptor):
                data = os.read(descriptor, 4096)
                if not data:
                    break     # unplugged
                yield data
        except OSError:       # unplugged, too
            pass
        finally:
            os.close(descriptor)

    def _open(self):
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError('cannot open %s (%s)' % (self.path, error.strerror))
        try:
            if os.isatty(descriptor):
                set_speed(descriptor, self.speed)
        except SourceError:
            os.close(descriptor)
            raise
        return descriptor

    def ending(self):
        return '%s went away' % self.path

    def silence(self):
        return 'is %d the speed of %s? %s' % (self.speed, self.path, super().silence())


def set_speed(descriptor, speed):
    """Make a terminal hand every byte through, at so many bits a second."""
    import termios            # which Windows has not
    try:
        attributes = termios.tcgetattr(descriptor)
        constant = getattr(termios, 'B%d' % speed)
        # No parity, eight bits; CLOCAL: there is no modem that could hang up. Without HUPCL a board is not reset again.
        attributes[0:4] = [0, 0, termios.CS8 | termios.CREAD | termios.CLOCAL, 0]
        attributes[4:6] = [constant, constant]
        attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 1, 0
        termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    except AttributeError:
        raise SourceError('%d is no speed that this system has' % speed)
    except termios.error as error:
        raise SourceError('cannot set the speed to %d (%s)' % (speed, error.args[-1]))


class Stdin(LineSource):
    """Standard input; who writes to it may take as long as they like, and when it has ended nothing more will come."""

    name = 'stdin'
    patience = threading.TIMEOUT_MAX / 2

    def __init__(self, descriptor=0):
        super().__init__()
        self.descriptor = descriptor
        self._ended = False

    def pieces(self):
        if self._ended:
            self._closed.wait()
            raise SourceError('closed')
        for _ in self.arrivals(self.descriptor):
            try:
                data = os.read(self.descriptor, 65536)
            except OSError as error:
                raise SourceError('standard input cannot be read (%s)' % error.strerror)
            if not data:
                self._ended = True
                break
            yield data

    def ending(self):
        return 'standard input has ended' + (': %s' % self.note if self.note else '')


class Command(LineSource):
    """What a program prints, started by the shell; whatever it does, it is ended with all that it started."""

    name = 'cmd'

    def __init__(self, command):
        super().__init__()
        self.command = command
        self.status = None

    def pieces(self):
        child = start_child('/bin/sh', '-c', self.command)
        try:
            for _ in self.arrivals(child.stdout):
                data = os.read(child.stdout.fileno(), 65536)
                if not data:
                    break
                yield data
        finally:
            end_group(child)
            child.stdout.close()
            self.status = child.returncode

    def ending(self):
        how = 'was killed by signal %d' % -self.status if (self.status or 0) < 0 else 'ended with %s' % self.status
        return '`%s` %s%s' % (self.command[:NOTE], how, ': %s' % self.note if self.note else '')

    def silence(self):
        return super().silence() or 'does it flush its output after each line?'


def end_group(child):
    """End a program and what it started; one that ends by itself tells how."""
    try:
        child.wait(timeout=TURN)
        os.killpg(child.pid, signal.SIGKILL)  # what it left behind
    except subprocess.TimeoutExpired:
        end_child(child)
    except OSError:           # nothing
        pass


##############################################################################
# Names of sources
##############################################################################

FORMS = 'udp[:[HOST:]PORT], serial:PATH[@SPEED], stdin, cmd:COMMAND, sensorserver://HOST[:PORT]'


def make_source(text):
    """Return the source that text names, None if it names none of this file; ValueError has a sentence."""
    scheme, colon, rest = text.partition(':')
    if scheme == 'udp':
        host, _, port = rest.rpartition(':')
        return Udp(host.strip('[]'), port_number(port) if port else TELEPLOT_PORT)
    if scheme == 'serial' and rest:
        path, at, speed = rest.rpartition('@')
        if at and not speed.isdigit():
            raise ValueError('%r is no number of bits a second' % speed)
        return Serial(path, int(speed)) if at else Serial(rest)
    if text == 'stdin':
        return Stdin()
    if scheme == 'cmd' and rest:
        return Command(rest)
    if scheme == 'sensorserver' and rest.startswith('//') and rest.strip('/'):
        host, port = re.match(r'(.*?)(?::([^\]:]*))?$', rest.strip('/')).groups()
        return SensorServer(host, port_number(port) if port else PORT)
    return None


def port_number(text):
    if not text.isdigit() or int(text) > 65535:
        raise ValueError('a port is a number from 0 to 65535, not %s' % text)
    return int(text)


def find_source(text='auto', wanted=()):
    """Return the source that --source names, of this file or of droid_sensor.py, to read the wanted sensors."""
    source = make_source(text)
    if source is None:
        return droid_sensor.find_source(text, wanted)
    source.wanted = tuple(wanted)
    return source


def source_name(text):
    """Return text if it names a source; argparse makes a usage message of the error."""
    try:
        if make_source(text) is not None:
            return text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    try:
        return droid_sensor.source_name(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError('%s, or %s' % (error, FORMS))


def add_source_options(parser):
    """Add the options that say what to read."""
    droid_sensor.add_source_options(parser, source_name)
