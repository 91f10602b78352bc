"""Tests of what pushes in examples/droid_sensor.py: addresses, causes in a sentence, trust, the spool, a session.

Each failure has a stand-in that fails in that way: sockets on 127.0.0.1, or a patched call where no socket does.
"""
import contextlib
import errno
import json
import os
import queue
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

import minws
from examples import droid_sensor
from examples.droid_sensor import (GLANCE, LEAP, SILENCE, JsonLines, Line, Outbox, Refused, Sensor, Session, Spool,
                                   Trust, diagnose, parse_address, sample_text)
from examples.sensors import certificate

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 10.0               # seconds for anything that should happen at once


def wait_until(true, what='the condition'):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, '%s did not come' % what
        threading.Event().wait(0.005)


##############################################################################
# Addresses
##############################################################################

@pytest.mark.parametrize('text, uri, password', [
    ('192.168.1.20', 'ws://192.168.1.20:9000/push', None),
    (' 192.168.1.20 ', 'ws://192.168.1.20:9000/push', None),
    ('192.168.1.20:8080', 'ws://192.168.1.20:8080/push', None),
    ('192.168.1.20/', 'ws://192.168.1.20:9000/push', None),
    ('192.168.1.20:9000/push', 'ws://192.168.1.20:9000/push', None),
    ('pi.local', 'ws://pi.local:9000/push', None),
    ('localhost:1234', 'ws://localhost:1234/push', None),
    ('::1', 'ws://[::1]:9000/push', None),
    ('[2001:db8::20]:81', 'ws://[2001:db8::20]:81/push', None),
    ('http://192.168.1.20:9000/', 'ws://192.168.1.20:9000/push', None),
    ('http://192.168.1.20:9000', 'ws://192.168.1.20:9000/push', None),
    ('HTTP://pi.local:9000/#top', 'ws://pi.local:9000/push', None),
    ('http://pi.local/', 'ws://pi.local:80/push', None),
    ('https://pi.local/', 'wss://pi.local:443/push', None),
    ('https://192.168.1.20:9000/', 'wss://192.168.1.20:9000/push', None),
    ('https://example.org/sensors/', 'wss://example.org:443/sensors/push', None),
    ('https://example.org/sensors/index.html', 'wss://example.org:443/sensors/push', None),
    ('http://192.168.1.20:9000/?password=a%20b%2Bc', 'ws://192.168.1.20:9000/push', 'a b+c'),
    ('http://192.168.1.20:9000/?x=1&password=s', 'ws://192.168.1.20:9000/push?x=1', 's'),
    ('192.168.1.20?password=s', 'ws://192.168.1.20:9000/push', 's'),
    ('ws://192.168.1.20:9000/push', 'ws://192.168.1.20:9000/push', None),
    ('ws://192.168.1.20:9000/other', 'ws://192.168.1.20:9000/other', None),
    ('ws://192.168.1.20:9000', 'ws://192.168.1.20:9000/push', None),
    ('wss://192.168.1.20/push?password=s', 'wss://192.168.1.20:443/push', 's'),
    ('http://me:secret@192.168.1.20:9000/', 'ws://me:secret@192.168.1.20:9000/push', None),
])
def test_addresses_are_taken_as_people_have_them(text, uri, password):
    address = parse_address(text)
    assert (address.uri, address.password) == (uri, password)
    scheme, host, port, _, _ = minws.parse_uri(uri)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize('text', ['', ' ', 'http://', 'ftp://192.168.1.20/', 'a b', 'pi:port', 'pi:70000', 'pi:0',
                                  ':9000', '[::1', 'http://[nothing]/', '1:2:3:4'])
def test_what_is_no_address_is_named(text):
    with pytest.raises(ValueError, match='is no address'):
        parse_address(text)


##############################################################################
# What went wrong
##############################################################################

class Contact:
    """The first try of a pusher at an address: what it tells a person, and after how long; there is no second one."""

    def __init__(self, text, trust=None):
        self.said = queue.Queue()
        self.tries = 0
        self.trust = trust or Trust()
        self.began = time.monotonic()
        line = Line(parse_address(text), self, self._say)
        threading.Thread(target=self._run, args=(line,), daemon=True).start()

    def context(self, address):
        self.tries += 1
        if self.tries > 1:
            raise Refused('that was all')
        return self.trust.context(address)

    def _say(self, text):
        self.said.put((text, time.monotonic() - self.began))

    def _run(self, line):
        try:
            for _ in line.connections():
                self._say('connected')
                return
        except Refused as error:
            self._say('ended: %s' % error)

    def sentence(self):
        """Return what it says first."""
        text, self.seconds = self.said.get(timeout=DEADLINE)
        assert len(re.findall(r'[.!?](?: |$)', text.partition(' (trying')[0])) <= 1 and '\n' not in text
        return text


