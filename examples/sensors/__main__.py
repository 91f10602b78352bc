"""Live charts of sensor readings, in any browser that can reach this machine:

    python3 -m examples.sensors [--host 0.0.0.0] [--port 9000] [--rate 10] [--source auto]

The page and its socket share one port. Readings come from this machine (droid_sensor.py says from where), and from
every phone that pushes: `droid_sensor.py ws://ADDRESS:9000/push`, or the page's own button.

Everything on the wire is text, JSON:

    {"hello": {"device": "pixel", "source": "termux", "rate": 10,
               "sensors": {"accel": {"unit": "m/s²", "axes": ["x", "y", "z"]}}}}
    {"d": "pixel", "t": 1732140000.123, "s": {"accel": [0.1, 0.2, 9.8], "light": 310}}
    {"error": {"device": "pixel", "text": "what is wrong with its source"}}

A phone sends the same to /push; its `hello` must come first, may have a random "id" by which it is recognised when it
connects again, and "simulated": true. Only this program's word for the device counts when it is relayed.
"""
import argparse
import errno
import json
import os
import socket
import struct
import sys
import threading

import minws
from examples.droid_sensor import (MAX_NAME, Reader, Sensor, add_source_options, device_name, error_message,
                                   find_source, hello_message, numbers, sample_key, sample_message)

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')

MAX_MESSAGE = 1 << 16         # bytes a phone may send at once; a hello of sixty sensors has five thousand
MAX_DEVICES = 32              # more charts than this nobody looks at, and each costs every browser
MAX_SENSORS = 64              # of one device; more than phones list
MAX_AXES = 16                 # Android's longest: an uncalibrated pose
MAX_KEYS = 16                 # of one device; its sensors come all at once, or each at a time of its own
MAX_REASON = 123              # bytes of a close reason, RFC 6455 5.5
MAX_ERROR = 300               # characters of an error text


##############################################################################
# What phones send
##############################################################################

