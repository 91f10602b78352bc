"""Tests of the programs in this directory, against real Mosquitto, Redis and nginx on ports of their own."""
import collections
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import minws
from examples.browser import Browser, find_browser
from examples.scale_out import mqtt, redis_broadcast
from examples.scale_out.mqtt import Bridge, Publisher, level, page_of_broker

DEADLINE = 15.0               # seconds for anything that should happen at once
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


def needs(program, package):
    """Skip a test where a program is missing, with the command that brings it."""
    # Debian keeps servers in a directory that is not on everybody's PATH.
    return pytest.mark.skipif(find(program) is None, reason='no %s here: apt-get install %s' % (program, package))


def find(program):
    return shutil.which(program) or shutil.which(program, path='/usr/sbin:/usr/local/sbin')


needs_mosquitto = needs('mosquitto', 'mosquitto')
needs_redis = needs('redis-server', 'redis-server')
needs_nginx = needs('nginx', 'nginx-light')
needs_paho = pytest.mark.skipif(mqtt.mqtt is None, reason='no paho-mqtt here: pip install paho-mqtt')
needs_redis_client = pytest.mark.skipif(redis_broadcast.redis is None,
                                        reason='no redis for Python here: pip install redis')


def wait_until(true, what='the condition'):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, '%s did not come' % what
        threading.Event().wait(0.02)


def unused_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
        return True
    return False


class Daemon:
    """A program that listens at ports; `start` after `stop` starts it anew."""

    def __init__(self, ports, *command):
        self.ports = ports
        self.command = [find(command[0])] + [str(word) for word in command[1:]]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        wait_until(lambda: all(map(answers, self.ports)) or self.process.poll() is not None,
                   'the start of %s' % self.command[0])
        assert self.process.poll() is None

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.wait(DEADLINE)


@contextlib.contextmanager
def running(daemon):
    try:
        yield daemon
    finally:
        if daemon.process.poll() is None:
            daemon.stop()     # which nginx needs to end its workers


##############################################################################
# MQTT
##############################################################################

@pytest.fixture
def broker(tmp_path):
    """Mosquitto as our configuration has it, at ports of its own: .port for programs, .websocket for browsers."""
    port, websocket = unused_port(), unused_port()
    with open(os.path.join(HERE, 'mosquitto.conf')) as file:
        settings = file.read().replace('listener 1883', 'listener %d 127.0.0.1' % port)
    settings = settings.replace('listener 9001', 'listener %d 127.0.0.1' % websocket)
    tmp_path.joinpath('mosquitto.conf').write_text(settings)
    with running(Daemon([port, websocket], 'mosquitto', '-c', tmp_path.joinpath('mosquitto.conf'))) as daemon:
        daemon.port, daemon.websocket = port, websocket
        yield daemon


@pytest.fixture
def publisher(broker):
    publisher = Publisher('127.0.0.1', broker.port)
    publisher.start()
    yield publisher
    publisher.stop()


class Subscriber:
    """A client of the broker that keeps the last payload of each topic, and how many came."""

    def __init__(self, port, topic='#', **options):
        self.last = {}
        self.counts = collections.Counter()
        self.client = mqtt.mqtt.Client(mqtt.mqtt.CallbackAPIVersion.VERSION2, **options)
        self.client.on_connect = lambda client, *_: client.subscribe(topic)
        self.client.on_message = self._heard
        self.client.connect('127.0.0.1', port)
        self.client.loop_start()

    def _heard(self, client, userdata, message):
        self.last[message.topic] = message.payload.decode()
        self.counts[message.topic] += 1

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.client.disconnect()
        self.client.loop_stop()


HELLO = {'hello': {'device': 'pixel/7', 'sensors': {'light': {'unit': 'lx', 'axes': []}}}}
READING = {'d': 'pixel/7', 't': 1763740000.5, 's': {'light': 310.0, 'accel': [0.5, 0.25, 9.75]}}


@needs_mosquitto
@needs_paho
def test_mqtt_publishes_readings_that_late_subscribers_get_at_once(broker, publisher):
    bridge = Bridge(publisher)
    bridge.hear(json.dumps(HELLO))
    bridge.hear(json.dumps([{'unknown': 1}, READING, 5]))        # as an array, too
    bridge.hear('garbage')
    wait_until(lambda: publisher.sent >= 3)
    with Subscriber(broker.port, transport='tcp') as late:
        wait_until(lambda: len(late.last) == 4)
        assert json.loads(late.last['devices/pixel%2F7']) == HELLO['hello']
        assert json.loads(late.last['devices/pixel%2F7/light']) == {'t': 1763740000.5, 'v': 310.0}
        assert json.loads(late.last['devices/pixel%2F7/accel']) == {'t': 1763740000.5, 'v': [0.5, 0.25, 9.75]}
        assert late.last['hub/state'] == 'online'
        bridge.hear(json.dumps({'gone': {'device': 'pixel/7'}}))
        wait_until(lambda: late.last['devices/pixel%2F7/light'] == '')
    with Subscriber(broker.port) as later:
        wait_until(lambda: later.last)
        assert set(later.last) == {'hub/state'}


