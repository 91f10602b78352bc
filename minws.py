"""minws: WebSocket (RFC 6455) in one file, for a phone, a Pi or a router, and the browser that draws their readings.

Copy this file next to your script; it needs Python 3.6 or later and nothing else.

    import minws

    def echo(ws):                       # a thread for each connection
        for message in ws:
            ws.send(message)

    minws.serve(echo, '', 9000).serve_forever()

Sections, each of which uses only what stands above it:

     1. Constants and errors
     2. Frames
     3. Messages
     4. Extensions
     5. Stream
     6. HTTP heads and handshake
     7. Loop
     8. Transport
     9. Connection
    10. Drivers
    11. WebSocket
    12. Manager
    13. Server
    14. Client
"""

import binascii
import codecs
import errno
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import OrderedDict, deque
from enum import IntEnum
from io import BytesIO

__version__ = '1.0.0'
__all__ = [
    'BinaryMessage', 'CLOSE_TIMEOUT', 'CloseControlMessage', 'ConcurrencyError', 'ConnectionClosed',
    'ConnectionClosedError', 'ConnectionClosedOK', 'DeflateFrame', 'EPollPoller', 'EchoWebSocket', 'Extension', 'Frame',
    'FrameTooLargeException', 'HandshakeError', 'Headers', 'Heartbeat', 'InvalidBytesError', 'InvalidHandshake',
    'InvalidHeader', 'InvalidHeaderFormat', 'InvalidHeaderValue', 'InvalidMessage', 'InvalidProxy',
    'InvalidProxyStatus', 'InvalidStatus', 'InvalidStatusCode', 'InvalidURI', 'InvalidUpgrade', 'KQueuePoller',
    'Message', 'NegotiationError', 'OPCODE_BINARY', 'OPCODE_CLOSE', 'OPCODE_CONTINUATION', 'OPCODE_PING', 'OPCODE_PONG',
    'OPCODE_TEXT', 'PayloadTooBig', 'PerMessageDeflate', 'PingControlMessage', 'PollPoller', 'PongControlMessage',
    'ProtocolError', 'ProtocolException', 'ProxyError', 'Request', 'Response', 'ScriptedSocket', 'SecurityError',
    'SelectPoller', 'Server', 'State', 'Stream', 'StreamClosed', 'TextFrameEncodingException', 'TextMessage',
    'UnsupportedFrameTypeException', 'Utf8Validator', 'WebSocket', 'WebSocketBaseClient', 'WebSocketClient',
    'WebSocketException', 'WebSocketManager', 'WS_KEY', 'WS_VERSION', 'accept', 'apply_mask', 'basic_auth',
    'configure_logger', 'connect', 'format_addresses', 'pair', 'reconnect', 'serve', 'unix_connect', 'unix_serve']


########################################################################################################################
# 1. Constants and errors
#
# Numbers of RFC 6455, limits with their reasons, exceptions: those that a peer's mistake causes carry the close code
# (or HTTP status) that it must see; a caller's mistake is a built-in exception.

OPCODE_CONTINUATION, OPCODE_TEXT, OPCODE_BINARY = 0x0, 0x1, 0x2
OPCODE_CLOSE, OPCODE_PING, OPCODE_PONG = 0x8, 0x9, 0xA
OPCODES = frozenset((0x0, 0x1, 0x2, 0x8, 0x9, 0xA))

WS_KEY = b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11'    # RFC 6455 1.3
WS_VERSION = 13

UNLIMITED = sys.maxsize
MAX_SIZE = 1 << 20      # bytes of a message: a phone has room for a few of them
MAX_FRAGMENTS = 1024    # fragments of a message, or max_size / 64 if that is more: empty ones must not be free
MAX_QUEUE = 16          # received messages that wait for recv; beyond, the peer's own buffers fill
MAX_HEAD = 16 << 10     # bytes of a request or response head; browsers send 0.5 to 8 KiB, most of it cookies
MAX_LINE = 8 << 10      # bytes of one line of it, as nginx and Apache have it
MAX_HEADERS = 64        # lines of it
MAX_HANDSHAKES = 64     # opening handshakes in progress; one more and the oldest gives way
MAX_THREADS = 256       # blocking connections of a server, each with its thread
MAX_MANAGED = 10000     # connections of a server that its one loop serves
OPEN_TIMEOUT = 10       # seconds from accept or connect to the end of the handshake, TLS included
CLOSE_TIMEOUT = 5       # seconds that a peer has to answer our close frame
DRAIN_TIMEOUT = 1       # seconds that a server reads on after the closing handshake, lest TCP resets
PING_INTERVAL = 20      # seconds between pings; NAT tables of phone networks forget after 30 and more
PING_TIMEOUT = 20       # seconds without any byte after a ping, then the peer is gone
READ_SIZE = 1 << 16     # bytes asked of one recv(): 256 KiB cost 13 us more, for a buffer that is mostly empty
WRITE_SOFT = 1 << 16    # unsent bytes at which a blocking sender waits and a managed peer is not read
WRITE_HARD = 1 << 20    # unsent bytes at which a peer that does not read is dropped
WRITE_TIMEOUT = 10      # seconds in which the kernel takes no byte for a peer, then it is dropped
INTERVAL = 0.25             # seconds between two looks at connections that nobody reads, and at the clocks
MAX_KEYS = 1024         # keyed messages that wait for a slow peer, or are kept for late joiners; the oldest give way
WINDOW = 4              # keyed messages in flight: 40 a second at 100 ms round trip, and never stale
OWN_PING = b'minws'     # how the payloads of our own pings begin: their pongs are no news for the user
PATIENCE = 1            # seconds after which a peer that answers no pings gets the next of them
BATCH = 1024            # messages handed over in one go; then others have their turn

# What is said of a connection unless its class, or the arguments of serve() and connect(), say otherwise. A new limit
# of a connection goes here, and connection_settings() checks it; one of a whole server is an argument of Server.
SETTINGS = {'open_timeout': OPEN_TIMEOUT, 'ping_interval': PING_INTERVAL, 'ping_timeout': PING_TIMEOUT,
            'close_timeout': CLOSE_TIMEOUT, 'heartbeat_freq': None, 'max_size': MAX_SIZE, 'max_queue': MAX_QUEUE,
            'logger': None}

_BYTES = (bytes, bytearray, memoryview)


class State(IntEnum):
    """The states of a connection: ``ws.state is State.OPEN`` holds, and ``ws.state.name`` is 'OPEN'."""
    CONNECTING, OPEN, CLOSING, CLOSED = range(4)


class WebSocketException(Exception):
    """Base of all exceptions of this file; ``code`` is the close code that tells the peer."""
    code = 1002

    def __init__(self, message='', code=None):
        Exception.__init__(self, message)
        self.code = code or self.code


class ProtocolException(WebSocketException):
    """The peer broke a rule of RFC 6455."""


class FrameTooLargeException(WebSocketException):
    """A frame or message is longer than allowed."""
    code = 1009


class UnsupportedFrameTypeException(ProtocolException):
    """A frame has a reserved opcode."""


class TextFrameEncodingException(WebSocketException):
    """A text is not UTF-8."""
    code = 1007


class InvalidBytesError(WebSocketException):
    """Bytes that cannot be what they should be."""
    code = 1007


class StreamClosed(WebSocketException):
    """The stream is closed and takes no more bytes."""


class HandshakeError(WebSocketException):
    """The opening handshake failed: ``status`` and ``headers`` (pairs) are to be answered, with HTTP.

    On a client ``response`` is the Response that was refused, or None; status and headers are those of it.
    """

    def __init__(self, msg, status=400, headers=(), response=None):
        WebSocketException.__init__(self, msg)
        self.status, self.headers, self.response = status, headers, response
        if response is not None:
            self.status, self.headers = response.status_code, response.headers


class InvalidURI(HandshakeError, ValueError):
    """This is no URL of a WebSocket, or of a proxy."""


class InvalidMessage(HandshakeError):
    """What the server sent is no answer in HTTP, or it closed the connection instead of one."""


class InvalidStatus(HandshakeError):
    """The server answered with another status than 101: ``response`` has the headers, and a body of at most 64 KiB."""

    def __init__(self, response):
        said, plain = '', response.headers.get('Content-Type', '').startswith('text/plain')
        if plain and response.body.strip():
            said = ': ' + shown(response.body.decode('utf-8', 'replace').strip())
        HandshakeError.__init__(self, 'the server answered %d %s%s' % (
            response.status_code, shown(response.reason_phrase), said), response=response)
        self.status_code = self.status


class InvalidHeader(HandshakeError):
    """The server answered with 101, but the headers that accept a WebSocket are missing or wrong."""


class NegotiationError(HandshakeError):
    """The server chose a subprotocol or extensions that were not offered."""


class ProxyError(HandshakeError):
    """The proxy did not connect us; ``response`` is its answer."""


class SecurityError(HandshakeError):
    """Going on would not be safe: a redirect that is not followed, or a certificate that is not the pinned one."""


# the names that programs written for the library websockets catch
InvalidHandshake, InvalidStatusCode = HandshakeError, InvalidStatus
InvalidProxy, InvalidProxyStatus = InvalidURI, ProxyError
InvalidUpgrade = InvalidHeaderFormat = InvalidHeaderValue = InvalidHeader
ProtocolError, PayloadTooBig = ProtocolException, FrameTooLargeException


class ConcurrencyError(WebSocketException):
    """Two want what only one can have: two recv(), or recv() on a connection that somebody else reads."""


class ConnectionClosed(WebSocketException, RuntimeError):
    """The connection is closed, with the peer's ``code`` and ``reason`` (str), 1006 if it sent no close frame.

    ``rcvd`` and ``sent`` are the close frames as (code, reason) or None.
    """

    def __init__(self, code=1006, reason='', rcvd=None, sent=None):
        how = shown(reason) if rcvd else 'no close frame received, sent %s' % shown(sent)
        WebSocketException.__init__(self, 'connection closed: %d, %s' % (code, how), code)
        self.reason, self.rcvd, self.sent = reason, rcvd, sent


class ConnectionClosedOK(ConnectionClosed):
    """Closed by both sides with 1000, 1001 or no code at all."""


class ConnectionClosedError(ConnectionClosed):
    """Closed with another code, by an error, or without a closing handshake."""


def valid_close_code(code):
    """Tell whether *code* (int) may stand in a close frame, 7.4.1 and the registry."""
    return 1000 <= code <= 1014 and code not in (1004, 1005, 1006) or 3000 <= code <= 4999


class _StandardError:
    """Logs where the standard library has no logging module: warnings and errors go to stderr."""

    def warning(self, message, *args, exc_info=None):
        sys.stderr.write('minws: %s\n' % (message % args))
        error = exc_info if isinstance(exc_info, BaseException) else sys.exc_info()[1] if exc_info else None
        if error is not None:
            sys.excepthook(type(error), error, error.__traceback__)

    def debug(self, *_, **__):
        pass

    error, info = warning, debug


def default_logger():
    """Return the logger 'minws', or where logging is not installed a stand-in."""
    try:
        import logging      # 5.8 ms that nobody pays who has nothing to log
    except ImportError:
        return _StandardError()
    return logging.getLogger('minws')


def configure_logger(stdout=True, filepath=None, level=20):
    """Log to stdout and the file *filepath*, if given, from *level* (20 is logging.INFO) on; return the logger."""
    import logging
    logger = logging.getLogger('minws')
    logger.setLevel(level)
    handlers = [logging.StreamHandler(sys.stdout)] if stdout else []
    for handler in handlers + ([logging.FileHandler(filepath)] if filepath else []):
        handler.setFormatter(logging.Formatter('[%(asctime)s] %(levelname)s %(message)s'))
        logger.addHandler(handler)
    return logger


def shown(text):
    """Return a peer's *text* (any object) for a log line: in ASCII, escaped, cut after 200 characters."""
    text = ascii(text)
    return text if len(text) <= 200 else text[:200] + '...'


########################################################################################################################
# 2. Frames
#
#     0 1 2 3 4 5 6 7 8 9 ...                       RFC 6455 5.2
#    +-+-+-+-+-------+-+-------------+--------------------------+-------------------+---------
#    |F|R|R|R| opcode|M| length (7)  | length, 16 or 64 bits,   | masking key, 4    | payload
#    |I|S|S|S|  (4)  |A|             | if length is 126 or 127  | bytes if MASK     |
#    |N|V|V|V|       |S|             |                          |                   |
#    | |1|2|3|       |K|             |                          |                   |
#    +-+-+-+-+-------+-+-------------+--------------------------+-------------------+---------
#
# Bytes to headers and back, and the masking. The rules of a header stand once, in parse_frame_head.

_EVERY_BYTE = int.from_bytes(bytes(range(256)), 'little')
_REPEAT_256 = int.from_bytes(b'\1' * 256, 'little')
# whose translate is the faster: bytearray's on CPython (0.87 ms for 1 MiB, 1.02), bytes' on PyPy (1.1 against 5)
_CPYTHON = sys.implementation.name == 'cpython'


def apply_mask(data, key):
    """Return *data* (bytes-like) XOR the repeated 4-byte *key*, as bytes or bytearray: masks and unmasks, 5.3.

    A compiled one may take its place: ``minws.apply_mask = function``, before the first connection.

    One big integer is the fastest up to 2 KiB (289 MB/s at 125 bytes, a loop 19), above it four strided translations
    are (1.3 GB/s at 64 KiB against 0.5; by blocks is no faster), with tables for the key at hand, made in 1 us.
    """
    size = len(data)
    if size < 2048:
        repeated = key * (size + 3 >> 2)
        return (int.from_bytes(data, 'little') ^ int.from_bytes(repeated[:size], 'little')).to_bytes(size, 'little')
    masked = bytearray(data)
    source = masked if _CPYTHON else bytes(data)
    for i in range(4):
        table = (_EVERY_BYTE ^ key[i] * _REPEAT_256).to_bytes(256, 'little')
        masked[i::4] = source[i::4].translate(table)
    return masked


def masking_key():
    """Return 4 fresh, unpredictable bytes (5.3 and 10.3)."""
    return os.urandom(4)


class _ShortHeads(dict):
    """First byte → unmasked headers by length up to 125, made when first used: 0.07 us less than making each."""

    def __missing__(self, first):
        heads = self[first] = [bytes((first, length)) for length in range(126)]
        return heads


SHORT_HEADS = _ShortHeads()


def pack_frame_head(first, length, masked=0):
    """Return a header: its *first* byte, 128 if *masked*, the payload's *length* in bytes."""
    if length < 126:
        return bytes((first, masked | length)) if masked else SHORT_HEADS[first][length]
    if length < 65536:
        return struct.pack('!BBH', first, masked | 126, length)
    if length < 1 << 63:
        return struct.pack('!BBQ', first, masked | 127, length)
    raise FrameTooLargeException('a frame has less than 2**63 bytes')


def pack_frame(first, payload, key=None):
    """Return a frame: its *first* byte, the *payload* (bytes-like), the masking *key* or None."""
    if key is None:
        return pack_frame_head(first, len(payload)) + payload
    return pack_frame_head(first, len(payload), 128) + key + apply_mask(payload, key)


def parse_frame_head(data, pos=0, rsv=0):
    """Parse the frame header at data[pos:], by the rules of RFC 6455 5.2 and 5.5.

    *rsv* has the bits of the first byte (0x70) that extensions own. Return (first byte, masking key or None, length and
    position of the payload), or the number of bytes that are still wanted, an int. ProtocolException or
    FrameTooLargeException at the first byte that breaks a rule.
    """
    have = len(data) - pos
    if not have:
        return 1
    first = data[pos]
    if first & 0x70 & ~rsv:
        raise ProtocolException('reserved bits are set')
    if first & 0x0F not in OPCODES:
        raise UnsupportedFrameTypeException('reserved opcode %d' % (first & 0x0F))
    if first & 0x88 == 0x08:
        raise ProtocolException('fragmented control frame')
    if have < 2:
        return 1
    second = data[pos + 1]
    length = second & 0x7F
    if first & 0x08 and length > 125:
        raise FrameTooLargeException('control frame of more than 125 bytes', 1002)
    size = (2, 4, 10)[max(0, length - 125)]
    wanted = size + (second >> 5 & 4) - have
    if wanted > 0:
        return wanted
    start = pos + size
    if size > 2:
        length = int.from_bytes(data[pos + 2:start], 'big')
        if length >> 63:
            raise FrameTooLargeException('length of 2**63 or more', 1002)
        if length < (126 if size == 4 else 65536):
            raise ProtocolException('length is not in its shortest form')
    if second & 0x80:
        return first, bytes(data[start:start + 4]), length, start + 4
    return first, None, length, start


class Frame:
    """One frame, RFC 6455 5.2: attributes ``opcode body masking_key fin rsv1 rsv2 rsv3 payload_length``.

    ``parser`` is a started generator: ``send(bytes)``, in any slicing, returns the number of bytes wanted next, 0 at
    the end, and raises what parse_frame_head raises; bytes beyond the frame are ignored. The ``body`` is then as it was
    on the wire: ``unmask(body)``.
    """

    def __init__(self, opcode=None, body=b'', masking_key=None, fin=0, rsv1=0, rsv2=0, rsv3=0):
        if not isinstance(body, _BYTES):
            raise TypeError('the body of a frame is bytes, not %s' % type(body).__name__)
        self.opcode, self.body, self.masking_key, self.payload_length = opcode, body, masking_key, len(body)
        self.fin, self.rsv1, self.rsv2, self.rsv3 = fin, rsv1, rsv2, rsv3
        self._parser = None

    @property
    def parser(self):
        if self._parser is None:
            self._parser = self._parsing()
            next(self._parser)
        return self._parser

    @property
    def rsv(self):
        """The reserved bits, at their place in the first byte."""
        return self.rsv1 << 6 | self.rsv2 << 5 | self.rsv3 << 4

    def build(self):
        """Return the frame as bytes; ValueError for a bit that is not 0 or 1 and for reserved opcodes."""
        if self.opcode not in OPCODES or not {self.fin, self.rsv1, self.rsv2, self.rsv3} <= {0, 1}:
            raise ValueError('fin and rsv1 to rsv3 are 0 or 1, and opcode %r is known' % (self.opcode,))
        pack_frame_head(0, self.payload_length)     # raises if it is too large
        return pack_frame(self.fin << 7 | self.rsv | self.opcode, self.body, self.masking_key or None)

    def mask(self, data):
        """Return *data* masked, or unmasked, with the masking_key, if there is one."""
        return apply_mask(data, self.masking_key) if self.masking_key else data

    unmask = mask

    def _parsing(self):
        data, head = bytearray(), 1
        while isinstance(head, int):
            data += yield head
            head = parse_frame_head(data)
        first, self.masking_key, self.payload_length, start = head
        self.opcode, self.fin = first & 0x0F, first >> 7
        self.rsv1, self.rsv2, self.rsv3 = first >> 6 & 1, first >> 5 & 1, first >> 4 & 1
        end = start + self.payload_length
        while len(data) < end:
            data += yield end - len(data)
        self.body = bytes(data[start:end])
        yield 0


########################################################################################################################
# 3. Messages
#
# What frames add up to, and a caller holds in hand. Section 5 receives them.


class Message:
    """A message or control message: ``opcode``, ``data`` (bytes), ``encoding``, ``completed`` (all has arrived).

    Types other than str, which is encoded, and bytes-like are a TypeError. ``len()`` counts the characters of a text
    and the bytes of anything else, so an empty message is false: ask ``is not None``.
    """
    encoding = 'utf-8'
    completed = True
    is_text = is_binary = False

    def __init__(self, opcode, data=b'', encoding='utf-8'):
        self.opcode, self.encoding = opcode, encoding
        self.data = _message_bytes(data, encoding)

    def single(self, mask=False):
        """Return the message as one frame (bytes), with a fresh *mask* or none."""
        return self.fragment(True, True, mask)

    def fragment(self, first=False, last=False, mask=False):
        """Return the data as a fragment (bytes): the *first* carries the opcode, the *last* the fin bit."""
        opcode = self.opcode if first else OPCODE_CONTINUATION
        return pack_frame(opcode | 0x80 if last else opcode, self.data, masking_key() if mask else None)

    def extend(self, data):
        """Add *data* (str or bytes-like)."""
        self.data += _message_bytes(data, self.encoding)

    def __len__(self):
        return len(str(self)) if self.is_text else len(self.data)

    def __str__(self):
        return str(self.data, self.encoding)

    def __repr__(self):
        return '<%s %s>' % (type(self).__name__, shown(self.data))


def _message_bytes(data, encoding='utf-8'):
    if isinstance(data, str):
        return data.encode(encoding)
    if isinstance(data, _BYTES):
        return bytes(data)
    raise TypeError('a message is str or bytes, not %s' % type(data).__name__)


class TextMessage(Message):
    """A text message; *text* is str, or bytes in UTF-8."""
    opcode = OPCODE_TEXT
    is_text = True

    def __init__(self, text=None):
        self.data = b'' if text is None else _message_bytes(text)


class BinaryMessage(Message):
    """A binary message; *bytes* is bytes-like."""
    opcode = OPCODE_BINARY
    is_binary = True

    def __init__(self, bytes=None):
        self.data = b'' if bytes is None else _message_bytes(bytes)


class CloseControlMessage(Message):
    """A close frame: ``code`` (int; None becomes 1005, and the frame empty, 7.1.5) and ``reason`` (bytes)."""
    opcode = OPCODE_CLOSE

    def __init__(self, code=1000, reason=''):
        self.code = 1005 if code is None else code
        self.reason = b'' if reason is None else _message_bytes(reason)
        self.data = b'' if self.code == 1005 else struct.pack('!H', self.code) + self.reason

    def __str__(self):
        return str(self.reason, self.encoding)


class PingControlMessage(Message):
    """A ping; *data* is str or at most 125 bytes."""
    opcode = OPCODE_PING

    def __init__(self, data=None):
        self.data = b'' if data is None else _message_bytes(data)


class PongControlMessage(Message):
    """A pong; *data* is str or at most 125 bytes."""
    opcode = OPCODE_PONG
    __init__ = PingControlMessage.__init__


class Utf8Validator:
    """Check UTF-8 as it arrives, with an exact verdict at each octet.

    The table is Bjoern Hoehrmann's (http://bjoern.hoehrmann.de/utf-8/decoder/dfa/): 256 character classes, then 16
    transitions for each state. ``validate`` walks it only where Python's own decoder stops.
    """
    UTF8VALIDATOR_DFA = list(
        b'\0' * 128 + b'\1' * 16 + b'\11' * 16 + b'\7' * 32 + b'\10\10' + b'\2' * 30 + b'\12' + b'\3' * 12 + b'\4\3\3'
        + b'\13\6\6\6\5' + b'\10' * 11
        + bytes(map(int, '01235871114611111111111111111111101111101011111112111112121111111111111211111111'
                         '1211111112111111111111131311111113111113131111111311111111111111')))
    UTF8_ACCEPT = 0
    UTF8_REJECT = 1

    def __init__(self):
        self.reset()

    def reset(self):
        """Forget what was seen."""
        self.state = self.UTF8_ACCEPT
        self.codepoint = 0
        self.i = 0              # octets seen
        self._tail = b''        # those that begin a character

    def decode(self, b):
        """Take the octet *b* (int); return UTF8_ACCEPT if ``codepoint`` is complete, UTF8_REJECT, or another state."""
        kind = self.UTF8VALIDATOR_DFA[b]
        if self.state == self.UTF8_ACCEPT:
            self.codepoint = 0xFF >> kind & b
            self._tail = b''
        else:
            self.codepoint = b & 0x3F | self.codepoint << 6
        self._tail += bytes((b,))
        self.state = self.UTF8VALIDATOR_DFA[256 + self.state * 16 + kind]
        return self.state

    def validate(self, ba):
        """Take octets; return (valid?, ends on a character?, where it stopped in *ba*, and in all)."""
        if self.state == self.UTF8_REJECT:
            return False, False, 0, self.i
        octets = self._tail + ba if self.state else ba
        try:
            checked = codecs.utf_8_decode(octets, 'strict', False)[1]
        except UnicodeDecodeError as error:
            checked = error.start
        self.state = self.UTF8_ACCEPT
        for index in range(checked, len(octets)):       # Python tolerates ED A0, half a surrogate; the table does not
            if self.decode(octets[index]) == self.UTF8_REJECT:
                index -= len(octets) - len(ba)
                return False, False, index, self.i + index
        self.i += len(ba)
        return True, self.state == self.UTF8_ACCEPT, len(ba), self.i


def _sendable(message, binary):
    """Return (opcode, bytes-like) of a *message*, or (None, iterable) of one that comes in fragments."""
    if isinstance(message, str):
        return OPCODE_BINARY if binary else OPCODE_TEXT, message.encode()
    if isinstance(message, _BYTES):
        data = bytes(message)
        if binary is None or binary:
            return OPCODE_BINARY, data
        data.decode()
        return OPCODE_TEXT, data
    if isinstance(message, Message) and message.opcode in (OPCODE_TEXT, OPCODE_BINARY):
        return message.opcode, message.data
    if hasattr(message, 'keys') or not hasattr(message, '__iter__') or isinstance(message, Message):
        raise TypeError('a message is str, bytes or an iterable of one of them, not %s' % type(message).__name__)
    return None, message


def check_keyed(opcode):
    """Raise TypeError if a message with a key comes in fragments: *opcode* None."""
    if opcode is None:
        raise TypeError('a message with a key is str or bytes, not an iterable')


def fragments(chunks, binary=None, eager=False):
    """Yield the frames (opcode, payload, fin) of a message in *chunks*, an iterable of str or of bytes-like.

    If *binary* is False bytes are text, and a character may be cut between two of them. The last item of a list or
    tuple is the final fragment. Of an iterator, if *eager*, each item leaves as it comes, and an empty final fragment
    follows; else one is held back, so that the last is the final one. No chunks, no frames. TypeError for anything
    else, and for both kinds in one message; ValueError for what is not UTF-8; and what *chunks* raises.
    """
    count = len(chunks) if isinstance(chunks, (list, tuple)) else None
    first, held = True, None
    try:
        for number, (opcode, data) in enumerate(_alike(chunks, count, binary), 1):
            frame, before = (opcode if first else OPCODE_CONTINUATION, data), held
            first, held = False, None if eager or count else frame
            if before is not None:
                yield before + (False,)
            if held is None:
                yield frame + (number == count,)
    except Exception:
        if held is not None:        # it has begun, whether it is out or not
            yield held + (False,)
        raise
    if held is not None:
        yield held + (True,)
    elif not first and not count:
        yield OPCODE_CONTINUATION, b'', True


def _alike(chunks, count, binary):
    """Yield (opcode, payload) for each of *chunks*, *count* or an unknown number (None); see fragments()."""
    utf8 = Utf8Validator() if binary is False else None
    kind = None
    for number, chunk in enumerate(chunks, 1):
        opcode, data = _sendable(chunk, None if utf8 and not isinstance(chunk, str) else binary)
        if utf8 and opcode == OPCODE_BINARY:
            opcode = OPCODE_TEXT
        if opcode is None or kind not in (None, opcode):
            raise TypeError('the fragments of a message are all str or all bytes')
        if utf8 and not (utf8.validate(data)[0] and (number != count or not utf8.state)):
            raise ValueError('text is not UTF-8, or ends inside a character')
        kind = opcode
        yield opcode, data
    if utf8 and utf8.state:
        raise ValueError('text ends inside a character')


########################################################################################################################
# 4. Extensions
#
# What may change frames on their way (RFC 6455 9). An extension among the arguments of a server or client is a pattern;
# the handshake makes one object a connection from it. The stream allows exactly the bits it owns.


class Extension:
    """Base of extensions: ``name`` is its token, ``rsv`` the bits it owns (0x40, 0x20, 0x10; 0: it sees every frame).

    Parameters are lists of (name, value), with str or None. Two extensions of one name or with bits in common never
    serve one connection: the first that the peer accepts wins.
    """
    name = ''
    rsv = 0
    params = ()
    sharing = None      # what peers must have in common for one encoded frame to serve all; None: encode keeps a state

    def offer(self):
        """Client: return the parameters of each offer, the best first."""
        return [self.params]

    def accept(self, params):
        """Server: return the extension of a connection, its ``params`` to be answered, or None to decline."""
        raise NotImplementedError

    def confirm(self, params):
        """Client: return the extension of a connection by the server's *params*; HandshakeError."""
        raise NotImplementedError

    def encode(self, frame):
        """Return the Frame to send instead of *frame*, a data frame before masking."""
        return frame

    def decode(self, frame, max_size):
        """Return the Frame that the peer meant by *frame*; FrameTooLargeException past *max_size* bytes."""
        return frame


_TAIL = b'\0\0\xff\xff'         # ends what is flushed, and is not sent (RFC 7692 7.2.1)
_WINDOWS = [str(bits) for bits in range(8, 16)]
MAX_RESTARTS = 16               # of the decompressor in a message: ended streams cost time, and no peer needs many


def _deflate_params(params, client_bits=_WINDOWS):
    """Return *params* as a dict; None if one is unknown, there twice, or has a value that it must not have."""
    allowed = {'server_no_context_takeover': [None], 'server_max_window_bits': _WINDOWS,
               'client_no_context_takeover': [None], 'client_max_window_bits': client_bits}
    good = len(dict(params)) == len(params) and all([value in allowed.get(name, ()) for name, value in params])
    return dict(params) if good else None


