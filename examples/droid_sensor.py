#!/usr/bin/env python3
"""Read the sensors of a phone or a board, and push them to a browser that draws them.

On the phone, with this file and minws.py in one directory:

    python3 droid_sensor.py ws://192.168.1.5:9000/push

On the computer whose address that is: `python3 -m examples.sensors`. The readings of a phone that loses its network
appear again when the network does: of each sensor the newest value at once, and all of them, each once, to a server
that records.

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
import contextlib
import errno
import glob
import hashlib
import importlib
import ipaddress
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
import urllib.parse

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


def sample_key(reading):
    """Return the key under which a reading is sent: only a newer one of the same sensors may replace it unsent.

    One message for all sensors, not one for each: twelve sensors ten times a second are more messages than a radio
    with a round trip of 100 ms acknowledges (each sensor came 3.4 times).
    """
    return tuple(sorted(reading))


##############################################################################
# Sources
##############################################################################

REPEAT = 2.0                  # seconds; a browser takes a sensor that says nothing for three for dead


class SourceError(Exception):
    """A source cannot go on; the text is a sentence for the person in front of the screen."""


class Source:
    """A place that readings come from.

    To override: `available()`, `readings(period)`, `close()`, `silence()`.
    Attributes: `name`; `sensors`, {sensor: Sensor}, complete before a sensor's first reading is yielded;
    `wanted`, the names that --sensors gave, () for the usual ones;
    `simulated`, whether the readings are invented; `patience`, the seconds without a reading after which it hangs;
    `paced`, whether the source keeps the time itself instead of answering as often as it is asked;
    `repeat`, the seconds after which a value that has not changed is read out again, 0 if every value is read out.
    """

    name = 'source'
    simulated = False
    paced = False
    patience = 5.0
    repeat = 0.0

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
    repeat = REPEAT

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
    repeat = REPEAT
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
    repeat = REPEAT

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
            results.put((getattr(reading, 'stamp', None) or time.time(), reading))
            if halt.is_set():
                return
            if not self.source.paced:
                due += self.period
                if due < time.monotonic() - self.period:
                    due = time.monotonic()  # the machine slept: no burst to catch up
                if halt.wait(max(0.0, due - time.monotonic())):
                    return


##############################################################################
# Files of JSON lines
#
# What a recording and a spool are kept in: a file that only grows, one object a line. Whatever kills the program, all
# lines but the last are whole, and a last one that is not is removed when the file is opened again.
##############################################################################

BLOCK = 1 << 16               # bytes that are read or written at once
MARK = 64                     # bytes by which a file is recognised


def parse_object(line):
    """Return the dict in a line of JSON, None if there is none."""
    try:
        value = json.loads(line if isinstance(line, str) else line.decode('utf-8'))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class JsonLines:
    """A file that lines are appended to; OSError where that is impossible, after which the next append tries again.

    What a failed append has left in the file is taken out before the next one writes, so that a line that is appended
    again after a failure is there once. Not for several threads at once.
    """

    def __init__(self, path):
        self.path = path
        self._file = None
        self._size = 0        # of what was appended successfully
        self._mark = b''      # the last bytes of that
        self._open()

    def open_file(self, path):
        """Return the file, open for reading and appending, unbuffered; tests let it fail."""
        # Whoever reads the identity in a spool could speak for the device.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, 'O_BINARY', 0), 0o600)
        return os.fdopen(descriptor, 'r+b', buffering=0)

    def _open(self):
        file = self.open_file(self.path)
        try:
            lock(file, self.path)
            size = file.seek(0, os.SEEK_END)
            if size and peek(file, 0, 1) not in (b'{', b'\0'):
                raise OSError(errno.EINVAL, 'it is not empty, and not such a file', self.path)
            # Nothing but what we wrote ourselves is cut off: the card may be another one than before.
            if 0 < self._size < size and peek(file, self._size - len(self._mark), len(self._mark)) == self._mark:
                file.truncate(self._size)
            self._size = repair(file)
            self._mark = peek(file, max(0, self._size - MARK), min(MARK, self._size))
        except BaseException:
            file.close()
            raise
        self._file = file

    def append(self, data, sync=False):
        """Write whole lines (bytes); with `sync`, return when the disk has them."""
        try:
            if self._file is None:
                self._open()
            write_all(self._file, data)
            if sync:
                os.fsync(self._file.fileno())
        except OSError:
            self._give_up()
            raise
        self._size += len(data)
        self._mark = (self._mark + data)[-MARK:]

    def _give_up(self):
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def replace(self, data):
        """Make lines (bytes) the whole contents, at once or not at all, even if the power fails."""
        new = self.path + '.new'
        file = self.open_file(new)
        try:
            lock(file, new)
            file.truncate(0)
            write_all(file, data)
            os.fsync(file.fileno())
            if os.name == 'nt':
                self.close()  # there an open file cannot be replaced
            os.replace(new, self.path)
        except BaseException:
            file.close()
            raise
        self.close()
        self._file, self._size, self._mark = file, len(data), data[-MARK:]

    @property
    def size(self):
        return self._size

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None


def lock(file, path):
    """Keep a second program from appending to the same file; OSError if one does."""
    try:
        import fcntl
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EAGAIN, 'another program writes into it', path) from None
    except (ImportError, OSError):  # a phone's shared storage, and Windows, have no locks
        pass


def peek(file, start, size):
    file.seek(start)
    return file.read(size)


def write_all(file, data):
    """Write all of data to an unbuffered file, which may take it in parts."""
    left = memoryview(data)
    while left:
        left = left[file.write(left):]


def repair(file):
    """Remove a last line that is torn, end one that only lacks its newline; return the size of the file."""
    end = file.seek(0, os.SEEK_END)
    start, tail = end, b''
    while start > 0 and b'\n' not in tail:
        step = min(start, BLOCK)
        start -= step
        tail = peek(file, start, step) + tail
    line = tail[tail.rfind(b'\n') + 1:]
    if parse_object(line) is not None:
        write_all(file, b'\n')
        return end + 1
    if line:
        file.truncate(end - len(line))
    return end - len(line)


##############################################################################
# Spool
##############################################################################

MEMORY_SPOOL = 4 << 20        # bytes of readings; in a phone's memory they take about twice that
FILE_SPOOL = 16 << 20         # three hours of a phone's usual sensors, ten times a second
SLACK = 1 << 16               # bytes of lines that are over, before a file is written anew
SYNC_PERIOD = 2.0             # seconds of readings that a power failure may cost
LEAP = 1 << 20                # more numbers than are given in SYNC_PERIOD
RETRY = 10.0                  # seconds before a file that failed is tried again
LOSS_PERIOD = 60.0            # seconds between two sentences about the bound


class Spool:
    """The readings that wait until somebody has kept them: numbered, in order, bounded. Any thread.

    With a file they survive the program, whose next run goes on with them: a reading stands in the file when append()
    returns, and on the disk SYNC_PERIOD later. `identity` is the secret by which a server knows the device again, `id`
    names the sequence of numbers, `dropped` counts for each sensor what the bound cost, `wanted` tells whether somebody
    would keep the readings. `say` gets sentences for a person.
    """

    def __init__(self, path=None, limit=None, say=print):
        self.limit = limit or (FILE_SPOOL if path else MEMORY_SPOOL)
        self.wanted = path is not None
        self.id, self.identity = os.urandom(8).hex(), os.urandom(8).hex()
        self.last = 0         # the newest number
        self.dropped = collections.Counter()
        self.lost = 0         # readings that the bound cost, in all
        self._say = say
        self._say_loss = time.monotonic()   # when a loss may be told
        self._broken = False  # the file failed
        self._size = 0        # bytes of the readings
        self._held = collections.deque()    # (number, text), oldest first
        self._lock = threading.Lock()
        self._file = None
        self._synced = self._failed = time.monotonic()
        if path is not None:
            self._load(path)

    @property
    def kept_in_file(self):
        return self._file is not None

    @property
    def first(self):
        """The smallest number that is still here; the next one if none is."""
        with self._lock:
            return self._held[0][0] if self._held else self.last + 1

    @property
    def newest(self):
        """The greatest number that is still here, 0 if none is."""
        with self._lock:
            return self._held[-1][0] if self._held else 0

    def append(self, text):
        """Add a reading, the text of a JSON object; return its number."""
        with self._lock:
            self.last += 1
            self._hold(self.last, text)
            self._write(numbered(self.last, text) + '\n')
            self._shed()
            return self.last

    def after(self, number, count, size):
        """Return the [(number, text)] that follow a number, without a hole: at most so many, of so many bytes."""
        found = []
        with self._lock:
            for n, text in self._held:
                if n > number:
                    size -= len(text)
                    if found and (n != found[-1][0] + 1 or size < 0 or len(found) == count):
                        break
                    found.append((n, text))
        return found

    def acknowledge(self, number):
        """Forget what has been kept by somebody: everything up to a number."""
        with self._lock:
            if self._held and self._held[0][0] <= number:
                while self._held and self._held[0][0] <= number:
                    self._size -= len(self._held.popleft()[1])
                self._write('{"first": %d}\n' % (number + 1))

    def close(self):
        with self._lock:
            if self._file is not None:
                self._file.close()

    def _hold(self, number, text):
        self._held.append((number, text))
        self._size += len(text)

    def _shed(self):
        """Drop the oldest readings until the rest is within the limit."""
        before = self.lost
        while self._size > self.limit and len(self._held) > 1:
            number, text = self._held.popleft()
            self._size -= len(text)
            self.dropped.update(json.loads(text)['s'].keys())
            self.lost += 1
        if self.lost > before:
            self._write('{"first": %d}\n' % (number + 1))
            if self.wanted and time.monotonic() >= self._say_loss:
                self._say_loss = time.monotonic() + LOSS_PERIOD
                self._say('nobody has kept the last %d MiB of readings, so older ones are lost, %d so far' %
                          (self.limit >> 20, self.lost))

    def _load(self, path):
        """Take over what an earlier run has left in the file; OSError if that is impossible."""
        self._file = JsonLines(path)
        with open(path, 'rb') as file:
            for value in filter(None, map(parse_object, file)):
                self._take_over(value)
        if self.last:
            # After a power failure the server may know numbers that the file does not; none may be given twice.
            self.last += LEAP
        self._shed()
        self._file.replace(self._contents())

    def _take_over(self, value):
        self.id, self.identity = value.get('spool', self.id), value.get('identity', self.identity)
        self.last = max(self.last, value.get('n', 0), value.get('last', 0))
        if 'n' in value:
            self._hold(value.pop('n'), json.dumps(value))
        while self._held and self._held[0][0] < value.get('first', 0):
            self._size -= len(self._held.popleft()[1])

    def _contents(self):
        head = json.dumps({'spool': self.id, 'identity': self.identity, 'last': self.last})
        return '\n'.join([head] + [numbered(*reading) for reading in self._held] + ['']).encode('utf-8')

    def _write(self, line):
        """Append to the file, if there is one; where that fails, all is in memory and written again later."""
        if self._file is None:
            return
        now = time.monotonic()
        sync = now - self._synced > SYNC_PERIOD
        try:
            if not self._broken and self._file.size < 2 * self._size + SLACK:
                self._file.append(line.encode('utf-8'), sync)
            elif not self._broken or now - self._failed > RETRY:
                sync = True
                self._file.replace(self._contents())
            else:
                return
        except OSError as error:
            if not self._broken:
                self._say('the spool %s cannot be written (%s), so readings wait in memory alone'
                          % (self._file.path, error.strerror or error))
            self._broken, self._failed = True, now
        else:
            self._broken, self._synced = False, now if sync else self._synced


def numbered(number, text, more=''):
    """Return the text of a JSON object with its number in it."""
    return '{"n": %d, %s%s' % (number, more, text[1:])


##############################################################################
# Addresses
##############################################################################

PORT = 9000                   # where `python3 -m examples.sensors` listens

Address = collections.namedtuple('Address', 'uri host port password')
Address.__doc__ = """Where to push: a ws:// or wss:// URI, its host and port, the password or None."""


