#!/usr/bin/env python3
"""Read the sensors of a phone or a board, and push them to a browser that draws them.

On the phone, with this file and minws.py in one directory:

    python3 droid_sensor.py ws://192.168.1.5:9000/push

On the computer whose address that is: `python3 -m examples.sensors`. The readings of a phone that loses its network
appear again when the network does; of each sensor the newest value is sent, never a backlog.

The sources are found in this order, or named with --source:

    sl4a       SL4A and QPython, by their JSON-RPC (AP_HOST, AP_PORT, AP_HANDSHAKE) or their `androidhelper` module
    termux     Termux with the Termux:API app, by one `termux-sensor` process
    linux      industrial I/O, 1-wire, thermal, hwmon and power supply files; load, memory and network rates
    simulated  someone walking, for a computer that has nothing to measure

--sensors names what to read, by our name, the phone's own or Android's type: `--sensors accel,gyro`; `usual` stands for
what is read otherwise. Where a phone is goes out only if asked for: `--sensors usual,location`.

A source of your own is a subclass of Source; add it to SOURCES.
"""
import argparse
import codecs
import collections
import glob
import importlib
import json
import math
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import minws


##############################################################################
# Readings
#
# A reading is a dict {sensor: [float, ...]}, one number per axis. What the
# numbers mean stands once, in the `sensors` of the source.
##############################################################################

Sensor = collections.namedtuple('Sensor', 'unit axes')
Sensor.__doc__ = """What the numbers of a sensor are: a unit and the names of its axes, () for a single number."""

XYZ = ('x', 'y', 'z')
ANGLES = ('azimuth', 'pitch', 'roll')
USUAL = 'usual'               # in --sensors: what is read when nothing is named
LOCATION = 'location'         # read only when it is named: everybody in the network can see the page


def is_usual(wanted):
    """Return whether names given with --sensors ask for what is read when none is given."""
    return not wanted or USUAL in wanted


class Stamped(dict):
    """A reading whose source knows when it was taken; `stamp` in seconds since 1970, UTC."""

    def __init__(self, reading, stamp):
        super().__init__(reading)
        self.stamp = stamp


class Clock:
    """Turn the seconds of a device's own clock, such as those since it was switched on, into UTC.

    The first reading is taken for fresh, and the clock keeps that difference until it jumps.
    """

    EPOCH = 1e9               # seconds: a clock that shows more has been set; nothing is switched on for thirty years
    JUMP = 2.0                # seconds by which a clock may be off before it is taken to have started over

    def __init__(self):
        self.offset = None

    def utc(self, seconds, now):
        """Return the UTC of a stamp that came at `now`, both in seconds."""
        if seconds > self.EPOCH:
            return seconds
        if self.offset is None or abs(seconds + self.offset - now) > self.JUMP:
            self.offset = now - seconds
        return seconds + self.offset


def numbers(values, count):
    """Return the first `count` of values as floats, or None if one is missing or not a finite number."""
    if not isinstance(values, (list, tuple)) or len(values) < count:
        return None
    values = values[:count]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return None
    try:
        floats = [float(value) for value in values]
    except OverflowError:  # JSON has integers of any length
        return None
    return floats if all(map(math.isfinite, floats)) else None


def hello_message(device, source, sensors, rate, **more):
    """Return the text that announces a device: `sensors` is {name: Sensor}, `rate` in Hz."""
    described = {name: {'unit': sensor.unit, 'axes': list(sensor.axes)} for name, sensor in sensors.items()}
    return json.dumps({'hello': dict(more, device=device, source=source, rate=rate, sensors=described)})


def sample_message(device, stamp, reading):
    """Return the text of one reading; stamp in seconds since 1970, UTC."""
    samples = {sensor: values if len(values) > 1 else values[0] for sensor, values in reading.items()}
    return json.dumps({'d': device, 't': round(stamp, 6), 's': samples})


def sample_key(reading):
    """Return the key under which a reading is sent: only a newer one of the same sensors may replace it unsent.

    One message for all sensors, not one for each: twelve sensors ten times a second are more messages than a radio
    with a round trip of 100 ms acknowledges (each sensor came 3.4 times).
    """
    return tuple(sorted(reading))


def error_message(device, text):
    """Return the text that names what is wrong with a device's source."""
    return json.dumps({'error': {'device': device, 'text': text}})


##############################################################################
# Sources
##############################################################################

class SourceError(Exception):
    """A source cannot go on; the text is a sentence for the person in front of the screen."""


class Source:
    """A place that readings come from.

    To override: `available()`, `readings(period)`, `close()`, `silence()`.
    Attributes: `name`; `sensors`, {sensor: Sensor}, complete before a sensor's first reading is yielded;
    `wanted`, the names that --sensors gave, () for the usual ones;
    `simulated`, whether the readings are invented; `patience`, the seconds without a reading after which it hangs;
    `paced`, whether the source keeps the time itself instead of answering as often as it is asked;
    `repeat`, the seconds after which a value that has not changed is read out again.
    """

    name = 'source'
    simulated = False
    paced = False
    patience = 5.0
    repeat = 2.0              # a browser takes a sensor that says nothing for three seconds for dead

    def __init__(self):
        self.sensors = {}
        self.wanted = ()
        self._last = {}       # sensor -> (when it was read out, its values)

    @classmethod
    def available(cls):
        """Return whether this machine seems to have this source; quick, without side effects."""
        return True

    def readings(self, period):
        """Yield readings for ever, {} while there is none; period in seconds is what the caller wants.

        A reading that is Stamped says when it was taken, every other one was taken now.
        Raises SourceError. May be called again after it has ended.
        """
        raise NotImplementedError

    def wants(self, sensor):
        """Return whether a sensor is to be read."""
        return sensor in self.wanted or sensor != LOCATION and is_usual(self.wanted)

    def changed(self, reading):
        """Return what of a reading is new, so that the rate that people see is that at which a sensor changes."""
        now, new = time.monotonic(), {}
        for sensor, values in reading.items():
            then, last = self._last.get(sensor, (0.0, None))
            if values != last or now - then >= self.repeat:
                self._last[sensor] = now, values
                new[sensor] = values
        return new

    def close(self):
        """End a `readings` that hangs in another thread; any thread, any time, also twice."""

    def silence(self):
        """Return what a person might do when nothing comes, or ''."""
        return ''