def test_a_person_is_told_of_silence_within_three_seconds():
    """SILENCE, then at most: a look for the name, one for the port, and one at what listens there in two steps."""
    assert SILENCE + 4 * GLANCE <= 3


@contextlib.contextmanager
def answering(answer, connections=3):
    """Answer a few connections with bytes and close them; the value is the address."""
    def serve():
        for _ in range(connections):
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(DEADLINE)
                    sock.recv(4096)
                    sock.sendall(answer)

    with listening(5) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield '127.0.0.1:%d' % listener.getsockname()[1]


@contextlib.contextmanager
def listening(backlog):
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(backlog)
        yield listener


@contextlib.contextmanager
def black_hole():
    """Yield an address whose port takes no more connections, and says so to nobody."""
    with listening(0) as listener, contextlib.ExitStack() as stack:
        while True:
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.1)
            try:
                sock.connect(listener.getsockname())
            except socket.timeout:
                break
        yield '127.0.0.1:%d' % listener.getsockname()[1]


@contextlib.contextmanager
def pushing_server(handler=lambda ws: ws.recv(), **options):
    with minws.serve({'/push': handler}, '127.0.0.1', 0, **options).start() as server:
        yield '127.0.0.1:%d' % server.port


@pytest.fixture
def certified(tmp_path):
    """The path of a certificate for 127.0.0.1, and a server's SSLContext with it."""
    paths = certificate.ensure(str(tmp_path), ['127.0.0.1'])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    return paths[0], context


def test_closed_port_is_named():
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]
        contact = Contact('127.0.0.1:%d' % port)
        assert contact.sentence() == (
            'nothing listens at 127.0.0.1, port %d: start the server there, or give the port that it printed '
            '(trying again; Ctrl-C ends it)' % port)
        assert contact.seconds < 3