def parse_address(text):
    """Return the Address in what people have at hand: 192.168.1.20, pi.local:9000, ws://…/push, or the page's own.

    A bare host means ws:// and port 9000; an address of the page, with `?password=…` as in its QR code, the socket
    beside it. ValueError with a sentence for anything else.
    """
    text = text.strip()
    scheme, mark, rest = text.partition('://')
    if not mark:
        scheme, rest = 'ws', text
    secure = {'ws': False, 'wss': True, 'http': False, 'https': True}.get(scheme.lower())
    if secure is None:
        raise ValueError('%r is no address: give the one that the server printed, or an IP address' % text)
    if not mark and is_ip(rest) and ':' in rest:
        rest = '[%s]' % rest
    try:
        parts = urllib.parse.urlsplit('//' + rest)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or '[' in rest and not is_ip(host) or any(character.isspace() for character in rest):
        raise ValueError('%r is no address of the form 192.168.1.20, name:port or http://name:port/' % text)
    if port is None:
        port = PORT if not mark else 443 if secure else 80
    fields = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    password = dict(fields).get('password')
    query = urllib.parse.urlencode([field for field in fields if field[0] != 'password'])
    path = parts.path if scheme in ('ws', 'wss') and parts.path not in ('', '/') and mark else beside(parts.path)
    user = parts.netloc.rpartition('@')[0]
    name = '[%s]' % host if ':' in host else host
    uri = '%s://%s%s:%d%s%s' % ('wss' if secure else 'ws', user + '@' if user else '', name, port, path,
                                '?' + query if query else '')
    return Address(uri, host, port, password)


