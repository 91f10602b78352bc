"""Tests of examples/droid_sensor.py and of the server in examples/sensors; the page has its own.

Phones are played by stand-ins that speak the documented formats: an SL4A server on a socket, a `termux-sensor` script
on the PATH, a tree of files like /sys and /proc. Sockets are real ones on 127.0.0.1.
"""
import contextlib
import json
import math
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

import minws
from examples import droid_sensor
from examples.droid_sensor import (JsonStream, Linux, Reader, Sensor, Simulated, Sl4a, Source, SourceError,
                                   Termux, choose_sensors, find_source, numbers)
from examples.sensors.__main__ import Hub, listen, local_addresses, main, page_addresses, sentence
from examples.sensors.web import PAGE

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 10.0               # seconds for anything that should happen at once


##############################################################################
# Listening to a reader
##############################################################################

class Listener:
    """Keeps what a Reader says, in order."""

    def __init__(self):
        self.events = queue.Queue()
        self.described = {}

    def sensors(self, sensors):
        self.described = sensors

    def reading(self, stamp, reading):
        self.events.put(('reading', stamp, reading))

    def trouble(self, text):
        self.events.put(('trouble', text))

    def next(self, kind):
        """Return the next event of that kind without its kind; others are dropped."""
        deadline = time.monotonic() + DEADLINE
        while True:
            event = self.events.get(timeout=max(0.0, deadline - time.monotonic()))
            if event[0] == kind:
                return event[1] if kind == 'trouble' else event[1:]

    def next_with(self, sensor):
        """Return the values of the next reading that has the sensor."""
        while True:
            reading = self.next('reading')[1]
            if sensor in reading:
                return reading[sensor]


@contextlib.contextmanager
def read(source, rate=20, patience=None):
    """Run a source in a Reader with short pauses; the value is its Listener."""
    listener = Listener()
    if patience is not None:
        source.patience = patience
    reader = Reader(source, rate, listener, first_pause=0.05)
    reader.start()
    try:
        yield listener
    finally:
        reader.stop()
    assert not reader._thread.is_alive()


def wait_until(true, what='the condition'):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, '%s did not come' % what
        threading.Event().wait(0.01)


##############################################################################
# Reader
##############################################################################

class Slow(Source):
    """Takes up to 8 ms for each reading."""

    name = 'slow'
    sensors = {'n': Sensor('', ())}

    def __init__(self):
        pass

    def readings(self, period):
        for n in range(10 ** 6):
            time.sleep(0.008 * (n % 3) / 2)
            yield {'n': [n]}


class Stuck(Source):
    """Gives one reading, then hangs; in a driver's way if `deaf`, which close() cannot end."""

    name = 'stuck'

    def __init__(self, deaf=False):
        super().__init__()
        self.sensors = {'n': Sensor('', ())}
        self.deaf = deaf
        self.released = threading.Event()
        self.runs = 0

    def readings(self, period):
        self.runs += 1
        yield {'n': [self.runs]}
        self.released.wait(DEADLINE)
        self.released.clear()

    def close(self):
        if not self.deaf:
            self.released.set()

    def silence(self):
        return 'have you tried turning it off and on again?'


def test_reader_keeps_the_rate_without_drift():
    with read(Slow(), rate=50) as listener:
        events = [listener.events.get(timeout=DEADLINE) for _ in range(50)]
    assert {kind for kind, *_ in events} == {'reading'}
    stamps = [event[1] for event in events]
    assert (stamps[-1] - stamps[0]) / 49 > 0.019
    # On a busy machine some stretches take longer. Sleeping a period after each reading would make all of them 0.024.
    assert min(later - stamp for stamp, later in zip(stamps, stamps[9:])) / 9 < 0.022


def test_reader_stamps_with_seconds_since_1970():
    with read(Simulated()) as listener:
        assert abs(listener.next('reading')[0] - time.time()) < 5


def test_reader_names_a_source_that_hangs_and_tries_again():
    with read(Stuck(), patience=0.3) as listener:
        assert listener.next_with('n') == [1]
        trouble = listener.next('trouble')
        assert listener.next_with('n') == [2]
    assert trouble == 'stuck: no reading for 0.3 seconds; have you tried turning it off and on again?'


