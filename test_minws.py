"""The specification of minws, as tests: the sections are those of minws.py, in the same order.

Wire bytes are literals, written as a server sends them, unmasked. assert_events() feeds them to streams of both roles
(masked for a server), whole, byte by byte and in random pieces, to every style of reading, and wants the same events
each time. Events are written as plain values: str for a text, bytes for a binary message, ('ping', data),
('pong', data), ('close', code, reason), and ('fail', code) for the exception that ends a stream.

A test that begins with a letter and two digits after ``test_`` answers for that row of the list of known
vulnerabilities (V) and of the rules of RFC 6455 (S, C, FR, FG, U, CL, XT).
"""

import binascii
import inspect
import itertools
import logging
import random
import re
import struct
import sys
import time
import tracemalloc

import pytest

import minws

KEY = b'\x37\xfa\x21\x3d'       # the masking key of the examples in RFC 6455 5.7


def naive_mask(data, key=KEY):
    """RFC 6455 5.3, word for word."""
    return bytes(octet ^ key[index % 4] for index, octet in enumerate(data))


def mask_frame(frame, key=KEY):
    """Return an unmasked *frame* as a client sends it; its payload may be incomplete."""
    head = {126: 4, 127: 10}.get(frame[1], 2)
    return frame[:1] + bytes([frame[1] | 0x80]) + frame[2:head] + key + naive_mask(frame[head:], key)


def frame(first, payload=b''):
    """Return an unmasked frame; *first* is its first byte."""
    length = len(payload)
    if length < 126:
        return struct.pack('!BB', first, length) + payload
    return struct.pack('!BBH' if length < 65536 else '!BBQ', first, 126 if length < 65536 else 127, length) + payload


def splits(wire, seed=6455):
    """Yield *wire* as lists of chunks: whole, byte by byte, and in five random ways."""
    yield [wire]
    yield [wire[i:i + 1] for i in range(len(wire))]
    rng = random.Random(seed)
    for cuts in (1, 2, 3, 5, 8):
        places = sorted(rng.randrange(len(wire) + 1) for _ in range(cuts))
        yield [wire[start:end] for start, end in zip([0] + places, places + [len(wire)])]


def describe(event):
    """Return an event of Stream.receive as a plain value."""
    if isinstance(event, minws.WebSocketException):
        return 'fail', event.code
    if isinstance(event, minws.Fragments):
        assert b''.join(event) == event.payload
        return event.payload.decode() if event.text else event.payload
    if isinstance(event, minws.CloseControlMessage):
        return 'close', event.code, event.reason
    if isinstance(event, minws.PingControlMessage):
        return 'ping', event.data
    if isinstance(event, minws.PongControlMessage):
        return 'pong', event.data
    if isinstance(event, minws.Message):
        assert event.completed and type(event.data) is bytes
        return str(event) if event.is_text else event.data
    assert type(event) in (str, bytes)
    return event


def make_stream(expect_masking=True, **attributes):
    stream = minws.Stream(always_mask=not expect_masking, expect_masking=expect_masking)
    for name, value in attributes.items():
        setattr(stream, name, value)
    return stream


def events_of(chunks, expect_masking=True, extensions=(), **attributes):
    """Return what Stream.receive makes of *chunks*, a list of bytes, as plain values."""
    stream = make_stream(expect_masking, **attributes)
    stream.use(extensions)
    return [describe(event) for chunk in chunks for event in stream.receive(chunk)]


def facade_of(chunks, expect_masking=True, extensions=(), **attributes):
    """Return what the documented parser makes of *chunks*: (messages, pings, pongs, close messages, failures)."""
    stream = make_stream(expect_masking, **attributes)
    stream.use(extensions)
    messages = []
    for chunk in chunks:
        assert stream.parser.send(chunk) > 0 or stream.ended
        while stream.has_message:
            messages.append(describe(stream.message))
            stream.message = None
    closing = [] if stream.closing is None else [describe(stream.closing)]
    return (messages, [describe(ping) for ping in stream.pings], [describe(pong) for pong in stream.pongs], closing,
            [('fail', error.code) for error in stream.errors])


def by_kind(events):
    kinds = [], [], [], [], []
    for event in events:
        kind = ('ping', 'pong', 'close', 'fail').index(event[0]) + 1 if isinstance(event, tuple) else 0
        kinds[kind].append(event)
    return kinds


def assert_events(frames, expected, roles=(True, False), **options):
    """Both roles, each split and each style of reading turn *frames* (unmasked, a list of bytes) into *expected*."""
    for expect_masking in roles:
        wire = b''.join(mask_frame(each) if expect_masking else each for each in frames)
        for chunks in splits(wire):
            assert events_of(chunks, expect_masking, **options) == expected, chunks
            assert events_of(chunks, expect_masking, plain=True, **options) == expected, chunks
            assert facade_of(chunks, expect_masking, **options) == by_kind(expected), chunks


def assert_fails(frames, code, **options):
    assert_events(frames, [('fail', code)], **options)