def test_unknown_host_is_named(monkeypatch):
    def unknown(*arguments, **options):
        raise socket.gaierror(socket.EAI_NONAME, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    contact = Contact('nowhere.lan')
    assert contact.sentence().startswith('no address is known for the name nowhere.lan: check its spelling')
    assert contact.seconds < 3


def test_name_server_that_is_silent_is_named(monkeypatch):
    over = threading.Event()

    def unknown(*arguments, **options):
        over.wait(DEADLINE)
        raise socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    contact = Contact('nowhere.lan')
    assert contact.sentence().startswith('no address is known for the name nowhere.lan')
    over.set()


def test_address_that_is_silent_is_named():
    with black_hole() as text:
        contact = Contact(text)
        port = text.split(':')[1]
        assert contact.sentence().startswith(
            '127.0.0.1 does not answer at port %s: is that computer awake, in the same network' % port)
        assert contact.seconds >= SILENCE


def test_server_that_says_nothing_is_named():
    with listening(9) as listener:
        port = listener.getsockname()[1]
        assert 'takes the connection at port %d and says nothing' % port in Contact('127.0.0.1:%d' % port).sentence()


def test_time_out_of_a_public_address_blames_no_home(monkeypatch):
    monkeypatch.setattr(droid_sensor, 'accepts', lambda found, seconds: False)
    for error in (socket.timeout('timed out'), TimeoutError(errno.ETIMEDOUT, 'Connection timed out')):
        assert 'Termux' in diagnose(parse_address('192.168.1.20'), error)[0]
        assert diagnose(parse_address('1.1.1.1'), error) == (
            '1.1.1.1 does not answer at port 9000: check the address, this network, and the firewall there', True)


@pytest.mark.parametrize('number', [errno.EPERM, errno.EACCES])
def test_android_17_is_named(monkeypatch, number):
    def forbidden(*arguments):
        raise PermissionError(number, os.strerror(number))

    monkeypatch.setattr(minws, 'connect_socket', forbidden)
    contact = Contact('192.168.1.20')
    text = contact.sentence()
    assert text.startswith('this app may not reach 192.168.1.20 (no permission): on Android 17 allow it')
    assert 'Termux' in text and 'Play Store' in text
    assert contact.seconds < 3


@pytest.mark.parametrize('number', [errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN])
def test_missing_network_is_named(number):
    text, again = diagnose(parse_address('192.168.1.20'), OSError(number, os.strerror(number)))
    assert text.startswith('there is no way to 192.168.1.20: switch Wi-Fi on') and again


@pytest.mark.parametrize('status, words, ends', [
    (400, 'as a web server without this socket does', True),
    (401, 'wants a password (401): add --password SECRET', True),
    (403, 'refuses this device (403, no entry ? for you): ask whoever started it', True),
    (404, 'has no socket for devices at /push (404)', True),
    (421, '(421): give its IP address, or start the server with --allow-host 127.0.0.1', True),
    (429, 'is busy (429', False), (503, 'is busy (503', False), (500, 'failed (500', False),
    (200, 'answers 200', True),
])
def test_refusal_by_http_is_named(status, words, ends):
    body = b'no entry \x1b for you\nsecond line'
    answer = b'HTTP/1.1 %d Nope\r\nContent-Length: %d\r\n\r\n%s' % (status, len(body), body)
    with answering(answer) as text:
        contact = Contact(text)
        sentence = contact.sentence()
    assert words in sentence
    assert sentence.startswith('ended: ') == ends
    assert contact.seconds < 3


def test_redirection_is_named():
    with answering(b'HTTP/1.1 301 Moved\r\nLocation: https://pi.lan/push\r\nContent-Length: 0\r\n\r\n') as text:
        assert Contact(text).sentence() == 'ended: 127.0.0.1 sends us to https://pi.lan/push: give that address'


def test_wrong_path_is_named_by_a_real_server():
    with pushing_server() as text:
        assert 'at /nowhere (404): give the address that the server printed, it ends in /push' in \
            Contact('ws://%s/nowhere' % text).sentence()


def test_what_speaks_no_http_is_named():
    with answering(b'SSH-2.0-OpenSSH_9.2\r\n') as text:
        assert 'is it the address that the server printed?' in Contact(text).sentence()


def test_server_with_tls_for_a_client_without_is_named(certified):
    with pushing_server(ssl=certified[1]) as text:
        contact = Contact('http://%s/' % text)
        assert contact.sentence() == ('ended: 127.0.0.1 speaks TLS at port %s: give the address with https:// or '
                                      'wss://' % text.split(':')[1])
        assert contact.seconds < 3


def test_web_server_that_wants_tls_is_named(monkeypatch):
    """Some answer a plain request at their TLS port with 400."""
    monkeypatch.setattr(droid_sensor, 'certificate_or_none', lambda address, seconds: b'a certificate')
    with answering(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n') as text:
        assert 'speaks TLS' in Contact(text).sentence()


def test_server_without_tls_for_a_client_with_it_is_named():
    with pushing_server() as text:
        contact = Contact('https://%s/' % text)
        assert contact.sentence() == ('ended: 127.0.0.1 speaks no TLS at port %s: give the address with http:// or '
                                      'ws://' % text.split(':')[1])
        assert contact.seconds < 3


def test_cause_is_said_once_for_as_long_as_it_stays(monkeypatch):
    monkeypatch.setattr(droid_sensor, 'FIRST_DELAY', 0.01)
    monkeypatch.setattr(droid_sensor, 'LONGEST_DELAY', 0.01)
    tries, said = [], []

    def refuse(*arguments):
        tries.append(True)
        if len(tries) == 5:
            raise PermissionError(errno.EPERM, 'Operation not permitted')
        if len(tries) == 9:
            raise Refused('that was all')
        raise ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused')

    monkeypatch.setattr(minws, 'connect_socket', refuse)
    with pytest.raises(Refused, match='that was all'):
        next(Line(parse_address('127.0.0.1'), Trust(), said.append).connections())
    assert [text.split(' ')[0] for text in said] == ['nothing', 'this', 'nothing']


def test_line_that_was_open_is_tried_again_whatever_comes(monkeypatch):
    """What ends a first try may be another network's login page later."""
    monkeypatch.setattr(droid_sensor, 'FIRST_DELAY', 0.01)
    said, path = [], ['/push']

    def answer(ws, request):
        return None if path[0] == '/push' else minws.Response(404)

    with pushing_server(process_request=answer) as text:
        line = Line(parse_address(text), Trust(), said.append)
        connections = line.connections()
        next(connections)
        path[0] = '/gone'
        threading.Timer(0.1, lambda: wait_until(lambda: said) or path.__setitem__(0, '/push')).start()
        assert next(connections) is not None
        assert '(404)' in said[0]
        connections.close()


@pytest.mark.parametrize('password, target, header', [
    ('s%2Bt', b'/push', b'Authorization: Bearer s+t\r\n'), ('gr%C3%BCn', b'/push?password=gr%C3%BCn', b''),
    ('a%20b', b'/push?password=a+b', b'')])
def test_password_goes_in_a_header_unless_it_cannot(password, target, header):
    with listening(1) as listener:
        Contact('http://127.0.0.1:%d/?password=%s' % (listener.getsockname()[1], password))
        sock, _ = listener.accept()
        with sock:
            head = sock.recv(4096)
    assert head.startswith(b'GET %s HTTP/1.1\r\n' % target)
    assert (b'Authorization' in head) == bool(header) and header in head


##############################################################################
# Trust
##############################################################################

def test_certificate_of_its_own_is_named_with_its_fingerprint(certified):
    with pushing_server(ssl=certified[1]) as text:
        contact = Contact('https://%s/' % text)
        said = contact.sentence()
    assert said == ('ended: the certificate of 127.0.0.1 is not one that this device trusts: if the server printed the '
                    'fingerprint %s, add --fingerprint and that' % certificate.fingerprint(certified[0]))
    assert contact.seconds < 3


def test_certificate_is_trusted_by_fingerprint_file_or_word(certified, tmp_path):
    path, context = certified
    for trust in (Trust(pinned=certificate.fingerprint(path)), Trust(file=path), Trust(anyone=True),
                  Trust(pinned='sha256:' + certificate.fingerprint(path).replace(':', '').lower())):
        with pushing_server(ssl=context) as text:
            assert Contact('https://%s/' % text, trust).sentence() == 'connected'


def test_other_certificate_than_the_pinned_one_is_refused(certified, tmp_path):
    other = certificate.fingerprint(certificate.ensure(str(tmp_path / 'other'), ['127.0.0.1'])[0])
    with pushing_server(ssl=certified[1]) as text:
        said = Contact('https://%s/' % text, Trust(pinned=other)).sentence()
    assert said.startswith('ended: 127.0.0.1 shows another certificate, %s: ' % certificate.fingerprint(certified[0]))


def test_pinned_certificate_may_be_for_another_name(tmp_path):
    paths = certificate.ensure(str(tmp_path), ['192.168.1.20'])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)
    with pushing_server(ssl=context) as text:
        assert Contact('https://%s/' % text, Trust(pinned=certificate.fingerprint(paths[0]))).sentence() == 'connected'
        assert Contact('https://%s/' % text, Trust(file=paths[0])).sentence().startswith('ended: the certificate of')


@pytest.mark.parametrize('text', ['', 'AB:CD', 'x' * 64, 'A' * 63, 'A' * 65])
def test_what_is_no_fingerprint_is_named(text):
    with pytest.raises(ValueError, match='64 hexadecimal digits'):
        Trust(pinned=text or ' ')


##############################################################################
# Spool
##############################################################################

def readings(count, start=1):
    return [sample_text(1000.0 + n, {'count': [n]}) for n in range(start, start + count)]


def held(spool):
    return [(number, json.loads(text)['s']['count']) for number, text in spool.after(0, 10 ** 6, 10 ** 9)]


def test_spool_numbers_readings_and_forgets_what_is_acknowledged():
    spool = Spool()
    assert [spool.append(text) for text in readings(5)] == [1, 2, 3, 4, 5]
    spool.acknowledge(2)
    assert held(spool) == [(3, 3), (4, 4), (5, 5)]
    assert (spool.first, spool.last) == (3, 5)
    assert spool.after(3, 10, 10 ** 6)[0][0] == 4
    assert len(spool.after(0, 2, 10 ** 6)) == 2
    assert len(spool.after(0, 10, 1)) == 1
    spool.acknowledge(5)
    assert (spool.first, spool.last) == (6, 5)


def test_spool_is_bounded_and_counts_what_that_costs():
    said = []
    texts = readings(100)
    spool = Spool(limit=len(''.join(texts[:10])), say=said.append)
    spool.wanted = True
    spool._say_loss = 0.0
    for text in texts:
        spool.append(text)
    kept = held(spool)
    assert [number for number, _ in kept] == list(range(kept[0][0], 101)) and 8 <= len(kept) <= 10
    assert spool.dropped == {'count': 100 - len(kept)} and spool.lost == 100 - len(kept)
    assert len(said) == 1 and re.search('older ones are lost, [12] so far', said[0])


def test_file_spool_survives_its_program(tmp_path):
    path = str(tmp_path / 'spool')
    first = Spool(path)
    for text in readings(5):
        first.append(text)
    first.acknowledge(2)
    first._file.close()     # as a kill does
    second = Spool(path)
    assert held(second) == [(3, 3), (4, 4), (5, 5)]
    assert (second.id, second.identity) == (first.id, first.identity)
    assert second.append(readings(1, 6)[0]) == 5 + LEAP + 1


def test_file_spool_torn_at_any_byte_loses_nothing_but_the_torn_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)    # hundreds of times
    path = str(tmp_path / 'spool')
    spool = Spool(path)
    for text in readings(4):
        spool.append(text)
    spool.acknowledge(1)
    spool.append(readings(1, 5)[0])
    spool._file.close()
    whole = open(path, 'rb').read()
    lines = whole.splitlines(keepends=True)
    for cut in range(len(whole) + 1):
        with open(path, 'wb') as file:
            file.write(whole[:cut])
        ends = [len(b''.join(lines[:n + 1])) for n in range(len(lines))]
        complete = sum(end - 1 <= cut for end in ends)
        values = [json.loads(line) for line in lines[:complete]]
        expected = [value['n'] for value in values if 'n' in value]
        if {'first': 2} in values:
            expected.remove(1)
        again = Spool(path)
        assert [number for number, _ in held(again)] == expected, cut
        again.close()