class PerMessageDeflate(Extension):
    """The extension permessage-deflate of RFC 7692.

    *window_bits* (9 to 15) and *mem_level* (1 to 9) say how much memory a compressor takes: 33 KiB with 12 and 5, the
    default, 267 KiB with 15 and 8, 8 KiB with 9 and 1. *level* 1 makes 1 KiB of JSON 2 to 5 % longer than 6 does, in
    half the time. Without *context_takeover* each message begins afresh, both ways, which frees that memory; with it
    small messages of one kind shrink to a third, but a broadcast is compressed for each peer. None: a server's messages
    begin afresh, a client's need not. Messages under *threshold* bytes are not worth it.
    """
    name = 'permessage-deflate'
    rsv = 0x40
    _by_frame = False           # each frame is compressed by itself, not each message
    _keep_local = _keep_remote = True       # the window outlives the message
    _local_bits = _remote_bits = 15
    _sending = _receiving = False           # the message in progress is compressed
    _restarts = 0                           # of the decompressor, in the message in progress
    _compressor = _decompressor = None

    def __init__(self, *, window_bits=12, mem_level=5, level=1, context_takeover=None, threshold=64):
        if not 9 <= window_bits <= 15 or not 1 <= mem_level <= 9:
            raise ValueError('window_bits is 9 to 15, mem_level 1 to 9')
        self.window_bits, self.mem_level, self.level = window_bits, mem_level, level
        self.context_takeover, self.threshold = context_takeover, threshold
        self._history = bytearray()     # the end of the output, which a restarted decompressor must know

    def offer(self):
        flags = ['server_no_context_takeover', 'client_no_context_takeover'] if self.context_takeover is False else []
        return [[(name, None) for name in ['client_max_window_bits'] + flags]]

    def accept(self, params):
        found = _deflate_params(params, _WINDOWS + [None])
        if found is None:
            return None
        if not self.context_takeover:
            found['server_no_context_takeover'] = None
        if self.context_takeover is False:
            found['client_no_context_takeover'] = None
            if 'client_max_window_bits' in found:       # a small device wants a small window
                found['client_max_window_bits'] = str(min(int(found['client_max_window_bits'] or 15), self.window_bits))
        answer = [item for item in found.items() if item != ('client_max_window_bits', None)]
        return self._agreed(answer, found, 'server_', 'client_')

    def confirm(self, params):
        found = _deflate_params(params)
        if found is None or self.context_takeover is False and 'server_no_context_takeover' not in found:
            raise HandshakeError('%s with parameters that were not offered' % self.name)
        return self._agreed(params, found, 'client_', 'server_')

    def _agreed(self, params, found, local, remote):
        """Return the extension of a connection: *local* and *remote* are the prefixes of names in *found*."""
        extension = object.__new__(type(self))
        extension.__dict__.update(
            self.__dict__, params=params, _history=bytearray(),
            _local_bits=int(found.get(local + 'max_window_bits') or 15),
            _remote_bits=int(found.get(remote + 'max_window_bits') or 15),
            _keep_local=self.context_takeover is not False and local + 'no_context_takeover' not in found,
            _keep_remote=remote + 'no_context_takeover' not in found)
        return extension

    @property
    def sharing(self):
        return None if self._keep_local else (self.name, self.window_bits, self._local_bits, self.mem_level,
                                              self.level, self.threshold)

    def encode(self, frame):
        last = frame.fin or self._by_frame
        if self._by_frame or frame.opcode != OPCODE_CONTINUATION:
            # zlib cannot compress for a window of 8 bits
            self._sending = self._local_bits > 8 and (not last or len(frame.body) >= self.threshold)
            frame.rsv1 = int(self._sending)
        if self._sending:
            frame.body = self._deflate(frame.body, last)
        return frame

    def decode(self, frame, max_size):
        last = frame.fin or self._by_frame
        if self._by_frame or frame.opcode != OPCODE_CONTINUATION:
            self._receiving, self._restarts = frame.rsv1, 0
        elif frame.rsv1:
            raise ProtocolException('RSV1 in a continuation')
        frame.rsv1 = 0
        if self._receiving:
            frame.body = self._inflate(frame.body + _TAIL if last else frame.body, max_size)
            if last and not self._keep_remote:
                self._decompressor = None
        return frame

    def _deflate(self, data, last):
        """Compress *data*; the *last* of a message lacks the tail, and ends the window if it is not kept."""
        import zlib
        compressor = self._compressor or zlib.compressobj(
            self.level, zlib.DEFLATED, -min(self.window_bits, self._local_bits), self.mem_level)
        self._compressor = None if last and not self._keep_local else compressor
        data = compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return data[:-4] or b'\0' if last else data

    def _inflate(self, data, max_size):
        """Decompress *data*, at most *max_size* bytes. What ends a deflate stream (BFINAL) only begins another one."""
        import zlib
        output = bytearray()
        step = max(65536, 4 * len(data))        # of output: a bomb never has more than this beyond the limit
        while data:
            decompressor = self._decompressor or zlib.decompressobj(-max(9, self._remote_bits), self._history[-32768:])
            try:
                piece = decompressor.decompress(data, min(step, max_size - len(output) + 1))
            except zlib.error:
                raise InvalidBytesError('deflated data is corrupt')
            output += piece
            if len(output) > max_size:
                raise FrameTooLargeException('message inflates to more than %d bytes (max_size)' % max_size)
            if self._keep_remote:
                self._history += piece
                if len(self._history) > 65536:      # cutting it each time costs more than inflating
                    del self._history[:-32768]
            self._decompressor, data = decompressor, decompressor.unconsumed_tail
            if decompressor.eof:
                self._decompressor, data, self._restarts = None, decompressor.unused_data, self._restarts + 1
                if self._restarts > MAX_RESTARTS:
                    raise ProtocolException('too many ended deflate streams in a message')
        return bytes(output)


class DeflateFrame(PerMessageDeflate):
    """The extension deflate-frame: each frame is compressed by itself (draft-tyoshino-hybi-websocket-perframe-deflate).

    The arguments are those of PerMessageDeflate.
    """
    name = 'deflate-frame'
    _by_frame = True

    def offer(self):
        return [[('no_context_takeover', None)] if self.context_takeover is False else []]

    # an offer says what the server's compressor must do, an answer what the client's must

    def accept(self, params):
        extension = PerMessageDeflate.accept(self, [('server_' + name, value) for name, value in params])
        if extension is not None:
            extension.params, = self.offer()
        return extension

    def confirm(self, params):
        extension = PerMessageDeflate.confirm(self, [('client_' + name, value) for name, value in params]
                                              + [('server_' + name, value) for name, value in self.offer()[0]])
        extension.params = params
        return extension


########################################################################################################################
# 5. Stream
#
# The whole protocol, with no socket, no lock and no clock: bytes in, messages out. receive() is the one parser; the
# documented generator and its lists are a facade over it. What it returns is in the order of the wire, so that an
# error never swallows the messages before it.

_number, _new = int.from_bytes, Message.__new__     # 0.1 us less than looking them up for each batch
# length of a short payload → what repeats a masking key over itself and the payload
_REPEATS = [int.from_bytes(b'\1\0\0\0' * (length + 7 >> 2), 'little') for length in range(126)]
# second byte of a header → length of a short payload; beyond all bounds for what is no such byte
_PLAIN_LENGTHS = list(range(126)) + [UNLIMITED] * 130
_MASKED_LENGTHS = [UNLIMITED] * 128 + _PLAIN_LENGTHS[:128]


class Stream:
    """One direction of a connection, and what is needed to answer it.

    *always_mask*: frames built here are masked (clients). *expect_masking*: the peer must mask (True on servers) or
    must not (False). Attributes of the facade, which ``parser.send(bytes)`` fills: ``message``, ``has_message``,
    ``pings``, ``pongs``, ``closing`` (the peer's close message, or None) and ``errors``, close messages with the code
    to send. ``extensions`` are those negotiated; ``max_size`` limits a message and ``max_fragment`` a frame, in bytes.
    ``sharing`` is what streams must have in common for a frame encoded by one to be right for the other, or None.
    """
    __slots__ = ('always_mask', 'expect_masking', 'extensions', 'sharing', 'plain', 'raw', 'paused', 'ended', 'closing',
                 '_facade', '_rsv', '_watched', '_kept', '_pos', '_first',
                 '_key', '_remaining', '_whole', '_opcode', '_coded', '_payload', '_space', '_pieces', '_size',
                 '_fragments', '_utf8', 'budget', '__dict__')
    max_size, max_fragment = MAX_SIZE, UNLIMITED

    def __init__(self, always_mask=False, expect_masking=True):
        self.always_mask = always_mask
        self.expect_masking = expect_masking
        self.extensions = ()
        self.sharing = None if always_mask else ()      # masked: each frame has its own key
        self.plain = False          # messages come as str, bytes and Fragments instead of Message objects
        self.raw = False            # nothing is put together: every frame comes as a Frame
        self.paused = False         # receive() has more to say without more data
        self.ended = False          # by a close frame or an error: what follows is not looked at
        self.closing = None
        self._facade = None         # a Facade, once somebody asks for what is in it
        self._rsv = 0               # the bits that extensions own
        self._watched = False       # an extension without bits sees every frame
        self._kept, self._pos = b'', 0      # input that is not parsed yet, from _pos on
        self._first = None          # first byte of the frame whose payload is arriving
        self._key = None            # its masking key, turned to the next byte
        self._remaining = 0         # and what is missing of it
        self._whole = None          # a bytearray of it, if it must be there as a whole: control, coded and raw frames
        self._coded = False         # extensions decode the message in progress
        self._space = 0             # the size of a BytesIO that is its _payload
        self.budget = 0            # bytes of messages that receive() may still return
        self._begin_message()

    def _begin_message(self):
        self._opcode = 0            # of the message in progress
        self._payload = None        # of it: None, one piece (bytes-like), or a BytesIO
        self._pieces = ()           # if plain: its complete fragments, a list of bytes
        self._size = self._fragments = 0
        self._utf8 = None           # its Utf8Validator, once it comes in pieces

    def use(self, extensions):
        """Apply the negotiated *extensions* from now on."""
        self.extensions = tuple(extensions)
        for extension in self.extensions:
            self._rsv |= extension.rsv
            self._watched = self._watched or not extension.rsv
            if self.sharing is not None:
                self.sharing = None if extension.sharing is None else self.sharing + (extension.sharing,)

    def become_raw(self):
        """Give every frame as a Frame from now on; return those that are complete of the message in progress."""
        frames = Fragments(self._opcode == OPCODE_TEXT, self._pieces).frames()
        if self._first is not None and self._whole is None:     # half a frame is there
            self._whole = bytearray(self._collected())
        self.raw = True
        self._begin_message()
        return frames

    # Out

    def encode(self, opcode, data, fin=True):
        """Return one frame as bytes; *data* is bytes-like."""
        first = opcode | 0x80 if fin else opcode
        if self.extensions and opcode < OPCODE_CLOSE:
            frame = Frame(opcode, data, fin=int(fin))
            for extension in self.extensions:
                frame = extension.encode(frame)
            first |= frame.rsv
            data = frame.body
        return pack_frame(first, data, masking_key() if self.always_mask else None)

    def text_message(self, text):
        """Return a TextMessage."""
        return TextMessage(text)

    def binary_message(self, bytes):
        """Return a BinaryMessage."""
        return BinaryMessage(bytes)

    def close(self, code=1000, reason=''):
        """Return a CloseControlMessage."""
        return CloseControlMessage(code, reason)

    def ping(self, data=''):
        """Return a ping frame as bytes."""
        return PingControlMessage(data).single(mask=self.always_mask)

    def pong(self, data=''):
        """Return a pong frame as bytes."""
        return PongControlMessage(data).single(mask=self.always_mask)

    # In

    def receive(self, data=None, limit=BATCH, size=None):
        """Parse *data* (bytes, or None), after what was left over, and return the events in it, at most *limit*.

        It also pauses after the message that makes *size* bytes full (None: max_size): a little input may inflate to
        very much. Events are messages (TextMessage and BinaryMessage, or if ``plain`` str, bytes and Fragments),
        control messages, and at most one WebSocketException, the last of all. More may be waiting: see ``paused``.
        """
        # hot: 0.5 us of each message, and all of it for one that is short
        events, pos, paused = [], 0, False
        if self._kept:
            if data:
                data = self._kept[self._pos:] + data
            else:
                data, pos = self._kept, self._pos
        end = len(data) if data and not self.ended else 0
        masked, plain = self.expect_masking, self.plain
        lengths, head = (_MASKED_LENGTHS, 6) if masked else (_PLAIN_LENGTHS, 2)
        special = self.raw or self._watched or self.max_size < 125 or self.max_fragment < 125
        idle = self._first is None and not self._opcode and not special
        self.budget = self.max_size if size is None else size
        try:
            while pos < end and len(events) < limit:
                first = data[pos]
                start = pos + head
                if idle and (first == 0x81 or first == 0x82) and start <= end:
                    length = lengths[data[pos + 1]]
                    stop = start + length
                    if stop <= end:
                        # the common case, a whole short message: 0.7 us, by _take() 2.6
                        if masked:
                            # key and payload as one number, XOR the repeated key: 0.32 us, with apply_mask 0.5
                            whole = _number(data[pos + 2:stop], 'little')
                            whole ^= (whole & 0xFFFFFFFF) * _REPEATS[length]
                            payload = whole.to_bytes(length + 7, 'little')[4:length + 4]
                        else:
                            payload = data[start:stop]
                        pos = stop
                        if plain:
                            events.append(payload.decode() if first == 0x81 else payload)
                            continue
                        if first == 0x81:
                            payload.decode()
                            message = _new(TextMessage)
                        else:
                            message = _new(BinaryMessage)
                        message.data = payload
                        events.append(message)
                        continue
                stop = self._take(data, pos, events)
                if stop is None:
                    break
                pos = stop
                if self.ended:
                    end = pos
                if self.budget <= 0:
                    limit = 0
                idle = self._first is None and not self._opcode and not special
        except (WebSocketException, UnicodeDecodeError) as error:
            if isinstance(error, UnicodeDecodeError):
                error = TextFrameEncodingException('text is not UTF-8')
            self.ended = True
            end = pos
            events.append(error)
        if pos < end:
            self._kept, self._pos, paused = data, pos, len(events) >= limit
        elif self._kept:
            self._kept, self._pos = b'', 0
        self.paused = paused
        return events

    def _take(self, data, pos, events):
        """Take one frame, or what is there of it; return the new position, or None if its header is incomplete."""
        if self._first is None:
            head = parse_frame_head(data, pos, self._rsv)
            if isinstance(head, int):
                return None
            self._first, self._key, self._remaining, pos = head
            self._begin()
        piece = data[pos:pos + self._remaining]
        pos += len(piece)
        self._remaining -= len(piece)
        if self._key:
            turn = len(piece) & 3
            piece = apply_mask(piece, self._key)
            self._key = self._key[turn:] + self._key[:turn]
        if self._whole is not None:
            self._whole += piece
        elif piece or not self._remaining:
            self._append(piece, not self._remaining and self._first & 0x80)
        if not self._remaining:
            self._end(events)
        return pos

    def _begin(self):
        """Check a frame by its header: the rules that need to know what came before."""
        first, length = self._first, self._remaining
        if (self._key is None) is bool(self.expect_masking):
            raise ProtocolException('masked frame from a server' if self._key else 'unmasked frame from a client')
        opcode = first & 0x0F
        if opcode >= OPCODE_CLOSE and first & 0x70:
            raise ProtocolException('reserved bits in a control frame')
        if opcode < OPCODE_CLOSE:
            if not self.raw:
                self._begin_data(opcode, first & 0x70)
            if self._size + length > self.max_size or length > self.max_fragment:
                raise FrameTooLargeException('message of more than %d bytes (max_size)' % self.max_size)
        if opcode >= OPCODE_CLOSE or self.raw or self._coded:
            self._whole = bytearray()

    def _begin_data(self, opcode, rsv):
        if opcode == OPCODE_CONTINUATION:
            if not self._opcode:
                raise ProtocolException('continuation of no message')
        elif self._opcode:
            raise ProtocolException('a message begins inside another one')
        else:
            self._opcode = opcode
            self._coded = self._watched
        self._coded = self._coded or rsv > 0
        self._fragments += 1
        if self._fragments > max(MAX_FRAGMENTS, self.max_size // 64):
            raise WebSocketException('message of too many fragments', 1008)

    def _append(self, piece, last):
        """Add *piece* to the message, the *last* one or not; a text in one piece is judged when it is decoded."""
        self._size += len(piece)
        if self._opcode == OPCODE_TEXT and not (last and self._payload is None and self._utf8 is None):
            self._utf8 = self._utf8 or Utf8Validator()
            if not self._utf8.validate(piece)[0]:
                raise TextFrameEncodingException('text is not UTF-8')
        if self._payload is None:
            self._payload, self._space = piece, 0
        elif piece:
            size = len(piece) + (self._payload.tell() if self._space else len(self._payload))
            if size > self._space:
                self._make_room(size)
            self._payload.write(piece)

    def _make_room(self, size):
        """Make room for *size* bytes and for what is announced, but at most 16 times as much as has come.

        Growing by each piece cost up to 1 ms for 1 MiB, in page faults. A whole one is handed over without a copy.
        """
        kept = self._collected()
        self._space = min(size + self._remaining, 16 * size) if self._first and self._first & 0x80 else 2 * size
        self._payload = BytesIO(bytes(self._space))
        self._payload.write(kept)

    def _end(self, events):
        """The frame is complete."""
        first, whole = self._first, self._whole
        self._first = self._whole = None
        opcode = first & 0x0F
        if whole is not None and (self.raw or opcode < OPCODE_CLOSE):
            frame = Frame(opcode, bytes(whole), None, first >> 7, first >> 6 & 1, first >> 5 & 1, first >> 4 & 1)
            frame = self._decode(frame) if opcode < OPCODE_CLOSE else frame
            if self.raw:
                self.budget -= len(frame.body)
                events.append(frame)
                return
            self._append(frame.body, first & 0x80)
        if opcode == OPCODE_CLOSE:
            events.append(parse_close(bytes(whole)))
            self.ended = True
        elif opcode > OPCODE_CLOSE:
            events.append((PingControlMessage if opcode == OPCODE_PING else PongControlMessage)(whole))
        elif first & 0x80:
            events.append(self._finish())
        elif self.plain:
            self._pieces = self._pieces or []
            self._pieces.append(self._collected())
            self._payload = None

    def _decode(self, frame):
        """Return the Frame that the peer meant; WebSocketException 1011, with its cause, if an extension fails."""
        try:
            for extension in reversed(self.extensions):
                frame = extension.decode(frame, self.max_size - self._size)
        except WebSocketException:
            raise
        except Exception as error:
            raise WebSocketException('internal error', 1011) from error
        return frame

    def _collected(self):
        payload = self._payload
        if isinstance(payload, BytesIO):
            return payload.getvalue()[:payload.tell()]
        return payload if payload.__class__ is bytes else bytes(payload or b'')

    @property
    def has_fragments(self):
        """True if complete fragments of the message in progress are there, for take_fragments()."""
        return bool(self._pieces)

    def take_fragments(self):
        """Return the complete fragments of the message in progress, as Fragments, or None; they are not kept."""
        if not self._pieces:
            return None
        pieces, self._pieces = self._pieces, []
        return Fragments(self._opcode == OPCODE_TEXT, pieces)

    def _finish(self):
        """Return the message that is complete, and be ready for the next."""
        payload, pieces, text, utf8 = self._collected(), self._pieces, self._opcode == OPCODE_TEXT, self._utf8
        self.budget -= self._size
        self._begin_message()
        if utf8 is not None and utf8.state != Utf8Validator.UTF8_ACCEPT:
            raise TextFrameEncodingException('text ends inside a character')
        if pieces.__class__ is list:
            return Fragments(text, pieces + [payload])
        if self.plain:
            return payload.decode() if text else payload
        if text and utf8 is None:
            payload.decode()
        return _message(TextMessage if text else BinaryMessage, payload)

    # The documented facade

    @property
    def facade(self):
        """What the facade has besides; it is made when somebody asks: most connections need none of it (300 bytes)."""
        if self._facade is None:
            self._facade = Facade()
        return self._facade

    @property
    def parser(self):
        """The started generator of receiver()."""
        if self.facade.parser is None:
            self.facade.parser = self.receiver()
            next(self.facade.parser)
        return self.facade.parser

    def receiver(self):
        """Take bytes by send(), fill ``message``, ``pings``, ``pongs``, ``closing``, ``errors``; yield bytes wanted."""
        while True:
            if self._first is not None:
                wanted = self._remaining
            else:
                wanted = parse_frame_head(self._kept, self._pos, self._rsv) if self._kept else 2
            data = yield wanted
            for event in self.receive(bytes(data or b''), UNLIMITED, UNLIMITED):
                if isinstance(event, WebSocketException):
                    self.errors.append(CloseControlMessage(event.code, str(event)))
                elif event.opcode == OPCODE_CLOSE:
                    self.closing = event
                else:
                    lists = {OPCODE_PING: self.pings, OPCODE_PONG: self.pongs}
                    lists.get(event.opcode, self.facade.complete).append(event)

    @property
    def message(self):
        """The oldest complete message, else the one that is arriving, else None. Set it to None for the next one."""
        if self.has_message or not self._opcode:
            return self.facade.complete[0] if self.has_message else None
        message = _message(TextMessage if self._opcode == OPCODE_TEXT else BinaryMessage, self._collected())
        message.completed = False
        return message

    @message.setter
    def message(self, message):
        self.facade.complete[:1] = [] if message is None else [message]

    @property
    def has_message(self):
        """True if a complete message is there."""
        return self._facade is not None and bool(self._facade.complete)


class Facade:
    """What only the documented facade of a Stream needs: its generator, and the lists that it fills."""
    __slots__ = ('parser', 'complete', 'pings', 'pongs', 'errors')

    def __init__(self):
        self.parser = None
        self.complete, self.pings, self.pongs, self.errors = [], [], [], []


for _name in ('pings', 'pongs', 'errors'):
    setattr(Stream, _name, property(lambda stream, name=_name: getattr(stream.facade, name),
                                    lambda stream, value, name=_name: setattr(stream.facade, name, value)))


def _message(kind, payload):
    """Make a TextMessage or BinaryMessage of bytes that are known to be right: half the time of its constructor."""
    message = kind.__new__(kind)
    message.data = payload
    return message


class Fragments:
    """A message that came in fragments: ``text`` (bool) and ``pieces``, a list of bytes."""

    def __init__(self, text, pieces):
        self.text = text
        self.pieces = pieces

    def __len__(self):
        return sum(map(len, self.pieces))

    def frames(self):
        """Return the frames that they came in, none of them marked as the last."""
        opcodes = [OPCODE_TEXT if self.text else OPCODE_BINARY] + [OPCODE_CONTINUATION] * len(self.pieces)
        return [Frame(opcode, piece) for opcode, piece in zip(opcodes, self.pieces)]


def parse_close(payload):
    """Return the CloseControlMessage of a close frame's *payload* (bytes); ProtocolException for a bad one, 5.5.1."""
    if not payload:
        return CloseControlMessage(None)
    if len(payload) == 1:
        raise ProtocolException('close frame of one byte')
    code, = struct.unpack_from('!H', payload)
    if not valid_close_code(code):
        raise ProtocolException('close code %d' % code)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise TextFrameEncodingException('close reason is not UTF-8')
    return CloseControlMessage(code, payload[2:])


########################################################################################################################
# 6. HTTP heads and handshake
#
# Pure functions for all that has a request in hand (RFC 6455 4, 9110, 9112). They parse bytes, or ISO 8859-1 text that
# never fails, and ASCII only: int(), strip() and lower() know Unicode.

_DIGITS = '0123456789'
_HEX_DIGITS = _DIGITS + 'abcdefABCDEF'
_ALPHANUMERIC = _DIGITS + 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
_TOKEN = ("!#$%&'*+-.^_`|~" + _ALPHANUMERIC).encode()
_CONTROLS = bytes(range(32)).replace(b'\t', b'') + b'\x7f'

REASONS = {
    101: 'Switching Protocols', 200: 'OK', 204: 'No Content', 301: 'Moved Permanently', 302: 'Found', 303: 'See Other',
    304: 'Not Modified', 307: 'Temporary Redirect', 308: 'Permanent Redirect', 400: 'Bad Request', 401: 'Unauthorized',
    403: 'Forbidden', 404: 'Not Found', 405: 'Method Not Allowed', 408: 'Request Timeout',
    411: 'Length Required', 413: 'Content Too Large', 414: 'URI Too Long', 421: 'Misdirected Request',
    426: 'Upgrade Required', 429: 'Too Many Requests', 431: 'Request Header Fields Too Large',
    500: 'Internal Server Error', 503: 'Service Unavailable', 505: 'HTTP Version Not Supported'}


def is_token(text):
    """Tell whether *text* is a token (str), RFC 9110 5.6.2."""
    return isinstance(text, str) and text != '' and not text.encode('ascii', 'replace').translate(None, _TOKEN)


def is_number(text, digits=10):
    """Tell whether *text* is 1 to *digits* ASCII digits and nothing else."""
    return 0 < len(text) <= digits and not text.strip(_DIGITS)


def check_field(text, what='header'):
    """Return *text* if it may stand in a head; TypeError unless it is str, ValueError for control characters."""
    if not isinstance(text, str):
        raise TypeError('%s is str, not %s' % (what, shown(text)))
    if len(text.encode('latin-1', 'ignore').translate(None, _CONTROLS)) != len(text):
        raise ValueError('%s has a control character, or one beyond ISO 8859-1: %s' % (what, shown(text)))
    return text


class Headers:
    """The fields of a head, in order, by names in any case; *items* are pairs, a mapping, or None.

    ``headers[name]`` joins repeated fields with ', ' (KeyError if there is none), assignment replaces them; ValueError
    for names that are no tokens and control characters in values.
    """
    __slots__ = ('lines', '_values')

    def __init__(self, items=None):
        self.lines = b'\r\n'           # as they go over the wire: a tenth of the memory of so many pairs of str
        self._values = None             # {name in lower case: joined values}, while somebody asks
        for name, value in (items.items() if hasattr(items, 'items') else items or ()):
            self.add(name, value)

    def add(self, name, value):
        """Append a field."""
        if not is_token(name):
            raise ValueError('header name is a token, not %s' % shown(name))
        self.lines += ('%s: %s\r\n' % (name, check_field(value, 'header value'))).encode('latin-1')
        self._values = None

    def items(self):
        """Return all fields as pairs."""
        fields = [line.partition(':') for line in str(self.lines, 'latin-1').split('\r\n')[1:-1]]
        return [(name, value.strip(' \t')) for name, _, value in fields]

    def forget_index(self):
        """Forget the index: without it headers that are kept take a tenth of the memory."""
        self._values = None

    @classmethod
    def of_lines(cls, lines):
        """Return the Headers of *lines* (bytes), as they stand on the wire between two CRLF, not checked."""
        headers = cls()
        headers.lines = lines
        return headers

    @property
    def names(self):
        """The names in lower case, each once."""
        return list(self._index())

    def _index(self):
        values = self._values
        if values is None:
            values = {}
            for name, value in self.items():
                name = name.lower()
                values[name] = values[name] + ', ' + value if name in values else value
            self._values = values       # once it is whole: other threads may ask, too
        return values

    def get(self, name, default=None):
        """Return the joined values of *name*, or *default*."""
        return self._index().get(name.lower(), default)

    def get_all(self, name):
        """Return the values of *name*, a list."""
        return [value for key, value in self.items() if key.lower() == name.lower()]

    def elements(self, name):
        """Return the elements of *name*, a comma-separated list, as str."""
        text = self.get(name)
        return [] if text is None else [part.strip(' \t') for part in text.split(',')]

    def __getitem__(self, name):
        return self._index()[name.lower()]

    def __contains__(self, name):
        return name.lower() in self._index()

    def __iter__(self):
        return iter(self._index())

    def __len__(self):
        return self.lines.count(b'\n') - 1

    def __setitem__(self, name, value):
        Headers([(name, value)])        # refuses what is none
        del self[name]
        self.add(name, value)

    def __delitem__(self, name):
        self.__init__([item for item in self.items() if item[0].lower() != name.lower()])

    def __repr__(self):
        return 'Headers(%r)' % self.items()


class Request:
    """A request: ``method target headers body`` (bytes), and what is in these.

    ``path`` is the whole target, with its query, as it came; ``pathname`` what stands before the question mark, not
    decoded: compare this. ``query`` and ``cookies`` are dicts of str, where the last of equal names wins.
    """
    __slots__ = ('method', 'target', 'headers', 'body')     # a server keeps one for each connection

    def __init__(self, method, target, headers=None, body=b''):
        self.method, self.target, self.body = method, target, body
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)

    @property
    def path(self):
        return self.target

    @property
    def pathname(self):
        return self.target.partition('?')[0]

    @property
    def query(self):
        pairs = [pair.partition('=') for pair in self.target.partition('?')[2].replace('+', ' ').split('&') if pair]
        return {percent_decoded(name): percent_decoded(value) for name, _, value in pairs}

    @property
    def cookies(self):
        pairs = [pair.partition('=') for pair in '; '.join(self.headers.get_all('Cookie')).split(';')]
        return {name.strip(' \t'): value.strip(' \t"') for name, equals, value in pairs if equals}

    def __repr__(self):
        return '<Request %s %s>' % (self.method, shown(self.target))


class Response:
    """An answer: ``status_code reason_phrase headers body``. *reason_phrase* None is the usual one.

    Two arguments are the status and the body: str (plain text), bytes-like, dict (JSON), or what leaves in pieces and
    is closed at its end: an iterable of bytes-like, each sent at once, or a binary file. *gzip*: compress it for who
    accepts that.
    """
    __slots__ = ('status_code', 'reason_phrase', 'headers', 'body', 'gzip')

    def __init__(self, status_code, reason_phrase=None, headers=None, body=None, *, gzip=False):
        if headers is None and body is None:
            reason_phrase, body = None, reason_phrase
        kind, self.status_code, self.gzip = None, int(status_code), gzip
        if isinstance(body, str):
            kind, body = 'text/plain; charset=utf-8', body.encode()
        elif isinstance(body, dict):
            from json import dumps
            kind, body = 'application/json', dumps(body, allow_nan=False).encode()      # no browser reads NaN
        elif not hasattr(body, '__iter__') and body is not None:
            raise TypeError('a body is str, bytes, dict or an iterable of bytes, not %s' % type(body).__name__)
        self.body = bytes(body or b'') if body is None or isinstance(body, _BYTES) else body
        self.reason_phrase = REASONS.get(self.status_code, '') if reason_phrase is None else reason_phrase
        self.headers = headers if isinstance(headers, Headers) else Headers(headers)
        if kind is not None and 'Content-Type' not in self.headers:
            plain = [('Content-Type', kind), ('X-Content-Type-Options', 'nosniff')]
            self.headers = Headers(self.headers.items() + plain)

    @property
    def length(self):
        """Bytes of the body; None if nobody knows yet."""
        if isinstance(self.body, bytes):
            return len(self.body)
        return int(self.headers['Content-Length']) if is_number(self.headers.get('Content-Length', ''), 18) else None

    def pieces(self):
        """Return an iterator of the body."""
        if isinstance(self.body, bytes):
            return iter((self.body,))
        return iter(lambda: self.body.read(READ_SIZE), b'') if hasattr(self.body, 'read') else iter(self.body)

    def build(self, with_body=True):
        """Return the whole answer as bytes; only its head for the method HEAD, or if the body comes in pieces."""
        status, headers = self.status_code, self.headers
        if not 100 <= status <= 999:
            raise ValueError('status %d' % status)
        if status >= 200:
            headers = Headers(headers)
            if self.length is None:
                headers['Transfer-Encoding'] = 'chunked'
            elif status not in (204, 304):      # RFC 9110 8.6
                headers['Content-Length'] = str(self.length)
            headers['Connection'] = 'close'
        line = 'HTTP/1.1 %d %s' % (status, check_field(self.reason_phrase, 'reason phrase'))
        return build_head(line, headers) + (self.body if with_body and isinstance(self.body, bytes) else b'')

    def compressed(self, request):
        """Return what leaves instead if compression was asked for: a Response in gzip, if the *request* accepts it."""
        headers, body = Headers(self.headers), self.body
        headers['Vary'] = 'Accept-Encoding'
        for element in request.headers.elements('Accept-Encoding'):
            coding, _, quality = element.replace(' ', '').lower().partition(';q=')
            if coding == 'gzip' and (not quality or quality.strip('0.')):
                del headers['Content-Length']
                headers['Content-Encoding'] = 'gzip'
                body = _compressed(self)
                break
        return Response(self.status_code, self.reason_phrase, headers, body)

    def close(self):
        """Close what the body comes from."""
        close = getattr(self.body, 'close', None)
        if close is not None:
            close()

    def __repr__(self):
        return '<Response %d %s>' % (self.status_code, shown(self.reason_phrase))