@needs_mosquitto
@needs_paho
def test_mqtt_fills_a_broker_that_was_restarted(broker, publisher):
    publisher.put('devices/a/n', '1')
    publisher.put('devices/a/m', '1')
    wait_until(lambda: publisher.sent >= 2)
    broker.stop(signal.SIGKILL)                                  # it keeps nothing
    wait_until(lambda: not publisher.client.is_connected())
    for n in range(2, 1000):
        publisher.put('devices/a/n', str(n))
    broker.start()
    with Subscriber(broker.port) as subscriber:
        wait_until(lambda: subscriber.last.get('devices/a/n') == '999' and subscriber.last.get('devices/a/m') == '1')
        assert subscriber.counts['devices/a/n'] <= 2             # what was old was never sent
        assert subscriber.last['hub/state'] == 'online'
        publisher.stop()
        wait_until(lambda: subscriber.last['hub/state'] == 'offline')


@needs_mosquitto
@needs_paho
def test_mqtt_broker_tells_that_the_bridge_has_died(broker):
    with minws.serve({'/ws': lambda ws: [None for _ in ws]}, '127.0.0.1', 0) as server, \
            Subscriber(broker.port) as subscriber:
        server.start()
        bridge = subprocess.Popen(
            [sys.executable, '-m', 'examples.scale_out.mqtt', 'ws://127.0.0.1:%d/ws' % server.port,
             '--broker', '127.0.0.1:%d' % broker.port], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: subscriber.last.get('hub/state') == 'online')
        finally:
            bridge.kill()
            bridge.wait()
        wait_until(lambda: subscriber.last.get('hub/state') == 'offline')


@pytest.mark.parametrize('name, topic', [
    ('accel', 'accel'), ('linear accel', 'linear accel'), ('a/b', 'a%2Fb'), ('+', '%2B'), ('#1', '%231'),
    ('100%', '100%25'), ('$SYS', '%24SYS'), ('温度', '温度'),
])
def test_mqtt_names_are_levels_of_topics(name, topic):
    assert level(name) == topic


@needs_mosquitto
@needs_paho
@pytest.mark.skipif(find_browser() is None, reason='no Chromium here: apt-get install chromium')
def test_mqtt_page_hears_the_broker(broker, publisher):
    bridge = Bridge(publisher)
    page = page_of_broker('ws://127.0.0.1:%d' % broker.websocket)
    with minws.serve({}, '127.0.0.1', 0, pages={'/': page}) as server, Browser() as browser:
        server.start()
        bridge.hear(json.dumps({'hello': {
            'device': 'board', 'id': 'b1', 'source': 'linux', 'rate': 10, 'simulated': False, 'own': False, 'offset': 0,
            'state': 'live', 'since': time.time(), 'sensors': {'cpu-thermal': {'unit': '°C', 'axes': []}}}}))
        bridge.hear(json.dumps({'d': 'board', 't': time.time(), 's': {'cpu-thermal': 41.0}}))
        opened = browser.open('http://127.0.0.1:%d/' % server.port)
        opened.wait_for('document.body.textContent.includes("board")')
        opened.wait_for('document.body.textContent.includes("cpu-thermal")')
        for n in range(20):
            bridge.hear(json.dumps({'d': 'board', 't': time.time(), 's': {'cpu-thermal': 77.0 + n / 1000}}))
            threading.Event().wait(0.05)
        opened.wait_for('document.body.textContent.includes("77")')
        assert opened.errors() == []


##############################################################################
# Redis
##############################################################################

@pytest.fixture
def redis_server():
    port = unused_port()
    with running(Daemon([port], 'redis-server', '--port', port, '--bind', '127.0.0.1', '--save', '')) as daemon:
        daemon.url = 'redis://127.0.0.1:%d' % port
        yield daemon


@contextlib.contextmanager
def shared_servers(url, count=2):
    """Run servers that share their broadcasts, joined; the value is [(Server, SharedBroadcast)]."""
    servers = [redis_broadcast.serve('127.0.0.1', 0, url) for _ in range(count)]
    try:
        for _, shared in servers:
            wait_until(shared.joined.is_set, 'the subscription')
        yield servers
    finally:
        for server, shared in servers:
            server.shutdown()
            shared.stop()


def join(port, path='/ws'):
    return minws.connect('ws://127.0.0.1:%d%s' % (port, path))


