"""Tests of examples/sensors/certificate.py: RFC 6979's vectors, openssl's opinion, and TLS handshakes.

The program openssl reads what was made; its tests are skipped where it is missing.
"""
import contextlib
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time

import pytest

from examples.sensors import certificate
from examples.sensors.certificate import DAY, ensure, fingerprint

ADDRESSES = ['192.168.1.20', '127.0.0.1', '::1', 'fe80::1%wlan0', '2001:db8::20']
NAMES = ['localhost', 'pi.local', 'bücher.lan']

openssl = pytest.mark.skipif(shutil.which('openssl') is None, reason='openssl is not there: apt-get install openssl')


def run(*command):
    """Return what openssl prints; its failure is the test's."""
    done = subprocess.run(('openssl',) + command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=30)
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


@pytest.fixture
def paths(tmp_path):
    return ensure(str(tmp_path / 'made' / 'here'), ADDRESSES, NAMES)


##############################################################################
# ECDSA
##############################################################################

# RFC 6979 A.2.5
KEY = 0xc9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721
POINT = (0x60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6,
         0x7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299)


@pytest.mark.parametrize('message, r, s', [
    (b'sample', 0xefd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716,
     0xf7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8),
    (b'test', 0xf1abb023518351cd71d881567b1ea663ed3efcf6c5132b354f28d3b0b7d38367,
     0x019f4113742a2b14bd25926b49c649155f267e60d3814b4c0cc84250e46f0083),
])
def test_signatures_are_those_of_rfc_6979(message, r, s):
    assert certificate.sign(KEY, message) == (r, s)


def test_public_key_is_that_of_rfc_6979():
    assert certificate.base_times(KEY) == POINT


def test_multiples_of_the_base_point():
    """The factors at the ends, where points meet their own doubles and negatives."""
    x, y, _ = certificate.G
    assert certificate.base_times(1) == (x, y)
    assert certificate.base_times(certificate.N - 1) == (x, certificate.P - y)
    x2, y2 = certificate.base_times(2)
    assert certificate.base_times(certificate.N - 2) == (x2, certificate.P - y2)
    for factor in range(1, 20):
        x, y = certificate.base_times(factor)
        assert (y * y - x ** 3 + 3 * x - 0x5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b) \
            % certificate.P == 0


##############################################################################
# DER
##############################################################################

@pytest.mark.parametrize('made, expected', [
    (certificate.integer(0), '020100'), (certificate.integer(127), '02017f'), (certificate.integer(128), '02020080'),
    (certificate.integer(256), '02020100'), (certificate.oid('1.2.840.10045.4.3.2'), '06082a8648ce3d040302'),
    (certificate.instant(0), '170d3730303130313030303030305a'),
    (certificate.instant(2524608000), '180f32303530303130313030303030305a'),    # RFC 5280 4.1.2.5
    (certificate.der(4, b'x' * 127)[:2], '047f'), (certificate.der(4, b'x' * 128)[:3], '048180'),
    (certificate.der(4, b'x' * 256)[:4], '04820100'),
])
def test_der_is_that_of_x_690(made, expected):
    assert made.hex() == expected


@pytest.mark.parametrize('length', [0, 1, 127, 128, 255, 256, 70000])
def test_der_reads_what_it_writes(length):
    content = os.urandom(length)
    assert certificate.children(certificate.der(4, content) + certificate.der(2, b'\1')) == [(4, content), (2, b'\1')]


@pytest.mark.parametrize('seconds', [0, 1732140000, 2524607999, 2524608000, 4000000000])
def test_times_are_read_back(seconds):
    (element,) = certificate.children(certificate.instant(seconds))
    assert certificate.seconds_of(*element) == seconds


##############################################################################
# The certificate
##############################################################################

@openssl
@pytest.mark.parametrize('name', ['-verify_ip 192.168.1.20', '-verify_ip 2001:db8::20', '-verify_ip fe80::1',
                                  '-verify_hostname pi.local', '-verify_hostname xn--bcher-kva.lan'])
def test_openssl_verifies_it_strictly(paths, name):
    assert run('verify', '-x509_strict', '-purpose', 'sslserver', *name.split(), '-CAfile', paths[0],
               paths[0]).endswith(': OK\n')


@openssl
def test_openssl_refuses_another_address(paths):
    with pytest.raises(AssertionError, match='IP address mismatch'):
        run('verify', '-verify_ip', '192.168.1.21', '-CAfile', paths[0], paths[0])