def beside(path):
    """Return the path of the socket for devices beside that of a page."""
    return path if path.endswith('/push') else path.rpartition('/')[0] + '/push'


def is_ip(host):
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


def is_local(host):
    """Tell whether a host is in a home's network, as far as its name or address shows."""
    if is_ip(host):
        return not ipaddress.ip_address(host).is_global
    return '.' not in host or host.rpartition('.')[2] in ('local', 'lan', 'home', 'internal', 'arpa', 'box')


##############################################################################
# What went wrong
#
# Each way in which a connection does not come about has a sentence with its cause and what to do about it.
##############################################################################

SILENCE = 1.6                 # seconds without an answer after which a person is told
GLANCE, PROBE = 0.3, 1.0      # seconds for a look at what is there, then and where an answer came


class Refused(Exception):
    """What no second try mends: the text says why to a person."""


def diagnose(address, error):
    """Return (sentence, whether a second try can mend it) for an exception of connect(); may look at the server."""
    response = getattr(error, 'response', None)
    number = getattr(error, 'errno', None)
    if response is not None:
        return answered(address, response)
    if isinstance(error, socket.gaierror):
        return unknown_host(address), True
    if isinstance(error, PermissionError):
        return forbidden(address), True
    if isinstance(error, ConnectionRefusedError):
        return ('nothing listens at %s, port %d: start the server there, or give the port that it printed'
                % address[1:3]), True
    if isinstance(error, (TimeoutError, socket.timeout)) or number == errno.ETIMEDOUT:
        return silent(address), True
    if number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        return ('there is no way to %s: switch Wi-Fi on, join the network of that computer, and see that it is awake'
                % address.host), True
    return one_sided_tls(address) or untrusted(address, error) or (
        '%s broke the connection off (%s): is it the address that the server printed?'
        % (address.host, printable(error)), True)