def test_reader_has_no_second_thread_beside_one_that_cannot_be_ended():
    source = Stuck(deaf=True)
    with read(source, patience=0.2) as listener:
        listener.next('trouble')
        with pytest.raises(queue.Empty):
            listener.events.get(timeout=0.6)
        assert source.runs == 1
        source.released.set()
        assert listener.next_with('n') == [2]
        source.released.set()


def test_reader_survives_a_bug_in_a_source():
    class Broken(Source):
        name = 'broken'

        def readings(self, period):
            yield {}
            raise ZeroDivisionError('division by zero')

    with read(Broken()) as listener:
        assert listener.next('trouble') == 'broken: ZeroDivisionError: division by zero'
        assert listener.next('trouble')


def test_reader_pauses_longer_after_each_failure():
    class Dead(Source):
        name = 'dead'

        def readings(self, period):
            raise SourceError('unplugged')
            yield

    with read(Dead()) as listener:
        times = []
        for _ in range(4):
            assert listener.next('trouble') == 'dead: unplugged'
            times.append(time.monotonic())
    first, second, third = (b - a for a, b in zip(times, times[1:]))
    assert first >= 0.04 and second >= 0.09 and third >= 0.19


@pytest.mark.parametrize('values, count, expected', [
    ([1, 2.5, 3], 3, [1.0, 2.5, 3.0]),
    ([1, 2, 3, 4], 3, [1.0, 2.0, 3.0]),
    ([1, None, 3], 3, None),
    ([1, 2], 3, None),
    ([float('nan')], 1, None),
    ([10 ** 400], 1, None),
    ([True], 1, None),
    (['1'], 1, None),
    (None, 1, None),
])
def test_numbers(values, count, expected):
    assert numbers(values, count) == expected


##############################################################################
# SL4A
##############################################################################

class Phone:
    """The RPC server of SL4A: one JSON object per line. `answers` is {method: result or function}."""

    def __init__(self, handshake=None):
        self.handshake = handshake
        self.calls = []
        self.answers = {}
        self.raw = None           # bytes to answer instead of JSON
        self.silent = threading.Event()
        self.listener = socket.socket()
        self.listener.bind(('127.0.0.1', 0))
        self.listener.listen(5)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def environ(self):
        return {'AP_HOST': '127.0.0.1', 'AP_PORT': str(self.port), 'AP_HANDSHAKE': self.handshake or 'secret'}

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, sock):
        with sock, sock.makefile('rb') as lines, contextlib.suppress(OSError):
            for line in lines:
                request = json.loads(line.decode())
                self.calls.append((request['method'], request['params']))
                if not self.silent.is_set():
                    sock.sendall(self.raw or self._answer(request))

    def _answer(self, request):
        result, error = None, None
        if request['method'] == '_authenticate':
            result = request['params'] == [self.handshake or 'secret']
            error = None if result else 'Invalid handshake'
        elif request['method'] in self.answers:
            answer = self.answers[request['method']]
            try:
                result = answer() if callable(answer) else answer
            except SourceError as failure:
                error = str(failure)
        elif request['method'] not in ('stopSensing', 'startSensingTimed', 'batteryStartMonitoring', 'readSensors'):
            error = 'Unknown RPC.'
        answer = '{"error":%s,"id":%d,"result":%s}\n' % (json.dumps(error), request['id'], json.dumps(result))
        return answer.encode()

    def close(self):
        self.listener.close()


@pytest.fixture
def phone():
    phone = Phone()
    yield phone
    phone.close()


FULL = {'accuracy': 3, 'time': 1732140000.5, 'xforce': 0.25, 'yforce': -1.5, 'zforce': 9.75, 'xMag': 21.5, 'yMag': -4,
        'zMag': -40.25, 'light': 310, 'azimuth': math.pi / 2, 'pitch': -math.pi / 6, 'roll': 0.0}