@openssl
def test_certificate_says_what_browsers_ask_for(paths):
    text = run('x509', '-in', paths[0], '-noout', '-text')
    assert 'Version: 3 ' in text
    assert text.count('Signature Algorithm: ecdsa-with-SHA256') == 2
    assert 'NIST CURVE: P-256' in text
    assert re.search('Basic Constraints: critical\n +CA:FALSE\n', text)
    assert re.search('X509v3 Key Usage: critical\n +Digital Signature\n', text)
    assert re.search('Extended Key Usage: \n +TLS Web Server Authentication\n', text)
    names = re.search('Subject Alternative Name: \n +(.*)', text).group(1)
    assert sorted(names.split(', ')) == [
        'DNS:localhost', 'DNS:pi.local', 'DNS:xn--bcher-kva.lan', 'IP Address:0:0:0:0:0:0:0:1',
        'IP Address:127.0.0.1', 'IP Address:192.168.1.20', 'IP Address:2001:DB8:0:0:0:0:0:20',
        'IP Address:FE80:0:0:0:0:0:0:1']
    begin, end = (time.mktime(time.strptime(moment, '%b %d %H:%M:%S %Y GMT'))
                  for moment in re.findall('Not (?:Before|After) ?: (.*)', text))
    assert end - begin + 1 == 398 * DAY
    assert 0 < time.mktime(time.gmtime()) - begin < 2 * DAY


@openssl
def test_fingerprint_is_the_one_that_openssl_prints(paths):
    printed = run('x509', '-in', paths[0], '-noout', '-fingerprint', '-sha256')
    assert printed.strip().split('=')[1] == fingerprint(paths[0])


@openssl
def test_key_belongs_to_the_certificate(paths):
    assert 'valid' in run('pkey', '-in', paths[1], '-check', '-noout')
    assert run('pkey', '-in', paths[1], '-pubout') == run('x509', '-in', paths[0], '-noout', '-pubkey')


def test_serials_and_subjects_are_random(tmp_path):
    made = [certificate.read_pem(ensure(str(tmp_path / str(n)), ['127.0.0.1'])[0]) for n in range(4)]
    fields = [certificate.children(certificate.children(certificate.children(der)[0][1])[0][1]) for der in made]
    assert len({serial for _, (_, serial), *_ in fields}) == 4
    assert len({subject for *_, (_, subject), _, _ in fields}) == 4
    assert all(len(serial) <= 17 and serial[0] < 0x80 for _, (_, serial), *_ in fields)


##############################################################################
# Handshakes
##############################################################################