def test_file_spool_drops_what_is_beyond_its_bound_for_good(tmp_path):
    path, texts = str(tmp_path / 'spool'), readings(50)
    limit = len(''.join(texts[:10]))
    spool = Spool(path, limit, say=lambda text: None)
    for text in texts:
        spool.append(text)
    kept = held(spool)
    spool._file.close()
    again = Spool(path, limit, say=lambda text: None)
    assert held(again) == kept and again.lost == 0


def test_file_of_a_spool_is_written_anew_before_it_is_much_longer_than_needed(tmp_path):
    path = str(tmp_path / 'spool')
    spool = Spool(path)
    sizes = []
    for text in readings(5000):
        spool.acknowledge(spool.append(text) - 10)
        sizes.append(os.path.getsize(path))
    assert max(sizes) < 2 * droid_sensor.SLACK
    spool._file.close()
    assert [value for _, value in held(Spool(path))] == list(range(4991, 5001))


def test_file_of_a_spool_is_its_owners(tmp_path):
    Spool(str(tmp_path / 'spool')).close()
    assert os.stat(str(tmp_path / 'spool')).st_mode & 0o77 == 0


def test_full_disk_leaves_the_spool_in_memory_until_there_is_room(tmp_path, monkeypatch):
    said, path = [], str(tmp_path / 'spool')
    spool = Spool(path, say=said.append)
    texts = readings(9)
    spool.append(texts[0])
    real = droid_sensor.write_all

    def full(file, data):
        real(file, data[:7])
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(droid_sensor, 'write_all', full)
    for text in texts[1:5]:
        spool.append(text)
    assert len(said) == 1 and 'No space left on device' in said[0]
    assert [value for _, value in held(spool)] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(droid_sensor, 'write_all', real)
    spool._failed -= droid_sensor.RETRY + 1
    spool.append(texts[5])
    spool._file.close()
    assert [value for _, value in held(Spool(path))] == [1, 2, 3, 4, 5, 6]


