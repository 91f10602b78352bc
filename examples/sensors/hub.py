r"""The wire between the server, its pages and the devices that push; and what the server does between them.

One port. Paths: `GET /` the page · `GET /ws` (WebSocket) a page · `GET /push` (WebSocket) a device · `POST /push` a
device without a socket · `GET /events` a page without a socket (server-sent events) · `GET /minws.py`,
`/droid_sensor.py`, `/start` the files for a phone, and the script that fetches and runs them · `POST /login` the
password form.

Everything is JSON in text messages. Times are seconds since 1970 UTC (float), offsets milliseconds. A reader ignores
members and whole messages that it does not know; it never fails on them. All names and texts are plain text, never
markup; names are at most 60 characters, texts at most 300, of any script, without control characters and
bidirectional overrides.

1. Server → page (socket and events alike)
------------------------------------------

A message is one object, or an array of objects to be handled in order. Each object has one of these members:

    {"info": {"version": 2, "minws": "1.0.0", "now": 1763740000.123, "started": 1763730000.0, "history": 300,
              "title": "laptop", "addresses": ["http://192.168.1.5:9000/", …, "http://localhost:9000/"],
              "push": "ws://192.168.1.5:9000/push",
              "start": {"termux": "pkg install …", "qpython": "exec(…)"},       lines to paste on a phone
              "qr": {"text": "http://192.168.1.5:9000/", "rows": ["1111111010…", …]},   1 is dark; no quiet zone
              "protect": "none" | "push" | "page" | "both", "secure": false,     secure: served by https
              "may": {"push": true, "remove": true, "password": true},   what this page may do: push, see 5;
                                                             remove: it sits at the server (loopback)
              "limits": {"devices": 32, "sensors": 64, "axes": 16, "name": 60, "text": 300, "rate": 60}}}

First message of every connection. `addresses` has what a phone can open first; `qr.text` has the password in it when
this page may know it. `now` is the server's clock when the message was made; see `time` for a better measure.

    {"hello": {"device": "pixel", "id": "9f2c51d07a3e", "source": "termux", "rate": 100, "simulated": false,
               "repeat": 2.0, "own": false, "offset": -12.5, "state": "live", "since": 1763740000.1,
               "sensors": {"accel": {"unit": "m/s²", "axes": ["x", "y", "z"]}, "light": {"unit": "lx", "axes": []}}}}

A device, new or changed (also: came back). `device` is its name, unique at each moment, and what all other messages
call it. `id` is public, stable as long as the device or its phone keeps its own (secret) id, made from that: settings
of the page (order, hidden) belong to it. `rate` is what the source wants to give, Hz, 0 if nobody knows. `repeat`: it
gives a value only when that changes, and otherwise after so many seconds; 0 if it gives every value. `own`: it is read
by the server's own machine. `sensors` is complete: a sensor that is missing is gone; a sensor can appear in a reading
before it is in a hello (unit and axes unknown then). `axes` [] is a single number.

`offset` is the device's clock minus the server's, ms; **readings are sent to pages on the server's clock already**,
so that many devices stand on one axis; the device's own time of a reading is t + offset / 1000. How it is measured:
by the exchange `time` (section 3) if the device takes part: the one of the last 16 with the shortest round trip
counts, and half of that is its uncertainty; else by the smallest (arrival − t) of the last few hundred messages (at
first by `t` of the hello), uncertainty 100 ms. An offset within its uncertainty is taken as 0, and one that moved
less than its uncertainty is kept, so a good clock's times are not touched. `offset` null: not measured yet.

`state`: "live", "silent" (connected, no reading for 3 s and for three of its intervals), "lost" (connection broke,
may come back), "left" (said goodbye). `since`: when that state began. Changes:

    {"state": {"device": "pixel", "state": "lost", "since": 1763740003.2, "offset": -12.5}}
    {"gone": {"device": "pixel"}}       forgotten (5 minutes after it left or was lost), removed, or displaced

    {"d": "pixel", "t": 1763740000.123, "s": {"accel": [0.1, 0.2, 9.8], "light": 310.0}}

A reading: t on the server's clock, ≥ 0; a sensor's value is one number, or an array of 1 to 16. Numbers are finite, 0
or 1e-30 ≤ |v| ≤ 1e30, not rounded. Readings of all devices are collected and leave as one array at most 60 times a
second. t of one sensor usually rises; it can go back by a little when an offset is measured anew.

    {"dropped": {"device": "pixel", "where": "page" | "server" | "device", "sensors": {"accel": 17, "light": 17}}}
    {"dropped": {"device": "pixel", "where": "server", "messages": 120}}     refused unread: sensors not known

Readings that will never come, additional to those told before: "page": this page was slower than the stream (the
newest of each sensor comes, the others are counted here); "server": a limit refused them; "device": the device itself
says that it could not send them. For each sensor, readings got live + dropped at "page" = readings the server had
since `ready`.

    {"history": {"thin": 1, "readings": [{"d": …, "t": …, "s": …}, …]}}

Older readings, after the hellos and before `ready`, in any number of such pieces; oldest first for each device
(pieces of several devices follow one another). `thin` n: about every n-th reading is left (so a hole is a hole from
3·n intervals on). Not to be counted as rate, freshness or arrival. What of it has not arrived after 60 s is left out.
Then, once for a connection:

    {"ready": {"readings": 5211, "counts": {"pixel": {"accel": 30012, …}, …}}}

From here on it is live. Nothing is lost or doubled between history and live. `counts`: readings of each sensor the
server has had so far. What arrives before `ready` as a plain reading is the newest value of each sensor, sent early
so that there is something to see; the same reading comes again in the history (same d and t: take it once).

    {"error": {"device": "pixel", "text": "termux: no reading for 5 seconds"}}
    {"error": {"device": "pixel", "sensor": "accel", "text": "\"NaN\" is no number", "count": 3}}

What is wrong with a source, or with the values of one sensor (count: how many bad samples so far; told at most once a
second). Over with the next reading of that device, or sensor; or `text` null. A bad value costs one sample of one
sensor. Errors that stand are repeated to who joins.

    {"notice": {"key": "devices", "device": "pixel" or absent, "text": "there are 32 devices already; …"}}

A limit was reached, or another thing to say to a person, in a whole sentence. One for each key and device: a later
one replaces it, `text` null takes it back.

    {"marker": {"id": 7, "t": 1763740012.5, "text": "second run", "by": "192.168.1.7"}}   the last 100 for who joins
    {"time": [1763740000000.1, 1763740000004.2]}             answer to a page's time: [theirs, server's], ms
    {"refused": {"command": "remove", "text": "only …"}}     answer to a command, to this page alone
    {"stopping": {"text": "Ctrl-C was pressed"}}             last message, then close 1001

Close codes: 1001 the server ends · 1008 with a sentence: the password is missing, too many connections, too many
messages; do not come back before a person acts (if info.protect covers the page: load `/` again, which asks for the
password) · anything else: come back, after 0.5 s growing to 10 s, with jitter.

2. Page → server (socket; over HTTP as POST /push, see 4)
---------------------------------------------------------

    {"time": 1763740000000.1}                                own clock in ms; answered at once
    {"marker": {"text": "second run"}}                       at most one a second; t is the server's moment of arrival
    {"remove": {"device": "pixel"}}                          by whoever sits at the server (info.may.remove) …
    {"remove": {"device": "pixel", "id": "SECRET"}}          … or by its owner: the id that the device pushed with
    {"rate": …}                                              reserved: what this page wants to see of each device, Hz

Not understood, or not allowed: answered by `refused`. More than 20 a second end the connection (1008).

3. Device → server (WebSocket /push)
------------------------------------

One object, or an array of objects, up to 256 KiB:

    {"hello": {"device": "pixel", "id": "SECRET", "source": "termux", "rate": 100, "simulated": false,
               "t": 1763740000.1, "sensors": {"accel": {"unit": "m/s²", "axes": ["x", "y", "z"]}}}}
    {"t": 1763740000.123, "s": {"accel": [0.1, 0.2, 9.8], "light": 310}, "n": 12}
    {"error": {"text": "what is wrong with its source", "sensor": "accel" or absent}}
    {"dropped": {"sensors": {"accel": 3}}}                   readings that it could not send
    {"time": 1763740000000.1}                                own clock, ms; see below
    {"bye": {"text": "why, or absent"}}                      it leaves on purpose; close 1000 or 1001 means the same

`hello` comes first and may be repeated (other sensors, rate, source; never another name). Only "device" is wanted;
`id` is random, kept for the process or the phone, told to nobody: who comes back with it is the same device. `t` in
the hello: its clock at that moment. `d` in a reading is ignored. `n` numbers readings from 1 for each device without
holes; reserved: the server will answer {"ack": n} when all up to n are recorded ("exactly once"), to devices whose
hello has "ack": true.

Exchange of clocks, begun by the device (a device that never sends `time` is never sent anything and need not read):
device {"time": a} → server {"time": [a, b]} → device {"time": [a, b, c]} at once; a, c by its clock, b by the
server's, ms. Every 10 to 60 s.

Names longer than 60 are cut (…and six hex digits that keep two of them apart), control characters removed; axes
beyond 16 and sensors beyond 64 are left out with a notice. Bad values: see `error`. What ends the connection, always
1008 with a sentence (1007 if it is no JSON in text): no hello first, no object, the password, too many devices or
connections of one address, a flood (more than four times the limit). Limits for each address: 4000 messages, 2 MiB a
second; above, readings are left out and counted (`dropped` at "server", `notice`).

4. Without a socket
-------------------

`POST /push`: body as in section 3, an array whose first object is the `hello` with its `id`; as many as one likes up
to 10 a second. Answer 200 {"device": "pixel", "taken": 12, "time": server's clock in ms}, or 400, 401, 403, 413, 429
with {"refused": {"text": sentence}}. A page's commands (section 2) go the same way, without a hello. A device that
posts is lost after 10 s without a POST. The header Origin must be absent or ours.

`GET /events`: server-sent events, each `data:` one message of section 1, each with an `id:`. A response may end at
any time, and does so at present after what is new: EventSource comes back by itself after the `retry:` it was told
(200 ms), with Last-Event-ID, and goes on where it was. So `onerror` with readyState CONNECTING is normal; it is lost
when no event came for 5 s (an event comes at least every 2 s, `{"time": [null, ms]}` if nothing else). `info`,
hellos, history (1 MiB at most) and ready come when there is no Last-Event-ID, or one too old (then told by a new
`info`: begin anew).

5. Password (`--password`, `--protect push|page|both`, default both)
--------------------------------------------------------------------

`/?password=SECRET` (also in the QR code) answers 303 with the cookie `minws=…; HttpOnly; SameSite=Strict; Path=/`. A
page without it gets 401 and a form. Devices: `wss://host/push?password=SECRET`, or the header `Authorization: Bearer
SECRET`, or the cookie. A socket without it is accepted and closed with 1008 "a password is needed …", as browsers do
not show a status. After five wrong tries an address waits 1 s, doubling to 60 s (429, or 1008 "too many wrong
passwords …"); nobody else does, and a good cookie never.
"""
import binascii
import collections
import hashlib
import hmac
import itertools
import json
import math
import os
import socket
import sys
import threading
import time

