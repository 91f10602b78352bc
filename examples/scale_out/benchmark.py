"""How far sharing goes, measured on this machine, bounded in count and time:

    python3 -m examples.scale_out.benchmark redis [--processes 1 2 4] [--viewers 60] [--messages 3000]
    python3 -m examples.scale_out.benchmark mqtt  [--viewers 20] [--seconds 5] [--rate 50]

`redis`: server processes at one port; a device says its messages as fast as it is allowed to, and each viewer counts
what it hears. Figures: messages delivered a second in all, and the processor time of the servers for each of them.

`mqtt`: twelve sensors of so many readings a second in a broker with viewers on its listener for browsers, of which one
takes nothing. Figures: how old the readings are when the others hear them, and how much memory the broker takes; at
300 a second it is half a minute until the buffers on the way to the one that sleeps are full.

Both start redis-server and mosquitto themselves, at unused ports of the loopback interface.
"""
import argparse
import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import minws
from examples.scale_out.mqtt import HERE, Publisher

TIMEOUT = 60.0                # seconds for a whole measurement
MESSAGE = json.dumps({'d': 'pixel', 't': 1763740000.123456, 's': {'accel': [0.123456, -0.234567, 9.812345]}})
SENSORS = 12


def find(program):
    return shutil.which(program) or shutil.which(program, path='/usr/sbin') or sys.exit('%s is missing' % program)


def unused_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
        return True
    return False


@contextlib.contextmanager
def program(*command, ports=(), output=subprocess.DEVNULL):
    """Run a program, once it answers at the ports."""
    process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=subprocess.DEVNULL,
                               universal_newlines=True)
    try:
        deadline = time.monotonic() + TIMEOUT
        for port in ports:
            while not answers(port) and time.monotonic() < deadline:
                time.sleep(0.02)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if process.stdout:
            process.stdout.close()


def processor_seconds(pid):
    """Return the processor time of a process and its children that live."""
    with open('/proc/%d/stat' % pid) as file:
        fields = file.read().rpartition(') ')[2].split()
    with open('/proc/%d/task/%d/children' % (pid, pid)) as file:
        children = map(int, file.read().split())
    return sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK') + sum(map(processor_seconds, children))


def memory(pid):
    """Return the resident memory of a process in MB."""
    with open('/proc/%d/statm' % pid) as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


##############################################################################
# Redis
##############################################################################

class Viewers:
    """Sockets that count the bytes they hear, in one thread: the servers are to be measured, not those who listen."""

    FRAME = 2 + len(MESSAGE)  # RFC 6455 5.2: shorter than 126 bytes, and a server does not mask

    def __init__(self, port, count):
        self.heard = {self._join(port): 0 for _ in range(count)}   # socket -> bytes
        self._selector = selectors.DefaultSelector()
        for sock in self.heard:
            self._selector.register(sock, selectors.EVENT_READ)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _join(self, port):
        sock = socket.create_connection(('127.0.0.1', port), TIMEOUT)
        sock.sendall(b'GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
                     b'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n' % port)
        answer = b''
        while not answer.endswith(b'\r\n\r\n'):
            answer += sock.recv(1)
        return sock

    def _run(self):
        while not self._stopping:
            for key, _ in self._selector.select(0.2):
                self.heard[key.fileobj] += len(key.fileobj.recv(1 << 18))

    def least(self):
        """Return how many messages the viewer has heard that has heard least."""
        return min(self.heard.values()) // self.FRAME

    def all(self):
        return sum(self.heard.values()) // self.FRAME

    def close(self):
        self._stopping = True
        self._thread.join()
        self._selector.close()
        for sock in self.heard:
            sock.close()


def measure_processes(count, viewers, messages, window=500):
    """Print how fast so many processes are. Not more than `window` messages are on their way at once."""
    redis_port, port = unused_port(), unused_port()
    with program(find('redis-server'), '--port', redis_port, '--bind', '127.0.0.1', '--save', '', ports=[redis_port]), \
            program(sys.executable, '-m', 'examples.scale_out.redis_broadcast', '--host', '127.0.0.1', '--port', port,
                    '--processes', count, '--redis', 'redis://127.0.0.1:%d' % redis_port,
                    output=subprocess.PIPE) as servers:
        for _ in range(2 * count):
            servers.stdout.readline()
        hearing = Viewers(port, viewers)
        before, began = processor_seconds(servers.pid), time.monotonic()
        with minws.connect('ws://127.0.0.1:%d/push' % port) as device:
            for n in range(messages):
                device.send(MESSAGE)
                while n % 50 == 0 and n - hearing.least() > window and time.monotonic() - began < TIMEOUT:
                    time.sleep(0.001)
            while hearing.least() < messages and time.monotonic() - began < TIMEOUT:
                time.sleep(0.001)
        seconds, busy = time.monotonic() - began, processor_seconds(servers.pid) - before
        heard = hearing.all()
        print('%d process%s: %d of %d delivered in %.2f s, %d/s; %.1f µs of the servers each, %.0f %% of a core' % (
            count, 'es' if count > 1 else '', heard, viewers * messages, seconds, heard / seconds, 1e6 * busy / heard,
            100 * busy / seconds))
        hearing.close()


