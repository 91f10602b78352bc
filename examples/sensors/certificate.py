"""A key and a certificate of our own for https, made with the standard library alone.

    certificate, key = ensure(directory, ['192.168.1.20', '::1'], ['pi.local', 'localhost'])

The key is ECDSA P-256, the certificate a self-signed X.509 v3 one (RFC 5280) that names every address under which
browsers reach this machine. Browsers ask once before they trust it; fingerprint() is what to compare it with.

The arithmetic is not constant in time. That is right for what happens here, one key made and used once on one's own
machine, and for nothing else: the TLS library signs the handshakes.
"""
import base64
import calendar
import hashlib
import hmac
import ipaddress
import os
import re
import tempfile
import time

from examples import droid_sensor

DAY = 86400                   # seconds
PAST = DAY                    # a phone's clock may be behind this machine's
LIFETIME = 398 * DAY          # from the first to the last second; what browsers accept of anybody, Apple's system too
RENEWAL = 30 * DAY            # a certificate with less time left is remade


##############################################################################
# ECDSA on the curve P-256 (FIPS 186-4, D.1.2.3); points are (x, y, z) of Jacobian coordinates, z is 0 at infinity
##############################################################################

P = 2 ** 256 - 2 ** 224 + 2 ** 192 + 2 ** 96 - 1
N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551
G = (0x6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296,
     0x4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5, 1)


def double(point):
    x, y, z = point
    yy, zz = y * y % P, z * z % P
    s, m = 4 * x * yy % P, 3 * (x - zz) * (x + zz) % P
    x3 = (m * m - 2 * s) % P
    return x3, (m * (s - x3) - 8 * yy * yy) % P, 2 * y * z % P


def add(first, second):
    """Return the sum of two points that are not the same."""
    (x1, y1, z1), (x2, y2, z2) = first, second
    if z1 == 0:
        return second
    zz1, zz2 = z1 * z1 % P, z2 * z2 % P
    u1, s1 = x1 * zz2 % P, y1 * z2 * zz2 % P
    h, r = (x2 * zz1 - u1) % P, (y2 * z1 * zz1 - s1) % P
    hh = h * h % P
    hhh, v = h * hh % P, u1 * hh % P
    x3 = (r * r - hhh - 2 * v) % P
    return x3, (r * (v - x3) - s1 * hhh) % P, z1 * z2 * h % P


def base_times(factor):
    """Return the (x, y) of the base point times 1 to N - 1."""
    point = (1, 1, 0)
    for bit in format(factor, 'b'):
        point = double(point)
        if bit == '1':
            # No multiple on the way is the base point or its negative, so that the sum is the general one.
            point = add(point, G)
    x, y, z = point
    inverse = pow(z, P - 2, P)
    return x * inverse ** 2 % P, y * inverse ** 3 % P


def octets(number):
    return number.to_bytes(32, 'big')


def nonce(key, digest):
    """Return the secret number of one signature, which RFC 6979 3.2 makes of the key and what is signed."""
    def mac(*parts):
        return hmac.new(k, b''.join(parts), hashlib.sha256).digest()

    seed = octets(key) + octets(int.from_bytes(digest, 'big') % N)
    k, v = b'\0' * 32, b'\1' * 32
    for step in (b'\0', b'\1'):
        k = mac(v, step, seed)
        v = mac(v)
    while True:
        v = mac(v)
        number = int.from_bytes(v, 'big')
        if 0 < number < N:
            return number
        k = mac(v, b'\0')
        v = mac(v)


def sign(key, message):
    """Return the (r, s) of a message's SHA-256."""
    digest = hashlib.sha256(message).digest()
    k = nonce(key, digest)
    r = base_times(k)[0] % N
    return r, pow(k, N - 2, N) * (int.from_bytes(digest, 'big') + r * key) % N


##############################################################################
# DER (X.690): tag, length, content
##############################################################################