import minws
from examples.droid_sensor import Sensor
from examples.sensors import lines
from examples.sensors.recording import is_numbered
from examples.sensors.sensorserver import Station

VERSION = 2                   # of the protocol

MAX_MESSAGE = 1 << 18         # bytes at once; a second of ten sensors at 100 Hz, posted together, has half of it
MAX_DEVICES = 32              # more nobody looks at, and each costs every browser
MAX_SENSORS = 64              # of one device; more than phones list
MAX_AXES = 16                 # Android's longest: an uncalibrated pose
MAX_KEYS = 16                 # of one device; its sensors come all at once, or each at a time of its own
MAX_NAME = 60                 # characters of a name
MAX_TEXT = 300                # characters of an error and of a marker
MAX_REASON = 123              # bytes of a close reason, RFC 6455 5.5
MAX_MARKERS = 100
LARGEST, SMALLEST = 1e30, 1e-30   # beyond these no sensor measures, and 1.7e308 times two is no number any more
LATEST = 1e11                 # seconds since 1970: the year 5138

PAGES_OF_ADDRESS = 64         # connections of pages, and of devices, from one address; a household's, and a proxy's
DEVICES_OF_ADDRESS = 16
ARRIVALS = 16                 # new devices from one address at once; then one in two seconds
MAX_PAGES = 512
MAX_ADDRESSES = 4096          # that are remembered
MESSAGES = 4000               # a second from one address: three phones with twelve sensors at 100 Hz, each by itself
VOLUME = 2 << 20              # bytes a second from one address: that and as much again
FLOOD = 4                     # times that: the connection ends
COMMANDS = 20                 # a second from one page

TICK = 1 / 60                 # seconds: browsers draw no more often
HISTORY = 300                 # seconds that are kept
HISTORY_BYTES = 8 << 20       # of all devices; four sensors at 10 Hz have 0.5 MiB in that time
BLOCK = 64                    # readings of a series that are kept as one text
BLOCK_BYTES = 8 << 10
OVERHEAD = 64                 # bytes that keeping a text costs beside the text
MOST_THIN = 256               # what would be thinner is forgotten
PIECE = 1 << 16               # bytes of a message with history
RECENT_BYTES = 4 << 20        # of the batches that somebody has yet to get

WINDOW = 1 << 18              # bytes on their way to one page; grows and shrinks with how fast it answers
LEAST_WINDOW = 1 << 13
PATIENCE = 1.0                # seconds in which a page that keeps up answers a ping
PING_PERIOD = 0.5
LONGEST_PAUSE = 30            # seconds that a page which fell behind again gets the newest values only
JOINING = 60                  # seconds in which the history must have arrived; it would hold memory for ever

SILENT = 3.0                  # seconds without a reading, or three intervals
LONGEST_SILENCE = 60.0        # seconds for a device that did not say how often it has something
TELLING = 0.25                # seconds between two hellos of a device; it may repeat them as often as it likes
FORGET = 300                  # seconds after which a device that left or was lost is forgotten
POST_PATIENCE = 10.0          # seconds after which a device that posts is lost
ENCODE = json.JSONEncoder(separators=(',', ':')).encode


##############################################################################
# What strangers say
#
# Text of any length and script is cut and cleaned, not refused; a bad number
# costs its sample. Only what is no message at all ends a connection.
##############################################################################

class Refused(Exception):
    """What somebody wants is not possible; the text is a sentence for a person. `code` closes the connection,
    `status` answers a request without one."""

    def __init__(self, text, code=1008, status=403):
        super().__init__(text)
        self.code = code
        self.status = status


def bounded_int(text):
    """Return the number of JSON's digits; very many of them take the square of their count to become an int."""
    return int(text) if len(text) < 20 else float(text)


DECODER = json.JSONDecoder(parse_int=bounded_int)


def parse(text):
    """Return the list of JSON objects in text, an object or an array of them; raises Refused."""
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError):
        raise Refused('this is no JSON', 1007, 400)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, dict) for each in values):
        raise Refused('a message is a JSON object, or an array of objects', status=400)
    return values


def clean(value, most=MAX_TEXT):
    """Return text as one printable line of at most `most` characters; '' if it is no text."""
    text = value[:4 * most] if isinstance(value, str) else ''
    if not text.isprintable():
        # the joiners that Persian and emoji are written with stay; what turns the writing direction goes
        text = ''.join(c if c.isprintable() or c in '\u200c\u200d' else ' ' if c.isspace() else '' for c in text)
    return text[:most].strip()