def peak_of(function):
    """Return the bytes that *function* needed at most, beyond what was there before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def assert_linear(function, make, size):
    """Eight times the input takes about eight times as long; a quadratic function would take 64 times."""
    def best(argument):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function(argument)
            times.append(time.perf_counter() - start)
        return min(times)
    assert best(make(8 * size)) < 24 * best(make(size)) + 0.002


########################################################################################################################
# 1. Constants and errors


def test_opcodes_are_those_of_the_rfc():
    assert (minws.OPCODE_CONTINUATION, minws.OPCODE_TEXT, minws.OPCODE_BINARY) == (0, 1, 2)
    assert (minws.OPCODE_CLOSE, minws.OPCODE_PING, minws.OPCODE_PONG) == (8, 9, 10)
    assert minws.WS_KEY == b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
    assert minws.WS_VERSION == 13


def test_states_are_in_order():
    state = minws.State
    assert [state.CONNECTING, state.OPEN, state.CLOSING, state.CLOSED] == [0, 1, 2, 3]


def test_V03_every_limit_is_finite():
    for name in dir(minws):
        if name.startswith('MAX_') or name.endswith('_TIMEOUT') or name in ('WRITE_SOFT', 'WRITE_HARD', 'READ_SIZE'):
            assert 0 < getattr(minws, name) < 1 << 24, name
    assert minws.Stream().max_size == minws.MAX_SIZE == 1 << 20
    assert (minws.MAX_HEAD, minws.MAX_LINE, minws.MAX_HEADERS) == (16384, 8192, 64)


@pytest.mark.parametrize('name, base, code', [
    ('WebSocketException', Exception, 1002),
    ('ProtocolException', minws.WebSocketException, 1002),
    ('FrameTooLargeException', minws.WebSocketException, 1009),
    ('UnsupportedFrameTypeException', minws.WebSocketException, 1002),
    ('TextFrameEncodingException', minws.WebSocketException, 1007),
    ('InvalidBytesError', minws.WebSocketException, 1007),
    ('StreamClosed', Exception, 1002),
    ('HandshakeError', minws.WebSocketException, 1002),
    ('ConcurrencyError', minws.WebSocketException, 1002),
])
def test_exceptions_carry_the_code_that_the_peer_must_see(name, base, code):
    error = getattr(minws, name)('what happened')
    assert isinstance(error, base)
    assert error.code == code
    assert str(error) == 'what happened'


def test_handshake_error_carries_the_answer():
    error = minws.HandshakeError('no')
    assert (error.status, list(error.headers), error.response) == (400, [], None)
    error = minws.HandshakeError('no', 405, [('Allow', 'GET')])
    assert (error.status, error.headers) == (405, [('Allow', 'GET')])


@pytest.mark.parametrize('kind', [minws.ConnectionClosedOK, minws.ConnectionClosedError])
def test_connection_closed_tells_code_and_reason(kind):
    error = kind(1001, 'bye', (1001, 'bye'), (1001, ''))
    assert isinstance(error, minws.ConnectionClosed) and isinstance(error, RuntimeError)
    assert (error.code, error.reason, error.rcvd, error.sent) == (1001, 'bye', (1001, 'bye'), (1001, ''))
    assert '1001' in str(error) and 'bye' in str(error)
    error = kind()
    assert (error.code, error.reason, error.rcvd, error.sent) == (1006, '', None, None)
    assert 'no close frame' in str(error)


def test_CL02_CL03_close_codes_on_the_wire():
    legal = {1000, 1001, 1002, 1003} | set(range(1007, 1015)) | set(range(3000, 5000))
    assert {code for code in range(65536) if minws.valid_close_code(code)} == legal


@pytest.mark.parametrize('text', ['a\r\nb', '\x1b[31m', '\x9b31m', 'caf\xe9', '\u2028', '\ud800', 'x' * 1000, b'\r\n'],
                         ids=ascii)
def test_V48_peer_text_is_escaped_and_cut_for_the_log(text):
    assert re.match('^[ -~]{1,210}$', minws.quote(text))


def test_V48_peer_text_in_errors_and_reprs_is_escaped():
    nasty = 'a\r\n\x1b[31m\x9b'
    for text in (str(minws.ConnectionClosed(1000, nasty, (1000, nasty), (1000, ''))),
                 repr(minws.Request('GET', '/' + nasty)),
                 repr(minws.Response(400, nasty)),
                 repr(minws.TextMessage(nasty)),
                 repr(minws.CloseControlMessage(1000, nasty))):
        assert re.match('^[ -~]+$', text), ascii(text)


@pytest.fixture
def library_logger():
    logger = logging.getLogger('minws')
    kept = logger.handlers[:], logger.level
    logger.handlers[:] = []
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level = kept


def test_configure_logger_writes_to_stdout_and_file(library_logger, tmp_path, capsys):
    assert minws.configure_logger(filepath=str(tmp_path / 'log')) is library_logger
    library_logger.info('peer %d', 7)
    library_logger.debug('not this')
    out = capsys.readouterr().out
    assert 'INFO' in out and out.endswith('peer 7\n') and 'not this' not in out
    assert (tmp_path / 'log').read_text() == out


def test_configure_logger_can_be_silent_and_verbose(library_logger, capsys):
    minws.configure_logger(stdout=False, level=logging.DEBUG)
    assert library_logger.level == logging.DEBUG
    assert capsys.readouterr().out == ''
    assert library_logger.handlers == []


def test_without_logging_warnings_go_to_stderr(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'logging', None)
    logger = minws.default_logger()
    logger.debug('a %s', 1)
    logger.info('b %s', 2)
    logger.warning('c %s', 3)
    logger.error('d %s', 4, exc_info=True)
    assert capsys.readouterr().err == 'minws: c 3\nminws: d 4\n'


@pytest.mark.parametrize('name, signature', [
    ('configure_logger', '(stdout=True, filepath=None, level=20)'),
    ('Frame', "(opcode=None, body=b'', masking_key=None, fin=0, rsv1=0, rsv2=0, rsv3=0)"),
    ('Frame.build', '(self)'),
    ('Frame.mask', '(self, data)'),
    ('Frame.unmask', '(self, data)'),
    ('Message', "(opcode, data=b'', encoding='utf-8')"),
    ('Message.single', '(self, mask=False)'),
    ('Message.fragment', '(self, first=False, last=False, mask=False)'),
    ('Message.extend', '(self, data)'),
    ('TextMessage', '(text=None)'),
    ('BinaryMessage', '(bytes=None)'),
    ('CloseControlMessage', "(code=1000, reason='')"),
    ('PingControlMessage', '(data=None)'),
    ('PongControlMessage', '(data=None)'),
    ('Stream', '(always_mask=False, expect_masking=True)'),
    ('Stream.text_message', '(self, text)'),
    ('Stream.binary_message', '(self, bytes)'),
    ('Stream.close', "(self, code=1000, reason='')"),
    ('Stream.ping', "(self, data='')"),
    ('Stream.pong', "(self, data='')"),
    ('Stream.receiver', '(self)'),
    ('Utf8Validator', '()'),
    ('Utf8Validator.decode', '(self, b)'),
    ('Utf8Validator.reset', '(self)'),
    ('Utf8Validator.validate', '(self, ba)'),
])
def test_documented_signatures(name, signature):
    documented = minws
    for part in name.split('.'):
        documented = getattr(documented, part)
    assert str(inspect.signature(documented)) == signature
    assert documented.__doc__


########################################################################################################################
# 2. Frames


FR09_LENGTHS = list(range(18)) + [125, 126, 127, 2047, 2048, 2049, 2050, 2051, 65535, 65536, 65537]


@pytest.mark.parametrize('length', FR09_LENGTHS)
def test_FR09_masking_equals_the_definition(length):
    rng = random.Random(length)
    data, key = bytes(rng.randrange(256) for _ in range(length)), bytes(rng.randrange(256) for _ in range(4))
    masked = naive_mask(data, key)
    assert minws.apply_mask(data, key) == masked
    assert minws.apply_mask(masked, key) == data
    assert minws.apply_mask(bytearray(data), key) == masked
    assert minws.apply_mask(memoryview(data), key) == masked


@pytest.mark.parametrize('length', FR09_LENGTHS)
def test_FR09_unmasking_goes_on_at_any_offset(length):
    payload = bytes(random.Random(length).randrange(256) for _ in range(length))
    wire = mask_frame(frame(0x82, payload))
    for step in (1, 3, 7, 4093) if length < 3000 else (1021, 4093, 65537):
        assert events_of([wire[i:i + step] for i in range(0, len(wire), step)]) == [payload]


def test_masking_leaves_its_argument_alone():
    data = bytearray(b'x' * 5000)
    minws.apply_mask(data, KEY)
    assert data == b'x' * 5000


RFC_EXAMPLES = [    # RFC 6455 5.7
    ('unmasked-text', b'\x81\x05Hello', (0x1, 1, None, b'Hello')),
    ('masked-text', b'\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58', (0x1, 1, KEY, b'Hello')),
    ('first-fragment', b'\x01\x03Hel', (0x1, 0, None, b'Hel')),
    ('last-fragment', b'\x80\x02lo', (0x0, 1, None, b'lo')),
    ('ping', b'\x89\x05Hello', (0x9, 1, None, b'Hello')),
    ('masked-pong', b'\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58', (0xA, 1, KEY, b'Hello')),
    ('binary-256', b'\x82\x7e\x01\x00' + b'\x2a' * 256, (0x2, 1, None, b'\x2a' * 256)),
    ('binary-64K', b'\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00' + b'\x2a' * 65536, (0x2, 1, None, b'\x2a' * 65536)),
]


@pytest.mark.parametrize('wire, fields', [example[1:] for example in RFC_EXAMPLES],
                         ids=[example[0] for example in RFC_EXAMPLES])
def test_rfc_examples_both_ways(wire, fields):
    opcode, fin, key, payload = fields
    assert minws.Frame(opcode, payload, key, fin).build() == wire
    for chunks in splits(wire):
        parsed = parse_frame(chunks)
        body = parsed.unmask(parsed.body)
        assert (parsed.opcode, parsed.fin, parsed.masking_key, body) == fields
        assert parsed.payload_length == len(payload)
        assert (parsed.rsv1, parsed.rsv2, parsed.rsv3) == (0, 0, 0)


def parse_frame(chunks):
    """Return the Frame that *chunks* make; its parser may end as it takes the last byte, or after it."""
    parsed = minws.Frame()
    try:
        for chunk in chunks:
            parsed.parser.send(chunk)
    except StopIteration:
        pass
    return parsed


def test_frame_parser_is_a_started_generator():
    parser = minws.Frame().parser
    assert inspect.isgenerator(parser)
    assert inspect.getgeneratorstate(parser) == 'GEN_SUSPENDED'


def test_frame_parser_tells_the_bytes_it_wants():
    wire = b'\x81\x8b\xbe\x04\xe6\x6a\xd6\x61\x8a\x06\xd1\x24\x91\x05\xcc\x68\x82'
    parsed = minws.Frame()
    assert parsed.parser.send(wire[:1]) == 1
    assert parsed.parser.send(wire[1:2]) == 4
    assert parsed.parser.send(wire[2:5]) == 1
    assert parsed.parser.send(wire[5:6]) == 11
    assert parsed.parser.send(wire[6:9]) == 8
    parsed = parse_frame([wire])
    assert parsed.unmask(parsed.body) == b'hello world'


def test_frame_parser_takes_the_last_byte_and_ends_when_it_is_asked_again():
    parsed = minws.Frame()
    parsed.parser.send(b'\x81\x05Hello')
    assert parsed.body == b'Hello'
    with pytest.raises(StopIteration):
        next(parsed.parser)


def test_frame_parser_ignores_bytes_beyond_the_frame():
    parsed = parse_frame([b'\x82\x7e\x01\x00' + b'x' * 300 + b'\xff\xff'])
    assert parsed.body == b'x' * 256


def test_frame_parser_leaves_the_body_as_it_was_on_the_wire():
    parsed = parse_frame([b'\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58'])
    assert parsed.body == b'\x7f\x9f\x4d\x51\x58'
    assert parsed.mask(b'Hello') == parsed.body


@pytest.mark.parametrize('wire, error', [
    (b'\xc1', minws.ProtocolException), (b'\xa1', minws.ProtocolException), (b'\x91', minws.ProtocolException),
    (b'\x83', minws.ProtocolException), (b'\x87', minws.ProtocolException), (b'\x8b', minws.ProtocolException),
    (b'\x8f', minws.ProtocolException), (b'\x08', minws.ProtocolException), (b'\x09', minws.ProtocolException),
    (b'\x89\x7e', minws.FrameTooLargeException), (b'\x88\x7f', minws.FrameTooLargeException),
    (b'\x82\x7f\x80\0\0\0\0\0\0\0', minws.FrameTooLargeException),
    (b'\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff', minws.FrameTooLargeException),
], ids=ascii)
def test_frame_parser_refuses_at_the_first_wrong_byte(wire, error):
    for chunks in ([wire], [wire[i:i + 1] for i in range(len(wire))]):
        parser = minws.Frame().parser
        for chunk in chunks[:-1]:
            parser.send(chunk)
        with pytest.raises(error):
            parser.send(chunks[-1])


@pytest.mark.parametrize('length, head', [
    (0, b'\x82\x00'), (1, b'\x82\x01'), (125, b'\x82\x7d'), (126, b'\x82\x7e\x00\x7e'), (65535, b'\x82\x7e\xff\xff'),
    (65536, b'\x82\x7f\0\0\0\0\0\x01\0\0')])
def test_FR03_lengths_are_sent_in_the_shortest_form(length, head):
    payload = b'\x2a' * length
    assert minws.Frame(0x2, payload, fin=1).build() == head + payload
    masked_head = head[:1] + bytes([head[1] | 0x80]) + head[2:]
    assert minws.Frame(0x2, payload, KEY, 1).build() == masked_head + KEY + naive_mask(payload)


def test_largest_length():
    assert minws.pack_frame_head(0x82, (1 << 63) - 1) == b'\x82\x7f\x7f' + b'\xff' * 7
    with pytest.raises(minws.FrameTooLargeException):
        minws.pack_frame_head(0x82, 1 << 63)
    huge = minws.Frame(0x2, b'', fin=1)
    huge.payload_length = 1 << 63
    with pytest.raises(minws.FrameTooLargeException):
        huge.build()


@pytest.mark.parametrize('fields', [
    {'opcode': 1, 'fin': 2}, {'opcode': 1, 'fin': -1}, {'opcode': 1, 'rsv1': 2}, {'opcode': None}, {'opcode': -1},
    {'opcode': 16}] + [{'opcode': opcode} for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)], ids=str)
def test_frame_build_refuses_what_no_peer_may_see(fields):
    with pytest.raises(ValueError):
        minws.Frame(**fields).build()


@pytest.mark.parametrize('body', ['text', None, 5, [1, 2]], ids=repr)
def test_frame_body_is_bytes(body):
    with pytest.raises(TypeError):
        minws.Frame(1, body, fin=1)


def test_reserved_bits_are_built_in_their_places():
    assert [minws.Frame(2, b'', None, 1, *bits).build()[:1] for bits in ((1, 0, 0), (0, 1, 0), (0, 0, 1))] == [
        b'\xc2', b'\xa2', b'\x92']


def test_frame_without_key_does_not_mask():
    assert minws.Frame(1, b'Hello', b'', 1).build() == b'\x81\x05Hello'
    assert minws.Frame(1, b'Hello').mask(b'abc') == b'abc'


def test_frame_head_wants_no_more_bytes_than_the_head_has():
    for wire in (b'\x81\x05', b'\x81\x85' + KEY, b'\x82\xfe\x01\x00' + KEY, b'\x82\x7f\0\0\0\0\0\1\0\0'):
        have = 0
        while have < len(wire):
            wanted = minws.parse_frame_head(wire[:have])
            assert isinstance(wanted, int) and 0 < wanted <= len(wire) - have
            have += wanted
        assert minws.parse_frame_head(b'xyz' + wire + b'payload', 3)[3] == 3 + len(wire)


########################################################################################################################
# 3. Messages


def test_text_message():
    message = minws.TextMessage('étrange')
    assert (message.opcode, message.encoding, message.completed) == (1, 'utf-8', True)
    assert message.is_text and not message.is_binary
    assert message.data == b'\xc3\xa9trange' and type(message.data) is bytes
    assert len(message) == 7 and str(message) == 'étrange'
    assert message.single() == b'\x81\x08\xc3\xa9trange'


def test_binary_message():
    message = minws.BinaryMessage(b'\x00\xff')
    assert (message.opcode, message.completed) == (2, True)
    assert message.is_binary and not message.is_text
    assert len(message) == 2 and message.data == b'\x00\xff'
    assert message.single() == b'\x82\x02\x00\xff'


def test_close_message():
    message = minws.CloseControlMessage(1001, 'au revoir \xe9')
    assert (message.opcode, message.code, message.reason) == (8, 1001, b'au revoir \xc3\xa9')
    assert message.single() == b'\x88\x0e\x03\xe9au revoir \xc3\xa9'
    assert minws.CloseControlMessage().single() == b'\x88\x02\x03\xe8'
    assert minws.CloseControlMessage(reason=b'bye').reason == b'bye'


def test_text_of_a_close_message_is_its_reason():
    assert str(minws.CloseControlMessage(1001, 'bye \xe9')) == 'bye \xe9'


def test_close_message_without_code_is_empty():
    for code in (None, 1005):
        message = minws.CloseControlMessage(code)
        assert (message.code, message.reason, message.single()) == (1005, b'', b'\x88\x00')


@pytest.mark.parametrize('kind, first', [(minws.PingControlMessage, b'\x89'), (minws.PongControlMessage, b'\x8a')])
def test_ping_and_pong_messages(kind, first):
    assert kind('sos').single() == first + b'\x03sos'
    assert kind(b'\xff').single() == first + b'\x01\xff'
    assert kind(None).single() == kind(b'').single() == first + b'\x00'
    assert kind(b'1').opcode == first[0] & 0x0F
    assert len(kind(b'sos')) == 3 and not kind(b'').is_text and not kind(b'').is_binary


def test_message_of_any_opcode_and_encoding():
    message = minws.Message(minws.OPCODE_TEXT, 'é', encoding='latin-1')
    assert (message.opcode, message.data, message.encoding, str(message)) == (1, b'\xe9', 'latin-1', 'é')
    message.extend('è')
    assert message.data == b'\xe9\xe8'
    assert minws.Message(minws.OPCODE_BINARY).single() == b'\x82\x00'


@pytest.mark.parametrize('kind', [minws.TextMessage, minws.BinaryMessage])
def test_messages_take_str_and_bytes_like_and_grow(kind):
    for piece in ('é', b'\xc3\xa9', bytearray(b'\xc3\xa9'), memoryview(b'\xc3\xa9')):
        message = kind(piece)
        message.extend(piece)
        assert message.data == b'\xc3\xa9\xc3\xa9' and type(message.data) is bytes


def test_message_without_data_is_empty():
    assert minws.TextMessage().data == minws.BinaryMessage().data == b''
    assert minws.TextMessage().single() == b'\x81\x00'


@pytest.mark.parametrize('value', [5, 1.5, ['a'], {'a': 1}, object()], ids=lambda value: type(value).__name__)
def test_messages_refuse_other_types(value):
    for kind in (minws.TextMessage, minws.BinaryMessage, minws.PingControlMessage, minws.PongControlMessage):
        with pytest.raises(TypeError):
            kind(value)
    with pytest.raises(TypeError):
        minws.CloseControlMessage(1000, value)
    with pytest.raises(TypeError):
        minws.Message(1, value)
    with pytest.raises(TypeError):
        minws.TextMessage('a').extend(value)


def test_U06_lone_surrogates_cannot_be_sent():
    with pytest.raises(ValueError):
        minws.TextMessage('\ud800')


def test_fragments_of_a_message():
    assert minws.TextMessage('Hel').fragment(first=True) == b'\x01\x03Hel'
    assert minws.TextMessage('lo').fragment(last=True) == b'\x80\x02lo'
    assert minws.BinaryMessage(b'x').fragment() == b'\x00\x01x'
    assert minws.BinaryMessage(b'x').fragment(first=True, last=True) == minws.BinaryMessage(b'x').single()


@pytest.mark.parametrize('payload', [b'', b'Hello'])
def test_FR08_masked_frames_have_fresh_keys(payload):
    message = minws.BinaryMessage(payload)
    for build in (lambda: message.single(mask=True), lambda: message.fragment(first=True, last=True, mask=True)):
        wires = [build() for _ in range(100)]
        assert len({wire[2:6] for wire in wires}) > 95
        assert {wire[:2] for wire in wires} == {bytes([0x82, 0x80 | len(payload)])}
        assert {naive_mask(wire[6:], wire[2:6]) for wire in wires} == {payload}


# Each is a prefix that may still become UTF-8, and an octet that ends this hope.
IMPOSSIBLE = [
    (b'', b'\x80'), (b'', b'\xbf'), (b'', b'\xc0'), (b'', b'\xc1'), (b'', b'\xf5'), (b'', b'\xfe'), (b'', b'\xff'),
    (b'\xc3', b'A'), (b'\xe0', b'\x80'), (b'\xe0', b'\x9f'), (b'\xe2\x82', b'\xc2'), (b'\xed', b'\xa0'),
    (b'\xed', b'\xbf'), (b'\xf0', b'\x80'), (b'\xf0', b'\x8f'), (b'\xf4', b'\x90'), (b'\xf4\x8f\xbf', b'\xc0'),
    ('κόσμε'.encode('utf-8'), b'\xa0'), ('κόσμε'.encode('utf-8') + b'\xf4', b'\x90')]


@pytest.mark.parametrize('prefix, octet', IMPOSSIBLE, ids=ascii)
def test_validator_stops_at_the_first_impossible_octet(prefix, octet):
    wire = prefix + octet + b'more'
    for chunks in splits(wire):
        validator, taken = minws.Utf8Validator(), 0
        for chunk in chunks:
            verdict = validator.validate(chunk)
            if not verdict[0]:
                assert verdict == (False, False, len(prefix) - taken, len(prefix)), chunks
                break
            taken += len(chunk)
            assert verdict[2:] == (len(chunk), taken)
        else:
            raise AssertionError('nothing found in %r' % chunks)
        assert not validator.validate(b'x')[0]
        validator.reset()
        assert validator.validate(b'x') == (True, True, 1, 1)


def test_validator_has_the_documented_table():
    assert len(minws.Utf8Validator.UTF8VALIDATOR_DFA) == 400
    assert binascii.crc32(bytes(minws.Utf8Validator.UTF8VALIDATOR_DFA)) == 0x91371876
    assert (minws.Utf8Validator.UTF8_ACCEPT, minws.Utf8Validator.UTF8_REJECT) == (0, 1)


@pytest.mark.parametrize('character', ['\0', 'A', '\x7f', '\x80', 'é', '\u07ff', '\u0800', '€', '\ud7ff', '\ue000',
                                       '\uffff', '\U00010000', '\U0001f600', '\U0010ffff'], ids=ascii)
def test_validator_decodes_octet_by_octet(character):
    validator = minws.Utf8Validator()
    *before, last = character.encode('utf-8')
    for octet in before:
        assert validator.decode(octet) not in (minws.Utf8Validator.UTF8_ACCEPT, minws.Utf8Validator.UTF8_REJECT)
    assert validator.decode(last) == minws.Utf8Validator.UTF8_ACCEPT
    assert validator.codepoint == ord(character)


def is_utf8(octets):
    try:
        octets.decode('utf-8')
        return True
    except UnicodeDecodeError:
        return False


def test_U02_validator_agrees_with_python_on_all_short_sequences():
    seconds = bytes(sorted({0, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF}))
    pairs = itertools.product(range(256), repeat=2)
    longer = itertools.chain(itertools.product(range(0xE0, 0xF0), seconds, seconds),
                             itertools.product(range(0xF0, 0x100), seconds, seconds, seconds))
    validator = minws.Utf8Validator()
    for octets in map(bytes, itertools.chain(pairs, longer)):
        validator.reset()
        valid, complete, _, _ = validator.validate(octets)
        assert (valid and complete) == is_utf8(octets), octets


def test_validator_agrees_with_its_table_in_any_slicing():
    rng = random.Random(13)
    alphabet = [b'a', b'\xc3', b'\xa9', b'\xe2', b'\x82', b'\xac', b'\xed', b'\x9f', b'\xf0', b'\x9f\x98\x80', b'\xf4',
                b'\x8f', b'\xbf', 'é'.encode('utf-8'), '€'.encode('utf-8'), '\U0001f600'.encode('utf-8')]
    for _ in range(1500):
        octets = b''.join(rng.choice(alphabet) for _ in range(rng.randrange(1, 12)))
        table, states = minws.Utf8Validator(), []
        for octet in octets:
            states.append(table.decode(octet))
        rejected = states.index(1) if 1 in states else None
        cuts = sorted(rng.randrange(len(octets) + 1) for _ in range(3))
        fast, taken = minws.Utf8Validator(), 0
        for start, end in zip([0] + cuts, cuts + [len(octets)]):
            verdict = fast.validate(octets[start:end])
            if rejected is not None and rejected < end:
                assert verdict == (False, False, rejected - start, rejected), octets
                break
            taken = end
            assert verdict == (True, not end or states[end - 1] == 0, end - start, taken), octets


########################################################################################################################
# 4. Extensions


class Mirror(minws.Extension):
    """An extension for tests: owns RSV1 and sends payloads backwards; with a parameter 'twice' doubled as well."""
    name = 'x-mirror'
    rsv = 0x40

    def __init__(self, params=()):
        self.params = params

    def accept(self, params):
        return None if params == [('never', None)] else type(self)(params)

    def confirm(self, params):
        return type(self)(params)

    def encode(self, frame):
        return minws.Frame(frame.opcode, bytes(frame.body)[::-1], fin=frame.fin, rsv1=1)

    def decode(self, frame, max_size):
        assert frame.masking_key is None
        body = frame.body[::-1] * (2 if ('twice', None) in self.params else 1)
        if len(body) > max_size:
            raise minws.FrameTooLargeException('too long')
        return minws.Frame(frame.opcode, body, fin=frame.fin)


class Elder(Mirror):
    name = 'x-elder'


class Watcher(Mirror):
    """An extension that owns no bit, and so sees every frame."""
    name = 'x-watcher'
    rsv = 0


def test_extension_defaults():
    extension = minws.Extension()
    assert (extension.name, extension.rsv, list(extension.offer())) == ('', 0, [()])
    some = minws.Frame(1, b'x', fin=1)
    assert extension.encode(some) is some and extension.decode(some, 10) is some
    for method in (extension.accept, extension.confirm):
        with pytest.raises(NotImplementedError):
            method([])


def test_extension_changes_data_frames_on_their_way():
    stream = minws.Stream()
    stream.use([Mirror()])
    assert stream.encode(0x1, b'abc') == b'\xc1\x03cba'
    assert stream.encode(0x2, b'abc', fin=False) == b'\x42\x03cba'
    assert stream.encode(0x9, b'abc') == b'\x89\x03abc'


def test_extension_decodes_frames_with_its_bit():
    assert_events([b'\xc1\x03cba', b'\x82\x02no', b'\xc2\x00', b'\x89\x01p', b'\xc1\x04\xac\x82\xe2x'],
                  ['abc', b'no', b'', ('ping', b'p'), 'x€'], extensions=[Mirror()])
    assert_events([b'\x41\x02ba', b'\x89\x00', b'\x80\x02dc'], [('ping', b''), 'abcd'], extensions=[Mirror()])


def test_extension_without_a_bit_sees_every_data_frame():
    assert_events([b'\x81\x03cba', b'\x89\x03abc'], ['abc', ('ping', b'abc')], extensions=[Watcher()])


def test_extensions_are_undone_in_reverse_order():
    class Exclaim(Watcher):
        def encode(self, frame):
            return minws.Frame(frame.opcode, bytes(frame.body) + b'!', fin=frame.fin)

        def decode(self, frame, max_size):
            return minws.Frame(frame.opcode, frame.body[:-1], fin=frame.fin)
    stream = minws.Stream()
    stream.use([Exclaim(), Mirror()])
    assert stream.encode(0x1, b'abc') == b'\xc1\x04!cba'
    assert_events([b'\xc1\x04!cba'], ['abc'], extensions=[Exclaim(), Mirror()])


def test_what_extensions_make_is_limited_too():
    twice = [Mirror([('twice', None)])]
    assert_events([b'\x42\x01a', b'\x80\x02cb'], [b'aabcbc'], extensions=twice, max_size=6)
    assert_fails([b'\xc2\x04abcd'], 1009, extensions=twice, max_size=7)
    assert_fails([b'\x42\x02ab', b'\x80\x02ab'], 1009, extensions=twice, max_size=7)


def test_U07_what_extensions_make_must_be_utf8():
    assert_fails([b'\xc1\x02\xc3\xa9'], 1007, extensions=[Mirror()])
    assert_fails([b'\x41\x01\xff'], 1007, extensions=[Mirror()])


########################################################################################################################
# 5. Stream


def test_rfc_examples():
    assert_events([b'\x81\x05Hello'], ['Hello'])
    assert_events([b'\x01\x03Hel', b'\x80\x02lo'], ['Hello'])
    assert_events([b'\x89\x05Hello', b'\x8a\x05Hello'], [('ping', b'Hello'), ('pong', b'Hello')])
    assert_events([b'\x82\x7e\x01\x00' + b'\x2a' * 256], [b'\x2a' * 256])
    assert_events([b'\x82\x7f\0\0\0\0\0\x01\0\0' + b'\x2a' * 65536], [b'\x2a' * 65536])
    assert events_of([b'\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58']) == ['Hello']


def test_events_are_in_the_order_of_the_wire():
    assert_events([b'\x81\x01a', b'\x89\x01p', b'\x82\x01b', b'\x8a\x00', b'\x81\x00', b'\x88\x02\x03\xe8'],
                  ['a', ('ping', b'p'), b'b', ('pong', b''), '', ('close', 1000, b'')])


def test_messages_before_an_error_are_delivered():
    assert_events([b'\x81\x01a', b'\x02\x01b', b'\x80\x01c', b'\x89\x00', b'\x83\x00', b'\x81\x01d'],
                  ['a', b'bc', ('ping', b''), ('fail', 1002)])


def test_limit_pauses_in_mid_buffer():
    stream = minws.Stream(expect_masking=False)
    events = stream.receive(b'\x81\x01a\x81\x01b\x89\x00\x81\x01c\x81', 2)
    assert [describe(event) for event in events] == ['a', 'b'] and stream.paused
    assert [describe(event) for event in stream.receive(limit=1)] == [('ping', b'')] and stream.paused
    assert [describe(event) for event in stream.receive()] == ['c'] and not stream.paused
    assert [describe(event) for event in stream.receive(b'\x01d')] == ['d']
    assert stream.receive() == [] and not stream.paused


def test_limit_holds_for_many_messages_in_one_read():
    stream = minws.Stream(expect_masking=False)
    received = stream.receive(b'\x82\x01x' * 10000)
    assert len(received) == minws.BATCH and stream.paused
    while stream.paused:
        received += stream.receive()
    assert len(received) == 10000


def test_nothing_waits_behind_an_error_or_a_close():
    for end in (b'\x83\x00', b'\x88\x00'):
        stream = minws.Stream(expect_masking=False)
        assert len(stream.receive(end + b'\x81\x01a', 1)) == 1
        assert stream.ended and not stream.paused
        assert stream.receive() == stream.receive(b'\x81\x01a') == []


def test_FR01_reserved_bits():
    for bits, opcode in itertools.product(range(1, 8), sorted(minws.OPCODES)):
        assert_fails([bytes([0x80 | bits << 4 | opcode, 1, 120])], 1002)


def test_FR01_reserved_bits_that_no_extension_owns():
    for bits, opcode in itertools.product(range(1, 8), sorted(minws.OPCODES)):
        if bits == 4 and opcode <= 2:
            continue        # RSV1 of a data frame is the extension's
        assert_fails([bytes([0x80 | bits << 4 | opcode, 1, 120])], 1002, extensions=[Mirror()])


@pytest.mark.parametrize('opcode', [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_FR02_reserved_opcodes(opcode):
    for fin in (0, 0x80):
        assert_fails([bytes([fin | opcode, 0])], 1002)
        assert_fails([b'\x01\x01a', bytes([fin | opcode, 2]) + b'xx'], 1002)


@pytest.mark.parametrize('wire', [
    b'\x82\x7e\x00\x00', b'\x82\x7e\x00\x7d' + b'x' * 125, b'\x81\x7e\x00\x05Hello', b'\x82\x7f' + b'\0' * 8,
    b'\x82\x7f\0\0\0\0\0\0\0\x7d', b'\x82\x7f\0\0\0\0\0\0\xff\xff'], ids=ascii)
def test_FR03_lengths_in_a_longer_form_are_refused(wire):
    assert_fails([wire], 1002)


@pytest.mark.parametrize('length', [b'\x80\0\0\0\0\0\0\0', b'\xff\xff\xff\xff\xff\xff\xff\xff'], ids=ascii)
def test_FR04_V19_lengths_from_2_to_the_63(length):
    assert_fails([b'\x82\x7f' + length], 1002)
    assert_fails([b'\x81\x7f' + length + b'text'], 1002)


def test_FR05_limit_is_enforced_from_the_header():
    for roles in ((True,), (False,)):
        assert_events([b'\x82\x7e\x03\xe8' + b'x' * 1000], [b'x' * 1000], roles=roles, max_size=1000)
        assert_fails([b'\x82\x7e\x03\xe9'], 1009, roles=roles, max_size=1000)
        assert_fails([b'\x81\x0b'], 1009, roles=roles, max_size=10)
        assert_fails([b'\x82\x0b'], 1009, roles=roles, max_fragment=10)
        assert_fails([b'\x01\x05Hello', b'\x80\x06'], 1009, roles=roles, max_size=10)
        assert_events([b'\x01\x05Hello', b'\x80\x06World!'], ['HelloWorld!'], roles=roles, max_fragment=6)


def test_FR05_limit_is_for_each_message():
    assert_events([b'\x82\x0a0123456789', b'\x02\x0501234', b'\x80\x0556789', b'\x82\x0a0123456789'],
                  [b'0123456789'] * 3, max_size=10)


@pytest.mark.parametrize('wire', [b'\x81\x00', b'\x81\x01a', b'\x82\x01a', b'\x01\x01a', b'\x80\x01a', b'\x88\x00',
                                  b'\x89\x00', b'\x8a\x01a', b'\x82\x7e\x01\x00' + b'x' * 256], ids=ascii)
def test_FR06_FR07_masking_is_required_of_clients_and_forbidden_to_servers(wire):
    for chunks in splits(wire):
        assert events_of(chunks, expect_masking=True) == [('fail', 1002)]
    for chunks in splits(mask_frame(wire, b'\0\0\0\0')):
        assert events_of(chunks, expect_masking=False) == [('fail', 1002)]


CORPUS = [
    b'\x81\x05Hello', b'\x81\x00', b'\x82\x03\x00\xff\x80', b'\x01\x02\xe2\x82', b'\x89\x02hi', b'\x00\x00',
    b'\x80\x05\xac abc', b'\x8a\x00', b'\x02\x01x', b'\x80\x01y', b'\x82\x7e\x00\x80' + bytes(range(128)),
    b'\x81\x7e\x00\x81' + b'\xc3\xa9' * 64 + b'x', b'\x88\x06\x0b\xb8done']


def test_FR10_frames_split_anywhere():
    expected = ['Hello', '', b'\x00\xff\x80', ('ping', b'hi'), '€ abc', ('pong', b''), b'xy', bytes(range(128)),
                'é' * 64 + 'x', ('close', 3000, b'done')]
    assert_events(CORPUS, expected)
    for expect_masking in (True, False):
        wire = b''.join(mask_frame(each) if expect_masking else each for each in CORPUS)
        for place in range(len(wire) + 1):
            assert events_of([wire[:place], wire[place:]], expect_masking) == expected


@pytest.mark.parametrize('wire, event', [
    (b'\x81\x00', ''), (b'\x82\x00', b''), (b'\x89\x00', ('ping', b'')), (b'\x8a\x00', ('pong', b'')),
    (b'\x88\x00', ('close', 1005, b''))])
def test_FR11_empty_payloads(wire, event):
    assert_events([wire], [event])
    assert_events([b'\x01\x00', b'\x80\x00'], [''])


def test_FG01_V29_continuation_of_nothing():
    for wire in (b'\x80\x01x', b'\x00\x01x', b'\x80\x00', b'\x00\x00'):
        assert_fails([wire], 1002)
        assert_events([b'\x81\x01a', wire], ['a', ('fail', 1002)])
        assert_events([b'\x01\x01a', b'\x80\x01b', wire], ['ab', ('fail', 1002)])
        assert_events([b'\x89\x00', wire], [('ping', b''), ('fail', 1002)])


def test_FG02_V29_message_inside_a_message():
    for first, second in itertools.product((b'\x01\x01a', b'\x02\x01a', b'\x01\x00'),
                                           (b'\x81\x01b', b'\x82\x01b', b'\x01\x01b', b'\x02\x00')):
        assert_fails([first, second], 1002)
        assert_events([first, b'\x89\x00', b'\x00\x01c', second], [('ping', b''), ('fail', 1002)])


def test_FG03_control_frames_between_fragments():
    assert_events([b'\x01\x02He', b'\x89\x01p', b'\x00\x01l', b'\x8a\x01q', b'\x80\x02lo'],
                  [('ping', b'p'), ('pong', b'q'), 'Hello'])
    assert_events([b'\x01\x02He', b'\x88\x02\x03\xe8'], [('close', 1000, b'')])


def test_FG04_control_frames_are_short_and_whole():
    for opcode in (8, 9, 10):
        assert_fails([bytes([opcode, 0])], 1002)
        assert_fails([bytes([0x80 | opcode, 126, 0, 126]) + b'\x03\xe8' * 63], 1002)
        assert_fails([bytes([0x80 | opcode, 127, 0, 0, 0, 0, 0, 1, 0, 0])], 1002)
    assert_events([b'\x89\x7d' + b'x' * 125], [('ping', b'x' * 125)])


def test_control_frames_do_not_count_as_message():
    assert_events([b'\x02\x02ab', b'\x89\x05Hello', b'\x80\x02cd'], [('ping', b'Hello'), b'abcd'], max_size=4)


def test_FG06_empty_fragments_and_the_type_of_the_first():
    assert_events([b'\x01\x00', b'\x00\x00', b'\x80\x00'], [''])
    assert_events([b'\x02\x00', b'\x00\x01\xff', b'\x00\x00', b'\x80\x00'], [b'\xff'])
    assert_events([b'\x01\x00', b'\x80\x02hi'], ['hi'])


def test_plain_messages_keep_their_fragments():
    stream = make_stream(False, plain=True)
    message, = stream.receive(b'\x01\x01\xc3\x00\x00\x00\x02\xa9b\x80\x01c')
    assert message.text and message.payload == b'\xc3\xa9bc'
    assert list(message) == [b'\xc3', b'', b'\xa9b', b'c']
    message, = stream.receive(b'\x02\x01a\x80\x00')
    assert not message.text and list(message) == [b'a', b'']


def test_fragments_can_be_taken_before_the_message_is_complete():
    stream = make_stream(False, plain=True)
    assert stream.take_fragments() is None
    assert stream.receive(b'\x02\x02ab\x00\x01c\x00\x03d') == []
    taken = stream.take_fragments()
    assert not taken.text and list(taken) == [b'ab', b'c'] and taken.payload == b'abc'
    assert stream.take_fragments() is None
    assert stream.receive(b'ef\x00\x00') == []
    assert list(stream.take_fragments()) == [b'def', b'']
    last, = stream.receive(b'\x80\x01g')
    assert list(last) == [b'g']
    assert [describe(event) for event in stream.receive(b'\x81\x01h')] == ['h']


def test_raw_streams_give_every_frame_as_it_came():
    for expect_masking in (True, False):
        wire = b''.join(mask_frame(each) if expect_masking else each for each in CORPUS + [b'\x81\x02\xff\xff'])
        for chunks in splits(wire):
            stream = make_stream(expect_masking, raw=True)
            frames = [received for chunk in chunks for received in stream.receive(chunk)]
            assert [frame(received.fin << 7 | received.opcode, received.body) for received in frames] == CORPUS + [
                b'\x81\x02\xff\xff']


def test_raw_streams_know_the_rules_of_headers():
    for wire in (b'\x83\x00', b'\x09\x00', b'\xc1\x00', b'\x82\x7e\x00\x01x'):
        assert_fails([wire], 1002, raw=True)
        assert events_of([b'\x82\x80' + KEY], False, raw=True) == [('fail', 1002)]
    assert_fails([b'\x82\x06'], 1009, raw=True, max_size=5)


def test_U01_characters_across_fragments():
    text = 'aé€\U0001f600'
    octets = text.encode('utf-8')
    for first, second in itertools.combinations_with_replacement(range(len(octets) + 1), 2):
        frames = [frame(0x01, octets[:first]), frame(0x00, octets[first:second]), frame(0x80, octets[second:])]
        wire = b''.join(map(mask_frame, frames))
        for chunks in ([wire], [wire[i:i + 1] for i in range(len(wire))]):
            assert events_of(chunks) == events_of(chunks, plain=True) == [text]


@pytest.mark.parametrize('prefix, octet', IMPOSSIBLE, ids=ascii)
def test_U02_text_that_is_not_utf8(prefix, octet):
    bad = prefix + octet
    assert_fails([frame(0x81, bad)], 1007)
    assert_fails([frame(0x81, b'x' * 200 + bad)], 1007)
    assert_fails([frame(0x01, prefix), frame(0x80, octet)], 1007)
    assert_events([frame(0x82, bad)], [bad])


@pytest.mark.parametrize('part', [b'\xc3', b'\xe2\x82', b'\xf0\x9f\x98', b'\xed'], ids=ascii)
def test_U02_text_that_ends_inside_a_character(part):
    assert_fails([frame(0x81, b'x' + part)], 1007)
    assert_fails([frame(0x81, b'x' * 200 + part)], 1007)
    assert_fails([frame(0x01, b'x'), frame(0x80, part)], 1007)
    assert_fails([frame(0x01, part), frame(0x80, b'')], 1007)


@pytest.mark.parametrize('prefix, octet', IMPOSSIBLE, ids=ascii)
def test_U03_text_fails_at_the_first_impossible_octet(prefix, octet):
    for before in ([], [b'\x01\x01a'], [b'\x01\x00', b'\x00\x02ab']):
        head = [frame(0x80 if before else 0x81, prefix + octet + b'x' * 200)]
        wire = b''.join(map(mask_frame, before + head))[:-200]
        for chunks in ([wire[:-1], wire[-1:]], [wire[i:i + 1] for i in range(len(wire))]):
            stream = minws.Stream()
            for chunk in chunks[:-1]:
                assert stream.receive(chunk) == []
            error, = stream.receive(chunks[-1])
            assert isinstance(error, minws.TextFrameEncodingException)


def test_U04_noncharacters_and_nul_are_legal():
    text = '\0\ufffe\uffff\U0001ffff\U0010ffff'
    assert_events([frame(0x81, text.encode('utf-8'))], [text])


def test_U05_close_reason_is_utf8():
    assert_events([frame(0x88, b'\x03\xe8\xc3\xa9')], [('close', 1000, b'\xc3\xa9')])
    for reason in (b'\xff', b'\xc3', b'\xed\xa0\x80'):
        assert_fails([frame(0x88, b'\x03\xe8' + reason)], 1007)


def test_CL01_close_frame_of_one_byte():
    assert_fails([b'\x88\x01\x03'], 1002)


@pytest.mark.parametrize('code', [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999,
                                  4000, 4999])
def test_CL02_CL05_legal_close_codes_are_answered_alike(code):
    wire = b'\x88\x05' + struct.pack('!H', code) + b'bye'
    assert_events([wire], [('close', code, b'bye')])
    stream = minws.Stream(expect_masking=False)
    stream.parser.send(wire)
    assert stream.close(stream.closing.code, stream.closing.reason).single() == wire


def test_CL05_empty_close_is_answered_with_an_empty_one():
    stream = minws.Stream(expect_masking=False)
    stream.parser.send(b'\x88\x00')
    assert stream.closing is not None and stream.closing.code == 1005
    assert stream.close(stream.closing.code).single() == b'\x88\x00'


@pytest.mark.parametrize('code', [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_CL03_illegal_close_codes(code):
    assert_fails([b'\x88\x02' + struct.pack('!H', code)], 1002)


def test_CL11_longest_close_reason():
    reason = '€' * 41
    wire = minws.Stream().close(1000, reason).single()
    assert wire == b'\x88\x7d\x03\xe8' + b'\xe2\x82\xac' * 41
    assert_events([wire], [('close', 1000, reason.encode('utf-8'))])


def test_CL14_frames_behind_a_close_are_ignored():
    assert_events([b'\x88\x02\x03\xe8', b'\x81\x01a', b'\x89\x00', b'\x83\x00'], [('close', 1000, b'')])


def test_stream_builds_messages():
    stream = minws.Stream()
    assert describe(stream.text_message('é')) == 'é'
    assert describe(stream.binary_message(b'\xff')) == b'\xff'
    assert (stream.ping('sos'), stream.pong(b'sos')) == (b'\x89\x03sos', b'\x8a\x03sos')
    assert (stream.ping(), stream.pong()) == (b'\x89\x00', b'\x8a\x00')
    assert stream.close(1001, 'bye').single() == b'\x88\x05\x03\xe9bye'
    assert stream.encode(1, b'Hel', fin=False) + stream.encode(0, b'lo') == b'\x01\x03Hel\x80\x02lo'


def test_stream_of_a_client_masks_all_it_sends():
    client, server = minws.Stream(always_mask=True, expect_masking=False), minws.Stream()
    for wire in (client.ping('x'), client.pong('x'), client.encode(1, b'x'), client.encode(2, b''),
                 client.close(1000).single(mask=client.always_mask)):
        assert wire[1] & 0x80
        assert len(server.receive(wire)) == 1 and (server.ended is (wire[0] == 0x88))
    assert len({client.encode(1, b'')[2:] for _ in range(100)}) > 95


def test_facade_starts_empty():
    stream = minws.Stream()
    assert (stream.message, stream.has_message, stream.closing) == (None, False, None)
    assert (stream.pings, stream.pongs, stream.errors) == ([], [], [])
    assert (stream.always_mask, stream.expect_masking) == (False, True)
    assert inspect.isgenerator(stream.parser) and inspect.isgeneratorfunction(minws.Stream.receiver)


def test_facade_tells_the_bytes_it_wants():
    stream = minws.Stream(expect_masking=False)
    assert stream.parser.send(b'\x82\x7e') == 2
    assert stream.parser.send(b'\x01\x00') == 256
    assert stream.parser.send(b'x' * 6) == 250
    assert stream.parser.send(b'x' * 250) == 2
    assert stream.message.data == b'x' * 256


def test_facade_shows_the_message_that_is_arriving():
    stream = minws.Stream(expect_masking=False)
    stream.parser.send(b'\x01\x03Hel')
    assert not stream.has_message and stream.message.completed is False
    assert (stream.message.opcode, stream.message.data) == (1, b'Hel')
    stream.parser.send(b'\x00\x01l')
    assert stream.message.data == b'Hell' and not stream.has_message
    stream.parser.send(b'\x80\x01o')
    assert stream.has_message and stream.message.completed is True
    assert str(stream.message) == 'Hello' and isinstance(stream.message, minws.TextMessage)


def test_facade_keeps_messages_in_order():
    stream = minws.Stream(expect_masking=False)
    stream.parser.send(b'\x81\x01a\x82\x01b\x81\x00')
    seen = []
    while stream.has_message:
        seen.append(describe(stream.message))
        stream.message = None
    assert seen == ['a', b'b', ''] and stream.message is None


def test_facade_turns_errors_into_close_messages():
    stream = minws.Stream(expect_masking=False)
    stream.parser.send(b'\x81\x01a\x83\x00')
    next(stream.parser)
    error, = stream.errors
    assert isinstance(error, minws.CloseControlMessage) and error.code == 1002 and error.reason
    assert str(stream.message) == 'a' and stream.closing is None
    stream.parser.send(b'\x83\x00')
    assert len(stream.errors) == 1
    stream.parser.close()


def feed(stream, chunk, times):
    """Feed *chunk* at most *times* times, until the stream ends; return the last events."""
    for _ in range(times):
        events = stream.receive(chunk)
        if events:
            return events
    return []


def test_V01_declared_length_allocates_nothing():
    for length in (b'\x40\0\0\0\0\0\0\0', b'\0\0\0\0\x40\0\0\0', b'\0\0\0\0\0\x10\0\1'):
        wire = b'\x82\xff' + length + KEY
        assert events_of([wire]) == [('fail', 1009)]
        assert peak_of(lambda: events_of([wire])) < 65536
    assert peak_of(lambda: events_of([b'\x82\xff\0\0\0\0\0\x10\0\0' + KEY + b'x'])) < 65536


def test_V02_limit_is_for_the_message():
    first, more = frame(0x02, b'x' * 1024), frame(0x00, b'x' * 1024)
    assert_events([first] + [more] * 9 + [b'\x80\x00'], [b'x' * 10240], roles=(False,), max_size=10240)
    assert_fails([first] + [more] * 9 + [b'\x00\x01'], 1009, roles=(True,), max_size=10240)
    stream = minws.Stream(expect_masking=False)
    assert stream.receive(first + more * 1023) == []
    error, = stream.receive(more[:4])
    assert error.code == 1009


@pytest.mark.parametrize('fragment', [mask_frame(b'\x00\x01x'), mask_frame(b'\x00\x00')], ids=['1-byte', '0-byte'])
def test_V04_tiny_fragments_are_counted(fragment):
    for plain in (False, True):
        stream = make_stream(plain=plain)
        ends = []

        def flood():
            stream.receive(mask_frame(b'\x01\x01x'))
            ends.extend(feed(stream, fragment * 4096, 245))
        assert peak_of(flood) < minws.MAX_SIZE + (256 << 10)
        error, = ends
        assert error.code in (1008, 1009)


def test_V04_fragments_of_small_limits():
    for max_size, most in ((1000, 1024), (128 << 10, 2048)):
        wire = b'\x02\x00' + b'\x00\x00' * (most - 2)
        assert events_of([wire + b'\x80\x01x'], False, max_size=max_size) == [b'x']
        (_, code), = events_of([wire + b'\x00\x00\x80\x01x'], False, max_size=max_size)
        assert code in (1008, 1009)


@pytest.mark.parametrize('opcode', [0x01, 0x02], ids=['text', 'binary'])
def test_V05_tiny_reads_of_one_frame_weigh_what_they_carry(opcode):
    size = 64 << 10
    stream = minws.Stream()
    assert stream.receive(mask_frame(frame(opcode | 0x80, b'x' * size))[:14]) == []
    assert peak_of(lambda: feed(stream, b'xx', size // 2 - 1)) < 1.5 * size


def test_V25_V19_noise_ends_in_documented_exceptions_only():
    rng = random.Random(25)
    wire = b''.join(map(mask_frame, CORPUS))
    for turn in range(700):
        if turn % 3:
            noise = bytearray(wire)
            for _ in range(rng.randrange(1, 6)):
                noise[rng.randrange(len(noise))] = rng.randrange(256)
            noise = bytes(noise[rng.choice((0, 0, 11, 30)):])
        else:
            noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 60)))
        extensions = [Mirror()] if turn % 2 else []
        stream = minws.Stream()
        stream.use(extensions)
        events = stream.receive(noise)
        for error in [event for event in events if isinstance(event, Exception)]:
            assert error is events[-1] and isinstance(error, minws.WebSocketException)
            assert error.code in (1002, 1007, 1008, 1009) and stream.ended
        events = [describe(event) for event in events]
        for chunks in itertools.islice(splits(noise, turn), 1, 4):
            assert events_of(chunks, extensions=extensions) == events, noise
        assert facade_of([noise], extensions=extensions) == by_kind(events)


########################################################################################################################
# 6. HTTP heads and handshake


FIELDS = [('Host', 'server.example.com'), ('Upgrade', 'websocket'), ('Connection', 'Upgrade'),
          ('Sec-WebSocket-Key', 'dGhlIHNhbXBsZSBub25jZQ=='), ('Sec-WebSocket-Version', '13')]


def head_of(line, fields):
    return ('\r\n'.join([line] + ['%s: %s' % field for field in fields]) + '\r\n\r\n').encode('utf-8')


def request_head(*fields, line='GET /chat HTTP/1.1'):
    """Return the handshake of RFC 6455 1.2 with *fields*: of a new name, in place of one, or with None without it."""
    names = [name for name, _ in fields]
    kept = [field for field in FIELDS if field[0] not in names]
    return head_of(line, kept + [field for field in fields if field[1] is not None])


def answer_to(head, origins='same', hosts=None, available=()):
    """Return what a server answers to *head*: 101, or the HandshakeError."""
    try:
        assert minws.find_head_end(bytearray(head)) == len(head)
        request = minws.parse_request(head)
        minws.check_host(request, hosts)
        minws.check_upgrade(request)
        minws.check_origin(request, origins)
        minws.offered_subprotocols(request)
        minws.accept_extensions(request.headers, available)
    except minws.HandshakeError as error:
        return error
    return 101


def status_of(head, **options):
    answer = answer_to(head, **options)
    return answer if answer == 101 else answer.status


def header_of(error, name):
    return dict(error.headers)[name]


def test_S01_method_and_version():
    assert status_of(request_head()) == status_of(request_head(line='GET / HTTP/1.2')) == 101
    error = answer_to(request_head(line='POST /chat HTTP/1.1'))
    assert error.status == 405 and header_of(error, 'Allow') == 'GET'
    for line in ('GET / HTTP/1.0', 'GET / HTTP/2.0', 'GET / HTTP/0.9'):
        assert status_of(request_head(line=line)) == 505
    for line in ('GET /', 'GET', 'GET / HTTP/1.1 ', 'GET / HTTP/1.1 junk', 'GET  / HTTP/1.1', 'GET / http/1.1',
                 'GET / HTTP/1.', 'GET / HTTP/11', 'GET / HTTP/1.10', 'GET / HTTP/1.x', 'GET / HTTPS/1.1',
                 'GET\t/ HTTP/1.1', 'G(T / HTTP/1.1', 'GET / HTTP/１.１'):
        assert status_of(request_head(line=line)) == 400, line


@pytest.mark.parametrize('host', [
    None, '', ' ', ',', 'a b', 'a<b', 'a/b', 'a@b', 'a,b', 'a:b', 'a:80:80', 'a:65536', 'a:+80', 'a:８0', 'h\xe9',
    '[::1',
    '[x]', '[]', '[::1]x', '::1', ':80', 'a%00', "a'b", 'a\\b'], ids=ascii)
def test_S02_host_is_there_and_valid(host):
    assert status_of(request_head(('Host', host))) == 400


def test_S02_exactly_one_host():
    assert status_of(request_head(('Host', 'a'), ('Host', 'a'))) == 400
    assert status_of(request_head(('Host', 'a'), ('host', 'b'))) == 400


@pytest.mark.parametrize('text, parsed', [
    ('Example.COM', ('example.com', None)), ('a:80', ('a', 80)), ('127.0.0.1:65535', ('127.0.0.1', 65535)),
    ('[::1]', ('::1', None)), ('[FE80::1]:9000', ('fe80::1', 9000)), ('a_b-c.d', ('a_b-c.d', None)), ('a:', ('a',
                                                                                                             None))])
def test_host_and_port(text, parsed):
    assert minws.parse_host(text) == parsed


@pytest.mark.parametrize('name, value, status', [
    ('Upgrade', 'WebSocket', 101), ('Upgrade', 'h2c, websocket', 101), ('Upgrade', ' websocket\t', 101),
    ('Upgrade', None, 426), ('Upgrade', '', 426), ('Upgrade', 'websocketx', 426), ('Upgrade', 'xwebsocket', 426),
    ('Upgrade', 'web socket', 426), ('Upgrade', 'websocket\xa0', 426), ('Upgrade', 'websocket/13', 426),
    ('Connection', 'keep-alive, Upgrade', 101), ('Connection', 'uPGRADE', 101), ('Connection', 'close,upgrade', 101),
    ('Connection', None, 426), ('Connection', 'notupgrade', 426), ('Connection', 'upgradeatall', 426),
    ('Connection', 'keep-alive', 426)], ids=ascii)
def test_S03_S04_upgrade_and_connection_are_tokens(name, value, status):
    assert status_of(request_head((name, value))) == status


def test_S03_S04_lists_in_several_lines():
    assert status_of(request_head(('Connection', 'keep-alive'), ('Connection', 'Upgrade'))) == 101
    error = answer_to(request_head(('Upgrade', None)))
    assert header_of(error, 'Upgrade') == 'websocket'


@pytest.mark.parametrize('key', [
    None, '', 'dGhlIHNhbXBsZSBub25jZQ=', 'dGhlIHNhbXBsZSBub25jZQ', 'dGhlIHNhbXBsZSBub25j', 'dGhlIHNhbXBsZSBub25jZTE=',
    'dGhlIHNhbXBs ZSBub25jZQ==', 'dGhlIHNhbXBsZSBub25jZQ==x', 'dGhlIHNhbXBsZSBub25jZQ==, x', 'dGhlIHNhbXBsZSBub25jZR==',
    'dGhlIHNhbXBs!ZSBub25jZQ==', 'dGhlIHNhbXBsZSBub25jZQ==\xe9', 'é' * 12, '=' * 24], ids=ascii)
def test_S05_key_is_16_bytes_in_base64(key):
    assert status_of(request_head(('Sec-WebSocket-Key', key))) == 400


def test_S05_exactly_one_key():
    key = ('Sec-WebSocket-Key', 'dGhlIHNhbXBsZSBub25jZQ==')
    assert status_of(request_head(key, key)) == 400


@pytest.mark.parametrize('version', [None, '', '0', '7', '8', '12', '14', '13, 8', '8, 13', '+13', '013', '１３', '13.0',
                                     '1_3', '1' * 8000], ids=lambda version: ascii(version)[:20])
def test_S06_V15_version_is_13(version):
    error = answer_to(request_head(('Sec-WebSocket-Version', version)))
    assert error.status == 426 and header_of(error, 'Sec-WebSocket-Version') == '13'


def test_S06_exactly_one_version():
    assert status_of(request_head(('Sec-WebSocket-Version', '13'), ('Sec-WebSocket-Version', '8'))) == 400


def test_S07_V33_same_origin_is_the_default():
    def status(origin, host='good.example'):
        return status_of(request_head(('Origin', origin), ('Host', host)))
    assert status(None) == 101
    assert status('http://good.example') == status('https://good.example') == status('http://GOOD.example') == 101
    assert status('http://evil.example') == 403
    assert status('http://192.168.1.7:9000', '192.168.1.7:9000') == 101
    assert status('http://[::1]:9000', '[::1]:9000') == 101
    assert status('http://good.example:80') == status('https://good.example:443') == 101
    assert status('http://good.example', 'good.example:80') == 101


LOOKALIKES = [
    'null', '', 'good.example', '//good.example', 'http:good.example', 'http://', 'http:///good.example',
    'http://good.example.evil', 'http://evil/good.example', 'http://evil?good.example', 'http://evil#good.example',
    'http://good.example/', 'http://good.example/x', 'http://good.example.', 'http://good.example:81',
    'http://good.example:443', 'https://good.example:80', 'http://good.example:080x', 'http://good.example:99999',
    'http://evilgood.example', 'http://good-example', 'http://goodxexample', 'http://sub.good.example',
    'http://example',
    'http://good.example@evil', 'http://evil@good.example', 'http://good.example evil', 'http://evil good.example',
    'http://good.example, http://evil', 'http://evil, http://good.example', 'http://good.example\\.evil',
    'http://good.example%00.evil', 'ftp://good.example', 'file://good.example', 'javascript://good.example',
    'chrome-extension://good.example', 'http://g\xf6\xf6d.example', 'http://good.example\xa0', 'http://[good.example]',
    'http://127.0.0.1', 'http://127.0.0.1.evil', 'http://localhost']


@pytest.mark.parametrize('origin', LOOKALIKES, ids=ascii)
def test_V34_origins_that_look_alike(origin):
    head = request_head(('Origin', origin), ('Host', 'good.example'))
    assert status_of(head) == 403
    assert status_of(head, origins=['http://good.example']) == 403
    assert status_of(head, origins=[re.compile(r'https?://good\.example')]) == 403
    assert status_of(head, origins=None) == 101


def test_V34_origins_of_a_list():
    def status(origin, origins):
        return status_of(request_head(('Origin', origin)), origins=origins)
    assert status('https://good.example', ['https://a', 'https://good.example']) == 101
    assert status('https://server.example.com', ['https://good.example']) == 403
    assert status(None, ['https://good.example']) == 403
    assert status(None, ['https://good.example', None]) == status(None, [None]) == 101
    assert status('https://x.good.example', [re.compile(r'https://\w+\.good\.example')]) == 101
    assert status(None, [re.compile('.*')]) == 403
    assert status('https://good.example', []) == 403


def test_V34_more_than_one_origin():
    origin = ('Origin', 'http://server.example.com')
    assert status_of(request_head(origin)) == 101
    assert status_of(request_head(origin, origin), origins=None) == 400


@pytest.mark.parametrize('host', ['localhost', 'LocalHost:9000', '127.0.0.1:9000', '192.168.1.7', '8.8.8.8', '[::1]:80',
                                  '[fe80::1]', '[::ffff:192.168.1.7]:9000', 'pi', 'pi.local', 'pi.lan', 'pi.home.arpa',
                                  'pi.internal', 'x.localhost'])
def test_V36_local_names_are_served(host):
    assert status_of(request_head(('Host', host)), hosts='local') == 101
    assert status_of(request_head(('Host', host)), hosts=['example.org']) == 101


@pytest.mark.parametrize('host', ['attacker.example', 'attacker.example:9000', '127.0.0.1.evil', '127.0.0.evil',
                                  'local.evil',
                                  'localhost.evil', 'evil.locals', 'lan.evil', 'x.home.arpa.evil', 'evil.arpa', '1.2.3',
                                  'example.com.'])
def test_V36_other_names_are_refused(host):
    head = request_head(('Host', host), ('Origin', 'http://' + host))
    assert status_of(head, hosts='local') == status_of(head, hosts=['example.com', 'ample']) == 421
    assert status_of(head, hosts=None) == 101


def test_V36_names_of_the_list_are_served():
    for host in ('example.com', 'EXAMPLE.com:9000'):
        assert status_of(request_head(('Host', host)), hosts=['other', 'Example.com']) == 101
    assert 'hosts=' in str(answer_to(request_head(), hosts='local'))
    assert 'origins=' in str(answer_to(request_head(('Origin', 'http://evil'))))


def offered(*values):
    return minws.offered_subprotocols(minws.parse_request(
        request_head(*[('Sec-WebSocket-Protocol', value) for value in values])))


def test_S08_subprotocols():
    assert offered() == []
    assert offered('chat, superchat') == offered('chat', ' superchat ') == ['chat', 'superchat']
    for bad in ('', 'a,,b', 'a b', 'a,a', 'a,', 'a;b', 'a"', 'caf\xe9'):
        with pytest.raises(minws.HandshakeError) as caught:
            offered(bad)
        assert caught.value.status == 400
    with pytest.raises(minws.HandshakeError):
        offered('a', 'a')


def test_S09_only_offered_extensions_are_answered():
    def accepted(*values, available=(Mirror(), Elder())):
        headers = minws.Headers([('Sec-WebSocket-Extensions', value) for value in values])
        return [(extension.name, extension.params) for extension in minws.accept_extensions(headers, available)]
    assert accepted() == accepted('foo') == accepted('x-mirrors; a, x-mirro') == []
    assert accepted('x-mirror', available=()) == []
    assert accepted('foo, x-mirror; a=1; b', 'x-mirror') == [('x-mirror', [('a', '1'), ('b', None)])]
    assert accepted('x-mirror; never, x-mirror; b') == [('x-mirror', [('b', None)])]
    assert accepted('x-elder, x-mirror') == [('x-mirror', [])]         # both own RSV1
    assert [name for name, _ in accepted('x-watcher, x-mirror', available=(Mirror(), Watcher(), Mirror()))] == [
        'x-mirror', 'x-watcher']


def test_S10_acceptance():
    request = minws.parse_request(request_head())
    assert minws.accept_response(request).build() == (
        b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
        b'Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n')
    response = minws.accept_response(request, 'chat', [Mirror([('a', '1'), ('b', None)])], 'minws')
    assert response.headers['Sec-WebSocket-Protocol'] == 'chat'
    assert response.headers['Sec-WebSocket-Extensions'] == 'x-mirror; a=1; b'
    assert response.headers['Server'] == 'minws'
    assert minws.accept_key('dGhlIHNhbXBsZSBub25jZQ==') == minws.accept_key(b'dGhlIHNhbXBsZSBub25jZQ==')


def test_accept_key_without_the_sha1_module(monkeypatch):
    monkeypatch.setitem(sys.modules, '_sha1', None)
    assert minws.accept_key('dGhlIHNhbXBsZSBub25jZQ==') == 's3pPLMBiTxaQ9kYGzzhZRbK+xOo='


@pytest.mark.parametrize('fields', [
    [('Content-Length', '1')], [('Content-Length', '00')], [('Content-Length', '+0')], [('Content-Length', '')],
    [('Content-Length', '-1')], [('Content-Length', '9' * 8000)], [('Content-Length', '0'), ('Content-Length', '0')],
    [('Transfer-Encoding', 'chunked')], [('Transfer-Encoding', 'identity')], [('Transfer-Encoding', '')],
    [('Content-Length', '5'), ('Transfer-Encoding', 'chunked')]], ids=lambda fields: ascii(fields)[:60])
def test_S12_V15_V40_upgrade_requests_have_no_body(fields):
    assert status_of(request_head(*fields)) == 400


def test_S12_content_length_zero_is_no_body():
    assert status_of(request_head(('Content-Length', '0'))) == 101


BAD_HEADS = [
    b'GET / HTTP/1.1\r\nHost: a\r\n' + bad + b'\r\n\r\n' for bad in [
        b'X', b': x', b' X: y', b'\tX: y', b'X : y', b'X\t: y', b'X: y\r\n folded', b'X: y\r\n\tfolded', b'X\x00: y',
        b'X: \x00', b'X: a\x00b', b'X: a\rb', b'X: a\nb', b'X: a\r\rb', b'X: a\n\r\nY: b', b'X: y\r', b'\rX: y',
        b'\nX: y',
        b'X: \x0b', b'X: \x0c', b'X: \x1c', b'X: \x1f', b'X: \x7f', b'X: \x1b[31m', b'X: \x08', b'X(: y', b'X): y',
        b'X<: y', b'X@: y', b'X,: y', b'X;: y', b'X/: y', b'X[: y', b'X]: y', b'X?: y', b'X=: y', b'X{: y', b'X}: y',
        b'X": y', b'X\\: y', b'X Y: z', b'X\xa0: y', b'\xe9: y', b'X\x85: y', b'Host: b', b'HOST: a', b'X: y\nHost: b',
        b'Origin: http://a\r\nOrigin: http://a', b'Sec-WebSocket-Key: a\r\nSec-WebSocket-Key: a',
        b'Content-Length: 0\r\nContent-Length: 1']
] + [
    b'GET / HTTP/1.1\nHost: a\r\n\r\n', b'GET / HTTP/1.1\r\r\nHost: a\r\n\r\n',
    b'GET / HTTP/1.1\x00\r\nHost: a\r\n\r\n',
    b'GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n', b'GET /\t HTTP/1.1\r\nHost: a\r\n\r\n', b'GET / HTTP/1.1\r\n\r\n',
    b'\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n', b' GET / HTTP/1.1\r\nHost: a\r\n\r\n',
    b'GET /\x85 HTTP/1.1\r\nHost: a\r\n\r\n',
    b'get / HTTP/1.1\r\nHost: a\r\n\r\n', b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n',
    b'GET / HTTP/1.1\n\n']


@pytest.mark.parametrize('head', BAD_HEADS, ids=ascii)
def test_S13_V41_lenient_grammar_is_refused(head):
    assert status_of(b'GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n') == 426
    assert status_of(head) == 400
    for chunks in splits(head):
        with pytest.raises(minws.HandshakeError) as caught:
            receive_head(chunks)
        assert caught.value.status == 400


def receive_head(chunks):
    """Do what a server does until the head is complete; return (Request, what stands behind the head)."""
    data, searched, end = bytearray(), 0, 0
    for chunk in chunks:
        data += chunk
        if not end:
            end = minws.find_head_end(data, searched)
            searched = len(data)
    return (minws.parse_request(bytes(data[:end])), bytes(data[end:])) if end else None


def test_S14_only_space_and_tab_are_trimmed():
    head = b'GET / HTTP/1.1\r\nHost: a\r\nX: \t \xa0v\x85 w\xe9\xa0\t \r\nEmpty:\r\n\r\n'
    headers = minws.parse_request(head).headers
    assert headers['X'] == '\xa0v\x85 w\xe9\xa0'
    assert headers['empty'] == ''


def test_S15_what_stands_behind_the_head_is_left_alone():
    frames = b'\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58\r\n\r\n'
    for chunks in splits(request_head() + frames):
        request, rest = receive_head(chunks)
        assert request.target == '/chat' and rest == frames
        assert minws.is_upgrade(request)


def test_S11_S16_V40_refusals_end_the_connection():
    for status in (400, 401, 403, 404, 405, 421, 426, 431, 500, 503):
        wire = minws.text_response(status, 'no', [('WWW-Authenticate', 'Basic realm="x"')]).build()
        head, _, body = wire.partition(b'\r\n\r\n')
        lines = head.split(b'\r\n')
        assert lines[0].startswith(b'HTTP/1.1 %d ' % status) and len(lines[0]) > 13
        assert b'Connection: close' in lines and b'Content-Length: 2' in lines and body == b'no'
        assert b'WWW-Authenticate: Basic realm="x"' in lines
        assert b'X-Content-Type-Options: nosniff' in lines and b'Content-Type: text/plain; charset=utf-8' in lines


@pytest.mark.parametrize('target', ['*', 'http://a/', 'a', '', '/#x', '/a b', '/\xe9', '/a\x7f', '?x', 'a:443'],
                         ids=ascii)
def test_S17_target_is_a_path_in_ascii(target):
    assert status_of(request_head(line='GET %s HTTP/1.1' % target)) == 400


def test_S17_longest_target():
    assert status_of(request_head(line='GET /%s HTTP/1.1' % ('a' * 8000))) == 101
    for chunks in ([request_head(line='GET /%s HTTP/1.1' % ('a' * 8192))], [b'GET /'] + [b'a' * 64] * 200):
        with pytest.raises(minws.HandshakeError) as caught:
            receive_head(chunks)
        assert caught.value.status == 414


def test_V12_head_without_end():
    for step in (1, 7, 100):
        source = b'GET / HTTP/1.1\r\n' + b'X: %s\r\n' % (b'y' * 4000) * 10
        data, searched = bytearray(), 0
        with pytest.raises(minws.HandshakeError) as caught:
            while len(data) < len(source):
                data += source[len(data):len(data) + step]
                minws.find_head_end(data, searched)
                searched = len(data)
        assert caught.value.status == 431
        assert minws.MAX_HEAD - 4 <= len(data) < minws.MAX_HEAD + step


def test_V12_longest_head_in_any_splitting():
    def head_of_size(size):
        fields = b''.join(b'X-%d: %s\r\n' % (i, b'y' * 4000) for i in range(4))
        start = b'GET / HTTP/1.1\r\nHost: a\r\n'
        return start + fields + b'Z: ' + b'z' * (size - len(start) - len(fields) - 7) + b'\r\n\r\n'
    longest = head_of_size(minws.MAX_HEAD)
    assert len(longest) == minws.MAX_HEAD
    for chunks in ([longest], [longest[:-1], longest[-1:]], [longest[:-3], longest[-3:]]):
        assert receive_head(chunks) is not None
    with pytest.raises(minws.HandshakeError) as caught:
        receive_head([head_of_size(minws.MAX_HEAD + 1)])
    assert caught.value.status == 431


def test_V12_number_and_length_of_headers():
    many = [('X-%d' % i, 'y') for i in range(minws.MAX_HEADERS - len(FIELDS))]
    assert status_of(request_head(*many)) == 101
    assert status_of(request_head(('Last', 'y'), *many)) == 431
    assert status_of(request_head(('X', 'y' * (minws.MAX_LINE - 3)))) == 101
    assert status_of(request_head(('X', 'y' * (minws.MAX_LINE - 2)))) == 431


@pytest.mark.parametrize('make', [
    lambda n: 'a;b="' + '\\c' * n, lambda n: 'b' + ' ' * n + 'x', lambda n: 'a' + ';b' * n, lambda n: 'a,' * n + 'a',
    lambda n: 'a;b="' + 'c' * n + '"', lambda n: 'a; b=' + '"' * n, lambda n: ';' * n],
    ids=['unclosed-quote', 'spaces', 'parameters', 'names', 'long-value', 'quotes', 'semicolons'])
def test_V17_extension_headers_take_linear_time(make):
    def parse(text):
        try:
            minws.parse_extensions([text])
        except ValueError:
            pass
    assert_linear(parse, make, 4096)


@pytest.mark.parametrize('make', [lambda n: 'b' + ' ' * n + 'x', lambda n: ',' * n, lambda n: ' ,' * n],
                         ids=['spaces', 'commas', 'both'])
def test_V17_subprotocol_headers_take_linear_time(make):
    def parse(text):
        request = minws.Request('GET', '/', minws.Headers([('Sec-WebSocket-Protocol', text)]))
        with pytest.raises(minws.HandshakeError):
            minws.offered_subprotocols(request)
    assert_linear(parse, make, 16384)


class CountingBuffer(bytearray):
    """Counts the bytes that find() looks at."""
    scanned = 0

    def find(self, what, start=0, end=None):
        end = len(self) if end is None else min(end, len(self))
        found = bytearray.find(self, what, start, end)
        self.scanned += (found if found >= 0 else end) - start
        return found


def test_V18_head_in_single_bytes_is_searched_once():
    head = request_head(*[('X-%d' % i, 'y' * 500) for i in range(25)])
    data, searched = CountingBuffer(), 0
    for octet in head:
        data.append(octet)
        end = minws.find_head_end(data, searched)
        searched = len(data)
    assert end == len(head) > 12000
    assert 2 * len(head) < data.scanned < 30 * len(head)


def test_V18_repeated_headers_take_linear_time():
    def read(head):
        _, headers = minws.parse_head(head)
        return headers['X'], headers.get_all('x'), list(headers)
    assert_linear(read, lambda n: head_of('GET / HTTP/1.1', [('X', 'y' * n)] * 63), 1000)


def test_V25_V26_every_byte_in_every_header_is_answered():
    for name in [name for name, _ in FIELDS] + ['Origin', 'Sec-WebSocket-Protocol', 'Sec-WebSocket-Extensions',
                                                'Cookie',
                                                'Content-Length', 'Transfer-Encoding', 'X']:
        line, place = request_head((name, 'a@@z')), b'@@'
        for octet in range(256):
            answer = answer_to(line.replace(place, bytes([octet])), hosts='local', available=[Mirror()])
            assert answer == 101 or 400 <= answer.status <= 431


def test_V25_noise_in_requests_ends_in_handshake_errors_only():
    rng = random.Random(26)
    start = request_head(('Origin', 'http://a'), ('Cookie', 'a=1; b="2"; c'), ('Sec-WebSocket-Protocol', 'a, b'),
                         ('Sec-WebSocket-Extensions', 'x-mirror; a="1"; b, foo'), line='GET /p%41%?a=%e2%82&b HTTP/1.1')
    for _ in range(3000):
        noise = bytearray(start)
        for _ in range(rng.randrange(1, 5)):
            place = rng.randrange(len(start) - 4)
            octet = rng.choice(b'\r\n :;,="\\%\x00\x85\xff' + bytes(range(256)))
            noise[place:place + rng.choice((0, 1, 1, 1, 9))] = bytes([octet])
        head = bytes(noise).partition(b'\r\n\r\n')[0] + b'\r\n\r\n'
        try:
            request = minws.parse_request(head)
        except minws.HandshakeError as error:
            assert 400 <= error.status <= 505
            continue
        assert isinstance(request.path, str) and isinstance(request.query, dict) and isinstance(request.cookies, dict)
        for check in (minws.check_upgrade, minws.check_host, minws.check_origin, minws.offered_subprotocols,
                      lambda request: minws.accept_extensions(request.headers, [Mirror()])):
            try:
                check(request)
            except minws.HandshakeError as error:
                assert 400 <= error.status <= 505


CONTROLS = [chr(code) for code in range(32) if code != 9] + ['\x7f']


@pytest.mark.parametrize('control', CONTROLS, ids=ascii)
def test_V37_control_characters_never_leave(control):
    text = 'a' + control + 'b'
    request = minws.parse_request(request_head())
    with pytest.raises(ValueError):
        minws.Headers([(text, 'x')])
    with pytest.raises(ValueError):
        minws.Headers({'X': text})
    with pytest.raises(ValueError):
        minws.Headers().add('X', text)
    with pytest.raises(ValueError):
        minws.Headers()['X'] = text
    with pytest.raises(ValueError):
        minws.Response(200, text).build()
    with pytest.raises(ValueError):
        minws.accept_response(request, subprotocol=text)
    with pytest.raises(ValueError):
        minws.accept_response(request, server_header=text)
    with pytest.raises(ValueError):
        minws.text_response(401, 'x', [('WWW-Authenticate', text)])


def test_V37_what_is_no_header():
    for name in ('', 'a b', 'a:', 'a\t', 'é', '\uff21'):
        with pytest.raises(ValueError):
            minws.Headers([(name, 'x')])
    for value in (5, None, b'x'):
        with pytest.raises(TypeError):
            minws.Headers([('X', value)])
    with pytest.raises(ValueError):
        minws.Headers([('X', '\u20ac')])
    for status in (99, 1000, -1):
        with pytest.raises(ValueError):
            minws.Response(status, 'x').build()


def test_failed_assignment_leaves_headers_alone():
    headers = minws.Headers([('X', 'y')])
    with pytest.raises(ValueError):
        headers['X'] = 'a\r\nb'
    assert headers.items() == [('X', 'y')]


def test_headers_are_a_mapping_that_knows_no_case():
    headers = minws.Headers([('Set-Cookie', 'a=1'), ('X-One', '1'), ('set-cookie', 'b=2')])
    assert headers['SET-COOKIE'] == 'a=1, b=2' and headers.get_all('Set-Cookie') == ['a=1', 'b=2']
    assert 'x-one' in headers and 'x-two' not in headers
    assert headers.get('x-two') is None and headers.get('x-two', 'no') == 'no' and headers.get_all('x-two') == []
    assert len(headers) == 3 and sorted(name.lower() for name in headers) == ['set-cookie', 'x-one']
    with pytest.raises(KeyError):
        headers['x-two']
    headers['Set-cookie'] = 'c=3'
    assert headers.get_all('set-cookie') == ['c=3']
    del headers['X-ONE']
    assert headers.items() == [('Set-cookie', 'c=3')]
    assert minws.Headers({'A': 'b'}).items() == [('A', 'b')] and minws.Headers().items() == []


def test_request_is_taken_apart():
    request = minws.parse_request(request_head(
        ('Cookie', 'a=1; b="2"'), ('cookie', 'a=3; c=d=e; junk'),
        line='GET /a%20b/c?x=1&y=%C3%A9+z&x=2&flag&=&t=%zz%4 HTTP/1.1'))
    assert request.method == 'GET' and request.target.startswith('/a%20b/c?x=1')
    assert request.path == '/a%20b/c'
    assert request.query == {'x': '2', 'y': 'é z', 'flag': '', '': '', 't': '%zz%4'}
    assert request.cookies == {'a': '3', 'b': '2', 'c': 'd=e'}
    assert request.body == b'' and request.headers['HOST'] == 'server.example.com'
    assert minws.Request('GET', '/').query == minws.Request('GET', '/').cookies == {}


@pytest.mark.parametrize('text, plain', [('a%20b', 'a b'), ('%2e%2E/', '../'), ('%252e', '%2e'), ('%', '%'), ('%4',
                                                                                                              '%4'),
                                         ('%zz', '%zz'), ('%e2%82%ac', '€'), ('%ff', '\ufffd'), ('%+1', '%+1'), ('+',
                                                                                                                 '+'),
                                         ('%\uff14\uff11', '%??')])
def test_percent_escapes_are_decoded_once(text, plain):
    assert minws.unquote(text) == plain


def test_response_is_built():
    assert minws.Response(200, None, {'X': 'y'}, b'body').build() == (
        b'HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody')
    head = minws.Response(404, body=b'body').build(with_body=False)
    assert head == b'HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\n'
    assert minws.Response(299).build().startswith(b'HTTP/1.1 299 \r\n')
    with pytest.raises(TypeError):
        minws.Response(200, body='text')


def test_response_has_one_length():
    wire = minws.Response(200, None, [('content-length', '4'), ('Connection', 'close')], b'body').build()
    assert wire.lower().count(b'content-length:') == wire.lower().count(b'connection:') == 1
    assert b'content-length' not in minws.Response(204).build().lower()         # RFC 9110 8.6


# The client's side


@pytest.mark.parametrize('names', [['a', 'a'], [''], ['a b'], ['a,b'], ['caf\xe9'], ['\uff21'], ['a\r\nX: y'], [b'a'],
                                   [5]],
                         ids=ascii)
def test_C06_subprotocols_are_unique_tokens(names):
    with pytest.raises(ValueError):
        minws.check_subprotocols(names)


def test_C06_subprotocols_are_a_list():
    assert minws.check_subprotocols(None) == minws.check_subprotocols(()) == []
    assert minws.check_subprotocols(('chat', 'x.y')) == ['chat', 'x.y']
    for text in ('chat', b'chat'):
        with pytest.raises(TypeError):
            minws.check_subprotocols(text)


ANSWER = [('Upgrade', 'websocket'), ('Connection', 'Upgrade'), ('Sec-WebSocket-Accept', 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=')]


def check_answer(*fields, line='HTTP/1.1 101 Switching Protocols', subprotocols=('chat',), extensions=()):
    """Return what a client makes of an answer with *fields* in place of those of the RFC's example."""
    names = [name for name, _ in fields]
    kept = [field for field in ANSWER if field[0] not in names]
    head = head_of(line, kept + [field for field in fields if field[1] is not None])
    return minws.check_response(minws.parse_response(head), 'dGhlIHNhbXBsZSBub25jZQ==', subprotocols, extensions)