def test_second_program_with_the_same_spool_is_refused(tmp_path):
    pytest.importorskip('fcntl')
    spool = Spool(str(tmp_path / 'spool'))
    with pytest.raises(OSError, match='another program writes into it'):
        Spool(str(tmp_path / 'spool'))
    spool.close()
    Spool(str(tmp_path / 'spool')).close()


def test_file_of_somebody_else_is_left_alone(tmp_path):
    picture = tmp_path / 'holiday.jpg'
    picture.write_bytes(b'\xff\xd8\xff no newline here')
    with pytest.raises(OSError, match='not such a file'):
        JsonLines(str(picture))
    assert picture.read_bytes() == b'\xff\xd8\xff no newline here'


##############################################################################
# A session
##############################################################################

class Peer:
    """The server's end of a session: what it hears, in order, and what it answers."""

    def __init__(self, spool=None):
        client, self.ws = minws.pair()
        self.outbox = Outbox(spool or Spool())
        self.session = Session(client, self.outbox, self._describe)
        self.ended = queue.Queue()
        self._heard = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    @staticmethod
    def _describe(sensors, **more):
        return droid_sensor.hello_message('pixel', 'test', sensors, 10, **more)

    def _run(self):
        try:
            self.session.run()
        except minws.ConnectionClosed as closed:
            self.ended.put(closed)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self.ws.close()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def hear(self, *members):
        """Return the next object that has one of these members."""
        deadline = time.monotonic() + DEADLINE
        while True:
            while not self._heard:
                value = json.loads(self.ws.recv(timeout=max(0.001, deadline - time.monotonic())))
                self._heard += value if isinstance(value, list) else [value]
            value = self._heard.pop(0)
            if any(member in value for member in members):
                return value

    def say(self, **value):
        self.ws.send(json.dumps(value))

    def take(self, *values):
        """Let the device take a reading for each value."""
        for value in values:
            self.outbox.reading(1000.0 + value, {'count': [value]})


def test_hello_comes_first_and_asks_for_acknowledgements():
    with Peer() as peer:
        hello = json.loads(peer.ws.recv(DEADLINE))['hello']
        assert (hello['device'], hello['ack'], hello['first']) == ('pixel', True, 1)
        assert hello['spool'] == peer.outbox.spool.id and abs(hello['t'] - time.time()) < 60