def name_of(value, default):
    """Return the name in value, cut so that two long ones stay two; `default` if there is none."""
    text = clean(value, MAX_MESSAGE)
    if len(text) > MAX_NAME:
        return '%s…%06x' % (text[:MAX_NAME - 7], binascii.crc32(text.encode('utf-8')) & 0xffffff)
    return text or default


def is_number(value):
    return type(value) in (float, int) and -LARGEST <= value <= LARGEST


def numbers_of(values):
    """Return the numbers of one sensor as a list of 1 to MAX_AXES; ValueError says what is wrong with them."""
    values = values if isinstance(values, (list, tuple)) else [values]
    checked = []
    for value in values[:MAX_AXES]:
        if type(value) not in (float, int) or not -LARGEST <= value <= LARGEST:     # NaN is not
            raise ValueError(complaint(value))
        checked.append(value if value >= SMALLEST or value <= -SMALLEST else 0)
    if not checked:
        raise ValueError('there is no number')
    return checked


def complaint(value):
    """Return what is wrong with a value, as a short sentence."""
    if isinstance(value, (list, dict)):
        return 'a number is wanted, not another list or object'
    if type(value) is int:
        return 'a number of so many digits is beyond %g' % LARGEST
    if type(value) is float and math.isfinite(value):
        return '%.3g is beyond %g' % (value, LARGEST)
    return '%s is no number' % ENCODE(clean(value, 40) if isinstance(value, str) else value)


def sensors_of(described):
    """Return ({name: Sensor}, what was left out or '') of a hello's "sensors"."""
    sensors, left_out = {}, ''
    for name, about in (described.items() if isinstance(described, dict) else ()):
        if len(sensors) == MAX_SENSORS:
            return sensors, 'it has more than %d sensors: the others are left out' % MAX_SENSORS
        about = about if isinstance(about, dict) else {}
        axes = about.get('axes') if isinstance(about.get('axes'), list) else []
        name = name_of(name, 'no name')
        if len(axes) > MAX_AXES:
            left_out = '%s has more than %d axes: the others are left out' % (name, MAX_AXES)
        names = tuple(name_of(axis, str(number)) for number, axis in enumerate(axes[:MAX_AXES], 1))
        sensors[name] = Sensor(clean(about.get('unit'), MAX_NAME), names)
    return sensors, left_out


def plain(text):
    """Return text in printable ASCII: what a peer put into it is no second line and does not move a cursor."""
    return ascii(str(text))[1:-1]


def close_reason(text):
    """Return as much of a sentence as a close frame has room for."""
    return text.encode('utf-8')[:MAX_REASON].decode('utf-8', 'ignore')


class Allowance:
    """So many a second, and a burst: take() says whether there is some left."""

    def __init__(self, rate, burst):
        self.rate = rate
        self.burst = self.left = burst
        self.then = time.monotonic()

    def take(self, count=1):
        now = time.monotonic()
        self.left = min(self.burst, self.left + (now - self.then) * self.rate)
        self.then = now
        if self.left < count:
            return False
        self.left -= count
        return True


class Visitor:
    """What one address may still do."""

    def __init__(self, address):
        self.address = address
        self.pages = 0
        self.phones = 0
        self.messages = Allowance(MESSAGES, 2 * MESSAGES)
        self.volume = Allowance(VOLUME, 2 * VOLUME)
        self.arrivals = Allowance(0.5, ARRIVALS)   # new devices: each makes every page build its cards
        self.marks = Allowance(1, 3)
        self.stories = Allowance(1, 5)                        # whole histories in answer to GET /events
        self.refused = 0                                      # messages since `since`
        self.since = time.monotonic()

    def admits(self, size):
        """Return whether a message of so many bytes is looked at; Refused for a flood."""
        if self.messages.take() and self.volume.take(size):
            return True
        now = time.monotonic()
        if now - self.since > 1:
            self.refused, self.since = 0, now
        self.refused += 1
        if self.refused > FLOOD * MESSAGES:
            raise Refused('more than %d messages a second came from this address' % (FLOOD * MESSAGES), status=429)
        return False


def network_of(address):
    """Return what an address counts as: itself, and of IPv6 the first half, since who has one has the other half."""
    if address.startswith('::ffff:'):
        return address[7:]
    if ':' not in address:
        return address
    try:
        packed = socket.inet_pton(socket.AF_INET6, address.split('%')[0])
        return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))
    except (OSError, AttributeError):
        return address


##############################################################################
# Clocks
##############################################################################

class ClockOffset:
    """How far a device's clock is ahead of ours: `seconds`, None while nothing is known. The protocol says how."""

    ROUGH = 0.1               # seconds of uncertainty without an exchange: a radio's delay
    JUMP = 5.0                # seconds: no delay, somebody set the clock

    def __init__(self):
        self.seconds = None
        self._trips = collections.deque(maxlen=16)     # (round trip, offset)
        self._least = collections.deque(maxlen=8)      # of the last blocks of messages, arrival - stamp
        self._block = math.inf                         # of the block that is not complete
        self._count = 0

    def arrived(self, stamp, now):
        """Take note of a message stamped by the device's clock that came at `now` by ours."""
        if self._trips:
            return
        lower = now - stamp < self._block
        if lower:
            self._block = now - stamp
        self._count += 1
        if self._count == 64:
            if self._least and self._block > min(self._least) + self.JUMP:
                self._least.clear()
            self._least.append(self._block)
            self._block, self._count = math.inf, 0
        elif not lower:
            return
        self._settle(-min([self._block] + list(self._least)), self.ROUGH)

    def exchanged(self, sent, theirs, received):
        """Take note of an exchange: sent and received by our clock, answered at `theirs` by the device's."""
        trip, offset = received - sent, theirs - (sent + received) / 2
        if self._trips and abs(offset - min(self._trips)[1]) > trip + 0.05:
            self._trips.clear()
        self._trips.append((trip, offset))
        trip, offset = min(self._trips)
        self._settle(offset, trip / 2)

    def _settle(self, offset, uncertainty):
        if self.seconds is None or abs(offset - self.seconds) > uncertainty:
            self.seconds = 0.0 if abs(offset) <= uncertainty else offset

    def milliseconds(self):
        return None if self.seconds is None else round(1000 * self.seconds, 1)


##############################################################################
# History
#
# Readings are kept as the text that was sent, so that a page that joins costs
# no encoding. What is too much is thinned, the oldest and the largest first.
##############################################################################

Block = collections.namedtuple('Block', 'thin count text until')
Block.__doc__ = """`count` readings as text, separated by SEPARATOR: every `thin`-th of those until a time."""
SEPARATOR = ',\n'             # valid between the values of an array, and nowhere within one


class Series:
    """The last minutes of the readings of one device that have the same sensors; `size` in bytes."""

    def __init__(self):
        self.blocks = collections.deque()
        self.size = 0
        self._open = []
        self._open_size = 0

    def add(self, now, text):
        self._open.append(text)
        self._open_size += len(text) + OVERHEAD
        self.size += len(text) + OVERHEAD
        if len(self._open) >= BLOCK or self._open_size >= BLOCK_BYTES:
            self._seal(now)
            self.expire(now - HISTORY)

    def _seal(self, now):
        self.size -= self._open_size
        self._append(Block(1, len(self._open), SEPARATOR.join(self._open), now))
        self._open, self._open_size = [], 0

    def _append(self, block):
        self.blocks.append(block)
        self.size += len(block.text) + 4 * OVERHEAD

    def _pop(self):
        block = self.blocks.popleft()
        self.size -= len(block.text) + 4 * OVERHEAD
        return block

    def expire(self, before):
        while self.blocks and self.blocks[0].until < before:
            self._pop()

    def thin(self, now):
        """Make it smaller: every second reading of its oldest part goes, and what would be too thin altogether."""
        if not self.blocks:
            self._seal(now)
        levels = collections.Counter(block.thin for block in self.blocks)
        level = max(levels, key=lambda thin: (levels[thin], -thin))
        if levels[level] < 2 or level == MOST_THIN:
            self._pop()
            return
        coarser = [self._pop() for _ in range(sum(levels[thin] for thin in levels if thin > level))]
        first, second = self._pop(), self._pop()
        texts = (first.text + SEPARATOR + second.text).split(SEPARATOR)[::2]
        merged = Block(2 * level, len(texts), SEPARATOR.join(texts), second.until)
        for block in reversed(coarser + [merged]):
            self.blocks.appendleft(block)
            self.size += len(block.text) + 4 * OVERHEAD

    def parts(self):
        """Return its readings as [(thin, count, text)], oldest first."""
        parts = [block[:3] for block in self.blocks]
        return parts + [(1, len(self._open), SEPARATOR.join(self._open))] if self._open else parts


