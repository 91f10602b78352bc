"""Tests of the server's side of examples/sensors: hub.py, web.py and the command line.

Pages and devices are played by the blocking client over real sockets on 127.0.0.1, browsers without one by raw HTTP.
"""
import collections
import contextlib
import errno
import gzip
import json
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
import urllib.request

import pytest

import minws
from examples.droid_sensor import JsonLines, Sensor
from examples.sensors import __main__ as program
from examples.sensors import hub as hubs
from examples.sensors import recording, web
from examples.sensors.hub import (Allowance, ClockOffset, Digest, Hub, Refused, Series, clean, name_of,
                                  network_of, numbers_of, parse, sensors_of)
from examples.sensors.recording import Archive, Recorder
from examples.sensors.web import Guard, Site, listen

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 20.0               # seconds for anything that should happen at once, on a busy machine


##############################################################################
# Playing pages and devices
##############################################################################

def wait_until(true, what='the condition'):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, '%s did not come' % what
        threading.Event().wait(0.01)


@contextlib.contextmanager
def serving(**guarded):
    """Serve a Hub without a source of its own; the value is the Hub."""
    hub = Hub()
    hub.site = Site(hub, Guard(**guarded) if guarded else None)
    server = listen(hub, '127.0.0.1', 0, hub.site)
    hub.port = server.port
    server.start()
    try:
        yield hub
    finally:
        server.shutdown()


@pytest.fixture
def hub():
    with serving() as hub:
        yield hub


class Peer:
    """One end of a connection to the server; what comes in arrays is handed out one by one."""

    def __init__(self, hub, path, **options):
        self.ws = minws.connect('ws://127.0.0.1:%d%s' % (hub.port, path), **options)
        self.waiting = []

    def say(self, *messages, **message):
        self.ws.send(json.dumps(list(messages) or message))

    def next(self, timeout=DEADLINE):
        while not self.waiting:
            value = json.loads(self.ws.recv(timeout=timeout))
            self.waiting = value if isinstance(value, list) else [value]
        return self.waiting.pop(0)

    def hear(self, kind, wanted=lambda value: True):
        """Return what the next message of that kind says for which wanted(it) is true; others are dropped."""
        deadline = time.monotonic() + DEADLINE
        while True:
            message = self.next(deadline - time.monotonic())
            if kind in message and wanted(message[kind]):
                return message if kind in ('s', 'd') else message[kind]

    def hear_until(self, kind):
        """Return all messages up to the next one of that kind, this included."""
        heard = [self.next()]
        while kind not in heard[-1]:
            heard.append(self.next())
        return heard

    def end(self):
        """Return the code and the reason with which the other side closes."""
        with pytest.raises(minws.ConnectionClosed):
            while True:
                self.ws.recv(timeout=DEADLINE)
        return self.ws.close_code, self.ws.close_reason

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.ws.close()


def page(hub, **options):
    """Return a Peer that has heard the story."""
    peer = Peer(hub, '/ws', **options)
    peer.story = peer.hear_until('ready')
    return peer


SENSORS = {'accel': {'unit': 'm/s²', 'axes': ['x', 'y', 'z']}, 'light': {'unit': 'lx', 'axes': []}}


def hello(**more):
    return {'hello': dict({'device': 'pixel', 'source': 'termux', 'rate': 5, 'sensors': SENSORS}, **more)}


def phone(hub, **more):
    """Return a Peer that has said hello and is known."""
    peer = Peer(hub, '/push')
    peer.say(hello(**more))
    # by its answer: after the hello, before anything else
    peer.say(time=1)
    peer.hear('time')
    return peer


def now():
    return time.time()


def request(hub, method, path, headers=(), body=b''):
    """Return (status, Headers, body) of a plain request."""
    head = ['%s %s HTTP/1.1' % (method, path), 'Content-Length: %d' % len(body)]
    head += ['%s: %s' % pair for pair in (('Host', '127.0.0.1:%d' % hub.port),) + tuple(headers)
             if pair[0] not in [name for name, _ in headers] or pair in headers]
    with socket.create_connection(('127.0.0.1', hub.port), DEADLINE) as sock:
        sock.sendall('\r\n'.join(head + ['', '']).encode('latin-1') + body)
        data = b''
        while True:
            more = sock.recv(1 << 16)
            if not more:
                break
            data += more
    head, _, body = data.partition(b'\r\n\r\n')
    response = minws.parse_response(head + b'\r\n\r\n')
    return response.status_code, response.headers, body


def post(hub, *messages, **options):
    """Return (status, answer) of POST /push."""
    status, _, body = request(hub, 'POST', options.pop('path', '/push'), options.pop('headers', ()),
                              json.dumps(list(messages)).encode())
    return status, json.loads(body.decode())


##############################################################################
# What strangers say
##############################################################################

@pytest.mark.parametrize('text, code', [
    ('', 1007), ('no json', 1007), ('[' * 100000, 1007), ('"text"', 1008), ('[1, 2]', 1008), ('[[{}]]', 1008)])
def test_what_is_no_message_is_refused(text, code):
    with pytest.raises(Refused) as refused:
        parse(text)
    assert refused.value.code == code


def test_a_number_of_very_many_digits_costs_no_time():
    text = '{"n": %s}' % ('9' * (hubs.MAX_MESSAGE - 10))
    began = time.process_time()
    with pytest.raises(ValueError, match='no number'):
        numbers_of(parse(text)[0]['n'])
    assert time.process_time() - began < 0.5     # as an int it takes seconds, or an exception


@pytest.mark.parametrize('values, numbers', [
    (1, [1]), ([1, 2.5], [1, 2.5]), ([0.1 + 0.2], [0.1 + 0.2]), (-1e30, [-1e30]), (1e-9, [1e-9]), (5e-324, [0]),
    ((1, 2), [1, 2]), (list(range(20)), list(range(16)))])
def test_numbers_pass_as_they_are(values, numbers):
    assert numbers_of(values) == numbers


@pytest.mark.parametrize('values, complaint', [
    (None, 'null is no number'), (True, 'true is no number'), ('1.5', '"1.5" is no number'),
    (float('nan'), 'NaN is no number'), (float('-inf'), '-Infinity is no number'), ([], 'there is no number'),
    ([1, [2]], 'not another list'), ([1, -1.7e308], '-1.7e+308 is beyond 1e+30'), (10 ** 400, 'beyond 1e+30'),
    ('\x1b[2J<b>' * 100, 'is no number')])
def test_a_bad_value_is_named_shortly(values, complaint):
    with pytest.raises(ValueError) as error:
        numbers_of(values)
    assert complaint in str(error.value) and len(str(error.value)) < 80 and '\x1b' not in str(error.value)


@pytest.mark.parametrize('name, known_as', [
    ('accel', 'accel'), ('加速度センサー', '加速度センサー'), ('مقياس التسارع', 'مقياس التسارع'),
    ('👩\u200d🔬', '👩\u200d🔬'),
    ('<img src=x onerror=alert(1)>', '<img src=x onerror=alert(1)>'), ('a\u202eb\nc\x00d', 'ab cd'), ('', 'default'),
    ('\ud800', 'default'), (3, 'default'), (None, 'default')])
def test_names_of_any_script_stay_what_they_are(name, known_as):
    assert name_of(name, 'default') == known_as


def test_long_names_are_cut_and_stay_different():
    one, two = name_of('x' * 100000 + '1', ''), name_of('x' * 100000 + '2', '')
    assert one != two and len(one) <= hubs.MAX_NAME and one.startswith('xxxx')


def test_text_is_cut_to_one_line():
    assert clean('a\r\n' + 'b' * 1000) == 'a  ' + 'b' * 297
    assert clean(None) == ''


def test_described_sensors_are_bounded():
    sensors, left_out = sensors_of({'n%d' % n: {'axes': ['a'] * 20, 'unit': 3} for n in range(70)})
    assert len(sensors) == 64 and all(len(sensor.axes) == 16 and sensor.unit == '' for sensor in sensors.values())
    assert 'more than' in left_out
    assert sensors_of({'a': None, 'b': {'axes': [None, 'y']}})[0] == {'a': Sensor('', ()), 'b': Sensor('', ('1', 'y'))}
    assert sensors_of([1]) == ({}, '')


