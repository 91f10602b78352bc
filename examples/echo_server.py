"""Serve an echo, written in each of the three styles.

    python3 -m examples.echo_server
    python3 -m examples.echo_server --style callback --port 9000

callback  a class; one thread runs all connections, and calls received_message
blocking  a function; each connection has a thread of its own, and the function waits for messages
frames    a function; frames as they are on the wire, and nothing is answered that it does not answer

To talk to it: `python3 -m examples.echo_client ws://127.0.0.1:8765/ hello`
"""
import argparse
import sys

from minws import OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG, Frame, WebSocket, serve


class Echo(WebSocket):
    def received_message(self, message):
        self.send(message.data, message.is_binary)


def echo_messages(ws):
    for message in ws:
        ws.send(message)


def echo_frames(ws):
    opcode = None
    while opcode != OPCODE_CLOSE:
        frame = ws.recv_frame()
        opcode = OPCODE_PONG if frame.opcode == OPCODE_PING else frame.opcode
        if frame.opcode != OPCODE_PONG:  # an echoed pong would be one that nobody asked for
            ws.send_frame(Frame(opcode, frame.body, fin=frame.fin))


STYLES = {'callback': Echo, 'blocking': echo_messages, 'frames': echo_frames}


def main():
    parser = argparse.ArgumentParser(description='Echo every message.')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 lets other devices in (%(default)s)')
    parser.add_argument('--port', type=int, default=8765, help='0 takes a free one (%(default)s)')
    parser.add_argument('--style', choices=sorted(STYLES), default='blocking')
    options = parser.parse_args()
    try:
        server = serve(STYLES[options.style], options.host, options.port)
    except OSError as error:
        sys.exit('Cannot listen on %s: %s.' % (options.host, error.strerror))
    with server:
        print('Echo (%s) at ws://%s:%d/' % (options.style, options.host, server.port), flush=True)
        server.serve_forever()


if __name__ == '__main__':
    main()