##############################################################################
# Devices
##############################################################################

READING = 'reading'


class Device:
    """What the pages know of one device, and its history. It is the listener of a Reader; any thread."""

    def __init__(self, hub, name, source, rate, simulated=False, repeat=0.0, own=True, secret=None, address=''):
        self.hub = hub
        self.name = name
        self.source = source
        self.rate = rate
        self.simulated = simulated
        self.repeat = repeat
        self.own = own
        self.secret = secret or os.urandom(16).hex()
        self.id = hashlib.sha256(b'device ' + self.secret.encode('utf-8', 'replace')).hexdigest()[:12]
        self.address = address        # it came from, '' for one of our own
        self.connection = None        # its Phone
        self.removed = False
        self.on_removed = lambda: None
        self.described = {}
        self.counts = {}              # sensor → readings so far
        self.newest = {}              # key → text of the last reading
        self.errors = {}              # sensor, or '' for the source → [text, how many, when it was told]
        self.series = {}              # key → Series
        self.stored = 0               # bytes of them
        self.state = 'silent'
        self.since = time.time()
        self.heard = time.monotonic()     # the last reading
        self.posted = None                # the last POST
        self.told = -math.inf             # when its hello was
        self.untold = False
        self.interval = 0.0               # between its last two readings
        self.recorded = None              # what the recording has of its hello
        self.clock = ClockOffset()
        if own:
            self.clock.seconds = 0.0
        self._names = {}              # as the device writes them → Sensor names
        self._keys = {}               # sensors of a reading → key
        self._quoted = json.dumps(name)

    def hello(self):
        described = {name: {'unit': sensor.unit, 'axes': list(sensor.axes)} for name, sensor in self.described.items()}
        return {'hello': {'device': self.name, 'id': self.id, 'source': self.source, 'rate': self.rate,
                          'simulated': self.simulated, 'repeat': self.repeat, 'own': self.own,
                          'offset': self.clock.milliseconds(), 'state': self.state, 'since': round(self.since, 3),
                          'sensors': described}}

    # What a Reader says

    def sensors(self, sensors):
        with self.hub.lock:
            self.described = {}
            for name, sensor in sensors.items():
                name = self._names.get(name) or self._meet(name)
                if name:
                    self.described[name] = sensor
            self.untold = True
            if time.monotonic() - self.told >= TELLING:
                self.tell()

    def tell(self):
        """Say its hello, and what of it was held back because it changes so often."""
        self.untold, self.told = False, time.monotonic()
        self._say(('hello', self.name), self.hello())

    def reading(self, stamp, reading):
        """Take {sensor: numbers} of the moment `stamp` by the device's own clock."""
        self.take(stamp, reading)

    def take(self, stamp, reading, shown=True, recorded=True, **number):
        """Take the same, to be shown, recorded or both; `number` is its "spool" and "n", if it has these."""
        now = time.time()
        with self.hub.lock:
            if self.removed:
                return
            samples = self._samples(reading, shown)
            if shown and not self.own:
                self.clock.arrived(stamp, now)
            if recorded and (samples or number) and not self._record(stamp, samples, number):
                return
            if shown and samples:
                self._show(now, stamp, samples)

    def _samples(self, reading, complain):
        """Return {sensor: number or numbers}, without what is no good."""
        samples = {}
        for raw, values in reading.items():
            sensor = self._names.get(raw) or self._meet(raw)
            if sensor:
                try:
                    checked = numbers_of(values)
                    samples[sensor] = checked if len(checked) > 1 else checked[0]
                except ValueError as error:
                    if complain:
                        self.bad(sensor, str(error))
        return samples

    def _record(self, stamp, samples, number):
        """Put a reading into the recording, if there is one; return False if it is there already."""
        archive = self.hub.archive
        if archive is None:
            return True
        hello = self.hello()['hello']
        hello = {member: hello[member] for member in ('device', 'source', 'rate', 'simulated', 'repeat', 'sensors')}
        if hello != self.recorded:
            self.recorded = hello
            archive.take({'t': time.time(), 'hello': hello})
        offset = {'offset': self.clock.milliseconds()} if self.clock.seconds else {}
        return archive.take(dict({'t': stamp, 'd': self.name, 's': samples}, **number, **offset))

    def _show(self, now, stamp, samples):
        for sensor in samples:
            self.counts[sensor] += 1
            self.errors.pop(sensor, None)
        self.errors.pop('', None)
        heard, self.heard = self.heard, time.monotonic()
        self.interval = self.heard - heard
        if self.state != 'live':
            self.become('live')
        offset = self.clock.seconds
        stamp = max(0.0, stamp if not offset else round(stamp - offset, 4))
        self.hub.station.reading(self.name, stamp, {
            sensor: values if isinstance(values, list) else [values] for sensor, values in samples.items()})
        self._keep(now, stamp, samples)

    def _say(self, key, message):
        if not self.removed:
            self.hub.say(key, message)

    def _meet(self, raw):
        """Return what a sensor is called that the device writes so; '' if it has too many already.

        Each name it ever had is a card on every page.
        """
        name = name_of(raw, 'no name')
        if name not in self.counts:
            if len(self.counts) >= MAX_SENSORS:
                self._too_many()
                return ''
            self.counts[name] = 0
        if len(self._names) < 4 * MAX_SENSORS:
            self._names[raw] = name
        return name

    def _too_many(self):
        self.hub.notice('sensors', '%s has more than %d sensors: the others are left out' % (self.name, MAX_SENSORS),
                        self.name)

    def _keep(self, now, stamp, samples):
        sensors = tuple(samples)
        key = self._keys.get(sensors)
        if key is None and len(sensors) > 1 and len(self._keys) >= MAX_KEYS:
            for sensor, value in samples.items():     # they come in ever new combinations
                self._keep(now, stamp, {sensor: value})
            return
        if key is None:
            key = self._keys[sensors] = READING, self.name, sensors
        text = '{"d":%s,"t":%r,"s":%s}' % (self._quoted, stamp, ENCODE(samples))
        self.newest.pop(key, None)
        self.newest[key] = text
        series = self.series.get(key) or self.series.setdefault(key, Series())
        self._resize(series, series.add, now, text)
        self.hub.say(key, text)
        if self.hub.stored > HISTORY_BYTES:
            self.hub.make_room(now)

    def _resize(self, series, change, *arguments):
        before = series.size
        change(*arguments)
        self.stored += series.size - before
        self.hub.stored += series.size - before

    def thin(self, now):
        series = max(self.series.values(), key=lambda series: series.size)
        self._resize(series, series.thin, now)

    def expire(self, now):
        for series in self.series.values():
            self._resize(series, series.expire, now - HISTORY)

    def trouble(self, text):
        """Take a sentence that says what is wrong with its source."""
        self.bad('', text)

    def bad(self, sensor, text):
        """Take a sentence that says what is wrong with a sensor, '' for the source; told once a second."""
        with self.hub.lock:
            error = self.errors.setdefault(sensor, ['', 0, -math.inf])
            error[0], error[1] = clean(text), error[1] + 1
            now = time.monotonic()
            if now - error[2] >= 1:
                error[2] = now
                self._say(('error', self.name, sensor), self.error_message(sensor))

    def error_message(self, sensor):
        text, count, _ = self.errors[sensor]
        where = {'sensor': sensor, 'count': count} if sensor else {}
        return {'error': dict({'device': self.name, 'text': text}, **where)}

    def missed(self, where, **what):
        """Tell the pages of readings that will never come."""
        said = {'dropped': dict(what, device=self.name, where=where)}
        self._say(('dropped', self.name, next(self.hub.numbers)), said)

    # How it is

    def become(self, state):
        with self.hub.lock:
            if state != self.state:
                self.state, self.since = state, time.time()
                self.tell_state()

    def tell_state(self):
        self._say(('state', self.name), {'state': {
            'device': self.name, 'state': self.state, 'since': round(self.since, 3),
            'offset': self.clock.milliseconds()}})

    def is_connected(self):
        return self.own or self.connection is not None or self.posted is not None

    def look_at(self, now):
        """Say what has changed by itself; `now` is monotonic. Return whether it is to be forgotten."""
        if self.posted is not None and now - self.posted > POST_PATIENCE:
            self.posted = None
            if self.connection is None:
                self.become('lost')
        if self.untold:
            self.tell()
        intervals = 3 / self.rate if self.rate else min(3 * self.interval, LONGEST_SILENCE)
        if self.state == 'live' and now - self.heard > max(SILENT, intervals):
            self.become('silent')
        return not self.is_connected() and time.time() - self.since > FORGET

    def story(self):
        """Return the messages, as text, that bring a new page up to date but for the history."""
        return [ENCODE(self.hello())] + list(self.newest.values())

    def standing_errors(self):
        return [ENCODE(self.error_message(sensor)) for sensor in self.errors]


