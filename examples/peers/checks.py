"""What is tried with every peer, once in each direction, each time on a connection of its own."""
import collections
import time
from concurrent.futures import ThreadPoolExecutor

from .ends import DEADLINE, SUBPROTOCOL

TEXTS = ['Grüße, 世界 – 😀', 'Grüße, 世界 – 😀', 'x' * 125, 'ÿ' * 63, 'é' * 32768]  # twice: a window has seen it
BYTES = [bytes(range(256)), bytes(range(256)), b'\xff\xfe\0', b'\0' * 65535, b'\0' * 65536]
REASON = 'Feierabend – 世界'
MEBIBYTE = 1 << 20
CLOSE_LIMIT = 2.5  # seconds; implementations give up after 3 or more


def arrives(receiver, message):
    received = receiver.recv()
    assert type(received) is type(message)
    assert received == message, 'another message: %.60r' % (received,)


def exchange(sender, receiver, messages):
    for message in messages:
        if type(message) in sender.types and type(message) in receiver.types:
            sender.send(message)
            arrives(receiver, message)


def text(sender, receiver):
    exchange(sender, receiver, TEXTS)


def binary(sender, receiver):
    exchange(sender, receiver, BYTES)


def empty(sender, receiver):
    exchange(sender, receiver, ['', b'', 'not empty'])


def large(sender, receiver):
    """1 MiB, to the byte, of what compresses by half or so: more than any window or socket buffer holds at once."""
    numbers = ''.join('%d' % (number * 2654435761 % 4294967296) for number in range(MEBIBYTE // 8))
    exchange(sender, receiver, [('ö' + numbers)[:MEBIBYTE - 1], numbers[:MEBIBYTE].encode()])


def fragments(sender, receiver):
    """A message that is cut within characters, and one that begins and ends with nothing."""
    whole = TEXTS[0].encode()
    sender.send_fragments([whole[:3], whole[3:4], whole[4:9], whole[9:]], True)
    arrives(receiver, TEXTS[0])
    if bytes in receiver.types:
        pieces = [b'', bytes(1000), b'', b'\xff' * 70000, b'']
        sender.send_fragments(pieces, False)
        arrives(receiver, b''.join(pieces))


def ping(sender, receiver):
    """The ping is answered while the other end waits for a message."""
    with ThreadPoolExecutor(1) as pool:
        message = pool.submit(receiver.recv)
        try:
            sender.ping()
        finally:
            sender.send('after the ping')
        assert message.result(DEADLINE) == 'after the ping'


def close(sender, receiver):
    """Code and reason arrive, and the code comes back, or 1000, which some answer; nobody waits for a timeout."""
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(sender.close, 4001, REASON)
        assert receiver.closed() == (4001, REASON)
        assert answer.result(DEADLINE) in (4001, 1000, None)
    assert time.monotonic() - began < CLOSE_LIMIT


def subprotocol(sender, receiver):
    assert (sender.subprotocol, receiver.subprotocol) == (SUBPROTOCOL, SUBPROTOCOL)
    exchange(sender, receiver, TEXTS[:1])


def tls(sender, receiver):
    large(sender, receiver)
    close(sender, receiver)


Check = collections.namedtuple('Check', 'name function options')

CHECKS = [Check(name, function, options) for name, function, options in [
    ('text', text, {}),
    ('binary', binary, {}),
    ('empty', empty, {}),
    ('large', large, {}),
    ('fragments', fragments, {}),
    ('ping', ping, {}),
    ('close', close, {}),
    ('subprotocol', subprotocol, {'subprotocols': ['unknown', SUBPROTOCOL]}),
    ('tls', tls, {'tls': True}),
    ('deflate-text', text, {'deflate': True}),
    ('deflate-binary', binary, {'deflate': True}),
    ('deflate-large', large, {'deflate': True}),
    ('deflate-fragments', fragments, {'deflate': True}),
]]


def run(bench, row, check):
    """Run a check with the peer of a row; raises what goes wrong, NotInstalled if something is missing."""
    for peer_sends in (False, True):
        if peer_sends and check.name in row.peer.one_way:
            continue
        with bench.pair(row, **check.options) as (ours, theirs):
            extensions = ['permessage-deflate'] if check.options.get('deflate') else []
            assert ours.extensions == extensions
            assert theirs.extensions == extensions
            assert ours.subprotocol == theirs.subprotocol
            check.function(*(theirs, ours) if peer_sends else (ours, theirs))