def assert_refused(*fields, **options):
    with pytest.raises(minws.HandshakeError) as caught:
        check_answer(*fields, **options)
    return caught.value


def test_acceptance_is_accepted():
    assert check_answer() == (None, [])
    assert check_answer(line='HTTP/1.1 101') == (None, [])
    assert check_answer(('Upgrade', 'WebSocket'), ('Connection', 'keep-alive, upgrade')) == (None, [])
    assert check_answer(('Sec-WebSocket-Protocol', 'chat'))[0] == 'chat'


@pytest.mark.parametrize('status', [200, 204, 302, 400, 401, 404, 426, 500])
def test_C07_other_statuses_are_told(status):
    error = assert_refused(('Location', '/there'), line='HTTP/1.1 %d Some reason' % status)
    assert error.response.status_code == status and error.response.reason_phrase == 'Some reason'
    assert error.response.headers['Location'] == '/there' and str(status) in str(error)


@pytest.mark.parametrize('fields', [
    [('Upgrade', None)], [('Upgrade', 'websocketx')], [('Upgrade', 'h2c')], [('Upgrade', '')],
    [('Connection', None)], [('Connection', 'close')], [('Connection', 'notupgrade')],
    [('Sec-WebSocket-Accept', None)], [('Sec-WebSocket-Accept', 's3pPLMBiTxaQ9kYGzzhZRbK+xOo')],
    [('Sec-WebSocket-Accept', 's3pplmbitxaq9kygzzhzrbk+xoo=')], [('Sec-WebSocket-Accept', '')],
    [ANSWER[2], ANSWER[2]]], ids=ascii)