class Aside:
    """Call what may take long in a thread of its own, again and again; what it returns is handed out once."""

    def __init__(self, call, pause):
        self._call = call
        self._pause = pause   # seconds from the beginning of one call to that of the next
        self._due = 0.0
        self._thread = None
        self._result = self._error = None

    def take(self):
        """Return what the last call returned, None if that is known already or still under way; raises its error."""
        if self._thread is not None and self._thread.is_alive():
            return None
        result, error, self._result, self._error = self._result, self._error, None, None
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + self._pause
            self._thread = threading.Thread(target=self._run, name='source-aside', daemon=True)
            self._thread.start()
        if error is not None:
            raise error
        return result

    def _run(self):
        try:
            self._result = self._call()
        except Exception as error:  # which take() raises in the thread that can tell of it
            self._error = error


##############################################################################
# What Android calls its sensors
#
# A type says what a sensor is, a name only who made it. SensorServer tells both;
# Termux the name alone, from which the type is found here.
##############################################################################

ANDROID = 'android.sensor.'   # what a type begins with
ANDROID_SENSORS = {           # the rest of the type: sensor, its Sensor
    'accelerometer': ('accel', Sensor('m/s²', XYZ)),
    'gyroscope': ('gyro', Sensor('rad/s', XYZ)),
    'magnetic_field': ('magnetic', Sensor('µT', XYZ)),
    'gravity': ('gravity', Sensor('m/s²', XYZ)),
    'linear_acceleration': ('linear accel', Sensor('m/s²', XYZ)),
    'rotation_vector': ('rotation', Sensor('', ('x', 'y', 'z', 'w'))),
    'orientation': ('orientation', Sensor('°', ANGLES)),
    'light': ('light', Sensor('lx', ())),
    'pressure': ('pressure', Sensor('hPa', ())),
    'proximity': ('proximity', Sensor('cm', ())),
    'relative_humidity': ('humidity', Sensor('%', ())),
    'ambient_temperature': ('temperature', Sensor('°C', ())),
    'heart_rate': ('heart rate', Sensor('/min', ())),
    'step_counter': ('steps', Sensor('', ())),
}

# Tried in this order on a name in lower case whose words are parted by single spaces. '' is a sensor that is none of
# ours though its name sounds like it: made for the camera, the pocket, the back of the phone, or not calibrated.
NAMES_OF_TYPES = tuple((kind, re.compile(pattern)) for kind, pattern in (
    ('', r'uncal|\bbias\b|debug|gesture|detect|interrupt|pick ?up|\btilt|classif|finger|\bsar\b'),
    ('', r'null sensor|vsync|v sync|\bois\b|hub type|\bhrm\b|pocket|cover|\bgrip|\bhall|lift|glance|\bcall\b'),
    ('', r'game ?rot|geo ?mag|geo ?rot|6dof|pose|screen orient|device orient|dev orient|auto rotation'),
    ('rotation_vector', r'rot\w* ?vec'),
    ('gravity', r'\bm?gravity|\bgrav\b'),
    ('linear_acceleration', r'linear ?acc|\blin acc'),
    ('orientation', r'\borient'),
    ('accelerometer', r'accelero|accelera|\baccel?\b|\bacc\d*\b'),
    ('gyroscope', r'gyro'),
    ('magnetic_field', r'magnet|\bmag\b|compass'),
    ('step_counter', r'step ?count'),
    ('heart_rate', r'heart ?rate'),
    ('relative_humidity', r'humid'),
    ('pressure', r'pressure|barometer|\bbaro\b'),
    # The thermometer inside another chip, whose number stands before the word, does not measure the air.
    ('ambient_temperature', r'ambient temp|^(?!\w*\d)(\w+ )?temperature( sensor)?$'),
    ('', r'\brear\b|\bback\b|side panel|front camera|flicker|\brgbw?\b|\bcct\b|colou?r|wideir|\bir\b|\baod\b|\bled\b|'
         r'seamless|physical|brightness|\bstrm\b|touch|\bcombo\b|\balt\b'),
    ('proximity', r'prox|\bps\b'),
    ('light', r'light|\blux\b|\bals\b|illumin'),
    # Some makers write the chip's name alone.
    ('accelerometer', r'^(sc7a20|kxt|kx\d|mc3\d|da2\d\d|bma\d|mxc\d|stk8|lis[23]d|mir3da)\w*$'),
    ('magnetic_field', r'^(akm?0?[89]\d|mmc\d|yas\d|ist8\d|qmc\d|bmm\d|hmc\d|lis[23]mdl|af\d{4})\w*$'),
    ('gyroscope', r'^(st lsm6d|l3g|bmg)\w*$'),
))
SECOND_CHOICE = re.compile(r'(?<!non )wake ?up|corrected|virtual|secondary|palm|fusion(?! light)')
BEST_CHOICE = re.compile(r'ambient light|fusion light')


def plain_words(name):
    """Return a name in lower case, its words parted by single spaces."""
    return ' '.join(re.sub(r'[^a-z0-9.+]', ' ', name.lower()).split())


def android_type(name):
    """Return the end of the Android type of a sensor that a phone calls by that name, or ''."""
    words = plain_words(name)
    for kind, pattern in NAMES_OF_TYPES:
        if pattern.search(words):
            return kind
    return ''


def choice_order(name):
    """Return the key by which the best of several sensors of a type comes first.

    One that also works while the phone sleeps costs battery; of equals the shortest name is the plain one.
    """
    words = plain_words(name)
    return bool(SECOND_CHOICE.search(words)), not BEST_CHOICE.search(words), len(name)


LOCATION_SENSORS = (          # sensor, its Sensor, keys that Android has for them
    (LOCATION, Sensor('°', ('latitude', 'longitude')), ('latitude', 'longitude')),
    ('altitude', Sensor('m', ()), ('altitude',)),
    ('speed', Sensor('m/s', ()), ('speed',)),
    ('bearing', Sensor('°', ()), ('bearing',)),
    ('location accuracy', Sensor('m', ()), ('accuracy',)),
)


def location_reading(fix, sensors):
    """Return the reading in a dict that Android made of a Location; what its sensors are goes into `sensors`."""
    reading = {}
    if numbers([fix.get('latitude'), fix.get('longitude')], 2) is not None:
        for sensor, meaning, keys in LOCATION_SENSORS:
            values = numbers([fix.get(key) for key in keys], len(keys))
            if values is not None:
                sensors[sensor] = meaning
                reading[sensor] = values
    return reading


##############################################################################
# SL4A and QPython
##############################################################################

