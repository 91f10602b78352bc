"""The phone app SensorServer, from both sides.

    SensorServer    a source: the sensors, the position and the touches of a phone that runs the app
    Station         for programs that were written for the app: they find the same addresses here, with the same answers

The app's addresses, all WebSockets: /sensor/connect?type=TYPE, /sensors/connect?types=["TYPE","TYPE"], /gps and
/touchscreen; a type is Android's, such as android.sensor.accelerometer.
"""
import http.client
import json
import queue
import re
import threading
import time

import minws
from examples.droid_sensor import (ANDROID, ANDROID_SENSORS, LOCATION, LOCATION_SENSORS, Clock, Sensor, Source,
                                   SourceError, Stamped, is_usual, location_reading, numbers)

PORT = 8080
LIST_PORT = 9090              # of the app's own page, where the list of sensors is; it need not be switched on
TOUCH = 'touch'               # where the screen is touched
TOUCHED = 'touched'           # whether it is: 1 or 0

SENSOR_NOT_FOUND, UNSUPPORTED, PARAMETER_MISSING, SERVER_STOPPED, CLOSED_BY_USER = 4001, 4002, 4003, 4004, 4005
INVALID_JSON, TOO_FEW, NONE_SPECIFIED, PERMISSION_DENIED = 4006, 4007, 4008, 4009

CONNECT_TIMEOUT = 5.0         # seconds; a phone that sleeps needs one or two
LIST_TIMEOUT = 1.0            # seconds for what is only a help


##############################################################################
# A phone as a source
##############################################################################