def answered(address, response):
    """Return the same for an answer that opens no WebSocket."""
    status = response.status_code
    if status in (429, 503):
        text = ('%s is busy (%d%s): close pages or devices that are not needed'
                % (address.host, status, body_of(response)))
    elif status >= 500:
        text = '%s failed (%d%s): look at what it printed' % (address.host, status, body_of(response))
    elif status == 401:
        text = '%s wants a password (401): add --password SECRET, or give the address of its QR code' % address.host
    elif status == 403:
        text = '%s refuses this device (403%s): ask whoever started it' % (address.host, body_of(response))
    elif status == 404:
        text = ('%s has no socket for devices at %s (404): give the address that the server printed, it ends in /push'
                % (address.host, urllib.parse.urlsplit(address.uri).path))
    elif status == 421:
        text = ('%s does not answer to this name (421): give its IP address, or start the server with --allow-host %s'
                % (address.host, address.host))
    elif 'Location' in response.headers:
        text = '%s sends us to %s: give that address' % (address.host, printable(response.headers['Location']))
    elif one_sided_tls(address):
        return one_sided_tls(address)
    else:
        text = ('%s answers %d%s, as a web server without this socket does: give the address that the server printed'
                % (address.host, status, body_of(response)))
    return text, status >= 500 or status == 429


def body_of(response):
    """Return the first line of what a refusal says, to stand behind its status."""
    lines = printable(bytes(response.body or b'').decode('utf-8', 'replace').strip().partition('\n')[0])
    return ', ' + lines if lines and '<' not in lines else ''


def printable(text):
    """Return text without what moves a cursor, at most a line of it."""
    return ''.join(character if character.isprintable() else '?' for character in str(text))[:200]


def unknown_host(address):
    return ('no address is known for the name %s: check its spelling and this network, or give the IP address that the '
            'server printed' % address.host)


def forbidden(address):
    if is_local(address.host):
        return ('this app may not reach %s (no permission): on Android 17 allow it the local network in the settings, '
                'or take Termux and Termux:API from F-Droid instead of the Play Store' % address.host)
    return 'this app may not reach %s (no permission): allow it the network in the settings' % address.host


def silent(address):
    """Return a sentence for no answer at all, after a look at how far one gets."""
    found = resolve(address.host, address.port, GLANCE)
    if found is None:
        return unknown_host(address)
    if accepts(found, GLANCE):
        wrong = one_sided_tls(address, GLANCE)
        return wrong[0] if wrong else ('%s takes the connection at port %d and says nothing: give the port that the '
                                       'server printed' % address[1:3])
    if is_local(address.host):
        return ('%s does not answer at port %d: is that computer awake, in the same network (no guest network), its '
                'firewall open, and on Android 17 Termux not that of the Play Store?' % address[1:3])
    return ('%s does not answer at port %d: check the address, this network, and the firewall there' % address[1:3])


def resolve(host, port, seconds):
    """Return what getaddrinfo finds, None if it finds nothing in that time."""
    found = []

    def look_up():
        with contextlib.suppress(OSError):
            found.extend(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))

    thread = threading.Thread(target=look_up, name='resolver', daemon=True)
    thread.start()
    thread.join(seconds)
    return list(found) or None


def accepts(found, seconds):
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.settimeout(seconds)
        return sock.connect_ex(address) == 0


def one_sided_tls(address, seconds=PROBE):
    """Return (sentence, False) if one of the two speaks TLS and the other does not, None otherwise."""
    secure = is_secure(address)
    if secure and certificate_or_none(address, seconds) is None and speaks_http(address, seconds):
        return '%s speaks no TLS at port %d: give the address with http:// or ws://' % address[1:3], False
    if not secure and certificate_or_none(address, seconds) is not None:
        return '%s speaks TLS at port %d: give the address with https:// or wss://' % address[1:3], False
    return None


def is_secure(address):
    return address.uri.startswith('wss:')


def presented(address, seconds):
    """Return the certificate (DER) that a server shows, trusted or not. OSError."""
    with socket.create_connection((address.host, address.port), seconds) as raw:
        with unverified().wrap_socket(raw, server_hostname=address.host) as sock:
            return sock.getpeercert(True)