def test_sl4a_reads_the_sensors_of_the_phone(phone):
    samples = iter([None, {}, {'xforce': 1.0}])
    phone.answers['readSensors'] = lambda: next(samples, FULL)  # nothing is known at first
    with read(Sl4a(phone.environ()), rate=10) as listener:
        reading = listener.next('reading')[1]
    assert phone.calls[0] == ('_authenticate', ['secret'])
    assert ('startSensingTimed', [1, 100]) in phone.calls
    assert [method for method, _ in phone.calls].count('stopSensing') == 2  # before and after
    assert reading['accel'] == [0.25, -1.5, 9.75]
    assert reading['magnetic'] == [21.5, -4.0, -40.25]
    assert reading['light'] == [310.0]
    assert reading['orientation'] == pytest.approx([90, -30, 0])
    assert listener.described['orientation'] == Sensor('°', ('azimuth', 'pitch', 'roll'))
    assert listener.described['accel'].unit == 'm/s²'


def test_sl4a_takes_keys_in_any_case(phone):
    phone.answers['readSensors'] = {'XFORCE': 1, 'yForce': 2, 'zforce': 3, 'xmag': 4, 'yMAG': 5, 'ZMag': 6}
    with read(Sl4a(phone.environ())) as listener:
        assert listener.next('reading')[1] == {'accel': [1, 2, 3], 'magnetic': [4, 5, 6]}


def test_sl4a_drops_a_sensor_with_missing_values(phone):
    phone.answers['readSensors'] = {'xforce': 1, 'yforce': None, 'zforce': 3, 'light': 7.5, 'azimuth': 0.1}
    with read(Sl4a(phone.environ())) as listener:
        assert listener.next('reading')[1] == {'light': [7.5]}


def test_sl4a_reads_gyroscope_and_battery_of_a_phone_that_has_them(phone):
    phone.answers.update(readSensors=FULL, sensorsReadGyroscope=[0.5, 0.25, -0.125],
                         readBatteryData={'status': 3, 'level': 81, 'voltage': 4123, 'temperature': 305})
    source = Sl4a(phone.environ())
    source.repeat = 0
    with read(source) as listener:
        assert listener.next_with('gyro') == [0.5, 0.25, -0.125]
        assert listener.next_with('battery') == [81.0]
        assert listener.next_with('battery voltage') == [pytest.approx(4.123)]
        assert listener.next_with('battery temperature') == [pytest.approx(30.5)]


def test_sl4a_names_the_error_of_the_phone_and_tries_again(phone):
    def refuse():
        phone.answers['readSensors'] = FULL
        raise SourceError('Sensors are not allowed.')

    phone.answers['readSensors'] = refuse
    with read(Sl4a(phone.environ())) as listener:
        assert listener.next('trouble') == 'sl4a: readSensors: Sensors are not allowed.'
        assert listener.next_with('light') == [310.0]


def test_sl4a_phone_that_hangs_is_named_and_comes_back(phone):
    phone.answers['readSensors'] = FULL
    source = Sl4a(phone.environ())
    source.repeat = 0
    with read(source, patience=0.4) as listener:
        listener.next('reading')
        phone.silent.set()
        assert 'sl4a: no reading for 0.4 seconds' in listener.next('trouble')
        phone.silent.clear()
        while not listener.events.empty():
            listener.events.get()
        listener.next('reading')


def test_sl4a_names_garbage(phone):
    phone.raw = b'<html>\n'
    with read(Sl4a(phone.environ())) as listener:
        assert "the phone answered b'<html>" in listener.next('trouble')


def test_sl4a_names_a_wrong_handshake(phone):
    with read(Sl4a(dict(phone.environ(), AP_HANDSHAKE='wrong'))) as listener:
        assert 'Invalid handshake' in listener.next('trouble')


def test_sl4a_names_the_address_that_does_not_answer(phone):
    phone.listener.shutdown(socket.SHUT_RDWR)
    phone.close()
    with read(Sl4a(phone.environ())) as listener:
        assert 'no SL4A at 127.0.0.1:%d' % phone.port in listener.next('trouble')