def test_an_allowance_is_a_rate_and_a_burst(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(hubs.time, 'monotonic', lambda: clock[0])
    allowance = Allowance(10, 20)
    assert [allowance.take() for _ in range(21)] == [True] * 20 + [False]
    clock[0] += 0.25
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    clock[0] += 1000
    assert not allowance.take(21) and allowance.take(20)


def test_an_address_of_version_6_counts_as_its_network():
    assert network_of('2001:db8:1:2:3:4:5:6') == network_of('2001:db8:1:2::9') != network_of('2001:db8:1:3::9')
    assert network_of('::ffff:192.168.1.5') == '192.168.1.5' == network_of('192.168.1.5')


##############################################################################
# Clocks
##############################################################################

def test_a_good_clock_is_left_alone():
    clock = ClockOffset()
    for n in range(1000):
        clock.arrived(n, n + 0.03 + 0.02 * (n % 3))
    assert clock.seconds == 0.0


def test_a_wrong_clock_is_measured_by_the_quickest_message():
    clock = ClockOffset()
    assert clock.milliseconds() is None
    for n in range(300):
        clock.arrived(n - 3600, n + 0.01 + 0.3 * (n % 7))
    assert clock.seconds == pytest.approx(-3600, abs=0.2)


def test_an_offset_that_is_in_use_is_not_changed_by_its_uncertainty():
    clock = ClockOffset()
    clock.exchanged(100.0, 107.02, 100.04)
    assert clock.seconds == pytest.approx(7.0)
    clock.exchanged(200.0, 207.04, 200.06)      # slower, and within it
    assert clock.seconds == pytest.approx(7.0)
    clock.exchanged(300.0, 303.005, 300.01)     # somebody set the clock
    assert clock.seconds == pytest.approx(3.0)


def test_a_clock_that_somebody_set_back_is_measured_anew():
    clock = ClockOffset()
    for n in range(600):
        clock.arrived(n, n + 0.02)
    for n in range(600, 900):
        clock.arrived(n - 500, n + 0.02)
    assert clock.seconds == pytest.approx(-500, abs=0.2)


def test_readings_of_many_devices_stand_on_the_clock_of_the_server(hub):
    with page(hub) as viewer, phone(hub, device='late', t=now() - 7200) as late, phone(hub, device='good') as good:
        stamp = now()
        good.say(t=stamp, s={'light': 1})
        assert viewer.hear('s')['t'] == stamp
        late.say(t=stamp - 7200, s={'light': 2})
        assert abs(viewer.hear('s')['t'] - stamp) < 5
        assert viewer.story[0]['info']['now'] == pytest.approx(stamp, abs=5)
        sent, theirs = late.hear('time', lambda times: True) if late.say(time=5.5) else late.hear('time')
        assert sent == 5.5 and abs(theirs / 1000 - now()) < 5
        late.say(time=[5.5, theirs, theirs - 7200 * 1000])
        wait_until(lambda: hub.devices['late'].clock._trips, 'the exchange')
        assert hub.devices['late'].clock.milliseconds() == pytest.approx(-7200 * 1000, abs=5000)


##############################################################################
# History
##############################################################################

def readings_of(parts):
    return [json.loads(text) for _, _, joined in parts for text in joined.split(hubs.SEPARATOR)]


def test_a_series_keeps_every_reading_of_the_last_minutes():
    series = Series()
    for n in range(7000):
        series.add(n * 0.1, json.dumps(n))
    kept = readings_of(series.parts())
    assert kept == list(range(kept[0], 7000)) and 3000 <= len(kept) <= 3000 + 2 * hubs.BLOCK
    assert all(thin == 1 for thin, _, _ in series.parts())
    series.expire(10 ** 6)
    assert readings_of(series.parts())[-1] == 6999 and len(readings_of(series.parts())) < hubs.BLOCK


def test_a_series_is_thinned_from_its_oldest_part_on():
    series = Series()
    for n in range(20000):
        series.add(n * 0.001, json.dumps(n))
        while series.size > 20000:
            before = series.size
            series.thin(n * 0.001)
            assert series.size < before
    kept = readings_of(series.parts())
    thins = [thin for thin, _, _ in series.parts()]
    assert kept == sorted(set(kept)) and kept[-1] == 19999 and kept[0] < 15000
    assert thins == sorted(thins, reverse=True) and thins[0] > 1 and thins[-1] == 1
    for thin, count, joined in series.parts():
        values = [int(text) for text in joined.split(hubs.SEPARATOR)]
        assert len(values) == count
        assert (values[-1] - values[0]) / (len(values) - 1 or 1) <= 2 * thin     # as thin as it says, not thinner


def test_a_series_that_has_no_room_at_all_is_empty():
    series = Series()
    series.add(1, '1')
    while series.size:
        series.thin(1)
    assert series.parts() == []


def test_history_of_all_devices_has_its_bound_and_the_small_ones_lose_nothing(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'HISTORY_BYTES', 200000)
    small, large = hub.add('small', 'test', 10), hub.add('large', 'test', 1000)
    for n in range(5000):
        large.reading(now(), {'a': [n, n, n], 'b': n})
        if n % 50 == 0:
            small.reading(now(), {'c': n})
        assert hub.stored <= 200000
    assert sum(series.size for device in (small, large) for series in device.series.values()) == hub.stored
    with page(hub) as viewer:
        kept = [reading for message in viewer.story if 'history' in message
                for reading in message['history']['readings']]
    assert [reading['s']['c'] for reading in kept if reading['d'] == 'small'] == list(range(0, 5000, 50))
    others = [reading['s']['b'] for reading in kept if reading['d'] == 'large']
    assert others == sorted(set(others)) and others[-1] == 4999 and others[0] < 3000


def test_a_late_page_hears_everything_once_and_then_live(hub):
    """Pages join while a device sends; history and live together are all readings, none twice."""
    device = hub.add('board', 'test', 1000)
    stop, count = threading.Event(), [0]

    def send():
        while not stop.is_set():
            count[0] += 1
            device.reading(now(), {'n': count[0]})
            time.sleep(0.0005)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_until(lambda: count[0] > 300)
        heard = []
        for _ in range(5):
            with page(hub) as viewer:
                history = [reading['s']['n'] for message in viewer.story if 'history' in message
                           for reading in message['history']['readings']]
                ready = viewer.story[-1]['ready']
                assert ready['readings'] == ready['counts']['board']['n'] == len(history)
                heard.append(history + [viewer.hear('s')['s']['n'] for _ in range(100)])
    finally:
        stop.set()
        sender.join()
    for numbers in heard:
        assert numbers == list(range(1, numbers[-1] + 1))


def test_a_page_that_joins_hears_first_what_is_newest(hub):
    device = hub.add('board', 'test', 10)
    device.sensors({'light': Sensor('lx', ())})
    for n in range(10):
        device.reading(100.0 + n, {'light': n})
    device.trouble('test: lens cap')
    device.bad('light', 'NaN is no number')
    with page(hub) as viewer:
        kinds = [next(iter(message)) for message in viewer.story]
    assert kinds == ['info', 'hello', 'd', 'history', 'error', 'error', 'ready']
    info, greeting, newest, _, trouble, bad, _ = viewer.story
    assert info['info']['version'] == 2 and info['info']['may']['remove']
    assert greeting['hello']['sensors'] == {'light': {'unit': 'lx', 'axes': []}} and greeting['hello']['own']
    assert greeting['hello']['offset'] == 0.0 and greeting['hello']['state'] == 'live'
    assert newest == {'d': 'board', 't': 109.0, 's': {'light': 9}}
    assert trouble == {'error': {'device': 'board', 'text': 'test: lens cap'}}
    assert bad == {'error': {'device': 'board', 'sensor': 'light', 'text': 'NaN is no number', 'count': 1}}


##############################################################################
# Devices
##############################################################################

def test_readings_reach_every_page_as_they_are(hub):
    with page(hub) as one, page(hub) as two, phone(hub) as device:
        stamp = now()
        device.say(d='someone else', t=stamp, s={'accel': [0.5, 1e-9, -2], 'light': 1e12, 'größe': 0.1 + 0.2})
        for viewer in (one, two):
            greeting = viewer.hear('hello')
            assert greeting['sensors'] == SENSORS and greeting['source'] == 'termux' and not greeting['simulated']
            assert greeting['state'] == 'silent' and not greeting['own']
            assert viewer.hear('state')['state'] == 'live'
            assert viewer.hear('s') == {'d': 'pixel', 't': stamp,
                                        's': {'accel': [0.5, 1e-9, -2], 'light': 1e12, 'größe': 0.1 + 0.2}}
        device.say(error={'device': 'someone else', 'text': 'the battery is low'})
        assert one.hear('error') == {'device': 'pixel', 'text': 'the battery is low'}


def test_an_array_of_messages_is_handled_in_order(hub):
    with page(hub) as viewer, Peer(hub, '/push') as device:
        device.say(hello(), {'t': now(), 's': {'light': 1}}, {'t': now(), 's': {'light': 2}})
        assert [viewer.hear('s')['s']['light'] for _ in range(2)] == [1, 2]


def test_a_device_hears_nothing_but_the_clock(hub):
    with phone(hub, device='quiet') as quiet, phone(hub) as device, page(hub) as viewer:
        device.say(t=now(), s={'light': 1})
        viewer.hear('s')
        quiet.say(time=2)
        assert quiet.next() == {'time': [2, pytest.approx(1000 * now(), abs=10000)]}


def test_readings_come_in_at_most_sixty_messages_a_second(hub):
    device = hub.add('board', 'test', 1000)
    with page(hub) as viewer:
        for n in range(600):
            device.reading(now(), {'n': n})
            time.sleep(0.001)
        began, messages, numbers = hub.number, 0, []
        while not numbers or numbers[-1] != 599:
            numbers += [message['s']['n'] for message in json.loads(viewer.ws.recv(timeout=DEADLINE)) if 's' in message]
            messages += 1
    assert numbers == list(range(600))
    assert messages <= began + 2 and messages < 400


def test_nobody_ticks_when_nobody_watches(hub):
    with page(hub):
        hub.add('board', 'test', 10).reading(now(), {'n': 1})
    wait_until(lambda: not hub.watched, 'the end of the page')
    before = hub.clock.ticks
    for n in range(100):
        hub.devices['board'].reading(now(), {'n': n})
        time.sleep(0.002)
    assert hub.clock.ticks <= before + 1 and not hub._pending and not hub._recent


def test_a_bad_value_costs_one_sample_of_one_sensor(hub):
    bad = [None, float('nan'), float('inf'), -1.7e308, 'bright', True, [], [[1]], {}, 10 ** 400]
    with page(hub) as viewer, phone(hub) as device:
        for number, value in enumerate(bad):
            device.say(t=now(), s={'light': value, 'accel': [number, 0, 0]})
            assert viewer.hear('s')['s'] == {'accel': [number, 0, 0]}
        assert hub.devices['pixel'].errors['light'][1] == len(bad)
        device.say(t=now(), s={'light': 5})
        assert viewer.hear('s')['s'] == {'light': 5}
        assert not hub.devices['pixel'].errors


def test_a_bad_value_is_named_with_its_sensor(hub):
    with page(hub) as viewer, phone(hub) as device:
        device.say(t=now(), s={'light': None})
        assert viewer.hear('error') == {'device': 'pixel', 'sensor': 'light', 'text': 'null is no number', 'count': 1}


@pytest.mark.parametrize('bad', [
    {'t': 'now', 's': {'light': 1}}, {'s': {'light': 1}}, {'t': float('nan'), 's': {'light': 1}},
    {'t': 1e300, 's': {'light': 1}}, {'t': 1, 's': {}}, {'t': 1, 's': [1]}])
def test_a_reading_without_time_or_sensors_costs_itself(hub, bad):
    with page(hub) as viewer, phone(hub) as device:
        device.say(**bad)
        assert 'reading' in viewer.hear('error')['text']
        device.say(t=now(), s={'light': 2})
        assert viewer.hear('s')['s'] == {'light': 2}


def test_what_is_not_known_is_ignored(hub):
    with page(hub) as viewer, phone(hub, colour='blue') as device:
        device.say({'wish': 1}, {'dropped': 3}, {'error': 4}, {'time': 'x'}, {'time': [1, 2]}, {'bye2': 1}, {})
        device.say(t=now(), s={'light': 1}, n=12, mood='good')
        assert viewer.hear('s')['s'] == {'light': 1}


@pytest.mark.parametrize('code, message', [
    (1007, '{"no json'), (1007, b'{"hello": 1}'), (1007, '[1, 2]'), (1008, '{"t": 1, "s": {"light": 1}}'),
    (1008, '{"hello": null}'), (1008, '{"hello": {"source": "x"}}')])
def test_what_is_no_message_ends_that_connection_only(hub, capsys, code, message):
    with page(hub) as viewer, phone(hub, device='good') as good, Peer(hub, '/push') as bad:
        bad.ws.send(message)
        ended, reason = bad.end()
        assert ended == code and reason
        good.say(t=now(), s={'light': 7})
        assert viewer.hear('s')['s'] == {'light': 7}
    assert capsys.readouterr().err.startswith('a push from 127.0.0.1 was refused: %s' % reason[:20])


def test_names_are_cut_and_not_refused(hub):
    names = ['加' * 500, '<script>alert(1)</script>' * 10, 'a\u202eb\x1b[2J', '\ud800', '"]}']
    with page(hub) as viewer:
        for number, name in enumerate(names):
            with phone(hub, device=name, sensors={name: {'unit': name, 'axes': [name]}}) as device:
                device.say(t=now(), s={name: number})
                reading = viewer.hear('s')
                (sensor, value), = reading['s'].items()
                assert value == number and len(sensor) <= hubs.MAX_NAME and sensor.replace('\u200d', '').isprintable()
                assert reading['d'] in hub.devices


def test_devices_of_one_name_are_two(hub):
    with page(hub) as viewer, phone(hub), phone(hub) as two:
        assert viewer.hear('hello')['device'] == 'pixel' and viewer.hear('hello')['device'] == 'pixel 2'
        two.say(d='pixel', t=now(), s={'light': 2})
        assert viewer.hear('s')['d'] == 'pixel 2'


def test_a_device_that_comes_back_by_its_id_is_the_same(hub):
    with page(hub) as viewer, phone(hub, id='my secret') as lost, phone(hub, id='my secret') as back:
        assert viewer.hear('hello')['id'] == viewer.hear('hello')['id'] != 'my secret'
        assert list(hub.devices) == ['pixel']
        assert lost.end()[0] == 1006
        back.say(t=now(), s={'light': 2})
        viewer.hear('s')
        assert hub.devices['pixel'].state == 'live'
        back.ws.sock.shutdown(socket.SHUT_RDWR)
        viewer.hear('state', lambda said: said['state'] == 'lost')
        with phone(hub, id='my secret'):
            assert viewer.hear('hello')['state'] == 'silent'      # it is there, and has not measured anything yet


def test_the_secret_of_a_device_is_told_to_nobody(hub):
    with page(hub) as viewer, phone(hub, id='my secret') as device:
        device.say(t=now(), s={'light': 2})
        viewer.hear('s')
        with page(hub) as late:
            assert 'my secret' not in json.dumps(late.story)


def test_leaving_is_not_being_lost(hub):
    with page(hub) as viewer:
        for how, state in (('bye', 'left'), ('close', 'left'), ('cut', 'lost')):
            device = phone(hub, device=how)
            if how == 'bye':
                device.say(bye={'text': 'the battery is empty'})
            elif how == 'close':
                device.ws.close()
            else:
                device.ws.sock.shutdown(socket.SHUT_RDWR)
            told = viewer.hear('state', lambda said: said['device'] == how)
            assert told['state'] == state and abs(told['since'] - now()) < 10
            device.ws.close()
            assert hub.devices[how].state == state
            if how == 'bye':
                assert hub.devices[how].errors[''][0] == 'the battery is empty'


def test_a_device_that_says_nothing_is_silent_and_one_that_left_is_forgotten(hub, monkeypatch):
    device = hub.add('board', 'test', 0.1)
    device.reading(now(), {'n': 1})
    assert device.state == 'live'
    assert not device.look_at(time.monotonic() + 29) and device.state == 'live'      # it is slow, not silent
    assert not device.look_at(time.monotonic() + 31) and device.state == 'silent'
    with page(hub) as viewer, phone(hub) as gone:
        gone.ws.close()
        viewer.hear('state', lambda said: said['state'] == 'left')
        monkeypatch.setattr(hubs, 'FORGET', 0)
        assert viewer.hear('gone') == {'device': 'pixel'}
        assert list(hub.devices) == ['board']


def test_a_device_tells_what_it_could_not_send(hub):
    with page(hub) as viewer, phone(hub) as device:
        device.say(dropped={'sensors': {'light': 3, 'never heard of': 1, 'accel': 'x'}})
        assert viewer.hear('dropped') == {'device': 'pixel', 'where': 'device', 'sensors': {'light': 3}}


##############################################################################
# Pages
##############################################################################

def test_a_page_asks_for_the_time(hub):
    with page(hub) as viewer:
        viewer.say(time=17.5)
        sent, theirs = viewer.hear('time')
    assert sent == 17.5 and abs(theirs / 1000 - now()) < 10


def test_a_marker_reaches_every_page_and_who_joins(hub):
    with page(hub) as one, page(hub) as two:
        one.say(marker={'text': 'second run\n<b>'})
        marker = two.hear('marker')
        assert marker['text'] == 'second run <b>' and abs(marker['t'] - now()) < 10 and marker['by'] == '127.0.0.1'
        assert one.hear('marker') == marker
        with page(hub) as late:
            assert {'marker': marker} in late.story
        for _ in range(5):
            one.say(marker={})
        assert one.hear('refused')['command'] == 'marker'


def test_whoever_sits_at_the_server_may_remove_a_device(hub):
    with page(hub) as viewer, phone(hub) as device:
        viewer.say(remove={'device': 'no such thing'})
        assert viewer.hear('refused')['text'] == 'there is no such device'
        viewer.say(remove={'device': 'pixel'})
        assert viewer.hear('gone') == {'device': 'pixel'} and not hub.devices
        code, reason = device.end()
        assert code == 1008 and 'removed' in reason


def test_another_may_remove_only_what_it_pushes(hub):
    hub.rights = lambda request, address: {'push': True, 'remove': False}
    with page(hub) as viewer, phone(hub, id='secret'), phone(hub, device='other', id='else'):
        for identity in ({}, {'id': 'guess'}, {'id': 'else'}, {'id': 3}):
            viewer.say(remove=dict({'device': 'pixel'}, **identity))
            assert 'only' in viewer.hear('refused')['text']
        viewer.say(remove={'device': 'pixel', 'id': 'secret'})
        assert viewer.hear('gone') == {'device': 'pixel'}


def test_a_source_of_our_own_that_is_removed_ends(hub):
    device = hub.add('simulated phone', 'simulated', 10)
    ended = threading.Event()
    device.on_removed = ended.set
    device.reading(now(), {'n': 0})
    assert hub.stored > 0
    with page(hub) as viewer:
        viewer.say(remove={'device': 'simulated phone'})
        viewer.hear('gone')
    assert ended.wait(DEADLINE)
    device.reading(now(), {'n': 1})
    device.sensors({'n': Sensor('', ())})
    assert hub.stored == 0 and not hub.devices


def test_only_loopback_sits_at_the_server(hub):
    asked = minws.Request('GET', '/ws', [('Host', 'localhost')])
    forwarded = minws.Request('GET', '/ws', [('Host', 'localhost'), ('X-Forwarded-For', '10.0.0.1')])
    assert hub.site.rights(asked, ('127.0.0.1', 5))['remove'] and hub.site.rights(asked, ('::1', 5))['remove']
    assert not hub.site.rights(asked, ('192.168.1.5', 5))['remove']
    assert not hub.site.rights(forwarded, ('127.0.0.1', 5))['remove']


def test_what_a_page_says_is_answered_in_a_sentence(hub):
    with page(hub) as viewer:
        viewer.say(launch=1)
        assert viewer.hear('refused') == {'command': 'launch', 'text': 'this server does not know that command'}
        for bad in ({'remove': 3}, {'marker': 4}, {'time': 'x'}, {}):
            viewer.say(**bad)
        assert viewer.hear('refused')['command'] == 'remove'


def test_a_page_that_talks_too_much_is_ended(hub):
    with page(hub) as viewer:
        with contextlib.suppress(minws.ConnectionClosed):
            for _ in range(200):
                viewer.say(time=1)
        assert viewer.end()[0] == 1008


def test_the_end_of_the_server_is_said(hub):
    with page(hub) as viewer:
        hub.stop('Ctrl-C was pressed')
        assert viewer.hear('stopping') == {'text': 'Ctrl-C was pressed'}
        assert viewer.end() == (1001, 'Ctrl-C was pressed')


##############################################################################
# Slow pages
##############################################################################

class RawPage:
    """A page on a bare socket: nobody reads, and no ping is answered, but in next()."""

    def __init__(self, hub, buffer=None):
        self.sock = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(('127.0.0.1', hub.port))
        self.sock.sendall(b'GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                          b'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n')
        self.file = self.sock.makefile('rb')
        while self.file.readline().strip():
            pass
        self.waiting = []

    def _frame(self):
        """Return (opcode, payload) of a frame of the server: never masked, never a fragment."""
        first, length = self.file.read(2)
        if length == 126:
            length = int.from_bytes(self.file.read(2), 'big')
        elif length == 127:
            length = int.from_bytes(self.file.read(8), 'big')
        return first & 15, self.file.read(length)

    def next(self):
        while not self.waiting:
            opcode, payload = self._frame()
            if opcode == 9:
                self.sock.sendall(bytes([0x8a, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
            elif opcode == 1:
                value = json.loads(payload.decode())
                self.waiting = value if isinstance(value, list) else [value]
        return self.waiting.pop(0)

    def __enter__(self):
        while 'ready' not in self.next():
            pass
        return self

    def __exit__(self, *exception):
        self.file.close()
        self.sock.close()


def received_and_dropped(viewer, last):
    """Return ({sensor: readings}, {sensor: dropped}) of what a page hears until a reading whose n is `last`."""
    got, dropped = collections.Counter(), collections.Counter()
    while True:
        message = viewer.next()
        if 's' in message:
            got.update(message['s'].keys())
            if message['s'].get('n') == last:
                return got, dropped
        elif 'dropped' in message and message['dropped']['where'] == 'page':
            dropped.update(message['dropped']['sensors'])


def test_a_slow_page_is_told_how_many_readings_it_missed(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'PATIENCE', 0.1)
    monkeypatch.setattr(hubs, 'PING_PERIOD', 0.05)
    monkeypatch.setattr(hubs, 'WINDOW', 1 << 14)
    device = hub.add('board', 'test', 1000)
    padding = list(range(100000, 100016))
    with RawPage(hub) as slow:
        connection, = hub.pages
        for n in range(3000):             # nobody reads meanwhile
            device.reading(now(), {'n': n, 'padding': padding})
            if n == 1500:
                device.reading(now(), {'seldom': 1})
            if n % 30 == 0:
                time.sleep(0.01)
        wait_until(lambda: not connection.live, 'that it is behind')
        device.reading(now(), {'n': 3000})
        got, dropped = received_and_dropped(slow, 3000)
        assert dropped['n'] > 1000 and got['n'] + dropped['n'] == 3001
        assert got['padding'] + dropped['padding'] == 3000
        assert got['seldom'] == 1         # it is the newest of its kind, and so not lost
        # now that it reads again it gets everything
        wait_until(lambda: read_one_more(hub, slow, device) and connection.live, 'that it keeps up again')
        for n in range(4000, 4100):
            device.reading(now(), {'n': n})
        got, dropped = received_and_dropped(slow, 4099)
        assert got['n'] == 100 and not dropped


def read_one_more(hub, slow, device):
    number = hub.number + 10 ** 6
    device.reading(now(), {'n': number})
    return received_and_dropped(slow, number)


def test_a_page_whose_history_takes_long_loses_nothing_of_what_comes_meanwhile(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'WINDOW', 1 << 14)
    device = hub.add('board', 'test', 1000)
    padding = list(range(100000, 100016))
    for n in range(1000):
        device.reading(now(), {'n': n, 'padding': padding})
    joining = RawPage(hub)                # it has not read anything yet
    wait_until(lambda: hub.pages, 'the page')
    for n in range(1000, 2000):
        device.reading(now(), {'n': n, 'padding': padding})
        if n % 30 == 0:
            time.sleep(0.01)
    heard, ready = [], False
    while not heard or heard[-1] != 1999:
        message = joining.next()
        assert 'dropped' not in message
        ready = ready or 'ready' in message
        if 'history' in message:
            heard += [reading['s']['n'] for reading in message['history']['readings']]
        elif 's' in message and ready:
            heard.append(message['s']['n'])
    joining.__exit__()
    assert heard == list(range(2000))


def test_a_page_that_never_reads_costs_little_and_harms_nobody(hub):
    device = hub.add('board', 'test', 1000)
    text = {'s%d' % n: list(range(16)) for n in range(30)}
    with page(hub) as quick, RawPage(hub, buffer=4096):
        stuck = next(page for page in hub.pages if page.peer_address[1] != quick.ws.local_address[1])
        for n in range(2000):
            device.reading(now(), dict(text, n=n))
            if n % 20 == 0:
                quick.hear('s', lambda samples: samples['n'] == n)
        assert stuck.buffered_amount <= 2 * hubs.WINDOW and hub._recent_size <= hubs.RECENT_BYTES


def test_a_digest_keeps_the_newest_of_each_key_and_counts_the_rest():
    digest = Digest()
    digest.add([(('reading', 'a', ('x', 'y')), '{"x":1}'), (('reading', 'a', ('x',)), '{"x":2}'),
                (('state', 'a'), '{"s":1}')])
    digest.add([(('reading', 'a', ('x', 'y')), '{"x":3}'), (('state', 'a'), '{"s":2}')])
    assert json.loads(digest.message()) == [{'dropped': {'device': 'a', 'where': 'page', 'sensors': {'x': 1, 'y': 1}}},
                                            {'x': 2}, {'x': 3}, {'s': 2}]


##############################################################################
# Hostile neighbours
##############################################################################

def test_sensors_of_a_device_are_bounded_and_said(hub):
    with page(hub) as viewer, phone(hub) as device:
        for n in range(100):
            device.say(t=now(), s={'new %d' % n: n})
        notice = viewer.hear('notice')
        assert notice['key'] == 'sensors' and notice['device'] == 'pixel' and 'more than 64' in notice['text']
        device.say(t=now(), s={'light': 5})
        viewer.hear('s', lambda samples: samples == {'light': 5})
        for n in range(100):
            device.say(hello(sensors={'newer %d' % n: {}}))
        device.say(time=3)
        device.hear('time')
    assert len(hub.devices['pixel'].counts) == hubs.MAX_SENSORS and not hub.devices['pixel'].described


def test_sensors_in_ever_new_combinations_are_still_relayed(hub):
    with page(hub) as viewer, phone(hub) as device:
        for n in range(40):
            device.say(t=now(), s={'a%d' % n: 1, 'b': n})
            viewer.hear('s', lambda samples: samples.get('b') == n)
        assert len(hub.devices['pixel'].series) <= hubs.MAX_KEYS + hubs.MAX_SENSORS


def test_devices_of_an_address_are_bounded_and_make_room_for_those_that_left(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'DEVICES_OF_ADDRESS', 3)
    with contextlib.ExitStack() as stack:
        phones = [stack.enter_context(phone(hub, device='phone %d' % n)) for n in range(3)]
        with Peer(hub, '/push') as fourth:
            fourth.say(hello(device='fourth'))
            code, reason = fourth.end()
            assert code == 1008 and 'there are 3 devices already' in reason
        phones[1].ws.close()
        wait_until(lambda: hub.devices['phone 1'].state == 'left')
        stack.enter_context(phone(hub, device='fourth'))
        assert sorted(hub.devices) == ['fourth', 'phone 0', 'phone 2']


def test_devices_are_bounded_with_a_sentence_on_the_page(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'MAX_DEVICES', 2)
    with page(hub) as viewer, phone(hub) as one, phone(hub), Peer(hub, '/push') as last:
        last.say(hello(device='last'))
        assert last.end()[0] == 1008
        assert 'there are 2 devices already' in viewer.hear('notice')['text']
        one.ws.close()
        with phone(hub, device='last'):
            assert viewer.hear('notice') == {'key': 'devices', 'text': None}


def test_new_devices_come_at_a_bounded_rate(hub, monkeypatch):
    refusals = 0
    for n in range(40):
        with Peer(hub, '/push') as device:
            device.say(hello(device='new %d' % n))
            device.say(time=1)
            try:
                device.hear('time')
            except minws.ConnectionClosed:
                refusals += 1
    assert refusals >= 40 - hubs.DEVICES_OF_ADDRESS - 10 and len(hub.devices) <= hubs.DEVICES_OF_ADDRESS


def test_connections_of_an_address_are_bounded(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'PAGES_OF_ADDRESS', 3)
    with contextlib.ExitStack() as stack:
        for path in ('/ws', '/push'):
            peers = [stack.enter_context(Peer(hub, path)) for _ in range(3)]
            code, reason = stack.enter_context(Peer(hub, path)).end()
            assert code == 1008 and reason == 'there are 3 connections from your address already'
            peers[0].ws.close()
            visitor = hub.visitor('127.0.0.1')
            wait_until(lambda: (visitor.pages if path == '/ws' else visitor.phones) == 2)
            stack.enter_context(page(hub) if path == '/ws' else phone(hub))


def test_messages_beyond_the_bound_are_left_out_and_counted(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'MESSAGES', 100)
    monkeypatch.setattr(hubs, 'FLOOD', 1000)
    with page(hub) as viewer, phone(hub) as device:
        for n in range(1000):
            device.say(t=now(), s={'n': n})
        dropped = viewer.hear('dropped')
        assert dropped['device'] == 'pixel' and dropped['where'] == 'server'
        assert 'more than 100 messages' in viewer.hear('notice')['text']
        visitor = hub.visitor('127.0.0.1')
        wait_until(lambda: hub.devices['pixel'].counts['n'] + visitor.refused == 1000)
        assert hub.devices['pixel'].counts['n'] < 500 and dropped['messages'] <= visitor.refused


def test_a_flood_ends_its_connection(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'MESSAGES', 50)
    with phone(hub) as device:
        with contextlib.suppress(minws.ConnectionClosed):
            for n in range(5000):
                device.say(t=now(), s={'n': n})
        code, reason = device.end()
        assert code == 1008 and 'more than 200 messages' in reason


def test_a_device_that_repeats_its_hello_costs_no_page(hub):
    with page(hub) as viewer, phone(hub) as device:
        began = time.monotonic()
        for n in range(500):
            device.say(hello(rate=1 + n % 2))
        device.say(t=now(), s={'light': 4})
        heard = viewer.hear_until('s')
        took = time.monotonic() - began
    assert len([message for message in heard if 'hello' in message]) <= 2 + took / hubs.TELLING


def test_a_device_that_comes_and_goes_costs_no_page(hub):
    with page(hub) as viewer, phone(hub) as device:
        before = hub.number
        device.say(*[message for n in range(500) for message in ({'t': now(), 's': {'n': n}}, {'bye': {}})])
        device.say(t=now(), s={'n': 500})
        heard = viewer.hear_until('s')
        while heard[-1].get('s') != {'n': 500}:
            heard += viewer.hear_until('s')
        batches = hub.number - before
    assert len([message for message in heard if 'state' in message]) <= batches
    assert len([message for message in heard if 's' in message]) == 501


def test_what_visitors_are_remembered_is_bounded(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'MAX_ADDRESSES', 100)
    for n in range(1000):
        hub.visitor('10.0.%d.%d' % (n // 250, n % 250))
    assert len(hub.visitors) == 100


def resident(pid='self'):
    """Return the bytes of memory of a process."""
    with open('/proc/%s/statm' % pid) as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


SERVER = '''
from examples.sensors import hub as hubs
from examples.sensors.web import listen
hubs.PAGES_OF_ADDRESS = 300
hub = hubs.Hub()
server = listen(hub, "127.0.0.1", 0)
print(server.port, flush=True)
server.serve_forever()
'''


@contextlib.contextmanager
def server_process():
    """Run a hub in a process of its own; the value has its `port` and `pid`."""
    process = subprocess.Popen([sys.executable, '-c', SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               cwd=ROOT)
    try:
        process.port = int(process.stdout.readline())
        yield process
    finally:
        process.terminate()
        process.wait(DEADLINE)
        process.stdout.close()


def attack(port, seconds, number, length):
    """Say ever new names as fast as the server takes them, `length` messages on each connection."""
    count, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(minws.ConnectionClosed, minws.HandshakeError, OSError):
            with minws.connect('ws://127.0.0.1:%d/push' % port, close_timeout=1) as ws:
                count += 1
                ws.send(json.dumps(hello(device='%d %d' % (number, count), sensors={})))
                for _ in range(length):
                    count += 1
                    name = '%d %d %s' % (number, count, 'x' * 100)
                    ws.send(json.dumps({'t': time.time(), 's': {name: [-1.7e308, 0], name + 'y': count}}))
                    if time.monotonic() > until:
                        break
    return count


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='reads /proc, which is Linux')
def test_ever_new_names_cost_no_memory():
    with server_process() as server, contextlib.closing(minws.connect('ws://127.0.0.1:%d/ws' % server.port)) as viewer:
        attack(server.port, 2, 0, 100)
        before, heard, deadline = resident(server.pid), 0, time.monotonic() + 20
        attackers = [threading.Thread(target=attack, args=(server.port, 20, *which))
                     for which in ((1, 1), (2, 500), (3, 10 ** 9))]
        for attacker in attackers:
            attacker.start()
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                heard += len(viewer.recv(timeout=0.5))
        for attacker in attackers:
            attacker.join()
        grown = resident(server.pid) - before
    print('\n20 s of ever new names: %.1f MB more, a page was sent %.1f MB' % (grown / 1e6, heard / 1e6))
    assert grown < 20e6


##############################################################################
# Load
##############################################################################

def processor_seconds(pid):
    with open('/proc/%d/stat' % pid) as file:
        words = file.read().rpartition(')')[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf('SC_CLK_TCK')


VIEWERS = '''
import json, sys, time
import minws

port, count = int(sys.argv[1]), int(sys.argv[2])

class Viewer(minws.WebSocketClient):
    readings = dropped = messages = size = 0
    ready = False

    def handshake_ok(self):
        manager.add(self)

    def received_message(self, message):
        data = message.data
        if not self.ready:
            self.ready = b'"ready"' in data
            return
        self.messages += 1
        self.size += len(data)
        self.readings += data.count(b'"s":{')
        if b'"where":"page"' in data:
            for told in json.loads(data.decode()):
                if "dropped" in told:
                    self.dropped += max(told["dropped"]["sensors"].values())

manager = minws.WebSocketManager()
manager.start()
viewers = []
for _ in range(count):
    viewer = Viewer("ws://127.0.0.1:%d/ws" % port)
    viewer.connect()
    viewers.append(viewer)
deadline = time.monotonic() + 20
while time.monotonic() < deadline and not all(viewer.ready for viewer in viewers):
    time.sleep(0.05)
print("ready" if all(viewer.ready for viewer in viewers) else "not ready", flush=True)
wanted = int(sys.stdin.readline())
deadline = time.monotonic() + 10
while time.monotonic() < deadline and not all(viewer.readings + viewer.dropped >= wanted for viewer in viewers):
    time.sleep(0.05)
print(json.dumps([[viewer.readings, viewer.dropped, viewer.messages, viewer.size] for viewer in viewers]), flush=True)
'''


def push_for(ws, device, seconds):
    """Send twelve sensors a hundred times a second; return how many readings."""
    count, began = 0, time.monotonic()
    names = ['accel'] + ['sensor %d' % n for n in range(11)]
    while count < 100 * seconds:
        reading = {name: [0.1 * count, -9.81, 1e-3 * count] for name in names}
        ws.send(json.dumps({'t': time.time(), 's': reading}))
        count += 1
        time.sleep(max(0.0, began + count * 0.01 - time.monotonic()))
    return count


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='reads /proc, which is Linux')
def test_two_hundred_pages_of_three_phones_stay_within_one_core():
    seconds, pages = 20, 200
    with server_process() as server:
        phones = [minws.connect('ws://127.0.0.1:%d/push' % server.port) for _ in range(3)]
        for number, ws in enumerate(phones):
            ws.send(json.dumps(hello(device='phone %d' % number, rate=100)))
        watching = subprocess.Popen([sys.executable, '-c', VIEWERS, str(server.port), str(pages)], cwd=ROOT,
                                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True)
        try:
            assert watching.stdout.readline() == 'ready\n'
            spent, began, memory = processor_seconds(server.pid), time.monotonic(), resident(server.pid)
            sent = []
            pushers = [threading.Thread(target=lambda ws=ws, n=n: sent.append(push_for(ws, n, seconds)))
                       for n, ws in enumerate(phones)]
            for pusher in pushers:
                pusher.start()
            for pusher in pushers:
                pusher.join()
            spent, took = processor_seconds(server.pid) - spent, time.monotonic() - began
            memory = resident(server.pid) - memory
            watching.stdin.write('%d\n' % sum(sent))
            watching.stdin.flush()
            results = json.loads(watching.stdout.readline())
        finally:
            watching.kill()
            watching.wait()
            watching.stdin.close()
            watching.stdout.close()
            for ws in phones:
                ws.close()
    got, dropped, messages, size = (sum(values) for values in zip(*results))
    print('\n%d pages, %d readings of 12 sensors in %.1f s: %.0f %% of a core; %.1f messages a second to a page, '
          '%.1f MB/s in all; %.3f %% dropped; %.1f MB more memory' % (
              pages, sum(sent), took, 100 * spent / took, messages / pages / took, size / took / 1e6,
              100 * dropped / (got + dropped), memory / 1e6))
    assert all(readings + missed == sum(sent) for readings, missed, _, _ in results)
    assert all(count <= 62 * took for _, _, count, _ in results)
    assert spent < took and dropped < 0.01 * got


##############################################################################
# Over HTTP
##############################################################################

def test_the_page_comes_compressed(hub):
    status, headers, body = request(hub, 'GET', '/', [('Accept-Encoding', 'br, gzip')])
    with open(web.PAGE, 'rb') as file:
        text = file.read()
    assert status == 200 and headers['Content-Encoding'] == 'gzip' and gzip.decompress(body) == text
    assert len(body) < len(text) / 2 and headers['Content-Type'] == 'text/html; charset=utf-8'
    assert headers['Vary'] == 'Accept-Encoding'
    for refusing in ([], [('Accept-Encoding', 'gzip;q=0')], [('Accept-Encoding', 'deflate')]):
        status, plain_headers, body = request(hub, 'GET', '/', refusing)
        assert status == 200 and body == text and 'Content-Encoding' not in plain_headers
    status, _, body = request(hub, 'GET', '/', [('If-None-Match', headers['ETag'])])
    assert (status, body) == (304, b'')


def test_the_files_for_a_phone_are_handed_out(hub):
    for name in ('minws.py', 'droid_sensor.py'):
        with open(web.FILES[name], 'rb') as file:
            assert request(hub, 'GET', '/' + name)[2] == file.read()
    assert request(hub, 'GET', '/hub.py')[0] == 404


def test_a_name_that_is_not_ours_is_told_the_flag():
    with serving() as hub:
        hub.site.hosts = ['phones.example.com']
        names = [('phones.example.com:9000', 200), ('127.0.0.1', 200), ('pi.local', 200), ('evil.com', 421)]
        for host, status in names:
            answered, _, body = request(hub, 'GET', '/', [('Host', host)])
            assert answered == status
            assert status == 200 or b'--allow-host' in body


def test_a_foreign_page_is_refused(hub):
    with pytest.raises(minws.HandshakeError):
        minws.connect('ws://127.0.0.1:%d/ws' % hub.port, origin='https://evil.com')
    body = json.dumps([hello()]).encode()
    assert request(hub, 'POST', '/push', [('Origin', 'https://evil.com')], body)[0] == 403
    assert not hub.devices


def test_a_device_without_a_socket_posts(hub, monkeypatch):
    with page(hub) as viewer:
        status, answer = post(hub, hello(id='phone'), {'t': now(), 's': {'light': 1}}, {'t': now(), 's': {'light': 2}})
        assert status == 200 and answer['device'] == 'pixel' and answer['taken'] == 2
        assert abs(answer['time'] / 1000 - now()) < 10
        assert [viewer.hear('s')['s']['light'] for _ in range(2)] == [1, 2]
        assert post(hub, hello(id='phone'), {'t': now(), 's': {'light': 3}})[1]['device'] == 'pixel'
        assert viewer.hear('s')['s'] == {'light': 3} and list(hub.devices) == ['pixel']
        monkeypatch.setattr(hubs, 'POST_PATIENCE', 0)
        assert viewer.hear('state', lambda said: said['state'] == 'lost')


@pytest.mark.parametrize('status, messages', [
    (400, [{'t': 1, 's': {'light': 1}, 'hello': 3}]), (400, [hello(device=None)]), (400, [3]), (200, [])])
def test_a_bad_post_is_answered_with_a_sentence(hub, status, messages):
    answered, answer = post(hub, *messages)
    assert answered == status and (status == 200 or answer['refused']['text'])


def test_commands_come_by_post_too(hub):
    with page(hub) as viewer, phone(hub, id='secret'):
        assert post(hub, {'marker': {'text': 'here'}}) == (200, {})
        assert viewer.hear('marker')['text'] == 'here'
        assert post(hub, {'remove': {'device': 'nobody'}})[1]['refused']['command'] == 'remove'
        assert post(hub, {'remove': {'device': 'pixel', 'id': 'secret'}}) == (200, {})
        assert viewer.hear('gone') == {'device': 'pixel'}


def events(hub, last=None):
    """Return (the messages, the last id) of GET /events."""
    headers = [('Last-Event-ID', last)] if last else []
    status, headers, body = request(hub, 'GET', '/events', headers)
    assert status == 200 and headers['Content-Type'] == 'text/event-stream'
    text, messages = body.decode(), []
    assert text.startswith('retry: ') and text.endswith('\n\n')
    for event in text.split('\n\n'):
        lines = [line.partition(': ') for line in event.split('\n')]
        data = '\n'.join(value for field, _, value in lines if field == 'data')
        value = json.loads(data) if data else []
        messages += value if isinstance(value, list) else [value]
    return messages, re.findall('^id: (.*)$', text, re.M)[-1]


def test_a_page_without_a_socket_hears_all_of_it_once(hub):
    device = hub.add('board', 'test', 10)
    for n in range(300):
        device.reading(now(), {'n': n})
    messages, last = events(hub)
    assert 'info' in messages[0] and 'ready' in messages[-1]
    heard = [reading['s']['n'] for message in messages if 'history' in message
             for reading in message['history']['readings']]
    for n in range(300, 900):
        device.reading(now(), {'n': n})
        if n % 150 == 0:
            messages, last = events(hub, last)
            heard += [message['s']['n'] for message in messages if 's' in message]
    heard += [message['s']['n'] for message in events(hub, last)[0] if 's' in message]
    assert heard == list(range(900))
    assert [list(message) for message in events(hub, events(hub, last)[1])[0]] == [['time']]
    assert 'info' in events(hub, 'other-3')[0][0]


def test_a_page_without_a_socket_that_is_slow_is_told_what_it_missed(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'WINDOW', 1000)
    device = hub.add('board', 'test', 10)
    _, last = events(hub)
    for n in range(500):
        device.reading(now(), {'n': n})
    messages, _ = events(hub, last)
    assert {'dropped': {'device': 'board', 'where': 'page', 'sensors': {'n': 499}}} in messages
    assert messages[-1]['s'] == {'n': 499}


##############################################################################
# The password
##############################################################################

PASSWORD = 'correct horse & battery'


@pytest.fixture
def guarded():
    with serving(password=PASSWORD) as hub:
        yield hub


def cookie_of(hub, path=None):
    """Return (Cookie header, attributes) of the redirect that the address in the QR code is answered with."""
    status, headers, body = request(hub, 'GET', path or '/?password=' + web.quoted(PASSWORD))
    assert status == 303 and headers['Location'] == '/' and PASSWORD.encode() not in body
    pair, _, attributes = headers['Set-Cookie'].partition('; ')
    return ('Cookie', pair), attributes.split('; ')


def test_the_password_becomes_a_cookie(guarded):
    status, _, body = request(guarded, 'GET', '/')
    assert status == 401 and b'<form method="post" action="/login">' in body and b'canvas' not in body
    cookie, attributes = cookie_of(guarded)
    assert {'HttpOnly', 'SameSite=Strict', 'Path=/'} <= set(attributes) and 'Secure' not in attributes
    assert PASSWORD not in cookie[1]
    assert request(guarded, 'GET', '/', [cookie])[0] == 200
    assert request(guarded, 'GET', '/', [('Cookie', cookie[1][:-1] + 'x')])[0] == 401
    with page(guarded, headers=[cookie]) as viewer:
        assert viewer.story[0]['info']['may']['push']


def test_the_form_makes_the_same_cookie(guarded):
    fields = ('password=' + web.quoted(PASSWORD)).encode()
    status, headers, _ = request(guarded, 'POST', '/login', [], fields)
    assert status == 303 and headers['Set-Cookie'].partition(';')[0] == cookie_of(guarded)[0][1]
    assert request(guarded, 'POST', '/login', [], b'password=wrong')[0] == 401
    assert request(guarded, 'POST', '/login', [], b'')[0] == 401


@pytest.mark.parametrize('path', ['/ws', '/push'])
def test_a_socket_without_the_password_is_closed_with_the_reason(guarded, path):
    with Peer(guarded, path) as peer:
        code, reason = peer.end()
    assert code == 1008 and reason.startswith('a password is needed')
    with Peer(guarded, path + '?password=wrong') as peer:
        assert peer.end() == (1008, 'the password is wrong')
    assert not guarded.pages and not guarded.devices


@pytest.mark.parametrize('how', ['query', 'header', 'cookie'])
def test_a_device_gives_the_password(guarded, how):
    path = '/push' + ('?password=' + web.quoted(PASSWORD) if how == 'query' else '')
    headers = {'query': [], 'header': [('Authorization', 'Bearer ' + PASSWORD)], 'cookie': [cookie_of(guarded)[0]]}[how]
    with Peer(guarded, path, headers=headers) as device:
        device.say(hello(), {'t': now(), 's': {'light': 1}})
        wait_until(lambda: 'pixel' in guarded.devices)
    assert post(guarded, hello(device='other'), path=path, headers=headers)[0] == 200
    assert post(guarded, hello(device='third'))[0] == 401 and 'third' not in guarded.devices


@pytest.mark.parametrize('protect, page_status, push_status', [
    ('push', 200, 401), ('page', 401, 200), ('both', 401, 401)])
def test_a_password_protects_what_it_is_for(protect, page_status, push_status):
    with serving(password=PASSWORD, protect=protect) as hub:
        assert request(hub, 'GET', '/')[0] == page_status
        assert request(hub, 'GET', '/events')[0] == page_status
        assert post(hub, hello())[0] == push_status
        if protect == 'push':
            with page(hub) as viewer:
                assert viewer.story[0]['info']['may'] == {'push': False, 'password': False, 'remove': True}


def test_wrong_passwords_cost_that_address_time_and_nobody_else(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(web.time, 'monotonic', lambda: clock[0])
    guard = Guard(PASSWORD)
    wrong = minws.Request('GET', '/?password=wrong')
    right = minws.Request('GET', '/?password=' + web.quoted(PASSWORD))
    known = minws.Request('GET', '/', [('Cookie', guard.set_cookie().partition(';')[0])])
    for _ in range(5):
        assert guard.allows('page', wrong, '10.0.0.1') == 'the password is wrong'
    for request in (wrong, right):
        assert guard.allows('page', request, '10.0.0.1').startswith('too many wrong passwords')
    assert guard.allows('page', known, '10.0.0.1') == ''          # whoever was in stays in
    assert guard.allows('page', right, '10.0.0.2') == ''
    waits = []
    for _ in range(10):
        clock[0] += 61
        assert guard.allows('page', wrong, '10.0.0.1') == 'the password is wrong'
        waits.append(guard.wrong['10.0.0.1'][1] - clock[0])
    assert waits[:5] == [2, 4, 8, 16, 32] and waits[-1] == 60
    clock[0] += 61
    assert guard.allows('page', right, '10.0.0.1') == '' and not guard.wrong


def test_a_guard_remembers_a_bounded_number_of_addresses(monkeypatch):
    monkeypatch.setattr(hubs, 'MAX_ADDRESSES', 10)
    guard = Guard(PASSWORD)
    for n in range(100):
        guard.allows('page', minws.Request('GET', '/?password=x'), '10.0.0.%d' % n)
    assert len(guard.wrong) == 10


def test_without_a_password_the_address_with_one_works(hub):
    assert request(hub, 'GET', '/?password=old')[0] == 303


##############################################################################
# Devices that speak in another way
##############################################################################

@pytest.mark.parametrize('text, sensors', [
    ('temp:21.5§°C', {'temp': 21.5}),
    ('temp,hum\n21.5,40', {'temp': 21.5, 'hum': 40}),
    ('{"temp": 21.5, "accel": [0, 1, 9.8]}', {'temp': 21.5, 'accel': [0, 1, 9.8]}),
    ('{"error": 3, "time": 5}', {'error': 3}),
    ('{"type": "android.sensor.light", "values": [310], "timestamp": 5}', {'light': 310})])
def test_lines_over_the_socket_become_readings_of_their_address(hub, text, sensors):
    with page(hub) as viewer, Peer(hub, '/push') as board:
        board.ws.send(text)
        heard = {}
        while heard != sensors:
            reading = viewer.hear('s')
            assert reading['d'] == '127.0.0.1' and abs(reading['t'] - now()) < DEADLINE
            heard.update(reading['s'])


def test_a_header_holds_for_the_lines_that_follow_in_other_messages(hub):
    with page(hub) as viewer, Peer(hub, '/push') as board:
        for line in ('booting, please wait', 'temp [°C],hum [%]', '21.5,40'):
            board.ws.send(line)
        assert viewer.hear('hello', lambda hello: 'hum' in hello['sensors'])['sensors'] == {
            'temp': {'unit': '°C', 'axes': []}, 'hum': {'unit': '%', 'axes': []}}
        assert viewer.hear('s')['s'] == {'temp': 21.5, 'hum': 40}


def test_a_device_that_said_hello_may_go_on_with_lines(hub):
    with page(hub) as viewer, phone(hub, device='board', sensors={}) as board:
        board.ws.send('temp:21.5§°C')
        reading = viewer.hear('s')
        assert reading['d'] == 'board' and reading['s'] == {'temp': 21.5}


def test_two_boards_of_one_address_are_two_devices_and_come_back_as_these(hub):
    with page(hub) as viewer:
        with Peer(hub, '/push') as one, Peer(hub, '/push') as two:
            one.ws.send('n:1')
            assert viewer.hear('s')['d'] == '127.0.0.1'
            two.ws.send('n:2')
            assert viewer.hear('s')['d'] == '127.0.0.1 2'
        wait_until(lambda: not any(device.is_connected() for device in hub.devices.values()), 'the end of both')
        with Peer(hub, '/push') as one:
            one.ws.send('n:3')
            assert viewer.hear('s')['d'] == '127.0.0.1'
        assert sorted(hub.devices) == ['127.0.0.1', '127.0.0.1 2']


def test_the_id_of_a_board_that_has_none_cannot_be_guessed(hub):
    with page(hub), Peer(hub, '/push') as board:
        board.ws.send('n:1')
        wait_until(lambda: hub.devices, 'the device')
        assert len(hub.devices['127.0.0.1'].secret) == 64
        other = Hub()
        other.clock = hub.clock
        assert other.welcome_unnamed('127.0.0.1', '127.0.0.1', None).secret != hub.devices['127.0.0.1'].secret


def test_how_often_lines_come_tells_when_they_are_silent(hub):
    device = hub.add('board', 'lines', 0)
    for gap, limit in ((0, 3), (10, 30), (100, 60)):
        device.reading(now(), {'n': [1]})
        device.interval = gap
        for late, state in ((limit - 0.5, 'live'), (limit + 0.5, 'silent')):
            device.look_at(device.heard + late)
            assert device.state == state
    hub.forget(device)


def test_lines_count_as_messages(hub, monkeypatch):
    monkeypatch.setattr(hubs, 'MESSAGES', 50)
    hub.visitors.clear()
    with page(hub) as viewer, Peer(hub, '/push') as board:
        board.ws.send('n:1')
        viewer.hear('s')
        board.ws.send('n:2\n' * 1000)
        assert viewer.hear('dropped')['messages'] == 1000
        assert hub.devices['127.0.0.1'].counts == {'n': 1}


SENSOR_LOGGER = {'messageId': 1, 'sessionId': 'x', 'deviceId': 'ab-12', 'payload': [
    {'name': 'light', 'values': {'lux': 310}, 'accuracy': 3, 'time': 1700000000000000000}]}


@pytest.mark.parametrize('kind, body, device, sensors', [
    ('application/json', json.dumps(SENSOR_LOGGER), 'ab-12', {'light': 310}),
    ('application/json', '{"temp": 21.5, "device": "kitchen"}', 'kitchen', {'temp': 21.5}),
    ('text/plain', 'temp:21.5', '127.0.0.1', {'temp': 21.5}),
    ('application/x-www-form-urlencoded', 'temp=21.5&hum=40', '127.0.0.1', {'temp': 21.5, 'hum': 40})])
def test_what_apps_and_scripts_post_is_taken(hub, kind, body, device, sensors):
    with page(hub) as viewer:
        status, _, answer = request(hub, 'POST', '/push', [('Content-Type', kind)], body.encode())
        assert status == 200 and json.loads(answer.decode())['device'] == device
        reading = viewer.hear('s')
        assert reading['d'] == device and reading['s'] == sensors
        assert request(hub, 'POST', '/push', [('Content-Type', kind)], body.encode())[0] == 200
        assert viewer.hear('s')['d'] == device


def test_a_post_without_readings_is_answered_with_a_sentence(hub):
    status, _, answer = request(hub, 'POST', '/push', body=b'good morning!')
    assert status == 400 and 'good morning!' in json.loads(answer.decode())['refused']['text']


LISTEN = '/sensor/connect?type=android.sensor.light'


def test_a_program_for_a_sensorserver_phone_hears_ours(hub):
    with page(hub) as viewer, phone(hub) as device:
        device.say(t=now(), s={'light': 1, 'accel': [0, 0, 9.8]})
        viewer.hear('s')
        assert json.loads(request(hub, 'GET', '/sensors')[2].decode()) == [
            {'name': 'light', 'type': 'android.sensor.light'},
            {'name': 'accel', 'type': 'android.sensor.accelerometer'}]
        assert json.loads(request(hub, 'GET', '/wsport')[2].decode()) == {'portNo': hub.port}
        with Peer(hub, LISTEN) as script:
            wait_until(lambda: hub.station._listeners, 'the listener')
            device.say(t=now(), s={'light': 310})
            assert script.next()['values'] == [310]
        device.say(bye={})
        hub.forget(hub.devices['pixel'])
        assert request(hub, 'GET', '/sensors')[2] == b'[]'


##############################################################################
# What is recorded
##############################################################################

@contextlib.contextmanager
def recording_into(hub, path):
    """Let a hub record; the value is a function that returns what is in the recording."""
    hub.archive = Archive(Recorder(str(path)), hub.notice)
    hub.archive.start()

    def recorded():
        with contextlib.closing(recording.reader_of(str(path))) as reader:
            return [record for _, record in reader.entries()]

    try:
        yield recorded
    finally:
        hub.archive.close()


def until_acknowledged(device, number):
    assert device.hear('ack', lambda ack: ack >= number) == number


def test_readings_are_recorded_with_who_took_them(hub, tmp_path):
    with recording_into(hub, tmp_path / 'r.jsonl') as recorded, phone(hub, t=now()) as device, page(hub) as viewer:
        stamps = [round(now(), 3) - 3 + n for n in range(3)]
        for stamp in stamps:
            device.say(t=stamp, s={'light': 7, 'accel': [0, 0, float('nan')]})
        wait_until(lambda: len(recorded()) == 4, 'the readings')
        viewer.say(marker={'text': 'second run'})
        wait_until(lambda: len(recorded()) == 5, 'the marker')
        first, *readings, marker = recorded()
        assert first['hello'] == {'device': 'pixel', 'source': 'termux', 'rate': 5, 'simulated': False,
                                  'repeat': 0, 'sensors': SENSORS}
        assert readings == [{'t': stamp, 'd': 'pixel', 's': {'light': 7}} for stamp in stamps]
        assert marker['marker'] == {'text': 'second run', 'by': '127.0.0.1'}


def test_a_clock_that_is_wrong_stands_in_the_record_beside_its_time(hub, tmp_path):
    with recording_into(hub, tmp_path / 'r.jsonl') as recorded, phone(hub, t=now() + 3600) as device:
        device.say(t=now() + 3600, s={'light': 7})
        wait_until(lambda: len(recorded()) == 2, 'the record')
        reading = recorded()[1]
        assert abs(recording.moment(reading) - now()) < DEADLINE and reading['t'] > now() + 3000


SPOOL = {'ack': True, 'spool': '0123456789abcdef', 'first': 1}


def test_numbered_readings_are_recorded_once_and_acknowledged(hub, tmp_path):
    with recording_into(hub, tmp_path / 'r.jsonl') as recorded, page(hub) as viewer:
        with phone(hub, id='secret') as device:
            device.say(hello(id='secret', **SPOOL))
            until_acknowledged(device, 0)
            device.say(t=1e9, s={'light': 0})                         # shown now, comes again with a number
            assert viewer.hear('s')['s'] == {'light': 0}
            device.say({'t': 1e9, 's': {'light': 0}, 'n': 1, 'late': True}, {'t': 1e9 + 1, 's': {'light': 1}, 'n': 2})
            assert viewer.hear('s')['s'] == {'light': 1}
            until_acknowledged(device, 2)
        with Peer(hub, '/push') as device:
            device.say(hello(id='secret', **SPOOL))
            until_acknowledged(device, 2)
            device.say(*[{'t': 1e9 + n, 's': {'light': n}, 'n': n} for n in (2, 3, 5, 4)])
            assert [viewer.hear('s')['s']['light'] for _ in range(2)] == [3, 4]
            until_acknowledged(device, 4)
        kept = [(record['n'], record['s']['light']) for record in recorded() if 's' in record]
        assert kept == [(1, 0), (2, 1), (3, 3), (4, 4)]


def test_a_numbered_reading_without_a_good_value_has_its_place_all_the_same(hub, tmp_path):
    with recording_into(hub, tmp_path / 'r.jsonl') as recorded, phone(hub) as device:
        device.say(hello(**SPOOL))
        device.say({'t': 1e9, 's': {'light': None}, 'n': 1}, {'t': 'now', 's': {'light': 1}, 'n': 2},
                   {'t': 1e9, 's': 3, 'n': 3}, {'t': 1e9, 's': {'light': 4}, 'n': 4})
        until_acknowledged(device, 4)
        assert [record['s'] for record in recorded() if 's' in record] == [{}, {}, {}, {'light': 4}]


@pytest.mark.parametrize('more', [{'spool': 7}, {'spool': 'x' * 61}, {'first': 0}, {'first': 'one'}])
def test_a_spool_without_a_name_is_refused(hub, tmp_path, more):
    with recording_into(hub, tmp_path / 'r.jsonl'), Peer(hub, '/push') as device:
        device.say(hello(**dict(SPOOL, **more)))
        assert device.end() == (1008, 'a spool has a short name and numbers from 1 on')


def test_a_server_that_does_not_record_acknowledges_nothing(hub):
    with phone(hub) as device, page(hub) as viewer:
        device.say(hello(**SPOOL))
        device.say(t=now(), s={'light': 1}, n=1)
        assert viewer.hear('s')['s'] == {'light': 1}
        device.say(time=1)
        assert 'time' in device.next()


def test_a_full_disk_is_said_on_the_page_and_serving_goes_on(hub, tmp_path, monkeypatch):
    full, append = [True], JsonLines.append

    def fail(lines, *arguments, **options):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(lines, *arguments, **options)

    monkeypatch.setattr(JsonLines, 'append', fail)
    with recording_into(hub, tmp_path / 'r.jsonl') as recorded, phone(hub) as device, page(hub) as viewer:
        device.say(t=now(), s={'light': 1})
        said = viewer.hear('notice', lambda notice: notice['key'] == 'recording')['text']
        assert os.strerror(errno.ENOSPC) in said and 'r.jsonl' in said
        monkeypatch.setattr(recording, 'BUFFER', 500)
        for n in range(20):
            device.say(t=now(), s={'light': n})
        assert 'lost so far: ' in viewer.hear('notice', lambda notice: notice['key'] == 'recording lost')['text']
        device.say(t=now(), s={'light': 99})
        assert viewer.hear('s', lambda samples: samples == {'light': 99})
        full[0] = False
        assert viewer.hear('notice', lambda notice: notice['key'] == 'recording')['text'] is None
        assert recorded()[1]['s'] == {'light': 1}


def table(hub, query=''):
    with urllib.request.urlopen('http://127.0.0.1:%d/data.csv%s' % (hub.port, query), timeout=DEADLINE) as answer:
        assert answer.headers['Content-Type'] == 'text/csv; charset=utf-8'
        return [line.split(',') for line in answer.read().decode().splitlines()]


@pytest.mark.parametrize('name', ['r.jsonl', 'r.db'])
def test_the_recording_is_handed_out_as_a_table(hub, tmp_path, name):
    with recording_into(hub, tmp_path / name) as recorded, phone(hub, t=now()) as device, \
            phone(hub, device='other', t=now()) as other:
        start = round(now()) - 2.0
        device.say(*[{'t': start + n / 1000, 's': {'light': n}} for n in range(200)])
        other.say(t=start, s={'accel': [1, 2, 3]})
        wait_until(lambda: len(recorded()) == 203, 'the records')
        assert len(table(hub)) == 1 + 200 + 3
        assert table(hub, '?device=other')[1:] == [[repr(start), 'other', 'accel', axis, 'm/s²', value]
                                                   for axis, value in (('x', '1'), ('y', '2'), ('z', '3'))]
        assert [row[-1] for row in table(hub, '?device=pixel&since=%r' % (start + 0.1975))[1:]] == ['198', '199']
        assert request(hub, 'GET', '/data.csv?since=yesterday')[0] == 400


def test_without_a_recording_there_is_no_table(hub):
    status, _, body = request(hub, 'GET', '/data.csv')
    assert status == 404 and b'--record' in body


@pytest.mark.parametrize('path', ['/data.csv', '/sensors', '/wsport', LISTEN, '/gps', '/touchscreen',
                                  '/sensors/connect?types=[]'])
def test_the_password_of_the_page_protects_every_way_to_the_readings(guarded, path):
    assert request(guarded, 'GET', path)[0] == 401
    with pytest.raises(minws.HandshakeError) as refused:
        minws.connect('ws://127.0.0.1:%d%s' % (guarded.port, path))
    assert refused.value.response.status_code == 401


##############################################################################
# The command line
##############################################################################

class Program:
    """`python3 -m examples.sensors` as a subprocess whose output lines are awaited."""

    def __init__(self, home, *arguments):
        environ = dict(os.environ, HOME=str(home), PYTHONUNBUFFERED='1')
        self.process = subprocess.Popen([sys.executable, '-m', 'examples.sensors', '--port', '0', '--host', '127.0.0.1',
                                         *arguments], cwd=ROOT, env=environ, universal_newlines=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
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

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.thread.join(DEADLINE)
        self.process.stdout.close()
        self.process.stderr.close()


def test_program_shows_a_simulated_phone_beside_a_laptop_and_ends_with_a_sentence(tmp_path):
    with Program(tmp_path, '--name', 'laptop') as running:
        source = running.expect('source: (.*)').group(1)
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/').group(1))
        with page(running) as viewer:
            assert viewer.story[0]['info']['title'] == 'laptop'
            rows = viewer.story[0]['info']['qr']['rows']
            assert len(rows) == len(rows[0]) and set(''.join(rows)) == {'0', '1'}
            if source == 'linux':
                told = [message['hello'] for message in viewer.story if 'hello' in message]
                assert {hello['device']: hello['simulated'] for hello in told} == {'laptop': False,
                                                                                   'simulated phone': True}
            viewer.hear('s')
            running.process.send_signal(signal.SIGINT)
            assert viewer.hear('stopping') == {'text': 'Ctrl-C was pressed'}
        running.expect('^stopped$')
        assert running.process.wait(DEADLINE) == 0


def test_program_with_a_password_says_what_http_means(tmp_path):
    with Program(tmp_path, '--password', 'a&b', '--source', 'simulated') as running:
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/\?password=a%26b$').group(1))
        assert '?password=a%26b' in running.expect('curl .*').group()
        running.expect('^the password is a&b$')
        running.expect('unencrypted')
        running.expect('Ctrl-C')
        assert request(running, 'GET', '/')[0] == 401
        cookie, _ = cookie_of(running, '/?password=a%26b')
        assert request(running, 'GET', '/', [cookie])[0] == 200
    with Program(tmp_path, '--password', 'a&b', '--source', 'simulated') as running:
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/\?').group(1))
        value = cookie[1].partition('=')[2]
        assert cookie_of(running, '/?password=a%26b')[0][1].endswith(value)      # it outlives the server
    assert oct((tmp_path / '.minws' / 'secret').stat().st_mode & 0o777) == '0o600'


def test_program_serves_https_with_a_certificate_of_its_own(tmp_path):
    with Program(tmp_path, '--https', '--source', 'simulated') as running:
        port = int(running.expect(r'https://127\.0\.0\.1:(\d+)/').group(1))
        running.expect('Ctrl-C')
        certificate, = (tmp_path / '.minws').glob('*cert*')
        context = ssl.create_default_context(cafile=str(certificate))
        with minws.connect('wss://127.0.0.1:%d/ws' % port, ssl=context) as ws:
            info = json.loads(ws.recv(timeout=DEADLINE))[0]['info']
        assert info['secure'] and info['push'] == 'wss://127.0.0.1:%d/push' % port


LOOPBACK_PKG = '#!/bin/sh\n[ "$1 $2 $3 $4" = "install -y python termux-api" ]\n'


@pytest.mark.skipif(not shutil.which('curl') or not shutil.which('sh'), reason='needs curl: apt-get install curl')
@pytest.mark.parametrize('where', ['termux', 'qpython'])
def test_the_line_for_a_phone_ends_in_readings(tmp_path, where):
    """The line that the server prints is run as it is, in a home of its own; `pkg` is there and has nothing to do."""
    (tmp_path / 'pkg').write_text(LOOPBACK_PKG)
    (tmp_path / 'pkg').chmod(0o755)
    (tmp_path / 'python').symlink_to(sys.executable)
    environ = dict(os.environ, HOME=str(tmp_path), PATH='%s:%s' % (tmp_path, os.environ['PATH']))
    environ.pop('PYTHONPATH', None)
    with Program(tmp_path, '--source', 'simulated', '--name', 'laptop') as running:
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/').group(1))
        line = running.expect({'termux': '    (pkg .*)', 'qpython': r'    (exec\(.*)'}[where]).group(1)
        command = ['sh', '-c', line] if where == 'termux' else [sys.executable, '-c', line]
        with page(running) as viewer:
            phone = subprocess.Popen(command, cwd=str(tmp_path), env=environ, stdin=subprocess.DEVNULL,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            try:
                device = viewer.hear('hello', lambda said: not said['own'])['device']
                assert viewer.hear('d', lambda name: name == device)['s']
            finally:
                os.killpg(phone.pid, signal.SIGKILL)
                phone.wait()
    assert sorted(os.listdir(str(tmp_path / 'minws-sensors')))[-2:] == ['droid_sensor.py', 'minws.py']


def test_a_source_without_motion_is_known():
    class Boring(program.Linux):
        def probes(self):
            return [types.SimpleNamespace(meaning=Sensor('°C', ())), types.SimpleNamespace(meaning=Sensor('', 'xyz'))]

    class Board(program.Linux):
        def probes(self):
            return [types.SimpleNamespace(meaning=Sensor('m/s²', ('x', 'y', 'z')))]

    assert not program.measures_motion(Boring()) and program.measures_motion(Board())
    assert program.measures_motion(program.Simulated())


@pytest.mark.parametrize('arguments', [['--https', '--cert', 'nowhere.pem'], ['--cert', __file__]])
def test_program_says_what_is_wrong_with_a_certificate(arguments, capsys):
    assert program.main(arguments) == 1
    assert 'https is not possible' in capsys.readouterr().err


def test_program_records_and_replays_ten_times_as_fast(tmp_path):
    path, file = str(tmp_path / 'r.jsonl'), str(tmp_path / 'made.jsonl')
    with Program(tmp_path, '--source', 'simulated', '--name', 'desk', '--rate', '50', '--record', path) as running:
        running.expect('^all readings are recorded into ' + re.escape(path))
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/').group(1))
        with page(running) as viewer:
            for _ in range(10):
                viewer.hear('s')
        running.process.send_signal(signal.SIGTERM)
        running.expect('^stopped$')
    with Program(tmp_path, '--replay', path) as running:
        running.expect('^source: the recording %s, 1 times as fast' % re.escape(path))
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/').group(1))
        with page(running) as viewer:
            assert viewer.hear('s')['d'] == 'desk'
    with contextlib.closing(Recorder(file)) as recorder:
        recorder.append({'t': 1e9, 'hello': {'device': 'pixel', 'rate': 4, 'sensors': SENSORS}})
        for n in range(40):
            recorder.append({'t': 1e9 + n / 4, 'd': 'pixel', 's': {'light': n}})
            if n == 20:
                recorder.append({'t': 1e9 + 5.1, 'marker': {'text': 'second run'}})
    with Program(tmp_path, '--replay', file, '--speed', '10') as running:
        running.port = int(running.expect(r'http://127\.0\.0\.1:(\d+)/').group(1))
        viewer = Peer(running, '/ws')
        heard = viewer.hear_until('marker')
        assert heard[-1]['marker']['text'] == 'second run'
        heard += viewer.hear_until('notice')
        while 'has ended' not in heard[-1].get('notice', {}).get('text', ''):
            heard += viewer.hear_until('notice')
        hellos = [message['hello'] for message in heard if 'hello' in message]
        assert hellos[-1]['rate'] == 40 and hellos[-1]['sensors'] == SENSORS
        readings = {message['s']['light']: message['t'] for message in heard if 's' in message}
        readings.update((one['s']['light'], one['t']) for message in heard if 'history' in message
                        for one in message['history']['readings'])
        assert sorted(readings) == list(range(40)) and abs(readings[39] - now()) < DEADLINE
        assert all(abs(readings[n] - readings[0] - n / 40) < 0.001 for n in readings)
        viewer.ws.close()


@pytest.mark.parametrize('arguments', [['--replay', 'nowhere.jsonl'], ['--record', 'nowhere/r.jsonl'],
                                       ['--record', __file__], ['--record', __file__, '--replay', __file__]])
def test_program_says_what_is_wrong_with_a_recording(arguments, capsys):
    assert program.main(['--host', '127.0.0.1', '--port', '0'] + arguments) == 1
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and arguments[1] in said or 'itself' in said