def _compressed(response):
    """Yield the body of *response* in gzip, each piece so that it can be read at once."""
    from zlib import Z_SYNC_FLUSH, compressobj
    try:
        pack = compressobj(wbits=31)
        for piece in response.pieces():
            yield pack.compress(piece) + pack.flush(Z_SYNC_FLUSH)
        yield pack.flush()
    finally:
        response.close()


def text_response(status, text, headers=()):
    """Return a plain text Response. Nothing of the peer is in it: a browser must not find markup there."""
    return Response(status, None, list(headers), text)


def build_head(start_line, headers):
    """Return a head as bytes, of Headers."""
    return start_line.encode('latin-1') + headers.lines + b'\r\n'


def find_head_end(data, searched=0):
    """Return the length of the head that *data* (bytearray) begins with, 0 while its end is not there; HandshakeError.

    *searched* is the length of *data* at the last call: small pieces must not cost their square.
    """
    start = max(0, searched - 3)
    end = data.find(b'\r\n\r\n', start)
    if end < 0 and data.find(b'\n\n', start) >= 0 or data[:1] and not 0x41 <= data[0] <= 0x5A:
        raise HandshakeError('this is not HTTP')
    if end > MAX_HEAD - 4 or end < 0 and len(data) >= MAX_HEAD:
        raise HandshakeError('the head is longer than %d bytes' % MAX_HEAD, 431)
    if len(data) > MAX_LINE and data.find(b'\n', 0, MAX_LINE) < 0:
        raise HandshakeError('the first line is longer than %d bytes' % MAX_LINE, 414)
    return end + 4 if end >= 0 else 0


def parse_head(head):
    """Split a *head* (bytes, with the empty line) into (first line, Headers), RFC 9112 2.2 and 5; HandshakeError."""
    line, *fields = str(head[:-4], 'latin-1').split('\r\n')
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * len(fields) - 4:
        raise HandshakeError('control character, or a line that does not end in CRLF')
    if len(fields) > MAX_HEADERS or len(head) > MAX_LINE and max(map(len, fields), default=0) > MAX_LINE:
        raise HandshakeError('more than %d headers, or one of more than %d bytes' % (MAX_HEADERS, MAX_LINE), 431)
    headers = Headers.of_lines(head[len(line):-2])
    names = headers.names
    if not all([':' in field for field in fields]) or '' in names or names and not is_token(''.join(names)):
        raise HandshakeError('malformed header')        # a continued line is one too
    return line, headers


def parse_request(head):
    """Return the Request of a *head* (bytes), RFC 9112 3; HandshakeError 400, 431 or 505."""
    line, headers = parse_head(head)
    method, target, version = line.split(' ') if line.count(' ') == 2 else ('', '', '')
    major, minor = version[5:6], version[7:]
    if not is_token(method) or version != 'HTTP/%s.%s' % (major, minor) or not is_number(major + minor, 2) or not minor:
        raise HandshakeError('malformed request line')
    if major != '1' or minor == '0':
        raise HandshakeError('only HTTP/1.1 is spoken here', 505)
    if target[:1] != '/' or '#' in target or not '!' <= min(target) <= max(target) <= '~':
        raise HandshakeError('malformed request target')
    if len(headers) > len(headers.names):
        for name in ('Host', 'Origin', 'Content-Length', 'Sec-WebSocket-Key', 'Sec-WebSocket-Version'):
            if len(headers.get_all(name)) > 1:
                raise HandshakeError('more than one %s header' % name)
    if 'Host' not in headers:
        raise HandshakeError('a Host header is needed')
    return Request(method, target, headers)


def parse_response(head):
    """Return the Response of a *head* (bytes), its body empty, RFC 9112 4; HandshakeError."""
    line, headers = parse_head(head)
    version, status, reason = (line.split(' ', 2) + ['', ''])[:3]
    if version not in ('HTTP/1.1', 'HTTP/1.0') or len(status) != 3 or not is_number(status):
        raise HandshakeError('malformed status line: %s' % shown(line))
    return Response(status, reason, headers)


def parse_host(text):
    """Return (host in lower case, port or None) of a Host header or URL; HandshakeError 400."""
    host, colon, port = text.rpartition(':')
    if not colon or ']' in port:
        host, port = text, ''
    allowed = _ALPHANUMERIC + '-._'
    if host[:1] == '[' and host[-1] == ']' and ':' in host:
        host, allowed = host[1:-1], _HEX_DIGITS + ':.'
    if not host or host.strip(allowed) or port and not (is_number(port, 5) and int(port) < 65536):
        raise HandshakeError('no host, or a malformed one')
    return host.lower(), int(port) if port else None


def percent_decoded(text):
    """Return *text* with its percent escapes decoded, once, as UTF-8; what is not UTF-8 becomes U+FFFD."""
    decoded, *rest = text.encode('latin-1', 'replace').split(b'%')
    for part in rest:
        escape = len(part) > 1 and not part[:2].strip(_HEX_DIGITS.encode())
        decoded += bytes((int(part[:2], 16),)) + part[2:] if escape else b'%' + part
    return decoded.decode('utf-8', 'replace')


def check_pathname(pathname):
    """Raise HandshakeError 404 unless *pathname* is canonical: what has two spellings would get past a guard by one.

    It has no empty segment but the last, no '.' or '..', no backslash, and escapes only what needs it, in capital
    letters (RFC 3986 6.2.2), as UTF-8, and no slash, backslash or control character.
    """
    segments, escapes = pathname[1:].split('/'), [part[:2] for part in pathname.split('%')[1:]]
    needless = [octet for octet in escapes if len(octet) < 2 or octet.strip(_DIGITS + 'ABCDEF')
                or octet < '20' or octet == '7F' or chr(int(octet, 16)) in _ALPHANUMERIC + '-._~/\\']
    if (needless or '' in segments[:-1] or '.' in segments or '..' in segments or '\\' in pathname
            or '\ufffd' in percent_decoded(pathname)):
        raise HandshakeError('there is nothing at this path', 404)


def has_token(headers, name, token):
    """Tell whether *token* (lower case) is an element of the header *name*, and not a part of one, 4.2.1."""
    return token in [element.lower() for element in headers.elements(name)]


def is_upgrade(request):
    """Tell whether *request* asks for a WebSocket, rightly or not."""
    return has_token(request.headers, 'Upgrade', 'websocket') or 'Sec-WebSocket-Key' in request.headers


def _base64(data):
    return binascii.b2a_base64(data, newline=False).decode()


def accept_key(key):
    """Return the Sec-WebSocket-Accept (str) for a Sec-WebSocket-Key (str or bytes), 4.2.2."""
    try:
        import _sha1 as hashes      # hashlib brings OpenSSL along, 3.8 MB, and a FIPS build of that refuses SHA-1
    except ImportError:
        import hashlib as hashes
    key = key.encode('latin-1') if isinstance(key, str) else key
    return _base64(hashes.sha1(key + WS_KEY).digest())


def check_upgrade(request):
    """Raise HandshakeError unless *request* is the opening handshake of RFC 6455 4.2.1."""
    headers = request.headers
    if request.method != 'GET' and (request.method != 'HEAD' or is_upgrade(request)):
        raise HandshakeError('a WebSocket is opened with GET', 405, [('Allow', 'GET')])
    if headers.get('Content-Length', '0') != '0' or 'Transfer-Encoding' in headers:
        raise HandshakeError('an upgrade request has no body')
    if not (has_token(headers, 'Upgrade', 'websocket') and has_token(headers, 'Connection', 'upgrade')
            and headers.get('Sec-WebSocket-Version') == '13'):
        raise HandshakeError('a WebSocket of version 13 needs Upgrade: websocket, Connection: Upgrade and its version',
                             426, [('Upgrade', 'websocket'), ('Sec-WebSocket-Version', '13')])
    key = headers.get('Sec-WebSocket-Key', '')
    if len(key) != 24 or key[21:] not in ('A==', 'Q==', 'g==', 'w==') or key[:21].strip(_ALPHANUMERIC + '+/'):
        raise HandshakeError('Sec-WebSocket-Key is not 16 bytes in base64')


class Refusal(HandshakeError):
    """Who may not come in: *field*, the name of a header, tells the log who it was."""

    def __init__(self, msg, status, field):
        HandshakeError.__init__(self, msg, status)
        self.field = field


def check_host(request, hosts='local'):
    """Raise HandshakeError 421 unless the Host is one of *hosts* (names; None: any), or local, against DNS rebinding.

    Local is what public DNS cannot hand to an attacker: IP literals, one label, local suffixes.
    """
    host, _ = parse_host(request.headers['Host'])
    local = ('.' not in host or ':' in host or host.count('.') == 3 and not host.strip(_DIGITS + '.')
             or host.endswith(('.localhost', '.local', '.lan', '.home.arpa', '.internal')))
    if not local and hosts is not None and (hosts == 'local' or host not in [name.lower() for name in hosts]):
        raise Refusal('this host name is not served here; the argument hosts= of serve() allows names', 421, 'Host')


def check_origin(request, origins='same'):
    """Raise HandshakeError 403 unless the Origin is allowed, RFC 6455 10.2.

    *origins* is 'same' (host and port as in Host; who sends none is no browser, and passes), None for any, or a list of
    exact strings, compiled patterns that match the whole, and None, which stands for no Origin. A browser that sends
    none may still say with Sec-Fetch-Site that a foreign page asks.
    """
    origin = request.headers.get('Origin')
    if origin is None and request.headers.get('Sec-Fetch-Site') in ('cross-site', 'same-site'):
        origin = 'null'
    if origins == 'same':
        scheme, _, theirs = (origin or '').lower().partition('://')
        ours, default = request.headers['Host'].lower(), {'http': ':80', 'https': ':443'}.get(scheme)
        good = origin is None or default and (theirs == ours or theirs + default == ours or theirs == ours + default)
    else:
        good = origins is None or any(origin is not None and allowed.fullmatch(origin) if hasattr(allowed, 'fullmatch')
                                      else origin == allowed for allowed in origins)
    if not good:
        raise Refusal('this origin may not connect; the argument origins= of serve() allows others', 403, 'Origin')


def parse_extensions(headers):
    """Return [(name, [(param, value or None)])] of Sec-WebSocket-Extensions, 9.1; HandshakeError."""
    found = []
    for element in headers.elements('Sec-WebSocket-Extensions'):
        # quotes are no matter for the splitting: even between them a value is a token, without separators
        (name, value), *params = [_parse_param(part.strip(' \t')) for part in element.split(';')]
        if value is not None:
            raise HandshakeError('malformed extension')
        found.append((name, params))
    return found


def _parse_param(text):
    name, equals, value = text.partition('=')
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1].replace('\\\\', '"')        # neither is in a token
        value = value[:-1].replace('\\', '') + value[-1:]
    if not is_token(name) or equals and not is_token(value):
        raise HandshakeError('malformed extension')
    return name, value if equals else None


def format_extensions(items):
    """Return the header value of [(name, params)]."""
    return ', '.join(['; '.join([name] + [param if value is None else '%s=%s' % (param, value)
                                          for param, value in params]) for name, params in items])


def _is_free(name, pattern, used):
    """Tell whether *pattern* has the *name*, and may serve a connection beside the extensions *used*."""
    return name == pattern.name and not any([name == other.name or pattern.rsv & other.rsv for other in used])


def accept_extensions(headers, available):
    """Server: return the extensions of a connection, of those *available* that accept an offer in *headers*."""
    offers, accepted = parse_extensions(headers), []
    for pattern in available:
        for name, params in offers:
            extension = pattern.accept(params) if _is_free(name, pattern, accepted) else None
            if extension is not None:
                accepted.append(extension)
    return accepted


def confirm_extensions(headers, offered):
    """Client: return the extensions of a connection, of those *offered* that *headers* confirm; HandshakeError."""
    confirmed = []
    for name, params in parse_extensions(headers):
        free = [pattern for pattern in offered if _is_free(name, pattern, confirmed)]
        if not free:
            raise HandshakeError('the server chose extensions that were not offered, or not together')
        confirmed.append(free[0].confirm(params))
    return confirmed


def check_subprotocols(names):
    """Return *names* as a list; TypeError for a str, ValueError unless they are unique tokens."""
    if isinstance(names, (str, bytes)):
        raise TypeError('subprotocols is a list of str')
    names = list(names or ())
    if len(set(names)) != len(names) or not all(map(is_token, names)):
        raise ValueError('subprotocols are unique tokens: %s' % shown(names))
    return names


def offered_subprotocols(request):
    """Return the subprotocols that a *request* offers, a list; HandshakeError 400."""
    try:
        return check_subprotocols(request.headers.elements('Sec-WebSocket-Protocol'))
    except ValueError:
        raise HandshakeError('malformed Sec-WebSocket-Protocol')


def accept_response(request, subprotocol=None, extensions=(), server_header=None):
    """Return the Response with status 101 to a *request* that check_upgrade let pass, 4.2.2."""
    chosen = format_extensions([(extension.name, extension.params) for extension in extensions])
    fields = [('Upgrade', 'websocket'), ('Connection', 'Upgrade'),
              ('Sec-WebSocket-Accept', accept_key(request.headers['Sec-WebSocket-Key'])),
              ('Sec-WebSocket-Protocol', subprotocol), ('Sec-WebSocket-Extensions', chosen or None),
              ('Server', server_header)]
    return Response(101, None, [field for field in fields if field[1] is not None])


def check_response(response, key, subprotocols=(), extensions=()):
    """Client: return (subprotocol or None, extensions) of the *response* to a handshake with *key*, 4.1.

    *subprotocols* and *extensions* are those offered. HandshakeError if it is not accepted.
    """
    headers = response.headers
    chosen = headers.get('Sec-WebSocket-Protocol')
    if response.status_code != 101:
        raise InvalidStatus(response)
    if (headers.get('Upgrade', '').lower() != 'websocket' or not has_token(headers, 'Connection', 'upgrade')
            or headers.get('Sec-WebSocket-Accept') != accept_key(key)):
        raise InvalidHeader('the answer lacks Upgrade: websocket, Connection: Upgrade, or the right '
                            'Sec-WebSocket-Accept', response=response)
    if chosen is not None and chosen not in subprotocols:
        raise NegotiationError('the server chose a subprotocol that was not offered', response=response)
    try:
        return chosen, confirm_extensions(headers, extensions)
    except HandshakeError as error:
        raise NegotiationError(str(error), response=response)


def percent_encoded(text):
    """Return *text* in ASCII: what is beyond it as percent escapes of its UTF-8."""
    return ''.join([chr(octet) if octet < 127 else '%%%02X' % octet for octet in text.encode()])


def parse_uri(uri):
    """Split a *uri* into (scheme, host, port, resource, (user, password) or None), RFC 6455 3; InvalidURI.

    With ws+unix the host is a path and the port None.
    """
    wrong = InvalidURI('this is no ws://, wss:// or ws+unix:// URL without fragment and spaces: %s' % shown(uri))
    scheme, _, rest = uri.partition('://')
    scheme = scheme.lower()
    if not rest or scheme not in ('ws', 'wss', 'ws+unix', 'wss+unix') or '#' in uri or '\x7f' in uri or min(uri) <= ' ':
        raise wrong
    if scheme.endswith('+unix'):
        return scheme, rest, None, '/', None
    authority = rest.partition('/')[0].partition('?')[0]
    resource = percent_encoded(rest[len(authority):])
    userinfo, at, authority = authority.rpartition('@')
    try:
        host, port = parse_host(authority if max(authority, default='') <= '~' else authority.encode('idna').decode())
    except (HandshakeError, ValueError, LookupError):       # the codec idna is not everywhere
        raise wrong
    user, _, password = percent_encoded(userinfo).partition(':')
    # RFC 7617 has no way to send what is not UTF-8
    if port == 0 or '\ufffd' in percent_decoded(user + ':' + password):
        raise wrong
    return (scheme, host, port or (443 if scheme == 'wss' else 80), resource if resource[:1] == '/' else '/' + resource,
            (percent_decoded(user), percent_decoded(password)) if at else None)


def host_header(scheme, host, port):
    """Return the value of Host: with the port unless it is the scheme's own, IPv6 addresses in brackets."""
    host = '[%s]' % host if ':' in host else host
    return host if port == {'ws': 80, 'wss': 443}.get(scheme) else '%s:%d' % (host, port)


def basic_credentials(user, password):
    """Return the value of Authorization for HTTP basic authentication, RFC 7617; ValueError for a colon in *user*."""
    if ':' in user:
        raise ValueError('a user name has no colon, which ends it: %s' % shown(user))
    return 'Basic ' + _base64(('%s:%s' % (user, password)).encode('utf-8'))


########################################################################################################################
# 7. Loop
#
# Who waits for many sockets: four pollers of one interface, and the loop that gives each ready socket its turn and runs
# the clocks. wait_ready waits for one socket.

READ, WRITE = 1, 2
FOREVER = float('inf')


def due_in(seconds):
    """Return the time *seconds* from now (monotonic); FOREVER if they are None."""
    return FOREVER if seconds is None else time.monotonic() + seconds


class SelectPoller:
    """Tell which descriptors are ready, with select: works everywhere, up to descriptor 1023.

    ``register(fd)``, ``unregister(fd)``, ``poll()`` and ``release()`` are all that a poller of yours needs. Ours know
    more: *events* is READ, WRITE or both, ``modify(fd, events)`` changes them, ``poll(timeout)`` waits *timeout*
    seconds instead of the constructor's, and ``live`` tells whether a running poll() notices such changes.
    """
    live = False

    def __init__(self, timeout=0.1):
        self.timeout = timeout
        self._events = {}

    def register(self, fd, events=READ):
        """Watch *fd*."""
        if fd < 0 or fd >= 1024 and os.name == 'posix':
            raise ValueError('select cannot watch descriptor %d' % fd)
        self._events[fd] = events

    modify = register

    def unregister(self, fd):
        """Watch *fd* no more; an unknown or closed one is no error."""
        self._events.pop(fd, None)

    def poll(self, timeout=None):
        """Return the descriptors that are ready, or broken, a list."""
        timeout = self.timeout if timeout is None else timeout
        events = self._events.copy()
        reading = [fd for fd in events if events[fd] & READ]
        writing = [fd for fd in events if events[fd] & WRITE]
        if not reading and not writing:     # Windows refuses three empty lists
            time.sleep(timeout)
            return []
        ready = select.select(reading, writing, [], timeout)
        return list(set(ready[0] + ready[1]))

    def release(self):
        """Forget all descriptors."""
        self._events.clear()


class PollPoller(SelectPoller):
    """Tell which descriptors are ready, with poll: see SelectPoller."""
    _masks = (0, 1, 4, 5)       # POLLIN is 1 and POLLOUT 4 on all systems, EPOLLIN and EPOLLOUT likewise

    def __init__(self, timeout=0.1):
        self.timeout = timeout
        self.release()

    def register(self, fd, events=READ):
        try:
            self._poll.register(fd, self._masks[events])
        except FileExistsError:     # epoll is strict, the others are not
            self.modify(fd, events)

    def modify(self, fd, events):
        """Watch *fd*, which is registered, for other *events*."""
        self._poll.modify(fd, self._masks[events])

    def unregister(self, fd):
        try:
            self._poll.unregister(fd)
        except (OSError, KeyError, ValueError):
            pass

    def poll(self, timeout=None):
        timeout = self.timeout if timeout is None else timeout
        return [fd for fd, _ in self._poll.poll(int(timeout * 1000) + (timeout > 0))]

    def release(self):
        self._poll = select.poll()


class EPollPoller(PollPoller):
    """Tell which descriptors are ready, with epoll, whose cost does not grow with the others: see SelectPoller."""
    live = True

    def __init__(self, timeout=0.1):
        self.timeout = timeout
        self._poll = select.epoll()

    def poll(self, timeout=None):
        return [fd for fd, _ in self._poll.poll(self.timeout if timeout is None else timeout)]

    def release(self):
        """Close the epoll descriptor."""
        self._poll.close()


class KQueuePoller(SelectPoller):
    """Tell which descriptors are ready, with kqueue (BSD, macOS): see SelectPoller."""
    live = True

    def __init__(self, timeout=0.1):
        SelectPoller.__init__(self, timeout)
        self._queue = select.kqueue()

    def register(self, fd, events=READ):
        changed = events ^ self._events.get(fd, 0)
        changes = [select.kevent(fd, kind, select.KQ_EV_ADD if events & bit else select.KQ_EV_DELETE)
                   for bit, kind in ((READ, select.KQ_FILTER_READ), (WRITE, select.KQ_FILTER_WRITE)) if changed & bit]
        if changes:
            self._queue.control(changes, 0, 0)
        self._events[fd] = events

    modify = register

    def unregister(self, fd):
        try:
            self.register(fd, 0)
        except OSError:
            pass
        self._events.pop(fd, None)

    def poll(self, timeout=None):
        events = self._queue.control(None, max(1, 2 * len(self._events)), self.timeout if timeout is None else timeout)
        return list({event.ident for event in events})

    def release(self):
        """Close the kqueue descriptor."""
        self._queue.close()


def default_poller():
    """Return the best poller of this system."""
    for name, kind in (('epoll', EPollPoller), ('kqueue', KQueuePoller), ('poll', PollPoller)):
        if hasattr(select, name):
            return kind()
    return SelectPoller()


def _milliseconds(timeout):
    return None if timeout in (None, FOREVER) else min(max(0, timeout) * 1000, 1 << 30)     # poll() knows 31 bits


def wait_ready(fd, events, timeout=None):
    """Wait until *fd* is ready for *events*; False if it is not after *timeout* seconds (None or FOREVER: no limit)."""
    if not hasattr(select, 'poll'):
        poller = SelectPoller(None if timeout in (None, FOREVER) else max(0, timeout))
        poller.register(fd, events)
        return bool(poller.poll())
    poll = select.poll()
    poll.register(fd, PollPoller._masks[events])
    return bool(poll.poll(_milliseconds(timeout)))


class Loop:
    """Go round: wait for ready sockets, give each entry its turn, run the clocks. One thread runs it.

    An entry has ``fd``, its descriptor; ``events`` (READ, WRITE, both or 0), what it waits for; ``due`` (monotonic),
    when its ``tick(now)`` is to be called; and what serve() of a subclass calls, between ``_serving = entry`` and
    turn_ended(). No lock is held while an entry has its turn. A subclass that sets ``pending`` has share(), which sends
    it.
    """
    pending = None          # a manager's broadcast that leaves at the end of this round

    def __init__(self, poller=None):
        self.poller = default_poller() if poller is None else poller
        self.entries = {}                   # by descriptor; one operation on it is atomic
        self.thread_id = None               # of the thread that goes round
        self._ours = hasattr(type(self.poller), 'modify')       # a poller of somebody else's only waits for reading
        self._guard = threading.Condition(threading.Lock())     # of changes to the entries, the poller and _next
        self._again = deque()               # entries whose input no poller sees: parsed in part, or inside TLS
        self._next = FOREVER                # when the earliest clock is due
        self._serving = None                # the entry whose turn it is
        self._awaiting = 0                  # threads that wait for the end of that turn
        self._released = False
        self._poll = self.poller.poll if self._ours else lambda timeout: self.poller.poll()
        self._wakers = socket.socketpair() if self._ours else ()
        for end in self._wakers:
            end.setblocking(False)
        if self._ours:
            self.poller.register(self._wakers[0].fileno())

    def again(self, entry):
        """Give *entry* a turn, though no poller says so; any thread may call it."""
        self._again.append(entry)
        if threading.get_ident() != self.thread_id:
            self.wake()

    def wake(self):
        """Make the loop go round now; any thread and any signal handler may call it."""
        if self._ours:
            try:
                self._wakers[1].send(b'.')
            except OSError:     # full: it is awake; closed: it needs no waking
                pass

    def enter(self, entry):
        """Serve *entry* from now on; RuntimeError if the loop has ended."""
        fd = entry.fd
        with self._guard:
            if self._released:
                raise RuntimeError('this loop has ended')
            before, known = self.entries.get(fd), 0
            if before is not None and before.sock is entry.sock:
                known = before.events       # it takes the place of its opening handshake: two epoll_ctl less, 10 us
            elif before is not None and self._ours:
                self.poller.unregister(fd)  # that socket was closed behind our back
            self._change(fd, known, entry.events)
            self.entries[fd] = entry
        self.schedule(entry)

    def leave(self, entry, wait=False):
        """Serve *entry* no more; it must be called before the descriptor is closed. *wait* for the end of its turn."""
        with self._guard:
            if self.entries.get(entry.fd) is entry:
                del self.entries[entry.fd]
                if not self._released:
                    self._change(entry.fd, entry.events, 0)
            if wait and threading.get_ident() != self.thread_id:
                self._awaiting += 1     # first this, then the look: turn_ended() does it the other way round
                while self._serving is entry:
                    self._guard.wait()
                self._awaiting -= 1

    def turn_ended(self):
        """The turn of an entry has ended: tell those who wait for it."""
        self._serving = None
        if self._awaiting:
            with self._guard:
                self._guard.notify_all()

    def watch(self, entry, events):
        """Wait for other *events*, or 0, on behalf of *entry*; any thread may call it."""
        with self._guard:
            if self._ours and not self._released and self.entries.get(entry.fd) is entry:
                self._change(entry.fd, entry.events, events)
            entry.events = events
        if not getattr(self.poller, 'live', False) and threading.get_ident() != self.thread_id:
            self.wake()

    def _change(self, fd, before, events):
        if before and not events:
            self.poller.unregister(fd)
        elif events and not before:
            self.poller.register(fd, *[events] * self._ours)
        elif events != before and self._ours:
            self.poller.modify(fd, events)

    def schedule(self, entry):
        """Take note of ``entry.due``; any thread may call it."""
        if entry.due < self._next:
            with self._guard:
                self._next = min(self._next, entry.due)
            if threading.get_ident() != self.thread_id:
                self.wake()

    def go_round(self):
        """Wait, and give everything that is ready its turn."""
        # hot: with one connection 1.5 us of each message above the system call
        timeout = self._next - time.monotonic()
        if timeout <= 0:
            self.run_clocks(time.monotonic())
        entries, again = self.entries, self._again
        try:
            ready = self._poll(0 if again or timeout < 0 else timeout if timeout < 3600 else 3600)
        except (OSError, ValueError):   # select: a socket was closed behind our back
            ready = [fd for fd, entry in list(entries.items()) if entry.sock is None or entry.sock.fileno() != fd]
            if not ready:
                raise
        for fd in ready:
            entry = entries.get(fd)
            if entry is not None:
                self.serve(entry)
            elif self._ours and fd == self._wakers[0].fileno():
                self._wakers[0].recv(4096)
        if again:
            for entry in [again.popleft() for _ in range(len(again))]:
                if entries.get(entry.fd) is entry:
                    self.serve(entry)
        if self.pending is not None:
            self.share()
        if not self._ours:          # nobody tells when there is room to write
            for entry in list(entries.values()):
                entry.flush_waiting()

    def run_clocks(self, now):
        """Look at all clocks; not more often than every 0.25 s, unless one is due, for 10,000 of them take 1 ms."""
        self._next = earliest = FOREVER
        for entry in list(self.entries.values()):
            if entry.due <= now:
                self._serving = entry
                try:
                    entry.tick(now)
                except Exception:       # one bad entry must not end the loop
                    default_logger().error('exception in a clock', exc_info=True)
                    entry.abort()
                self.turn_ended()
            earliest = min(earliest, entry.due)
        with self._guard:
            self._next = min(self._next, max(earliest, now + INTERVAL))

    def release(self):
        """Close what the loop itself has open, once."""
        with self._guard:
            if self._released:
                return
            self._released = True
        self.poller.release()
        for end in self._wakers:
            end.close()


########################################################################################################################
# 8. Transport
#
# A socket-like object and what waits to leave through it. Transport.read() is the one place that reads a socket,
# Transport.flush() the one that writes; Output says what comes next.

_SOCKET = socket.socket         # the real one: tests patch socket.socket


def _address(sock, method):
    """Return what the *method* of *sock* says, cut to (host, port); None if it does not know (any more)."""
    try:
        address = getattr(sock, method)()
    except (OSError, AttributeError):
        return None
    return address[:2] if isinstance(address, tuple) else address


def format_addresses(ws):
    """Return the addresses of both ends of *ws*, for a log line."""
    ends = [('%s:%s' % end if isinstance(end, tuple) and len(end) == 2 else shown(end) if end else '?')
            for end in (ws.local_address, ws.peer_address)]
    return '[Local => %s | Remote => %s]' % tuple(ends)


class Latest:
    """The keyed messages of a connection: those that wait, and the pings behind those in flight.

    The kernel's buffers alone would hold minutes of stale readings. So each is followed by a ping, which every browser
    answers by itself, and only WINDOW of them are on their way.
    """
    __slots__ = ('waiting', 'size', 'flight', 'count', 'due')

    def __init__(self):
        self.waiting = OrderedDict()        # key → (opcode, payload, frame or None)
        self.size = 0                       # bytes of the payloads that wait
        self.flight = OrderedDict()         # the payloads of unanswered pings
        self.count = 0                      # of pings
        self.due = FOREVER                  # when the window opens although nothing was answered (monotonic)

    def put(self, key, opcode, data, frame):
        """Let a message wait; return how many others had to give way: the older one of its *key*, or any past a limit.

        MAX_KEYS of them wait, and WRITE_HARD bytes; then the oldest go.
        """
        lost, waiting = 0, self.waiting
        before = waiting.get(key)
        if before is not None:
            lost, self.size = 1, self.size - len(before[1])
        waiting[key] = opcode, data, frame
        self.size += len(data)
        while len(waiting) > MAX_KEYS or self.size > WRITE_HARD and len(waiting) > 1:
            self.size -= len(waiting.popitem(last=False)[1][1])
            lost += 1
        return lost

    def remove(self, key):
        """Forget the message of a *key*, if there is one."""
        before = self.waiting.pop(key, None)
        if before is not None:
            self.size -= len(before[1])

    def pop(self):
        """Return (opcode, payload, frame or None) of the message that has waited longest."""
        message = self.waiting.popitem(last=False)[1]
        self.size -= len(message[1])
        return message

    def next_ping(self):
        """Return the payload of the ping that follows the next messages; it is in flight until acknowledged."""
        self.count += 1
        ping = OWN_PING + self.count.to_bytes(6, 'big')
        self.flight[ping] = True
        return ping

    def acknowledge(self, ping):
        """Take back the *ping* and all before it; False if it is none of these."""
        if ping not in self.flight:
            return False
        while self.flight.popitem(last=False)[0] != ping:
            pass
        return True


class Turn:
    """A fragmented message in progress: the ``owner`` (thread id) sends it, and nothing else is encoded meanwhile.

    ``behind`` holds what others sent without waiting, unencoded: (frames, message) with frames [(opcode, payload,
    fin)].
    """
    __slots__ = ('owner', 'over', 'behind', 'size')

    def __init__(self):
        self.owner = threading.get_ident()
        self.over = threading.Event()
        self.behind = []
        self.size = 0

    def put(self, frames, message=None):
        """Keep *frames* until the turn is over; *message* is what sent() is to report."""
        self.behind.append((frames, message))
        self.size += sum(len(data) for _, data, _ in frames)