def test_C08_C09_C10_acceptance_of_another_handshake(fields):
    assert_refused(*fields)


def test_C11_extensions_that_were_not_offered():
    def answered(value, extensions):
        return [(extension.name, extension.params) for extension in check_answer(
            ('Sec-WebSocket-Extensions', value), extensions=extensions)[1]]
    assert answered('x-mirror; a=1', [Mirror()]) == [('x-mirror', [('a', '1')])]
    assert answered('x-watcher, x-mirror', [Mirror(), Watcher()]) == [('x-watcher', []), ('x-mirror', [])]
    for value, extensions in (('x-mirror', []), ('foo', [Mirror()]), ('x-mirror, foo', [Mirror()]), ('X-MIRROR',
                                                                                                     [Mirror()]),
                              ('x-mirror, x-mirror', [Mirror()]), ('x-mirror, x-elder', [Mirror(), Elder()])):
        assert_refused(('Sec-WebSocket-Extensions', value), extensions=extensions)


def test_C12_subprotocols_that_were_not_offered():
    for value in ('other', 'chat, other', 'Chat', '', 'chat,'):
        assert_refused(('Sec-WebSocket-Protocol', value))
    assert_refused(('Sec-WebSocket-Protocol', 'chat'), subprotocols=())
    assert_refused(('Sec-WebSocket-Protocol', 'chat'), ('Sec-WebSocket-Protocol', 'chat'))