def test_hello_comes_again_when_sensors_appear():
    with Peer() as peer:
        assert peer.hear('hello')['hello']['sensors'] == {}
        peer.outbox.sensors({'count': Sensor('1', ('x',))})
        peer.take(1)
        assert peer.hear('hello')['hello']['sensors'] == {'count': {'unit': '1', 'axes': ['x']}}


def test_server_that_keeps_nothing_gets_newest_values_without_numbers():
    with Peer() as peer:
        peer.hear('hello')
        peer.take(1)
        assert peer.hear('s') == {'t': 1001.0, 's': {'count': 1}}


def test_server_that_keeps_readings_gets_them_numbered_and_in_order():
    with Peer() as peer:
        peer.hear('hello')
        peer.say(ack=0)
        wait_until(lambda: peer.session.acknowledged == 0)
        for value in range(1, 50):
            peer.take(value)
        heard = [peer.hear('s') for _ in range(49)]
        assert [(value['n'], value['s']['count']) for value in heard if 'n' in value] == [(n, n) for n in range(1, 50)]
        assert not any('late' in value for value in heard)
        peer.say(ack=49)
        wait_until(lambda: peer.outbox.spool.first == 50, 'the spool to be empty')


def test_newest_values_go_ahead_of_older_readings():
    peer = Peer()
    peer.take(*range(1, 101))
    with peer:
        peer.hear('hello')
        assert peer.hear('s') == {'t': 1100.0, 's': {'count': 100}}
        peer.say(ack=0)
        heard = [peer.hear('n') for _ in range(100)]
        assert [value['s']['count'] for value in heard] == list(range(1, 101))
        assert all(value['late'] is True for value in heard)
        peer.take(101)
        assert peer.hear('s') == {'n': 101, 't': 1101.0, 's': {'count': 101}}


def test_newest_values_pass_while_the_window_is_full():
    peer = Peer()
    peer.take(*range(1, 3001))
    with peer:
        peer.hear('hello')
        peer.say(ack=0)
        assert peer.hear('s')['s']['count'] == 3000
        window = [peer.hear('n')['n'] for _ in range(droid_sensor.WINDOW[1])]
        peer.take(3001)
        value = peer.hear('s')
        while 'n' in value:     # what was on its way in the last batch
            window.append(value['n'])
            value = peer.hear('s')
        assert value == {'t': 4001.0, 's': {'count': 3001}}
        assert len(window) <= droid_sensor.WINDOW[1] + droid_sensor.BATCH[1]
        number = 0
        while number < 3001:
            number = window.pop(0) if window else peer.hear('n')['n']
            if number % 100 == 0:
                peer.say(ack=number)
        peer.say(ack=3001)
        wait_until(lambda: peer.outbox.spool.first == 3002)


def test_only_what_the_server_lacks_is_sent_when_it_says_so():
    peer = Peer()
    peer.take(*range(1, 11))
    with peer:
        peer.hear('hello')
        peer.say(ack=7)
        assert [peer.hear('n')['n'] for _ in range(3)] == [8, 9, 10]
        assert peer.outbox.spool.first == 8


def test_what_is_not_acknowledged_is_sent_again(monkeypatch):
    monkeypatch.setattr(droid_sensor, 'TURN', 0.05)
    monkeypatch.setattr(droid_sensor, 'ANSWER', 0.3)
    with Peer() as peer:
        peer.hear('hello')
        peer.say(ack=0)
        wait_until(lambda: peer.session.acknowledged == 0)
        peer.take(1, 2, 3)
        assert [peer.hear('n')['n'] for _ in range(3)] == [1, 2, 3]
        peer.say(ack=1)
        again = [peer.hear('n') for _ in range(2)]
        assert [value['n'] for value in again] == [2, 3]
        assert all(value['late'] for value in again)


def test_what_the_bound_cost_is_said_and_the_numbers_go_on(monkeypatch):
    monkeypatch.setattr(droid_sensor, 'TURN', 0.05)
    monkeypatch.setattr(droid_sensor, 'REPORT_PERIOD', 0.2)
    peer = Peer(Spool(limit=len(''.join(readings(10))), say=lambda text: None))
    peer.take(*range(1, 21))
    first = peer.outbox.spool.first
    with peer:
        assert peer.hear('hello')['hello']['first'] == first > 1
        peer.say(ack=0)     # a server that overlooks it
        assert peer.hear('hello')['hello']['first'] == first
        peer.say(ack=first - 1)
        assert peer.hear('n')['n'] == first
        assert peer.hear('dropped') == {'dropped': {'sensors': {'count': first - 1}}}


@pytest.fixture
def reopened(tmp_path):
    """A spool with the readings 1 to 3, whose file was opened again."""
    spool = Spool(str(tmp_path / 'spool'))
    for text in readings(3):
        spool.append(text)
    spool.close()
    return Spool(str(tmp_path / 'spool'))


