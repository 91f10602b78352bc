"""Carry the readings of a sensors server on to an MQTT broker: from there databases, home automation and any number of
viewers take them.

    apt-get install mosquitto && pip install paho-mqtt
    mosquitto -c examples/scale_out/mosquitto.conf
    python3 -m examples.sensors
    python3 -m examples.scale_out.mqtt ws://localhost:9000/ws --broker localhost:1883
    mosquitto_sub -v -t 'devices/#'

    devices/NAME             {"device": "pixel", "sensors": {"light": {"unit": "lx", "axes": []}}, …}
    devices/NAME/SENSOR      {"t": 1732140000.123, "v": [0.1, 0.2, 9.8]}      t in seconds since 1970, UTC
    hub/state                online, or offline when this program or its network has died

All are retained: who subscribes late has the last value at once. Of each sensor the newest value is published; what
a slow network cannot carry is never sent late. In a name, what MQTT has a meaning for is written as in a URL: %2F.

With --page PORT the charts are served there, too, from this machine or any other: the same page, whose socket is the
broker's own listener for browsers (--websocket ws://HOST:9001): the sensors server then has one viewer, this program.
"""
import argparse
import json
import os
import sys
import threading

import minws

try:
    from paho.mqtt import client as mqtt
except ImportError:
    mqtt = None

HERE = os.path.dirname(os.path.abspath(__file__))
PAGE = os.path.join(os.path.dirname(HERE), 'sensors', 'page.html')
SHIM = os.path.join(HERE, 'mqtt.js')
STATE = 'hub/state'
INFO = 'hub/info'
KEEPALIVE = 15                # seconds until the broker tells that we have died
BATCH_TIMEOUT = 5.0           # seconds that a batch may take to leave before newer values are looked at
LONGEST_PAUSE = 30            # seconds between two attempts to reach the broker


def level(name):
    """Return a name as one level of a topic: MQTT 3.1.1 4.7 reserves / + # and, at the beginning, $."""
    escaped = ''.join('%%%02X' % ord(char) if char in '%/+#\0' else char for char in name)
    return '%24' + escaped[1:] if escaped.startswith('$') else escaped