@contextlib.contextmanager
def people(one, other):
    """Connect a viewer to each of two servers and a phone to the first, until the servers know of them."""
    with join(one.port) as here, join(other.port) as there, join(one.port, '/push') as phone:
        wait_until(lambda: len(one.connections) == 2 and len(other.connections) == 1)
        yield here, there, phone


def hear(ws, text):
    """Return whether a connection hears a text; others before it are dropped."""
    deadline = time.monotonic() + DEADLINE
    while ws.recv(timeout=max(0.01, deadline - time.monotonic())) != text:
        pass
    return True


def repeat_until_heard(phone, viewers):
    """Say something until all viewers have heard it: a server in another process may not know of all of them yet."""
    heard = threading.Event()

    def repeat():
        while not heard.wait(0.1):
            phone.send('to all')

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        assert all(hear(viewer, 'to all') for viewer in viewers)
    finally:
        heard.set()
        thread.join()


@needs_redis
@needs_redis_client
def test_redis_carries_what_is_said_to_one_server_to_the_viewers_of_all(redis_server):
    with shared_servers(redis_server.url) as ((one, _), (other, _)), people(one, other) as (here, there, phone):
        for n in range(100):
            phone.send('{"n": %d}' % n)
        for viewer in (here, there):
            assert [viewer.recv(timeout=DEADLINE) for _ in range(100)] == ['{"n": %d}' % n for n in range(100)]
        with pytest.raises(TimeoutError):
            phone.recv(timeout=0.1)


@needs_redis
@needs_redis_client
def test_redis_that_goes_away_leaves_each_server_for_itself_until_it_is_back(redis_server, capfd):
    with shared_servers(redis_server.url) as ((one, shared), (other, other_shared)), \
            people(one, other) as (here, there, phone):
        phone.send('before')
        assert hear(here, 'before') and hear(there, 'before')
        redis_server.stop(signal.SIGKILL)
        wait_until(lambda: not shared.joined.is_set() and not other_shared.joined.is_set())
        phone.send('alone')
        assert hear(here, 'alone')
        redis_server.start()
        wait_until(lambda: shared.joined.is_set() and other_shared.joined.is_set())
        phone.send('after')
        assert hear(here, 'after') and hear(there, 'after')
    assert 'each process for itself' in capfd.readouterr().err


@needs_redis
@needs_redis_client
def test_redis_that_hangs_holds_no_message_back_for_long(redis_server, monkeypatch):
    monkeypatch.setattr(redis_broadcast, 'PATIENCE', 0.8)
    with shared_servers(redis_server.url) as ((one, shared), (other, other_shared)), \
            people(one, other) as (here, there, phone):
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            phone.send('stuck')
            assert hear(here, 'stuck')
            wait_until(lambda: not shared.joined.is_set() and not other_shared.joined.is_set())
        finally:
            redis_server.process.send_signal(signal.SIGCONT)
        wait_until(lambda: shared.joined.is_set() and other_shared.joined.is_set())
        phone.send('after')
        assert hear(here, 'after') and hear(there, 'after')


@needs_redis
@needs_redis_client
def test_redis_joins_processes_that_listen_at_one_port(redis_server):
    port = unused_port()
    program = subprocess.Popen(
        [sys.executable, '-m', 'examples.scale_out.redis_broadcast', '--host', '127.0.0.1', '--port', str(port),
         '--processes', '2', '--redis', redis_server.url], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
    try:
        lines = [program.stdout.readline() for _ in range(4)]
        assert sorted(line.split()[0] for line in lines) == ['process', 'process', 'together', 'together']
        with contextlib.ExitStack() as stack:
            # Of 16 connections to two processes all fall to one of them once in 32768 runs, and then it holds anyway.
            viewers = [stack.enter_context(join(port)) for _ in range(16)]
            repeat_until_heard(stack.enter_context(join(port, '/push')), viewers)
        program.terminate()
        assert program.wait(DEADLINE) == 0
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


@needs_redis
@needs_redis_client
@needs_nginx
def test_redis_joins_servers_behind_nginx(redis_server, tmp_path):
    port = unused_port()
    with shared_servers(redis_server.url) as ((one, _), (other, _)):
        with open(os.path.join(HERE, 'nginx.conf')) as file:
            settings = file.read().replace('listen 9000', 'listen 127.0.0.1:%d' % port)
        settings = settings.replace(':9001', ':%d' % one.port).replace(':9002', ':%d' % other.port)
        tmp_path.joinpath('nginx.conf').write_text(settings)
        with running(Daemon([port], 'nginx', '-p', tmp_path, '-c', tmp_path.joinpath('nginx.conf'))), \
                contextlib.ExitStack() as stack:
            viewers = [stack.enter_context(join(port)) for _ in range(4)]
            wait_until(lambda: len(one.connections) == len(other.connections) == 2, 'a fair share')
            repeat_until_heard(stack.enter_context(join(port, '/push')), viewers)