def is_ours(value):
    """Return whether an object is of this protocol, and not of a device that speaks in another way."""
    return ('hello' in value or any(isinstance(value.get(kind), dict) for kind in ('s', 'error', 'dropped', 'bye'))
            or set(value) == {'time'})


class Session:
    """What one device says, over its socket or by POST. It runs in the server's loop.

    `take(values)` raises Refused; `answer` is called with text that goes back to the device.
    """

    def __init__(self, hub, address, answer):
        self.hub = hub
        self.address = address
        self.answer = answer
        self.device = None
        self.spool = None             # if it numbers its readings, and we keep them
        self._state = None            # what its lines have said so far

    def take_text(self, text, connection):
        """Handle a message, of this protocol or lines of another kind; Refused."""
        try:
            values = parse(text)
        except Refused:
            values = None
        if values is not None and (self.device is not None and self._state is None or any(map(is_ours, values))):
            self.take(values, connection)
        else:
            self._take_lines(text, connection)

    def _take_lines(self, text, connection):
        if self._state is None:
            self._state = lines.State()
        garbage = self._state.garbage
        found = lines.parse(text, self._state)
        if self.device is None and not found and self._state.garbage > garbage:
            raise Refused('this is neither JSON nor a line with numbers in it', 1007, 400)
        self.take_moments(lines.moments(found, self._state.device), connection)

    def take_moments(self, moments, connection=None):
        """Handle [(device, stamp, {sensor: values}, {sensor: Sensor})] of who has said no hello; return how many."""
        for name, stamp, reading, sensors in moments:
            if self.device is None:
                self.device = self.hub.welcome_unnamed(name_of(name, self.address), self.address, connection)
                self.device.source, self.device.rate = 'lines', 0
            self._check_removed()
            if any(self.device.described.get(sensor) != meaning for sensor, meaning in sensors.items()):
                self.device.sensors(dict(self.device.described, **sensors))
            self.device.take(stamp, reading)
        return len(moments)

    def _check_removed(self):
        if self.device.removed:
            raise Refused('this device was removed by somebody who looks at its readings')

    def take(self, values, connection=None):
        """Handle the JSON objects of a message; return how many readings were in it."""
        taken = 0
        for value in values:
            if 'hello' in value:
                self._greet(value['hello'], connection)
                continue
            if self.device is None:
                raise Refused('the first message of a device is its hello', status=400)
            self._check_removed()
            if 's' in value:
                self._reading(value)
                taken += 1
            else:
                self._other(value)
        return taken

    def _greet(self, hello, connection):
        if not isinstance(hello, dict) or not isinstance(hello.get('device'), str):
            raise Refused('the hello has no "device", the name of what sends', status=400)
        rate = hello.get('rate')
        rate = float(rate) if is_number(rate) and 0 < rate <= 1e5 else 1.0
        source, simulated = name_of(hello.get('source'), 'push'), hello.get('simulated') is True
        device = self.device
        if device is None:
            secret = hello.get('id') if isinstance(hello.get('id'), str) else None
            name = name_of(hello['device'], 'device')
            device = self.device = self.hub.welcome(name, secret, self.address, connection)
        device.source, device.rate, device.simulated = source, rate, simulated
        repeat = hello.get('repeat')
        device.repeat = float(repeat) if is_number(repeat) and 0 <= repeat <= LONGEST_SILENCE else 0.0
        if is_number(hello.get('t')) and abs(hello['t']) < LATEST:
            device.clock.arrived(hello['t'], time.time())
        sensors, left_out = sensors_of(hello.get('sensors'))
        if left_out:
            self.hub.notice('axes', '%s: %s' % (device.name, left_out), device.name)
        device.sensors(sensors)
        if connection is not None and hello.get('ack') is True and self.hub.archive is not None:
            self._begin(hello.get('spool'), hello.get('first', 1))

    def _begin(self, spool, first):
        """Let a device know what the recording has of it."""
        if self.spool not in (None, spool):
            raise Refused('a device has one spool')
        try:
            self.hub.archive.begin(spool, first, self.answer)
        except ValueError as error:
            raise Refused(str(error), status=400)
        self.spool = spool

    def _reading(self, value):
        stamp, reading = value.get('t'), value['s']
        is_counted = self.spool is not None and is_numbered(self.spool, value.get('n'))
        number = {'spool': self.spool, 'n': value['n']} if is_counted else {}
        if not is_number(stamp) or abs(stamp) > LATEST:
            self.device.trouble('the time "t" of a reading is no number of seconds')
        elif not isinstance(reading, dict) or not reading:
            self.device.trouble('"s" of a reading is no object of sensors')
        else:
            # without a number it comes again with one
            self.device.take(float(stamp), reading, value.get('late') is not True,
                             is_counted or self.spool is None, **number)
            return
        if number:                    # it has its place in the sequence all the same
            self.device.take(time.time(), {}, **number)

    def _other(self, value):
        device = self.device
        if isinstance(value.get('error'), dict):
            sensor = value['error'].get('sensor')
            sensor = sensor and name_of(sensor, '')
            device.bad(sensor if sensor in device.counts else '', value['error'].get('text') or 'it does not say what')
        elif isinstance(value.get('dropped'), dict):
            missed = value['dropped'].get('sensors')
            missed = {name_of(name, 'no name'): int(count) for name, count in list(missed.items())[:MAX_SENSORS]
                      if is_number(count) and count >= 1} if isinstance(missed, dict) else {}
            missed = {name: count for name, count in missed.items() if name in device.counts}
            if missed:
                device.missed('device', sensors=missed)
        elif 'time' in value:
            self._exchange(value['time'])
        elif 'bye' in value:
            text = value['bye'].get('text') if isinstance(value['bye'], dict) else ''
            if clean(text):
                device.trouble(text)
            device.posted = None
            device.become('left')

    def _exchange(self, times):
        now = 1000 * time.time()
        if is_number(times):
            self.answer(ENCODE({'time': [times, now]}))
        elif isinstance(times, list) and len(times) == 3 and all(map(is_number, times)) and 0 <= now - times[1] < 60000:
            clock = self.device.clock
            before = clock.seconds
            clock.exchanged(times[1] / 1000, times[2] / 1000, now / 1000)
            if clock.seconds != before:
                self.device.tell_state()

    def ended(self, on_purpose):
        """Take note of the end of its socket."""
        device = self.device
        if self.spool is not None:
            self.hub.archive.leave(self.spool, self.answer)
        if device is not None and not device.removed and device.state != 'left':
            device.become('left' if on_purpose else 'lost')


