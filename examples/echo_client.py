"""Talk to an echo server, such as `python3 -m examples.echo_server`.

    python3 -m examples.echo_client ws://127.0.0.1:8765/ hello world
    python3 -m examples.echo_client ws://127.0.0.1:8765/

With messages, a blocking client sends each and waits for its echo. Without, a class sends some in its opened(), and
its own thread calls received_message() with what comes back.
"""
import argparse
import sys

from minws import WebSocketClient, WebSocketException, connect


class HashesAndStars(WebSocketClient):
    def opened(self):
        self.send('#' * length for length in range(1, 200, 25))  # one message, a fragment for each item
        for length in range(0, 200, 25):
            self.send('*' * length)

    def received_message(self, message):
        print(len(message), message, flush=True)
        if len(message) == 175:
            self.close(reason='Bye bye')

    def closed(self, code, reason=None):
        print('Closed with %d %s' % (code, reason.decode()))


def talk(url, messages):
    """Send each of messages and print its echo; a server that is silent for 10 seconds is a TimeoutError."""
    with connect(url) as ws:
        for message in messages:
            ws.send(message)
            print(ws.recv(timeout=10), flush=True)


def run_class(url):
    client = HashesAndStars(url)
    try:
        client.connect()
        client.run_forever()
    except KeyboardInterrupt:
        client.close()


def main():
    parser = argparse.ArgumentParser(description='Send messages to an echo server and print what comes back.')
    parser.add_argument('url', metavar='URL', help='ws://host:port/path, or wss://')
    parser.add_argument('messages', metavar='MESSAGE', nargs='*')
    options = parser.parse_args()
    try:
        talk(options.url, options.messages) if options.messages else run_class(options.url)
    except (OSError, ValueError, WebSocketException) as error:  # TimeoutError is an OSError
        sys.exit('%s: %s' % (options.url, error))


if __name__ == '__main__':
    main()