def test_sl4a_works_through_androidhelper(monkeypatch):
    class Android:
        def __getattr__(self, method):
            known = {'readSensors': FULL, 'sensorsReadGyroscope': [1, 2, 3]}
            return lambda *params: types.SimpleNamespace(id=1, result=known.get(method), error=None)

    monkeypatch.setitem(sys.modules, 'androidhelper', types.SimpleNamespace(Android=Android))
    monkeypatch.delenv('AP_PORT', raising=False)
    assert find_source('auto').name == 'sl4a'
    with read(Sl4a({})) as listener:
        reading = listener.next('reading')[1]
    assert reading['gyro'] == [1, 2, 3] and reading['accel'] == [0.25, -1.5, 9.75]


##############################################################################
# Termux
##############################################################################

TERMUX_SENSOR = r'''#!%(python)s -S
import json, os, signal, sys, time
home = os.path.dirname(os.path.abspath(sys.argv[0]))
arguments = sys.argv[1:]
with open(os.path.join(home, 'mode')) as file:
    mode = file.read()
with open(os.path.join(home, 'calls'), 'a') as file:
    file.write(json.dumps([os.getpid()] + arguments) + '\n')

def put(text):
    sys.stdout.write(text)
    sys.stdout.flush()

def interrupted(number, frame):
    put('Caught interrupt..\nPerforming sensor cleanup\nSensor cleanup successful!\n')
    os._exit(0)

signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == 'deaf' else interrupted)
names = ['BMI160 Accelerometer', 'BMI160 Accelerometer Uncalibrated', 'BMI160 Gyroscope', 'LTR553 Light']
if mode == 'hang' or (mode == 'quiet' and '-s' in arguments):
    time.sleep(60)
if '-c' in arguments:
    put('Performing sensor cleanup\nSensor cleanup successful!\n')
    sys.exit()
if '-l' in arguments:
    put(json.dumps({'sensors': names}, indent=2) + '\n')
    sys.exit()
if mode == 'none':
    put('No valid sensors were registered!\n')
    sys.exit()
delay = int(arguments[arguments.index('-d') + 1]) / 1000
while mode == 'garbage':
    put('%%PNG \x00 {"oops\n')
    time.sleep(delay)
put('{}\n')
put('{\n  "BMI160 Accelerometer": {\n    "values": [\n      0.25,\n      -1.5,\n      9.7')
time.sleep(0.05)
put('5\n    ]\n  }\n}\n')
put('Caught interrupt..\n')
sample = {'BMI160 Accelerometer': {'values': [1, 2, 3]}, 'BMI160 Gyroscope': {'values': [0.5, None, 0.5]},
          'LTR553 Light': {'values': [42, 0, 0]}}
while True:
    put(json.dumps(sample, indent=2) + '\n')
    time.sleep(60 if mode == 'deaf' else delay)
'''


class TermuxHome:
    """A directory with a `termux-sensor` that behaves as `mode` says, and writes down how it was called."""

    def __init__(self, path):
        self.path = path
        self.script = str(path.joinpath('termux-sensor'))
        path.joinpath('termux-sensor').write_text(TERMUX_SENSOR % {'python': sys.executable})
        os.chmod(self.script, 0o755)
        self.mode('normal')

    def mode(self, mode):
        self.path.joinpath('mode').write_text(mode)

    def calls(self):
        path = self.path.joinpath('calls')
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def stream_pids(self):
        return [call[0] for call in self.calls() if '-s' in call]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def termux(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path) + os.pathsep + os.environ['PATH'])
    monkeypatch.setattr(droid_sensor, 'TERMUX_LIST_TIMEOUT', 0.5)
    return TermuxHome(tmp_path)


def test_termux_reads_its_sensors_from_one_child(termux, monkeypatch):
    monkeypatch.delenv('AP_PORT', raising=False)
    source = find_source('auto')
    assert source.name == 'termux'
    with read(source, rate=20) as listener:
        assert listener.next('reading')[1] == {'accel': [0.25, -1.5, 9.75]}
        assert listener.next('reading')[1] == {'accel': [1, 2, 3], 'light': [42]}
        listener.next('reading')
    listing, streaming = termux.calls()
    assert listing[1:] == ['-l']
    assert streaming[1:] == ['-s', 'BMI160 Accelerometer,BMI160 Gyroscope,LTR553 Light', '-d', '50']
    assert listener.described == {'accel': Sensor('m/s²', ('x', 'y', 'z')), 'light': Sensor('lx', ())}
    assert not alive(streaming[0])