def test_numbers_that_were_left_out_wait_for_those_before_them(reopened, monkeypatch):
    """A server that has not taken a reading must not hear that it never comes: it gets that again first."""
    monkeypatch.setattr(droid_sensor, 'TURN', 0.05)
    monkeypatch.setattr(droid_sensor, 'ANSWER', 0.3)
    peer = Peer(reopened)
    peer.take(4)
    with peer:
        peer.hear('hello')
        peer.say(ack=0)
        assert [peer.hear('n')['n'] for _ in range(3)] == [1, 2, 3]
        peer.say(ack=2)
        assert peer.hear('hello', 'n').get('n') == 3
        peer.say(ack=3)
        value = peer.hear('hello', 'n')
        while value.get('n') == 3:      # it may have been on its way once more
            value = peer.hear('hello', 'n')
        assert value['hello']['first'] == 4 + LEAP
        assert peer.hear('n')['n'] == 4 + LEAP


def test_session_rests_when_everything_is_acknowledged(reopened, monkeypatch):
    """Numbers that were left out are nothing to wait for."""
    turns = []
    real = Session.turn
    monkeypatch.setattr(Session, 'turn', lambda session, timeout: turns.append(True) or real(session, timeout))
    with Peer(reopened) as peer:
        peer.hear('hello')
        peer.say(ack=3)
        wait_until(lambda: reopened.newest == 0)
        before = len(turns)
        threading.Event().wait(0.3)
        assert len(turns) < before + 10
        assert not peer.session._is_awaited()


def test_numbers_nobody_gave_are_not_acknowledged():
    with Peer() as peer:
        peer.hear('hello')
        for nonsense in (5, -1, 'x', None, [1], 0.5):
            peer.say(ack=nonsense)
        peer.say(ack=0)
        wait_until(lambda: peer.session.acknowledged == 0)
        peer.take(1)
        assert peer.hear('n')['n'] == 1


def test_clocks_are_compared():
    with Peer() as peer:
        began = peer.hear('time')['time']
        assert abs(began - time.time() * 1000) < 60000
        peer.say(time=[began, 5.0])
        answer = peer.hear('time')['time']
        assert answer[:2] == [began, 5.0] and began <= answer[2] <= time.time() * 1000


def test_what_a_slow_connection_cost_is_counted(monkeypatch):
    """Of a hundred readings, those that came and those that are said to be dropped are all."""
    monkeypatch.setattr(droid_sensor, 'TURN', 0.05)
    monkeypatch.setattr(droid_sensor, 'REPORT_PERIOD', 0.2)
    peer = Peer()
    peer.take(*range(1, 101))
    with peer:
        assert peer.hear('s')['s']['count'] == 100
        assert peer.hear('dropped') == {'dropped': {'sensors': {'count': 99}}}


def test_source_in_trouble_is_told():
    with Peer() as peer:
        peer.outbox.trouble('termux: no reading for 5 seconds')
        assert peer.hear('error') == {'error': {'text': 'termux: no reading for 5 seconds'}}


def test_memory_is_freed_where_nobody_keeps_readings(monkeypatch):
    monkeypatch.setattr(droid_sensor, 'TURN', 0.05)
    monkeypatch.setattr(droid_sensor, 'ANSWER', 0.1)
    monkeypatch.setattr(droid_sensor, 'REPORT_PERIOD', 0.05)
    with Peer() as peer:
        peer.take(*range(1, 101))
        wait_until(lambda: peer.outbox.spool.first == 101)


def test_refusal_by_the_server_ends_a_session_with_its_reason():
    with Peer() as peer:
        peer.hear('hello')
        peer.ws.close(1008, 'there are 32 devices already')
        closed = peer.ended.get(timeout=DEADLINE)
        assert (closed.code, closed.reason) == (1008, 'there are 32 devices already')


def test_leaving_waits_for_acknowledgements_and_says_goodbye():
    with Peer() as peer:
        peer.hear('hello')
        peer.say(ack=0)
        wait_until(lambda: peer.session.acknowledged == 0)
        peer.take(1)
        assert peer.hear('n')['n'] == 1
        leaving = threading.Thread(target=peer.session.leave, args=('done',), daemon=True)
        leaving.start()
        assert leaving.is_alive()
        peer.say(ack=1)
        assert peer.hear('bye') == {'bye': {'text': 'done'}}
        with pytest.raises(minws.ConnectionClosed):
            peer.ws.recv(DEADLINE)
        leaving.join(DEADLINE)
        assert peer.ws.close_code == 1000


##############################################################################
# The program
##############################################################################

