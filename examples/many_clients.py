"""Connect thousands of clients to one server, and let one message reach them all.

    python3 -m examples.many_clients                                  2,000 clients, with a server of its own
    python3 -m examples.many_clients ws://192.168.1.20:8767/ --clients 500
    python3 -m examples.many_clients --serve --host 0.0.0.0           only the server

All clients live in one WebSocketManager, which is one thread. The first client sends a message, the server sends it on
to everybody, and when all have it they close. The server that this script starts is a process of its own, because the
operating system counts open connections for each process. It exits with 1 if a client missed anything.
"""
import argparse
import collections
import os
import re
import subprocess
import sys
import threading
import time

import minws

try:
    import resource
except ImportError:  # not on Windows, which has no such limit
    resource = None

OTHER_DESCRIPTORS = 64  # what Python, the poller and the standard streams have open beside the connections


class Progress:
    """Counts what happened to all clients; any thread may count and wait."""

    def __init__(self, patience):
        self.patience = patience
        self.counts = collections.Counter()
        self.changed = threading.Condition()

    def count(self, what):
        with self.changed:
            self.counts[what] += 1
            self.changed.notify_all()

    def wait(self, what, number):
        """Wait until `what` was counted `number` times, at most `patience` seconds; return its count."""
        with self.changed:
            self.changed.wait_for(lambda: self.counts[what] >= number, self.patience)
            return self.counts[what]


class Client(minws.WebSocketBaseClient):
    """One of many: the manager's thread calls everything below but handshake_ok."""

    manager = None
    progress = None
    broadcast = None
    close_codes = ()

    def handshake_ok(self):
        self.manager.add(self)

    def received_message(self, message):
        if self.broadcast is None:
            self.broadcast = str(message)
            self.progress.count('received')

    def closed(self, code, reason=None):
        self.close_codes += (code,)
        self.progress.count('closed')


def run(url, number, patience):
    """Connect, broadcast and close, printing each stage; return True if no client missed anything."""
    manager, progress, clients = minws.WebSocketManager(), Progress(patience), []
    manager.start()
    try:
        connect_all(url, number, manager, progress, clients)
        received = send_to_all(progress, clients)
        threads = threading.active_count()
        started = time.time()
        manager.close_all(1000, 'all done')
        progress.wait('closed', number)
    finally:
        manager.stop()
        manager.join()
    closed_once = sum(client.close_codes in ((1000,), (1001,)) for client in clients)
    print('%d of %d closed once, with 1000 or 1001, in %.2f s' % (closed_once, number, time.time() - started))
    print('threads for all these clients: %d' % threads)
    return received == closed_once == number


def connect_all(url, number, manager, progress, clients):
    """Append `number` connected clients to the list `clients`, run by the manager."""
    started = time.time()
    for _ in range(number):
        client = Client(url)
        client.manager, client.progress = manager, progress
        client.connect()
        clients.append(client)
    print('%d clients connected in %.2f s' % (len(manager), time.time() - started))


def send_to_all(progress, clients):
    """Have the first client send something; return how many got it from the server."""
    started = time.time()
    clients[0].send('hello, everybody')
    received = progress.wait('received', len(clients))
    print('%d of %d received %r in %.2f s' % (received, len(clients), clients[0].broadcast, time.time() - started))
    return received


class Everybody(minws.WebSocket):
    """Sends on to everybody what anybody sends."""

    server = None

    def received_message(self, message):
        self.server.broadcast('%s (connections of the server: %d, its threads: %d)' % (
            message, len(self.server.connections), threading.active_count()))


def serve(host, port):
    """Serve Everybody until Ctrl-C or SIGTERM."""
    allow_descriptors(minws.MAX_MANAGED + OTHER_DESCRIPTORS)
    try:
        Everybody.server = minws.serve(Everybody, host, port)
    except OSError as error:
        sys.exit('Cannot listen on %s: %s.' % (host, error.strerror))
    with Everybody.server as server:
        print('Everybody at ws://%s:%d/' % (host, server.port), flush=True)
        server.serve_forever()


def run_with_own_server(number, patience):
    """Like run, against a server in a child process."""
    path = os.pathsep.join([os.path.dirname(os.path.abspath(minws.__file__))] + sys.path)
    child = subprocess.Popen([sys.executable, os.path.abspath(__file__), '--serve', '--port', '0'],
                             env=dict(os.environ, PYTHONPATH=path), stdout=subprocess.PIPE, universal_newlines=True)
    try:
        address = re.search(r'ws://\S+', child.stdout.readline())
        return address is not None and run(address.group(), number, patience)
    finally:
        child.terminate()
        child.communicate()


def allow_descriptors(wanted):
    """Raise the limit on open files to `wanted`, as far as the hard limit allows; return it, None if there is none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def main():
    parser = argparse.ArgumentParser(description='Connect many clients to one server.')
    parser.add_argument('url', metavar='URL', nargs='?', help='a server that sends on to all what one client sends')
    parser.add_argument('--clients', type=int, default=2000, metavar='N', help='how many (%(default)s)')
    parser.add_argument('--patience', type=float, default=60, metavar='SECONDS',
                        help='how long to wait for a broadcast to arrive, and for all to close (%(default)s)')
    parser.add_argument('--serve', action='store_true', help='be the server, until Ctrl-C')
    parser.add_argument('--host', default='127.0.0.1', help='with --serve (%(default)s)')
    parser.add_argument('--port', type=int, default=8767, help='with --serve; 0 takes a free one (%(default)s)')
    options = parser.parse_args()
    if options.serve:
        return serve(options.host, options.port)
    allowed = allow_descriptors(options.clients + OTHER_DESCRIPTORS)
    if allowed is not None and allowed < options.clients + OTHER_DESCRIPTORS:
        sys.exit('%d clients need %d open files and the hard limit is %d (ulimit -Hn): try --clients %d.' % (
            options.clients, options.clients + OTHER_DESCRIPTORS, allowed, allowed - OTHER_DESCRIPTORS))
    try:
        if options.url:
            good = run(options.url, options.clients, options.patience)
        else:
            good = run_with_own_server(options.clients, options.patience)
    except (OSError, minws.WebSocketException) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit('interrupted')
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