def test_termux_child_that_was_killed_is_started_again(termux):
    with read(Termux()) as listener:
        listener.next_with('light')
        first = termux.stream_pids()[0]
        os.kill(first, signal.SIGKILL)
        trouble = listener.next('trouble')
        listener.next_with('light')
        second = termux.stream_pids()[1]
        assert alive(second)
    assert 'termux-sensor was killed by signal 9' in trouble
    assert ['-c'] in [call[1:] for call in termux.calls()]  # it could not free the sensors itself
    assert not alive(first) and not alive(second)


@pytest.mark.parametrize('mode', ['hang', 'quiet'])
def test_termux_without_its_app_is_named_with_a_hint(termux, mode):
    termux.mode(mode)
    with read(Termux(), patience=1.0) as listener:
        assert 'Termux:API' in listener.next('trouble')
        termux.mode('normal')
        listener.next_with('light')
    assert not any(alive(call[0]) for call in termux.calls())


def test_termux_garbage_is_named(termux):
    termux.mode('garbage')
    with read(Termux(), patience=1.0) as listener:
        wait_until(lambda: 'PNG' in listener.next('trouble'), 'the garbage')     # once it was quick enough to say it


def test_termux_without_sensors_is_named(termux):
    termux.mode('none')
    with read(Termux()) as listener:
        assert listener.next('trouble') == 'termux: termux-sensor ended: No valid sensors were registered!'


def test_termux_child_that_ignores_sigterm_is_killed(termux):
    termux.mode('deaf')
    with read(Termux()) as listener:
        listener.next_with('light')
        pid = termux.stream_pids()[0]
    assert not alive(pid)


OBJECTS = ('{}\n{\n  "a": {\n    "values": [\n      1.5,\n      -20\n    ]\n  }\n}\n'
           'Caught interrupt..\n{"b": 1}{"c": "}{"}\n')


@pytest.mark.parametrize('size', [1, 2, 3, 7, 1000])
def test_json_stream_finds_objects_however_they_arrive(size):
    stream = JsonStream()
    found = [each for i in range(0, len(OBJECTS), size) for each in stream.feed(OBJECTS[i:i + size])]
    assert found == [{}, {'a': {'values': [1.5, -20]}}, {'b': 1}, {'c': '}{'}]
    assert stream.note == 'Caught interrupt..'


def test_json_stream_goes_on_after_a_broken_object():
    stream = JsonStream()
    assert list(stream.feed('{\n  "a": [1,\nKilled\n{\n  "b": 2\n}\n')) == [{'b': 2}]


def test_json_stream_keeps_no_endless_line():
    stream = JsonStream(limit=100)
    for text in ('x' * 1000, '{' + ' ' * 1000):
        assert list(stream.feed(text)) == []
        assert len(stream._text) <= 100
    assert list(stream.feed('\n{"a": 1}')) == [{'a': 1}]


def test_termux_sensors_are_chosen_by_kind():
    names = ['Goldfish 3-axis Accelerometer', 'Goldfish 3-axis Accelerometer (Uncalibrated)', 'Linear Accelerometer',
             'Magnetic field sensor', 'Device Orientation', 'Orientation sensor', 'Ambient light', 'Step counter']
    chosen = {sensor: name for name, (sensor, _) in choose_sensors(names).items()}
    assert chosen == {'accel': 'Goldfish 3-axis Accelerometer', 'magnetic': 'Magnetic field sensor',
                      'linear accel': 'Linear Accelerometer', 'orientation': 'Orientation sensor',
                      'light': 'Ambient light', 'steps': 'Step counter'}


def test_termux_sensors_of_unknown_kind_are_all_taken():
    assert choose_sensors(['Hall', 'SAR']) == {'Hall': ('Hall', None), 'SAR': ('SAR', None)}


