"""Test a handler without a network, in three ways.

    python3 -m examples.mock_data_source

A WebSocket takes any object that has the few methods of a socket which it uses. So a test can hand it

- a ScriptedSocket, which gives prepared bytes and keeps what was written: for classes, and for peers that fail;
- one end of pair(), two connections in memory: for functions that call recv and send;
- a MagicMock: for tests that ask which calls were made.

Each function below is such a test. As a script they run one after the other and print what happened.
"""
import threading
from unittest.mock import MagicMock

from minws import OPCODE_TEXT, Frame, ScriptedSocket, WebSocket, pair


class Adder(WebSocket):
    """Answers the numbers of a message with their sum; closes when they are none."""

    def opened(self):
        self.closings = []

    def received_message(self, message):
        try:
            self.send(str(sum(int(word) for word in str(message).split())))
        except ValueError:
            self.close(1008, 'numbers, please')

    def closed(self, code, reason=None):
        self.closings.append((code, reason))


def add(ws):
    """The same as a function."""
    for message in ws:
        try:
            ws.send(str(sum(int(word) for word in message.split())))
        except ValueError:
            ws.close(1008, 'numbers, please')


def from_client(text):
    """Return one text frame as a client writes it: masked."""
    return Frame(OPCODE_TEXT, text.encode(), masking_key=b'mask', fin=1).build()


def test_class_with_a_scripted_socket():
    sock = ScriptedSocket(from_client('2 3'), from_client('20 22')[:4], from_client('20 22')[4:])
    adder = Adder(sock)
    adder.run()
    assert sock.sent == b'\x81\x015' b'\x81\x0242'
    assert [code for code, _ in adder.closings] == [1006], 'the script ends without a close frame'
    return 'the class read a frame, then one in two pieces, and wrote %r' % bytes(sock.sent)


def test_class_when_the_network_fails():
    sock = ScriptedSocket(from_client('2 3'), ConnectionResetError('unplugged'))
    adder = Adder(sock)
    errors = []
    adder.unhandled_error = errors.append
    adder.run()
    assert sock.sent == b'\x81\x015'
    assert [str(error) for error in errors] == ['unplugged']
    assert [code for code, _ in adder.closings] == [1006]
    return 'the class answered, saw %r and closed with %d' % (errors[0], adder.closings[0][0])


def test_function_with_a_pair():
    client, server = pair()
    handler = threading.Thread(target=add, args=(server,))
    handler.start()
    client.send('1 2 3 4')
    answer = client.recv(timeout=5)
    client.close()
    handler.join(5)
    assert answer == '10'
    assert not handler.is_alive(), 'the loop over messages ends when the peer closes'
    return 'the function answered %r and returned when the client closed' % answer


def test_calls_with_a_mock():
    source = MagicMock()
    source.recv.side_effect = [from_client('one two'), b'']
    adder = Adder(sock=source)
    adder.send('hello there')
    source.sendall.assert_called_once_with(b'\x81\x0bhello there')
    adder.run()
    last_written = bytes(source.sendall.call_args[0][0])
    assert last_written == b'\x88\x11\x03\xf0numbers, please'
    return 'the mock was asked to send %d times, at last %r' % (source.sendall.call_count, last_written)


if __name__ == '__main__':
    for test in (test_class_with_a_scripted_socket, test_class_when_the_network_fails,
                 test_function_with_a_pair, test_calls_with_a_mock):
        print('%s: %s' % (test.__name__, test()))