SL4A_TIMEOUT = 5.0            # seconds for one answer; the phone answers in milliseconds or not at all
SL4A_LINE = 1 << 20           # bytes of one answer; the longest we ask for has a few hundred
BATTERY_PERIOD = 10.0         # seconds; Android itself announces a level once a minute
LOCATION_PERIOD = 2           # seconds from one position to the next

SL4A_SENSORS = (              # sensor, its Sensor, keys of readSensors in lower case, factor
    ('accel', Sensor('m/s²', XYZ), ('xforce', 'yforce', 'zforce'), 1),
    ('magnetic', Sensor('µT', XYZ), ('xmag', 'ymag', 'zmag'), 1),
    ('orientation', Sensor('°', ANGLES), ANGLES, 180 / math.pi),
    ('light', Sensor('lx', ()), ('light',), 1),
)
SL4A_BATTERY = (              # sensor, its Sensor, key of readBatteryData, factor
    ('battery', Sensor('%', ()), 'level', 1),
    ('battery voltage', Sensor('V', ()), 'voltage', 0.001),
    ('battery temperature', Sensor('°C', ()), 'temperature', 0.1),
)
SL4A_ALL = 1                  # startSensingTimed: every sensor, and orientation, which exists in this mode only


class Sl4aRpc:
    """The facade over its socket: one JSON object per line, there and back."""

    def __init__(self, host, port, handshake=None, timeout=SL4A_TIMEOUT):
        self.sock = socket.create_connection((host, port), timeout)
        self.lines = self.sock.makefile('rb')
        self.number = 0
        try:
            if handshake is not None:
                self.call('_authenticate', handshake)
        except (OSError, SourceError):
            self.close()
            raise

    def call(self, method, *params):
        """Return the result of a method of the phone; raises SourceError with the phone's own text."""
        self.number += 1
        request = {'id': self.number, 'method': method, 'params': params}
        self.sock.sendall(json.dumps(request).encode('utf-8') + b'\n')
        answer = self._answer()
        while answer.get('id') != self.number:
            answer = self._answer()
        if answer.get('error') is not None:
            raise SourceError('%s: %s' % (method, answer['error']))
        return answer.get('result')

    def _answer(self):
        line = self.lines.readline(SL4A_LINE)
        if not line.endswith(b'\n'):
            raise SourceError('the phone closed the connection')
        try:
            answer = json.loads(line.decode('utf-8'))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SourceError('the phone answered %r' % line[:60])
        return answer

    def interrupt(self):
        """Wake a call that another thread waits in."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self):
        self.lines.close()
        self.sock.close()


class Sl4aModule:
    """The facade through `androidhelper` or `android`, whose objects answer with (id, result, error)."""

    def __init__(self, droid):
        self.droid = droid

    def call(self, method, *params):
        answer = getattr(self.droid, method)(*params)
        if answer.error is not None:
            raise SourceError('%s: %s' % (method, answer.error))
        return answer.result

    def interrupt(self):
        pass

    close = interrupt


def sl4a_module():
    """Return a module that has an Android class, or None."""
    for name in ('androidhelper', 'android'):
        try:
            module = importlib.import_module(name)
        except Exception:  # found, but not at home: these modules talk to the phone while they are imported
            continue
        if hasattr(module, 'Android'):
            return module
    return None


class Sl4a(Source):
    """The sensors of a phone that runs this script under SL4A or QPython."""

    name = 'sl4a'

    def __init__(self, environ=os.environ):
        super().__init__()
        self.environ = environ
        self.facade = None
        self.battery = {}
        self.battery_due = 0.0

    @classmethod
    def available(cls):
        return 'AP_PORT' in os.environ or sl4a_module() is not None

    def readings(self, period):
        self.facade = facade = self._connect()
        try:
            self._start(period)
            has_gyroscope = self._try('sensorsReadGyroscope') is not None
            while True:
                reading = self._sensors(facade.call('readSensors') or {})
                if has_gyroscope:
                    self._add(reading, 'gyro', Sensor('rad/s', XYZ), self._try('sensorsReadGyroscope'))
                if reading:
                    reading.update(self._battery())
                reading.update(self._location())
                yield self.changed(reading)
        except (OSError, ValueError) as error:  # ValueError: the file of a socket that close() has closed
            raise SourceError('no answer from the phone (%s)' % error)
        finally:
            self._stop()

    def _connect(self):
        if 'AP_PORT' not in self.environ:
            module = sl4a_module()
            if module is None:
                raise SourceError('no SL4A here: AP_PORT is not set, and androidhelper cannot be imported')
            return Sl4aModule(module.Android())
        host, port = self.environ.get('AP_HOST') or '127.0.0.1', self.environ['AP_PORT']
        try:
            return Sl4aRpc(host, int(port), self.environ.get('AP_HANDSHAKE'))
        except (OSError, ValueError) as error:
            raise SourceError('no SL4A at %s:%s (%s)' % (host, port, error))

    def _start(self, period):
        # A second start changes nothing until the first is stopped, and the last run may have been killed.
        self._try('stopSensing')
        self.facade.call('startSensingTimed', SL4A_ALL, max(20, int(period * 1000)))
        self._try('batteryStartMonitoring')
        self.battery_due = time.monotonic() + 1.0  # there is no level before that
        if self.wants(LOCATION):
            self._try('startLocating', LOCATION_PERIOD * 1000, 0)

    def _stop(self):
        for method in ('stopSensing', 'batteryStopMonitoring') + ('stopLocating',) * self.wants(LOCATION):
            try:
                self._try(method)
            except (OSError, ValueError):
                break
        self.facade.close()

    def _try(self, method, *params):
        """Call what this phone may not have; None instead of its error."""
        try:
            return self.facade.call(method, *params)
        except (SourceError, AttributeError):
            return None

    def _location(self):
        """Return where the phone is, by satellite if it knows, else by its network; {} if it should not say."""
        if not self.wants(LOCATION):
            return {}
        fixes = self._try('readLocation') or {}
        fix = fixes.get('gps') or fixes.get('network')
        return location_reading(fix, self.sensors) if isinstance(fix, dict) else {}

    def _add(self, reading, sensor, meaning, values, factor=1):
        values = numbers(values, len(meaning.axes) or 1)
        if values is not None and self.wants(sensor):
            self.sensors[sensor] = meaning
            reading[sensor] = [value * factor for value in values]

    def _sensors(self, result):
        # The phone writes xMag, its documentation xmag.
        found = {key.lower(): value for key, value in result.items()}
        reading = {}
        for sensor, meaning, keys, factor in SL4A_SENSORS:
            self._add(reading, sensor, meaning, [found.get(key) for key in keys], factor)
        return reading

    def _battery(self):
        if time.monotonic() >= self.battery_due:
            self.battery_due = time.monotonic() + BATTERY_PERIOD
            result = self._try('readBatteryData') or {}
            self.battery = {}
            for sensor, meaning, key, factor in SL4A_BATTERY:
                self._add(self.battery, sensor, meaning, [result.get(key)], factor)
        return self.battery

    def close(self):
        if self.facade is not None:
            self.facade.interrupt()

    def silence(self):
        return 'does the phone allow this app to use its sensors?'


##############################################################################
# Termux
##############################################################################

TERMUX_LIST_TIMEOUT = 8.0     # seconds; without the app `termux-sensor -l` never ends
TERMUX_OBJECT = 1 << 16       # characters; an object of thirty sensors has about four thousand

TERMUX_TIMEOUT = 20.0         # seconds for an answer of the other commands; a position may take that long
TERMUX_STATUS_PERIOD = 30.0   # seconds; every question is three processes on the phone, and Android counts them
TERMUX_LOCATION_PERIOD = 10.0
TERMUX_BATTERY = (            # sensor, its Sensor, key of termux-battery-status, factor
    ('battery', Sensor('%', ()), 'percentage', 1),
    ('battery voltage', Sensor('V', ()), 'voltage', 0.001),
    ('battery current', Sensor('A', ()), 'current', 1e-6),
    ('battery temperature', Sensor('°C', ()), 'temperature', 1),
)
TERMUX_LOCATION = (           # how to ask where the phone is: indoors the satellites never answer
    ('-p', 'gps', '-r', 'once'),
    ('-p', 'network', '-r', 'once'),
    ('-p', 'network', '-r', 'last'),
)


class JsonStream:
    """Pull objects out of text that is objects one after the other, with other lines between them.

    `note` is the last line that was no part of an object.
    """

    def __init__(self, limit=TERMUX_OBJECT):
        self.limit = limit
        self.note = ''
        self._text = ''
        self._decoder = json.JSONDecoder()

    def feed(self, text):
        """Take more text; yield each object that it completes."""
        self._text += text
        while True:
            self._text = self._text.lstrip()
            if self._text.startswith('{'):
                found = self._object()
                if found is None:
                    return
                yield found
            elif '\n' in self._text:
                self._drop(self._text.index('\n'))
            else:
                self._drop_excess()
                return

    def _object(self):
        """Cut the first object off; None if it is not complete. Skips beginnings that never will be."""
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text)
            except ValueError:
                # An object is printed with its inner lines indented: the next brace at a margin begins another one.
                restart = self._text.find('\n{')
                if restart < 0:
                    self._drop_excess()
                    return None
                self._drop(restart)
                self._text = self._text.lstrip()
            else:
                self._text = self._text[end:]
                return found

    def _drop(self, end):
        self.note = self._text[:end].strip()
        self._text = self._text[end:]

    def _drop_excess(self):
        if len(self._text) > self.limit:
            self._drop(len(self._text))


def choose_sensors(listed, wanted=()):
    """Return {the phone's name: (sensor, Sensor)} for the names that `termux-sensor -l` listed.

    Of each type one is taken, or those of them that `wanted` names, in our words or Android's; and what it names in
    the phone's own. Without a sensor of a known type all are taken. The Sensor is None where its numbers are unknown.
    """
    known, chosen = {}, {}
    for name in sorted(listed, key=choice_order):
        known.setdefault(android_type(name), name)
    for kind, (sensor, meaning) in ANDROID_SENSORS.items():
        name = known.get(kind)
        if name is not None and (is_usual(wanted) or {sensor, name, kind, ANDROID + kind} & set(wanted)):
            chosen[name] = sensor, meaning
    every = is_usual(wanted) and not chosen
    chosen.update((name, (name, None)) for name in listed if every or name in wanted and name not in chosen)
    return chosen


def end_child(child):
    """Ask a child that leads a session of its own to go, with all it started; after a second it has to."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=1)
        except (OSError, subprocess.TimeoutExpired):
            pass


def start_child(*command):
    """Start a program with its output in a pipe and a session of its own: scripts have children, and all must go."""
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                start_new_session=True)
    except OSError as error:
        raise SourceError('cannot run %s (%s)' % (command[0], error.strerror))