@pytest.mark.parametrize('line', ['HTTP/2 101 x', 'HTTP/1.1 1O1 x', 'HTTP/1.1 0101 x', 'HTTP/1.1 +10 x',
                                  'HTTP/1.1 １01 x', 'ICY 101 x',
                                  'HTTP/1.1', 'HTTP/1.1  101 x', 'http/1.1 101 x', ''], ids=ascii)
def test_malformed_status_lines(line):
    assert_refused(line=line)


@pytest.mark.parametrize('value', [
    '', ' ', ';', ',', 'a;', 'a;;b', 'a;=1', 'a;b=', 'a;b="', 'a;b="x y"', 'a;b=""', 'a;b="x"y', 'a;b=x"y"', 'a;b=x y',
    'a b',
    'a,', ',a', 'a;b="\\"', 'a;b="x\\"y"', r'a;b="x\\y"', '"a"', 'a="b"', 'a;"b"', 'a;b=c=d', 'caf\xe9', 'a;b="\xe9"',
    'a/b'],
    ids=ascii)
def test_XT01_XT03_malformed_extension_headers(value):
    with pytest.raises(ValueError):
        minws.parse_extensions([value])
    with pytest.raises(minws.HandshakeError) as caught:
        minws.accept_extensions(minws.Headers([('Sec-WebSocket-Extensions', value)]), [Mirror()])
    assert caught.value.status == 400
    assert_refused(('Sec-WebSocket-Extensions', value), extensions=[Mirror()])