class SensorServer(Source):
    """The sensors of a phone that runs SensorServer, as fast as the app's settings have it."""

    name = 'sensorserver'
    paced = True
    patience = 10.0

    def __init__(self, host, port=PORT, list_port=LIST_PORT):
        super().__init__()
        self.host = host
        self.port = port
        self.list_port = list_port
        self.note = ''
        self._sockets = set()
        self._lock = threading.Lock()
        self._closing = False

    def readings(self, period):
        self._closing, self.note = False, ''
        taken = queue.Queue(1000)  # a phone that is faster than we are waits
        feeds = [threading.Thread(target=self._feed, args=(feed, taken), name='sensorserver', daemon=True)
                 for feed in self._feeds()]
        if not feeds:
            raise SourceError('nothing is wanted of it')
        for feed in feeds:
            feed.start()
        try:
            while True:
                found = taken.get()
                if isinstance(found, SourceError):
                    raise found
                yield found
        finally:
            self.close()
            while any(feed.is_alive() for feed in feeds):
                drain(taken)
                feeds[0].join(0.01)
                feeds = [feed for feed in feeds if feed.is_alive()]

    def _feeds(self):
        """Return the functions that read what is wanted, each over a connection of its own."""
        feeds = []
        if is_usual(self.wanted) or set(self.wanted) - {LOCATION, TOUCH, TOUCHED}:
            feeds.append(self._sensor_feed)
        if self.wants(LOCATION):
            feeds.append(self._location_feed)
        if self.wants(TOUCH) or self.wants(TOUCHED):
            feeds.append(self._touch_feed)
        return feeds

    def _feed(self, feed, taken):
        """Put what a feed yields into the queue, and its end if that is the end of all."""
        try:
            for reading in feed():
                if reading:
                    taken.put(reading)
            error = SourceError('it closed the connection')
        except minws.ConnectionClosed as closed:
            error = SourceError('it closed the connection (%s)' % closed)
        except SourceError as found:
            error = found
        except (OSError, minws.WebSocketException, ValueError) as found:
            error = SourceError('no SensorServer at %s:%d (%s)' % (self.host, self.port, found))
        self.note = str(error)
        # A phone that does not say where it is, or has no touch screen open, still has sensors.
        if feed == self._sensor_feed or not self._has_sensors():
            taken.put(error)

    def _has_sensors(self):
        return self._sensor_feed in self._feeds()

    def _messages(self, path, first=None):
        """Yield the objects that come from a path."""
        with self._lock:
            if self._closing:
                raise SourceError('closed')
        ws = minws.connect('ws://%s:%d%s' % (self.host, self.port, path), open_timeout=CONNECT_TIMEOUT,
                           ping_interval=5, ping_timeout=5)
        with self._lock:
            self._sockets.add(ws)
        try:
            if self._closing:
                raise SourceError('closed')
            if first is not None:
                ws.send(first)
            for message in ws:
                value = load_object(message)
                if value is None:
                    self.note = 'it sent %r' % message[:60]
                else:
                    yield value
            if ws.close_code in REFUSALS:
                raise Refused(ws.close_code, ws.close_reason)
        except minws.ConnectionClosed:
            if ws.close_code in REFUSALS:
                raise Refused(ws.close_code, ws.close_reason)
            raise
        finally:
            with self._lock:
                self._sockets.discard(ws)
            ws.close()

    def _sensor_feed(self):
        """Yield the readings of the sensors, over a connection for all; types that the phone has not are left out."""
        kinds, clock = self._kinds(), Clock()
        while kinds:
            try:
                for value in self._messages(path_of(kinds)):
                    yield self._sensor_reading(value, kinds, clock)
                return
            except Refused as refused:
                missing = re.search(r'of type (\S+) not found', refused.reason, re.I)
                if refused.code != SENSOR_NOT_FOUND or missing is None or missing.group(1) not in kinds:
                    raise
                kinds.remove(missing.group(1))
        raise SourceError('the phone has none of the sensors that are wanted')

    def _kinds(self):
        """Return the types to ask for, of those that the phone lists, if it does."""
        listed = self._listed()
        usual = [ANDROID + kind for kind, (sensor, _) in ANDROID_SENSORS.items()
                 if is_usual(self.wanted) or {sensor, kind, ANDROID + kind} & set(self.wanted)]
        if not listed:
            return usual + [name for name in self.wanted if '.' in name and name not in usual]
        others = [kind for name, kind in listed if name in self.wanted or kind in self.wanted]
        there = {kind for _, kind in listed}
        return [kind for kind in usual if kind in there] + list(dict.fromkeys(set(others) - set(usual)))

    def _listed(self):
        """Return [(the phone's name of a sensor, its type)], [] if the phone does not tell."""
        connection = http.client.HTTPConnection(self.host.strip('[]'), self.list_port, timeout=LIST_TIMEOUT)
        try:
            connection.request('GET', '/sensors')
            listed = json.loads(connection.getresponse().read(1 << 18).decode('utf-8', 'replace'))
            return [(sensor['name'], sensor['type']) for sensor in listed]
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
            return []
        finally:
            connection.close()

    def _sensor_reading(self, value, kinds, clock):
        kind = value.get('type', kinds[0])  # which one connection for one sensor leaves out
        sensor, meaning = sensor_of(kind) if isinstance(kind, str) else ('', None)
        values, stamp = value.get('values'), numbers([value.get('timestamp')], 1)
        if meaning is None and isinstance(values, list):
            meaning = Sensor('', tuple(map(str, range(1, len(values) + 1))) if len(values) > 1 else ())
        values = numbers(values, len(meaning.axes) or 1) if meaning else None
        if not sensor or values is None:
            self.note = 'it sent %r' % str(value)[:60]
            return None
        self.sensors[sensor] = meaning
        now = time.time()
        return Stamped({sensor: values}, clock.utc(stamp[0] / 1e9, now) if stamp else now)

    def _location_feed(self):
        for value in self._messages('/gps', first='getLastKnownLocation'):
            stamp = numbers([value.get('time')], 1)
            yield Stamped(location_reading(value, self.sensors), stamp[0] / 1000 if stamp else time.time())

    def _touch_feed(self):
        for value in self._messages('/touchscreen'):
            place = numbers([value.get('x'), value.get('y')], 2)
            if place is not None:
                self.sensors.update({TOUCH: Sensor('px', ('x', 'y')), TOUCHED: Sensor('', ())})
                reading = {TOUCH: place, TOUCHED: [0.0 if value.get('action') == 'ACTION_UP' else 1.0]}
                yield Stamped({sensor: values for sensor, values in reading.items() if self.wants(sensor)}, time.time())

    def close(self):
        with self._lock:
            self._closing = True
            sockets = list(self._sockets)
        for ws in sockets:
            ws.terminate()

    def silence(self):
        return self.note


class Refused(SourceError):
    """The app closed a connection with a code of its own."""

    def __init__(self, code, reason):
        super().__init__('it refuses: %s' % (reason or REFUSALS[code]))
        self.code = code
        self.reason = reason or ''