class Program:
    """droid_sensor.py in a process; its lines on both outputs are awaited."""

    def __init__(self, *arguments, cwd=ROOT, command=('-m', 'examples.droid_sensor')):
        self.process = subprocess.Popen((sys.executable,) + command + arguments, cwd=str(cwd), stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, universal_newlines=True)
        self.lines = queue.Queue()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.rstrip('\n'))
        self.lines.put(None)

    def expect(self, pattern):
        """Return the next line that matches."""
        deadline = time.monotonic() + DEADLINE
        while True:
            line = self.lines.get(timeout=max(0.0, deadline - time.monotonic()))
            assert line is not None, 'the program ended'
            if re.search(pattern, line):
                return line

    def end(self, number=signal.SIGINT):
        """Return the exit status after a signal, and the lines that were left."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self):
        status = self.process.wait(DEADLINE)
        self.thread.join(DEADLINE)
        return status, list(iter(self.lines.get, None))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.thread.join(DEADLINE)
        self.process.stdout.close()


@contextlib.contextmanager
def hearing(port=0):
    """Serve /push; the value is (port, queue of what devices say)."""
    heard = queue.Queue()

    def listen(ws):
        for message in ws:
            value = json.loads(message)
            for one in value if isinstance(value, list) else [value]:
                heard.put(one)

    with minws.serve({'/push': listen}, '127.0.0.1', port).start() as server:
        yield server.port, heard


def next_with(heard, member):
    while True:
        value = heard.get(timeout=DEADLINE)
        if member in value:
            return value


def test_program_needs_two_files_and_comes_back_when_the_server_does(tmp_path):
    for file in ('minws.py', 'examples/droid_sensor.py'):
        shutil.copy(os.path.join(ROOT, file), str(tmp_path))
    with contextlib.ExitStack() as first:
        port, heard = first.enter_context(hearing())
        with Program('127.0.0.1:%d' % port, '--source', 'simulated', '--rate', '20', '--name', 'pixel', cwd=tmp_path,
                     command=('droid_sensor.py',)) as program:
            program.expect('^source: simulated')
            program.expect('^connected to ws://127.0.0.1:%d/push$' % port)
            hello = next_with(heard, 'hello')['hello']
            assert hello['device'] == 'pixel' and hello['simulated']
            assert len(next_with(heard, 's')['s']['accel']) == 3
            first.close()
            program.expect('^connection lost')
            program.expect('^nothing listens at 127.0.0.1')
            with hearing(port) as (_, again):
                program.expect('^connected')
                assert next_with(again, 'hello')['hello']['id'] == hello['id']
                assert next_with(again, 's')['t'] == pytest.approx(time.time(), abs=5)
                assert program.end()[0] == 0
                assert next_with(again, 'bye') == {'bye': {'text': 'it was stopped there'}}


def test_program_ends_in_order_when_it_is_terminated():
    with hearing() as (port, heard):
        with Program('127.0.0.1:%d' % port, '--source', 'simulated') as program:
            next_with(heard, 's')
            status, rest = program.end(signal.SIGTERM)
            assert status == 0 and not any('Traceback' in line for line in rest)
            next_with(heard, 'bye')


def refuse(ws):
    ws.recv()
    ws.close(1008, 'there are 32 devices already; remove one')


def test_program_runs_in_any_thread(capsys):
    """As in the console of an app."""
    statuses = queue.Queue()
    with pushing_server(refuse) as text:
        threading.Thread(target=lambda: statuses.put(droid_sensor.main([text, '--source', 'simulated'])),
                         daemon=True).start()
        assert statuses.get(timeout=DEADLINE) == 1
    assert capsys.readouterr().err == '127.0.0.1 refuses this device: there are 32 devices already; remove one\n'


def test_program_ends_with_the_reason_of_a_refusal():
    with pushing_server(refuse) as text, Program(text, '--source', 'simulated') as program:
        status, lines = program.wait()
    assert status == 1
    assert lines[-1] == '127.0.0.1 refuses this device: there are 32 devices already; remove one'


@pytest.mark.parametrize('arguments, words', [
    (['ftp://pi/'], 'is no address'),
    (['pi', '--fingerprint', 'AB'], '64 hexadecimal digits'),
    (['pi', '--insecure'], 'https://'),
    (['https://pi/', '--cert', '/nowhere.pem'], 'No such file'),
    (['pi', '--spool-size', '0'], 'between 0 and 1000'),
])
def test_program_explains_bad_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as ending:
        droid_sensor.main(arguments)
    assert ending.value.code == 2
    assert words in capsys.readouterr().err


def test_program_names_a_spool_that_cannot_be(tmp_path, capsys):
    assert droid_sensor.main(['pi', '--spool', str(tmp_path / 'no' / 'where')]) == 1
    assert capsys.readouterr().err == 'the spool %s cannot be used: No such file or directory\n' % (
        tmp_path / 'no' / 'where')