@pytest.mark.parametrize('values, parsed', [
    ([], []), (['a'], [('a', [])]), (['a;b'], [('a', [('b', None)])]), (['a', 'b'], [('a', []), ('b', [])]),
    (['a ;\tb=c , d'], [('a', [('b', 'c')]), ('d', [])]), (['a; b="c"'], [('a', [('b', 'c')])]),
    (['a; b="c\\d"'], [('a', [('b', 'cd')])]), (['a; b=1; b=2'], [('a', [('b', '1'), ('b', '2')])])])
def test_XT01_extension_headers(values, parsed):
    assert minws.parse_extensions(values) == parsed
    if parsed:
        assert minws.parse_extensions([minws.format_extensions(parsed)]) == parsed


@pytest.mark.parametrize('uri, parts', [
    ('ws://h', ('ws', 'h', 80, '/', None)),
    ('WSS://H.example/', ('wss', 'h.example', 443, '/', None)),
    ('ws://h:9000/a/b?c=d', ('ws', 'h', 9000, '/a/b?c=d', None)),
    ('ws://h?c', ('ws', 'h', 80, '/?c', None)),
    ('ws://h/a@b', ('ws', 'h', 80, '/a@b', None)),
    ('wss://[::1]:8443/x', ('wss', '::1', 8443, '/x', None)),
    ('ws://b\xfccher.example:81/\xe9?\u20ac', ('ws', 'xn--bcher-kva.example', 81, '/%C3%A9?%E2%82%AC', None)),
    ('ws://us%40er:p%3Ass:w@h/', ('ws', 'h', 80, '/', ('us@er', 'p:ss:w'))),
    ('ws://user@h/', ('ws', 'h', 80, '/', ('user', ''))),
    ('ws+unix:///tmp/my.sock', ('ws+unix', '/tmp/my.sock', None, '/', None))], ids=ascii)