@contextlib.contextmanager
def tls_server(paths, connections=1):
    """Say hello over TLS to so many clients; the value is the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*paths)

    def serve():
        for _ in range(connections):
            raw, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as sock:
                sock.sendall(b'hello')
                sock.recv(1)

    with socket.create_server(('127.0.0.1', 0)) if hasattr(socket, 'create_server') else socket.socket() as listener:
        if not hasattr(socket, 'create_server'):    # Python 3.7
            listener.bind(('127.0.0.1', 0))
            listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)


def test_python_verifies_it_against_an_ip_address(paths):
    context = ssl.create_default_context(cafile=paths[0])
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with tls_server(paths) as port, socket.create_connection(('127.0.0.1', port), timeout=10) as raw:
        with context.wrap_socket(raw, server_hostname='127.0.0.1') as sock:
            assert sock.version() == ('TLSv1.3' if getattr(ssl, 'HAS_TLSv1_3', False) else 'TLSv1.2')
            assert sock.recv(5) == b'hello'


def test_python_refuses_another_address(paths):
    context = ssl.create_default_context(cafile=paths[0])
    with tls_server(paths) as port, socket.create_connection(('127.0.0.1', port), timeout=10) as raw:
        with pytest.raises(ssl.CertificateError):
            context.wrap_socket(raw, server_hostname='127.0.0.2')


def test_python_refuses_it_where_nobody_trusts_it(paths):
    with tls_server(paths) as port, socket.create_connection(('127.0.0.1', port), timeout=10) as raw:
        with pytest.raises(ssl.SSLError, match='CERTIFICATE_VERIFY_FAILED'):
            ssl.create_default_context().wrap_socket(raw, server_hostname='127.0.0.1')


@openssl
def test_openssl_shakes_hands(paths):
    with tls_server(paths) as port:
        said = run('s_client', '-connect', '127.0.0.1:%d' % port, '-CAfile', paths[0], '-verify_ip', '127.0.0.1',
                   '-verify_return_error', '-x509_strict', '-tls1_3')
    assert 'Verify return code: 0 (ok)' in said or 'Verification: OK' in said
    assert 'TLSv1.3' in said


##############################################################################
# Files
##############################################################################

def test_key_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        _, key = ensure(str(tmp_path / 'made'), ['127.0.0.1'])
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(str(tmp_path / 'made')).st_mode) == 0o700


def test_key_was_never_readable_by_others(tmp_path, monkeypatch):
    """The file is made with its mode; nothing narrows it afterwards."""
    opened = []
    real = os.open
    monkeypatch.setattr(os, 'open', lambda path, flags, mode=0o777, **more: opened.append((flags, mode)) or
                        real(path, flags, mode, **more))
    monkeypatch.setattr(os, 'chmod', None)
    ensure(str(tmp_path), ['127.0.0.1'])
    assert len(opened) >= 2
    assert all(flags & os.O_EXCL and mode == 0o600 for flags, mode in opened)


def test_files_are_kept_between_runs(tmp_path):
    first = fingerprint(ensure(str(tmp_path), ADDRESSES, NAMES)[0])
    assert fingerprint(ensure(str(tmp_path), ADDRESSES[::-1], NAMES[::-1])[0]) == first
    assert sorted(os.listdir(str(tmp_path))) == ['certificate.pem', 'key.pem']


@pytest.mark.parametrize('addresses, names', [
    (ADDRESSES[1:], NAMES), (ADDRESSES + ['192.168.1.21'], NAMES), (ADDRESSES, NAMES[1:])])
def test_files_are_remade_when_the_addresses_change(tmp_path, addresses, names):
    first = fingerprint(ensure(str(tmp_path), ADDRESSES, NAMES)[0])
    paths = ensure(str(tmp_path), addresses, names)
    assert fingerprint(paths[0]) != first
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*paths)


@pytest.mark.parametrize('later, remade', [(365 * DAY, False), (368 * DAY, True), (500 * DAY, True), (-3 * DAY, True)])
def test_files_are_remade_in_time(tmp_path, monkeypatch, later, remade):
    first = fingerprint(ensure(str(tmp_path), ['127.0.0.1'])[0])
    now = time.time()
    monkeypatch.setattr(certificate.time, 'time', lambda: now + later)
    assert (fingerprint(ensure(str(tmp_path), ['127.0.0.1'])[0]) != first) == remade


@pytest.mark.parametrize('damage', ['', 'no PEM', '-----BEGIN X-----\n????\n-----END X-----\n',
                                    '-----BEGIN X-----\nMAA=\n-----END X-----\n',
                                    '-----BEGIN X-----\nMIQ=\n-----END X-----\n', '\0\xff'])
@pytest.mark.parametrize('name', ['certificate.pem', 'key.pem'])
def test_damaged_files_are_remade(tmp_path, name, damage):
    ensure(str(tmp_path), ['127.0.0.1'])
    (tmp_path / name).write_text(damage, encoding='latin-1')
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*ensure(str(tmp_path), ['127.0.0.1']))


@pytest.mark.parametrize('cut', range(0, 700, 23))
def test_certificate_cut_anywhere_is_remade(tmp_path, cut):
    path, _ = ensure(str(tmp_path), ['127.0.0.1'])
    der = certificate.read_pem(path)[:cut]
    with open(path, 'w') as file:
        file.write(certificate.pem('CERTIFICATE', der) if cut else '')
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*ensure(str(tmp_path), ['127.0.0.1']))


def test_key_of_another_certificate_is_replaced(tmp_path):
    """As after a program that was killed between the two files."""
    paths = ensure(str(tmp_path / 'one'), ['127.0.0.1'])
    _, other = ensure(str(tmp_path / 'two'), ['127.0.0.1'])
    os.replace(other, paths[1])
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*ensure(str(tmp_path / 'one'), ['127.0.0.1']))


def test_nothing_is_left_behind_where_writing_fails(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(certificate.os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        ensure(str(tmp_path), ['127.0.0.1'])
    assert os.listdir(str(tmp_path)) == []


def test_what_is_no_address_is_named(tmp_path):
    with pytest.raises(ValueError, match="'pi.local'"):
        ensure(str(tmp_path), ['pi.local'])