class Termux(Source):
    """The sensors of a phone, through the one `termux-sensor` process that Termux:API can serve at a time."""

    name = 'termux'
    paced = True
    patience = 10.0

    def __init__(self, directory=''):
        super().__init__()
        self.directory = directory    # where the commands are, '' for the PATH
        self.child = None
        self.note = ''
        self.killed = False
        self._lock = threading.Lock()
        self._closing = False
        self._children = set()
        self._location_ways = list(TERMUX_LOCATION)

    @classmethod
    def available(cls):
        return shutil.which('termux-sensor') is not None

    def readings(self, period):
        self._closing, self.note = False, ''
        asides = [Aside(call, pause) for call, pause in self._questions()]
        try:
            if self.killed:
                # The app still holds the sensors of a child that had no time to free them.
                self._output(TERMUX_LIST_TIMEOUT, 'termux-sensor', '-c')
            chosen = choose_sensors(self._listed(), self.wanted)
            for reading in self._stream(chosen, period) if chosen else self._pauses(period, asides):
                for aside in asides:
                    self._merge(reading, aside)
                yield self.changed(reading)
        finally:
            self._end_children()

    def _questions(self):
        """Return (function, seconds between two calls) for what no `termux-sensor` tells."""
        if any(self.wants(sensor) for sensor, *_ in TERMUX_BATTERY):
            yield self._battery, TERMUX_STATUS_PERIOD
        if self.wants(LOCATION):
            yield self._location, TERMUX_LOCATION_PERIOD

    def _merge(self, reading, aside):
        # Not worth ending the sensors for: a phone may have no position to give, or nobody who allows it.
        try:
            reading.update(aside.take() or {})
        except (OSError, ValueError, SourceError) as error:
            self.note = str(error)

    def _stream(self, chosen, period):
        """Yield what `termux-sensor` reads, until it ends."""
        self.child = self._spawn('termux-sensor', '-s', ','.join(chosen), '-d', str(max(1, int(period * 1000))))
        for found in self._objects():
            yield self._reading(found, chosen)
        raise SourceError(self._ending())

    def _pauses(self, period, asides):
        """Yield empty readings, in step, for a phone of which only battery or position are wanted."""
        if not asides:
            raise SourceError('termux-sensor lists no sensors%s; %s' % (
                ' called ' + ', '.join(self.wanted) if self.wanted else '', self.silence()))
        while not self._closing:
            yield {}
            time.sleep(min(period, 1.0))

    def _spawn(self, command, *arguments):
        with self._lock:
            if self._closing:
                raise SourceError('closed')
            child = start_child(os.path.join(self.directory, command), *arguments)
            self._children.add(child)
            return child

    def _output(self, timeout, *command):
        """Return what a command prints; None if it has not ended in so many seconds."""
        child = self._spawn(*command)
        try:
            return child.communicate(timeout=timeout)[0].decode('utf-8', 'replace')
        except subprocess.TimeoutExpired:
            return None
        finally:
            self._end(child)

    def _ask(self, *command, timeout=None):
        """Return the object that a command prints; None if it does not answer."""
        output = self._output(timeout or TERMUX_TIMEOUT, *command)
        if output is None:
            return None
        stream = JsonStream()
        found = next(stream.feed(output + '\n'), None)
        if found is None:
            raise SourceError('%s printed %r' % (' '.join(command), stream.note[:80]))
        return found

    def _listed(self):
        found = self._ask('termux-sensor', '-l', timeout=TERMUX_LIST_TIMEOUT)
        if found is None:
            raise SourceError('termux-sensor -l does not answer; %s' % self.silence())
        names = found.get('sensors')
        return [name for name in names if isinstance(name, str) and ',' not in name] if isinstance(names, list) else []

    def _battery(self):
        status, reading = self._ask('termux-battery-status') or {}, {}
        for sensor, meaning, key, factor in TERMUX_BATTERY:
            values = numbers([status.get(key)], 1)
            if values is not None and self.wants(sensor):
                self.sensors[sensor] = meaning
                reading[sensor] = [values[0] * factor]
        return reading

    def _location(self):
        for options in list(self._location_ways):
            reading = location_reading(self._ask('termux-location', *options) or {}, self.sensors)
            if reading:
                self._location_ways.sort(key=lambda way: way != options)  # what worked is tried first
                return reading
        return {}

    def _objects(self):
        """Yield what the child prints, object by object, until it ends."""
        stream, decoder = JsonStream(), codecs.getincrementaldecoder('utf-8')('replace')
        descriptor = self.child.stdout.fileno()
        for data in iter(lambda: os.read(descriptor, 65536), b''):
            yield from stream.feed(decoder.decode(data))
            self.note = stream.note

    def _reading(self, found, chosen):
        reading = {}
        for name, (sensor, meaning) in chosen.items():
            values = found.get(name)
            values = values.get('values') if isinstance(values, dict) else None
            if meaning is None and isinstance(values, list):
                meaning = Sensor('', tuple(map(str, range(1, len(values) + 1))) if len(values) > 1 else ())
            values = values and numbers(values, len(meaning.axes) or 1)
            if values:
                self.sensors[sensor] = meaning
                reading[sensor] = values
        return reading

    def _ending(self):
        status = self.child.wait()
        what = 'termux-sensor was killed by signal %d' % -status if status < 0 else 'termux-sensor ended'
        return '%s: %s' % (what, self.note[:80]) if self.note else what

    def _end(self, child):
        """End a child and what it started, and reap it."""
        end_child(child)
        child.stdout.close()
        with self._lock:
            self._children.discard(child)

    def _end_children(self):
        self.close()
        if self.child is not None:
            self._end(self.child)
            self.killed = self.child.returncode == -signal.SIGKILL
            self.child = None

    def close(self):
        with self._lock:
            self._closing = True
            children = list(self._children)
        for child in children:
            end_child(child)

    def silence(self):
        hint = 'is the Termux:API app installed, and allowed to use the sensors?'
        return 'it printed %r; %s' % (self.note[:80], hint) if self.note else hint