def certificate_or_none(address, seconds):
    """Return the same, None from a server that does not speak TLS, and where Python does not."""
    try:
        return presented(address, seconds)
    except (ImportError, OSError, ValueError):
        return None


def speaks_http(address, seconds):
    try:
        with socket.create_connection((address.host, address.port), seconds) as sock:
            sock.sendall(b'HEAD / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
            return sock.recv(5) == b'HTTP/'
    except OSError:
        return False


def untrusted(address, error):
    """Return (sentence, False) if it is the certificate that is not trusted, None otherwise."""
    what = '%s: %s' % (type(error).__name__, error)     # Python 3.6 names it in the type alone
    if not is_secure(address) or 'certificate' not in what.lower():
        return None
    certificate = certificate_or_none(address, PROBE)
    if certificate is None:
        return None
    return ('the certificate of %s is not one that this device trusts: if the server printed the fingerprint %s, add '
            '--fingerprint and that' % (address.host, fingerprint(certificate))), False


##############################################################################
# Trust
##############################################################################

OPEN_TIMEOUT = 10.0           # seconds for one try to connect; a person is told earlier
PARTIAL_CHAIN = 0x80000       # ssl.VERIFY_X509_PARTIAL_CHAIN, which Python has names for from 3.10 on


def unverified():
    """Return an SSLContext that takes any certificate."""
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fingerprint(certificate):
    """Return the SHA-256 of a certificate (DER) as browsers and openssl show it."""
    return ':'.join(re.findall('..', hashlib.sha256(certificate).hexdigest().upper()))


def bare_fingerprint(text):
    """Return the 64 hexadecimal digits in a fingerprint; ValueError if it is none."""
    digits = re.sub('^sha-?256[ :=]*|[: ]', '', text.strip(), flags=re.IGNORECASE).upper()
    if not re.match('[0-9A-F]{64}$', digits):
        raise ValueError('a fingerprint has 64 hexadecimal digits (SHA-256), not %r' % text)
    return digits


class Trust:
    """Whom to believe that it is the server: the system's authorities, unless told otherwise.

    `file` has the one certificate, or authority, to trust; `pinned` is the fingerprint of the one certificate;
    `anyone` verifies nothing. OSError without that file, ValueError for what is no fingerprint.
    """

    def __init__(self, file=None, pinned=None, anyone=False):
        if file is not None:
            open(file).close()
        self.file = file
        self.pinned = pinned and bare_fingerprint(pinned)
        self.anyone = anyone

    def context(self, address):
        """Return an SSLContext, or None for the usual one; Refused if the server shows another certificate; OSError."""
        if not is_secure(address):
            return None
        if self.anyone:
            return unverified()
        if self.file is not None:
            import ssl
            return ssl.create_default_context(cafile=self.file)
        return self._pinning(address) if self.pinned else None

    def _pinning(self, address):
        """Return a context that trusts the pinned certificate alone, whatever name it is for."""
        certificate = presented(address, OPEN_TIMEOUT / 2)
        if fingerprint(certificate).replace(':', '') != self.pinned:
            raise Refused('%s shows another certificate, %s: if its server made a new one and printed that, give it '
                          'after --fingerprint' % (address.host, fingerprint(certificate)))
        import ssl
        context = unverified()
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= PARTIAL_CHAIN
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
        return context


##############################################################################
# Connecting
##############################################################################

FIRST_DELAY, LONGEST_DELAY = 1.0, 15.0    # seconds between two tries


class Line:
    """The way to one server: connections, one after the other, and what a person is told when there is none."""

    def __init__(self, address, trust, say):
        self.address = address
        self.trust = trust
        self._say = say
        self._said = None
        self._was_open = False
        self._patience = None  # the timer of the try that is going on

    def connections(self):
        """Yield connections for ever; Refused if the first try shows that there will be none."""
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            ws = self._attempt()
            if ws is not None:
                self._said, self._was_open = None, True
                with contextlib.closing(ws):
                    yield ws
                if time.monotonic() - began > delay:
                    delay = FIRST_DELAY
            # Not all phones at once when a server comes back.
            time.sleep(delay * (0.5 + int.from_bytes(os.urandom(2), 'big') / 131072))
            delay = min(LONGEST_DELAY, 2 * delay)

    def _attempt(self):
        """Return a connection, or None when a person has been told why there is none."""
        patience = threading.Timer(SILENCE, self._tell_of_silence)
        patience.daemon = True
        self._patience = patience
        patience.start()
        try:
            return self._connect()
        except Refused as error:
            text, again = str(error), False
        except (OSError, ValueError, minws.HandshakeError) as error:  # ValueError: Python 3.6's CertificateError
            text, again = diagnose(self.address, error)
        finally:
            patience.cancel()
            self._patience = None
        if not again and not self._was_open:
            raise Refused(text)
        self._tell(text)
        return None

    def _connect(self):
        uri, password, headers = self.address.uri, self.address.password, {}
        if password is not None and re.match('[!-~]+$', password):
            headers['Authorization'] = 'Bearer ' + password
        elif password is not None:  # a header has no other characters
            uri += ('&' if '?' in uri else '?') + urllib.parse.urlencode({'password': password})
        # Five seconds each: a radio that has gone says nothing, and readings wait for the reconnection.
        return minws.connect(uri, headers=headers, ssl=self.trust.context(self.address),
                             open_timeout=OPEN_TIMEOUT, ping_interval=5, ping_timeout=5)

    def _tell_of_silence(self):
        text = silent(self.address)
        if self._patience is threading.current_thread():
            self._tell(text)

    def _tell(self, text):
        """Say it, once for as long as it stays so."""
        if text != self._said:
            self._said = text
            self._say('%s (trying again; Ctrl-C ends it)' % text)


##############################################################################
# Push
##############################################################################

WINDOW = 1 << 16, 1024        # bytes and readings that may be on their way without being acknowledged
BATCH = 1 << 14, 64           # bytes and readings of one message
ANSWER = 5.0                  # seconds in which a server that keeps readings acknowledges some
CLOCK_PERIOD = 30.0           # seconds between two comparisons with the server's clock
REPORT_PERIOD = 1.0           # seconds between two reports of what was dropped
TURN = 1.0                    # seconds after which a session looks at its clocks though nothing is new
FAREWELL = 2.0                # seconds for what waits when the program ends

News = collections.namedtuple('News', 'sensors samples trouble replaced number')
News.__doc__ = """What is new: {name: Sensor} or None, {sensor: (stamp, values)}, a text or None, a Counter of readings
that newer ones replaced before they could be sent, and the number of the newest reading."""


def sample_text(stamp, reading):
    """Return the text of one reading, without the device that the hello of a connection names."""
    samples = {sensor: values if len(values) > 1 else values[0] for sensor, values in reading.items()}
    return json.dumps({'t': stamp, 's': samples})


class Outbox:
    """What waits to be sent: every reading in the spool, and of every sensor the newest value; any thread.

    It is the listener of a Reader. `changed` is the condition that a sender waits for.
    """

    def __init__(self, spool):
        self.spool = spool
        self.changed = threading.Condition()
        self._described = {}
        self._samples = {}
        self._trouble = None
        self._news = False
        self._replaced = collections.Counter()

    def sensors(self, sensors):
        with self.changed:
            self._described = sensors
            self._news = True

    def reading(self, stamp, reading):
        self.spool.append(sample_text(stamp, reading))
        with self.changed:
            self._replaced.update(sensor for sensor in reading if sensor in self._samples)
            for sensor, values in reading.items():
                self._samples[sensor] = stamp, values
            self._trouble = None
            self.changed.notify_all()

    def trouble(self, text):
        with self.changed:
            self._trouble = text
            self.changed.notify_all()

    def again(self):
        """Let the next take() repeat what every new connection must hear."""
        with self.changed:
            self._news = True

    def take(self, timeout=1.0, or_when=lambda: False):
        """Return the News since the last time; waits at most `timeout` seconds for some, or until or_when()."""
        with self.changed:
            self.changed.wait_for(lambda: self._samples or self._trouble or self._news or or_when(), timeout)
            taken = News(self._described if self._news else None, self._samples, self._trouble, self._replaced,
                         self.spool.last)
            self._samples, self._trouble, self._news, self._replaced = {}, None, False, collections.Counter()
            return taken


class Session:
    """One connection to a server: what the outbox has goes out, acknowledgements and clock answers come in.

    A server that keeps readings acknowledges their numbers; it gets every reading of the spool, in order, again until
    it has acknowledged it. Readings that are not the newest are marked `late`, and while older ones are on their way
    the newest values go ahead of them without a number, for whoever watches. Any other server gets the newest values
    alone: on a slow radio they replace those that wait.
    """

    def __init__(self, ws, outbox, describe):
        self.ws = ws
        self.outbox = outbox
        self.spool = outbox.spool
        self.acknowledged = None    # the greatest number that the server keeps; None until it says that it keeps any
        self._describe = describe   # {name: Sensor}, more -> text of a hello
        self._sent = 0              # the greatest number sent here
        self._shown = 0             # the greatest number that needs no showing any more
        self._flight = collections.deque()  # (number, bytes) sent and not acknowledged
        self._progress = self._began = time.monotonic()
        self._clock_due = self._report_due = 0.0
        self._dropped = collections.Counter()
        self._sensors = {}
        self._before_hole = False   # the next number is not consecutive, and must wait
        self._over = False
        self.interrupted = False    # whether somebody wants it to end

    def run(self):
        """Send what there is until the connection ends: ConnectionClosed, or KeyboardInterrupt if it is interrupted."""
        self._report_due = time.monotonic() + REPORT_PERIOD
        self.outbox.again()
        answers = threading.Thread(target=self._listen, name='push-answers', daemon=True)
        answers.start()
        with contextlib.suppress(minws.ConnectionClosed):
            while not self._over:
                self.turn(TURN)
                if self.interrupted:
                    raise KeyboardInterrupt
        answers.join(FAREWELL)
        self.ws.recv(timeout=FAREWELL)    # raises what ended it, the peer's reason included

    def turn(self, timeout):
        """Send what is new; wait for it at most `timeout` seconds."""
        news = self.outbox.take(timeout, or_when=self._has_more)
        if news.sensors is not None:
            self._sensors = news.sensors
            self._greet(self.spool.first)
        batch = self._consecutive(self._next_batch())
        self._preview(news, batch[-1][0] if batch else self._sent)
        self._send_numbered(batch)
        if news.trouble is not None:
            self.ws.send(json.dumps({'error': {'text': news.trouble}}))
        self._compare_clocks()
        self._report(news.replaced)

    def leave(self, text):
        """Send what still waits, as far as there is time, and say goodbye."""
        deadline = time.monotonic() + FAREWELL
        with contextlib.suppress(minws.ConnectionClosed):
            while self._is_awaited() and time.monotonic() < deadline:
                self.turn(0.1)
            self.ws.send(json.dumps({'bye': {'text': text}}))
        self.ws.close()

    def _is_awaited(self):
        return not self._over and self.acknowledged is not None and self.acknowledged < self.spool.newest

    def _greet(self, first):
        self.ws.send(self._describe(self._sensors, t=time.time(), ack=True, spool=self.spool.id, first=first))

    # What the server says, in a thread of its own

    def _listen(self):
        try:
            for message in self.ws:
                self._hear(parse_object(message) or {})
        except minws.ConnectionClosed:
            pass
        finally:
            with self.outbox.changed:
                self._over = True
                self.outbox.changed.notify_all()

    def _hear(self, value):
        number, clocks = value.get('ack'), value.get('time')
        if isinstance(number, int) and 0 <= number <= self.spool.last:
            self._hear_acknowledgement(number)
        if isinstance(clocks, list) and len(clocks) == 2:
            self.ws.send(json.dumps({'time': clocks + [time.time() * 1000]}))

    def _hear_acknowledgement(self, number):
        with self.outbox.changed:
            if self.acknowledged is None or number > self.acknowledged:
                self.acknowledged, self._progress, self._before_hole = number, time.monotonic(), False
                self._sent = max(self._sent, number)
                self.spool.wanted = True
                while self._flight and self._flight[0][0] <= number:
                    self._flight.popleft()
            self.outbox.changed.notify_all()
        self.spool.acknowledge(number)

    # Numbered readings

    def _has_more(self):
        return self._over or self.acknowledged is not None and self._sent < self.spool.newest and self._has_room()

    def _has_room(self):
        return (not self._before_hole and len(self._flight) < WINDOW[1]
                and sum(size for _, size in self._flight) < WINDOW[0])

    def _next_batch(self):
        """Return the [(number, text)] to send now; after a silence, those again that nobody has acknowledged."""
        with self.outbox.changed:
            if self.acknowledged is None:
                return []
            if self._flight and time.monotonic() - self._progress > ANSWER:
                self._sent, self._progress, self._before_hole = self.acknowledged, time.monotonic(), False
                self._flight.clear()
            return self.spool.after(self._sent, *reversed(BATCH)) if self._has_room() else []

    def _consecutive(self, batch):
        """Return the batch, or nothing if numbers before it are missing and it is too early to say so.

        They never come, which the server hears when none of those before them may have to be sent again.
        """
        if not batch or batch[0][0] == self._sent + 1:
            return batch
        first = batch[0][0]
        if self.spool.first < first:
            self._before_hole = True
            return []
        self._greet(first)
        with self.outbox.changed:
            self._sent = first - 1
            self._flight.clear()
        return batch

    def _send_numbered(self, batch):
        if not batch:
            return
        texts = [numbered(n, text, '"late": true, ' if n <= self._shown else '') for n, text in batch]
        with self.outbox.changed:
            if not self._flight:
                self._progress = time.monotonic()
            self._flight.extend((n, len(text)) for n, text in batch)
            self._sent = batch[-1][0]
        self._shown = max(self._shown, self._sent)
        self.ws.send(texts[0] if len(texts) == 1 else '[%s]' % ', '.join(texts))

    # Newest values, and the rest

    def _preview(self, news, reached):
        """Send the newest values without a number, unless numbered readings bring them now."""
        if not news.samples or self.acknowledged is not None and reached >= news.number:
            return
        for stamp in sorted({stamp for stamp, _ in news.samples.values()}):
            reading = {sensor: values for sensor, (then, values) in news.samples.items() if then == stamp}
            before = self.ws.dropped
            self.ws.send(sample_text(stamp, reading), key=sample_key(reading))
            if self.ws.dropped > before:    # a message of the same sensors
                self._dropped.update(reading.keys())
        self._shown = news.number

    def _compare_clocks(self):
        now = time.monotonic()
        if now >= self._clock_due:
            self._clock_due = now + CLOCK_PERIOD
            self.ws.send(json.dumps({'time': time.time() * 1000}))

    def _report(self, replaced):
        """Tell what will never come: to one who keeps readings what the spool dropped, to others what was replaced."""
        if self.acknowledged is not None:
            self._dropped.clear()
        else:
            self._dropped.update(replaced)
        now = time.monotonic()
        if now < self._report_due:
            return
        self._report_due = now + REPORT_PERIOD
        if self.acknowledged is None and now - self._began > ANSWER and not self.spool.kept_in_file:
            self.spool.acknowledge(self.spool.last)     # nobody will ask for them
        counts = self._dropped if self.acknowledged is None else self.spool.dropped
        if counts:
            self.ws.send(json.dumps({'dropped': {'sensors': dict(counts)}}))
            counts.clear()


class Interruption:
    """What Ctrl-C does: a session ends between two messages, because within one it could not say goodbye any more.

    Whatever else is going on is interrupted at once, and so is a session at the second time.
    """

    def __init__(self):
        self.session = None

    def __call__(self, *_):
        session, self.session = self.session, None
        if session is None:
            raise KeyboardInterrupt
        session.interrupted = True


def push(address, source, rate, device, spool, trust, say, interruption):
    """Send what the source reads to an Address, for ever: connect again whenever the connection breaks.

    `say` gets the sentences for a person; the Interruption is told which session there is. Refused if the server does
    not want this device; KeyboardInterrupt ends it in order.
    """
    def describe(sensors, **more):
        return hello_message(device, source.name, sensors, rate, id=spool.identity, simulated=source.simulated,
                             repeat=source.repeat, **more)

    outbox, session = Outbox(spool), None
    reader = Reader(source, rate, outbox)
    connections = Line(address, trust, say).connections()
    reader.start()
    try:
        for ws in connections:
            print('connected to %s' % re.sub('//[^/@]*@', '//', address.uri), flush=True)
            session = interruption.session = Session(ws, outbox, describe)
            try:
                session.run()
            except minws.ConnectionClosed as closed:
                if closed.rcvd is not None and closed.code == 1008:
                    raise Refused('%s refuses this device: %s' % (address.host, printable(closed.reason))) from None
                print('connection lost (%s); connecting again' % closed, flush=True)
            finally:
                interruption.session = None
    except KeyboardInterrupt:
        reader.stop()
        if session is not None:
            session.leave('it was stopped there')
    finally:
        reader.stop()
        connections.close()
        spool.close()


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


def add_push_options(parser):
    parser.add_argument('address', metavar='ADDRESS',
                        help='of the server: 192.168.1.20, name:9000, or what stands in the address bar of its page')
    parser.add_argument('--password', help='of the server, if it has one')
    parser.add_argument('--fingerprint', metavar='AB:CD:..', help='trust the https server that printed this')
    parser.add_argument('--cert', metavar='FILE', help='trust the certificate in this file')
    parser.add_argument('--insecure', action='store_true', help='trust whoever answers by https')
    parser.add_argument('--spool', metavar='FILE', help='keep readings in a file until the server has recorded them')
    parser.add_argument('--spool-size', type=positive, metavar='MIB', help='and at most so much (default: 16)')


def tell(text):
    print(text, file=sys.stderr, flush=True)


def main(argv=None):
    """Run the push client; return its exit status."""
    parser = argparse.ArgumentParser(prog='droid_sensor.py', description='Push sensor readings to a minws server.')
    add_push_options(parser)
    add_source_options(parser)
    arguments = parser.parse_args(argv)
    try:
        address = parse_address(arguments.address)
        trust = Trust(arguments.cert, arguments.fingerprint, arguments.insecure)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if (arguments.cert or arguments.fingerprint or arguments.insecure) and not is_secure(address):
        parser.error('--cert, --fingerprint and --insecure are for addresses with https:// or wss://')
    if arguments.password is not None:
        address = address._replace(password=arguments.password)
    try:
        spool = Spool(arguments.spool, arguments.spool_size and int(arguments.spool_size * (1 << 20)), tell)
    except OSError as error:
        tell('the spool %s cannot be used: %s' % (arguments.spool, error.strerror or error))
        return 1
    source = find_source(arguments.source, arguments.sensors)
    print('source: %s' % source.name, flush=True)
    interruption = Interruption()
    if threading.current_thread() is threading.main_thread():   # which a phone's Python may not give to a script
        for number in (signal.SIGINT, signal.SIGTERM):   # whoever stops a program in the background sends the second
            signal.signal(number, interruption)
    try:
        push(address, source, arguments.rate, arguments.name or device_name()[:MAX_NAME], spool, trust, tell,
             interruption)
    except Refused as error:
        tell(error)
        return 1
    except KeyboardInterrupt:  # the second one
        pass
    return 0


if __name__ == '__main__':
    sys.exit(main())