INTEGER, BIT_STRING, OCTET_STRING, OBJECT, UTF8_STRING = 0x02, 0x03, 0x04, 0x06, 0x0c
UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x17, 0x18, 0x30, 0x31
CONTEXT, CONTEXT_OF_PARTS = 0x80, 0xa0    # plus a number that the surrounding type gives


def der(tag, *parts):
    content = b''.join(parts)
    if len(content) < 128:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, 'big')
    return bytes([tag, 0x80 + len(length)]) + length + content


def integer(number):
    return der(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, 'big'))


def bit_string(content, unused_bits=0):
    return der(BIT_STRING, bytes([unused_bits]), content)


def oid(dotted):
    first, second, *others = map(int, dotted.split('.'))
    content = bytes([40 * first + second])
    for number in others:
        groups = [number & 0x7f]
        while number > 0x7f:
            number >>= 7
            groups.insert(0, 0x80 | number & 0x7f)
        content += bytes(groups)
    return der(OBJECT, content)


def instant(seconds):
    """Return a time, in the form that RFC 5280 4.1.2.5 asks for: two digits of the year until 2049."""
    moment = time.gmtime(seconds)
    if moment.tm_year < 2050:
        return der(UTC_TIME, time.strftime('%y%m%d%H%M%SZ', moment).encode())
    return der(GENERALIZED_TIME, time.strftime('%Y%m%d%H%M%SZ', moment).encode())


def seconds_of(tag, content):
    """Return the seconds since 1970 that instant() wrote."""
    form = '%y%m%d%H%M%SZ' if tag == UTC_TIME else '%Y%m%d%H%M%SZ'
    return calendar.timegm(time.strptime(content.decode('ascii'), form))


def children(content):
    """Return the (tag, content) of the elements of a content; IndexError or ValueError for what is no DER."""
    found, start = [], 0
    while start < len(content):
        tag, length = content[start], content[start + 1]
        start += 2
        if length >= 0x80:
            start, length = start + length - 0x80, int.from_bytes(content[start:start + length - 0x80], 'big')
        if start + length > len(content):
            raise ValueError('an element ends too early')
        found.append((tag, content[start:start + length]))
        start += length
    return found


##############################################################################
# The certificate
##############################################################################

EC_PUBLIC_KEY = der(SEQUENCE, oid('1.2.840.10045.2.1'), oid('1.2.840.10045.3.1.7'))
ECDSA_WITH_SHA256 = der(SEQUENCE, oid('1.2.840.10045.4.3.2'))
TRUE = b'\x01\x01\xff'


def extension(number, content, critical=False):
    return der(SEQUENCE, oid('2.5.29.%d' % number), TRUE if critical else b'', der(OCTET_STRING, content))


def alternative_names(addresses, names):
    """Return the subjectAltName extension, RFC 5280 4.2.1.6; the same for the same names in any order."""
    packed = {ipaddress.ip_address(address.split('%')[0]).packed for address in addresses}
    hosts = {name.encode('idna') for name in names}
    return extension(17, der(SEQUENCE, *[der(CONTEXT + 2, host) for host in sorted(hosts)],
                             *[der(CONTEXT + 7, address) for address in sorted(packed)]))


def public_point(key):
    return bit_string(b'\x04' + b''.join(map(octets, base_times(key))))


def private_key(key, point):
    """Return PKCS #8 (RFC 5208) with the key of RFC 5915 in it."""
    inner = der(SEQUENCE, integer(1), der(OCTET_STRING, octets(key)), der(CONTEXT_OF_PARTS + 1, point))
    return der(SEQUENCE, integer(0), EC_PUBLIC_KEY, der(OCTET_STRING, inner))