class Output:
    """All that waits to leave, in the order in which it does. The transport's lock is held for every change.

    First what the kernel has taken in part (``chunk``), then ``frames``. When these are empty, and if ``more`` says
    that there is more, Connection.emptied() goes on with the newest pong, the keyed messages as far as their window
    allows, and the half-close. What was sent during another thread's fragmented message waits behind its ``turn``.
    """
    __slots__ = ('chunk', 'frames', 'queued', 'largest', 'written', 'due', 'cork', 'broken', 'more', 'pong', 'latest',
                 'turn', 'marks')

    def __init__(self):
        self.chunk = None           # a memoryview of what the kernel took in part: TLS must be offered the same again
        self.frames = []            # bytes-like, that nobody has tried to write yet
        self.queued = 0             # bytes of chunk, and of frames behind it; 0 while the kernel takes all
        self.largest = 0            # of the frames that wait behind chunk
        self.written = 0            # bytes that the kernel has taken, ever
        self.due = FOREVER          # when it must have taken some more, monotonic
        self.cork = None            # the thread that dispatches: what it sends leaves together, at the end
        self.broken = False         # a write failed: nobody hears us, though what has arrived may still be read
        self.more = False           # emptied() has something to do
        self.pong = None            # the payload of the newest pong, while output is stuck
        self.latest = None          # a Latest, once something was sent with a key
        self.turn = None            # the Turn of a fragmented message
        self.marks = None           # if sent() is overridden: a deque of (written when it has left, message)

    @property
    def amount(self):
        """Bytes that were sent but not yet taken by the kernel."""
        return self.queued or sum(map(len, self.frames))

    def is_full(self, size):
        """Tell whether *size* more bytes are too many for a slow peer: more than WRITE_HARD, the largest frame aside.

        That one does not count: a message may be larger than the limit, and its reader healthy.
        """
        waiting = size + (self.turn.size if self.turn is not None else 0)
        if self.chunk is not None:
            return waiting + self.queued - max(len(self.chunk), self.largest, size) > WRITE_HARD
        return waiting - size > WRITE_HARD

    def join(self):
        """Take what to write next: small frames in one piece, a large payload without a copy."""
        frames = self.frames
        count = len(frames) if len(frames[-1]) < READ_SIZE else max(1, len(frames) - 1)
        if self.queued > READ_SIZE:     # of a long queue only the beginning: it does not count as waiting
            count, size = 1, len(frames[0])
            while count < len(frames) and size + len(frames[count]) <= READ_SIZE:
                size += len(frames[count])
                count += 1
        chunk = frames[0] if count == 1 else b''.join(frames[:count])
        del frames[:count]
        return chunk

    def stick(self, chunk, moved):
        """The kernel takes no more than before *chunk*; *moved* tells whether it took some of what waited."""
        self.chunk = chunk
        self.queued = len(chunk) + sum(map(len, self.frames))
        self.largest = max(map(len, self.frames), default=0)
        if moved or self.due == FOREVER:
            self.due = due_in(WRITE_TIMEOUT)

    def unstick(self):
        """All that waited has left."""
        self.chunk, self.queued, self.largest, self.due = None, 0, 0, FOREVER

    def give_up(self):
        """Nothing more can leave: forget what waits."""
        self.broken, self.more, self.pong, self.latest = True, False, None, None
        del self.frames[:]
        self.unstick()


class Transport:
    """A socket-like object, its Output, and what a Loop must know of an entry.

    A real socket is made non-blocking; whatever else there is, a mock say, is used through recv and sendall alone. Two
    threads are never inside one TLS socket, which corrupts it: one lock is around each call, nobody waits inside it.
    """
    # slots: what every turn looks at (a default of the class costs 14 ns a look, a slot 3)
    __slots__ = ('sock', 'lock', 'output', 'loop', 'fd', 'events', 'due', 'real', 'tls', 'at_end', 'read_size',
                 '_local', '_peer')
    carries_messages = False        # True for connections, which have
    driver = None                   # a Driver, whose once() is called

    def __init__(self, sock):
        self.lock = threading.RLock()
        self.output = Output()
        self.loop = None            # who polls for us, if anybody
        self.events = READ          # what it waits for
        self.due = FOREVER          # when tick() wants to be called, monotonic
        self.at_end = False         # the peer has ended its side
        self.read_size = READ_SIZE
        self._local = self._peer = None
        self.adopt(sock)

    def adopt(self, sock):
        """Use *sock* from now on."""
        self.sock = sock
        self.fd = -1
        self.real = issubclass(type(sock), _SOCKET)
        self.tls = self.real and hasattr(sock, 'pending')
        if self.real:
            self.fd = sock.fileno()
            sock.setblocking(False)

    @property
    def local_address(self):
        """Our address, (host, port), or the path of a unix socket; None once it is unknown."""
        if self._local is None and self.sock is not None:
            self._local = _address(self.sock, 'getsockname')
        return self._local

    @property
    def peer_address(self):
        """The peer's address, (host, port), or the path of a unix socket; None once it is unknown."""
        if self._peer is None and self.sock is not None:
            self._peer = _address(self.sock, 'getpeername')
        return self._peer

    @peer_address.setter
    def peer_address(self, address):
        self._peer = address

    # In

    def read(self):
        """Return what has arrived (bytes), b'' at the end, or None if there is nothing now. Raise OSError.

        The one place that reads a socket.
        """
        if self.tls:
            with self.lock:
                data = self._read_tls()
        else:
            try:
                data = self.sock.recv(self.read_size) if self.sock is not None else b''
            except (BlockingIOError, InterruptedError):
                return None
        if data.__class__ is not bytes:
            if data is None:
                return None
            if not isinstance(data, bytearray):
                raise TypeError('recv() of %s returned %s, not bytes'
                                % (type(self.sock).__name__, type(data).__name__))
            data = bytes(data)
        if not data:
            self.at_end = True
        return data

    def _read_tls(self):
        """Read all records that are there, up to 64 KiB: no poller sees those that OpenSSL has read already."""
        pieces, size = [], 0
        ssl = sys.modules['ssl']
        while size < READ_SIZE and not self.at_end and self.sock is not None:
            try:
                piece = self.sock.recv(READ_SIZE)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return b''.join(pieces) or None
            except OSError:
                if not pieces:
                    raise
                piece = b''
            self.at_end = not piece         # with pieces in hand the next read says it: nothing else would
            pieces.append(piece)
            size += len(piece)
        return b''.join(pieces)

    def hidden_input(self):
        """Tell whether there is input that no poller sees. To be asked after each turn."""
        if not self.tls:
            return False
        with self.lock:
            return bool(self.at_end or self.sock is not None and self.sock.pending())

    def wait(self, events, timeout=None):
        """Wait outside the lock until the socket is ready; False after *timeout* seconds."""
        return not self.real or wait_ready(self.fd, events, timeout)

    # Out

    def put(self, data):
        """Let *data* (bytes-like, whole frames) leave after what waits. The lock is held."""
        output = self.output
        if not self.real:
            self.sock.sendall(data)
        elif not output.broken:
            output.frames.append(data)
            if output.chunk is not None:
                output.queued += len(data)
                output.largest = max(output.largest, len(data))
            elif (output.cork is None or len(data) > 4096 or len(output.frames) > 64
                  or output.cork != threading.get_ident()):
                self.flush()

    def flush(self, chunk=None):
        """Write what waits, or *chunk* if nothing does, as far as the kernel takes it. The lock is held.

        The one place that writes a real socket.
        """
        output = self.output
        frames, stuck = output.frames, output.chunk
        if stuck is not None:
            chunk = stuck
        try:
            while frames or chunk is not None:
                if chunk is None:
                    chunk = frames.pop() if len(frames) == 1 else output.join()
                sent = self.sock.send(chunk[:16384] if self.tls else chunk)
                output.written += sent
                chunk = memoryview(chunk)[sent:] if sent < len(chunk) else None
        except OSError as error:
            if not self._would_block(error):
                output.give_up()
                self.broke()
                return
        except BaseException:       # of a signal handler: nobody knows how much has left
            self.abort()
            raise
        if chunk is not None:
            output.stick(chunk, chunk is not stuck)
            self.blocked()
        else:
            if stuck is not None:
                output.unstick()
                self.unblocked()
            if output.more:
                self.emptied()

    def _would_block(self, error):
        return isinstance(error, (BlockingIOError, InterruptedError)) or self.tls and isinstance(
            error, (sys.modules['ssl'].SSLWantReadError, sys.modules['ssl'].SSLWantWriteError))

    def flush_waiting(self):
        """Write what the kernel did not take at once, if it does now; any thread may call it."""
        with self.lock:
            if self.output.chunk is not None and self.sock is not None:
                self.flush()

    def blocked(self):
        """The kernel takes no more for now: have the loop wait for it. The lock is held."""
        self.watch(READ | WRITE if self.output.queued <= WRITE_SOFT else WRITE)
        self.wake_at(self.output.due)

    def unblocked(self):
        """All that was stuck has left. The lock is held."""
        if self.events & WRITE:
            self.watch(READ)

    def broke(self):
        """A write has failed. The lock is held."""

    def emptied(self):
        """All is written, and ``output.more`` said that this is not the end of it. The lock is held."""
        self.output.more = False

    def watch(self, events):
        """Have the loop wait for *events*, or note them for whoever waits."""
        before, loop = self.events, self.loop
        if loop is None:
            self.events = events
        elif events != before:
            loop.watch(self, events)
            if before == WRITE:
                loop.again(self)        # it may have been paused in the middle of its input

    # Clocks

    def wake_at(self, due):
        """Have tick() called at *due* (monotonic) at the latest."""
        if due < self.due:
            self.due = due
            if self.loop is not None:
                self.loop.schedule(self)

    # The end

    def half_close(self):
        """Shut down for writing; the peer's end of file is awaited by whoever reads. The lock is held."""
        try:
            if self.tls:
                try:
                    self.sock.unwrap()      # says close_notify, and then wants to read the peer's
                except (OSError, ValueError):
                    pass
            if self.real:
                _SOCKET.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            pass        # the peer was faster

    def abort(self):
        """Cut the connection: wakes whoever waits for the socket, who finds its end. Any thread may call it."""
        self.output.broken = True
        self.due = FOREVER
        sock, loop = self.sock, self.loop
        try:
            if self.real and sock is not None:
                _SOCKET.shutdown(sock, socket.SHUT_RDWR)
        except OSError:
            pass
        if loop is not None:
            loop.again(self)

    def close_socket(self):
        """Close the descriptor, once; only who reads the socket may. The addresses are known afterwards."""
        self.local_address, self.peer_address
        sock, self.sock = self.sock, None
        try:
            if sock is not None and (not self.at_end or self.output.chunk is not None):
                sock.shutdown(socket.SHUT_RDWR)     # close() alone wakes nobody, and sends no FIN while a fork lives
        except Exception:       # a mock may raise anything, and a socket is often down already
            pass
        try:
            if sock is not None:
                sock.close()
        except Exception:       # what only looks like a socket need not have it
            pass


########################################################################################################################
# 9. Connection
#
# A stream on a transport: Sender is what leaves, one message at a time; Connection the protocol's answers (RFC 6455 5.5
# and 7): one state, one place that changes it, the closing handshake, pings and pongs, the clocks. Who calls the user's
# methods, and in which thread, is its driver's affair.

# the states of a Connection, in the order in which they follow each other; State is what users see of them
CONNECTING, OPEN, CLOSING, DRAINING, CLOSED = range(5)


class PongWaiter:
    """What ping() returns: the pong that will come. ``latency`` is the round trip in seconds, once it is there."""
    latency = None

    def __init__(self, connection, ack_on_close):
        self._connection = connection
        self._sent = time.monotonic()
        self._event = threading.Event()
        self.ack_on_close = ack_on_close

    def is_set(self):
        """Tell whether the pong has come (or the connection is closed, with ack_on_close)."""
        return self.latency is not None

    def wait(self, timeout=None):
        """Wait at most *timeout* seconds (None: for ever) for the pong; return whether it came.

        On a blocking connection this reads, like recv(). It ends at once when the connection does.
        """
        self._connection.driver.await_event(self._event, timeout)
        return self.is_set()

    def acknowledge(self, done=True):
        """Let the waiting threads go on."""
        if done:
            self.latency = time.monotonic() - self._sent
        self._event.set()


class Sender(Transport):
    """What may be sent, and in which order: whole messages, fragmented ones, keyed ones, control frames.

    While a fragmented message is in progress (``output.turn``) nothing else is encoded on its stream but control
    frames: other threads wait, loops and callbacks leave their messages behind the turn.
    """
    __slots__ = ('stream', 'driver', 'state', 'swift', 'close_sent', 'close_received', 'dropped', 'sender_waits')

    def __init__(self, sock, stream, driver):
        self.driver = driver
        self.stream = stream
        self.state = OPEN
        self.swift = False          # a whole message may leave without a look at anything else: see choose_path()
        self.close_sent = None      # (code, reason) of our close frame
        self.close_received = None  # the peer's, a CloseControlMessage
        self.dropped = 0            # keyed messages that gave way before they were sent
        self.sender_waits = False   # it will write the rest by itself: nobody else need watch
        Transport.__init__(self, sock)

    def choose_path(self):
        """Compute ``swift`` anew: after a change of the state, the turn, the extensions or the marks."""
        output, stream = self.output, self.stream
        self.swift = (self.state == OPEN and self.real and output.turn is None and output.marks is None
                      and not output.broken and stream is not None and stream.sharing == ())

    @property
    def close_code(self):
        """The peer's close code; 1006 if the connection ended without one; None before."""
        if self.close_received is not None:
            return self.close_received.code
        return 1006 if self.state == CLOSED else None

    @property
    def close_reason(self):
        """The reason (str) that goes with ``close_code``."""
        if self.close_received is not None:
            return str(self.close_received.reason, 'utf-8', 'replace')
        return '' if self.state == CLOSED else None

    def closed_error(self):
        """Return the exception that says how the connection was closed."""
        received = self.close_received
        received = None if received is None else (received.code, self.close_reason)
        good = (1000, 1001, 1005)
        kind = ConnectionClosedError
        if received and self.close_sent and received[0] in good and self.close_sent[0] in good:
            kind = ConnectionClosedOK
        return kind(self.close_code or 1006, self.close_reason or '', received, self.close_sent)

    def check_open(self):
        """Raise ConnectionClosed unless data may be sent. The lock is held."""
        if self.state == CONNECTING:
            raise ConcurrencyError('the opening handshake is not complete')
        if self.close_sent is not None or self.state >= DRAINING or self.output.broken or self.sock is None:
            raise self.closed_error()

    def log(self, message, *args):
        """Log a line about this connection. No lock may be held: a handler may do anything."""
        self.driver.logger.info('%s: ' + message, format_addresses(self), *args)

    # Messages

    def encode(self, opcode, data, fin=True):
        """Return one frame as bytes. The lock is held: extensions keep a state between frames."""
        try:
            return self.stream.encode(opcode, data, fin)
        except BaseException:       # an extension's mistake, or a signal's: nobody knows its state
            self.abort()
            raise

    def put_frame(self, opcode, data, fin=True):
        """Let a frame leave, a large payload without joining it to its header. The lock is held."""
        if len(data) > WRITE_SOFT and self.stream.sharing == () and self.real:
            self.put(pack_frame_head(opcode | 0x80 if fin else opcode, len(data)))
            self.put(data)
        else:
            self.put(self.encode(opcode, data, fin))

    def send(self, frames, message=None):
        """Send one message, *frames* an iterable of (opcode, payload, fin), when no fragmented one is in progress.

        Waits for that if the driver lets this thread wait. ConnectionClosed, ConcurrencyError.
        """
        while True:
            with self.lock:
                self.check_open()
                turn = self.output.turn
                if turn is not None and turn.owner == threading.get_ident():
                    raise ConcurrencyError('a message cannot be sent from inside another one, from its own iterable')
                waiting = turn is not None and self.driver.may_wait()
                full = self.driver.limited and self.output.is_full(sum(len(data) for _, data, _ in frames))
                if turn is not None and not waiting and not full:
                    return turn.put(frames, message)
                if turn is None and not full:
                    return self._put_message(frames, message)
            if full:
                self.drop()
                raise self.closed_error()
            turn.over.wait(INTERVAL)

    def _put_message(self, frames, message=None):
        self.sender_waits = self.driver.eager and sum(len(data) for _, data, _ in frames) > WRITE_SOFT
        try:
            for frame in frames:
                self.put_frame(*frame)
        finally:
            self.sender_waits = False
        output = self.output
        if output.marks is not None and message is not None and not output.broken:
            output.marks.append((output.written + output.amount, message))

    def send_fragments(self, fragments):
        """Send one message as its *fragments*, (opcode, payload, fin), come; other messages wait, control frames pass.

        An exception of the iterable fails the connection with 1011 once a part is out: it must never look whole.
        """
        turn, output, begun = Turn(), self.output, False
        try:
            if not self._take_turn(turn):
                return self.send(list(fragments))
            for opcode, data, fin in fragments:
                begun = True
                with self.lock:
                    self.check_open()
                    self.put_frame(opcode, data, fin)
                begun = not fin
                self.driver.await_room()
        except ConnectionClosed:
            raise
        except BaseException:
            if begun:
                self.fail(WebSocketException('fragmented message was given up', 1011))
            raise
        finally:
            if output.turn is turn:     # first of all: a signal handler may raise at any call
                output.turn = None
                self._end_turn(turn)

    def _take_turn(self, mine):
        """Begin a fragmented message, once no other is in progress; False if this thread must not wait for that."""
        while True:
            with self.lock:
                self.check_open()
                turn = self.output.turn
                if turn is None:
                    self.output.turn = mine
                    self.choose_path()
                    return True
                if turn.owner == threading.get_ident() or not self.driver.may_wait():
                    return False
            turn.over.wait(INTERVAL)

    def _end_turn(self, turn):
        """The fragmented message is over: let go what waited behind it, in its order."""
        with self.lock:
            self.choose_path()
            try:
                if self.close_sent is None and self.state < DRAINING and self.sock is not None:
                    for frames, message in turn.behind:
                        self._put_message(frames, message)
                    self.release_latest()
            finally:
                turn.over.set()

    def put_keyed(self, key, opcode, data, frame=None):
        """Let a message with a *key* wait for its turn; *frame* is it encoded, if it is that for everybody.

        Never waits. The lock is held.
        """
        self.check_open()
        output = self.output
        latest = output.latest = output.latest or Latest()
        self.dropped += latest.put(key, opcode, data, frame)
        self.release_latest()
        if latest.waiting:
            self.wake_at(latest.due)
        if len(latest.flight) >= WINDOW:
            self.driver.expect_pongs()

    def release_latest(self, limit=WINDOW):
        """Send keyed messages that wait, as far as a window of *limit* in flight allows. The lock is held."""
        output, latest = self.output, self.output.latest
        if latest is None or not latest.waiting or len(latest.flight) >= limit:
            return
        if output.turn is not None or output.chunk is not None and limit == WINDOW:
            output.more = True
            return
        frames = []
        while latest.waiting and len(latest.flight) < limit:
            opcode, data, frame = latest.pop()
            frames += [frame or self.encode(opcode, data), self.encode(OPCODE_PING, latest.next_ping())]
        latest.due = due_in(PATIENCE)
        self.put(b''.join(frames))

    def report_sent(self):
        """Call sent() for the messages that have left; in the dispatching thread or the sender's."""
        marks = self.output.marks
        while marks and marks[0][0] <= self.output.written:
            try:
                message = marks.popleft()[1]
            except IndexError:      # another thread reports it
                break
            self.driver.call('sent', message)

    def drop(self):
        """The peer does not read, and more waits for it than may, or for too long. No lock is held."""
        waiting = self.output.amount
        self.abort()
        self.log('dropped, %d bytes wait for a peer that does not read', waiting)

    # Control frames, and frames of the user's own

    def put_pong(self, data):
        """Answer a ping. The lock is held.

        The one place where a pong is dropped: the peer's close frame has come; or output is stuck, and then a newer
        pong replaces the one that waits (RFC 6455 5.5.3).
        """
        output = self.output
        if self.close_received is None and self.state < DRAINING and self.sock is not None:
            if output.chunk is not None:
                output.pong, output.more = data, True
            else:
                self.put(self.encode(OPCODE_PONG, data))

    def pong(self, data):
        """Send an unsolicited pong with *data* (bytes)."""
        with self.lock:
            self.check_open()
            self.put(self.encode(OPCODE_PONG, data))

    def send_frame(self, frame):
        """Send a copy of *frame*, encoded by the extensions, and masked if this end masks. See WebSocket."""
        copy = Frame(frame.opcode, frame.body, None, frame.fin, frame.rsv1, frame.rsv2, frame.rsv3)
        copy.build()            # raises for what is no frame
        while True:
            with self.lock:
                self.check_open()
                turn = self.output.turn
                if turn is None or turn.owner == threading.get_ident() or copy.opcode >= OPCODE_CLOSE:
                    return self._put_copy(copy)
            turn.over.wait(INTERVAL)

    def _put_copy(self, frame):
        code = struct.unpack('!H', frame.body[:2])[0] if len(frame.body) > 1 else 1005
        if frame.opcode < OPCODE_CLOSE:
            for extension in self.stream.extensions:
                frame = extension.encode(frame)
        frame.masking_key = masking_key() if self.stream.always_mask else None
        self.put(frame.build())
        if frame.opcode == OPCODE_CLOSE:
            self.note_close(sent=(code, ''))

    # What the transport tells

    def blocked(self):
        if not self.sender_waits:
            Transport.blocked(self)
        self.wake_at(self.output.due)

    def unblocked(self):
        if self.events & WRITE:
            self.watch(self.driver.idle_events)

    def broke(self):
        self.choose_path()


class Connection(Sender):
    """One end of a connection: what is answered, and when it ends.

    | state      | means                 | is sent                  | input is              | ends with            |
    |------------|-----------------------|--------------------------|-----------------------|----------------------|
    | CONNECTING | the opening handshake | the handshake            | the handshake's       | success: OPEN;       |
    |            |                       |                          |                       | failure, abort,      |
    |            |                       |                          |                       | deadline: CLOSED     |
    | OPEN       |                       | everything               | parsed, handed over   | a close frame, ours  |
    |            |                       |                          |                       | or the peer's:       |
    |            |                       |                          |                       | CLOSING; an error:   |
    |            |                       |                          |                       | DRAINING; end of     |
    |            |                       |                          |                       | file, abort: CLOSED  |
    | CLOSING    | one close frame is    | what was sent before it; | parsed, handed over,  | both close frames,   |
    |            | out, or in (only with | the close frame that     | until the peer's      | an error: DRAINING;  |
    |            | recv_frame)           | answers; pongs until the | close frame           | end of file, abort,  |
    |            |                       | peer's has come          |                       | deadline: CLOSED     |
    | DRAINING   | all is said           | what was sent before     | read and thrown away, | end of file, abort,  |
    |            |                       |                          | lest TCP resets       | deadline: CLOSED     |
    | CLOSED     | whoever reads closes  | nothing                  | not read              |                      |
    |            | the descriptor        |                          |                       |                      |

    A server, or who failed the connection, ends TCP first: in DRAINING it shuts down for writing when all is written,
    and waits DRAIN_TIMEOUT; a client with both close frames waits close_timeout for the server to do so (7.1.1). A
    failed write is no state: ``output.broken``; what has arrived is still handed over.
    """
    __slots__ = ('begun', 'told', 'latency', '_pings', '_deadline', '_beat_due', '_ping_due', '_ping_next',
                 '_ping_data', '_ping_end', '_heard', '_seen_written')

    carries_messages = True

    def __init__(self, sock, stream, driver):
        self.begun = False          # somebody reads it: its clocks run, and opened() was called or is about to be
        self.told = False           # closed() was called or is about to be
        self.latency = 0.0          # seconds of the last measured round trip
        self._pings = None          # unanswered pings: OrderedDict of payload → PongWaiter
        self._deadline = FOREVER    # of the closing handshake (monotonic, like all that follows)
        self._seen_written = 0      # output.written when that was set
        self._beat_due = FOREVER    # when the next unsolicited pong is due
        self._ping_due = FOREVER    # when the next keepalive ping, or the verdict on the last one, is due
        self._ping_next = FOREVER   # when the ping after the one that awaits its verdict is due
        self._ping_data = None      # the payload of the one that awaits its verdict
        self._ping_end = 0          # output.written when it has left, if it could not at once
        self._heard = False         # some bytes came since it was sent
        Sender.__init__(self, sock, stream, driver)

    @property
    def websocket(self):
        """The WebSocket that this is the inside of; None if it is blocking, and nobody refers to it any more."""
        return self.driver.websocket

    # What a loop calls

    def terminate(self):
        """See WebSocket.terminate(), which may be overridden."""
        self.driver.websocket.terminate()

    # Where the connection is

    def become(self, state):
        """Enter *state*, unless that or a later one is reached. The lock is held. The one place that changes it."""
        if state <= self.state:
            return
        self.state = state
        self.choose_path()
        if state > OPEN:
            self._ping_due = self._beat_due = FOREVER
            if state < CLOSED:      # what follows waits until all is written
                self._time_end()
                self.output.more = True
                if self.output.chunk is None and not self.output.frames:
                    self.emptied()

    # The beginning

    def use(self, extensions):
        """Apply the negotiated *extensions*."""
        self.stream.use(extensions)
        self.choose_path()

    def await_handshake(self, peer_address=None):
        """The opening handshake is not done yet; *peer_address* is known from accept()."""
        self.state, self.peer_address = CONNECTING, peer_address
        self.choose_path()

    def take_over(self, handshake):
        """The opening handshake has succeeded: go on where *handshake*, a Transport, stopped."""
        self.at_end = handshake.at_end
        if self.stream is not None:         # else a hook has terminated the connection
            self.stream.receive(bytes(handshake.data), 0)       # what came behind it is parsed when somebody reads
        with self.lock:
            self.become(OPEN)

    def begin(self, loop):
        """Start the clocks, which *loop* looks at (None: nobody but run())."""
        self.loop, self.begun = loop, True
        self.choose_path()
        setting = self.driver.setting
        if self.real and self.state == OPEN:
            self._ping_due = due_in(setting('ping_interval'))
        self._beat_due = due_in(setting('heartbeat_freq') or None)
        self.due = min(self._ping_due, self._beat_due, self.due)

    # The end

    def send_close(self, code, reason=b''):
        """Send our close frame, once (*code* None: an empty one), behind all that was sent. The lock is held."""
        if self.close_sent is not None or self.state not in (OPEN, CLOSING) or self.sock is None:
            return
        try:
            self.release_latest(UNLIMITED)      # it was accepted; the window does not matter any more
            self.put(self.stream.close(code, reason).single(mask=self.stream.always_mask))
        except OSError:         # a mock, or a socket of one's own: nobody is there to hear it
            pass
        self.note_close(sent=((1005 if code is None else code), str(reason, 'utf-8', 'replace')))

    def note_close(self, sent=None, received=None):
        """A close frame is *sent*, (code, reason), or *received*, a CloseControlMessage. The lock is held."""
        if sent is not None:
            self.close_sent = self.close_sent or sent
        if received is not None:
            self.close_received = self.stream.closing = received
        both = self.close_sent is not None and self.close_received is not None
        self.become(DRAINING if both else CLOSING)

    def receive_close(self, message):
        """The peer's close frame has come: answer it, unless ours is out, with its code (RFC 6455 5.5.1)."""
        with self.lock:
            self.close_received = message       # first, so that our answer completes the handshake
            self.send_close(None if message.code == 1005 else message.code, message.reason)
            self.note_close(received=message)

    def fail(self, error, logged=False):
        """Fail the connection (RFC 6455 7.1.7): send the close code of *error*, read no more, end TCP."""
        with self.lock:
            if self.state >= DRAINING or self.stream is None:
                return
            self.stream.errors.append(CloseControlMessage(error.code, str(error)))
            self.send_close(error.code, str(error).encode('utf-8')[:123])
            self.become(DRAINING)
        if not logged:
            self.log('failed with %d: %s', error.code, shown(str(error)))

    def callback_failed(self):
        """A method of the user's raised: log it with its traceback, close with 1011."""
        self.driver.logger.error('%s: exception in a callback', format_addresses(self), exc_info=True)
        self.fail(WebSocketException('internal error', 1011), logged=True)

    def emptied(self):
        output = self.output
        output.more = False
        if output.pong is not None:
            data, output.pong = output.pong, None
            self.put_pong(data)
        if self.close_sent is None and self.state <= CLOSING:
            self.release_latest()
        elif output.chunk is not None or output.frames:
            output.more = True
        elif self.state == DRAINING and (self.stream.expect_masking or self.close_received is None):
            self.half_close()
            self._deadline = due_in(DRAIN_TIMEOUT)
            self.wake_at(self._deadline)
        else:
            self._time_end()

    def _time_end(self):
        """From now on the peer has close_timeout for the end, or for taking some of what was sent before it."""
        self._deadline = due_in(self.driver.setting('close_timeout'))
        self._seen_written = self.output.written
        self.wake_at(self._deadline)

    def abort(self):
        with self.lock:
            self.become(CLOSED)
        Transport.abort(self)

    def end(self):
        """Close the descriptor and wake everybody. The caller has the reader's role, or is the loop."""
        with self.lock:
            self.become(CLOSED)
            loop, self.loop = self.loop, None
            if loop is not None:
                loop.leave(self)
            self.due = FOREVER
            self.close_socket()
            self.output.give_up()
            turn, pings, self._pings = self.output.turn, self._pings, None
        if turn is not None:
            turn.over.set()
        for waiter in list((pings or {}).values()):
            waiter.acknowledge(waiter.ack_on_close)

    # In

    def hidden_input(self):
        """Tell whether there is input that no poller sees: in a parser that has paused, or inside TLS."""
        return self.stream is not None and self.stream.paused is True or self.tls and Transport.hidden_input(self)

    def see_to_hidden_input(self):
        """Ask the loop for another turn if there is input that no poller sees."""
        loop = self.loop
        if loop is not None and self.hidden_input():
            loop.again(self)

    def process(self, data):
        """Feed *data* to the stream and act on what is in it; return False when the connection is over.

        b'' stands for the end of the input, None for nothing new: what was left over is parsed. The one dispatch of all
        three styles: the driver gets the messages, and what is sent meanwhile leaves together.
        """
        stream, output = self.stream, self.output
        if stream is None or data is not None and not data:
            return False
        if self.state >= DRAINING or self.close_received is not None:
            stream.paused = False
            return True         # it is drained
        self._heard = True
        output.cork = threading.get_ident()
        try:
            self.driver.take(stream, data)
        except BaseException:       # ours, a signal handler's, or of what only looks like a socket: input may be lost
            self.fail(WebSocketException('internal error', 1011))
            raise
        finally:
            output.cork = None
            if output.frames:
                with self.lock:
                    if self.sock is not None:
                        self.flush()
            if output.marks:
                self.report_sent()
        # in DRAINING there is still TCP to end, if there is any
        return self.state < (CLOSED if self.real else DRAINING) and self.stream is not None

    def answer(self, event):
        """Act on a control message, or on the error that ends the stream."""
        if isinstance(event, WebSocketException):
            if event.__cause__ is not None:
                self.driver.logger.error('%s: exception in an extension', format_addresses(self),
                                         exc_info=event.__cause__)
            self.fail(event)
        elif event.opcode == OPCODE_PING:
            with self.lock:
                self.put_pong(event.data)
            self.driver.pinged(event)
        elif event.opcode == OPCODE_PONG:
            if self._acknowledge(event.data):
                self.driver.ponged(event)
        else:
            self.receive_close(event)

    def _acknowledge(self, data):
        """A pong answers the ping of the same *data*, and every earlier one. False if that ping was not the user's."""
        answered = []
        with self.lock:
            latest = self.output.latest
            if latest is not None and latest.acknowledge(data):
                self.release_latest()
                return False
            theirs = data in (self._pings or ()) and data != self._ping_data
            while data in (self._pings or ()):
                payload, waiter = self._pings.popitem(last=False)
                answered.append(waiter)
                if payload == self._ping_data:
                    self._ping_data, self._ping_due = None, self._ping_next
                    self.wake_at(self._ping_due)
        for waiter in answered:
            waiter.acknowledge()
            self.latency = waiter.latency
        return theirs or data[:5] != OWN_PING

    # The clocks

    def clocks(self):
        """Return when each clock is due (FOREVER: it does not run), and what is then to be done with that time."""
        latest = self.output.latest
        window = latest.due if latest is not None and latest.waiting and latest.flight else FOREVER
        return ((self._deadline, self._end_late), (self.output.due, lambda now: self.drop()),
                (self._ping_due, self._keep_alive), (self._beat_due, self._beat), (window, self._open_window))

    def tick(self, now):
        """Run the clocks that are due at *now* (monotonic)."""
        for due, action in self.clocks():
            if due <= now and self.state != CLOSED:
                action(now)
        with self.lock:
            self.due = FOREVER if self.state == CLOSED else min([due for due, _ in self.clocks()])

    def _end_late(self, now):
        """The closing handshake takes too long; but while large messages still leave, the peer is alive."""
        if self.output.chunk is not None and self.output.written > self._seen_written:
            self._time_end()
        else:
            self.abort()

    def _beat(self, now):
        """Send an unsolicited pong."""
        self._beat_due = due_in(self.driver.setting('heartbeat_freq') or None)
        try:
            self.pong(b'')
        except (ConnectionClosed, OSError):
            pass        # it is over: the clock stops with it

    def _open_window(self, now):
        """A peer that answers no pings gets one batch of keyed messages a second."""
        with self.lock:
            self.output.latest.flight.clear()
            self.release_latest()
            self.output.latest.due = now + PATIENCE

    def ping(self, data, ack_on_close=False):
        """Send a ping with *data* (bytes) and return its PongWaiter; ConcurrencyError if such a one is unanswered."""
        waiter = PongWaiter(self, ack_on_close)
        with self.lock:
            self.check_open()
            self._pings = OrderedDict() if self._pings is None else self._pings
            if data in self._pings:
                raise ConcurrencyError('a ping with the same data is unanswered')
            self._pings[data] = waiter
            self.put(self.encode(OPCODE_PING, data))
        return waiter

    def _keep_alive(self, now):
        """Send a keepalive ping, or judge the last one: any byte since then, read or not, is a sign of life.

        While the ping itself cannot leave, each byte that does is one: then the limit is the one on stuck output.
        """
        timeout = self.driver.setting('ping_timeout')
        late = now > self._ping_due + PING_TIMEOUT / 2      # the whole process slept: nobody else is to blame
        if self._ping_data is None:
            self._send_keepalive(now, timeout)
        elif self._ping_end and timeout is not None:
            if self.output.written >= self._ping_end:
                self._ping_end = 0
            self._ping_due = now + timeout
        elif timeout is None or self._heard or late or not self.driver.reading() or self.wait(READ, 0):
            with self.lock:
                (self._pings or {}).pop(self._ping_data, None)      # who answers none must not make them pile up
                self._ping_data = None
            self._ping_due = now if late else max(now, self._ping_next)
        else:
            with self.lock:
                self.send_close(1011, b'keepalive ping timeout')
            self.abort()
            self.log('no answer to a ping')

    def _send_keepalive(self, now, timeout):
        interval = self.driver.setting('ping_interval')
        self._heard, self._ping_data, self._ping_next = False, OWN_PING + os.urandom(4), due_in(interval)
        try:
            self.ping(self._ping_data)
        except (ConnectionClosed, OSError):
            self._ping_due = FOREVER
            return
        self._ping_end = self.output.written + self.output.queued if self.output.chunk is not None else 0
        self._ping_due = self._ping_next if timeout is None else now + timeout

    def stop_keepalive(self):
        """Send no more keepalive pings."""
        self._ping_due = FOREVER


