"""Tests of examples/sensors/page.html in a real Chromium, and of examples/browser.py, which drives it.

The server is a stand-in that says what a test lets it say, so that each state can be had and held. The slow tests
measure, and print what they measured; PAGE_SECONDS says for how long (default: 20).
"""
import base64
import contextlib
import csv
import gzip
import http.server
import json
import math
import os
import queue
import re
import socketserver
import struct
import threading
import time
import xml.etree.ElementTree
import zlib

import pytest

import minws
from examples import browser as browser_module
from examples.browser import Browser, find_browser
from examples.sensors.picture import draw

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
DEADLINE = 10.0               # seconds for anything that should happen at once
XYZ = ['x', 'y', 'z']

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason='no Chromium here: apt-get install chromium, or name one in CHROMIUM')


##############################################################################
# A server that says what a test lets it say
##############################################################################

INFO = {'version': 2, 'minws': '1.2', 'history': 300, 'title': 'laptop', 'push': 'ws://192.168.1.5:9000/push',
        'addresses': ['http://192.168.1.5:9000/'], 'start': {'termux': 'pkg install python'}, 'protect': 'none',
        'secure': False, 'may': {'push': True, 'remove': True}, 'qr': None,
        'limits': {'devices': 32, 'sensors': 64, 'axes': 16, 'name': 60, 'text': 300, 'rate': 60}}
READY = {'ready': {'readings': 0, 'counts': {}}}


def info(**more):
    return {'info': dict(INFO, now=time.time(), started=time.time() - 60, **more)}


def hello(device='pixel', rate=10, state='live', **more):
    """Return the announcement of a device; `sensors` is {name: (unit, axes)}."""
    sensors = {name: {'unit': unit, 'axes': axes} for name, (unit, axes) in more.pop('sensors', {}).items()}
    return {'hello': dict({'device': device, 'id': 'id of ' + device, 'source': 'termux', 'rate': rate, 'own': False,
                           'simulated': False, 'offset': 0, 'state': state, 'since': time.time(), 'sensors': sensors},
                          **more)}


def reading(t, device='pixel', **sensors):
    return {'d': device, 't': t, 's': sensors}


def history(*readings, thin=1):
    return {'history': {'thin': thin, 'readings': list(readings)}}


class Feed:
    """Serves the page; `story` is what those who join are told first."""

    def __init__(self, *story, port=0):
        self.story = list(story) or [info(), READY]
        self.watchers = []
        self.lock = threading.Lock()   # what is told while somebody joins comes after the story
        self.commands, self.pushed = queue.Queue(), queue.Queue()
        self.server = minws.serve({'/ws': self.watch, '/push': self.push}, '127.0.0.1', port, pages={'/': PAGE})
        self.server.start()
        self.port = self.server.port
        self.url = 'http://127.0.0.1:%d/' % self.port

    def watch(self, ws):
        with self.lock:
            ws.send(json.dumps(self.story))
            self.watchers.append(ws)
        with contextlib.suppress(minws.ConnectionClosed):
            for message in ws:
                message = json.loads(message)
                if 'time' in message:
                    ws.send(json.dumps({'time': [message['time'], time.time() * 1000]}))
                else:
                    self.commands.put(message)
        self.watchers.remove(ws)

    def push(self, ws):
        with contextlib.suppress(minws.ConnectionClosed):
            for message in ws:
                for one in flat(json.loads(message)):
                    self.pushed.put(one)

    def tell(self, *messages):
        """Send to every page; the text is our own where a message is a text already."""
        with self.lock:
            for message in messages:
                for ws in list(self.watchers):
                    ws.send(message if isinstance(message, str) else json.dumps(message))

    def hang_up(self, code, reason=''):
        for ws in list(self.watchers):
            ws.close(code, reason)

    def close(self):
        self.server.shutdown()


def flat(message):
    return message if isinstance(message, list) else [message]


@contextlib.contextmanager
def telling(feed, make, rate):
    """Let the feed tell make(moment), a message or a list of them, so many times a second, until the block is left."""
    done = threading.Event()

    def run():
        began, count = time.time(), 0
        while not done.wait(max(0.0, began + count / rate - time.time())):
            feed.tell(make(began + count / rate))
            count += 1

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope='module')
def chromium():
    """A Browser, of which nothing may be left at the end."""
    with Browser() as browser:
        assert os.path.isdir(browser.profile) and group_lives(browser.process.pid)
        yield browser
    assert not os.path.exists(browser.profile)
    wait_until(lambda: not group_lives(browser.process.pid), 'the end of the last child')


def group_lives(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(true, what):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, 'waited too long for ' + what
        time.sleep(0.02)


@pytest.fixture
def opened(chromium):
    """A function that opens a page of a new Feed and returns both; what is left at the end had no errors."""
    pages, feeds = [], []

    def open_page(*story, width=360, height=740, dark=False, feed=None, scale=1):
        if feed is None:
            feeds.append(Feed(*story))
            feed = feeds[-1]
        page = chromium.open(feed.url, width, height, dark, scale)
        pages.append(page)
        return page, feed

    yield open_page
    try:
        for page in pages:
            assert page.errors() == []
    finally:
        for page in pages:
            chromium.shut(page)
        for feed in feeds:
            feed.close()


def text_of(selector):
    return '(document.querySelector(%s) || {textContent: ""}).textContent' % json.dumps(selector)


def shown(selector):
    return '!!document.querySelector(%s) && !document.querySelector(%s).hidden' % ((json.dumps(selector),) * 2)


def chart_of(sensor, device='pixel'):
    return 'devices.get(%s).charts.get(%s)' % (json.dumps(device), json.dumps(sensor))


def card(sensor):
    return '[data-sensor=%s]' % json.dumps(sensor)


# Lets the page draw what it has to, and waits until it has.
DRAWN = 'new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))'

# How many pixels of a chart's lines are coloured between two moments.
INK = '''((chart, from, to) => {
    const left = Math.round(chart.x(from) * ratio()), width = Math.round(chart.x(to) * ratio()) - left;
    const data = chart.canvas.getContext('2d').getImageData(left, 0, width, chart.canvas.height).data;
    let count = 0;
    for (let i = 3; i < data.length; i += 4) if (data[i] > 40) count++;
    return count;
})(%s, %r, %r)'''


def steady(t, seconds, rate, value=lambda n: math.sin(n / 5), **more):
    """Return readings of the sensor n for the seconds before t."""
    return [reading(t - seconds + n / rate, n=value(n), **more) for n in range(int(seconds * rate) + 1)]


##############################################################################
# The file
##############################################################################

def source():
    with open(PAGE, encoding='utf-8') as file:
        return file.read()


def test_page_is_small_readable_and_needs_nothing_from_outside():
    page = source()
    assert len(gzip.compress(page.encode('utf-8'), 9)) <= 28 * 1024
    assert max(map(len, page.splitlines())) <= 120
    assert not re.search(r'(src|href)=["\'](https?:)?//|@import|import\(|url\(', page)
    assert not re.search(r'innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function', page)


def test_parts_stand_in_the_order_in_which_a_reading_passes_them():
    parts = re.findall(r'^// ==== (\w+)', source(), re.M)
    assert parts[:6] == ['Link', 'Parse', 'Store', 'Scale', 'Draw', 'Look']


##############################################################################
# The link
##############################################################################

@needs_browser
def test_header_never_says_live_when_nothing_came(opened):
    now = time.time()
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(now - 2, 20, 10)), READY)
    page.wait_for(text_of('#state') + ' === "connected, no reading has come yet"')
    with telling(feed, lambda t: reading(t, n=1.5), 10):
        page.wait_for(text_of('#state') + ' === "live"')
        assert not page.evaluate(shown(card('n') + ' .staleness'))
    page.wait_for(text_of('#state') + ' === "connected, no reading comes"')
    page.wait_for(shown(card('n') + ' .staleness'))
    assert page.evaluate(text_of(card('n') + ' .staleness')).startswith('stale ')
    assert page.evaluate(text_of(card('n') + ' .rate')) == '– Hz'
    feed.tell(reading(time.time(), n=77))
    page.wait_for(text_of('#state') + ' === "live"')
    page.wait_for('!(%s)' % shown(card('n') + ' .staleness'))
    page.wait_for('/^77/.test(%s)' % text_of(card('n') + ' dd'))


@needs_browser
def test_axis_goes_on_by_the_clock_and_shows_the_hole(opened):
    now = time.time()
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(now, 20, 10)), READY)
    page.evaluate('show(10, null)')
    last = page.wait_for('story.ready && %s.series.last' % chart_of('n'))
    page.wait_for('now() > %r' % (last + 2))
    page.evaluate(DRAWN)
    assert page.evaluate(INK % (chart_of('n'), last - 2, last - 0.2)) > 40
    assert page.evaluate(INK % (chart_of('n'), last + 0.3, last + 1.9)) == 0
    moved = page.evaluate('%s.x(%r)' % (chart_of('n'), last))
    page.wait_for('%s.x(%r) < %r' % (chart_of('n'), last, moved - 10))