##############################################################################
# Linux
##############################################################################

IIO_SENSORS = (               # kernel's name, sensor, its Sensor, factor from the kernel's unit
    ('accel', 'accel', Sensor('m/s²', XYZ), 1),
    ('anglvel', 'gyro', Sensor('rad/s', XYZ), 1),
    ('magn', 'magnetic', Sensor('µT', XYZ), 100),               # from gauss
    ('gravity', 'gravity', Sensor('m/s²', XYZ), 1),
    ('temp', 'temperature', Sensor('°C', ()), 0.001),
    ('pressure', 'pressure', Sensor('hPa', ()), 10),            # from kPa
    ('humidityrelative', 'humidity', Sensor('%', ()), 0.001),
    ('illuminance', 'light', Sensor('lx', ()), 1),
    ('distance', 'distance', Sensor('m', ()), 1),
    ('proximity', 'proximity', Sensor('', ()), 1),              # reflected light: the nearer the more, in no unit
    ('voltage', 'voltage', Sensor('V', ()), 0.001),
    ('altvoltage', 'altvoltage', Sensor('V', ()), 0.001),
    ('current', 'current', Sensor('A', ()), 0.001),
    ('power', 'power', Sensor('W', ()), 0.001),
    ('resistance', 'resistance', Sensor('Ω', ()), 1),
    ('concentration', 'concentration', Sensor('%', ()), 1),
)
HWMON_FILES = (               # what the file's name begins with, its Sensor, factor
    ('temp', Sensor('°C', ()), 0.001),
    ('fan', Sensor('rpm', ()), 1),
    ('in', Sensor('V', ()), 0.001),
    ('curr', Sensor('A', ()), 0.001),
    ('power', Sensor('W', ()), 1e-6),
    ('humidity', Sensor('%', ()), 0.001),
)
POWER_FILES = (               # sensor, its Sensor, file, factor
    ('', Sensor('%', ()), 'capacity', 1),
    (' voltage', Sensor('V', ()), 'voltage_now', 1e-6),
    (' current', Sensor('A', ()), 'current_now', 1e-6),
    (' power', Sensor('W', ()), 'power_now', 1e-6),
    (' temperature', Sensor('°C', ()), 'temp', 0.1),
)
W1_PERIOD = 1.0               # seconds; a thermometer on the wire needs 750 ms for a measurement
W1_POWER_ON = 85000           # what a DS18B20 shows that has been switched on and has not measured yet


class Probe:
    """One sensor of a Linux machine; `read()` returns its values, None for not yet, or raises OSError or ValueError."""

    def __init__(self, sensor, meaning, read):
        self.sensor = sensor
        self.meaning = meaning
        self.read = read


def read_text(*path):
    with open(os.path.join(*path), encoding='utf-8', errors='replace') as file:
        return file.read().strip()


