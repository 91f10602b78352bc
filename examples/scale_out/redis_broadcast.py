"""Several server processes as if they were one: what anybody says to one of them, all viewers of all of them hear.

    apt-get install redis-server && pip install redis
    redis-server --port 6379 --save ''
    python3 -m examples.scale_out.redis_broadcast --port 9000 --processes 4

The processes listen at one port: Linux gives each connection to one of them (SO_REUSEPORT). Behind nginx each has a
port of its own, with --processes 1; nginx.conf beside this file is for two of them.

    /push    who has something to say, such as droid_sensor.py
    /ws      who wants to hear it all

Redis carries a message to the other processes and keeps nothing. While it is away each process goes on for itself, says
so, and joins the others again when it is back; what was on its way when Redis fell silent may be heard twice. A viewer
that is slower than the messages misses some.
"""
import argparse
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time

import minws

try:
    import redis
except ImportError:
    redis = None

CHANNEL = 'minws'             # what the processes call each other on
WAITING = 1000                # messages that wait for Redis; above, new ones are for our own viewers alone
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0    # seconds between two attempts to reach Redis
PATIENCE = 5.0                # seconds without an answer after which Redis is taken for dead
TURN = 0.2                    # seconds after which a thread that waits looks whether it should end


class SharedBroadcast:
    """Tell the viewers of all processes that share a channel of a Redis server; `tell` never blocks, in any thread."""

    def __init__(self, url, channel=CHANNEL):
        self.server = None    # set once, before the first message
        self.joined = threading.Event()   # set while messages of other processes arrive
        self._redis = redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)
        self._channel = channel
        self._waiting = queue.Queue(WAITING)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=run, name=run.__name__, daemon=True)
                         for run in (self._publish, self._subscribe)]

    def start(self, server):
        self.server = server
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def tell(self, message):
        """Send text to every viewer of every process: through Redis, from where it comes back to us as well."""
        try:
            if self.joined.is_set():
                return self._waiting.put_nowait(message)
        except queue.Full:
            pass
        self._tell_ours(message)

    def _tell_ours(self, message):
        self.server.broadcast(message, exclude=[ws for ws in self.server.connections if is_pushing(ws)])

    def _publish(self):
        """Hand to Redis what waits, as many as there are in one go."""
        while not self._stopping.is_set():
            try:
                messages = [self._waiting.get(timeout=TURN)]
            except queue.Empty:
                continue
            while len(messages) < 100 and not self._waiting.empty():
                messages.append(self._waiting.get())
            try:
                pipeline = self._redis.pipeline(transaction=False)
                for message in messages:
                    pipeline.publish(self._channel, message)
                pipeline.execute()
            except redis.RedisError:
                self.joined.clear()       # until the subscription hears something
                for message in messages:
                    self._tell_ours(message)

    def _subscribe(self):
        """Tell our viewers what comes from Redis; begin anew whenever it goes."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                with self._redis.pubsub() as subscription:
                    subscription.subscribe(self._channel)
                    self._hear(subscription)
                    pause = FIRST_PAUSE
            except redis.RedisError as error:
                pause = FIRST_PAUSE if self.joined.is_set() else pause
                say('without Redis (%s): each process for itself' % error, sys.stderr)
            self.joined.clear()
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hear(self, subscription):
        heard, asked = time.monotonic(), False
        while not self._stopping.is_set():
            message = subscription.get_message(timeout=TURN)
            silence = time.monotonic() - heard
            if message is None:
                if silence > PATIENCE:
                    raise redis.ConnectionError('no answer for %g seconds' % PATIENCE)
                if silence > PATIENCE / 2 and not asked:
                    subscription.ping()   # a server behind a cable that was cut says nothing, too
                    asked = True
                continue
            heard, asked = time.monotonic(), False
            if not self.joined.is_set():
                say('together with the others at Redis')
                self.joined.set()
            if message['type'] == 'message':
                self._tell_ours(message['data'].decode('utf-8'))


def say(text, file=None):
    """Print a line in one piece: print() would let another thread between the text and its end."""
    file = file or sys.stdout
    file.write(text + '\n')
    file.flush()


def is_pushing(ws):
    return ws.request.target.partition('?')[0] == '/push'


def serve(host, port, url, reuse_port=False):
    """Return a Server, started, whose broadcasts are shared, and its SharedBroadcast."""
    shared = SharedBroadcast(url)

    def push(ws):
        """Handle one who has something to say."""
        for message in ws:
            if isinstance(message, str):
                shared.tell(message)

    def watch(ws):
        """Handle a viewer."""
        for _ in ws:
            pass

    server = minws.serve({'/push': push, '/ws': watch}, host, port, reuse_port=reuse_port)
    server.start()
    shared.start(server)
    return server, shared


def run(host, port, url):
    """Be one of several processes at a port, until SIGTERM or Ctrl-C."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server, shared = serve(host, port, url, reuse_port=True)
    say('process %d at port %d' % (os.getpid(), server.port))
    stopping.wait()
    server.shutdown()
    shared.stop()


def main(argv=None):
    """Run the processes until Ctrl-C; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.scale_out.redis_broadcast',
                                     description='Server processes that share their broadcasts through Redis.')
    parser.add_argument('--host', default='0.0.0.0')
    parser.add_argument('--port', type=int, default=9000)
    parser.add_argument('--processes', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--redis', default='redis://localhost:6379', metavar='URL')
    arguments = parser.parse_args(argv)
    if redis is None:
        parser.error('redis is missing: pip install redis')
    processes = [multiprocessing.Process(target=run, args=(arguments.host, arguments.port, arguments.redis))
                 for _ in range(arguments.processes)]
    for process in processes:
        process.start()
    # Ctrl-C reaches the children by the terminal; SIGTERM comes to us alone.
    signal.signal(signal.SIGTERM, lambda *_: [process.terminate() for process in processes])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in processes:
        process.join()
    return max(process.exitcode != 0 for process in processes)


if __name__ == '__main__':
    sys.exit(main())