@needs_browser
def test_stop_reason_and_next_attempt_are_said_and_it_comes_back(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), READY)
    page.wait_for('story.ready')
    page.evaluate('window.states = []; new MutationObserver(() => states.push($("state").textContent))'
                  '.observe($("state"), {childList: true, characterData: true, subtree: true}); Math.random = () => 1')
    feed.tell({'stopping': {'text': 'the server was stopped (Ctrl-C)'}})
    feed.close()
    page.wait_for(text_of('#state') + ' === "connection lost: the server was stopped (Ctrl-C)"')
    assert page.evaluate(shown('#again'))
    page.wait_for('/next attempt in [1-9]\\d* s/.test(%s)' % text_of('#count'))
    page.wait_for('/nothing answers at/.test(%s)' % text_of('#state'))
    page.wait_for('link.failures > 2')
    # What is read out changes with the state, not with the seconds.
    said = page.evaluate('states')
    assert not any(re.search(r'\d s\b', text) for text in said), said
    again = Feed(info(), hello(sensors={'n': ('m', [])}), READY, port=feed.port)
    try:
        page.evaluate('$("again").click()')
        page.wait_for('story.ready && link.up')
    finally:
        again.close()


@needs_browser
def test_refusal_ends_the_attempts_and_its_reason_is_shown(opened):
    page, feed = opened(info(protect='page'), READY)
    page.wait_for('story.ready')
    page.evaluate('window.tried = 0; const real = connect; window.connect = () => { tried++; real(); }; 0')
    feed.hang_up(1008, 'a password is needed')
    page.wait_for(text_of('#state') + ' === "refused: a password is needed"')
    page.evaluate('link.retryAt = 0; watchLink(); wake(); watchLink()')
    assert page.evaluate('[tried, !!link.socket, link.refused]') == [0, False, True]


@needs_browser
def test_silent_server_is_named_and_left(opened):
    page, feed = opened()
    page.wait_for('story.ready')
    page.evaluate('window.silence = 7;'
                  'Object.defineProperty(link, "heard", {get: () => seconds() - silence, set() {}})')
    page.evaluate('showLink()')
    assert page.evaluate(text_of('#state')) == 'no word from the server'
    page.evaluate('window.silence = 16; watchLink()')
    assert page.evaluate(text_of('#state')).startswith('connection lost: nothing was heard')


@needs_browser
def test_clocks_of_page_and_server_are_compared(opened):
    page, feed = opened()
    page.wait_for('clockError < 0.5')
    error, before, now, after = page.evaluate('[clockError, 0, now(), 0]') and (
        page.evaluate('clockError'), time.time(), page.evaluate('now()'), time.time())
    assert before - error - 0.002 <= now <= after + error + 0.002