########################################################################################################################
# 10. Drivers
#
# Who calls: a loop or run() (CallbackDriver), recv() and send() (BlockingDriver), recv_frame() (FrameDriver). A
# connection asks its driver and never tests its style; a new style is a new class here. The keeper looks after blocking
# connections while nobody reads them.

_driving = set()        # the threads that run a loop, or run(): they never wait for anybody


class Driver:
    """What a Connection asks whoever drives it. ``websocket`` is the WebSocket whose methods are to be called."""
    __slots__ = ('connection',)
    idle_events = READ      # what a loop is to wait for when nothing is stuck
    limited = True          # what waits for a peer that does not read is limited: a sender does not wait by itself
    eager = False           # senders wait by themselves, and the parts of an iterator leave at once
    websocket = runner = None

    def setting(self, name):
        """Return the user's setting *name*, one of SETTINGS."""
        return getattr(self.websocket, name, SETTINGS[name])

    @property
    def logger(self):
        """Where the connection logs."""
        return self.setting('logger') or default_logger()

    def call(self, name, *args):
        """Call the user's method *name*, outside the dispatch of messages; what it raises fails the connection."""
        connection = self.connection
        try:
            getattr(self.websocket, name)(*args)
        except Exception as error:
            if not isinstance(error, ConnectionClosed) or connection.state == OPEN and not connection.output.broken:
                connection.callback_failed()

    def await_room(self):
        """Wait until few enough bytes are unsent, if nobody else writes them. Why send() can block, and how long:

        while more than WRITE_SOFT wait, at most WRITE_TIMEOUT after the kernel took the last of them; then the peer is
        dropped. ConnectionClosed if the connection ends meanwhile.
        """
        connection, output = self.connection, self.connection.output
        while output.queued > WRITE_SOFT and connection.state != CLOSED:
            if connection.loop is None and time.monotonic() > output.due:
                connection.drop()
            elif not connection.wait(WRITE, INTERVAL):
                self.while_stuck()
            connection.flush_waiting()
        if output.chunk is not None and connection.wait(WRITE, 0.01):
            connection.flush_waiting()      # most often this is all of it, and nobody need be woken
        with connection.lock:
            if output.broken or connection.state == CLOSED:
                raise connection.closed_error()
            if output.chunk is not None:
                connection.blocked()        # somebody else writes the rest

    def turn(self):
        """Refuse: recv() reads this connection."""
        raise ConcurrencyError('this connection is read by recv()')

    once = run = turn

    def while_stuck(self):
        """A sender has waited for a while in vain."""

    def expect_pongs(self):
        """Pongs are awaited that open the window of keyed messages."""

    def close(self):
        """Wait for the end of the closing handshake, if this style does."""

    def let_go(self):
        """The connection is to be ended by this thread: make sure that nobody reads it."""

    def forget(self):
        """The connection is over, and closed() was called: let go of the WebSocket."""


class CallbackDriver(Driver):
    """A manager's loop, run(), or whoever calls once(): the user's methods are called in the thread that reads."""
    __slots__ = ('websocket', 'runner')
    overridden = False

    def __init__(self, websocket):
        self.websocket = websocket
        self.runner = None      # the thread inside run()

    def take(self, stream, data):
        """Feed *data* to the *stream*, and call the user's methods for what is in it, in the order of the wire."""
        connection, websocket = self.connection, self.websocket
        events = iter(stream.receive(data))
        while True:
            try:
                for event in events:
                    if event.__class__ is TextMessage or event.__class__ is BinaryMessage:
                        websocket.received_message(event)
                        if connection.state >= DRAINING:
                            return
                    else:
                        connection.answer(event)
                return
            except ConnectionClosed:    # it wanted to answer, and we are closing: go on with the rest
                if connection.state == OPEN and not connection.output.broken:
                    return connection.callback_failed()     # it is about another connection, and a mistake
            except Exception:
                return connection.callback_failed()

    def pinged(self, ping):
        """A ping has come, and its pong is on its way."""
        self.websocket.pinged(ping)

    def ponged(self, pong):
        """A pong has come that is for the user."""
        self.websocket.ponged(pong)

    def reading(self):
        """Tell whether we read all that the peer sends."""
        return self.connection.output.queued <= WRITE_SOFT

    def may_wait(self):
        """Tell whether this thread may wait for another one: not a loop, nor a thread inside a callback."""
        thread = threading.get_ident()
        return thread not in _driving and thread != self.connection.output.cork

    def await_room(self):
        """Wait until few enough bytes are unsent; not under a loop, nor inside a callback of this connection."""
        connection = self.connection
        if connection.loop is None and connection.output.cork != threading.get_ident() and connection.real:
            Driver.await_room(self)

    def await_event(self, event, timeout):
        """Wait for *event* at most *timeout* seconds (None: for ever)."""
        if self.connection.state != CLOSED:
            event.wait(timeout)

    def turn(self):
        """Read once and act on what came; return False when the connection is over."""
        connection, output, stream = self.connection, self.connection.output, self.connection.stream
        try:
            if (connection.loop is None and connection.real and not self._await_input()
                    or output.chunk is not None and self._is_stuck()):
                return connection.state != CLOSED       # who does not take our replies is not read
            if connection.state == CLOSED:
                return False
            if stream is not None and stream.paused is True:
                more = connection.process(None)
            else:
                data = connection.read()
                more = data is None or (self.websocket if self.overridden else connection).process(data)
        except (OSError, TypeError) as error:
            self.websocket.unhandled_error(error)
            return False
        if more and (connection.tls or stream.paused):
            connection.see_to_hidden_input()
        return more

    once = turn         # what a loop or run() calls

    def _is_stuck(self):
        """Write what waits; tell whether too much is left to read on."""
        connection, output = self.connection, self.connection.output
        connection.flush_waiting()
        if output.marks:
            connection.report_sent()
        return output.queued > WRITE_SOFT and connection.state != CLOSED

    def _await_input(self):
        """Wait a while for input, for room to write, or for a clock; return whether there is something to do."""
        connection, output = self.connection, self.connection.output
        if connection.sock is None or connection.state == CLOSED:
            return True
        if connection.hidden_input() and output.queued <= WRITE_SOFT:
            return True
        # in steps, for what another thread leaves to be written, and for the clocks that it starts
        ready = connection.wait(connection.events | (WRITE if output.queued else 0),
                                max(0, min(INTERVAL, connection.due - time.monotonic())))
        if time.monotonic() >= connection.due:
            connection.tick(time.monotonic())
        return ready

    def run(self):
        """Call opened(), read until the connection is over, and end it. In a thread of its own."""
        connection, websocket, thread = self.connection, self.websocket, threading.get_ident()
        connection.begin(None)
        outermost = thread not in _driving
        self.runner = thread
        _driving.add(thread)
        try:
            self.call('opened')
            while self.once():
                pass
        finally:
            self.runner = None
            if outermost:
                _driving.discard(thread)
            websocket.terminate()

    def recv(self, timeout=None, raw=False):
        """Refuse: somebody else reads this connection."""
        raise ConcurrencyError('recv() is for blocking connections, of serve(function), accept() and connect()')

    recv_streaming = recv

    def to_frames(self):
        """Return the driver for recv_frame(): the first one makes a connection that nobody reads yet a blocking one."""
        connection = self.connection
        if connection.begun or connection.state != OPEN:
            return self.recv()
        block(connection, self.websocket)
        return connection.driver.to_frames()

    def forget(self):
        self.websocket = None       # else the two would wait for the garbage collector

    def close_connection(self):
        """Close the socket; where a loop, or run() in any thread, reads it, that one closes it at its next look."""
        if self.connection.loop is None and self.runner is None:
            self.connection.end()
        else:
            self.connection.abort()


class OverriddenDriver(CallbackDriver):
    """For a class that overrides once() or process(): the user's own are called. (Apart: each call costs 0.1 us.)"""
    __slots__ = ()
    overridden = True

    def once(self):
        return self.websocket.once()


class Role:
    """What one thread has at a time, and gives back whatever happens: the reader's role of a blocking connection.

    A *token* is an object of the caller's, fresh for each try; the first in ``line`` has the role, the others are about
    to withdraw. It is always given back by ``finally: if token in line: line.remove(token)``, before any other call:
    then even the exception of a signal handler between two instructions leaves nothing taken, which no lock achieves
    whose acquire() does not wait.
    """
    __slots__ = ('line', 'waiters')

    def __init__(self):
        self.line = []
        self.waiters = []       # locks of threads that wait for it

    def take(self, token):
        """Return whether the role is ours now."""
        self.line.append(token)
        return self.line[0] is token

    def wake(self):
        """Let those who wait try again: after giving back, and when there is room again in a full queue."""
        while self.waiters:
            try:
                self.waiters.pop().release()
            except IndexError:      # another thread took the last one
                break

    def wait(self, timeout):
        """Wait until the role may be free, at most *timeout* seconds."""
        waiter = threading.Lock()
        waiter.acquire()
        self.waiters.append(waiter)
        if not self.line:           # it was given back before we stood in line
            self.wake()
        waiter.acquire(True, timeout)
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def hold(self, token):
        """Take the role, waiting for it; for those who know that nobody has it for long."""
        while not self.take(token):
            self.line.remove(token)
            self.wake()
            self.wait(INTERVAL)


class Inbox:
    """Received messages that nobody has taken yet: ``high`` of them at most, then until ``low``; or two of the largest.

    Each of the counts of bytes, ``brought`` and ``taken``, is changed by one thread at a time.
    """
    __slots__ = ('messages', 'brought', 'taken', 'high', 'low', 'full')

    def __init__(self, limits):
        high, low = limits if isinstance(limits, tuple) else (limits, None)
        self.high = UNLIMITED if high is None else high
        self.low = self.high // 4 if low is None else low
        self.messages = deque()
        self.brought = self.taken = 0
        self.full = False           # high was reached, and low is not again

    def is_full(self, largest):
        """Tell whether no more may be queued, *largest* being the size of the largest message (max_size)."""
        count = len(self.messages)
        self.full = count >= self.high or self.full and count > self.low
        return self.full or count > 0 and self.brought - self.taken > 2 * largest


class Calls:
    """The calls of a user's methods that wait for the handler's thread: (name, args); ``running``: it is inside one."""
    __slots__ = ('waiting', 'running')

    def __init__(self):
        self.waiting = deque()
        self.running = False

    def later(self, name, *args):
        """Have the method *name* called when the handler's thread calls us next."""
        if len(self.waiting) < MAX_QUEUE:       # a handler that never calls us must not make them pile up
            self.waiting.append((name, args))


class PumpDriver(Driver):
    """Who reads a blocking connection: whoever has the reader's ``role``; he alone may close the descriptor.

    recv(), close() and those who wait for a pong share this one pump, and the keeper uses it while nobody does. A close
    or an error that comes behind messages which nobody has taken yet stands behind them, as the ``verdict``: it takes
    effect when they are taken, or when the keeper finds the handler absent.
    """
    __slots__ = ('inbox', 'messages', 'role', 'poll', 'attended', 'absent', 'verdict', '_websocket')
    idle_events = 0         # the keeper watches only who is not attended

    def __init__(self, websocket, connection):
        from weakref import ref
        self.connection = connection
        self._websocket = ref(websocket)    # who forgets a connection ends it: see keep()
        self.inbox = Inbox(websocket.max_queue)
        self.messages = self.inbox.messages
        self.role = Role()
        self.attended = True                # somebody read since the keeper's last turn
        self.absent = 0                     # the keeper's turns since then
        self.verdict = None
        self.poll = None                    # for the one descriptor, kept: 0.4 us to make and register
        if connection.real and hasattr(select, 'poll'):
            self.poll = select.poll()
            self.poll.register(connection.fd, select.POLLIN)

    @property
    def websocket(self):
        return self._websocket()

    def is_full(self):
        """Tell whether no more may be received."""
        stream = self.connection.stream
        return stream is None or self.inbox.is_full(stream.max_size)

    def pump_until(self, ready, timeout=None):
        """Read until *ready*() is true, the connection over, or *timeout* seconds gone; return ready().

        Takes the reader's role, or waits for what the thread that has it brings. If it can it reads at least once.
        """
        role, line, deadline = self.role, self.role.line, due_in(timeout)
        while True:
            token, stood_back = object(), True
            try:
                line.append(token)      # what role.take() does
                if line[0] is token and (ready() or self._pump(timeout)):
                    stood_back = False
            finally:
                if token in role.line:
                    role.line.remove(token)
                role.wake()
            if ready():
                return True
            if self.connection.loop is None:
                return bool(ready())        # it may have come with the end
            if stood_back and (timeout is None or timeout > 0):
                role.wait(INTERVAL if timeout is None else min(timeout, INTERVAL))
            if timeout is not None:
                timeout = deadline - time.monotonic()
                if timeout <= 0:
                    return bool(ready())

    def _pump(self, timeout=0):
        """Read once, waiting at most *timeout* seconds, and queue what came; the caller has the reader's role.

        Return False if there is no room: who waits for a pong must not read past the limit; recv() makes room.
        """
        connection = self.connection
        self.attended = True
        if self.verdict is not None and not self.messages:
            self._conclude()
        if connection.state == CLOSED or connection.loop is None:
            connection.end()
        elif self.messages and self.is_full() and connection.close_sent is None:
            return False
        elif connection.stream.paused:
            connection.process(None)
        elif (connection.tls and connection.hidden_input()
              or (connection.wait(READ, timeout) if self.poll is None else self.poll.poll(_milliseconds(timeout)))):
            self._read()
        return True

    def _read(self):
        connection = self.connection
        if connection.output.chunk is not None:
            connection.flush_waiting()
        try:
            data = connection.read()
        except (OSError, TypeError) as error:
            connection.log('connection lost: %s', shown(str(error)))
            data = b''
        except BaseException:       # of a signal handler: what was read is lost
            connection.abort()
            raise
        if data == b'' or connection.state == CLOSED:
            self._conclude()
            connection.end()
        elif data is not None:
            connection.process(data)

    def _conclude(self):
        """Let the verdict take effect. The caller has the reader's role."""
        event, self.verdict = self.verdict, None
        if event is not None and self.connection.loop is not None:
            self.connection.answer(event)

    def close(self):
        """Wait for the end of the closing handshake and of TCP; cut it when they take too long.

        While large messages still leave to a peer that reads, it waits on: what was sent before close() arrives.
        """
        if self.calls.running:
            return
        connection, token = self.connection, object()
        if self.verdict is not None:
            try:
                if self.role.take(token):
                    self._conclude()
            finally:
                if token in self.role.line:
                    self.role.line.remove(token)
                self.role.wake()
        timeout, written = self.setting('close_timeout'), -1
        timeout = None if timeout is None else timeout + DRAIN_TIMEOUT
        while connection.output.written > written and connection.state != CLOSED:
            written = connection.output.written
            if self.pump_until(self._is_over, timeout):
                break
        self.let_go()
        self.run_calls(True)

    def let_go(self):
        """Cut the connection, and wait until whoever reads it has closed the descriptor."""
        if self.connection.loop is not None:
            self.connection.abort()
            self.pump_until(self._is_over, DRAIN_TIMEOUT)

    def keep(self, at_interval):
        """The keeper's look, every INTERVAL seconds or because the socket is ready; return what to watch.

        | handler          | receive queue | verdict | what the keeper does            | waits for               |
        |------------------|---------------|---------|---------------------------------|-------------------------|
        | attends (it read | any           | any     | writes what is stuck            | WRITE if more is stuck  |
        | since last turn) |               |         |                                 |                         |
        | is absent        | has room      | none    | reads once, answers pings       | READ, and WRITE if more |
        |                  |               |         |                                 | is stuck                |
        | is absent        | is full       | none    | nothing: the peer's buffers     | WRITE if more is stuck  |
        |                  |               |         | fill, and that is no fault      |                         |
        | is absent        | any           | waits   | lets it take effect: answers    | READ for the end of TCP |
        |                  |               |         | the close, or fails             |                         |
        | is gone (nobody  | any           | any     | closes with 1001, and drains    | READ                    |
        | refers to it)    |               |         |                                 |                         |

        A handler that computes for a minute is absent: its pings are answered within INTERVAL of the interpreter's
        time.
        """
        connection = self.connection
        if at_interval:
            self.absent = 0 if self.attended else self.absent + 1
            self.attended = False
        connection.flush_waiting()
        latest = connection.output.latest
        attends = not self.absent if at_interval else self.attended
        if not attends or connection.state == CLOSED or latest is not None and latest.waiting:
            watched = self._look()      # keyed messages wait for the pongs that open their window
        else:
            watched = 0
        return watched | (WRITE if connection.output.chunk is not None else 0)

    def _look(self):
        """Do what keep() says for a handler that is absent or gone; return READ or 0."""
        token, reads = object(), False
        try:
            if self.role.take(token):
                reads = self._stand_in()
                self.attended = False
        finally:
            self.role.line.remove(token)        # the keeper gets no signals
            self.role.wake()
        return READ if reads and self.verdict is None else 0

    def _stand_in(self):
        """Read once for the handler, whose role we have; return whether there was room for more."""
        connection, gone = self.connection, self.websocket is None
        if gone and connection.state < DRAINING:
            self.messages.clear()
            connection.fail(WebSocketException('nobody refers to this connection any more', 1001))
        if self.absent or gone:
            self._conclude()
        room = not self.is_full() or connection.close_sent is not None
        if connection.loop is not None and (room or connection.state == CLOSED):
            self._pump()
            if not self.is_full():
                connection.see_to_hidden_input()
        return room


class BlockingDriver(PumpDriver):
    """Whoever calls recv(): received messages wait in a queue, callbacks for the handler's thread.

    What wakes recv() is this: the pump's own poll, or the end of another thread's turn as reader.
    """
    __slots__ = ('raw', 'partly', 'receiving', 'calls')
    limited, eager = False, True

    def __init__(self, websocket, connection):
        PumpDriver.__init__(self, websocket, connection)
        self.raw = None                     # whether recv_frame() is used or recv(), once one was
        self.partly = None                  # what recv_streaming() left: 'rest' is to be skipped, 'stop' for ever
        self.receiving = threading.Lock()   # held by recv(): two at once are an error
        self.calls = Calls()

    def begin(self, loop):
        """Make the connection a blocking one, which *loop*, the keeper, looks after; call opened()."""
        connection = self.connection
        connection.stream.plain = True
        connection.output.marks = None
        connection.events = 0
        connection.begin(loop)
        loop.look_after(connection)
        self.calls.later('opened')
        self.run_calls()

    # What a connection asks

    def take(self, stream, data):
        """Feed *data* to the *stream*; queue the messages in it, as many as there is room for, and answer the rest."""
        inbox = self.inbox
        count, size = inbox.high - len(self.messages), 2 * stream.max_size - (inbox.brought - inbox.taken)
        self.handle(stream.receive(data, max(1, count), max(1, size)))

    def handle(self, events):
        """Queue the messages of a batch of *events*, and answer what needs no receiver."""
        connection, inbox, messages = self.connection, self.inbox, self.messages
        for event in events:
            kind = event.__class__
            if kind is str or kind is bytes or kind is Fragments:
                if connection.close_sent is None or len(messages) < inbox.high:
                    messages.append(event)
                    inbox.brought += len(event)
                    if len(messages) >= inbox.high:
                        inbox.full = True
            elif messages and connection.close_sent is None and (isinstance(event, WebSocketException)
                                                                 or event.opcode == OPCODE_CLOSE):
                self.verdict = event
            else:
                connection.answer(event)

    def pinged(self, ping):
        """A ping has come: nothing is called for it on a blocking connection."""

    def ponged(self, pong):
        """A pong has come: the handler's thread is told of it."""
        self.calls.later('ponged', pong)

    def reading(self):
        """Tell whether we read all that the peer sends."""
        return not self.is_full() and self.verdict is None

    def may_wait(self):
        """Tell whether this thread may wait for another one: not inside a callback."""
        return not self.calls.running and threading.get_ident() not in _driving

    def expect_pongs(self):
        loop = self.connection.loop
        if loop is not None:
            loop.watch(self.connection, READ | self.connection.events)

    while_stuck = expect_pongs      # the peer may wait for us to read, or for its pong

    def await_event(self, event, timeout):
        """Wait for *event* at most *timeout* seconds (None: for ever), reading meanwhile."""
        self.pump_until(event.is_set, timeout)

    def close_connection(self):
        """Cut the connection: whoever reads it closes the socket."""
        self.connection.abort()

    # Callbacks: opened, ponged and closed, in the handler's thread

    def run_calls(self, last=False):
        """Make the calls that wait; then, at the end, closed(): once all is received, or if it is the *last* call."""
        calls = self.calls
        if calls.running:
            return
        calls.running = True
        try:
            while calls.waiting:
                name, args = calls.waiting.popleft()
                self.call(name, *args)
            websocket = self.websocket
            if self.connection.loop is None and (last or not self.messages) and websocket is not None:
                websocket.terminate()
        finally:
            calls.running = False

    # Receiving

    def to_frames(self):
        """Return the driver for recv_frame(), which takes the place of this one."""
        if self.receiving.locked():
            raise ConcurrencyError('another thread is receiving, or recv_streaming() is not at its end')
        connection, token = self.connection, object()
        frames = FrameDriver.__new__(FrameDriver)
        with self.receiving:
            self.choose(True)
            try:
                self.role.hold(token)
                for message in [self.messages.popleft() for _ in range(len(self.messages))]:
                    parts = _as_fragments(message).frames()     # the keeper has been faster
                    parts[-1].fin = 1
                    self.messages.extend(parts)
                if connection.stream is not None:
                    self.messages.extend(connection.stream.become_raw())
                self.inbox.brought = self.inbox.taken + sum(len(frame.body) for frame in self.messages)
                for name in Driver.__slots__ + PumpDriver.__slots__ + BlockingDriver.__slots__:
                    setattr(frames, name, getattr(self, name))
                connection.driver = frames
                connection.stop_keepalive()     # nothing answers for the user, nor asks
            finally:
                if token in self.role.line:
                    self.role.line.remove(token)
                self.role.wake()
        return frames

    def choose(self, raw):
        """The first recv(), or recv_frame() if *raw*, decides what the connection gives: messages or frames."""
        if self.raw is not None:
            raise ConcurrencyError('recv() and recv_frame() do not go together')
        self.raw = raw

    def recv(self, timeout=None, raw=False):
        """Return the next message (str, bytes or Fragments) or, *raw*, the next Frame. See WebSocket.recv()."""
        if self.receiving.locked():
            raise ConcurrencyError('another thread is receiving, or recv_streaming() is not at its end')
        # a with statement: no exception of a signal handler comes between acquiring and releasing
        with self.receiving:
            if self.raw is not raw:
                self.choose(raw)
            if self.partly is not None:
                self._skip_rest(timeout)
            if not self.messages:
                self._await_message(timeout)
            message = self.messages.popleft()
            self.inbox.taken += len(message.body if raw else message)
            if self.inbox.full:
                self.role.wake()        # somebody may wait for room
        if self.calls.waiting:
            self.run_calls()
        return message

    def _await_message(self, timeout):
        if not self.pump_until(self._has_news, timeout) and self.connection.loop is not None:
            raise TimeoutError('no message in %s seconds' % timeout)
        if not self.messages:
            self.pump_until(self._is_over, DRAIN_TIMEOUT)
            self.run_calls()
            raise self.connection.closed_error()

    def _has_news(self):
        connection = self.connection
        return self.messages or connection.close_received is not None or connection.state >= DRAINING

    def _is_over(self):
        return self.connection.loop is None

    def recv_streaming(self, decode=None):
        """Yield the next message as it arrives: see WebSocket.recv_streaming()."""
        if self.receiving.locked():
            raise ConcurrencyError('another thread is receiving, or recv_streaming() is not at its end')
        with self.receiving:
            if self.raw is not False:
                self.choose(False)
            if self.partly is not None:
                self._skip_rest(None)
            decoder, done = None, False
            try:
                while not done:
                    done, part = self._next_part()
                    self.partly = None if done else 'rest'
                    if decoder is None and (part.text if decode is None else decode):
                        decoder = codecs.getincrementaldecoder('utf-8')()
                    for piece in part.pieces:
                        yield piece if decoder is None else decoder.decode(piece)
            except GeneratorExit:
                self.partly = 'stop'
                raise

    def _next_part(self):
        """Return (whether it is the end of the message, Fragments) of what comes next; ConnectionClosed."""
        stream = self.connection.stream
        self.pump_until(lambda: self._has_news() or stream is not None and stream.has_fragments)
        part, token = None, object()
        try:
            while not self.messages and not self.role.take(token):      # a message may come before the role does
                self.role.line.remove(token)
                self.role.wait(INTERVAL)
            if not self.messages and stream is not None:
                part = stream.take_fragments()
        finally:
            if token in self.role.line:
                self.role.line.remove(token)
            self.role.wake()
        done = part is None
        if done and not self.messages:
            raise self.connection.closed_error()
        if done:
            part = self.messages.popleft()
            self.inbox.taken += len(part)
        return done, _as_fragments(part)

    def _skip_rest(self, timeout):
        """Skip what recv_streaming() left of its message when it raised. ConcurrencyError if it was abandoned."""
        if self.partly == 'stop':
            raise ConcurrencyError('recv_streaming() was abandoned before the end of its message')
        if not self.messages and not self.pump_until(self._has_news, timeout):
            raise TimeoutError('no message in %s seconds' % timeout)
        if self.messages:
            self.inbox.taken += len(self.messages.popleft())
        self.partly = None


class FrameDriver(BlockingDriver):
    """Whoever calls recv_frame(): every frame is queued, control frames too, and nothing is answered."""
    __slots__ = ()

    def to_frames(self):
        return self

    def handle(self, events):
        connection = self.connection
        for event in events:
            if event.__class__ is not Frame:
                connection.answer(event)        # an error
                continue
            self.messages.append(event)
            self.inbox.brought += len(event.body)
            if event.opcode == OPCODE_CLOSE:
                try:
                    message = parse_close(event.body)
                except WebSocketException as error:
                    connection.fail(error)
                    return
                with connection.lock:
                    connection.note_close(received=message)