def read_number(*path):
    return float(read_text(*path))


def number_or(default, *candidates):
    """Return the number in the first file that holds one."""
    for path in candidates:
        try:
            return read_number(path)
        except (OSError, ValueError):
            pass
    return default


def file_probe(sensor, meaning, paths, factor=1, offsets=None, scales=None):
    """Return the probe of a file per axis: (content + offset) * scale * factor."""
    offsets, scales = offsets or [0] * len(paths), scales or [1] * len(paths)

    def read():
        return [(read_number(path) + offset) * scale * factor for path, offset, scale in zip(paths, offsets, scales)]
    return Probe(sensor, meaning, read)


def iio_probes(root):
    for device in sorted(glob.glob(os.path.join(root, 'sys/bus/iio/devices/iio:device*'))):
        for kind, sensor, meaning, factor in IIO_SENSORS:
            channels = iio_channels(device, kind, meaning.axes)
            for channel in channels:
                name = sensor + channel.replace('_', ' ') if len(channels) > 1 or not channel.isdigit() else sensor
                yield iio_probe(device, kind, channel, name, meaning, factor)


def iio_channels(device, kind, axes):
    """Return the channels of a kind: what its files' names have after the kind: '', '0', '0-voltage1', '_ambient'."""
    if axes:  # one sensor of several files
        found = [all(glob.glob(os.path.join(device, 'in_%s_%s_%s' % (kind, axis, end))) for axis in axes)
                 for end in ('raw', 'input')]
        return [''] if any(found) else []
    pattern = re.compile(r'in_%s(\d*(?:-%s\d+)?(?:_[a-z0-9]+)*?)_(?:raw|input)$' % (kind, kind))
    found = map(pattern.match, os.listdir(device))
    return sorted({match.group(1) for match in found if match}, key=lambda channel: (len(channel), channel))


def iio_probe(device, kind, channel, sensor, meaning, factor):
    """Return the Probe of a channel; an attribute that the channel has not is that of all channels of its kind."""
    shared = os.path.join(device, 'in_' + kind)
    parts = [shared + '_' + axis for axis in meaning.axes] or [shared + channel]
    label = label_of(device, 'in_%s%s_label' % (kind, channel), sensor)
    if all(os.path.exists(part + '_input') for part in parts):  # processed by the driver
        return file_probe(label, meaning, [part + '_input' for part in parts], factor)
    offsets = [number_or(0, part + '_offset', shared + '_offset') for part in parts]
    scales = [number_or(1, part + '_scale', shared + '_scale') for part in parts]
    return file_probe(label, meaning, [part + '_raw' for part in parts], factor, offsets, scales)


def thermal_probes(root):
    for zone in sorted(glob.glob(os.path.join(root, 'sys/class/thermal/thermal_zone*'))):
        yield file_probe(label_of(zone, 'type'), Sensor('°C', ()), [os.path.join(zone, 'temp')], 0.001)


def hwmon_probes(root):
    for chip in sorted(glob.glob(os.path.join(root, 'sys/class/hwmon/hwmon*'))):
        for kind, meaning, factor in HWMON_FILES:
            for path in sorted(glob.glob(os.path.join(chip, kind + '[0-9]*_input'))):
                part = os.path.basename(path)[:-len('_input')]
                sensor = '%s %s' % (label_of(chip, 'name'), label_of(chip, part + '_label', part))
                yield file_probe(sensor, meaning, [path], factor)


def w1_probes(root):
    for device in sorted(glob.glob(os.path.join(root, 'sys/bus/w1/devices/[0-9a-f][0-9a-f]-*'))):
        if os.path.exists(os.path.join(device, 'temperature')) or os.path.exists(os.path.join(device, 'w1_slave')):
            sensor = 'temperature ' + os.path.basename(device)[3:]
            yield Probe(sensor, Sensor('°C', ()), Aside(w1_reader(device), W1_PERIOD).take)


def w1_reader(device):
    """Return a function that waits for a measurement of a thermometer on the 1-wire bus."""
    def read():
        try:
            thousandths = read_number(device, 'temperature')
        except FileNotFoundError:  # kernels before 5.8
            text = read_text(device, 'w1_slave')
            if 'YES' not in text:
                raise ValueError('disturbed on the wire')
            thousandths = float(text.rpartition('t=')[2])
        return None if thousandths == W1_POWER_ON else [thousandths / 1000]
    return read


def power_probes(root):
    for supply in sorted(glob.glob(os.path.join(root, 'sys/class/power_supply/*'))):
        name = 'battery' if label_of(supply, 'type') == 'Battery' else os.path.basename(supply)
        for suffix, meaning, file, factor in POWER_FILES:
            path = os.path.join(supply, file)
            if os.path.exists(path):
                yield file_probe(name + suffix, meaning, [path], factor)


def label_of(directory, file, default=None):
    try:
        return read_text(directory, file) or default
    except OSError:
        return default or os.path.basename(directory)


def system_probes(root):
    path = os.path.join(root, 'proc')
    for probe in (Probe('cpu', Sensor('%', ()), rate_of(lambda: cpu_times(path), busy_percent)),
                  Probe('load', Sensor('', ('1 min', '5 min', '15 min')), lambda: load_average(path)),
                  Probe('memory', Sensor('%', ()), lambda: memory_used(path)),
                  Probe('network', Sensor('kB/s', ('in', 'out')), rate_of(lambda: network_bytes(path), kilobytes))):
        try:
            probe.read()
        except (OSError, ValueError, IndexError, KeyError):
            continue
        yield probe


def rate_of(read, rate):
    """Return a function whose value is rate(before, after, seconds) of two successive values of read()."""
    before = []

    def difference():
        now, counts = time.monotonic(), read()
        values = rate(before[1], counts, now - before[0]) if before else None
        before[:] = now, counts
        return values
    return difference


def load_average(proc):
    return [float(word) for word in read_text(proc, 'loadavg').split()[:3]]


def memory_used(proc):
    lines = dict(line.split(':', 1) for line in read_text(proc, 'meminfo').splitlines())
    total, free = (float(lines[key].split()[0]) for key in ('MemTotal', 'MemAvailable'))
    return [100 * (1 - free / total)]


def cpu_times(proc):
    words = read_text(proc, 'stat').splitlines()[0].split()
    times = [int(word) for word in words[1:9]]
    return sum(times), times[3] + times[4]  # all, and the idle part: idle and iowait


def busy_percent(before, after, seconds):
    total = after[0] - before[0]
    return [100 * max(0.0, 1 - (after[1] - before[1]) / total)] if total > 0 else None