def certificate(key, point, subject_names, begin, end):
    """Return the certificate, signed by its own key."""
    serial = int.from_bytes(os.urandom(16), 'big') >> 1 | 1
    # A name of its own: browsers confuse certificates of one issuer.
    common_name = der(UTF8_STRING, b'minws %08x' % (serial >> 95))
    subject = der(SEQUENCE, der(SET, der(SEQUENCE, oid('2.5.4.3'), common_name)))
    key_identifier = hashlib.sha1(point[3:]).digest()
    extensions = (
        extension(19, der(SEQUENCE), critical=True),                          # basicConstraints: no CA
        extension(15, bit_string(b'\x80', unused_bits=7), critical=True),     # keyUsage: digitalSignature
        extension(37, der(SEQUENCE, oid('1.3.6.1.5.5.7.3.1'))),               # extendedKeyUsage: serverAuth
        extension(14, der(OCTET_STRING, key_identifier)),
        extension(35, der(SEQUENCE, der(CONTEXT, key_identifier))),
        subject_names)
    signed = der(SEQUENCE, der(CONTEXT_OF_PARTS, integer(2)), integer(serial), ECDSA_WITH_SHA256, subject,
                 der(SEQUENCE, instant(begin), instant(end)), subject, der(SEQUENCE, EC_PUBLIC_KEY, point),
                 der(CONTEXT_OF_PARTS + 3, der(SEQUENCE, *extensions)))
    signature = der(SEQUENCE, *map(integer, sign(key, signed)))
    return der(SEQUENCE, signed, ECDSA_WITH_SHA256, bit_string(signature))


##############################################################################
# Files
##############################################################################

def pem(kind, content):
    lines = re.findall('.{1,64}', base64.b64encode(content).decode())
    return '-----BEGIN %s-----\n%s\n-----END %s-----\n' % (kind, '\n'.join(lines), kind)


def read_pem(path):
    """Return the DER of the first block in a file; OSError, or ValueError if there is none."""
    with open(path, encoding='ascii') as file:
        block = re.search('-----BEGIN [A-Z ]+-----([^-]+)-----END', file.read())
    if block is None:
        raise ValueError('%s has no PEM block' % path)
    return base64.b64decode(block.group(1))


def write(path, text):
    """Put text into a file that only its owner may read, at once or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))    # its mode is 0600 from the beginning
    try:
        with open(descriptor, 'w', encoding='ascii') as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def is_good(certificate_path, key_path, subject_names, now):
    """Tell whether the files are there, belong together, name those hosts and are valid for a while."""
    try:
        found, key = read_pem(certificate_path), read_pem(key_path)
        (_, whole), = children(found)
        (_, signed), _, _ = children(whole)
        _, _, _, _, (_, validity), _, (_, public), _ = children(signed)
        begin, end = (seconds_of(*moment) for moment in children(validity))
        point = children(public)[1][1]
    except (OSError, ValueError, IndexError):
        return False
    return point in key and subject_names in signed and begin <= now < end - RENEWAL


def ensure(directory, addresses, names=()):
    """Return the paths of a certificate and its key for these IP addresses and host names.

    Those in the directory are kept while they name exactly these and have a month left; others are replaced. The
    directory is made if it is missing. OSError if nothing can be written there, ValueError for what is no address.
    """
    certificate_path, key_path = os.path.join(directory, 'certificate.pem'), os.path.join(directory, 'key.pem')
    subject_names, now = alternative_names(addresses, names), int(time.time())
    if not is_good(certificate_path, key_path, subject_names, now):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        key = int.from_bytes(os.urandom(40), 'big') % (N - 1) + 1
        point = public_point(key)
        # The key first: whoever comes between the two finds that they do not belong together.
        write(key_path, pem('PRIVATE KEY', private_key(key, point)))
        begin = now - PAST
        made = certificate(key, point, subject_names, begin, begin + LIFETIME - 1)
        write(certificate_path, pem('CERTIFICATE', made))
    return certificate_path, key_path


def fingerprint(certificate_path):
    """Return the SHA-256 of a certificate as browsers and openssl show it: AB:CD:…, 32 bytes."""
    return droid_sensor.fingerprint(read_pem(certificate_path))