def _as_fragments(message):
    """Return a received *message* (str, bytes or Fragments) as Fragments."""
    if message.__class__ is Fragments:
        return message
    return Fragments(message.__class__ is str, [_message_bytes(message)])


class Keeper(Loop):
    """The one thread that looks after blocking connections while nobody reads them; it runs no user code.

    Every 0.25 s it begins to watch those that were not read since the last time: pings are answered and a close is
    noticed, while the handler computes. It lets go of those whose reader is back, runs their clocks, and writes what
    the kernel did not take at once. What it does with each stands in BlockingDriver.keep().
    """

    def __init__(self):
        Loop.__init__(self)
        self.pid = os.getpid()
        self._turn_due = 0
        threading.Thread(target=self.run, name='minws-keeper', daemon=True).start()

    def run(self):
        """Go round for ever."""
        self.thread_id = threading.get_ident()
        _driving.add(self.thread_id)
        while True:
            try:
                self.go_round()
            except Exception:
                default_logger().error('exception in the keeper', exc_info=True)

    def look_after(self, connection):
        """Look after a blocking *connection* from now on."""
        with self._guard:
            self.entries[connection.fd] = connection
            self._next = min(self._next, due_in(INTERVAL))
        self.wake()

    def serve(self, entry, at_interval=False):
        """Give *entry* its look, and watch what it asks for."""
        try:
            self.watch(entry, entry.driver.keep(at_interval))
        except Exception:       # one bad entry must not harm the others
            default_logger().error('exception in the keeper', exc_info=True)
            if entry.state < DRAINING:
                entry.abort()

    def run_clocks(self, now):
        """Run the clocks, and every INTERVAL seconds look at everybody."""
        Loop.run_clocks(self, now)
        if now >= self._turn_due:
            self._turn_due = now + INTERVAL
            for entry in list(self.entries.values()):
                self.serve(entry, at_interval=True)
        if self.entries:
            self._next = min(self._next, self._turn_due)


_keeper = None
_keeper_guard = threading.Lock()


def keeper():
    """Return the process's Keeper, started at the first call (and again in a fork, which inherits no threads)."""
    global _keeper
    with _keeper_guard:
        if _keeper is None or _keeper.pid != os.getpid():
            _keeper = Keeper()
        return _keeper


def block(connection, websocket):
    """Make *connection*, the inside of *websocket*, a blocking one."""
    connection.driver = BlockingDriver(websocket, connection)
    connection.driver.begin(keeper())


########################################################################################################################
# 11. WebSocket
#
# The public names of a connection, for all styles; and what tests need instead of a network.


def _forward(name, settable=False, doc=None):
    """Return a property for the attribute *name* of the connection inside; *doc* says what it is."""
    def get(self):
        return getattr(self._connection, name)

    def put(self, value):
        setattr(self._connection, name, value)

    return property(get, put if settable else None, doc=doc)


class WebSocket:
    """One end of a connection whose opening handshake is done: RFC 6455 on *sock*, any socket-like object.

    *protocols* is the list of subprotocols negotiated, *extensions* the extensions, *environ* a WSGI environ,
    *heartbeat_freq* the seconds between unsolicited pongs (None or 0: none).

    May be overridden: opened, received_message, closed, ponged, pinged, sent, unhandled_error. They are called in the
    thread that reads: the manager's or the one in run(); on a blocking connection only opened, ponged and closed are,
    in the handler's thread. No lock is held while they run. An exception in one is logged and closes with 1011.

    For the caller, from any thread: send, ping, pong, close. Attributes: ``stream sock protocols subprotocol extensions
    environ request response path_args username latency close_code close_reason client_terminated server_terminated
    reading_buffer_size heartbeat_freq logger``; the limits below can be set in a subclass.
    """
    __slots__ = ('protocols', 'extensions', 'environ', 'heartbeat_freq', 'request', 'response', '_connection',
                 '__dict__', '__weakref__')
    ping_interval = PING_INTERVAL       # seconds; None: no keepalive
    ping_timeout = PING_TIMEOUT         # seconds; None: never
    close_timeout = CLOSE_TIMEOUT       # seconds; None: never
    max_queue = MAX_QUEUE

    ends_quietly = False                # True: the loss of the connection only ends iteration, see reconnect()

    subprotocol = username = None
    path_args = {}
    _logger = None

    def __init__(self, sock, protocols=None, extensions=None, environ=None, heartbeat_freq=None):
        kind = type(self)
        plain = kind.once is WebSocket.once and kind.process is WebSocket.process
        driver = (CallbackDriver if plain else OverriddenDriver)(self)
        self._connection = driver.connection = Connection(sock, Stream(), driver)
        self.protocols = protocols
        self.extensions = extensions
        self.environ = environ
        self.heartbeat_freq = heartbeat_freq
        self.request = self.response = None     # of the opening handshake
        if kind.sent is not WebSocket.sent:
            self._connection.output.marks = deque()
        if extensions and all(isinstance(extension, Extension) for extension in extensions):
            self._connection.use(extensions)

    # To be overridden

    def opened(self):
        """The opening handshake has succeeded."""

    def received_message(self, message):
        """A whole *message* has come, a TextMessage or BinaryMessage."""

    def closed(self, code, reason=None):
        """The connection is over, called once: *code* and *reason* (bytes) of the peer's close frame, or 1006."""

    def pinged(self, ping):
        """A *ping* (PingControlMessage) has come; the pong is already on its way."""

    def ponged(self, pong):
        """A *pong* (PongControlMessage) has come, one that answers no keepalive ping."""

    def sent(self, message):
        """*message*, as given to send(), has left: the kernel has all of it. Callback-driven connections only."""

    def unhandled_error(self, error):
        """A socket or OS error has ended the connection; called before ``closed``. Logs it."""
        self._connection.log('connection lost: %s', shown(str(error)))

    # Facts

    stream = _forward('stream', True, 'The Stream; None once the connection is terminated.')
    sock = connection = _forward('sock', True, 'The socket; None once it is closed.')
    local_address = _forward('local_address', doc='Our address, (host, port), or the path of a unix socket.')
    peer_address = remote_address = _forward('peer_address', doc="The peer's address, likewise.")
    close_code = _forward('close_code', doc="The peer's close code; 1006 at the end without one; None before.")
    close_reason = _forward('close_reason', doc='The reason (str) that goes with close_code.')
    latency = _forward('latency', doc='Seconds of the last measured round trip.')
    dropped = _forward('dropped', doc='Keyed messages that newer ones replaced before they were sent.')
    reading_buffer_size = _forward('read_size', True, 'Bytes asked of one recv().')

    @property
    def logger(self):
        """Where this connection logs; 'minws' unless set."""
        return self._logger or default_logger()

    @logger.setter
    def logger(self, logger):
        self._logger = logger

    @property
    def client_terminated(self):
        """The peer's close frame has come, or nothing more will (the names are those of a server)."""
        return self._connection.close_received is not None or self._connection.state == CLOSED

    @property
    def server_terminated(self):
        """Our close frame is out, or nothing more can be."""
        return self._connection.close_sent is not None or self._connection.state == CLOSED

    @property
    def terminated(self):
        """True if both sides are done."""
        return self.client_terminated and self.server_terminated

    @property
    def state(self):
        """One of State.CONNECTING, OPEN, CLOSING, CLOSED."""
        connection = self._connection
        return State.CLOSED if connection.sock is None else _PUBLIC_STATES[connection.state]

    @property
    def buffered_amount(self):
        """Bytes that were sent but not yet taken by the kernel."""
        with self._connection.lock:
            return self._connection.output.amount

    def respond(self, status, text):
        """Return a plain text Response, for process_request and process_response: *status* int, *text* str."""
        return text_response(int(status), text)

    # Sending

    def send(self, message, binary=None, *, text=None, key=None):
        """Send *message*: str as text, bytes-like as binary; an iterable of either as fragments; or a Message.

        *binary* or *text* (bool) decide instead of the type: bytes sent as text must be UTF-8 (ValueError). Whole
        messages of several threads never mix. One leaves at once, or at the end of the callback that sent it. A
        blocking connection, or run(), waits while more than 64 KiB are unsent, until the peer is dropped because it
        took nothing for 10 s; under a manager nothing waits, and who lets 1 MiB wait is dropped. With a *key*, the
        latest value wins: while the peer is slower than we are, a newer message replaces the one of the same key that
        waits, and nothing blocks.

        The last item of a sequence is the final fragment. Of an iterator a blocking connection sends each item at once
        and ends with an empty fragment; elsewhere one item is held back, so that the last is the final one.

        ConnectionClosed if the connection is closed, TypeError for what cannot be sent; an iterable that raises or
        mixes types fails the connection with 1011.
        """
        # hot: 0.5 us of each message that is answered
        connection = self._connection
        loop = connection.loop
        if loop is not None and loop.pending is not None:
            loop.share()        # what was broadcast before this message arrives before it
        if text is not None:
            if binary is not None:
                raise TypeError('binary and text say the same thing: give one of them')
            binary = not text
        if message.__class__ is bytes:
            opcode, data = OPCODE_BINARY, message
            if binary is False:
                opcode = OPCODE_TEXT
                message.decode()
        elif message.__class__ is str and not binary:
            opcode, data = OPCODE_TEXT, message.encode()
        else:
            opcode, data = _sendable(message, binary)
        if key is not None:
            check_keyed(opcode)
            with connection.lock:
                return connection.put_keyed(key, opcode, data)
        if opcode is None:
            return connection.send_fragments(fragments(data, binary, connection.driver.eager))
        size, output = len(data), connection.output
        with connection.lock:
            swift = connection.swift and output.chunk is None and size <= 65536
            if swift:
                # the common case, written out: 0.76 us against 1.34
                frames = output.frames
                frames.append((SHORT_HEADS[0x80 | opcode][size] if size < 126 else
                               pack_frame_head(0x80 | opcode, size)) + data)
                if output.cork == threading.get_ident() and len(frames) < 64 and size <= 4096:
                    return
                connection.flush()
        if not swift:
            connection.send([(opcode, data, True)], message)
            if output.marks is not None and output.cork is None:
                connection.report_sent()
        if output.queued > WRITE_SOFT:
            connection.driver.await_room()

    def ping(self, data=None, ack_on_close=False):
        """Send a ping with *data* (str, or at most 125 bytes; None: 4 random ones) and return its PongWaiter.

        ConcurrencyError if a ping with the same data is unanswered. Measures ``latency`` when the pong comes.
        """
        return self._connection.ping(os.urandom(4) if data is None else _control_data(data), ack_on_close)

    def pong(self, data=b''):
        """Send an unsolicited pong with *data* (str, or at most 125 bytes)."""
        self._connection.pong(_control_data(data))

    def close(self, code=1000, reason=''):
        """Begin the closing handshake, once; ValueError for a code that must not be sent or a reason over 123 bytes.

        What was sent before leaves before the close frame; nothing is sent after it but pongs, until the peer's has
        come. A blocking connection waits for its end, at most close_timeout (and 1 s for TCP); elsewhere, and inside
        callbacks, this sends and returns.
        """
        reason = _message_bytes(reason)
        reason.decode()
        if not isinstance(code, int) or not valid_close_code(code):
            raise ValueError('close code %r may not be sent' % (code,))
        if len(reason) > 123:
            raise ValueError('a close reason has at most 123 bytes')
        connection = self._connection
        loop = connection.loop
        if loop is not None and loop.pending is not None:
            loop.share()
        if connection.state == CONNECTING:
            connection.abort()
        with connection.lock:
            connection.send_close(code, reason)
        connection.driver.close()

    # Driven by callbacks: by a manager, by run(), or by whoever calls once()

    def process(self, bytes):
        """Feed *bytes* to the stream and act on what is in them; return False when the connection is over.

        b'' stands for the end of the input, None for nothing new: what was left over is parsed. Messages go to
        received_message, or to recv(), pongs to ponged; pings are answered, a close frame and errors begin the end. One
        that overrides this sees what once() reads, though not what came with the opening handshake.
        """
        return self._connection.process(bytes)

    def once(self):
        """Read once and act on what came; return False when the connection is over: terminate() is next.

        Under a manager this never waits; elsewhere it waits for input, and runs the clocks.
        """
        return self._connection.driver.turn()

    def run(self):
        """Call opened(), read until the connection is over, and terminate. Blocks: run it in a thread of its own."""
        self._connection.driver.run()

    def terminate(self):
        """Complete the websocket: call closed() once, close the socket, unset ``stream`` and ``environ``.

        The thread that calls this calls closed(): the manager's, the one in run(), or a blocking handler's own, in the
        call of recv() or close() that finds the end.
        """
        connection = self._connection
        with connection.lock:
            if connection.told:
                return
            connection.told = True
            closing = None if connection.stream is None else connection.stream.closing
            if connection.close_received is None and isinstance(closing, CloseControlMessage):
                connection.close_received = closing
        connection.driver.let_go()
        with connection.lock:
            connection.become(CLOSED)
        try:
            closing = connection.close_received
            self.closed(connection.close_code, b'Going away' if closing is None else closing.reason)
        except Exception:
            connection.driver.logger.error('%s: exception in closed()', format_addresses(self), exc_info=True)
        finally:
            connection.end()
            connection.driver.forget()
            connection.stream = self.environ = None

    def close_connection(self):
        """Shut the socket down and close it. Where a loop or another thread reads it, they close it, at once."""
        self._connection.driver.close_connection()

    # Blocking

    def recv(self, timeout=None, decode=None):
        """Return the next message: str for text, bytes for binary, or as *decode* says (True: str, False: bytes).

        Wait at most *timeout* seconds (None: for ever; 0 or less: take only what is there), then TimeoutError.
        ConnectionClosedOK or ConnectionClosedError when the connection is closed and all messages are taken;
        ConcurrencyError if another thread is inside recv(), or a manager or run() reads this connection.
        """
        message = self._connection.driver.recv(timeout)
        if message.__class__ is Fragments:
            payload = b''.join(message.pieces)
            message = payload.decode() if message.text else payload
        if decode is None or decode is (message.__class__ is str):
            return message
        return message.decode() if decode else message.encode()

    def recv_streaming(self, decode=None):
        """Yield the next message as it arrives, a fragment at a time: str or bytes, see recv().

        It must be consumed: else the connection can receive nothing more (ConcurrencyError). If it raises, the rest of
        its message is skipped.
        """
        return self._connection.driver.recv_streaming(decode)

    def recv_frame(self, timeout=None):
        """Return the next Frame, its body unmasked; TimeoutError, ConnectionClosed and ConcurrencyError as in recv().

        The first call makes the connection raw: control frames come too, and nothing is answered for you.
        """
        return self._connection.driver.to_frames().recv(timeout, raw=True)

    def send_frame(self, frame):
        """Send *frame*, a Frame with a body that is not masked: this end masks it if it must. ConnectionClosed.

        A close frame begins the closing handshake, or completes it.
        """
        connection = self._connection
        connection.send_frame(frame)
        connection.driver.await_room()

    def __iter__(self):
        """Iterate over messages until the connection is closed, with 1000, 1001 or no code; ConnectionClosedError.

        Where ``ends_quietly`` is true, as it is with reconnect(), every end of the connection only ends this.
        """
        return self

    def __next__(self):
        """Return the next message, as recv() does."""
        try:
            return self.recv()
        except ConnectionClosed as error:
            if self.ends_quietly or isinstance(error, ConnectionClosedOK):
                raise StopIteration from None
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        lost = self.ends_quietly and isinstance(error, ConnectionClosed) and self.state is not State.OPEN
        if kind is None or self._connection.state == DRAINING:
            self.close()
        else:
            self.close(1011 if issubclass(kind, Exception) else 1001)
        return lost


_PUBLIC_STATES = (State.CONNECTING, State.OPEN, State.CLOSING, State.CLOSING, State.CLOSED)


def _control_data(data):
    data = _message_bytes(data)
    if len(data) > 125:
        raise ValueError('a control frame carries at most 125 bytes')
    return data


class EchoWebSocket(WebSocket):
    """A websocket that sends every message back."""

    def received_message(self, message):
        """Send *message* back as it came."""
        self.send(message.data, message.is_binary)


class Heartbeat(threading.Thread):
    """A thread that sends an unsolicited pong every *frequency* seconds; it ends the connection when that fails.

    ``heartbeat_freq`` needs none of these: the clock of the connection serves it.
    """

    def __init__(self, websocket, frequency=2.0):
        threading.Thread.__init__(self, name='minws-heartbeat', daemon=True)
        self.websocket = websocket
        self.frequency = frequency
        self._over = threading.Event()

    def __enter__(self):
        if self.frequency:
            self.start()
        return self

    def __exit__(self, kind, error, traceback):
        self.stop()

    def stop(self):
        """End the thread."""
        self._over.set()

    def run(self):
        """Send pongs."""
        while not self._over.wait(self.frequency):
            if self.websocket.terminated:
                break
            try:
                self.websocket.pong(b'')
            except (OSError, ConnectionClosed):
                self.websocket.close_connection()
                break


class ScriptedSocket:
    """A socket for tests: recv() returns the *chunks* one by one, raises those that are exceptions, then b''.

    A chunk is bytes, an exception, or a Message, which becomes a frame as a client sends it. ``sent`` (bytearray)
    collects what was written; ``feed(chunk)`` adds a chunk; ``closed`` tells whether it is.
    """

    def __init__(self, *chunks):
        self.chunks = deque()
        self.sent = bytearray()
        self.closed = False
        for chunk in chunks:
            self.feed(chunk)

    def feed(self, chunk):
        """Add a *chunk*; TypeError if it is none."""
        if isinstance(chunk, Message):
            chunk = chunk.single(mask=True)
        if not isinstance(chunk, _BYTES + (BaseException,)):
            raise TypeError('a chunk is bytes, an exception or a Message, not %s' % type(chunk).__name__)
        self.chunks.append(chunk)

    def recv(self, size):
        """Return at most *size* bytes of the next chunk."""
        if not self.chunks:
            return b''
        chunk = self.chunks.popleft()
        if isinstance(chunk, BaseException):
            raise chunk
        if len(chunk) > size:
            self.chunks.appendleft(chunk[size:])
        return chunk[:size]

    def sendall(self, data):
        """Note *data* in ``sent``."""
        if self.closed:
            raise OSError(errno.EPIPE, 'the socket is closed')
        self.sent += data

    def shutdown(self, how):
        """Do nothing: what was written can still be looked at."""

    def close(self):
        """Note that it is closed."""
        self.closed = True


def pair(client_class=WebSocket, server_class=WebSocket, subprotocol=None, extensions=()):
    """Return (client, server): two connected WebSockets, without handshake or network, for tests.

    Each is blocking, unless its class overrides received_message: then a thread of its own runs it, until either is
    closed. *extensions* are patterns; they are negotiated as a handshake would.
    """
    ends = socket.socketpair()
    client, server = client_class(ends[0]), server_class(ends[1])
    offers = [(pattern.name, params) for pattern in extensions for params in pattern.offer()]
    accepted = accept_extensions(_extension_header(offers), extensions)
    answer = [(extension.name, extension.params) for extension in accepted]
    negotiated(server, subprotocol, accepted)
    be_client(client, subprotocol, confirm_extensions(_extension_header(answer), extensions))
    for websocket in (client, server):
        if type(websocket).received_message is WebSocket.received_message:
            block(inside(websocket), websocket)
        else:
            threading.Thread(target=websocket.run, name='minws-pair', daemon=True).start()
    return client, server


def _extension_header(items):
    return Headers([('Sec-WebSocket-Extensions', format_extensions(items))] if items else [])


def inside(websocket):
    """Return the Connection of a WebSocket."""
    return websocket._connection


def negotiated(websocket, subprotocol, extensions):
    """Note what the opening handshake has chosen."""
    websocket.subprotocol = subprotocol
    websocket.protocols = [subprotocol] if subprotocol else []
    websocket.extensions = extensions
    inside(websocket).use(extensions)


def be_client(websocket, subprotocol, extensions):
    """Make *websocket* the client's end, with what the opening handshake has chosen."""
    stream = websocket.stream
    stream.always_mask, stream.expect_masking, stream.sharing = True, False, None
    negotiated(websocket, subprotocol, extensions)


########################################################################################################################
# 12. Manager
#
# Many connections in one thread: it polls, lets each websocket read once, writes what is left over, runs the clocks.


class Broadcast:
    """A message for many, managed and blocking: encoded once for all whose streams are alike, and joined with others.

    *message* is str, bytes-like, or an iterable of one of them as fragments; TypeError, ValueError.
    """
    __slots__ = ('frames', 'key', 'size', 'others', '_encoded')

    def __init__(self, message, binary=None, key=None):
        opcode, data = _sendable(message, binary)
        if key is not None:
            check_keyed(opcode)
        self.frames = list(fragments(data, binary)) if opcode is None else [(opcode, data, True)]
        self.key = key
        self.size = sum(len(data) for _, data, _ in self.frames)
        self.others = ()        # connections that are no entries of the manager's: blocking ones
        self._encoded = {}      # Stream.sharing → frames as bytes

    def add(self, other):
        """Let the frames of the Broadcast *other* follow."""
        self.frames += other.frames
        self.size += other.size

    def send(self, connections):
        """Send it to each of *connections*; nobody is waited for, and who cannot take it misses it. Any thread."""
        plain, full = None, []
        for connection in connections:
            try:
                output = connection.output
                with connection.lock:
                    if (connection.swift and output.chunk is None and output.cork is None and not output.frames
                            and plain is not None):
                        connection.flush(plain)     # the common case, written out: 1.7 us a peer against 2.1
                    elif not self._send_to(connection):
                        full.append(connection)
                    elif self.key is None:
                        plain = self._encoded.get(())
            except (WebSocketException, OSError) as error:
                default_logger().debug('broadcast: %s', shown(str(error)))
            except Exception:       # one bad websocket, or extension, must not harm the others
                default_logger().error('exception in a broadcast', exc_info=True)
        for connection in full:
            connection.drop()

    def _send_to(self, connection):
        """Let it leave to a *connection*, whose lock is held; False if too much waits for that already."""
        if isinstance(connection, Guest):
            for opcode, data, _ in self.frames:
                connection.websocket.send(data, opcode == OPCODE_BINARY)
            return True
        connection.check_open()
        output, sharing = connection.output, connection.stream.sharing
        if output.is_full(self.size):
            return False
        frames = self._encoded.get(sharing)
        # while a message is in progress nothing else is encoded on its stream
        if frames is None and output.turn is None and (self.key is None or sharing is not None):
            frames = b''.join([connection.encode(*frame) for frame in self.frames])
            if sharing is not None:
                self._encoded[sharing] = frames
        if self.key is not None:
            opcode, data, _ = self.frames[0]
            connection.put_keyed(self.key, opcode, data, frames)
        elif output.turn is not None:
            output.turn.put(self.frames)
        else:
            connection.put(frames)
        return True


class Guest:
    """The entry of what only looks like a WebSocket: it has ``sock``, ``once()``, ``terminate()`` and ``send()``."""
    carries_messages = True
    events, due = READ, FOREVER
    swift, output, driver = False, None, None

    def __init__(self, websocket):
        self.websocket, self.sock, self.lock = websocket, websocket.sock, threading.Lock()
        self.once, self.terminate = websocket.once, websocket.terminate
        self.fd = websocket.sock.fileno()

    def flush_waiting(self):
        """Do nothing: what waits is its own affair."""


class WebSocketManager(Loop, threading.Thread):
    """A thread that serves many websockets with one *poller* (None: the best of this system).

    ``len()``, iteration and ``in`` know its websockets; add, remove, broadcast, close_all and stop may be called from
    any thread. It calls each websocket's public ``once`` and, when that returns False, ``terminate``: they must not
    block, or all the others wait. Objects that only look like a WebSocket are served too.
    """

    def __init__(self, poller=None):
        threading.Thread.__init__(self, name='minws-manager', daemon=True)
        Loop.__init__(self, poller)
        self.running = False
        self._stopping = False
        self.on_stop = None         # called in the thread when stop() was

    def peers(self):
        """Return the entries of this moment that are no listeners or handshakes."""
        return [entry for entry in list(self.entries.values()) if entry.carries_messages]

    @property
    def websockets(self):
        """The websockets of this moment: a dict of each to itself, so that iteration and values() both give them."""
        return {websocket: websocket for websocket in self}

    def __len__(self):
        return len(self.peers())

    def __iter__(self):
        return iter([entry.websocket for entry in self.peers()])

    def __contains__(self, websocket):
        return websocket in list(self)

    def start(self):
        """Start the thread; ``running`` is true at once."""
        self.running = True
        try:
            threading.Thread.start(self)
        except RuntimeError:        # the system has no more threads
            self.running = False
            raise

    def add(self, websocket):
        """Call the *websocket*'s opened(), and serve it from now on. ConcurrencyError if somebody else reads it."""
        before = self.entries.get(websocket.sock.fileno())
        if before is not None and before.carries_messages and before.websocket is websocket:
            return
        self.share()
        if not isinstance(websocket, WebSocket):
            websocket.opened()
            self.enter(Guest(websocket))
            return
        connection = inside(websocket)
        if connection.loop is not None or connection.driver.runner is not None:
            raise ConcurrencyError('this connection is read by somebody else')
        connection.fd = websocket.sock.fileno()
        connection.begin(self)
        connection.driver.call('opened')
        if connection.sock is None:         # opened() has ended it
            return
        try:
            self.enter(connection)
        except Exception:
            connection.loop = None
            websocket.terminate()
            raise
        if connection.hidden_input() or connection.state == CLOSED or connection.output.queued:
            self.again(connection)

    def remove(self, websocket):
        """Hand *websocket* back when its turn in progress is over: it is served no more, closed() is not called."""
        for entry in self.peers():
            if entry.websocket is websocket:
                self.share()
                self.leave(entry, wait=True)
                entry.loop = None

    def broadcast(self, message, binary=None, *, key=None, exclude=()):
        """Send *message* to every websocket of this moment but those in *exclude*; who cannot take it misses it.

        It is encoded once. In the manager's own thread it leaves at the end of the turn, together with others.
        """
        self.spread(Broadcast(message, binary, key), exclude)

    def spread(self, broadcast, exclude=(), others=()):
        """Send a Broadcast to all, and to the connections *others*, but not to the websockets in *exclude*."""
        if broadcast.key is None and not exclude and threading.get_ident() == self.thread_id:
            if self.pending is None:
                self.pending = broadcast
            else:
                self.pending.add(broadcast)
            self.pending.others = others
            if self.pending.size > WRITE_SOFT:
                self.share()
            return
        self.share()
        connections = self.peers() + list(others)
        broadcast.send([one for one in connections if one.websocket not in exclude] if exclude else connections)

    def share(self):
        """Send what was broadcast in this turn: joined once for all (1.15 times a raw loop; each for himself: 1.5)."""
        if self.pending is not None and threading.get_ident() == self.thread_id:
            broadcast, self.pending = self.pending, None
            broadcast.send(self.peers())
            if broadcast.others:
                broadcast.send(broadcast.others)

    def close_all(self, code=1001, message='Server is shutting down'):
        """Begin the closing handshake with everybody; does not wait for them."""
        for websocket in self:
            try:
                websocket.close(code, message)
            except Exception:
                default_logger().debug('close_all: %s', shown(websocket), exc_info=True)

    def stop(self):
        """End the thread: close what is open with 1001, wait at most close_timeout for the answers, then cut."""
        self.stop_soon()
        if not self.running:
            self.close_all()
            self._end()

    def stop_soon(self):
        """Have run() end, as stop() does; for signal handlers."""
        self._stopping = True
        self.wake()

    def run(self):
        """Serve until stop(); may be called instead of start(), to serve in this thread."""
        self.running = True
        self.thread_id = threading.get_ident()
        _driving.add(self.thread_id)
        try:
            while not self._stopping:
                self.go_round()
            self._await_closing_handshakes()
        finally:
            _driving.discard(self.thread_id)
            self._end()

    def serve(self, entry):
        """Let *entry* read once; end it when it is over."""
        self._serving = entry
        try:
            alive = (entry if entry.driver is None else entry.driver).once()
        except Exception:
            default_logger().error('exception in once()', exc_info=True)
            alive = False
        if not alive:
            self.share()
            self._dismiss(entry)
        self._serving = None
        if self._awaiting:
            self.turn_ended()

    def _dismiss(self, entry):
        self.leave(entry)
        try:
            entry.terminate()
        except Exception:
            default_logger().error('exception in terminate()', exc_info=True)

    def _await_closing_handshakes(self):
        if self.on_stop is not None:
            self.on_stop()
        self.close_all()
        timeouts = [getattr(websocket, 'close_timeout', None) for websocket in self]
        deadline = due_in(max([timeout for timeout in timeouts if timeout.__class__ in (int, float)] or [0]))
        while len(self) and time.monotonic() < deadline:
            self._next = min(self._next, deadline)
            self.go_round()

    def _end(self):
        for entry in list(self.entries.values()):
            self._dismiss(entry)
        self.running = False
        self.thread_id = None
        self.release()


########################################################################################################################
# 13. Server
#
# Listeners and opening handshakes are entries of the manager's loop. A handshake is a generator that yields READ or
# WRITE where it must wait: the loop runs it for WebSocket classes, a thread for handler functions. What is no upgrade
# gets one HTTP answer, and the connection ends.

CONTENT_TYPES = {
    'html': 'text/html', 'htm': 'text/html', 'js': 'text/javascript', 'mjs': 'text/javascript', 'css': 'text/css',
    'txt': 'text/plain', 'log': 'text/plain', 'md': 'text/markdown', 'csv': 'text/csv', 'xml': 'text/xml',
    'json': 'application/json', 'webmanifest': 'application/manifest+json', 'wasm': 'application/wasm',
    'pdf': 'application/pdf', 'gz': 'application/gzip', 'zip': 'application/zip', 'svg': 'image/svg+xml',
    'png': 'image/png', 'jpg': 'image/jpeg', 'jpeg': 'image/jpeg', 'gif': 'image/gif', 'webp': 'image/webp',
    'ico': 'image/x-icon', 'woff2': 'font/woff2', 'mp3': 'audio/mpeg', 'mp4': 'video/mp4'}
IN_A_THREAD = 0     # what Opening.run() yields where the loop must not be held


def expect(good, wanted, value, error=TypeError):
    """Raise *error*, which says what is *wanted* and is not *value*, unless *good*."""
    if not good:
        raise error('%s, not %s' % (wanted, shown(value)))


def page_response(answer, name, headers=()):
    """Return the Response that a page's *answer* stands for: one, a dict (JSON), or str or bytes, of which *name* says
    the type; None if it is None. TypeError, ValueError."""
    if answer is None or isinstance(answer, Response):
        return answer
    if isinstance(answer, dict):
        return Response(200, answer)
    expect(isinstance(answer, (str,) + _BYTES), 'a page is str, bytes, dict or a Response', answer)
    return Response(200, None, page_headers(name) + list(headers), answer)


def page_headers(name):
    """Return the header fields of a page of that *name*, which is asked for anew each time: 304 if it is as before."""
    kind = CONTENT_TYPES.get(name.rpartition('.')[2].lower(), 'application/octet-stream')
    return [('Content-Type', kind + '; charset=utf-8' if kind[:5] == 'text/' else kind), ('Cache-Control', 'no-cache'),
            ('X-Content-Type-Options', 'nosniff')]