class BadMessage(Exception):
    """A phone's message that is not the documented one; `code` is what its connection is closed with."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def parse_push(message):
    """Return the JSON object in a message; raises BadMessage with 1007 if there is none."""
    try:
        value = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadMessage(1007, 'not a JSON object in text')
    return value


def require(condition, text):
    if not condition:
        raise BadMessage(1008, text)


def is_name(value):
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def is_rate(value):
    return numbers([value], 1) is not None and 0 < value <= 1000


def parse_sensor(name, described):
    """Return the Sensor in one entry of a hello."""
    require(is_name(name) and isinstance(described, dict), 'a sensor is not {name: {"unit", "axes"}}')
    unit, axes = described.get('unit', ''), described.get('axes', [])
    require(unit == '' or is_name(unit), 'the unit of %s is no short text' % name)
    require(isinstance(axes, list) and len(axes) <= MAX_AXES and all(map(is_name, axes)),
            'the axes of %s are no list of names' % name)
    return Sensor(unit, tuple(axes))


def parse_hello(hello):
    """Return the checked (device, source, {sensor: Sensor}, rate, id, simulated) of a hello."""
    require(isinstance(hello, dict), 'the hello is no object')
    device, source = hello.get('device'), hello.get('source', 'push')
    require(is_name(device) and is_name(source), 'the hello has no short "device" and "source"')
    sensors, rate, identity = hello.get('sensors', {}), hello.get('rate', 1), hello.get('id')
    require(isinstance(sensors, dict) and len(sensors) <= MAX_SENSORS, 'the hello has no or too many "sensors"')
    require(is_rate(rate), 'the "rate" of the hello is no number of Hz')
    require(identity is None or is_name(identity), 'the "id" of the hello is no short text')
    sensors = {name: parse_sensor(name, described) for name, described in sensors.items()}
    return device, source, sensors, rate, identity, hello.get('simulated') is True


def parse_sample(value):
    """Return the checked (stamp, {sensor: [float]}) of a sample."""
    stamp, samples = value.get('t'), value.get('s')
    require(numbers([stamp], 1) is not None, '"t" is no number of seconds')
    require(isinstance(samples, dict) and 0 < len(samples) <= MAX_SENSORS, '"s" is no object of sensors')
    reading = {}
    for sensor, values in samples.items():
        values = values if isinstance(values, list) else [values]
        require(is_name(sensor), 'a sensor of the sample has no short name')
        require(0 < len(values) <= MAX_AXES and numbers(values, len(values)) is not None,
                'the values of %s are not numbers' % sensor)
        reading[sensor] = values
    return float(stamp), reading


##############################################################################
# Devices and those who watch them
##############################################################################

class Device:
    """What the browsers know of one device: its hello, the last sample of each sensor, its error.

    It is the listener of a Reader, and a phone's connection calls the same methods: any thread.
    """

    def __init__(self, hub, name, source, rate, simulated=False):
        self.hub = hub
        self.name = name
        self.source = source
        self.rate = rate
        self.simulated = simulated
        self.described = {}
        self.samples = {}     # sensor -> (stamp, values)
        self.keys = set()
        self.error = None
        self._lock = threading.Lock()

    def hello(self):
        return hello_message(self.name, self.source, self.described, self.rate, simulated=self.simulated)

    def sensors(self, sensors):
        with self._lock:
            self.described = sensors
            self.hub.tell(self.hello(), key=(self.name, 'hello'))

    def reading(self, stamp, reading):
        with self._lock:
            self.error = None
            self.samples.update((sensor, (stamp, values)) for sensor, values in reading.items())
            for part in self._parts(reading):
                self.hub.tell(sample_message(self.name, stamp, part), key=(self.name, sample_key(part)))

    def _parts(self, reading):
        """Return the readings to send for one: itself, unless its sensors come in ever new combinations."""
        key = sample_key(reading)
        if key not in self.keys and len(self.keys) >= MAX_KEYS:
            return [{sensor: values} for sensor, values in reading.items()]
        self.keys.add(key)
        return [reading]

    def trouble(self, text):
        with self._lock:
            self.error = error_message(self.name, text)
            self.hub.tell(self.error, key=(self.name, 'error'))

    def story(self):
        """Return the messages that bring a new browser up to date."""
        with self._lock:
            last = [sample_message(self.name, stamp, {sensor: values})
                    for sensor, (stamp, values) in self.samples.items()]
            return [self.hello()] + last + ([self.error] if self.error else [])


class Hub:
    """Between devices and browsers; its handlers run in a thread per connection."""

    def __init__(self):
        self.server = None    # set once, before the first device speaks
        self.devices = {}     # name -> Device
        self.phones = {}      # connection -> (id, Device), for those whose hello came
        self._lock = threading.Lock()

    def tell(self, message, key):
        """Send to every browser; to a slow one of each key the newest message alone. Never blocks.

        Nothing goes without a key: what a phone repeats without end must not fill the queue of a browser.
        """
        self.server.broadcast(message, key=key, exclude=self._pushing())

    def _pushing(self):
        return [ws for ws in self.server.connections if ws.request.path == '/push']

    def add(self, name, *details):
        """Return a new Device of that name, numbered if there is one already."""
        with self._lock:
            require(len(self.devices) < MAX_DEVICES, 'there are %d devices already' % MAX_DEVICES)
            taken, number = name, 2
            while name in self.devices:
                name, number = '%s %d' % (taken, number), number + 1
            device = self.devices[name] = Device(self, name, *details)
            return device

    def watch(self, ws):
        """Handle a browser: the whole story, then what tell() brings until it goes. What it says is ignored."""
        with self._lock:
            devices = list(self.devices.values())
        for device in devices:
            for message in device.story():
                ws.send(message)
        for _ in ws:
            pass

    def push(self, ws):
        """Handle a phone: its messages are checked and relayed; a bad one ends its connection."""
        device = None
        try:
            for message in ws:
                device = self._take(ws, device, message)
        except BadMessage as bad:
            log('a push from %s was refused: %s' % (peer_name(ws), bad))
            ws.close(bad.code, plain(bad)[:MAX_REASON])
        except minws.ConnectionClosed:
            pass  # phones come and go
        finally:
            self._forget(ws, device)

    def _take(self, ws, device, message):
        value = parse_push(message)
        if 'hello' in value:
            return self._greet(ws, device, *parse_hello(value['hello']))
        require(device is not None, 'the first message is no hello')
        if 'error' in value:
            text = value['error'].get('text') if isinstance(value['error'], dict) else None
            require(isinstance(text, str), 'the error has no text')
            device.trouble(text[:MAX_ERROR])
        else:
            stamp, reading = parse_sample(value)
            require(len(set(device.samples).union(reading)) <= MAX_SENSORS, 'more than %d sensors' % MAX_SENSORS)
            device.reading(stamp, reading)
        return device

    def _greet(self, ws, device, name, source, sensors, rate, identity, simulated):
        if device is None:
            self._replace(identity)
            device = self.add(name, source, rate, simulated)
            self.phones[ws] = identity, device
        device.sensors(sensors)
        return device

    def _replace(self, identity):
        """End the connection that a phone lost without our hearing of it, so that it is not there twice."""
        for ws, (known, device) in list(self.phones.items()):
            if identity is not None and known == identity:
                self._forget(ws, device)
                ws.terminate()

    def _forget(self, ws, device):
        with self._lock:
            self.phones.pop(ws, None)
            if device is not None and self.devices.get(device.name) is device:
                del self.devices[device.name]


def plain(text):
    """Return text in printable ASCII: what a peer put into it is no second line and does not move a cursor."""
    return ascii(str(text))[1:-1]


def log(line):
    print(plain(line), file=sys.stderr, flush=True)


def peer_name(ws):
    address = ws.remote_address
    return address[0] if isinstance(address, tuple) else str(address)


##############################################################################
# Command line
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


def announce(source, host, port):
    """Print the source and every address; flushed, because a program may wait for the lines."""
    hosts = page_addresses(host)
    print('source: %s%s' % (source.name, ' (invented values)' if source.simulated else ''))
    print('open in a browser, on this machine or on a phone in the same network:')
    for name in hosts:
        print('    http://%s:%d/' % (name, port))
    print('phones push to ws://%s:%d/push' % (hosts[0], port))
    print('Ctrl-C ends it', flush=True)


def listen(hub, host, port):
    """Return the Server; OSError if it cannot listen there."""
    return minws.serve({'/ws': hub.watch, '/push': hub.push}, host, port, pages={'/': PAGE}, max_size=MAX_MESSAGE)


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


def main(argv=None):
    """Serve until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.sensors', description='Live charts of sensor readings.')
    parser.add_argument('--host', default='0.0.0.0', help='address to listen at (default: every one of this machine)')
    parser.add_argument('--port', type=port_number, default=9000, help='0 takes a free one (default: 9000)')
    add_source_options(parser)
    arguments = parser.parse_args(argv)
    source, hub = find_source(arguments.source), Hub()
    try:
        hub.server = server = listen(hub, arguments.host, arguments.port)
    except OSError as error:
        print(sentence(error, arguments.host, arguments.port), file=sys.stderr)
        return 1
    device = hub.add(arguments.name or device_name(), source.name, arguments.rate, source.simulated)
    reader = Reader(source, arguments.rate, device)
    announce(source, arguments.host, server.port)
    try:
        reader.start()
        server.serve_forever()
    except KeyboardInterrupt:  # before serve_forever took care of it
        server.shutdown()
    finally:
        reader.stop()
    print('stopped', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