##############################################################################
# Linux
##############################################################################

class Tree:
    """Files like those of /sys and /proc below a directory."""

    def __init__(self, path):
        self.path = path

    def put(self, name, content):
        path = self.path.joinpath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('%s\n' % content)

    def remove(self, name):
        self.path.joinpath(name).unlink()


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def one_reading(tree):
    source = Linux(str(tree.path))
    source.repeat = 0
    readings = source.readings(0.1)
    next(readings)            # rates have their first value after the second
    return source, next(readings)


def test_linux_scales_industrial_io(tree):
    device = 'sys/bus/iio/devices/iio:device0/'
    for axis, raw in zip('xyz', (-512, 0, 1024)):
        tree.put(device + 'in_accel_%s_raw' % axis, raw)
        tree.put(device + 'in_magn_%s_raw' % axis, raw)
    tree.put(device + 'in_accel_scale', '0.009')
    tree.put(device + 'in_accel_offset', '12')
    for axis, scale in zip('xyz', (0.001, 0.002, 0.003)):
        tree.put(device + 'in_magn_%s_scale' % axis, scale)
    tree.put(device + 'in_temp_raw', 2000)
    tree.put(device + 'in_temp_scale', 10)
    tree.put(device + 'in_temp_offset', 150)
    tree.put(device + 'in_pressure_input', '101.325')
    tree.put(device + 'in_humidityrelative_input', '45500')
    tree.put(device + 'in_illuminance_raw', 77)
    source, reading = one_reading(tree)
    assert reading['accel'] == pytest.approx([-4.5, 0.108, 9.324])
    assert reading['magnetic'] == pytest.approx([-51.2, 0, 307.2])     # gauss to microtesla
    assert reading['temperature'] == pytest.approx([21.5])
    assert reading['pressure'] == pytest.approx([1013.25])
    assert reading['humidity'] == pytest.approx([45.5])
    assert reading['light'] == [77]
    assert source.sensors['magnetic'] == Sensor('µT', ('x', 'y', 'z'))
    assert source.sensors['pressure'].unit == 'hPa'


def test_linux_reads_thermal_hwmon_and_power(tree):
    tree.put('sys/class/thermal/thermal_zone0/type', 'cpu-thermal')
    tree.put('sys/class/thermal/thermal_zone0/temp', 48312)
    tree.put('sys/class/thermal/thermal_zone1/type', 'cpu-thermal')
    tree.put('sys/class/thermal/thermal_zone1/temp', 51000)
    tree.put('sys/class/hwmon/hwmon0/name', 'coretemp')
    tree.put('sys/class/hwmon/hwmon0/temp1_input', 61000)
    tree.put('sys/class/hwmon/hwmon0/temp1_label', 'Core 0')
    tree.put('sys/class/hwmon/hwmon0/fan1_input', 1200)
    tree.put('sys/class/power_supply/BAT0/type', 'Battery')
    tree.put('sys/class/power_supply/BAT0/capacity', 81)
    tree.put('sys/class/power_supply/BAT0/voltage_now', 12340000)
    tree.put('sys/class/power_supply/BAT0/temp', 305)
    source, reading = one_reading(tree)
    assert reading == {'cpu-thermal': [pytest.approx(48.312)], 'cpu-thermal 2': [51.0], 'coretemp Core 0': [61.0],
                       'coretemp fan1': [1200.0], 'battery': [81.0], 'battery voltage': [pytest.approx(12.34)],
                       'battery temperature': [pytest.approx(30.5)]}
    assert source.sensors['coretemp fan1'].unit == 'rpm' and source.sensors['cpu-thermal'].unit == '°C'


NET_DEV = ('Inter-|   Receive  |  Transmit\n face |bytes packets |bytes\n'
           '    lo: 999 0 0 0 0 0 0 0 999 0 0 0 0 0 0 0\n'
           '  eth0: %d 0 0 0 0 0 0 0 %d 0 0 0 0 0 0 0')