def network_bytes(proc):
    sums = [0, 0]
    for line in read_text(proc, 'net/dev').splitlines()[2:]:
        interface, counts = line.split(':', 1)
        if interface.strip() != 'lo':
            words = counts.split()
            sums[0] += int(words[0])
            sums[1] += int(words[8])
    return sums


def kilobytes(before, after, seconds):
    # Counters fall when an interface goes away; that is no negative traffic.
    return [max(0, b - a) / 1000 / seconds for a, b in zip(before, after)] if seconds > 0 else None


class Linux(Source):
    """The files below /sys and /proc of a board, a laptop or a router."""

    name = 'linux'

    def __init__(self, root='/'):
        super().__init__()
        self.root = root

    @classmethod
    def available(cls):
        return bool(cls().probes())

    def probes(self):
        """Return a Probe for each sensor found; of several with one name the later ones are numbered."""
        probes, count = [], collections.Counter()
        for find in (iio_probes, w1_probes, thermal_probes, hwmon_probes, power_probes, system_probes):
            for probe in find(self.root):
                count[probe.sensor] += 1
                if count[probe.sensor] > 1:
                    probe.sensor += ' %d' % count[probe.sensor]
                if self.wants(probe.sensor):
                    probes.append(probe)
        return probes

    def readings(self, period):
        probes = self.probes()
        if not probes:
            called = ' called ' + ', '.join(self.wanted) if self.wanted else ''
            raise SourceError('nothing%s to read in sys and proc below %s' % (called, self.root))
        while True:
            yield self.changed(self._sweep(probes))

    def _sweep(self, probes):
        reading, failures = {}, []
        for probe in probes:
            try:
                values = probe.read()
            except (OSError, ValueError, IndexError, KeyError) as error:  # unplugged, asleep, or no number in it
                failures.append('%s: %s' % (probe.sensor, error))
                continue
            if values is not None and all(map(math.isfinite, values)):
                self.sensors[probe.sensor] = probe.meaning
                reading[probe.sensor] = values
        if len(failures) == len(probes):
            raise SourceError('nothing can be read any more (%s)' % failures[0])
        return reading

    def silence(self):
        return 'a driver does not answer'


##############################################################################
# Simulated
##############################################################################

class Simulated(Source):
    """A phone in the pocket of someone who walks; every value is invented, and the page says so."""

    name = 'simulated'
    simulated = True

    STEPS = 1.8               # per second

    def __init__(self):
        super().__init__()
        self.sensors = {'accel': Sensor('m/s²', XYZ), 'gyro': Sensor('rad/s', XYZ),
                        'orientation': Sensor('°', ANGLES), 'light': Sensor('lx', ())}

    def readings(self, period):
        began = time.monotonic()
        while True:
            walk = self._walk(time.monotonic() - began)
            yield {sensor: values for sensor, values in walk.items() if self.wants(sensor)}

    def _walk(self, t):
        step, sway = 2 * math.pi * self.STEPS * t, math.pi * self.STEPS * t
        bounce = math.sin(step) + 0.35 * math.sin(2 * step + 0.6)
        heading = 180 + 60 * math.sin(t / 11) + 6 * math.sin(sway)
        return {
            'accel': [1.1 * math.sin(sway), 0.6 * math.cos(step) + 0.4, 9.81 + 2.4 * bounce],
            'gyro': [0.5 * math.cos(sway), 0.3 * math.sin(step), 0.2 * math.sin(sway + 1) + 0.1 * math.cos(t / 11)],
            'orientation': [heading % 360, 8 * math.sin(step), 5 * math.sin(sway)],
            'light': [420 + 260 * math.sin(t / 7) + 30 * math.sin(t * 1.7)],
        }


SOURCES = (Sl4a, Termux, Linux, Simulated)


def find_source(name='auto', wanted=()):
    """Return the source of that name, or with 'auto' the first one that this machine has.

    `wanted` are the names of the sensors to read, as --sensors has them.
    """
    for source in SOURCES:
        if name == source.name or name == 'auto' and source.available():
            found = source()
            found.wanted = tuple(wanted)
            return found
    raise ValueError('no source is called %r' % name)


##############################################################################
# Reader
##############################################################################

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0    # seconds before a failed source is tried again
GRACE = 0.5                               # seconds in which a source may tell its phone that it ends
STEADY = 10.0                             # a run of so many seconds was a good one: the pauses start over


class Reader:
    """Run a source at a steady rate in threads of its own, whatever happens to the source.

    One thread asks the source; the other one hears when it hangs, names what is wrong and tries again. All calls to
    the listener are made in that second thread, which must not be blocked for long:
    `listener.sensors({sensor: Sensor})` before a sensor appears in a reading for the first time,
    `listener.reading(stamp, {sensor: [float]})` with stamp in seconds since 1970, UTC,
    `listener.trouble(text)` when the source has failed; the next reading ends the trouble.
    """

    def __init__(self, source, rate, listener, first_pause=FIRST_PAUSE):
        self.source = source
        self.period = 1.0 / rate
        self.listener = listener
        self.first_pause = first_pause
        self._known = set()
        self._stopping = threading.Event()
        self._results = queue.Queue()
        self._thread = threading.Thread(target=self._supervise, name='source-supervisor', daemon=True)

    def start(self):
        self._thread.start()

    def stop(self, timeout=4.0):
        """End the source in order, if it can be ended; wait at most `timeout` seconds."""
        self._stopping.set()
        self._results.put(None)
        self._thread.join(timeout)

    def _supervise(self):
        pause = self.first_pause
        while not self._stopping.is_set():
            began = time.monotonic()
            self._attempt()
            pause = self.first_pause if time.monotonic() - began > STEADY else pause
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _attempt(self):
        """Run the source until it fails or hangs; return when its thread has ended."""
        self._results = results = queue.Queue()
        halt = threading.Event()
        worker = threading.Thread(target=self._work, args=(results, halt), name='source', daemon=True)
        worker.start()
        trouble = self._relay(results)
        if trouble is not None:
            self.listener.trouble('%s: %s' % (self.source.name, trouble))
        halt.set()
        worker.join(GRACE)
        if worker.is_alive():
            self.source.close()
        # A second worker beside one that hangs in a driver would only hang too.
        while worker.is_alive() and not self._stopping.is_set():
            worker.join(1.0)
        worker.join(2.0)

    def _relay(self, results):
        """Hand readings over until there is trouble; return its text, or None when stop() was called."""
        patience = max(self.source.patience, 3 * self.period)
        deadline = time.monotonic() + patience
        while not self._stopping.is_set():
            try:
                result = results.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return '; '.join(filter(None, ('no reading for %g seconds' % patience, self.source.silence())))
            if isinstance(result, str):
                return result
            if result is not None and result[1]:
                self._deliver(*result)
                deadline = time.monotonic() + patience
        return None

    def _deliver(self, stamp, reading):
        if not self._known.issuperset(reading):
            self._known.update(reading)
            sensors = dict(self.source.sensors)
            self.listener.sensors({name: sensors[name] for name in sensors if name in self._known})
        self.listener.reading(stamp, reading)

    def _work(self, results, halt):
        readings = self.source.readings(self.period)
        try:
            self._sample(readings, results, halt)
            ending = 'it ended'
        except SourceError as error:
            ending = str(error)
        except Exception as error:  # a source is anybody's code: no bug in it may end the server
            ending = '%s: %s' % (type(error).__name__, error)
        finally:
            readings.close()
        results.put(ending)

    def _sample(self, readings, results, halt):
        due = time.monotonic()
        for reading in readings:
            results.put((time.time(), reading))
            if halt.is_set():
                return
            if not self.source.paced:
                due += self.period
                if due < time.monotonic() - self.period:
                    due = time.monotonic()  # the machine slept: no burst to catch up
                if halt.wait(max(0.0, due - time.monotonic())):
                    return