REFUSALS = {
    SENSOR_NOT_FOUND: 'a sensor was not found',
    UNSUPPORTED: 'it does not know the address',
    PARAMETER_MISSING: 'a parameter is missing',
    SERVER_STOPPED: 'the server was stopped',
    CLOSED_BY_USER: 'somebody closed the connection on the phone',
    INVALID_JSON: 'the types are no JSON array',
    TOO_FEW: 'there must be two types',
    NONE_SPECIFIED: 'no sensor was named',
    PERMISSION_DENIED: 'the app may not know where the phone is',
}


def drain(taken):
    """Make room for a thread that waits to put something."""
    try:
        while True:
            taken.get_nowait()
    except queue.Empty:
        pass


def path_of(kinds):
    """Return the path for these types; the one for several refuses less than two."""
    if len(kinds) == 1:
        return '/sensor/connect?type=' + escape(kinds[0])
    return '/sensors/connect?types=' + escape(json.dumps(kinds, separators=(',', ':')))


def escape(text):
    return ''.join('%%%02X' % byte if byte in b'"[], &#%+' or byte > 126 else chr(byte) for byte in text.encode())


def sensor_of(kind):
    """Return what we call the sensor of a type, and its Sensor, None for one that we do not know."""
    end = kind[len(ANDROID):] if kind.startswith(ANDROID) else ''
    return ANDROID_SENSORS.get(end, (end.replace('_', ' ') or kind, None))


def load_object(message):
    """Return the JSON object in a message, None if there is none."""
    try:
        value = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else None


##############################################################################
# A hub for those who expect a phone
##############################################################################

KINDS = {sensor: ANDROID + kind for kind, (sensor, _) in ANDROID_SENSORS.items()}
GPS_KEYS = {sensor: keys for sensor, _, keys in LOCATION_SENSORS}
MAX_LISTENERS = 64            # each reading is looked at once for each of them


class Station:
    """Answer at SensorServer's addresses with the readings of any device; `routes` and `pages` are for serve().

    `reading(device, stamp, reading)` is called with each reading, by any thread; it does nothing while nobody listens.
    A program hears one device: the first that has what it asks for, or the one that it names with &device=NAME.
    """

    def __init__(self):
        self._devices = {}    # name -> {sensor: (stamp, values)}, the last of each
        self._listeners = {}  # connection -> (device, {type or address}, whether to tell the type)
        self._lock = threading.Lock()

    @property
    def routes(self):
        """Return {path: class of its connections}."""
        paths = {'/sensor/connect': kind_of, '/sensors/connect': kinds_of, '/gps': lambda query: [LOCATION],
                 '/touchscreen': lambda query: [TOUCH]}
        return {path: type('StationListener', (StationListener,), {'station': self, 'wanted': staticmethod(wanted),
                                                                   'tells_type': wanted is kinds_of})
                for path, wanted in paths.items()}

    @property
    def pages(self):
        """Return {path: function of a request} for what the app's own page asks."""
        return {'/sensors': self.listed, '/wsport': self.port}

    def reading(self, device, stamp, reading):
        """Take a reading, {sensor: [float]} at `stamp` in seconds, of a device; tell who listens. Never blocks."""
        with self._lock:
            last = self._devices.setdefault(device, {})
            began = last.get(TOUCHED, (0, [0.0]))[1] == [0.0]
            last.update((sensor, (stamp, values)) for sensor, values in reading.items())
            listeners = [listener for listener in self._listeners.items() if listener[1][0] == device]
        for ws, (_, kinds, tell_type) in listeners:
            for key, message in messages_of(stamp, reading, kinds, tell_type, began):
                try:
                    ws.send(json.dumps(message), key=key)
                except minws.ConnectionClosed:
                    break     # its handler hears of it, too

    def forget(self, device):
        """Take it that a device is no more."""
        with self._lock:
            self._devices.pop(device, None)

    def enter(self, ws, kinds, tells_type):
        """Let a connection hear these types of a device; return which device, Refused if none has all of them."""
        device, missing = self._device(ws.request.query.get('device'), kinds)
        if missing is not None:
            raise Refused(SENSOR_NOT_FOUND, 'sensor of type %s not found' % missing)
        with self._lock:
            if len(self._listeners) >= MAX_LISTENERS:
                raise Refused(1013, 'there are %d listeners already' % MAX_LISTENERS)
            self._listeners[ws] = device, frozenset(kinds), tells_type
        return device

    def leave(self, ws):
        with self._lock:
            self._listeners.pop(ws, None)

    def _device(self, wanted, kinds):
        """Return (the device that has all kinds, None), or (None, the first kind that none has)."""
        missing = kinds[0]
        with self._lock:
            for device, last in self._devices.items():
                has = {KINDS.get(sensor, sensor) for sensor in last}
                lacking = [kind for kind in kinds if kind not in has]
                if wanted in (None, device):
                    if not lacking:
                        return device, None
                    missing = lacking[0]
        return None, missing

    def last_location(self, device):
        """Return the message that tells where a device was last, None if nobody knows."""
        with self._lock:
            last = dict(self._devices.get(device, {}))
        if LOCATION not in last:
            return None
        fix = gps_message(last[LOCATION][0], {sensor: values for sensor, (_, values) in last.items()})
        return dict(fix, lastKnowLocation=True)

    def listed(self, request):
        """Return the answer to GET /sensors: each sensor with its name and type."""
        with self._lock:
            sensors = dict.fromkeys(sensor for last in self._devices.values() for sensor in last)
        return json_response([{'name': sensor, 'type': KINDS[sensor]} for sensor in sensors if sensor in KINDS])

    def port(self, request):
        """Return the answer to GET /wsport: the port is the one where the question came."""
        host = request.headers.get('Host', '')
        port = host.rpartition(':')[2]
        return json_response({'portNo': int(port) if port.isdigit() else 80})