def test_linux_reads_load_memory_and_rates(tree):
    tree.put('proc/loadavg', '0.50 0.25 0.10 1/81 4570')
    tree.put('proc/meminfo', 'MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  250 kB')
    tree.put('proc/stat', 'cpu  100 0 0 100 0 0 0 0 0 0\ncpu0 1 2 3')
    tree.put('proc/net/dev', NET_DEV % (1000, 2000))
    source = Linux(str(tree.path))
    source.repeat = 0
    readings = source.readings(0.1)
    next(readings)
    tree.put('proc/stat', 'cpu  130 0 0 160 10 0 0 0 0 0\ncpu0 1 2 3')
    tree.put('proc/net/dev', NET_DEV % (51000, 2000))
    reading = next(readings)
    assert reading['load'] == [0.5, 0.25, 0.1]
    assert reading['memory'] == [75.0]
    assert reading['cpu'] == [pytest.approx(30)]
    assert reading['network'][0] > 0 and reading['network'][1] == 0
    assert source.sensors['network'] == Sensor('kB/s', ('in', 'out'))


def test_linux_network_rate_is_bytes_by_time():
    assert droid_sensor.kilobytes([1000, 0], [5000, 500], 2.0) == [2.0, 0.25]
    assert droid_sensor.kilobytes([1000, 0], [10, 0], 2.0) == [0, 0]  # the counter began again


def test_linux_goes_on_without_a_sensor_that_fails(tree):
    for zone, content in enumerate((40000, 'garbage', 42000)):
        tree.put('sys/class/thermal/thermal_zone%d/temp' % zone, content)
    source = Linux(str(tree.path))
    source.repeat = 0
    readings = source.readings(0.1)
    assert sorted(next(readings)) == ['thermal_zone0', 'thermal_zone2']
    tree.remove('sys/class/thermal/thermal_zone2/temp')
    assert next(readings) == {'thermal_zone0': [40.0]}
    tree.remove('sys/class/thermal/thermal_zone0/temp')
    with pytest.raises(SourceError, match='nothing can be read any more'):
        next(readings)


def test_linux_without_files_is_named(tree):
    with read(Linux(str(tree.path))) as listener:
        assert 'nothing to read' in listener.next('trouble')


def test_auto_takes_what_the_machine_has(monkeypatch):
    for source in (Sl4a, Termux, Linux):
        monkeypatch.setattr(source, 'available', classmethod(lambda cls: False))
    assert find_source('auto').simulated
    with pytest.raises(ValueError):
        find_source('crystal ball')


##############################################################################
# Server
##############################################################################

@contextlib.contextmanager
def serving(port=0):
    """Run the hub of `python3 -m examples.sensors` without a source of its own; the value is the Hub."""
    hub = Hub()
    listen(hub, '127.0.0.1', port)
    hub.server.start()
    hub.port = hub.server.port
    try:
        yield hub
    finally:
        hub.server.shutdown()


@pytest.fixture
def hub():
    with serving() as hub:
        yield hub


class Peer:
    """A browser or a phone, played by the blocking client."""

    def __init__(self, hub, path):
        self.ws = minws.connect('ws://127.0.0.1:%d%s' % (hub.port, path))
        self.waiting = []

    def say(self, **message):
        self.ws.send(json.dumps(message))

    def hear(self, wanted):
        """Return the next message for which wanted(message) is true."""
        deadline = time.monotonic() + DEADLINE
        while True:
            while not self.waiting:
                value = json.loads(self.ws.recv(timeout=deadline - time.monotonic()))
                self.waiting = value if isinstance(value, list) else [value]
            message = self.waiting.pop(0)
            if wanted(message):
                return message

    def hear_sample(self, device):
        return self.hear(lambda message: message.get('d') == device)

    def hear_hello(self, device):
        return self.hear(lambda message: message.get('hello', {}).get('device') == device)['hello']

    def end(self):
        """Return the code with which the other side closes."""
        with pytest.raises(minws.ConnectionClosed) as caught:
            self.ws.recv(timeout=DEADLINE)
        return caught.value.code

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.ws.close()


HELLO = {'device': 'pixel', 'source': 'termux', 'rate': 5,
         'sensors': {'accel': {'unit': 'm/s²', 'axes': ['x', 'y', 'z']}, 'light': {'unit': 'lx', 'axes': []}}}