class Publisher:
    """Publish the newest payload of each topic, retained; `put` and `clear` from any thread, at any time.

    What was published is published again after a reconnection: a broker that was restarted may have forgotten it.
    """

    def __init__(self, host, port):
        self._condition = threading.Condition()
        self._last = {}       # topic -> payload
        self._pending = {}    # what of it is to be sent
        self._stopping = False
        self.sent = 0
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self.client.will_set(STATE, 'offline', qos=1, retain=True)
        self.client.on_connect = self._connected
        self.client.on_disconnect = self._disconnected
        self.client.reconnect_delay_set(1, LONGEST_PAUSE)
        self.client.connect_async(host, port, KEEPALIVE)
        self._thread = threading.Thread(target=self._send, name='mqtt-publisher', daemon=True)

    def start(self):
        self.client.loop_start()
        self._thread.start()

    def stop(self):
        """Say goodbye and end; waits for what is under way."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(BATCH_TIMEOUT)
        if self.client.is_connected():
            self.client.publish(STATE, 'offline', qos=1, retain=True).wait_for_publish(1.0)
        self.client.disconnect()
        self.client.loop_stop()

    def put(self, topic, payload):
        with self._condition:
            self._last[topic] = self._pending[topic] = payload
            self._condition.notify()

    def clear(self, topic):
        """Let the broker forget a topic and those below it."""
        with self._condition:
            for known in [known for known in self._last if known == topic or known.startswith(topic + '/')]:
                del self._last[known]
                self._pending[known] = b''
            self._condition.notify()

    def _connected(self, client, userdata, flags, reason, properties):
        if reason.is_failure:
            print('the broker refuses: %s' % reason, file=sys.stderr, flush=True)
            return
        print('connected to the broker', flush=True)
        client.publish(STATE, 'online', qos=1, retain=True)
        with self._condition:
            self._pending = dict(self._last, **{topic: b'' for topic, payload in self._pending.items() if not payload})
            self._condition.notify()

    def _disconnected(self, client, userdata, flags, reason, properties):
        if not self._stopping:
            print('the broker is gone (%s); trying again' % reason, file=sys.stderr, flush=True)

    def _send(self):
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._stopping or self._pending and self.client.is_connected(), 1.0)
                if self._stopping:
                    return
                batch = {}
                if self.client.is_connected():
                    batch, self._pending = self._pending, {}
            self._send_batch(batch)

    def _send_batch(self, batch):
        """Publish a batch and wait until it has left, so that newer values replace those that wait meanwhile."""
        last = None
        for topic, payload in batch.items():
            last = self.client.publish(topic, payload, retain=True)
        self.sent += len(batch)
        try:
            if last is not None:
                last.wait_for_publish(BATCH_TIMEOUT)
        except (RuntimeError, ValueError):  # not connected any more: all is sent again when it is
            pass


class Bridge:
    """Hear a sensors server as a page does, and tell a Publisher."""

    def __init__(self, publisher):
        self.publisher = publisher

    def hear(self, message):
        """Take one message of the server, an object or an array of them; what is not known is left out."""
        try:
            value = json.loads(message)
        except ValueError:
            return
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, dict):
                self._take(each)

    def _take(self, value):
        if 'hello' in value:
            self.publisher.put('devices/' + level(value['hello']['device']), json.dumps(value['hello']))
        elif 's' in value and 'd' in value:
            for sensor, values in value['s'].items():
                self.publisher.put('devices/%s/%s' % (level(value['d']), level(sensor)),
                                   json.dumps({'t': value['t'], 'v': values}))
        elif 'gone' in value:
            self.publisher.clear('devices/' + level(value['gone']['device']))
        elif 'info' in value:
            self.publisher.put(INFO, json.dumps(value['info']))

    def run(self, uri):
        """Hear the server at uri for ever; connect again whenever the connection breaks."""
        for ws in minws.reconnect(uri, first_delay=1, max_delay=LONGEST_PAUSE, ping_interval=5, ping_timeout=5):
            print('connected to %s' % uri, flush=True)
            try:
                for message in ws:
                    self.hear(message)
            except minws.ConnectionClosed as closed:
                print('connection lost (%s); connecting again' % closed, file=sys.stderr, flush=True)


##############################################################################
# The page that hears the broker
##############################################################################

def page_of_broker(websocket):
    """Return the page of the sensors server with a socket that speaks MQTT, as bytes."""
    with open(PAGE, encoding='utf-8') as file:
        page = file.read()
    with open(SHIM, encoding='utf-8') as file:
        shim = file.read()
    script = '<script>\nconst BROKER = %s;\n%s</script>\n' % (json.dumps(websocket).replace('<', '\\u003c'), shim)
    return page.replace('<script', script + '<script', 1).encode('utf-8')


##############################################################################
# Command line
##############################################################################

def address(text):
    """Return (host, port) in HOST[:PORT]."""
    host, colon, port = text.rpartition(':')
    return (host, int(port)) if colon else (text, 1883)


def main(argv=None):
    """Carry readings on until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.scale_out.mqtt',
                                     description='Carry readings on to an MQTT broker.')
    parser.add_argument('uri', metavar='ws://HOST:PORT/ws', help='the socket of the sensors server')
    parser.add_argument('--broker', type=address, default=('localhost', 1883), metavar='HOST[:PORT]')
    parser.add_argument('--page', type=int, default=None, metavar='PORT', help='serve the page that hears the broker')
    parser.add_argument('--websocket', default=None, metavar='ws://HOST:PORT',
                        help="the broker's listener for browsers (default: port 9001 of the broker)")
    arguments = parser.parse_args(argv)
    if mqtt is None:
        parser.error('paho-mqtt is missing: pip install paho-mqtt')
    publisher = Publisher(*arguments.broker)
    publisher.start()
    server = None
    try:
        if arguments.page is not None:
            websocket = arguments.websocket or 'ws://%s:9001' % arguments.broker[0]
            server = minws.serve({}, '0.0.0.0', arguments.page, pages={'/': page_of_broker(websocket)})
            server.start()
            print('open in a browser: http://localhost:%d/' % server.port, flush=True)
        Bridge(publisher).run(arguments.uri)
    except KeyboardInterrupt:
        return 0
    finally:
        publisher.stop()
        if server is not None:
            server.shutdown()


if __name__ == '__main__':
    sys.exit(main())