class StationListener(minws.WebSocket):
    """The connection of a program; a subclass of it has the `station` and what its path means."""

    station = None
    tells_type = False
    wanted = None             # function of a query -> [type]; Refused
    device = None

    def opened(self):
        try:
            self.kinds = self.wanted(self.request.query)
            self.device = self.station.enter(self, self.kinds, self.tells_type)
        except Refused as refused:
            self.close(refused.code, reason_of(refused.reason))

    def received_message(self, message):
        if self.device is not None and LOCATION in self.kinds and str(message).lower() == 'getlastknownlocation':
            last = self.station.last_location(self.device)
            if last is not None:
                self.send(json.dumps(last))

    def closed(self, code, reason=None):
        self.station.leave(self)


def kind_of(query):
    """Return [the type] in the address /sensor/connect?type=TYPE."""
    if 'type' not in query:
        raise Refused(PARAMETER_MISSING, '<type> param required')
    if not query['type']:
        raise Refused(NONE_SPECIFIED, 'No sensor specified')
    return [query['type'].lower()]


def kinds_of(query):
    """Return the types in the address /sensors/connect?types=["TYPE","TYPE"]."""
    if 'types' not in query:
        raise Refused(PARAMETER_MISSING, '<Types> parameter required')
    try:
        kinds = json.loads(query['types'])
    except (ValueError, RecursionError):
        kinds = None
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise Refused(INVALID_JSON, 'Syntax error : %s is not valid JSON array' % query['types'])
    if len(kinds) == 1:
        raise Refused(TOO_FEW, 'At least two sensor types must be specified')
    if not kinds:
        raise Refused(NONE_SPECIFIED, ' No sensor specified')
    return [kind.lower() for kind in kinds]


def json_response(value):
    return minws.Response(200, None, [('Content-Type', 'application/json')], json.dumps(value).encode())


def messages_of(stamp, reading, kinds, tell_type, began):
    """Yield (key, message) for what of a reading a listener to these kinds gets, as the app would send it.

    `began`: whether the screen was not touched before.
    """
    for sensor, values in reading.items():
        kind = KINDS.get(sensor)
        if kind in kinds:
            message = {'values': values, 'timestamp': int(stamp * 1e9), 'accuracy': 3}
            yield kind, dict(message, type=kind) if tell_type else message
    if LOCATION in kinds and LOCATION in reading:
        yield LOCATION, gps_message(stamp, reading)
    if TOUCH in kinds and TOUCH in reading:
        x, y = reading[TOUCH][:2]
        action = 'ACTION_UP' if reading.get(TOUCHED) == [0.0] else 'ACTION_DOWN' if began else 'ACTION_MOVE'
        yield action, {'x': x, 'y': y, 'action': action}


def gps_message(stamp, reading):
    """Return the app's message for a position."""
    fix = {'altitude': 0.0, 'bearing': 0.0, 'accuracy': 0.0, 'speed': 0.0}
    for sensor, keys in GPS_KEYS.items():
        fix.update(zip(keys, reading.get(sensor, ())))
    return dict(fix, time=int(stamp * 1000), lastKnowLocation=False)


def reason_of(text):
    """Return text as a close reason: RFC 6455 5.5 has room for 123 bytes."""
    return text.encode('utf-8', 'replace')[:123].decode('utf-8', 'ignore')