##############################################################################
# What pages get
#
# All that is said goes out in numbered batches, each encoded once. A page that
# keeps up is `live` and gets every batch; another one has a place among the
# recent batches, and gets what its answers to pings show to have room.
##############################################################################

Batch = collections.namedtuple('Batch', 'items text')
Batch.__doc__ = """What was said in one tick: `items` as (key, text), and all of it as one message."""


class Digest:
    """What is left of batches for a page that is too slow for them: of each key the newest, and counts of the rest."""

    def __init__(self):
        self.newest = {}              # key → text, the newest last
        self.missed = {}              # device → {sensor: readings}

    def add(self, items):
        for key, text in items:
            before = self.newest.pop(key, None)
            if before is not None and key[0] == READING:
                missed = self.missed.setdefault(key[1], collections.Counter())
                missed.update(key[2])
            self.newest[key] = text

    def message(self):
        told = [ENCODE({'dropped': {'device': device, 'where': 'page', 'sensors': sensors}})
                for device, sensors in self.missed.items()]
        return '[%s]' % ','.join(told + list(self.newest.values()))


def grouped(texts):
    """Yield texts of objects as arrays of a size that others need not wait for."""
    gathered, size = [], 0
    for text in texts:
        gathered.append(text)
        size += len(text)
        if size > PIECE:
            yield '[%s]' % ','.join(gathered)
            gathered, size = [], 0
    if gathered:
        yield '[%s]' % ','.join(gathered)