##############################################################################
# MQTT
##############################################################################

def mqtt_text(text):
    return struct.pack('!H', len(text)) + text.encode()


def mqtt_join(websocket, room=1 << 18):
    """Return a connection to the broker's listener for browsers that has asked for all readings; room in bytes."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.connect(('127.0.0.1', websocket))
    ws = minws.connect('ws://127.0.0.1:%d' % websocket, subprotocols=['mqtt'], max_size=None, sock=sock)
    ws.send(b'\x10' + bytes([10 + 2 + 8]) + mqtt_text('MQTT') + b'\x04\x02\x00\x3c' + mqtt_text(os.urandom(4).hex()))
    ws.recv(timeout=TIMEOUT)
    ws.send(b'\x82' + bytes([2 + 11 + 1]) + b'\x00\x01' + mqtt_text('devices/#') + b'\x00')
    return ws


def mqtt_hear(ws, ages, until):
    """Note how old each reading is that comes before a moment."""
    rest = b''
    while time.monotonic() < until:
        try:
            rest += ws.recv(timeout=0.5)
        except TimeoutError:
            continue
        now = time.time()
        while len(rest) > 1 and len(rest) >= 2 + rest[1]:  # no packet here is longer than 127 bytes
            packet, rest = rest[:2 + rest[1]], rest[2 + rest[1]:]
            if packet[0] >> 4 == 3:
                ages.append(now - json.loads(packet[packet.index(b'{'):].decode())['t'])


def measure_broker(viewers, seconds, rate):
    """Print how a broker with viewers does, without and with one that takes nothing."""
    for stalled in (0, 1):
        port, websocket, directory = unused_port(), unused_port(), tempfile.mkdtemp()
        with open(os.path.join(HERE, 'mosquitto.conf')) as file:
            settings = file.read().replace('listener 1883', 'listener %d 127.0.0.1' % port)
        with open(os.path.join(directory, 'mosquitto.conf'), 'w') as file:
            file.write(settings.replace('listener 9001', 'listener %d 127.0.0.1' % websocket))
        with program(find('mosquitto'), '-c', file.name, ports=[port, websocket]) as broker:
            publisher, ages, until = Publisher('127.0.0.1', port), [], time.monotonic() + seconds
            publisher.start()
            sleeping = [mqtt_join(websocket, room=4096) for _ in range(stalled)]
            threads = [threading.Thread(target=mqtt_hear, args=(mqtt_join(websocket), ages, until), daemon=True)
                       for _ in range(viewers)]
            for thread in threads:
                thread.start()
            n = 0
            while time.monotonic() < until:
                n += 1
                for sensor in range(SENSORS):
                    publisher.put('devices/a/%d' % sensor, json.dumps({'t': time.time(), 'v': n}))
                time.sleep(1 / rate)
            for thread in threads:
                thread.join()
            ages.sort()
            print('%d viewers%s: %d readings of %d published; age p50 %.1f ms, p99 %.1f ms; the broker has %.1f MB' % (
                viewers, ' and one that takes nothing' if stalled else '', len(ages), publisher.sent,
                1000 * ages[len(ages) // 2], 1000 * ages[len(ages) * 99 // 100], memory(broker.pid)))
            for ws in sleeping:
                ws.terminate()
            publisher.stop()
        shutil.rmtree(directory)


def main(argv=None):
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.scale_out.benchmark', description='Measure sharing.')
    parser.add_argument('what', choices=['redis', 'mqtt'])
    parser.add_argument('--processes', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--viewers', type=int, default=None)
    parser.add_argument('--messages', type=int, default=3000)
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--rate', type=float, default=50.0)
    arguments = parser.parse_args(argv)
    if arguments.what == 'mqtt':
        measure_broker(arguments.viewers or 20, arguments.seconds, arguments.rate)
    else:
        for count in arguments.processes:
            measure_processes(count, arguments.viewers or 60, arguments.messages)
    return 0


if __name__ == '__main__':
    sys.exit(main())