def test_uri_is_taken_apart(uri, parts):
    assert minws.parse_uri(uri) == parts


@pytest.mark.parametrize('uri', [
    '', 'h', 'http://h', 'https://h', 'ws:h', 'ws:/h', '//h', 'ws://', 'ws:///x', 'ws://:80', 'ws://u:p@', 'ws://h#x',
    'ws://h/#',
    'ws://h:x', 'ws://h:65536', 'ws://h:-1', 'ws://h:80:80', 'ws://[::1', 'ws://::1', 'ws://h h/', 'ws://h/a b',
    ' ws://h',
    'ws://h/\r\nX: y', 'ws://h\r\nX: y', 'ws://h/\n', 'ws://h/?\0', 'ws://\0', 'ws://h/\x7f', 'ws://h/\t',
    'ws://u\r\n:p@h/',
    'ws://\uff0f\uff0fx/', 'ws://\u2100.example', 'ws://..\xfc', 'ws+unix://'], ids=ascii)
def test_V38_what_is_no_websocket_uri(uri):
    with pytest.raises(ValueError):
        minws.parse_uri(uri)


def test_port_zero_is_not_the_default_port():
    with pytest.raises(ValueError):
        minws.parse_uri('ws://h:0/')


@pytest.mark.parametrize('scheme, host, port, value', [
    ('ws', 'h', 80, 'h'), ('wss', 'h', 443, 'h'), ('ws', 'h', 443, 'h:443'), ('wss', 'h', 80, 'h:80'),
    ('ws', '::1', 8080, '[::1]:8080'), ('wss', '::1', 443, '[::1]')])
def test_host_header_of_a_client(scheme, host, port, value):
    assert minws.host_header(scheme, host, port) == value
    assert minws.parse_host(value)[0] == host


def test_basic_credentials():
    assert minws.basic_credentials('Aladdin', 'open sesame') == 'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='
    assert minws.basic_credentials('u' * 90, '\xe9') == 'Basic ' + 'dXV1' * 30 + 'OsOp'