##############################################################################
# Command lines
##############################################################################

class Program:
    """A subprocess whose output lines are awaited."""

    def __init__(self, *command, **options):
        self.process = subprocess.Popen((sys.executable,) + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        universal_newlines=True, **options)
        self.lines = queue.Queue()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip('\n'))

    def expect(self, pattern):
        """Return the match of the next line that matches."""
        deadline = time.monotonic() + DEADLINE
        while True:
            found = re.search(pattern, self.lines.get(timeout=max(0.0, deadline - time.monotonic())))
            if found:
                return found

    def interrupt(self):
        """Press Ctrl-C; return the exit status and what is on the standard error."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(DEADLINE)
        return self.process.returncode, self.process.stderr.read()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.thread.join(DEADLINE)
        self.process.stdout.close()
        self.process.stderr.close()


def test_program_announces_serves_and_ends_in_order():
    with Program('-m', 'examples.sensors', '--host', '127.0.0.1', '--port', '0', '--rate', '25', '--source',
                 'simulated', '--name', 'desk', cwd=ROOT) as program:
        program.expect('^source: simulated')
        port = int(program.expect(r'^ +http://127\.0\.0\.1:(\d+)/$').group(1))
        program.expect(r'ws://127\.0\.0\.1:%d/push' % port)
        program.expect('Ctrl-C')
        with socket.create_connection(('127.0.0.1', port), DEADLINE) as sock:
            sock.sendall(b'GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n')
            answer = b''.join(iter(lambda: sock.recv(65536), b''))
        with open(PAGE, 'rb') as page:
            assert answer.startswith(b'HTTP/1.1 200') and answer.endswith(page.read())
        browser = Peer(types.SimpleNamespace(port=port), '/ws')
        hello = browser.hear_hello('desk')
        assert hello['simulated'] and hello['rate'] == 25
        assert 'accel' in hello['sensors'] or 'accel' in browser.hear_hello('desk')['sensors']
        times = [browser.hear(lambda message: 'accel' in message.get('s', {}))['t'] for _ in range(26)]
        assert abs((times[-1] - times[0]) / 25 - 0.04) < 0.006
        status, errors = program.interrupt()
        assert (status, errors) == (0, '')
        program.expect('^stopped$')
        with pytest.raises(minws.ConnectionClosed) as caught:
            for _ in browser.ws:
                pass
            browser.ws.recv(timeout=DEADLINE)
        assert caught.value.code == 1001


def test_program_says_in_a_sentence_that_the_port_is_in_use(hub):
    with Program('-m', 'examples.sensors', '--host', '127.0.0.1', '--port', str(hub.port), cwd=ROOT) as program:
        assert program.process.wait(DEADLINE) == 1
        errors = program.process.stderr.read()
    assert errors == sentence(OSError(98, 'in use'), '127.0.0.1', hub.port) + '\n'
    assert str(hub.port) in errors and 'Traceback' not in errors


def test_program_ends_the_child_of_its_source(termux):
    termux.mode('quiet')
    with Program('-m', 'examples.sensors', '--host', '127.0.0.1', '--port', '0', '--source', 'termux',
                 cwd=ROOT) as program:
        program.expect('Ctrl-C')
        wait_until(termux.stream_pids, 'the child')
        assert alive(termux.stream_pids()[0])
        assert program.interrupt() == (0, '')
    assert not alive(termux.stream_pids()[0])


@pytest.mark.parametrize('arguments, words', [
    (['--port', '70000'], 'from 0 to 65535'),
    (['--rate', '0'], 'between 0 and 1000'),
    (['--source', 'crystal-ball'], 'invalid choice'),
])
def test_program_explains_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_announced_addresses_are_those_of_this_machine():
    addresses = local_addresses()
    for address in addresses:
        assert socket.inet_aton(address) and not address.startswith('127.')
        with socket.socket() as sock:
            sock.bind((address, 0))   # nobody else's address can be bound
    assert page_addresses('0.0.0.0') == addresses + ['localhost']
    assert page_addresses('::1') == ['[::1]']