def unless_known(request, tag, response):
    """Return *response* with the ETag *tag*, or 304 if the *request* has that one already, RFC 9110 13.1.2."""
    response.headers['ETag'] = tag = '"%s"' % tag
    if not {tag, 'W/' + tag, '*'}.intersection(request.headers.elements('If-None-Match')):
        return response
    response.close()
    del response.headers['Content-Length']
    return Response(304, None, response.headers)


def file_response(request, name):
    """Return the Response that is the file *name*: in pieces if it is long. OSError."""
    file = open(name, 'rb')
    with closed_on_failure(file):
        about = os.fstat(file.fileno())
        response = Response(200, None, page_headers(name) + [('Content-Length', str(about.st_size))], file)
        if about.st_size <= READ_SIZE:
            response.body = file.read(READ_SIZE)
            file.close()
    return unless_known(request, '%x-%x' % (about.st_mtime_ns, about.st_size), response)


def match_route(pattern, path):
    """Return the {name} parts of *pattern*, decoded from *path*, as a dict; None if it does not match."""
    wanted, given = pattern.split('/'), path.split('/')
    args = {}
    for part, segment in zip(wanted, given):
        if part[:1] == '{' and part[-1:] == '}' and segment:
            args[part[1:-1]] = percent_decoded(segment)
        elif part != segment:
            return None
    return args if len(wanted) == len(given) else None


def find_file(root, path):
    """Return the real name of *path* (decoded) in the directory *root*, '' if there is none; OSError.

    A name counts as the directory lists it: other file systems also know it in other letters, or with a dot behind.
    """
    name = root = os.path.realpath(root)
    for part in path.split('/') if path else ():
        if part[:1] in '.' or ':' in part or not os.path.isdir(name) or part not in os.listdir(name):
            return ''
        name = os.path.realpath(os.path.join(name, part))
        if not name.startswith(root.rstrip(os.sep) + os.sep):
            return ''
    return name


def basic_auth(realm='', credentials=None, check_credentials=None):
    """Return a process_request that wants HTTP basic authentication (RFC 7617) and sets ``username``.

    Give either *credentials*, a pair (user, password) or an iterable of pairs, or *check_credentials*(user, password).
    """
    if (credentials is None) is (check_credentials is None):
        raise ValueError('give either credentials or check_credentials')
    if credentials is not None:
        pairs = list(credentials)
        if str in map(type, pairs):
            pairs = [credentials]
        expect(all(isinstance(pair, tuple) and list(map(type, pair)) == [str, str] for pair in pairs),
               'credentials are a pair (user, password) or a list of such pairs', type(credentials))

        def check_credentials(*given):
            from hmac import compare_digest     # how long it takes tells nothing about users
            return any([all([compare_digest(right.encode(), text.encode()) for right, text in zip(pair, given)])
                        for pair in pairs])
    expect(callable(check_credentials), 'check_credentials is a function of user and password', check_credentials)
    challenge = 'Basic realm="%s", charset="UTF-8"' % check_field(realm, 'realm').replace('\\', '').replace('"', "'")

    def process_request(connection, request):
        scheme, _, encoded = request.headers.get('Authorization', '').partition(' ')
        try:
            user, colon, password = binascii.a2b_base64(encoded.strip(' ')).decode().partition(':')
        except ValueError:          # binascii.Error is one
            colon = ''
        if scheme.lower() != 'basic' or not colon or not check_credentials(user, password):
            return text_response(401, 'user name and password are needed\n', [('WWW-Authenticate', challenge)])
        connection.username = user

    return process_request


class Listener(Transport):
    """A listening socket: accepts all who wait, and stands back when descriptors run out."""

    def __init__(self, server, sock):
        Transport.__init__(self, sock)
        self._server = server
        self.loop = server.manager
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)      # accepted sockets inherit it

    def once(self):
        """Accept those who wait."""
        try:
            for _ in range(128):
                self._server.accept(*self.sock.accept())
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass
        except OSError as error:        # EMFILE and the like last: trying on would take all of the processor
            self._server.logger.warning('cannot accept: %s', error)
            self.watch(0)
            self.wake_at(due_in(2 * INTERVAL))
        return True

    def tick(self, now):
        """Accept again."""
        self.due = FOREVER
        self.watch(READ)

    def terminate(self):
        """Close the socket."""
        self.sock.close()


class Handshake(Transport):
    """One side of an opening handshake on *sock*, until *due* (monotonic).

    run(), a generator, yields READ or WRITE where it must wait. ``data`` is what has come and is not looked at.
    """

    def __init__(self, sock, due):
        Transport.__init__(self, sock)
        self.due = self.deadline = due
        self.data = bytearray()
        self.aborted = False
        self.steps = self.run()

    def run(self):
        """Yield what to wait for, until it is over."""
        raise NotImplementedError

    def drive(self):
        """Block until it is over."""
        for events in self.steps:
            if not self.wait(events, self.due - time.monotonic()):
                self.tick(self.due)
            if self.aborted:
                break
        self._set_timeout(None)

    def abort(self):
        self.aborted = True
        Transport.abort(self)

    def blocked(self):
        """Do nothing: write() says what to wait for, and the deadline is that of the whole handshake."""

    unblocked = blocked

    def close(self):
        """Close the socket, and let go of the generator, which refers to this."""
        self.close_socket()
        self.steps.close()
        self.steps = iter(())       # one that never began keeps its frame, from Python 3.12 on

    def shake_tls(self, context, **options):
        """The TLS handshake, a generator like those that follow."""
        import ssl
        self.adopt(context.wrap_socket(self.sock, do_handshake_on_connect=False, **options))
        while True:
            try:
                return self.sock.do_handshake()
            except ssl.SSLWantReadError:
                yield READ
            except ssl.SSLWantWriteError:
                yield WRITE

    def write(self, data):
        """Write all of *data*."""
        try:
            with self.lock:
                self.put(data)
        except (BrokenPipeError, ConnectionResetError):     # no real socket; it may have answered already
            pass
        while self.output.queued:
            yield WRITE
            self.flush_waiting()

    def receive(self):
        """Wait for input, and add it to ``data``; EOFError."""
        if not self.real:       # it is not polled
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError('opening handshake timed out')
            self._set_timeout(left)
        data = self.read()
        while data is None and self.real:
            yield READ
            data = self.read()
        if not data:
            raise EOFError('the peer closed the connection')
        self.data += data

    def _set_timeout(self, seconds):
        """What only looks like a socket may still know of timeouts."""
        if not self.real and hasattr(self.sock, 'settimeout'):
            self.sock.settimeout(None if seconds == FOREVER else seconds)

    def read_head(self):
        """Return a head (bytes), and leave what follows in ``data``."""
        end = find_head_end(self.data)
        while not end:
            searched = len(self.data)
            yield from self.receive()
            end = find_head_end(self.data, searched)
        head = bytes(self.data[:end])
        del self.data[:end]
        return head


class Opening(Handshake):
    """A server's opening handshake in progress, TLS included: ``succeeded`` when the ``made`` websocket is open.

    What is no upgrade is answered, and over; a long answer counts among the connections, not the handshakes.
    """
    made = request = None
    succeeded = admitted = False
    asking = False          # a hook is being called, which nobody can end

    def __init__(self, server, sock, address=None):
        Handshake.__init__(self, sock, due_in(server.open_timeout))
        self._server = server
        self.peer_address = address[:2] if isinstance(address, tuple) else None

    def once(self):
        """Go on as far as possible; false when it is over."""
        events = None if self.aborted else next(self.steps, None)
        if events == IN_A_THREAD:
            self.loop.leave(self)
            self.loop = None
            self._server.start_thread(self)
            return True
        if events is not None:
            self.watch(events)
        elif self.succeeded:
            self._server.hand_over(self)
            self.loop.leave(self)       # unless the websocket has taken the place
        return events is not None or self.succeeded

    def tick(self, now):
        """The time is over."""
        if not self.output.written and not self.output.queued:
            with self.lock:
                self.put(text_response(408, 'the request took too long\n').build())
        self.abort()

    def terminate(self):
        """Close what is left of it."""
        self._server.dismiss(self)
        self.close()
        if self.made is not None and not self.succeeded:
            inside(self.made).end()

    def run(self):
        """The handshake; sets ``succeeded``."""
        server, head = self._server, b''
        try:
            try:
                if server.ssl is not None:
                    yield from self.shake_tls(server.ssl, server_side=True)
                head = yield from self.read_head()
                response = yield from self._answer(parse_request(head))
            except HandshakeError as error:
                self._report(error)
                response = text_response(error.status, '%s\n' % error, error.headers)
            accepted = response.status_code == 101
            if not accepted and server.server_header is not None and 'Server' not in response.headers:
                response.headers['Server'] = server.server_header
            yield from self._deliver(response, head[:5] != b'HEAD ' and response.status_code not in (204, 304))
            if not accepted:
                yield from self._drain()
                return
            self.made.response = response
            self.succeeded = opening_succeeded(self.made, self)
        except (OSError, EOFError) as error:
            server.logger.debug('opening handshake with %s: %s', shown(self.peer_address), shown(str(error)))

    def _report(self, error):
        """Log a HandshakeError in one line: a warning is what the owner must know, and not more often than needed."""
        cause, server, log = error.__cause__, self._server, self._server.logger.info
        text = str(error if cause is None else cause)
        if isinstance(error, Refusal):
            text += ' (%s: %s)' % (error.field, self.request.headers.get(error.field, '-')[:100])
            if server.is_news(text):
                log = server.logger.warning
        elif cause is not None:
            log = server.logger.warning
        elif error.status in (302, 404, 426, 500):      # a plain GET and a health check are normal, hooks told already
            log = server.logger.debug
        log('%s refused with %d: %s', shown(self.peer_address), error.status, shown(text))

    def _deliver(self, response, with_body):
        """Write a *response*: what is long in pieces, timed by progress."""
        if not with_body or isinstance(response.body, bytes) and len(response.body) <= READ_SIZE and not response.gzip:
            response.close()
            yield from self.write(response.build(with_body))
            return
        generated = not isinstance(response.body, bytes) and not hasattr(response.body, 'read')
        try:
            self._admit(self.loop is not None and not generated)
        except HandshakeError as error:
            response.close()
            self._report(error)
            yield from self.write(text_response(error.status, '%s\n' % error).build())
            return
        if self.loop is not None and generated:
            yield IN_A_THREAD
        response = response.compressed(self.request) if response.gzip else response
        try:
            yield from self._write_steadily(response.build(with_body=False))
            yield from self._write_pieces(response)
        finally:
            response.close()

    def _write_pieces(self, response):
        left, pieces = response.length, response.pieces()
        while not self.output.broken:
            try:
                piece = self._ask('the body of a page', next, pieces, None,
                                  right=lambda piece: piece is None or isinstance(piece, _BYTES))
            except HandshakeError:
                self.abort()
                return
            if piece is None:
                break
            if left is not None:            # a file that grows meanwhile is as long as was said
                left -= len(piece)
                yield from self._write_steadily(piece if left >= 0 else piece[:left])
                if left <= 0:
                    break
            elif len(piece):
                yield from self._write_steadily(b'%x\r\n%s\r\n' % (len(piece), piece))
        if left is None and not self.output.broken:
            yield from self._write_steadily(b'0\r\n\r\n')
        elif left:                          # and one that shrinks must not look whole
            self.abort()

    def _write_steadily(self, data):
        """Write *data*, as long as the peer takes some, and give others their turn."""
        steps = self.write(data)
        while True:
            over = next(steps, None) is None
            self.due = FOREVER
            self.wake_at(min(self.output.due, due_in(WRITE_TIMEOUT)))
            yield WRITE
            if over:
                return

    def _admit(self, managed):
        """Count among the connections from now on; HandshakeError 503 if there are as many as may be."""
        if not self.admitted and not self._server.admit(self, managed):
            raise HandshakeError('too many connections; the argument max_connections= of serve() says how many', 503)
        self.admitted = True

    def _read_body(self, request):
        length = request.headers.get('Content-Length', '0')
        if request.method not in ('GET', 'HEAD', 'POST'):
            raise HandshakeError('this page takes GET and POST', 405, [('Allow', 'GET, HEAD, POST')])
        if 'Transfer-Encoding' in request.headers or not is_number(length):
            raise HandshakeError('a body needs a Content-Length')
        if int(length) > self._server.max_size:
            raise HandshakeError('the body is longer than max_size', 413)
        while len(self.data) < int(length):
            yield from self.receive()
        request.body = bytes(self.data[:int(length)])

    def _drain(self):
        """End TCP in order: nothing that follows is parsed."""
        with self.lock:
            self.half_close()
        self.wake_at(due_in(DRAIN_TIMEOUT))
        while self.read() != b'':
            yield READ

    def _answer(self, request):
        """Check the *request* and ask the hooks; return the Response."""
        server, self.request = self._server, request
        check_host(request, server.hosts)
        check_pathname(request.pathname)        # before all that may look at it
        if request.method not in ('GET', 'HEAD'):
            check_origin(request, server.origins)
        upgrade = is_upgrade(request)
        self.handler, self.args = server.find(request.pathname)
        if upgrade or server.process_request is not None:
            self._make(request)
        response = self._ask('process_request', server.process_request, self.made, request)
        if self.made is not None and inside(self.made).state == CLOSED:
            raise EOFError('given up in process_request')
        if response is None and not upgrade:
            response = yield from self._page(request)
        if self.handler is None and (response is None or response.status_code == 101):
            raise HandshakeError('there is no WebSocket at this path', 404)
        return response or self._accept(request)

    def _ask(self, name, hook, *args, right=lambda answer: answer is None or isinstance(answer, Response)):
        """Return what a user's *hook* says, None if it is none; 500 unless that is *right*. *name* is for the log."""
        log = self._server.logger.error
        self.asking = True
        try:
            answer = None if hook is None else hook(*args)
            if hook is None or right(answer):
                return answer
            log('%s returned what it may not: %s', name, shown(answer))
        except Exception:
            log('exception in %s', name, exc_info=True)
        finally:
            self.asking = False
        raise HandshakeError('internal error', 500)

    def _make(self, request):
        server = self._server
        kind = self.handler if isinstance(self.handler, type) else server.create_connection or WebSocket
        name = kind.__name__ if kind is self.handler else 'create_connection'
        self.made = websocket = self._ask(name, kind, self.sock, right=lambda made: isinstance(made, WebSocket)
                                          and made.sock is self.sock)
        websocket.request = request
        inside(websocket).await_handshake(self.peer_address)
        configure(websocket, server.settings)
        if kind is ServedWebSocket:
            websocket.server = server

    def _accept(self, request):
        """Return the Response that opens the websocket, or what process_response wants instead."""
        server, websocket = self._server, self.made
        check_upgrade(request)
        check_origin(request, server.origins)
        self._admit(isinstance(self.handler, type))
        offered = offered_subprotocols(request)
        subprotocol = next((name for name in server.subprotocols if name in offered), None)
        if server.select_subprotocol is not None:
            subprotocol = self._ask('select_subprotocol', server.select_subprotocol, websocket, offered,
                                    right=lambda name: name is None or name in offered)
        negotiated(websocket, subprotocol, accept_extensions(request.headers, server.extensions))
        response = accept_response(request, subprotocol, websocket.extensions, server.server_header)
        return self._ask('process_response', server.process_response, websocket, request, response) or response

    def _page(self, request):
        """Return the Response of the page that is asked for."""
        try:
            page, name = self._server.find_page(request)
            if callable(page):
                yield from self._read_body(request)
                self._admit(False)              # however long it takes
                if self.loop is not None:
                    yield IN_A_THREAD
                response = self._ask('the page ' + shown(request.pathname),
                                     lambda: page_response(page(request), name))
            elif page is not None and request.method not in ('GET', 'HEAD'):
                raise HandshakeError('this page can only be read', 405, [('Allow', 'GET, HEAD')])
            elif page is None:
                if self.handler is not None:
                    check_upgrade(request)      # says what is missing
                response = None
            elif page is name:
                response = file_response(request, name)
            else:
                response = unless_known(request, '%x-%x' % (binascii.crc32(page), len(page)), page_response(page, name))
        except OSError as error:
            status = {errno.EACCES: 403, errno.EPERM: 403, errno.ENOENT: 404, errno.ENOTDIR: 404}.get(error.errno, 500)
            raise HandshakeError('this page cannot be read', status) from error
        if response is None:
            raise HandshakeError('there is nothing at this path', 404)
        return response


def opening_succeeded(websocket, handshake):
    """The opening *handshake* has succeeded; return whether the *websocket* is open: a hook may have ended it."""
    connection = inside(websocket)
    connection.take_over(handshake)
    if websocket.request is not None:
        websocket.request.headers.forget_index()        # the request stays
    return connection.state == OPEN and connection.sock is not None and not handshake.output.broken


class ServedWebSocket(WebSocket):
    """A connection whose events are methods of its ``server``, with the connection in front."""
    server = None


for _name in ('opened', 'received_message', 'closed', 'pinged', 'ponged', 'sent', 'unhandled_error'):
    def _forward(websocket, *args, name=_name):
        """Pass the event on to the server."""
        getattr(websocket.server, name)(websocket, *args)
    setattr(ServedWebSocket, _name, _forward)


def connection_settings(_known=(), **given):
    """Check what serve() and connect() are *given* of a connection; return attributes of WebSocket and of Stream.

    What it does not know is a TypeError that tells the nearest name, of these and those *_known*.
    """
    stream = {}
    for name, value in given.items():
        if name == 'max_size':
            limits = check_limits(name, value, None, 1)
            stream = dict(zip(('max_size', 'max_fragment'), [UNLIMITED if size is None else size for size in limits]))
        elif name == 'max_queue':
            check_limits(name, value)
        elif name != 'logger':
            if name not in SETTINGS or name == 'heartbeat_freq':
                from difflib import get_close_matches
                near = get_close_matches(name, list(_known) + list(SETTINGS), 1, 0.5)
                raise TypeError('there is no argument %s' % shown(name) + ''.join('; is it %s?' % it for it in near))
            expect(value is None or value > 0, '%s is a number of seconds, or None' % name, value, ValueError)
    return {name: value for name, value in given.items() if name not in ('max_size', 'open_timeout')}, stream


def check_limits(name, value, second=None, least=0):
    """Return (*value*, *second*), or *value* if it is a pair, of None or int from *least* on; ValueError."""
    pair = value if isinstance(value, tuple) else (value, second)
    expect(len(pair) == 2 and all(limit is None or isinstance(limit, int) and limit >= least for limit in pair),
           '%s is a number, a pair of numbers, or None' % name, value, ValueError)
    return pair


def configure(websocket, settings):
    """Set the connection_settings() of a *websocket*."""
    for target, attributes in zip((websocket, websocket.stream), settings):
        for name, value in attributes.items():
            if getattr(target, name, None) != value:        # each costs memory, in every connection
                setattr(target, name, value)