##############################################################################
# Push
##############################################################################

class Mailbox:
    """What waits to be sent: of every sensor the newest value; written by a Reader, emptied by the sender."""

    def __init__(self):
        self._condition = threading.Condition()
        self._described = {}
        self._samples = {}
        self._trouble = None
        self._news = False

    def sensors(self, sensors):
        with self._condition:
            self._described = sensors
            self._news = True

    def reading(self, stamp, reading):
        with self._condition:
            for sensor, values in reading.items():
                self._samples[sensor] = stamp, values
            self._trouble = None
            self._condition.notify()

    def trouble(self, text):
        with self._condition:
            self._trouble = text
            self._condition.notify()

    def again(self):
        """Let the next take() repeat what every new connection must hear."""
        with self._condition:
            self._news = True

    def take(self, timeout=1.0):
        """Return (sensors, {sensor: (stamp, values)}, trouble) that are new; None, {} and None for nothing new.

        Waits at most `timeout` seconds for something.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._samples or self._trouble or self._news, timeout)
            sensors = self._described if self._news else None
            taken = sensors, self._samples, self._trouble
            self._samples, self._trouble, self._news = {}, None, False
            return taken


def push(uri, source, rate, device):
    """Send what the source reads to uri, for ever; connect again whenever the connection breaks."""
    mailbox = Mailbox()
    reader = Reader(source, rate, mailbox)
    # The server takes a device that comes back for the same one by this, not by its name: phones of a kind share that.
    identity = os.urandom(8).hex()
    reader.start()
    try:
        # Five seconds each: a radio that has gone says nothing, and readings wait for the reconnection.
        for ws in minws.reconnect(uri, first_delay=1, max_delay=15, ping_interval=5, ping_timeout=5):
            print('connected to %s' % uri, flush=True)
            mailbox.again()
            try:
                while True:
                    send_news(ws, mailbox.take(), source, rate, device, identity)
            except minws.ConnectionClosed as closed:
                print('connection lost (%s); connecting again' % closed, flush=True)
    finally:
        reader.stop()


def send_news(ws, news, source, rate, device, identity):
    """Send one Mailbox.take(); on a slow radio newer readings replace those that wait."""
    sensors, samples, trouble = news
    if sensors is not None:
        ws.send(hello_message(device, source.name, sensors, rate, id=identity, simulated=source.simulated))
    for stamp in sorted({stamp for stamp, _ in samples.values()}):
        reading = {sensor: values for sensor, (then, values) in samples.items() if then == stamp}
        ws.send(sample_message(device, stamp, reading), key=sample_key(reading))
    if trouble is not None:
        print(trouble, file=sys.stderr, flush=True)
        ws.send(error_message(device, trouble))


##############################################################################
# Command line
##############################################################################

MAX_NAME = 60                 # characters of a device's or a sensor's name


def device_name():
    """Return what people call this machine: the model of a phone, otherwise the host name."""
    if shutil.which('getprop'):  # Android's, where the host name is localhost on every phone
        try:
            model = subprocess.check_output(['getprop', 'ro.product.model'], timeout=2).decode('utf-8', 'replace')
            if model.strip():
                return model.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return socket.gethostname() or 'device'


def positive(text):
    """Return the number in text; argparse turns the ValueError into a usage message."""
    value = float(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError('%s is not between 0 and 1000' % text)
    return value


def source_name(text):
    """Return the name of a source; argparse makes a usage message of the error."""
    names = ['auto'] + [source.name for source in SOURCES]
    if text not in names:
        raise argparse.ArgumentTypeError('invalid choice: %r (choose from %s)' % (text, ', '.join(names)))
    return text


def sensor_names(text):
    """Return the names in a list with commas between them."""
    return tuple(filter(None, map(str.strip, text.split(','))))


def add_source_options(parser, source_name=source_name):
    """Add the options that say what to read; `source_name` checks the value of --source."""
    parser.add_argument('--source', default='auto', metavar='SOURCE', type=source_name,
                        help='where readings come from (default: the first one that this machine has)')
    parser.add_argument('--sensors', default=(), metavar='NAME,…', type=sensor_names,
                        help="what to read (default: usual); `usual,location` adds where the phone is")
    parser.add_argument('--rate', type=positive, default=10.0, metavar='HZ', help='readings a second (default: 10)')
    parser.add_argument('--name', default=None, metavar='DEVICE', help='what the page calls this device')


def main(argv=None):
    """Run the push client; return its exit status."""
    parser = argparse.ArgumentParser(prog='droid_sensor.py', description='Push sensor readings to a minws server.')
    parser.add_argument('uri', metavar='ws://HOST:PORT/push')
    add_source_options(parser)
    arguments = parser.parse_args(argv)
    source = find_source(arguments.source, arguments.sensors)
    print('source: %s' % source.name, flush=True)
    try:
        push(arguments.uri, source, arguments.rate, arguments.name or device_name()[:MAX_NAME])
    except KeyboardInterrupt:
        return 0
    except ValueError as error:
        parser.error(str(error))
    except minws.HandshakeError as error:
        print('%s refuses: %s' % (arguments.uri, error), file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
