"""How far sharing goes, measured on this machine, bounded in count and time:

    python3 -m examples.scale_out.benchmark redis [--processes 1 2 4] [--viewers 60] [--messages 3000]
    python3 -m examples.scale_out.benchmark mqtt  [--viewers 20] [--seconds 5]

`redis`: server processes at one port; a device says its messages as fast as it is allowed to, and each viewer counts
what it hears. Figures: messages delivered a second in all, and the processor time of the servers for each of them.

`mqtt`: sensors of fifty readings a second in a broker with viewers on its listener for browsers, of which one takes
nothing. Figures: how old the readings are when the others hear them, and how much memory the broker takes.

Both start redis-server and mosquitto themselves, at unused ports of the loopback interface.
"""
import argparse
import contextlib
import json
import os
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
LAST = '{"last": true}'
SENSORS, RATE = 12, 50


def find(program):
    return shutil.which(program) or shutil.which(program, path='/usr/sbin') or sys.exit('%s is missing' % program)


def unused_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def program(*command, port=None, output=subprocess.DEVNULL):
    """Run a program, once it answers at the port."""
    process = subprocess.Popen(list(map(str, command)), stdout=output, universal_newlines=True)
    try:
        deadline = time.monotonic() + TIMEOUT
        while port is not None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
                break
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

class Counter(minws.WebSocketClient):
    """A viewer that counts, in one thread with all others."""

    count = 0
    ended = None

    def received_message(self, message):
        if message.data == LAST.encode():
            self.ended = time.monotonic()
        else:
            self.count += 1


def measure_processes(count, viewers, messages, window=200):
    """Print how fast so many processes are. Not more than `window` messages are on their way at once."""
    redis_port, port = unused_port(), unused_port()
    with program(find('redis-server'), '--port', redis_port, '--bind', '127.0.0.1', '--save', '', port=redis_port), \
            program(sys.executable, '-m', 'examples.scale_out.redis_broadcast', '--host', '127.0.0.1', '--port', port,
                    '--processes', count, '--redis', 'redis://127.0.0.1:%d' % redis_port,
                    output=subprocess.PIPE) as servers:
        for _ in range(2 * count):
            servers.stdout.readline()
        manager = minws.WebSocketManager()
        manager.start()
        clients = [Counter('ws://127.0.0.1:%d/ws' % port) for _ in range(viewers)]
        for client in clients:
            client.connect()
            manager.add(client)
        before, began = processor_seconds(servers.pid), time.monotonic()
        with minws.connect('ws://127.0.0.1:%d/push' % port) as device:
            for n in range(messages):
                device.send(MESSAGE)
                while n - min(client.count for client in clients) > window and time.monotonic() - began < TIMEOUT:
                    time.sleep(0.001)
            device.send(LAST)
            while not all(client.ended for client in clients) and time.monotonic() - began < TIMEOUT:
                time.sleep(0.01)
        seconds = max(client.ended or time.monotonic() for client in clients) - began
        busy = processor_seconds(servers.pid) - before
        heard = sum(client.count for client in clients)
        print('%d process%s: %6d of %d delivered in %5.2f s, %6d/s, %4.1f µs of the servers each' % (
            count, 'es' if count > 1 else '  ', heard, viewers * messages, seconds, heard / seconds, 1e6 * busy / heard))
        manager.close_all()
        manager.stop()


##############################################################################
# MQTT
##############################################################################

def mqtt_text(text):
    return struct.pack('!H', len(text)) + text.encode()


def mqtt_join(websocket):
    """Return a connection to the broker's listener for browsers that has asked for all readings."""
    ws = minws.connect('ws://127.0.0.1:%d' % websocket, subprotocols=['mqtt'], max_size=None)
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


def measure_broker(viewers, seconds):
    """Print how a broker with viewers does, without and with one that takes nothing."""
    for stalled in (0, 1):
        port, websocket, directory = unused_port(), unused_port(), tempfile.mkdtemp()
        with open(os.path.join(HERE, 'mosquitto.conf')) as file:
            settings = file.read().replace('listener 1883', 'listener %d 127.0.0.1' % port)
        with open(os.path.join(directory, 'mosquitto.conf'), 'w') as file:
            file.write(settings.replace('listener 9001', 'listener %d 127.0.0.1' % websocket))
        with program(find('mosquitto'), '-c', file.name, port=port) as broker:
            publisher, ages, until = Publisher('127.0.0.1', port), [], time.monotonic() + seconds
            publisher.start()
            sleeping = [mqtt_join(websocket) for _ in range(stalled)]
            threads = [threading.Thread(target=mqtt_hear, args=(mqtt_join(websocket), ages, until), daemon=True)
                       for _ in range(viewers)]
            for thread in threads:
                thread.start()
            n = 0
            while time.monotonic() < until:
                n += 1
                for sensor in range(SENSORS):
                    publisher.put('devices/a/%d' % sensor, json.dumps({'t': time.time(), 'v': n}))
                time.sleep(1 / RATE)
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
    arguments = parser.parse_args(argv)
    if arguments.what == 'mqtt':
        measure_broker(arguments.viewers or 20, arguments.seconds)
    else:
        for count in arguments.processes:
            measure_processes(count, arguments.viewers or 60, arguments.messages)
    return 0


if __name__ == '__main__':
    sys.exit(main())