class Page(minws.WebSocket):
    """The connection of a page, in the server's loop; a subclass of it has the `hub`."""

    hub = None
    visitor = None
    may = {}
    live = False                      # it gets every batch by broadcast; `cursor` is of no account then

    def opened(self):
        try:
            self.visitor = self.hub.enter(self, 'pages', PAGES_OF_ADDRESS)
            self.may = self.hub.rights(self.request, self.peer_address)
            self.commands = Allowance(COMMANDS, 2 * COMMANDS)
            self.flight = collections.deque()     # (ping, when, bytes) of what is not known to have come
            self.flying = 0                       # bytes of these
            self.pings = 0
            self.window = WINDOW
            self.digest = None
            self.pause, self.resume = PING_PERIOD, 0.0    # how long it has been behind, and when it may be live again
            self.joined = self.ping_due = time.monotonic()
            self.story, self.ready, self.cursor = self.hub.join(self)
            self.advance(self.joined)
        except Refused as refused:
            self.close(refused.code, close_reason(str(refused)))

    def received_message(self, message):
        if self.visitor is None:
            return
        try:
            if not self.commands.take():
                raise Refused('more than %d messages a second from this page' % COMMANDS)
            for value in parse(str(message)):
                answer = self.hub.command(value, self.visitor, self.may)
                if answer is not None:
                    self.send(ENCODE(answer))
        except Refused as refused:
            self.close(refused.code, close_reason(str(refused)))

    def closed(self, code, reason=None):
        self.hub.leave(self, 'pages')

    def ponged(self, pong):
        if not any(pong.data == ping for ping, _, _ in self.flight):
            return
        now, answered = time.monotonic(), False
        while not answered:           # a page that gets several pings may answer the last one alone
            ping, sent, size = self.flight.popleft()
            self.flying -= size
            answered = ping == pong.data
        if now - sent > PATIENCE:
            self.window = max(LEAST_WINDOW, self.window // 2)
        elif now - sent < PATIENCE / 4:
            self.window = min(WINDOW, self.window * 2)
        if not self.live:
            self.advance(now)

    def advance(self, now):
        """Send what there is room for; the batch of this turn has gone to live pages already."""
        try:
            if self.live:
                self._keep_watch(now)
            else:
                self._catch_up(now)
        except minws.ConnectionClosed:
            pass

    def _keep_watch(self, now):
        if self.flight and now - self.flight[0][1] > PATIENCE or self.buffered_amount > WINDOW:
            self.live = False
            self.cursor = self.hub.number
            self.pause = min(2 * self.pause, LONGEST_PAUSE) if now - self.resume < LONGEST_PAUSE else 2 * PING_PERIOD
            self.resume = now + self.pause
        elif now >= self.ping_due:
            self._mark(now, 0)

    def _mark(self, now, size):
        """Send a ping, whose answer tells that all before it has come."""
        self.pings += 1
        ping = b'page%d' % self.pings
        self.ping(ping)
        self.flight.append((ping, now, size))
        self.flying += size
        self.ping_due = now + PING_PERIOD

    def _give(self, text, now):
        self.send(text)
        self._mark(now, len(text))

    def _catch_up(self, now):
        while self.story is not None and self.flying < self.window:
            text = next(self.story, None) if now - self.joined < JOINING else None
            if text is None:
                self.story, text = None, self.ready
            self._give(text, now)
        batches = self.hub.since(self.cursor)
        size = sum(len(batch.text) for batch in batches)
        if size > (self.window if self.ready is None else RECENT_BYTES // 2):
            self.digest = self.digest or Digest()
            for batch in batches:
                self.digest.add(batch.items)
            self.cursor += len(batches)
            batches = []
        if self.story is not None:
            return
        if self.digest is not None:
            if not self.flight:
                self._give(self.digest.message(), now)
                self.digest = None
            return
        while batches and self.flying < self.window:
            self._give(batches.pop(0).text, now)
            self.cursor += 1
        if not batches and now >= self.resume:
            self.live, self.ready = True, None


class Phone(minws.WebSocket):
    """The connection of a device, in the server's loop; a subclass of it has the `hub`."""

    hub = None
    visitor = None
    session = None

    def opened(self):
        try:
            self.visitor = self.hub.enter(self, 'phones', PAGES_OF_ADDRESS)
            self.left_out = 0
            self.session = Session(self.hub, network_of(self.peer_address[0]), self.send)
        except Refused as refused:
            self._refuse(refused)

    def received_message(self, message):
        if self.session is None:
            return
        try:
            if not self.visitor.admits(len(message)):
                self.left_out += 1
                self.hub.flooded.add(self)
                return
            if not isinstance(message, minws.TextMessage):
                raise Refused('a message is JSON in text', 1007)
            self._take(str(message))
        except Refused as refused:
            self._refuse(refused)

    def _take(self, text):
        count = text.count('\n')
        if count and not self.visitor.messages.take(count):   # lines count as if they came one by one
            self.left_out += count
            self.hub.flooded.add(self)
        else:
            self.session.take_text(text, self)

    def _refuse(self, refused):
        self.hub.log('a push from %s was refused: %s' % (self.peer_address[0], refused))
        self.close(refused.code, close_reason(str(refused)))
        self._end(on_purpose=False)

    def closed(self, code, reason=None):
        self._end(on_purpose=code in (1000, 1001))
        self.hub.leave(self, 'phones')

    def _end(self, on_purpose):
        session, self.session = self.session, None
        device = session and session.device
        if device is not None and device.connection is self:
            device.connection = None
            session.ended(on_purpose)

    def supplanted(self):
        """Another connection of the same device has come: this one was lost without our hearing of it."""
        self.session = None
        self.terminate()


class Clock:
    """What makes the server's loop call `hub.tick()`: at most every TICK while there is something, seldom otherwise.

    To the loop it looks like a WebSocket. Its thread only waits: with one thread at work, none waits for another.
    """

    def __init__(self, hub):
        self.hub = hub
        self.sock, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self.wanted = threading.Event()
        self._ended = False
        self.ticks = 0

    def opened(self):
        threading.Thread(target=self._run, name='hub-clock', daemon=True).start()

    def _run(self):
        while not self._ended:
            self.wanted.wait(1.0 if self.hub.watched else 10.0)
            self.wanted.clear()
            try:
                self._bell.send(b'.')
            except BlockingIOError:
                pass
            except OSError:
                return
            time.sleep(TICK)

    def once(self):
        if not self.sock.recv(4096):
            return False
        self.ticks += 1
        self.hub.tick()
        return True

    def close(self, code=1001, reason=''):
        self._ended = True
        self.wanted.set()
        self._bell.close()

    def terminate(self):
        self.close()
        self.sock.close()

    def send(self, message, binary=None):
        """Broadcasts are for others."""


class Hub:
    """Between the devices and the pages. What connections call runs in the server's loop; the rest may any thread."""

    def __init__(self):
        self.lock = threading.RLock()
        self.server = None
        self.clock = None
        self.started = time.time()
        self.epoch = os.urandom(4).hex()
        self.salt = os.urandom(16)
        self.numbers = iter(range(1, sys.maxsize))
        self.about = {}               # of the info, what the command line knows
        self.rights = lambda request, address: {'push': True, 'remove': is_loopback(address[0])}
        self.devices = {}             # name → Device
        self.stored = 0               # bytes of their histories
        self.notices = {}             # (key, device or '') → text
        self.markers = collections.deque(maxlen=MAX_MARKERS)
        self.archive = None           # what records, if somebody wants it
        self.station = Station()
        self.pages = set()
        self.flooded = set()          # Phones some of whose messages were left out
        self.visitors = collections.OrderedDict()
        self.watched = False
        self.polled = -math.inf       # the last GET /events
        self.number = 0               # of the next batch
        self._recent = collections.deque()
        self._recent_size = 0
        self._pending = []
        self._chores_due = 0.0
        self._lines = Allowance(1, 20)

    def attach(self, server):
        """Serve by this minws.Server, before it is started."""
        self.server = server
        self.clock = Clock(self)
        server.manager.add(self.clock)

    def stop(self, text):
        """Tell the pages why, and end the server."""
        for page in list(self.pages):
            try:
                page.send(ENCODE({'stopping': {'text': text}}))
                page.close(1001, close_reason(text))      # the server does not know who joined just now
            except minws.ConnectionClosed:
                pass
        self.server.shutdown(reason=close_reason(text))

    def log(self, line):
        """Print a line for whoever sits at the server; not more of them than one can read."""
        if self._lines.take():
            print(plain(line), file=sys.stderr, flush=True)

    # What is said

    def say(self, key, message):
        """Let every page have a message, a dict or text; of those with equal keys a slow page gets the newest."""
        with self.lock:
            if self.watched:
                self._pending.append((key, message if isinstance(message, str) else ENCODE(message)))
                self.clock.wanted.set()

    def notice(self, key, text, device=''):
        """Say a sentence to people, or with text None take it back."""
        with self.lock:
            if self.notices.get((key, device)) == text:
                return
            if text is None:
                del self.notices[key, device]
            else:
                self.notices[key, device] = text
            self.say(('notice', key, device), self._notice_message(key, device, text))

    def _notice_message(self, key, device, text):
        return {'notice': dict({'key': key, 'text': text}, **{'device': device} if device else {})}

    def info(self, may):
        limits = {'devices': MAX_DEVICES, 'sensors': MAX_SENSORS, 'axes': MAX_AXES, 'name': MAX_NAME, 'text': MAX_TEXT,
                  'rate': round(1 / TICK)}
        about = self.about(may) if callable(self.about) else self.about
        return {'info': dict({'version': VERSION, 'minws': minws.__version__, 'now': time.time(),
                              'started': self.started, 'history': HISTORY, 'may': may, 'limits': limits}, **about)}

    # Turns of the loop

    def tick(self):
        """Send what was said since the last turn, and look after the pages that are behind."""
        now = time.monotonic()
        self._send_pending()
        for page in list(self.pages):
            page.advance(now)
        self._trim(now)
        if now >= self._chores_due:
            self._chores_due = now + 1
            self.do_chores(now)

    def _send_pending(self):
        with self.lock:
            items, self._pending = self._pending, []
        if not items:
            return
        if any(key[0] != READING for key, _ in items):
            newest = {key: text for key, text in items}
            items = [(key, text) for key, text in items if key[0] == READING or newest[key] is text]
        batch = Batch(items, '[%s]' % ','.join([text for _, text in items]))
        self._recent.append(batch)
        self._recent_size += 2 * len(batch.text) + OVERHEAD * len(items)
        self.number += 1
        live = {page for page in self.pages if page.live}
        if live:
            self.server.broadcast(batch.text, exclude=self.server.connections - live)

    def since(self, cursor):
        """Return the batches from that number on."""
        count = self.number - cursor
        return [self._recent[index] for index in range(len(self._recent) - count, len(self._recent))] if count else []

    def _trim(self, now):
        """Forget the batches that nobody has yet to get."""
        needed = min([page.cursor for page in self.pages if not page.live] + [self.number])
        if now - self.polled < 10:
            needed = 0
        while self._recent and (self.number - len(self._recent) < needed or self._recent_size > RECENT_BYTES):
            batch = self._recent.popleft()
            self._recent_size -= 2 * len(batch.text) + OVERHEAD * len(batch.items)

    def do_chores(self, now):
        """Say what has changed by itself, and forget what is over; every second while somebody watches."""
        with self.lock:
            for device in list(self.devices.values()):
                device.expire(time.time())
                if device.look_at(now):
                    self.forget(device)
            for phone in list(self.flooded):
                self._tell_flood(phone)
            for network, visitor in list(self.visitors.items()):
                if not visitor.pages and not visitor.phones and now - visitor.messages.then > 60:
                    del self.visitors[network]
            self.watched = bool(self.pages) or now - self.polled < 10
            if not self.watched:
                self._pending = []

    def _tell_flood(self, phone):
        device = phone.session and phone.session.device
        if phone.left_out and device is not None:
            device.missed('server', messages=phone.left_out)
            self.notice('flood', 'more than %d messages or %d MiB a second come from the address of %s: the rest is '
                        'left out' % (MESSAGES, VOLUME >> 20, device.name), device.name)
        else:
            self.flooded.discard(phone)
            if device is not None:
                self.notice('flood', None, device.name)
        phone.left_out = 0

    # Connections

    def visitor(self, address):
        """Return the Visitor at an address."""
        network = network_of(address)
        visitor = self.visitors.pop(network, None) or Visitor(network)
        self.visitors[network] = visitor
        while len(self.visitors) > MAX_ADDRESSES:
            self.visitors.popitem(last=False)
        return visitor

    def enter(self, connection, kind, most):
        """Count a new connection of a Visitor and return that; Refused if there are too many, or admit() said so."""
        if getattr(connection, 'refusal', ''):
            raise Refused(connection.refusal, status=401)
        visitor = self.visitor(connection.peer_address[0])
        if getattr(visitor, kind) >= most:
            raise Refused('there are %d connections from your address already' % most, status=429)
        if kind == 'pages' and len(self.pages) >= MAX_PAGES:
            raise Refused('%d pages are open already' % MAX_PAGES, status=429)
        setattr(visitor, kind, getattr(visitor, kind) + 1)
        return visitor

    def leave(self, connection, kind):
        visitor = connection.visitor
        if visitor is not None:
            connection.visitor = None
            setattr(visitor, kind, getattr(visitor, kind) - 1)
        self.pages.discard(connection)
        self.flooded.discard(connection)

    def join(self, page):
        """Add a page; return (iterator of its story, the text that ends it, the number of the batch after that)."""
        with self.lock:
            self.watched = True
            self._send_pending()
            story, ready = self.story(page.may), self.ready()
            self.pages.add(page)
            return story, ready, self.number

    def story(self, may, most=HISTORY_BYTES):
        """Return an iterator of messages that tell all that is known, with at most so many bytes of history."""
        with self.lock:
            devices = list(self.devices.values())
            for device in devices:
                device.look_at(time.monotonic())
            said = [ENCODE(self.info(may))]
            parts = []
            for device in devices:
                said += device.story()
                for series in device.series.values():
                    parts += newest_parts(series.parts(), most // max(1, len(devices) * len(device.series)))
            said += [ENCODE(self._notice_message(key, device, text)) for (key, device), text in self.notices.items()]
            said += self.markers
            errors = [text for device in devices for text in device.standing_errors()]
        history = ('{"history":{"thin":%d,"readings":[%s]}}' % (thin, text) for thin, _, text in parts)
        return grouped(text for texts in (said, history, errors) for text in texts)

    def ready(self):
        counts = {device.name: device.counts for device in self.devices.values()}
        readings = sum(count for device in self.devices.values() for series in device.series.values()
                       for _, count, _ in series.parts())
        return ENCODE({'ready': {'readings': readings, 'counts': counts}})

    def poll(self, last, visitor, may):
        """Return (id, messages) for GET /events of who has heard all until the id `last`; '' for who is new."""
        self.polled = time.monotonic()
        epoch, _, number = last.partition('-')
        with self.lock:
            if not self.watched:
                self.watched = True
            self._send_pending()
            known = epoch == self.epoch and number.isdigit() and len(number) < 16 and \
                self.number - len(self._recent) <= int(number) <= self.number
            if not known and not visitor.stories.take():
                raise Refused('this address asks for the whole history too often', status=429)
            messages = ([batch.text for batch in self.since(int(number))] if known else
                        list(self.story(may, 1 << 20)) + [self.ready()])
            if known and sum(map(len, messages)) > WINDOW:
                digest = Digest()
                for batch in self.since(int(number)):
                    digest.add(batch.items)
                messages = [digest.message()]
            return '%s-%d' % (self.epoch, self.number), messages

    # Devices

    def add(self, name, source, rate, simulated=False, repeat=0.0):
        """Return a new Device of our own machine."""
        with self.lock:
            return self._add(name_of(name, 'device'), source, rate, simulated, repeat)

    def _add(self, name, *details, **more):
        if len(self.devices) >= MAX_DEVICES:
            self._displace(list(self.devices.values()), MAX_DEVICES)
        taken, number = name, 2
        while name in self.devices:
            name, number = '%s %d' % (taken, number), number + 1
        device = self.devices[name] = Device(self, name, *details, **more)
        return device

    def _displace(self, devices, most):
        """Forget the one of devices that has been away for longest; Refused if all are there."""
        away = [device for device in devices if not device.is_connected()]
        if not away:
            text = 'there are %d devices already, and no room for another one' % most
            if most == MAX_DEVICES:
                self.notice('devices', text)
            raise Refused(text, status=429)
        self.forget(min(away, key=lambda device: device.since))

    def welcome(self, name, secret, address, connection=None):
        """Return the Device that says hello: a known one if `secret` is known; Refused."""
        with self.lock:
            device = self.find(secret)
            if device is None:
                if not self.visitor(address).arrivals.take():
                    raise Refused('new devices come from this address too fast: one in two seconds', status=429)
                mine = [device for device in self.devices.values() if device.address == address]
                if len(mine) >= DEVICES_OF_ADDRESS:
                    self._displace(mine, DEVICES_OF_ADDRESS)
                device = self._add(name, 'push', 1.0, own=False, secret=secret, address=address)
            if device.state in ('lost', 'left'):
                device.state, device.since = 'silent', time.time()
            if connection is None:
                device.posted = time.monotonic()
            elif device.connection is not connection:
                former, device.connection = device.connection, connection
                if former is not None:
                    former.supplanted()
            device.address = address
            return device

    def welcome_unnamed(self, name, address, connection):
        """Return the same for who has no id: the device of that name and address that is away, or another one."""
        with self.lock:
            for number in itertools.count():
                text = json.dumps([address, name, number]).encode('utf-8', 'replace')
                secret = hmac.new(self.salt, text, hashlib.sha256).hexdigest()
                device = self.find(secret)
                if device is None or device.connection is None:
                    return self.welcome(name, secret, address, connection)

    def find(self, secret):
        """Return the device whose own id is that, or None."""
        if not isinstance(secret, str):
            return None
        secret = secret.encode('utf-8', 'replace')
        return next((device for device in self.devices.values()
                     if hmac.compare_digest(device.secret.encode('utf-8', 'replace'), secret)), None)

    def forget(self, device, text=''):
        """Remove a device from every page; with a text its connection ends too."""
        with self.lock:
            if self.devices.get(device.name) is not device:
                return
            del self.devices[device.name]
            device.removed = True
            self.stored -= device.stored
            for key, of in [key for key in self.notices if key[1] == device.name]:
                del self.notices[key, of]
            self.say(('gone', device.name), {'gone': {'device': device.name}})
            if len(self.devices) < MAX_DEVICES:
                self.notice('devices', None)
        if device.connection is not None:
            device.connection.close(1008, close_reason(text))
        self.station.forget(device.name)
        device.on_removed()

    def make_room(self, now):
        """Thin the largest histories until they fit."""
        while self.stored > HISTORY_BYTES:
            max(self.devices.values(), key=lambda device: device.stored).thin(now)

    # What pages say

    def command(self, value, visitor, may):
        """Carry out what a page says; return the answer, a dict, or None."""
        try:
            if 'time' in value:
                return {'time': [value['time'] if is_number(value['time']) else None, 1000 * time.time()]}
            if 'marker' in value:
                return self._mark(value['marker'], visitor)
            if 'remove' in value:
                return self._remove(value['remove'], may)
            raise Refused('this server does not know that command')
        except Refused as refused:
            name = clean(next(iter(value), ''), MAX_NAME)
            return {'refused': {'command': name, 'text': str(refused)}}

    def _mark(self, marker, visitor):
        if not visitor.marks.take():
            raise Refused('one marker a second is enough')
        self.mark(clean(marker.get('text') if isinstance(marker, dict) else ''), visitor.address)

    def mark(self, text, by):
        """Set a marker now."""
        number, stamp = next(self.numbers), round(time.time(), 3)
        said = ENCODE({'marker': {'id': number, 't': stamp, 'text': text, 'by': by}})
        with self.lock:
            self.markers.append(said)
            self.say(('marker', number), said)
            if self.archive is not None:
                self.archive.take({'t': stamp, 'marker': {'text': text, 'by': by}})

    def _remove(self, remove, may):
        remove = remove if isinstance(remove, dict) else {}
        device = self.devices.get(clean(remove.get('device'), MAX_NAME + 10))
        if device is None:
            raise Refused('there is no such device')
        if not may.get('remove') and self.find(remove.get('id')) is not device:
            raise Refused('only who pushes a device, or sits at the server, can remove it')
        self.forget(device, 'it was removed by somebody who looks at its readings')


def newest_parts(parts, most):
    """Return as many of the newest parts, (thin, count, text), as have at most so many bytes."""
    kept, size = [], 0
    for part in reversed(parts):
        size += len(part[2])
        if size > most and kept:
            break
        kept.append(part)
    return kept[::-1]


def is_loopback(address):
    return address == '::1' or network_of(address).startswith('127.')