class Events(http.server.BaseHTTPRequestHandler):
    """A server whose socket a browser cannot open: server-sent events and POST remain."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *arguments):
        pass

    def answer(self, status, content_type, body):
        self.send_response(status)
        self.send_header('Content-Type', content_type)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == '/':
            return self.answer(200, 'text/html', source().encode('utf-8'))
        if self.path != '/events':
            return self.answer(404, 'text/plain', b'')
        last = int(self.headers.get('Last-Event-ID') or 0)
        events = self.server.events
        wait_until(lambda: len(events) > last, 'an event')
        lines = ''.join('id: %d\ndata: %s\n\n' % (number + 1, json.dumps(event))
                        for number, event in enumerate(events) if number >= last)
        self.answer(200, 'text/event-stream', ('retry: 50\n\n' + lines).encode('utf-8'))

    def do_POST(self):
        self.server.posts.append((time.monotonic(), json.loads(self.rfile.read(int(self.headers['Content-Length'])))))
        answer = {'device': 'x', 'taken': 1, 'time': time.time() * 1000}
        self.answer(200, 'application/json', json.dumps(answer).encode('utf-8'))


class EventServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


@pytest.fixture
def events():
    server = EventServer(('127.0.0.1', 0), Events)
    server.events, server.posts = [info(), hello(sensors={'n': ('m', [])}), READY], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    done = threading.Event()

    def go_on():
        while not done.wait(0.1):
            server.events.append(reading(time.time(), n=len(server.events)))

    adding = threading.Thread(target=go_on, daemon=True)
    adding.start()
    yield server
    done.set()
    adding.join()
    server.shutdown()
    server.server_close()


MOTION = '''window.dispatchEvent(new DeviceMotionEvent('devicemotion', {
    accelerationIncludingGravity: {x: 1.5, y: -2.5, z: 9.5}, rotationRate: {alpha: 1, beta: 2, gamma: 3},
    interval: 16}))'''


@needs_browser
def test_where_the_socket_is_refused_events_are_read_and_posts_are_sent(chromium, events):
    page = chromium.open('http://127.0.0.1:%d/' % events.server_port, 360, 740)
    page.wait_for(text_of('#state') + ' === "live"')
    page.wait_for('%s.series.end > 5' % chart_of('n'))
    assert page.evaluate(text_of('#count')) == 'by events'
    values = page.evaluate('Array.from({length: 5}, (_, i) => %s.series.value(i, 0))' % chart_of('n'))
    assert values == list(range(int(values[0]), int(values[0]) + 5))      # each once, although responses end
    page.evaluate('$("phone").click()')
    page.evaluate('window.shaking = setInterval(() => { %s; }, 16); 0' % MOTION)
    wait_until(lambda: len(events.posts) > 6, 'posts')
    page.evaluate('$("phone").click(); clearInterval(shaking)')
    posts = [(moment, body) for moment, body in events.posts if any('s' in one for one in body)]
    assert all('hello' in body[0] and body[0]['hello']['id'] for _, body in posts)
    assert posts[1][1][-1]['s']['accel'] == [1.5, -2.5, 9.5]
    assert (len(posts) - 1) / (posts[-1][0] - posts[0][0]) <= 5
    readings = sum('s' in one for _, body in posts for one in body)
    assert readings > 2 * len(posts)                                     # a request carries several
    wait_until(lambda: any('bye' in one for _, body in events.posts for one in body), 'the goodbye')
    assert page.errors() == []
    chromium.shut(page)


##############################################################################
# Holes, drops, history
##############################################################################

@needs_browser
def test_no_line_is_drawn_over_more_than_three_intervals(opened):
    now = time.time()
    begin = now - 9
    times = [begin + n * 0.1 for n in range(85) if not (20 <= n < 22 or 40 <= n < 43 or 60 <= n < 72)]
    page, _ = opened(info(), hello(sensors={'n': ('m', [])}),
                     history(*(reading(t, n=1 + n % 2) for n, t in enumerate(times))), READY)
    page.wait_for('story.ready')
    page.evaluate('show(10, %r)' % now)
    page.wait_for('Number.isFinite(%s.x(%r))' % (chart_of('n'), now))   # it has its place and its size
    page.evaluate(DRAWN)

    def ink(first, last):
        return page.evaluate(INK % (chart_of('n'), begin + first * 0.1 + 0.05, begin + last * 0.1 - 0.05))

    assert ink(19, 22) > 0                       # three intervals: the line goes on
    assert ink(39.6, 42.4) == 0                  # four: a hole
    assert ink(59.6, 71.4) == 0
    assert ink(72.5, 84) > 40


@needs_browser
def test_rate_is_compared_with_what_was_promised_and_drops_are_counted(opened):
    page, feed = opened(info(), hello(rate=100, sensors={'n': ('m', []), 'm': ('m', [])}),
                        history(*steady(time.time(), 5, 100)), READY)
    page.wait_for('story.ready')
    with telling(feed, lambda t: reading(t, n=t % 7), 3):
        page.wait_for('/^(2.9|3|3.1) of 100 Hz$/.test(%s)' % text_of(card('n') + ' .rate'))
        feed.tell({'dropped': {'device': 'pixel', 'where': 'page', 'sensors': {'n': 17, 'm': 3}}},
                  {'dropped': {'device': 'pixel', 'where': 'server', 'sensors': {'n': 4}}})
        page.wait_for('/· 21 dropped$/.test(%s)' % text_of(card('n') + ' .rate'))
    assert page.evaluate(text_of(card('m') + ' .rate')) == '– Hz · 3 dropped'


@needs_browser
def test_a_value_that_did_not_change_for_a_while_is_no_hole(opened):
    now = time.time()
    begin = now - 9
    times = [begin + n * 0.1 for n in range(90) if not (20 <= n < 40 or 50 <= n < 85)]
    told = hello(sensors={'n': ('m', [])})
    told['hello']['repeat'] = 2
    page, _ = opened(info(), told, history(*(reading(t, n=1 + n % 2) for n, t in enumerate(times))), READY)
    page.wait_for('story.ready')
    page.evaluate('show(10, %r)' % now)
    page.wait_for('Number.isFinite(%s.x(%r))' % (chart_of('n'), now))
    page.evaluate(DRAWN)

    def ink(first, last):
        return page.evaluate(INK % (chart_of('n'), begin + first * 0.1 + 0.05, begin + last * 0.1 - 0.05))

    assert ink(21, 39) > 10
    assert ink(51, 84) == 0                      # longer than it says the same without saying so


@needs_browser
def test_history_is_shown_after_a_reload_without_holes_or_doubles(opened):
    now = time.time()
    past = [reading(now - 60 + n / 20, n=n) for n in range(1200)]
    page, feed = opened(info(), hello(rate=20, sensors={'n': ('m', [])}), past[-1], history(*past[:700]),
                        history(*past[700:]), READY)
    page.wait_for('story.ready')
    assert page.evaluate('%s.series.end' % chart_of('n')) == 1200
    feed.tell([reading(now + n / 20, n=1200 + n) for n in range(40)])
    page.wait_for('%s.series.end === 1240' % chart_of('n'))
    assert page.evaluate('%s.series.holes.reduce((sum, hole) => sum + hole, 0)' % chart_of('n')) == 1   # the first
    feed.story = [info(), hello(rate=20, sensors={'n': ('m', [])}),
                  history(*(past[-100:] + [reading(now + n / 20, n=1200 + n) for n in range(60)])), READY]
    feed.hang_up(1011)
    page.wait_for('%s.series.end === 1260' % chart_of('n'))      # what was missed is filled in, nothing comes twice


@needs_browser
def test_thinned_history_has_holes_only_where_there_are_some(opened):
    now = time.time()
    past = [reading(now - 200 + n, n=n) for n in range(190) if not 100 <= n < 120]
    live = [reading(now - 10 + n / 10, n=n) for n in range(100)]
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*past, thin=10), READY)
    page.wait_for('story.ready')
    feed.tell(live)
    page.wait_for('%s.series.end === 270' % chart_of('n'))
    holes = page.evaluate('Array.from({length: 270}, (_, i) => i).filter(i => %s.series.holes[i])' % chart_of('n'))
    assert holes == [0, 100]


@needs_browser
def test_early_values_are_seen_before_the_history(opened):
    now = time.time()
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), reading(now, n=5.25))
    page.wait_for('/^5.25/.test(%s)' % text_of(card('n') + ' dd'))
    feed.tell(history(reading(now - 1, n=4), reading(now, n=5.25)), READY)
    page.wait_for('%s.series && %s.series.end === 2' % ((chart_of('n'),) * 2))


##############################################################################
# Values
##############################################################################

VALUES = [                    # unit, values of a sensor at rest or in motion, what the newest is written as
    ('', [1e-9, 2e-9, 3e-9], '3.00×10⁻⁹'),
    ('', [1e12, 1.5e12], '1.5'),
    ('m/s²', [9.70, 9.81], '9.810'),
    ('m/s²', [-9.70, -9.81], '−9.810'),
    ('°C', [21.5] * 4, '21.5'),
    ('%', [80, 81, 82], '82'),
    ('hPa', [1013.25, 1013.31], '1013.31'),
    ('', [0, 0, 0], '0'),
    ('', [-0.0001, 0.0001], '1'),
    ('steps', [4211, 4212], '4212'),
    ('Hz', [123456.5, 123457.25], '123457.25'),
]


@needs_browser
def test_values_are_written_for_their_axis_and_unit_and_no_label_is_cut(opened):
    now = time.time()
    sensors = {'s%d' % n: (unit, []) for n, (unit, _, _) in enumerate(VALUES)}
    longest = max(len(values) for _, values, _ in VALUES)
    past = [{'d': 'pixel', 't': now - 5 + i / 10,
             's': {'s%d' % n: values[min(i, len(values) - 1)] for n, (_, values, _) in enumerate(VALUES)}}
            for i in range(longest)]
    page, _ = opened(info(), hello(sensors=sensors), history(*past), READY, width=280, height=6000)
    page.wait_for('story.ready')
    page.evaluate(DRAWN)
    page.evaluate('redrawAll(); ' + DRAWN)
    for n, (unit, values, text) in enumerate(VALUES):
        written = page.evaluate('document.querySelector("[data-sensor=s%d] dd").firstChild.textContent' % n)
        assert written.startswith(text), (unit, values, written)
        assert float(plain(written)) == pytest.approx(values[-1], rel=1e-3, abs=1e-15)
        room = page.evaluate('''(chart => {
            const c = chart.paper.getContext('2d'), {scale} = chart;
            c.font = FONT;
            const labels = Array.from({length: scale.lines + 1}, (_, line) => scale.label(line));
            return [chart.left - 7 - Math.max(...labels.map(label => c.measureText(label).width)),
                    chart.width - chart.left, new Set(labels).size - labels.length];
        })(%s)''' % chart_of('s%d' % n))
        assert room[0] >= 0 and room[1] > 100 and room[2] == 0, (unit, values, room)
    overflow = page.evaluate('[...document.querySelectorAll("dd, h3 button, .range")].filter('
                             'node => node.scrollWidth > node.clientWidth + 1).length')
    assert overflow == 0


def plain(text):
    """Return what a written value is as Python writes it."""
    text = text.replace('−', '-')
    match = re.match(r'(.*)×10([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)$', text)
    if not match:
        return text
    return match.group(1) + 'e' + match.group(2).translate(str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁻', '0123456789-'))


@needs_browser
def test_positions_keep_six_decimals(opened):
    now = time.time()
    past = [reading(now - 5 + n / 10, gps=[52.520008 + n * 1e-6, -13.404954]) for n in range(40)]
    page, _ = opened(info(), hello(sensors={'gps': ('°', ['latitude', 'longitude'])}), history(*past), READY)
    page.wait_for('story.ready')
    page.wait_for('document.querySelectorAll("dd").length === 2')
    values = page.evaluate('[...document.querySelectorAll("dd")].map(dd => dd.firstChild.textContent)')
    assert values == ['52.520047', '−13.404954']


@needs_browser
def test_scales_of_hostile_ranges_end_and_have_few_lines(opened):
    page, _ = opened()
    ranges = [(-1.7e308, 1.7e308), (-1.7e308, 0), (5e-324, 1e-323), (1e15, 1e15 + 0.25), (0, 0), (1.7e308, 1.7e308),
              (-1e-300, 1e300), (1, 1 + 1e-16), (-5e-324, 1.7e308)]
    for low, high in ranges:
        scale = page.evaluate('''(scale => ({...scale, labels: Array.from({length: scale.lines + 1}, (_, i) =>
            scale.label(i))}))(Scale.of(%r, %r, '', false, false, null))''' % (low, high))
        assert 1 <= scale['lines'] <= 8 and scale['low'] < scale['high'], (low, high, scale)
        assert all(len(label) < 24 and 'NaN' not in label for label in scale['labels']), (low, high, scale)


@needs_browser
@pytest.mark.parametrize('dark', [False, True])
def test_sixteen_axes_have_sixteen_lines_that_can_be_told_apart(opened, dark):
    now = time.time()
    axes = ['axis %d' % n for n in range(16)]
    past = [reading(now - 5 + n / 10, pose=[axis + math.sin(n / 9) for axis in range(16)]) for n in range(50)]
    page, _ = opened(info(), hello(sensors={'pose': ('', axes)}), history(*past), READY, width=280, dark=dark)
    page.wait_for('document.querySelectorAll("dt").length === 16')
    assert page.evaluate('[...document.querySelectorAll("dt")].map(dt => dt.textContent)') == axes
    styles = page.evaluate('Array.from({length: 16}, (_, axis) => [colours[hue(axis)], dash(axis).join()])')
    assert len(set(map(tuple, styles))) == 16
    card_colour = page.evaluate('colours.card')
    hues = sorted(set(colour for colour, _ in styles))
    for n, one in enumerate(hues):
        assert contrast(one, card_colour) >= 3
        assert all(distance(one, other) > 40 for other in hues[:n]), (one, hues)
    legend = page.evaluate('[...document.querySelectorAll("dt path")].map(path => '
                           '[getComputedStyle(path).stroke, path.getAttribute("stroke-dasharray")])')
    assert len(set(map(tuple, legend))) == 16


def channels(colour):
    return [int(colour[n:n + 2], 16) for n in (1, 3, 5)]


def contrast(one, other):
    """Return the contrast of two colours, WCAG 2.2."""
    def luminance(colour):
        parts = [value / 255 for value in channels(colour)]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def distance(one, other):
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(channels(one), channels(other))))


@needs_browser
def test_bad_value_costs_one_sample_and_its_sensor_is_named(opened):
    now = time.time()
    page, feed = opened(info(), hello(sensors={'gyro': ('rad/s', XYZ), 'n': ('m', [])}), READY)
    page.wait_for('story.ready')
    feed.tell(reading(now - 0.2, gyro=[1, 2, 3], n=1), reading(now - 0.1, gyro=[1, None, 'x'], n=2),
              reading(now, gyro=[1, 2, 4], n=3))
    page.wait_for('%s.series && %s.series.end === 3' % ((chart_of('gyro'),) * 2))
    good = page.evaluate('[0, 1, 2].map(i => isNumber(%s.series.value(i, 1)))' % chart_of('gyro'))
    assert good == [True, False, True]
    assert page.evaluate('%s.series.end' % chart_of('n')) == 3
    assert 'gyro' in page.evaluate(text_of('.device .note'))
    page.wait_for('/2 bad/.test(%s)' % text_of(card('gyro') + ' .rate'))
    feed.tell({'error': {'device': 'pixel', 'sensor': 'n', 'text': '"NaN" is no number', 'count': 3}})
    page.wait_for('[...document.querySelectorAll(".device .note")].some(note => '
                  'note.textContent === %s)' % json.dumps('n: "NaN" is no number (3 bad values so far)'))
    assert page.evaluate('link.up')


##############################################################################
# Hostile neighbours
##############################################################################

PAYLOADS = ['<img src=x onerror="document.title=1">', '"><script>document.title=1</script>', "';document.title=1;//",
            '<svg onload=document.title=1>', 'javascript:document.title=1', '{{document.title=1}}',
            '${document.title=1}', '__proto__', 'constructor', 'hasOwnProperty', '</style><b>',
            '\u202egnp.exe', 'ﷺ' * 20, '🙂' * 30, 'a' * 60,
            '=HYPERLINK("x")', '&lt;b&gt;', '"', "'", '\\', '\x00', ' ']


@needs_browser
def test_nothing_that_a_device_says_becomes_markup(opened):
    page, feed = opened(info(title=PAYLOADS[0], addresses=PAYLOADS, start={PAYLOADS[1]: PAYLOADS[0]}), READY, width=320)
    page.wait_for('story.ready')
    page.evaluate('$("invite").click()')
    before = page.evaluate('document.scripts.length')
    now = time.time()
    for payload in PAYLOADS:
        feed.tell(hello(payload, source=payload, sensors={payload: (payload, [payload, payload])}),
                  {'d': payload, 't': now, 's': {payload: [1.0, 2.0]}},
                  {'error': {'device': payload, 'text': payload}},
                  {'error': {'device': payload, 'sensor': payload, 'text': payload}},
                  {'notice': {'key': payload, 'text': payload}}, {'marker': {'id': payload, 't': now, 'text': payload}},
                  {'dropped': {'device': payload, 'where': payload, 'sensors': {payload: 3}}},
                  {'state': {'device': payload, 'state': payload, 'since': payload}}, {'refused': {'text': payload}})
    page.wait_for('devices.size === %d' % len(PAYLOADS))
    page.evaluate(DRAWN)
    assert page.evaluate('document.title') == 'Sensors'
    assert page.evaluate('document.querySelectorAll("img, script:not(:last-of-type), b, iframe, object").length') == 0
    assert page.evaluate('document.scripts.length') == before
    assert page.evaluate('[...document.querySelectorAll("h2")].map(h2 => h2.textContent)') == [p[:60] for p in PAYLOADS]
    assert page.evaluate('({}).polluted === undefined && Object.keys(Object.prototype).length === 0')
    assert page.evaluate('document.documentElement.scrollWidth') <= 320
    page.evaluate('window.kinds = [...document.querySelectorAll("*")].some(node => [...node.attributes].some('
                  'attribute => /^on/.test(attribute.name)))')
    assert page.evaluate('kinds') is False


@needs_browser
def test_largest_numbers_stop_no_page(opened):
    page, feed = opened(info(), hello(sensors={'a': ('', [])}), READY)
    page.wait_for('story.ready')
    now = time.time()
    for n, values in enumerate(([-1.7e308, 0], [1.7e308, -1.7e308], [5e-324, 0], [0, 1e300], ['x' * 9, {}])):
        feed.tell(reading(now - 5 + n, a=values))
        page.wait_for('%s.series && %s.series.end === %d' % (chart_of('a'), chart_of('a'), n + 1))
        page.evaluate(DRAWN)
        assert page.evaluate('%s.scale.lines <= 8' % chart_of('a'))
    feed.tell(*(reading(t, a=[1, 2]) for t in (0, -1e300, 1e300, 1e18, now + 1)), 'null',
              '[null, 3, "x", [], {"s": 3}]', '{"hello": null}', '{"hello": {"device": 3}}',
              '{"history": {"readings": [null, 3, {"d": 1}]}}', '{"ready": 1}', '{"time": "x"}', '{"state": []}',
              '{"dropped": {"device": "pixel", "sensors": {"a": "x"}}}', '{broken')
    feed.tell(hello('last'))
    page.wait_for('devices.has("last")')
    page.evaluate(DRAWN)
    page.evaluate('show(300, null); ' + DRAWN)
    page.wait_for('%s.series.end === 1' % chart_of('a'))


@needs_browser
def test_page_stays_small_whatever_names_come(opened):
    page, feed = opened()
    page.wait_for('story.ready')
    now = time.time()
    for n in range(60):
        feed.tell([{'d': 'device %d' % (n * 50 + i), 't': now + n, 's': {'sensor %d' % (n * 50 + i): list(range(40))}}
                   for i in range(50)],
                  [{'d': 'device 0', 't': now + n, 's': {'s%d' % (n * 50 + i): 1}} for i in range(50)],
                  {'notice': {'key': 'key %d' % n, 'text': 'x' * 5000}},
                  {'marker': {'id': n, 't': now, 'text': 'm' * 5000}})
    feed.tell({'marker': {'id': 'end', 't': now, 'text': 'end'}})
    page.wait_for('markers.some(marker => marker.id === "end")', timeout=30)
    assert page.evaluate('devices.size') == 32
    assert page.evaluate('document.querySelectorAll("article").length') == 256
    assert page.evaluate('Math.max(...[...devices.values()].map(device => Math.max(...[...device.charts.values()].map('
                         'chart => chart.series.width))))') == 16
    assert page.evaluate('markers.length') <= 100
    notes = page.evaluate('[...document.querySelectorAll("#notes .note")].map(note => note.textContent)')
    assert len(notes) <= 20 and all(len(note) <= 300 for note in notes)
    assert any(note.startswith('Only 32 devices are shown') for note in notes)
    assert any(note.startswith('Only 256 sensors are shown') for note in notes)
    assert page.evaluate('document.querySelectorAll("*").length') < 12000
    assert page.evaluate('allocated') <= 192 << 20


##############################################################################
# Drawing
##############################################################################

@needs_browser
def test_chart_moves_with_the_clock_and_is_drawn_only_where_it_is_seen(opened):
    now = time.time()
    sensors = {'s%d' % n: ('m', XYZ) for n in range(12)}
    past = [{'d': 'pixel', 't': now - 20 + n / 20, 's': {name: [math.sin(n / 9), 1, 2] for name in sensors}}
            for n in range(400)]
    page, feed = opened(info(), hello(sensors=sensors), history(*past), READY)
    page.wait_for('story.ready && seen.size > 0')
    page.evaluate('show(10, null)')
    drawn = page.evaluate('''new Promise(done => {
        const counts = {};
        for (const [name, chart] of devices.get('pixel').charts) {
            counts[name] = 0;
            const paint = chart.drawNew, all = chart.drawAll;
            chart.drawNew = function (...a) { counts[name]++; paint.apply(chart, a); };
            chart.drawAll = function (...a) { counts[name]++; all.apply(chart, a); };
        }
        const seenNames = [...seen].map(chart => chart.name);
        setTimeout(() => done([counts, seenNames]), 600);
    })''')
    counts, seen_names = drawn
    assert 0 < len(seen_names) < 6
    for name, count in counts.items():           # no message came in this time
        assert (count > 3) == (name in seen_names), drawn


@needs_browser
def test_many_messages_are_one_drawing_a_frame(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(time.time(), 5, 10)), READY)
    page.wait_for('story.ready && seen.size')
    drawn = page.evaluate('''new Promise(done => {
        const chart = %s, draw = chart.frame, began = now();
        let count = 0;
        requestAnimationFrame(() => {
            chart.frame = function (to) { count++; draw.call(chart, to); };
            for (let i = 1; i < 500; i++) receive(JSON.stringify({d: 'pixel', t: began + i / 1000, s: {n: i}}));
            requestAnimationFrame(() => requestAnimationFrame(() => done([count, chart.series.end])));
        });
    })''' % chart_of('n'))
    assert drawn[0] <= 2 and drawn[1] == 550


@needs_browser
def test_what_is_drawn_bit_by_bit_is_what_is_drawn_at_once(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', XYZ)}), READY, scale=2)
    page.wait_for('story.ready')
    page.evaluate('show(10, null)')
    with telling(feed, lambda t: reading(t, n=[math.sin(t * 9), math.cos(t * 31), t % 1]), 50):
        page.wait_for('%s.series && %s.series.end > 100' % ((chart_of('n'),) * 2))
    different = page.evaluate('''(async () => {
        const chart = %s, pixels = () => chart.canvas.getContext('2d').getImageData(0, 0, chart.canvas.width,
            chart.canvas.height).data;
        await %s;
        const before = pixels(), anchor = chart.anchor;
        chart.drawAll(anchor, anchor - view.span);
        const after = pixels();
        let count = 0, ink = 0;
        for (let i = 3; i < after.length; i += 4) {
            if (Math.abs(after[i] - before[i]) > 90) count++;
            if (after[i] > 90) ink++;
        }
        return [count, ink];
    })()''' % (chart_of('n'), DRAWN))
    assert different[1] > 1000 and different[0] < different[1] * 0.05, different


@needs_browser
def test_columns_that_begin_anew_are_drawn_whole(opened):
    now = time.time()
    page, _ = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(now, 20, 10)), READY)
    page.wait_for('story.ready && seen.size')
    page.evaluate('show(30, null); ' + DRAWN)
    before = page.evaluate(INK % (chart_of('n'), now - 20, now))
    page.evaluate('%s.columns.from = Infinity; %s.drawnEnd = -1; %s' % (chart_of('n'), chart_of('n'), DRAWN))
    page.wait_for('%s.columns.from < Infinity' % chart_of('n'))
    assert page.evaluate(INK % (chart_of('n'), now - 20, now)) == pytest.approx(before, rel=0.1)


@needs_browser
def test_old_readings_are_overwritten_and_the_arrays_stop_growing(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), READY)
    page.wait_for('story.ready')
    sizes = page.evaluate('''(() => {
        const series = new Series(2), sizes = [];
        for (let i = 0; i < 200000; i++) {
            series.push(1000 + i / 100, [i, -i], 1);
            if (i % 40000 === 39999) sizes.push([series.room, series.end - series.begin, series.first, series.last]);
        }
        return sizes;
    })()''')
    rooms = [size[0] for size in sizes]
    assert rooms[0] == rooms[-1] == 32768
    assert all(29990 <= size[1] <= 30010 and 299 <= size[3] - size[2] <= 301 for size in sizes), sizes


##############################################################################
# Looking closer
##############################################################################

def looking(opened, **more):
    """Open a page with two sensors of which everything is known: a = x and b = 10 x, x seconds after the beginning."""
    now = time.time()
    begin = now - 50
    past = [reading(begin + n / 10, a=n / 10, b=[n, -n]) for n in range(500)]
    page, feed = opened(info(), hello(sensors={'a': ('m', []), 'b': ('m', ['p', 'q'])}), history(*past), READY, **more)
    page.wait_for('story.ready && seen.size')
    page.evaluate('show(40, %r)' % (begin + 50))
    page.evaluate(DRAWN)
    return page, feed, begin


def spot(page, sensor, moment):
    """Return where on the screen a moment is in a chart."""
    page.evaluate('document.querySelector(%s).scrollIntoView({block: "center"})' % json.dumps(card(sensor) + ' .plot'))
    page.evaluate(DRAWN)
    return tuple(page.evaluate('''(chart => { const box = chart.plot.getBoundingClientRect();
        return [box.x + chart.x(%r), box.y + 60]; })(%s)''' % (moment, chart_of(sensor))))


def numbers_in(page, sensor):
    return [float(plain(text)) for text in page.evaluate(
        '[...document.querySelectorAll(%s)].map(dd => dd.firstChild.textContent)' % json.dumps(card(sensor) + ' dd'))]


def press(page, x, y):
    page.mouse('mousePressed', x, y)
    page.mouse('mouseReleased', x, y)
    page.evaluate(DRAWN)


@needs_browser
@pytest.mark.parametrize('width, height', [(360, 740), (1280, 800)])
def test_cursor_shows_the_values_of_its_moment_across_all_charts(opened, width, height):
    page, _, begin = looking(opened, width=width, height=height)
    press(page, *spot(page, 'a', begin + 20))
    page.wait_for('look.cursor !== null')
    assert page.evaluate('look.cursor') == pytest.approx(begin + 20, abs=0.2)
    a, = numbers_in(page, 'a')
    assert a == pytest.approx(20, abs=0.3)
    page.evaluate('document.querySelector(%s).scrollIntoView(); %s' % (json.dumps(card('b')), DRAWN))
    page.wait_for('%s.toldAt' % chart_of('b'))
    assert numbers_in(page, 'b') == pytest.approx([10 * a, -10 * a])
    page.evaluate('compare()')
    press(page, *spot(page, 'a', begin + 30))
    assert 'B − A = ' in page.evaluate(text_of('#moment'))
    apart = float(re.search(r'B − A = ([\d.]+) s', page.evaluate(text_of('#moment'))).group(1))
    assert apart == pytest.approx(10, abs=0.4)
    delta = page.evaluate(text_of(card('a') + ' dd small'))
    assert float(plain(delta[2:])) == pytest.approx(apart, abs=0.2)
    page.evaluate('setCursor(%r); %s' % (begin - 5, DRAWN))              # before the first reading
    assert page.evaluate(text_of(card('a') + ' dd')).startswith('–')


@needs_browser
def test_tap_enlarges_a_living_chart_and_enter_does(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(time.time(), 20, 10)), READY)
    page.wait_for('story.ready && seen.size')
    before = page.evaluate('%s.plot.clientHeight' % chart_of('n'))
    x, y = page.middle(card('n') + ' .plot')
    page.touch('touchStart', (x, y))
    page.touch('touchEnd')
    page.wait_for('%s.plot.clientHeight > %d' % (chart_of('n'), before + 60))
    assert page.evaluate('document.querySelector("h3 button").getAttribute("aria-expanded")') == 'true'
    # What is seen of it is summed up.
    page.wait_for('/min .* mean .* max/.test(%s)' % text_of(card('n') + ' dd small'))
    page.evaluate('%s.plot.focus()' % chart_of('n'))
    page.key('Enter')
    page.wait_for('%s.plot.clientHeight === %d' % (chart_of('n'), before))


@needs_browser
def test_minimum_maximum_and_mean_are_those_of_what_is_seen(opened):
    page, _, begin = looking(opened)
    found = page.evaluate('seenOf(%s, 0, %r, %r)' % (chart_of('a'), begin + 9.95, begin + 20.05))
    assert found == {'low': 10, 'high': 20, 'mean': pytest.approx(15), 'count': 101}
    page.evaluate('show(10, %r)' % (begin + 20.05))
    page.evaluate(DRAWN)
    low, high = re.match('min (.*) · max (.*)', page.evaluate(text_of(card('a') + ' .range'))).groups()
    assert (float(low), float(high)) == pytest.approx((10, 20), abs=0.15)


@needs_browser
def test_paused_chart_is_panned_by_a_finger_and_zoomed_by_two(opened):
    page, _, begin = looking(opened)
    page.command('Emulation.setTouchEmulationEnabled', enabled=True, maxTouchPoints=2)
    page.evaluate('show(20, %r)' % (begin + 45))
    x, y = spot(page, 'a', begin + 35)
    to, second = page.evaluate('view.to'), page.evaluate('perSecond(%s)' % chart_of('a'))
    page.touch('touchStart', (x, y))
    for step in range(1, 9):
        page.touch('touchMove', (x + 10 * step, y))
    page.touch('touchEnd')
    page.wait_for('Math.abs(view.to - %r) < 0.3' % (to - 80 / second))
    assert page.evaluate('look.cursor') is None
    page.touch('touchStart', (x - 20, y), (x + 20, y))
    for step in range(1, 7):
        page.touch('touchMove', (x - 20 - 5 * step, y), (x + 20 + 5 * step, y))
    page.touch('touchEnd')
    page.wait_for('Math.abs(view.span - 8) < 1.5')
    page.evaluate('document.querySelector("[data-look=out]").click()')
    page.wait_for('view.span > 10')


@needs_browser
def test_pause_stops_the_charts_and_not_the_readings(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}),
                        history(*steady(time.time(), 3, 10, lambda n: 1)), READY)
    page.wait_for('/^1/.test(%s)' % text_of(card('n') + ' dd'))
    page.evaluate('document.activeElement.blur()')
    page.key('p')
    page.wait_for('view.to !== null')
    end = page.evaluate('%s.series.end' % chart_of('n'))
    feed.tell(*(reading(time.time() + 1 + n / 100, n=5) for n in range(5)))
    page.wait_for('%s.series.end === %d' % (chart_of('n'), end + 5))
    page.evaluate('redrawAll(); ' + DRAWN)
    assert page.evaluate(text_of(card('n') + ' dd')).startswith('1')
    page.click('#pause')
    page.wait_for('/^5/.test(%s)' % text_of(card('n') + ' dd'))


@needs_browser
def test_order_and_hidden_charts_and_span_are_remembered(opened):
    story = [info(), hello(sensors={name: ('m', []) for name in 'abc'}),
             history(*(reading(time.time() - 1, a=1, b=2, c=3) for _ in range(1))), READY]
    page, feed = opened(*story)
    page.wait_for('story.ready')
    cards = '[...document.querySelectorAll("article")].filter(card => !card.hidden).map(card => card.dataset.sensor)'
    assert page.evaluate(cards) == ['a', 'b', 'c']
    page.click(card('c') + ' .more')
    page.click('.menu button:nth-child(1)')
    page.click('.menu button:nth-child(1)')
    page.click(card('a') + ' .more')
    page.click('.menu button:nth-child(3)')
    page.click('[data-span="10"]')
    assert page.evaluate(cards) == ['c', 'b']
    page.navigate(feed.url)
    page.wait_for('story.ready && document.querySelectorAll("article").length === 3')
    assert page.evaluate(cards) == ['c', 'b']
    assert page.evaluate('view.span') == 10
    page.click('.hiddens button')
    assert page.evaluate(cards) == ['c', 'a', 'b']
    page.evaluate('localStorage.clear()')


@needs_browser
def test_marker_is_told_to_the_server_and_comes_to_all(opened):
    one, feed = opened(info(), hello(sensors={'n': ('m', [])}),
                       history(*steady(time.time(), 20, 10, lambda n: 1)), READY)
    two, _ = opened(feed=feed, width=1280, height=800)
    two.wait_for('story.ready')
    one.wait_for('story.ready && seen.size')
    one.click('#mark')
    assert feed.commands.get(timeout=DEADLINE) == {'marker': {'text': 'mark 1'}}
    t = time.time() - 5
    before = one.evaluate(INK % (chart_of('n'), t - 1, t + 1))
    feed.tell(*[{'marker': {'id': 1, 't': t, 'text': 'mark 1', 'by': 'x'}}] * 2)
    for page in (one, two):
        page.wait_for('markers.length === 1')
        page.evaluate(DRAWN)
    assert one.evaluate(INK % (chart_of('n'), t - 1, t + 1)) > before + 20


@needs_browser
def test_picture_of_a_chart_and_table_of_what_is_seen_are_saved(opened, chromium, tmp_path):
    page, feed, begin = looking(opened)
    chromium.target.command('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    page.evaluate('show(10, %r)' % (begin + 20.05))
    page.click('#table')
    page.click(card('b') + ' .more')
    page.click('.menu button:nth-child(4)')
    wait_until(lambda: sorted(path.suffix for path in tmp_path.iterdir()) == ['.csv', '.png'], 'the files')
    table = next(tmp_path.glob('*.csv')).read_bytes().decode('utf-8-sig')
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 100 * 3                                          # ten seconds of a, and of b's two axes
    b = [row for row in rows if row['sensor'] == 'b' and row['axis'] == 'q']
    assert [float(row['value']) for row in b] == [-n for n in range(101, 201)]
    assert float(b[0]['time']) == pytest.approx(begin + 10.1, abs=1e-3) and b[0]['unit'] == 'm'
    width, height, colours = read_png(next(tmp_path.glob('*.png')).read_bytes())
    assert height == 132 + 44 and width > 200 and len(colours) > 20


def read_png(data):
    """Return (width, height, the set of pixel rows' distinct bytes) of a PNG file."""
    assert data.startswith(b'\x89PNG\r\n\x1a\n')
    width, height = struct.unpack('>II', data[16:24])
    at, packed = 8, b''
    while at < len(data):
        size, kind = struct.unpack('>I4s', data[at:at + 8])
        packed += data[at + 8:at + 8 + size] if kind == b'IDAT' else b''
        at += size + 12
    return width, height, set(zlib.decompress(packed))


@needs_browser
def test_table_cannot_become_a_formula(opened):
    page, _ = opened()
    fields = page.evaluate('["=1+1", "+1", "-1", "@x", "a\\"b", "plain"].map(field)')
    assert fields == ['"\'=1+1"', '"\'+1"', '"\'-1"', '"\'@x"', '"a""b"', '"plain"']


##############################################################################
# Pictures
##############################################################################

def turned(alpha, beta, gamma):
    """Return the phone's axes in the world's (east, north, up) as columns, turned about z, x and y by degrees."""
    a, b, g = (math.radians(angle) for angle in (alpha, beta, gamma))
    z = [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    x = [[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]]
    y = [[math.cos(g), 0, math.sin(g)], [0, 1, 0], [-math.sin(g), 0, math.cos(g)]]
    return times(times(z, x), y)


def times(a, b):
    return [[sum(a[row][n] * b[n][column] for n in range(3)) for column in range(3)] for row in range(3)]


def quaternion(alpha, beta, gamma):
    def about(axis, angle):
        half = math.radians(angle) / 2
        return [math.cos(half)] + [math.sin(half) if n == axis else 0.0 for n in range(3)]

    def product(p, q):
        return [p[0] * q[0] - p[1] * q[1] - p[2] * q[2] - p[3] * q[3],
                p[0] * q[1] + p[1] * q[0] + p[2] * q[3] - p[3] * q[2],
                p[0] * q[2] - p[1] * q[3] + p[2] * q[0] + p[3] * q[1],
                p[0] * q[3] + p[1] * q[2] - p[2] * q[1] + p[3] * q[0]]
    w, x, y, z = product(product(about(2, alpha), about(0, beta)), about(1, gamma))
    return [x, y, z, w]


SCREEN = [(-22, -44, 4), (22, -44, 4), (22, 40, 4), (-22, 40, 4)]       # corners of what the page draws, flat
POSES = [(0, 0, 0), (90, 0, 0), (200, 30, 0), (315, 0, 40), (45, 20, -30), (120, 80, 0), (300, -50, 10)]


def told_by(kind, pose):
    """Return the sensors and one reading of them that a phone in a pose has."""
    alpha, beta, gamma = pose
    if kind == 'web angles':
        return {'orientation': ('°', ['alpha', 'beta', 'gamma'])}, {'orientation': list(pose)}
    if kind == 'android angles':
        return ({'orientation': ('°', ['azimuth', 'pitch', 'roll'])}, {'orientation': [-alpha % 360, -beta, gamma]})
    if kind == 'rotation vector':
        return {'rotation vector': ('', ['x', 'y', 'z', 'w'])}, {'rotation vector': quaternion(*pose)}
    axes = turned(*pose)
    gravity = [9.81 * axes[2][n] for n in range(3)]
    field = [20 * axes[1][n] - 44 * axes[2][n] for n in range(3)]        # north, and in Europe mostly down
    return {'accel': ('m/s²', XYZ), 'magnetic': ('µT', XYZ)}, {'accel': gravity, 'magnetic': field}


@needs_browser
@pytest.mark.parametrize('kind', ['web angles', 'android angles', 'rotation vector', 'fields'])
def test_pose_of_known_angles_is_right_within_two_degrees(opened, kind):
    sensors, _ = told_by(kind, POSES[0])
    page, feed = opened(info(), hello(sensors=sensors), READY)
    page.wait_for('story.ready')
    now = time.time()
    for n, pose in enumerate(POSES):
        feed.tell({'d': 'pixel', 't': now + n / 10, 's': told_by(kind, pose)[1]})
        page.wait_for('[...devices.get("pixel").charts.values()].every(chart =>'
                      'chart.series && chart.series.end === %d)' % (n + 1))
        found = page.evaluate('poseOf(devices.get("pixel"), now() + 60)')
        assert all(off_by(found['pose'], turned(*pose), axis) < 2 for axis in range(3)), (pose, found)
        if abs(pose[1]) < 65:
            assert apart(found['heading'], heading(turned(*pose))) < 2, (pose, found)
        page.evaluate(DRAWN)
        drawn = page.evaluate('[...document.querySelectorAll("figcaption")].map(caption => caption.textContent)')
        pitch, roll = (float(plain(text)) for text in re.search(r'pitch (\S+)°, roll (\S+)°', ' '.join(drawn)).groups())
        assert abs(pitch - pose[1]) < 2 and apart(roll, pose[2]) < 2, (pose, drawn)
        if abs(pose[1]) < 65:
            assert apart(float(re.search(r'heading (\d+)°', ' '.join(drawn)).group(1)), heading(turned(*pose))) < 2
            rose = page.evaluate('document.querySelector("[data-picture=compass] g").getAttribute("transform")')
            assert apart(-float(rose[7:-1]), heading(turned(*pose))) < 2
        # The drawn screen is the turned one, seen from the south and 25 degrees above.
        corners = page.evaluate('document.querySelector("[data-picture=phone] .screen").getAttribute("points")')
        expected = [seen_from_above(turned(*pose), corner) for corner in SCREEN]
        if corners:
            points = [tuple(map(float, point.split(','))) for point in corners.split()]
            assert all(math.hypot(one[0] - other[0], one[1] - other[1]) < 1 for one, other in zip(points, expected))


def seen_from_above(pose, point):
    east, north, up = (sum(row[n] * point[n] for n in range(3)) for row in pose)
    return east, -up * math.cos(math.radians(25)) - north * math.sin(math.radians(25))


def off_by(one, other, axis):
    cosine = sum(one[row][axis] * other[row][axis] for row in range(3))
    return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def heading(pose):
    return math.degrees(math.atan2(pose[0][1], pose[1][1])) % 360


def apart(one, other):
    return abs((one - other + 180) % 360 - 180)


@needs_browser
def test_track_is_drawn_in_metres(opened):
    now = time.time()
    # 100 m to the north and then 200 m to the east, at 52° north: a degree has 111.267 and 68.677 km there.
    past = [reading(now - 30 + n, gps=[52 + n * 10 / 111267, 13]) for n in range(11)]
    past += [reading(now - 19 + n, gps=[52 + 100 / 111267, 13 + n * 20 / 68677]) for n in range(1, 11)]
    page, _ = opened(info(), hello(sensors={'gps': ('°', ['latitude', 'longitude'])}), history(*past), READY)
    page.wait_for('(document.querySelector("[data-picture=track] polyline") || document.body).getAttribute("points")')
    assert page.evaluate(text_of('[data-picture=track] figcaption')) == '100 m north, 200 m east'
    points = page.evaluate('trackOf(%s, now())' % chart_of('gps'))
    assert len(points) == 21 and points[-1] == pytest.approx([200, 100], abs=1)
    assert page.evaluate(text_of('[data-picture=track] text')) == '200 m'


METERS = [                    # sensor, unit, value, what is said, how much of the meter is filled
    ('light', 'lx', 0.1, '0.1 lx, dark', 0), ('light', 'lx', 100, '100 lx, indoors', 50),
    ('light', 'lx', 100000, '100000 lx, sunshine', 100), ('sound', 'dB', 60, '60 dB', 50),
    ('level', 'dBFS', -45, '−45 dB', 50)]


@needs_browser
def test_light_and_sound_fill_a_meter(opened):
    now = time.time()
    page, _ = opened(info(), *[hello(words, sensors={sensor: (unit, [])}) for sensor, unit, _, words, _ in METERS],
                     history(*[{'d': words, 't': now, 's': {sensor: value}} for sensor, _, value, words, _ in METERS]),
                     READY, height=4000)
    page.wait_for('document.querySelectorAll("[pathLength][stroke-dasharray]").length === 5')
    said = page.evaluate('[...document.querySelectorAll("figcaption")].map(caption => caption.textContent)')
    assert said == [words for _, _, _, words, _ in METERS]
    filled = page.evaluate('[...document.querySelectorAll("[pathLength]")].map(arc => '
                           'parseFloat(arc.getAttribute("stroke-dasharray")))')
    assert filled == pytest.approx([part for _, _, _, _, part in METERS], abs=0.5)


@needs_browser
def test_code_of_the_address_is_drawn_square_by_square(opened):
    rows = [''.join('1' if (x * 7 + y * 3) % 5 < 2 else '0' for x in range(25)) for y in range(25)]
    page, _ = opened(info(qr={'text': 'http://192.168.1.5:9000/', 'rows': rows}), READY, dark=True)
    page.wait_for('story.ready')
    page.click('#invite')
    page.wait_for(shown('#join'))
    label = page.evaluate('document.querySelector("#join svg").getAttribute("aria-label")')
    assert label == 'QR code of http://192.168.1.5:9000/'
    drawn = page.evaluate('document.querySelector("#join svg path").getAttribute("d")')
    squares = {(int(x) - 4, int(y) - 4) for x, y in re.findall(r'M(\d+) (\d+)h1v1h-1z', drawn)}
    assert squares == {(x, y) for y in range(25) for x in range(25) if rows[y][x] == '1'}
    assert page.evaluate('document.querySelector("#join svg").getAttribute("viewBox")') == '0 0 33 33'
    text = page.evaluate(text_of('#join'))
    assert 'pkg install python' in text and 'http://192.168.1.5:9000/' in text


##############################################################################
# For everybody
##############################################################################

def axe_path():
    folders = os.environ.get('NODE_PATH', '').split(os.pathsep)
    paths = [os.path.join(folder, 'axe-core', 'axe.min.js') for folder in folders if folder]
    return next(filter(os.path.exists, paths), None)


def faults(page):
    """Return what axe-core finds fault with: ids, and the elements."""
    if not page.evaluate('typeof axe === "object"'):
        page.command('Page.setBypassCSP', enabled=True)
        with open(axe_path(), encoding='utf-8') as file:
            page.evaluate(file.read() + '; 0')
    return page.evaluate('axe.run().then(found => found.violations.map('
                         'one => [one.id, one.nodes.map(node => node.html)]))')


RICH = {'accel': ('m/s²', XYZ), 'orientation': ('°', ['alpha', 'beta', 'gamma']), 'light': ('lx', []),
        'gps': ('°', ['latitude', 'longitude']), 'pose': ('', ['axis %d' % n for n in range(16)])}

LIGHT = {'light': ('lx', [])}


def rich(t, device='pixel'):
    return {'d': device, 't': t, 's': {'accel': [math.sin(t), math.cos(t), 9.81], 'orientation': [t * 20 % 360, 10, 20],
                                       'light': 300 + 100 * math.sin(t), 'gps': [52 + t % 100 / 1e5, 13],
                                       'pose': [n + math.sin(t) for n in range(16)]}}


@needs_browser
@pytest.mark.skipif(axe_path() is None,
                    reason='no axe-core here: npm install axe-core, and name its folder in NODE_PATH')
@pytest.mark.parametrize('dark, width', [(False, 360), pytest.param(True, 1280, marks=pytest.mark.slow)])
def test_axe_finds_nothing_in_any_state(opened, dark, width):
    now = time.time()
    page, feed = opened(info(qr={'text': 'x', 'rows': ['10', '01']}), hello(sensors=RICH, offset=2500, simulated=True),
                        hello('old', state='left', sensors=LIGHT), hello('far', state='lost', sensors=LIGHT),
                        {'error': {'device': 'pixel', 'text': 'linux: unplugged'}},
                        {'notice': {'key': 'k', 'text': 'A limit.'}},
                        {'marker': {'id': 1, 't': now - 3, 'text': 'mark 1'}},
                        history(*[rich(now - 10 + n / 10) for n in range(90)]),
                        history(*[reading(now - 9 + n, device, light=n)
                                  for device in ('old', 'far') for n in range(9)]),
                        READY, width=width, height=800, dark=dark)
    page.wait_for('story.ready')
    page.evaluate('$("invite").click()')
    with telling(feed, rich, 10):
        page.wait_for(text_of('#state') + ' === "live"')
        assert faults(page) == []
        page.click('#pause')
        press(page, *spot(page, 'accel', page.evaluate('view.to - 5')))
        page.evaluate('compare(); toggleMenu(%s); toggleBig(%s)' % ((chart_of('accel'),) * 2))
        assert faults(page) == []
        page.click('#pause')
    page.wait_for(shown(card('accel') + ' .staleness'))
    assert faults(page) == []
    page.evaluate('notice(insecure())')
    feed.hang_up(1001, '')
    feed.close()
    page.wait_for('/^connection lost/.test(%s)' % text_of('#state'))
    assert faults(page) == []


@needs_browser
def test_everything_fits_and_can_be_hit_by_a_finger(opened):
    now = time.time()
    longest = 'a name of sixty letters, which is as long as a name can be..'
    page, feed = opened(info(), hello(longest, sensors=RICH),
                        hello(sensors=RICH), history(*[rich(now - 10 + n / 10) for n in range(90)]), READY)
    page.wait_for('story.ready')
    page.evaluate('$("invite").click(); toggleMenu(%s); $("pause").click(); setCursor(view.to - 3)' % chart_of('accel'))
    for width in (280, 360, 768, 1280):
        page.command('Emulation.setDeviceMetricsOverride', width=width, height=740, deviceScaleFactor=1,
                     mobile=width < 600)
        page.wait_for('innerWidth === %d' % width)
        page.evaluate(DRAWN)
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        small = page.evaluate('''[...document.querySelectorAll('button, [tabindex]')].filter(node => {
            const box = node.getBoundingClientRect();
            return box.width && (box.width < 44 || box.height < 44);
        }).map(node => node.outerHTML)''')
        assert small == [], width


@needs_browser
def test_everything_can_be_done_with_the_keyboard(opened):
    page, feed, begin = looking(opened)
    page.evaluate('show(40, null); %s.plot.focus()' % chart_of('a'))
    page.key('ArrowLeft')
    page.wait_for('view.to !== null && look.cursor !== null')
    first = page.evaluate('look.cursor')
    page.key('ArrowLeft', modifiers=8)
    page.wait_for('look.cursor < %r' % first)
    page.key('c')
    page.wait_for('look.pin !== null')
    text = page.evaluate('%s.plot.getAttribute("aria-valuetext")' % chart_of('a'))
    assert re.match(r'\d\d:\d\d:\d\d\.\d{3}, a ', text)
    span = page.evaluate('view.span')
    page.key('+')
    page.wait_for('view.span < %r' % span)
    page.key('Escape')
    page.wait_for('look.cursor === null')
    order = page.evaluate('[...document.querySelectorAll("button, [tabindex]")].every(node => node.tabIndex === 0)')
    assert order


@needs_browser
def test_reduced_motion_moves_once_a_second(opened):
    page, feed = opened(info(), hello(sensors={'n': ('m', [])}), history(*steady(time.time(), 20, 10)), READY)
    page.emulate(prefers_reduced_motion='reduce')
    page.wait_for('calm.matches && story.ready && seen.size')
    with telling(feed, lambda t: reading(t, n=t % 3), 20):
        anchors = page.evaluate('''new Promise(done => {
            const found = new Set(), chart = %s, began = seconds();
            (function look() {
                found.add(chart.anchor);
                if (seconds() - began < 2.2) requestAnimationFrame(look); else done(found.size);
            })();
        })''' % chart_of('n'))
    assert 2 <= anchors <= 5


##############################################################################
# Several devices
##############################################################################

@needs_browser
def test_devices_stand_side_by_side_on_one_axis(opened):
    now = time.time()
    names = ['one', 'two', 'three']
    page, feed = opened(info(), *[hello(name, offset=offset, sensors={'n': ('m', [])}) for name, offset in
                                  zip(names, (0, -12500.0, None))],
                        history(*[reading(now - 5 + n / 10, name, n=n) for name in names for n in range(50)]), READY,
                        width=1440, height=900)
    page.wait_for('story.ready && seen.size === 3')
    page.evaluate('show(60, %r); %s' % (now, DRAWN))
    places = page.evaluate('[...document.querySelectorAll(".device")].map(one => {'
                           'const box = one.getBoundingClientRect(); return [box.x, box.y]; })')
    assert len({y for _, y in places}) == 1 and len({x for x, _ in places}) == 3
    xs = page.evaluate('[...devices.values()].map(device => { const chart = device.charts.get("n");'
                       'return Math.round(chart.x(%r) - chart.x(%r)); })' % (now - 1, now - 4))
    assert len(set(xs)) == 1
    sources = page.evaluate('[...document.querySelectorAll(".source")].map(source => source.textContent)')
    assert sources == ['termux', 'termux · clock 13 s behind', 'termux']


@needs_browser
def test_device_that_left_looks_different_from_one_without_radio_and_can_be_removed(opened):
    names = ['stays', 'leaves', 'breaks', 'sleeps']
    page, feed = opened(info(), *[hello(name, sensors={'n': ('m', [])}) for name in names], READY)
    page.wait_for('story.ready')
    since = time.time()
    feed.tell(*[{'state': {'device': device, 'state': state, 'since': since}} for device, state in
                (('leaves', 'left'), ('breaks', 'lost'), ('sleeps', 'silent'))])
    looks = '''[...devices.values()].map(({root, stateText}) =>
        [stateText.textContent.replace(/\\d.*/, '…'), root.className, getComputedStyle(stateText).backgroundColor])'''
    with telling(feed, lambda t: reading(t, 'stays', n=1), 5):
        page.wait_for('devices.get("sleeps").state === "silent" && devices.get("stays").removal.hidden')
        seen = page.evaluate(looks)
    assert [look[0] for look in seen] == ['', 'left …', 'connection lost …', 'silent for …']
    assert len({tuple(look) for look in seen}) == 4
    assert page.evaluate('[...devices.values()].map(device => device.removal.hidden)') == [True, False, False, False]
    page.evaluate('devices.get("leaves").removal.click()')
    assert feed.commands.get(timeout=DEADLINE) == {'remove': {'device': 'leaves'}}
    assert page.evaluate('document.querySelectorAll(".device").length') == 3
    feed.tell({'gone': {'device': 'breaks'}})
    page.wait_for('!devices.has("breaks")')
    feed.tell(hello('stays', id='another', sensors={'m': ('m', [])}))
    page.wait_for('devices.get("stays").charts.has("m") && !devices.get("stays").charts.has("n")')
    feed.story = [info(), READY]                                         # the server was started anew
    feed.hang_up(1011)
    page.wait_for('devices.get("sleeps").state === "lost"')


##############################################################################
# The phone that shows the page as a sensor
##############################################################################

@needs_browser
def test_page_makes_its_phone_a_sensor(opened, chromium):
    page, feed = opened()
    page.wait_for('story.ready')
    chromium.target.command('Browser.grantPermissions', permissions=['geolocation', 'sensors'], origin=feed.url)
    here = dict(latitude=52.5, longitude=13.25, accuracy=5)
    page.command('Emulation.setGeolocationOverride', **here)
    page.click('#phone')
    greeting = feed.pushed.get(timeout=DEADLINE)['hello']
    assert re.match(r'\w+ [0-9a-f]{4}$', greeting['device']) and len(greeting['id']) == 24
    assert abs(greeting['t'] - time.time()) < 5 and greeting['sensors']['accel']['unit'] == 'm/s²'
    page.evaluate('window.shaking = setInterval(() => { %s; }, 16); 0' % MOTION)
    felt = {}
    deadline = time.monotonic() + DEADLINE
    while len(felt) < 3 and time.monotonic() < deadline:
        felt.update(feed.pushed.get(timeout=DEADLINE).get('s', {}))
        if 'position' not in felt:               # a browser that was asked while it was told says it at the next time
            page.command('Emulation.setGeolocationOverride', **here)
    assert felt == {'accel': [1.5, -2.5, 9.5], 'gyro': [1, 2, 3], 'position': [52.5, 13.25]}
    assert page.evaluate(text_of('#phone')) == 'Stop sending'
    page.click('#phone')
    page.wait_for('phone === null')
    assert page.evaluate(text_of('#phone')) == 'Use this phone as a sensor'
    page.evaluate('clearInterval(shaking)')


@needs_browser
def test_page_says_plainly_that_its_context_is_not_secure(opened):
    page, feed = opened()
    page.evaluate('Object.defineProperty(window, "isSecureContext", {value: false}); 0')
    page.click('#phone')
    page.wait_for(shown('#notice'))
    notice = page.evaluate(text_of('#notice p'))
    assert 'not a secure context' in notice and 'adb reverse tcp:%d' % feed.port in notice and '--https' in notice


@needs_browser
def test_phone_that_is_refused_or_feels_nothing_says_so(opened):
    page, feed = opened(info(may={'push': False, 'remove': False}), READY)
    page.wait_for('story.ready')
    page.click('#phone')
    page.wait_for('/password/.test(%s)' % text_of('#notice p'))
    feed.tell(info())
    page.wait_for('story.info.may.push')
    page.click('#phone')
    page.wait_for('/no motion and no position/.test(%s)' % text_of('#notice p'))
    assert page.evaluate('phone') is None


##############################################################################
# The README's picture
##############################################################################

def test_picture_in_the_repository_is_small_and_plain():
    with open(os.path.join(os.path.dirname(PAGE), 'page.svg'), encoding='utf-8') as file:
        picture = file.read()
    assert len(picture.encode('utf-8')) <= 20 * 1024
    check_picture(picture)


@needs_browser
def test_picture_is_drawn_by_the_page():
    check_picture(draw())


def check_picture(picture):
    root = xml.etree.ElementTree.fromstring(picture)
    tags = {node.tag.split('}')[1] for node in root.iter()}
    assert tags <= {'svg', 'g', 'rect', 'circle', 'path', 'polygon', 'polyline', 'text'}
    texts = [node.text for node in root.iter('{http://www.w3.org/2000/svg}text')]
    assert {'pixel', 'live', 'accel', 'm/s²', '20 Hz', 'now', '−10 s'} <= set(texts)
    assert not re.search(r'NaN|Infinity|undefined|null', picture)


##############################################################################
# What it costs
##############################################################################

SECONDS = float(os.environ.get('PAGE_SECONDS', '20'))
TWELVE = {'accel': ('m/s²', XYZ), 'gyro': ('rad/s', XYZ), 'magnetic': ('µT', XYZ), 'gravity': ('m/s²', XYZ),
          'linear accel': ('m/s²', XYZ), 'orientation': ('°', ['azimuth', 'pitch', 'roll']), 'light': ('lx', []),
          'pressure': ('hPa', []), 'proximity': ('cm', []), 'humidity': ('%', []), 'temperature': ('°C', []),
          'sound': ('dB', [])}
PHONES = ['pixel', 'galaxy', 'nokia']


def three_phones(first, count):
    """Return the readings that three phones of twelve sensors make a hundred times a second, from a number on."""
    readings = []
    for number in range(first, first + count):
        angle = number * 0.05
        values = {name: [round(math.sin(angle + n) * 9, 4) for n in range(len(axes))] or round(math.cos(angle) * 40, 4)
                  for name, (_, axes) in TWELVE.items()}
        readings += [{'d': name, 't': number / 100, 's': values} for name in PHONES]
    return readings


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize('width, height, span', [(360, 740, 10), (360, 740, 300), (1280, 800, 60)])
def test_three_phones_of_twelve_sensors_leave_half_the_main_thread(opened, width, height, span):
    page, feed = opened(info(), *[hello(name, 100, sensors=TWELVE) for name in PHONES], READY,
                        width=width, height=height)
    page.wait_for('story.ready')
    sent = [int(time.time() * 100)]

    def more(t):
        first, sent[0] = sent[0], int(t * 100)
        return three_phones(first, sent[0] - first)

    with telling(feed, more, 50):
        page.wait_for('devices.size === 3 && seen.size')
        page.evaluate('show(%d, null); window.scrollTo(0, document.querySelector("article").offsetTop)' % span)
        page.evaluate('window.frames60 = 0; (function count() { frames60++; requestAnimationFrame(count); })(); 0')
        time.sleep(2)
        before, frames, heap = page.metrics(), page.evaluate('frames60'), []
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            time.sleep(min(10.0, SECONDS / 2))
            page.command('HeapProfiler.collectGarbage')
            heap.append(page.metrics()['JSHeapUsedSize'] / 1e6)
        after, frames = page.metrics(), page.evaluate('frames60') - frames
    passed = after['Timestamp'] - before['Timestamp']
    busy = (after['TaskDuration'] - before['TaskDuration']) / passed
    print('%d×%d, %d s shown, %.0f s: %.1f frames a second, main thread busy %.0f %%, heap %.1f to %.1f MB, '
          'arrays %.0f MB, %d nodes' % (width, height, span, passed, frames / passed, busy * 100, heap[0], heap[-1],
                                        page.evaluate('allocated') / 1e6, after['Nodes']))
    assert busy <= 0.5
    assert frames / passed >= (55 if width == 360 else 40)      # a phone; a desktop shows four times as many charts
    assert heap[-1] < heap[0] + 5
    rates = page.evaluate('[...devices.values()].map(device => device.charts.get("accel").rate())')
    assert rates == pytest.approx([100, 100, 100], rel=0.05)


##############################################################################
# The browser's driver
##############################################################################

@needs_browser
def test_browser_evaluates_waits_and_names_errors(opened):
    page, feed = opened()
    assert page.evaluate('Promise.resolve({a: [1, "ü", null]})') == {'a': [1, 'ü', None]}
    with pytest.raises(browser_module.PageError, match='ReferenceError: nothing'):
        page.evaluate('nothing')
    assert page.wait_for('document.body') == {}
    with pytest.raises(TimeoutError, match='0.1 seconds'):
        page.wait_for('false', timeout=0.1)
    assert base64.b64encode(page.screenshot()).startswith(b'iVBORw0KGgo')
    with pytest.raises(browser_module.PageError):
        page.navigate('http://127.0.0.1:1/')


def test_browser_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv('CHROMIUM', '/nowhere/chromium')
    assert find_browser() is None
    with pytest.raises(FileNotFoundError, match='apt-get install chromium'):
        Browser()