class Server:
    """Listening *sockets* (one, or a list) and what is behind them; the other arguments are those of serve().

    ``start()`` serves in the background, ``serve_forever()`` in the calling thread; ``shutdown()``, or leaving it as a
    context manager, ends either. ``port`` is the one it got (None on a unix socket), ``manager`` the WebSocketManager
    whose loop it is, ``connections`` a set of all open WebSockets at this moment.
    """

    def __init__(self, sockets, handler, *, ssl=None, origins='same', hosts='local', extensions=(), compression=None,
                 subprotocols=None, select_subprotocol=None, process_request=None, process_response=None,
                 server_header='minws/' + __version__, max_connections=(MAX_THREADS, MAX_MANAGED), pages=None,
                 create_connection=None, keep_latest=False, **settings):
        for name, hook in (('select_subprotocol', select_subprotocol), ('process_request', process_request),
                           ('process_response', process_response), ('create_connection', create_connection),
                           ('ssl', getattr(ssl, 'wrap_socket', ssl))):
            expect(hook is None or callable(hook), '%s is None or callable' % name, hook)
            setattr(self, name, hook)
        self.ssl, self.keep_latest = ssl, keep_latest
        self.sockets = list(sockets) if isinstance(sockets, (list, tuple)) else [sockets]
        self.routes = _checked_routes(handler)
        self.pages = dict(_checked_page(path, page) for path, page in (pages or {}).items())
        self.origins, self.hosts = _names('origins', origins, 'same'), _names('hosts', hosts, 'local')
        self.extensions = with_compression(extensions, compression)
        self.subprotocols = check_subprotocols(subprotocols)
        self.server_header = None if server_header is None else check_field(server_header, 'server_header')
        self.max_connections = check_limits('max_connections', max_connections, max_connections)
        known = set(Server.__init__.__kwdefaults__).union(serve.__kwdefaults__)
        self.settings = connection_settings(known, **settings)
        self.max_size = self.settings[1].get('max_size', MAX_SIZE)
        self.open_timeout = settings.get('open_timeout', OPEN_TIMEOUT)
        self.close_timeout = settings.get('close_timeout', CLOSE_TIMEOUT)
        self.logger = settings.get('logger') or default_logger()
        self.manager = WebSocketManager()
        self.manager.on_stop = self.shutdown
        self.openings = OrderedDict()           # opening handshakes in progress, the oldest first
        # one operation on each of these is atomic, so that they need no lock
        self._blocking, self._threads = set(), set()
        self._guard = threading.Lock()          # of these:
        self._seats = {}                        # Opening → whether its handler is in the loop; what that does not count
        self._refused = OrderedDict()           # who was
        self._last = Latest()
        self._stopping = False
        self._threaded = any(not isinstance(kind, type) for _, kind in self.routes)
        if self._threaded:
            keeper()
        self._listeners = [Listener(self, sock) for sock in self.sockets]
        for listener in self._listeners:
            self.manager.enter(listener)

    @property
    def port(self):
        address = self.sockets[0].getsockname()
        return address[1] if isinstance(address, tuple) else None

    @property
    def connections(self):
        return self._blocking.union(self.manager)

    def fileno(self):
        """Return the descriptor of the first listening socket."""
        return self.sockets[0].fileno()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.shutdown()

    def start(self):
        """Serve in a thread of the server's own; returns at once."""
        if not self.manager.running:
            self.manager.start()
        return self

    def serve_forever(self):
        """Serve in this thread until shutdown(), in the main one also Ctrl-C or SIGTERM; return when all is closed.

        A signal that you handle yourself is left to you; a second Ctrl-C interrupts at once.
        """
        import signal
        replaced = []

        def restore():
            while replaced:
                signal.signal(*replaced.pop())

        def stop(number, frame):
            restore()
            self._stopping = True
            self.manager.stop_soon()

        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    replaced.append((number, signal.signal(number, stop)))
        try:
            if not self.manager.running and not self._stopping:
                self.manager.run()
            while self.manager.running:     # in another thread
                time.sleep(INTERVAL / 5)
        finally:
            self.shutdown()
            restore()

    def shutdown(self, code=1001, reason='Server is shutting down'):
        """Accept no more, close every connection with *code*, and wait for their handlers; any thread may call it.

        It waits at most close_timeout and a second; a handler that hangs is left behind, with a line in the log.
        ValueError for a *code* that may not be sent, or a *reason* of more than 123 bytes.
        """
        expect(isinstance(code, int) and valid_close_code(code), 'a close code that may be sent', code, ValueError)
        expect(len(reason.encode('utf-8')) <= 123, 'a reason has at most 123 bytes', reason, ValueError)
        self._stopping = True
        for opening in list(self.openings) + [opening for opening in list(self._seats) if not opening.succeeded]:
            opening.abort()
        for connection in map(inside, list(self._blocking)):
            with connection.lock:
                connection.send_close(code, reason.encode('utf-8'))
        self.manager.close_all(code, reason)
        if threading.get_ident() == self.manager.thread_id:
            for listener in self._listeners:
                self.manager.leave(listener)
                listener.terminate()
            self.manager.stop()
            return
        self.manager.stop()
        deadline = due_in((CLOSE_TIMEOUT if self.close_timeout is None else self.close_timeout) + 1)
        handlers = self._threads - {threading.current_thread()}
        for thread in list(handlers) + [self.manager] * (self.manager.ident is not None):
            thread.join(max(0, deadline - time.monotonic()))
        running = sum(thread.is_alive() for thread in handlers)
        if running:
            self.logger.warning('%d handlers are still running', running)

    def broadcast(self, message, binary=None, *, key=None, exclude=()):
        """Send *message* to all connections but those in *exclude*; waits for none: see WebSocketManager."""
        broadcast = Broadcast(message, binary, key)
        if key is not None:
            with self._guard:
                self._last.put(key, message, broadcast.frames[0][1], broadcast)
        sent = None
        while broadcast is not sent:        # another thread may keep a later one, and yet send it earlier
            self.manager.spread(broadcast, exclude, [inside(websocket) for websocket in list(self._blocking)])
            sent, broadcast = broadcast, self._last.waiting.get(key, (None, None, broadcast))[2]

    def _catch_up(self, connection):
        """Send the last of each key to a newcomer, who gets what is broadcast from now on; later ones may overtake."""
        sent, fresh = {}, self.keep_latest
        while fresh:
            with self._guard:
                fresh = {key: entry[2] for key, entry in self._last.waiting.items() if sent.get(key) is not entry[2]}
            for broadcast in fresh.values():
                broadcast.send([connection])
            sent.update(fresh)

    def last(self, key=None):
        """Return the last message broadcast with *key*, or None; without one, a dict of all: for who joins late.

        The last MAX_KEYS of them are kept, and no more than WRITE_HARD bytes.
        """
        if key is not None:
            return self._last.waiting.get(key, (None,))[0]
        with self._guard:
            return {key: entry[0] for key, entry in self._last.waiting.items()}

    def forget(self, key):
        """Forget the last message broadcast with *key*."""
        with self._guard:
            self._last.remove(key)

    # The events of all clients, if a subclass of this is served

    def opened(self, client, *args):
        """*client*, a WebSocket, is open; received_message(client, message) and the others likewise."""

    received_message = closed = pinged = ponged = sent = opened

    def unhandled_error(self, client, error):
        """The connection of *client* was lost. Logs it."""
        WebSocket.unhandled_error(client, error)

    # From accept to the handler

    def accept(self, sock, address):
        """Begin an opening handshake: in a thread, if a function is among the handlers."""
        opening = Opening(self, sock, address)
        if not self._make_room():
            self._turn_away(opening, 'too many opening handshakes')
            return
        self.openings[opening] = True
        if self._threaded:
            self.start_thread(opening)
            return
        opening.loop = self.manager
        try:
            self.manager.enter(opening)
        except (OSError, ValueError, RuntimeError) as error:    # select knows no descriptor above 1023
            self.logger.warning('cannot serve %s: %s', shown(address), error)
            opening.terminate()

    def _make_room(self):
        """Have the oldest opening handshake give way to a new one; false if there are too many whose threads go on."""
        if len(self.openings) < MAX_HANDSHAKES:
            return True
        for opening in list(self.openings):
            if not opening.aborted and not opening.asking:
                opening.abort()
                if not self._threaded:
                    self.openings.pop(opening, None)
                return len(self.openings) < 2 * MAX_HANDSHAKES
        return False

    def _turn_away(self, opening, reason):
        with opening.lock:
            opening.put(text_response(503, reason + '\n').build())
        opening.terminate()

    def start_thread(self, opening):
        """Go on with *opening* in a thread."""
        thread = threading.Thread(target=self._serve_connection, args=(opening,), name='minws-connection', daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self.logger.warning('cannot start a thread: %s', error)
            self._turn_away(opening, 'no more threads')

    def _serve_connection(self, opening):
        """The thread of a connection: its opening handshake, then its handler."""
        self._threads.add(threading.current_thread())       # not earlier: shutdown() may join only what has started
        try:
            opening.drive()
            if opening.succeeded:
                self.hand_over(opening)
            else:
                opening.terminate()
        except Exception:
            self.logger.error('exception while serving %s', shown(opening.peer_address), exc_info=True)
            opening.terminate()
        finally:
            self._threads.discard(threading.current_thread())

    def hand_over(self, opening):
        """Give a connection that is open to the manager, or run its handler in this thread."""
        websocket, handler = opening.made, opening.handler
        if opening.args:
            websocket.path_args = opening.args
        if not isinstance(handler, type):
            self._handle(websocket, handler, opening)
        elif not self._stopping:
            try:
                self.manager.add(websocket)
                self._catch_up(inside(websocket))
            except RuntimeError:
                if not self._stopping:      # else it ended while opened() ran
                    raise
            finally:
                self.dismiss(opening)
        else:
            self.dismiss(opening)
            websocket.close(1001)
            inside(websocket).end()

    def _handle(self, websocket, handler, opening):
        block(inside(websocket), websocket)
        self._blocking.add(websocket)
        code = 1011
        try:
            if self._stopping:          # shutdown() may have missed it
                websocket.close(1001)
            self._catch_up(inside(websocket))
            handler(websocket, **websocket.path_args)
            code = 1000
        except ConnectionClosed:
            code = 1000
        except Exception:
            self.logger.error('%s: exception in the handler', format_addresses(websocket), exc_info=True)
        finally:
            try:
                websocket.close(code)
            finally:
                self.dismiss(opening)
                self._blocking.discard(websocket)

    def admit(self, opening, managed):
        """Count *opening* among the connections, those in the loop or those with threads; false if there is no room.

        One that the loop drives is there already, as one of its entries; the others have a seat until dismiss().
        """
        with self._guard:
            count = sum(kind is managed and not (kind and self._is_entered(seat)) for seat, kind in self._seats.items())
            if managed:
                count += len(self.manager.entries) - len(self.sockets) - (0 if self._threaded else len(self.openings))
            if self.max_connections[managed] is not None and count >= self.max_connections[managed]:
                return False
            self.openings.pop(opening, None)
            if opening.loop is None or not managed:
                self._seats[opening] = managed
            return True

    def _is_entered(self, opening):
        """Tell whether the connection of *opening* has come to the loop, or to its end."""
        connection = inside(opening.made)
        return connection.state == CLOSED or self.manager.entries.get(connection.fd) is connection

    def dismiss(self, opening):
        """Count *opening* no more."""
        self.openings.pop(opening, None)
        self._seats.pop(opening, None)

    def is_news(self, text):
        """Tell whether *text* is none of the last 100 that were asked for."""
        with self._guard:
            news = text not in self._refused
            self._refused[text] = True
            if len(self._refused) > 100:
                self._refused.popitem(last=False)
            return news

    def find(self, path):
        """Return (handler, {name} parts) for a *path*; (None, {}) if there is none."""
        for pattern, handler in self.routes:
            args = {} if pattern is None else match_route(pattern, path)
            if args is not None:
                return handler, args
        return None, {}

    def find_page(self, request):
        """Return (page, name): a function, bytes, or the name of a file; what tells its type. HandshakeError."""
        path = request.pathname
        within = [prefix for prefix, page in self.pages.items() if prefix == path
                  or prefix[-1:] == '/' and (path + '/').startswith(prefix) and _is_directory(page)]
        prefix = max(within, key=lambda prefix: (prefix == path, len(prefix)), default=None)
        page = self.pages.get(prefix)
        if not isinstance(page, str):
            return page, path if '.' in path else '.html'
        if _is_directory(page):
            rest = percent_decoded(path[len(prefix):])
            root, page = page, find_file(page, rest.rstrip('/'))
            if os.path.isdir(page) and path[-1] != '/':
                raise HandshakeError('this is a directory', 302, [('Location', path + '/' + request.path[len(path):])])
            page = find_file(root, rest + 'index.html') if os.path.isdir(page) else page * (path[-1] != '/')
        if not page or os.path.lexists(page) and not os.path.isfile(page):      # a device, a pipe
            raise HandshakeError('there is nothing at this path', 404)
        return page, page


def _is_directory(page):
    return isinstance(page, str) and os.path.isdir(page)


def _path(path):
    expect(isinstance(path, str) and path[:1] == '/', "a path begins with '/'", path, ValueError)
    return path


def _checked_page(path, page):
    """Return (path, page) of the argument pages, with the whole name of a file; ValueError, TypeError."""
    _path(path)
    try:
        check_pathname(path)
    except HandshakeError:
        raise ValueError('nobody can ask for the page %s: escape what is no letter, digit or -._~' % shown(path))
    if callable(page) or isinstance(page, (bytes, bytearray)):
        return path, page
    expect(isinstance(page, str) or hasattr(page, '__fspath__'),
           'the page %s is bytes, a function, or the name of a file or directory' % path, page)
    name = os.path.abspath(os.fspath(page))
    expect(os.path.exists(name), 'the page %s is the name of a file or directory that exists' % path, page, ValueError)
    return path + '/' * (os.path.isdir(name) and path[-1] != '/'), name


def _checked_routes(handler):
    """Return [(pattern or None, function or class)] of a handler, or of a dict of them."""
    routes = [(None, handler)]
    if isinstance(handler, dict):
        routes = [(_path(path), kind) for path, kind in handler.items()]
    for _, kind in routes:
        expect(issubclass(kind, WebSocket) if isinstance(kind, type) else callable(kind),
               'a handler is a function of a websocket, or a subclass of WebSocket', kind)
    return routes


def _names(what, values, default):
    """Return the argument origins or hosts: None, *default*, or a list."""
    if values is None or values == default:
        return values
    expect(not isinstance(values, (str, bytes)), '%s is %r, None or a list' % (what, default), values)
    if what == 'hosts':
        return [parse_host(check_field(host, 'host'))[0] for host in values]
    values = list(values)
    for origin in values:
        expect(origin is None or isinstance(origin, str) or hasattr(origin, 'fullmatch'),
               'an origin is a str, a compiled pattern or None', origin)
    return values


def with_compression(extensions, compression):
    """Return the list of *extensions* with the one that *compression* stands for."""
    extensions = list(extensions or ())
    wanted = "compression is 'deflate', 'small' or None"
    expect(compression in (None, 'deflate', 'small'), wanted, compression, ValueError)
    if compression == 'small':      # for small devices: a window of 1 KiB, and nothing kept between messages
        extensions.append(PerMessageDeflate(window_bits=10, mem_level=3, context_takeover=False))
    elif compression is not None:
        extensions.append(PerMessageDeflate())
    for extension in extensions:
        expect(isinstance(extension, Extension), 'an extension is an object of Extension', extension)
    return extensions


class closed_on_failure:
    """Close *sockets* if the block fails; its socket.timeout, no TimeoutError before Python 3.10, becomes one."""

    def __init__(self, *sockets):
        self.sockets = sockets

    def __enter__(self):
        return self.sockets[0]

    def __exit__(self, kind, error, traceback):
        for sock in self.sockets if kind is not None else ():
            sock.close()
        if isinstance(error, socket.timeout):
            raise TimeoutError('opening handshake timed out')


def listen(host=None, port=0, *, backlog=128, reuse_port=False):
    """Return listening sockets for *host* (None or '': every interface, IPv4 and IPv6) and *port* (0: any free one).

    OSError, with a sentence for people if the port may not be used.
    """
    expect(isinstance(port, int) and 0 <= port < 65536, 'a port is a number from 0 to 65535', port, ValueError)
    both = not host and _has_ipv6()
    host = host or ('::' if both else '0.0.0.0')
    sockets = []
    try:
        # as bytes: str would need the codec idna, which a router's Python lacks
        found = socket.getaddrinfo(host.encode('ascii'), 0, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
        for family, address in OrderedDict.fromkeys((item[0], item[4]) for item in found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            # on Windows SO_REUSEADDR would let another program take the port
            option = getattr(socket, 'SO_EXCLUSIVEADDRUSE', socket.SO_REUSEADDR)
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
            sock.bind(address[:1] + (port,) + address[2:])
            sock.listen(backlog)
            port = sock.getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        hint = {errno.EADDRINUSE: 'is in use by another program: choose another one',
                errno.EACCES: 'needs privileges: choose one above 1023'}.get(error.errno)
        raise OSError(error.errno, 'port %d %s' % (port, hint)) if hint else error
    return sockets


def _has_ipv6():
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
        return True
    except OSError:
        return False


def accept(sock, **options):
    """Perform a server's opening handshake on *sock*, connected; return a blocking WebSocket.

    *options* are those of serve(). HandshakeError if the client was refused, and has been told so.
    """
    server = Server([], lambda websocket: None, **options)
    server.manager.stop()
    opening = Opening(server, sock)
    opening.drive()
    if not opening.succeeded:
        opening.terminate()
        raise HandshakeError('the opening handshake failed')
    block(inside(opening.made), opening.made)
    return opening.made


def serve(handler, host=None, port=None, *, sock=None, backlog=128, reuse_port=False, **options):
    """Listen on *host* and *port* and return a Server: call its start() or serve_forever().

    *handler* is a function of a websocket, which gets a thread for each connection and may block until it returns; or
    a subclass of WebSocket, whose connections all live in the server's one loop; or a dict of paths to either, whose
    {name} parts are keyword arguments of the function and ``path_args`` of the class; or a subclass of Server, whose
    methods opened(client), received_message(client, message) and so on are the events of all clients.

    *host* None or '' is every interface, *port* 0 any free one; *sock* is a listening socket instead, *ssl* an
    SSLContext. *origins*, *hosts*: see check_origin, check_host. *subprotocols*: names, the best first, or
    select_subprotocol(websocket, offered) → name or None. *extensions* are patterns, *compression* 'deflate' or
    'small' (for small devices). process_request(websocket, request) and process_response(websocket, request, response)
    return a Response to use instead, or None. *server_header* None sends none. *pages* maps paths to the name of a file
    or directory that exists, bytes, or a function of a Request that returns str, bytes, a dict (JSON), a Response or
    None (404), and is called in a thread of that request's own, as is what makes the body of a Response in pieces.
    *create_connection* makes the WebSocket of handler functions. *keep_latest*: send the last message that was
    broadcast with each key to every newcomer, see Server.last().

    Seconds: *open_timeout*, *ping_interval*, *ping_timeout*, *close_timeout*. *max_size*: bytes of a message, or
    (message, fragment); *max_queue*: received messages that wait, or (high, low); *max_connections*: one number, or
    (with threads, in the loop). None disables each.
    """
    if sock is None:
        sockets = listen(host, port or 0, backlog=backlog, reuse_port=reuse_port)
    else:
        expect(not (host or port or reuse_port), 'sock replaces host and port', (host, port), ValueError)
        sockets = [sock]
        sock.listen(backlog)
    with closed_on_failure(*sockets):
        if isinstance(handler, type) and issubclass(handler, Server):
            return handler(sockets, ServedWebSocket, **options)
        return Server(sockets, handler, **options)


def unix_serve(handler, path=None, *, sock=None, **options):
    """Like serve(), on the unix socket *path*; one that nobody listens on any more is replaced."""
    if sock is None:
        from stat import S_ISSOCK
        with closed_on_failure(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as sock:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == errno.ECONNREFUSED and S_ISSOCK(os.stat(path).st_mode):
                    os.unlink(path)
            sock.bind(path)
    return serve(handler, sock=sock, **options)


########################################################################################################################
# 14. Client
#
# The other role: a socket connected and secured, a request, its answer checked. connect() makes blocking connections,
# the classes callback-driven ones.

MAX_BODY = 64 << 10     # bytes of the body of a refusal: it is only an explanation
BODY_TIMEOUT = 2        # seconds for them, for the same reason


def resolve(host, port, due=FOREVER):
    """Return what getaddrinfo() says of *host* (str) and *port*; OSError, and TimeoutError where *due* comes first."""
    def look_up():
        try:
            # as bytes: str would need the codec idna, which a router's Python lacks
            found.append(socket.getaddrinfo(host.encode('ascii'), port, 0, socket.SOCK_STREAM))
        except Exception as error:
            found.append(error)

    found = []
    if due == FOREVER or ':' in host or not host.strip(_DIGITS + '.'):      # an address needs no resolver
        look_up()
    else:
        thread = threading.Thread(target=look_up, name='minws-resolver', daemon=True)   # there is no timeout for it
        try:
            thread.start()
        except RuntimeError:        # the system has no more threads
            look_up()
        else:
            thread.join(min(max(0, due - time.monotonic()), threading.TIMEOUT_MAX))
    if not found:
        raise TimeoutError('nobody knows an address of %s in time' % host)
    if isinstance(found[0], Exception):
        raise found[0]
    if not found[0]:
        raise OSError(errno.EADDRNOTAVAIL, 'there is no address of %s' % host)
    return found[0]


def connect_socket(host, port, due=FOREVER, source_address=None):
    """Return a socket connected until *due* to *host* (str), any of its addresses; *port* None: to a unix socket."""
    found = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, '', host)] if port is None else resolve(host, port, due)
    for left, (family, kind, protocol, _, address) in zip(range(len(found), 0, -1), found):
        try:
            with closed_on_failure(socket.socket(family, kind, protocol)) as sock:
                if due != FOREVER:
                    sock.settimeout(max(0.001, (due - time.monotonic()) / left))
                if source_address is not None:
                    sock.bind(source_address)
                sock.connect(address)
                if port is not None:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        except OSError as error:
            failure = error
    raise failure


class ClientHandshake(Handshake):
    """A client's opening handshake on *sock*: ``response`` is what the server answers to *request* (bytes).

    *tunnel* is a request to a proxy that goes before it, *context* an SSLContext to verify *server_hostname* with. The
    body of a *response* is what explains a refusal; what came behind one with status 101 is in ``data``.
    """
    response = None

    def __init__(self, sock, due, request, context=None, server_hostname=None, tunnel=None):
        self._request, self._context, self._server_hostname, self._tunnel = request, context, server_hostname, tunnel
        Handshake.__init__(self, sock, due)

    def drive(self):
        """Block until it is over. HandshakeError, OSError, TimeoutError."""
        Handshake.drive(self)
        if self.response is None:
            raise HandshakeError('the opening handshake was given up')

    def run(self):
        """The handshake; sets ``response``."""
        if self._tunnel is not None:
            yield from self._exchange(self._tunnel, range(200, 300))
            response, self.response = self.response, None
            if not 200 <= response.status_code < 300 or self.data:
                raise ProxyError('the proxy answered %d %s' % (response.status_code, shown(response.reason_phrase)),
                                 response=response)
        if self._context is not None:
            yield from self.shake_tls(self._context, server_hostname=self._server_hostname)
        yield from self._exchange(self._request, (101,))

    def _exchange(self, request, good):
        """Write a *request* and read the ``response``, past interim ones, with its body unless it is *good*."""
        yield from self.write(request)
        for _ in range(8):      # answers with 1xx, of which a few are tolerated
            try:
                head = yield from self.read_head()
                response = parse_response(head)
            except EOFError:
                raise InvalidMessage('the server closed the connection before it answered')
            except HandshakeError as error:
                raise InvalidMessage(str(error))
            if response.status_code == 101 or response.status_code >= 200:
                break
        else:
            raise InvalidMessage('too many interim answers')
        self.response = response
        if response.status_code not in good:
            response.body = yield from self._read_body(response)

    def _read_body(self, response):
        """Return the body that *response* says it has, or what has come of it in 2 s, RFC 9112 6.3 and 7.1."""
        length, body = response.headers.get('Content-Length', ''), bytearray()
        chunked = has_token(response.headers, 'Transfer-Encoding', 'chunked')
        left = 0 if chunked or response.status_code in (204, 304) else int(length) if is_number(length) else MAX_BODY
        self.due = self.deadline = min(self.due, due_in(BODY_TIMEOUT))
        try:
            while len(body) < MAX_BODY:
                if chunked and not left:
                    left = yield from self._read_chunk_size()
                if not left:
                    break
                if not self.data:
                    yield from self.receive()
                piece = self.data[:min(left, MAX_BODY - len(body))]
                del self.data[:len(piece)]
                body += piece
                left -= len(piece)
        except (OSError, EOFError):     # what has come must do
            pass
        return bytes(body)

    def _read_chunk_size(self):
        """Return the number at the head of the next chunk; EOFError if there is none."""
        while b'\n' not in self.data[2:]:       # the first two bytes may end the chunk before
            yield from self.receive()
            if len(self.data) > MAX_LINE + READ_SIZE:
                raise EOFError('a chunk without an end')
        line, _, self.data = self.data.lstrip(b'\r\n').partition(b'\n')
        size = line.partition(b';')[0].strip(b' \t\r').decode('latin-1')
        if not 0 < len(size) <= 8 or size.strip(_HEX_DIGITS):
            raise EOFError('malformed chunk')
        return int(size, 16)

    def tick(self, now):
        """The time is over."""
        try:
            self.steps.throw(TimeoutError('opening handshake timed out'))
        except StopIteration:       # its answer is there, though not all of it
            pass


def client_handshake(request, scheme, host, port, due, *, ssl=None, server_hostname=None, proxy=None,
                     source_address=None, sock=None):
    """Return the ClientHandshake, not begun, of a *request* (bytes) on *sock*, or one connected to *host* and *port*.

    For wss inside TLS, which verifies the certificate unless *ssl*, an SSLContext, says otherwise.
    """
    tunnel = None
    if sock is None and proxy and port is not None:
        expect(proxy.startswith('http://'), 'a proxy is http://host:port', proxy, ValueError)
        _, proxy_host, proxy_port, _, userinfo = parse_uri('ws' + proxy[4:])
        fields = Headers([('Host', host_header('', host, port))])
        if userinfo:
            fields.add('Proxy-Authorization', basic_credentials(*userinfo))
        tunnel = build_head('CONNECT %s HTTP/1.1' % fields['Host'], fields)
        sock = connect_socket(proxy_host, proxy_port, due, source_address)
    elif sock is None:
        sock = connect_socket(host, port, due, source_address)
    with closed_on_failure(sock):
        if scheme.startswith('wss') and ssl is None:
            from ssl import create_default_context
            ssl = create_default_context()
        return ClientHandshake(sock, due, request, ssl, server_hostname or host, tunnel)


def client_headers(scheme, host, port, key, userinfo, subprotocols, extensions, headers, exclude_headers, origin=None,
                   user_agent=None):
    """Return the Headers of an opening handshake, RFC 6455 4.1; ValueError.

    A name in *headers*, the caller's, replaces ours.
    """
    offers = [(pattern.name, params) for pattern in extensions for params in pattern.offer()]
    host = 'localhost' if port is None else host_header(scheme, host, port)
    fields = [('Host', host), ('Upgrade', 'websocket'), ('Connection', 'Upgrade'), ('Sec-WebSocket-Key', key),
              ('Sec-WebSocket-Version', str(WS_VERSION)), ('Origin', origin), ('User-Agent', user_agent),
              ('Authorization', basic_credentials(*userinfo) if userinfo else None),
              ('Sec-WebSocket-Protocol', ', '.join(check_subprotocols(subprotocols)) or None),
              ('Sec-WebSocket-Extensions', format_extensions(offers) or None)]
    given = Headers(headers)
    left_out = given.names + [name.lower() for name in exclude_headers or ()]
    fields = [field for field in fields if field[1] is not None and field[0].lower() not in left_out] + given.items()
    return Headers(sorted(fields, key=lambda field: field[0].lower() != 'host'))    # RFC 9110 7.2: it is the first


def check_answer(response, sent, extensions):
    """Return what check_response() does; its key and the subprotocols are those in the headers that were *sent*."""
    key, offered = sent.get('Sec-WebSocket-Key', ''), sent.elements('Sec-WebSocket-Protocol')
    return check_response(response, key, offered, extensions)


def new_key():
    """Return a fresh Sec-WebSocket-Key (str)."""
    return binascii.b2a_base64(os.urandom(16))[:-1].decode()


def tls_context(*, ca_certs=None, cafile=None, capath=None, cadata=None, certfile=None, keyfile=None, password=None,
                cert_reqs=None, ssl_version=None, ciphers=None, do_handshake_on_connect=None,
                suppress_ragged_eofs=None):
    """Return an SSLContext for a client by the options that ssl.wrap_socket() had; the last two mean nothing here.

    It verifies certificates and names with *ca_certs* (or cafile, capath, cadata; None: those of the system), unless
    *cert_reqs* is ssl.CERT_NONE. *ssl_version* is one of ssl.PROTOCOL_...
    """
    import ssl
    context = ssl.create_default_context(cafile=ca_certs or cafile, capath=capath, cadata=cadata)
    if ssl_version is not None:
        name = 'TLSv1_2' if ssl_version == getattr(ssl, 'PROTOCOL_TLSv1_2', None) else None
        modern = (ssl.PROTOCOL_TLS, getattr(ssl, 'PROTOCOL_TLS_CLIENT', None))
        expect(name or ssl_version in modern, 'ssl_version is ssl.PROTOCOL_TLS, or PROTOCOL_TLSv1_2', ssl_version,
               ValueError)
        if name and hasattr(ssl, 'TLSVersion'):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        elif name:      # Python 3.6
            context.options |= getattr(ssl, 'OP_NO_TLSv1_3', 0) | ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1
    if cert_reqs is not None:
        context.check_hostname = cert_reqs != ssl.CERT_NONE
        context.verify_mode = cert_reqs
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if certfile is not None:
        context.load_cert_chain(certfile, keyfile, password)
    return context


class WebSocketBaseClient(WebSocket):
    """A client driven by callbacks: ws://, wss:// or ws+unix:// *url*. ValueError for a bad URL or header.

    ``connect()`` blocks until the handshake is done and calls ``handshake_ok()``, to be overridden: give it to a
    manager there, or call run() in a thread. *ssl_options* are those of tls_context(), which verifies unless
    ``cert_reqs`` says otherwise, or ``context``, one of your own. *headers* are extra ones, *exclude_headers* names to
    leave out. ``ws+unix`` requests '/', unless ``resource`` is set before connecting.
    """
    open_timeout = OPEN_TIMEOUT
    _handshake = None

    def __init__(self, url, protocols=None, extensions=None, heartbeat_freq=None, ssl_options=None, headers=None,
                 exclude_headers=None):
        self.url = url
        self.scheme, host, self.port, self.resource, self._userinfo = parse_uri(url)
        unix = self.port is None
        self.host, self.unix_socket_path = ('localhost', host) if unix else (host, None)
        self.ssl_options = ssl_options or {}
        self.extra_headers = Headers(headers)
        self.exclude_headers = list(exclude_headers or ())
        self.key = new_key().encode()
        family = socket.AF_UNIX if unix else socket.AF_INET6 if ':' in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        WebSocket.__init__(self, sock, check_subprotocols(protocols), None, None, heartbeat_freq)
        self.extensions = list(extensions or ())
        self.stream = Stream(always_mask=True, expect_masking=False)
        inside(self).await_handshake()
        self.handshake_headers      # refuses now what must not be sent

    @property
    def bind_addr(self):
        """The path of the unix socket, or (host, port)."""
        return self.unix_socket_path or (self.host, self.port)

    @property
    def handshake_headers(self):
        """The headers of the opening handshake, a list of pairs."""
        return client_headers(self.scheme, self.host, self.port, self.key.decode(), self._userinfo, self.protocols,
                              self.extensions, self.extra_headers, self.exclude_headers).items()

    @property
    def handshake_request(self):
        """The request of the opening handshake, as bytes."""
        return build_head('GET %s HTTP/1.1' % check_field(self.resource, 'resource'), Headers(self.handshake_headers))

    def connect(self):
        """Connect and shake hands, in open_timeout, once. HandshakeError, OSError, TimeoutError; RuntimeError later."""
        connection = inside(self)
        if connection.state != CONNECTING or connection.sock is None or self._handshake is not None:
            raise RuntimeError('this client has been connected, or closed: make a new one for another connection')
        connection.close_socket()   # it was of one family; the host may have addresses of another
        self._handshake = handshake = client_handshake(
            self.handshake_request, self.scheme, self.unix_socket_path or self.host, self.port,
            due_in(self.open_timeout), ssl=self._context())
        self.sock = handshake.sock
        try:
            with closed_on_failure(handshake):
                handshake.drive()
                self.response = handshake.response
                self.process_response_line(b'HTTP/1.1 %d' % self.response.status_code)
                protocols, extensions = self.process_handshake_header(build_head('', self.response.headers)[2:])
                connection.adopt(handshake.sock)
        except BaseException:
            connection.end()
            raise
        finally:
            self._handshake = None
        be_client(self, protocols[0] if protocols else None, extensions)
        opening_succeeded(self, handshake)
        self.handshake_ok()

    def close(self, code=1000, reason=''):
        """See WebSocket.close(). In another thread than connect()'s it gives the opening handshake up."""
        handshake = self._handshake
        if handshake is not None:
            handshake.abort()
        WebSocket.close(self, code, reason)

    def _context(self):
        if not self.scheme.startswith('wss'):
            return None
        options = dict(self.ssl_options)
        return options.pop('context', None) or tls_context(**options)

    def process_response_line(self, response_line):
        """Raise HandshakeError unless *response_line* (bytes) has the status 101."""
        if response_line.split(b' ', 2)[1:2] != [b'101']:
            if self.response is not None:
                raise InvalidStatus(self.response)
            raise HandshakeError('the server answered %s' % shown(response_line))

    def process_handshake_header(self, headers):
        """Check the header lines (bytes) of the answer; return (subprotocols, extensions), two lists."""
        response = Response(101, None, parse_head(b'HTTP/1.1 101 \r\n' + headers)[1])
        subprotocol, extensions = check_answer(response, Headers(self.handshake_headers), self.extensions)
        return [] if subprotocol is None else [subprotocol], extensions

    def handshake_ok(self):
        """The handshake is done: somebody must read now. To be overridden."""


class WebSocketClient(WebSocketBaseClient):
    """A client with a thread of its own, which keeps the process alive until the connection ends."""

    daemon = False              # True: the thread does not keep the process alive; to be set before connect()
    _over = None                # an event, once there is a thread

    def run_forever(self):
        """Wait until the connection is over."""
        # not join(): CPython takes a thread for ended when Ctrl-C interrupts that, and does not wait for it at exit
        while self._over is not None and not self._over.wait(INTERVAL):
            pass

    def run(self):
        """What the thread does."""
        try:
            WebSocketBaseClient.run(self)
        finally:
            if self._over is not None:
                self._over.set()

    def handshake_ok(self):
        """Start the thread."""
        self._over = threading.Event()
        threading.Thread(target=self.run, name='minws-client', daemon=self.daemon).start()


def environment_proxy(scheme, host):
    """Return the proxy (http://host:port) that the environment has for *host*, or None.

    It is in ``https_proxy`` (wss), ``http_proxy`` or ``all_proxy``; ``no_proxy`` lists names, suffixes, or *.
    """
    environment = dict(os.environ)
    if 'REQUEST_METHOD' in environment:     # this is a CGI script, where HTTP_PROXY is a header of whoever asks
        environment.pop('HTTP_PROXY', None)

    def variable(name):
        return environment.get(name) or environment.get(name.upper())

    for name in (variable('no_proxy') or '').lower().split(','):
        name = name.strip(' ').lstrip('.')
        if name and (name == '*' or ('.' + host).endswith('.' + name)):
            return None
    return variable('https_proxy' if scheme == 'wss' else 'http_proxy') or variable('all_proxy')


def redirected(uri, response):
    """Return where a *response* redirects us, an absolute ws URI, or None. HandshakeError."""
    target = response.headers.get('Location') if response.status_code in (301, 302, 303, 307, 308) else None
    if target is None:
        return None
    scheme, host, port, resource, _ = parse_uri(uri)
    path, kind = resource.partition('?')[0], target.partition(':')[0]
    if target[:2] == '//':
        target = scheme + ':' + target
    elif is_token(kind) and kind != target:
        target = kind.lower().replace('http', 'ws') + target[len(kind):]
    else:
        base = '' if target[:1] == '/' else path if target[:1] == '?' else path.rpartition('/')[0] + '/'
        target = '%s://%s%s%s' % (scheme, host_header(scheme, host, port), base, target)
    try:
        kind = parse_uri(target)[0]
    except ValueError:
        kind = None
    if kind != 'wss' and (kind != 'ws' or scheme == 'wss'):
        raise SecurityError('redirected to %s: refused' % shown(target), response=response)
    return target


def connect(uri, *, redirects=0, headers=None, additional_headers=None, auth=None, **options):
    """Connect to *uri* and return a blocking WebSocket: a context manager that closes it.

    *subprotocols* are names; *headers* extra ones, which replace ours, *exclude_headers* names to leave out; *origin*,
    *user_agent* (None: none). *ssl* is an SSLContext instead of one that verifies with the system's certificates; for
    one of your own, ``ssl.create_default_context(cafile='its.pem')``; *server_hostname* is the name to verify instead
    of the URI's. *auth* is (user, password), as in the URI; *proxy* http://host:port, True for the environment's, or
    None; *sock* a connected socket. *redirects* (at most 5) are followed, never from wss to ws, nor with credentials to
    another origin. *open_timeout* is for all of it; the other options are those of serve().

    *additional_headers* and *user_agent_header* are other names of *headers* and *user_agent*.

    ValueError or TypeError before anything is sent; HandshakeError, with the ``response`` (its body of at most 64 KiB),
    and by its subclasses the reason: see InvalidStatus, InvalidMessage and the others; OSError, TimeoutError.
    """
    expect(0 <= redirects <= 5, '0 to 5 redirects are followed', redirects, ValueError)
    expect(headers is None or additional_headers is None, 'give headers or additional_headers: they are one thing',
           additional_headers)
    headers, auth = Headers(additional_headers if headers is None else headers), auth or parse_uri(uri)[4]
    if 'user_agent_header' in options:
        options['user_agent'] = options.pop('user_agent_header')
    due = due_in(options.get('open_timeout', OPEN_TIMEOUT))
    while True:
        try:
            return _connect_once(uri, headers, auth, due, **options)
        except HandshakeError as error:
            given = options.get('sock') is not None     # what it is connected to, a URI does not say
            target = redirected(uri, error.response) if redirects and error.response and not given else None
            if target is None:
                raise
        if parse_uri(uri)[:3] != parse_uri(target)[:3]:
            auth = None
            for name in ('Authorization', 'Cookie', 'Proxy-Authorization', 'Host'):
                del headers[name]
        uri, redirects = target, redirects - 1


def _connect_once(uri, headers, auth, due, *, subprotocols=None, exclude_headers=None, origin=None,
                  user_agent='minws/' + __version__, ssl=None, server_hostname=None, compression=None, extensions=(),
                  proxy=True, sock=None, create_connection=None, source_address=None, **settings):
    scheme, host, port, resource, userinfo = parse_uri(uri)
    patterns = with_compression(extensions, compression)
    settings = connection_settings(**settings)
    fields = client_headers(scheme, host, port, new_key(), auth or userinfo, subprotocols, patterns, headers,
                            exclude_headers, origin, user_agent)
    expect(ssl is None or scheme.startswith('wss'), 'ssl is for wss:// URLs', scheme, ValueError)
    if proxy is True and port is not None:
        proxy = environment_proxy(scheme, host)
    handshake = client_handshake(build_head('GET %s HTTP/1.1' % resource, fields), scheme, host, port, due, ssl=ssl,
                                 server_hostname=server_hostname, proxy=proxy, source_address=source_address, sock=sock)
    with closed_on_failure(handshake):
        handshake.drive()
        chosen = check_answer(handshake.response, fields, patterns)
        websocket = (create_connection or WebSocket)(handshake.sock)
        configure(websocket, settings)
        websocket.request = Request('GET', resource, fields)
        websocket.response = handshake.response
        be_client(websocket, *chosen)
        opening_succeeded(websocket, handshake)
        block(inside(websocket), websocket)
        return websocket


def unix_connect(path, uri='ws://localhost/', **options):
    """Like connect(), over the unix socket *path*; *uri* says what to request."""
    with closed_on_failure(connect_socket(path, None, due_in(options.get('open_timeout', OPEN_TIMEOUT)))) as sock:
        return connect(uri, sock=sock, **options)


def reconnect(uri, *, first_delay=5, max_delay=60, stop=None, **options):
    """Yield connections to *uri*, a fresh one when the last is done with.

        for ws in reconnect(uri):
            with ws:
                for message in ws:
                    ws.send(answer(message))

    However a connection ends, iterating over it just ends, so that the outer loop goes on. recv() and send() raise
    ConnectionClosed as ever: what comes out of a generator's loop cannot be caught by the generator, but ``with ws``
    catches it, if it is that connection which is closed. Who only reads needs no ``with``.

    Before the next it waits: a random time up to *first_delay* seconds (RFC 6455 7.2.3), then twice as long each time,
    up to *max_delay*, until *stop*, a threading.Event, is set. What waiting does not mend is raised: bad arguments, a
    certificate that is not trusted, an answer that is neither 101 nor 408, 425, 429 or 5xx. Each attempt is one INFO
    line, of *logger* or the logger 'minws'; the deadline *open_timeout* of each includes resolving the name.
    """
    stop, logger, host = stop or threading.Event(), options.get('logger') or default_logger(), parse_uri(uri)[1]
    delay = first_delay
    while not stop.is_set():
        began = time.monotonic()
        try:
            websocket = connect(uri, **options)
        except (HandshakeError, OSError) as error:
            if is_permanent(error):
                raise
            logger.info('no connection to %s: %s', shown(host), shown(str(error) or type(error).__name__))
        else:
            logger.info('connected to %s', shown(host))
            websocket.ends_quietly = True
            try:
                yield websocket
            finally:
                websocket.close()
            if time.monotonic() - began > delay:
                delay = first_delay
        jitter = int.from_bytes(os.urandom(4), 'big') / (1 << 32)
        stop.wait(delay * (jitter if delay == first_delay else 0.5 + jitter / 2))
        delay = min(max_delay, max(delay, 0.5) * 2)


def is_permanent(error):
    """Tell whether *error*, of connect(), will be the same next time."""
    response = getattr(error, 'response', None)
    if response is not None:
        return response.status_code < 500 and response.status_code not in (408, 425, 429)
    return (isinstance(error, (InvalidURI, SecurityError))
            or getattr(error, 'reason', None) == 'CERTIFICATE_VERIFY_FAILED')     # of an ssl.SSLError
