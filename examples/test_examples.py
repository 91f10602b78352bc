"""The examples, run as a user runs them: as processes, on 127.0.0.1, talked to over the network."""
import contextlib
import importlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
import xml.etree.ElementTree

import pytest

import minws
from examples.browser import Browser, find_browser

EXAMPLES = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(EXAMPLES)
DEADLINE = 10.0  # seconds for anything that should take a moment; a loaded machine takes long to start a process


def start(arguments, cwd=ROOT):
    """Start python with arguments; its output is text."""
    return subprocess.Popen([sys.executable] + arguments, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def run(*arguments, **options):
    """Run an example to its end; return its exit status, what it printed and what it complained about."""
    process = start(['-m', 'examples.' + arguments[0]] + [str(argument) for argument in arguments[1:]])
    try:
        output, errors = process.communicate(timeout=options.get('timeout', DEADLINE))
    finally:
        process.kill()
        process.wait()
    return process.returncode, output, errors


def first_line(process):
    """Return the first line that the process prints; fail with its complaint if there is none in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(DEADLINE) else ''
    if not line:
        process.kill()
        pytest.fail('printed no line: %s' % process.communicate()[1])
    return line


@contextlib.contextmanager
def serving(*arguments, stop=signal.SIGINT, cwd=ROOT):
    """Run python with arguments and yield the port it prints; afterwards it must end in order when it gets stop."""
    process = start([str(argument) for argument in arguments], cwd)
    try:
        line = first_line(process)
        yield int(re.search(r':(\d+)/', line).group(1))
        process.send_signal(stop)
        _, errors = process.communicate(timeout=DEADLINE)
        assert (process.returncode, errors) == (0, '')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def example(name, *arguments):
    """Return the arguments of python that serve an example on a free port of this machine."""
    return ('-m', 'examples.' + name, '--host', '127.0.0.1', '--port', 0) + arguments


# -- every example ---------------------------------------------------------------------------------------------------

SERVERS = {'echo_server': (), 'chat': (), 'many_clients': ('--serve',)}
ALL = sorted(list(SERVERS) + ['echo_client', 'mock_data_source', 'benchmark'])


@pytest.mark.parametrize('name', ALL)
def test_docstring_says_how_to_run_it(name):
    assert 'python3 -m examples.%s' % name in importlib.import_module('examples.' + name).__doc__


@pytest.mark.parametrize('name', sorted(SERVERS))
def test_port_in_use_is_one_sentence_naming_the_port(name):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        status, output, errors = run(name, '--host', '127.0.0.1', '--port', port, *SERVERS[name])
    assert status == 1
    assert output == ''
    assert errors.count('\n') == 1 and str(port) in errors and 'in use' in errors


@pytest.mark.parametrize('name', ALL)
def test_runs_as_a_file_beside_a_copy_of_the_library(name, tmp_path):
    for file in (os.path.join(EXAMPLES, name + '.py'), os.path.join(EXAMPLES, 'chat.html'), minws.__file__):
        shutil.copy(file, str(tmp_path))
    process = start([name + '.py', '--help'], str(tmp_path))
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, '')
    assert name == 'mock_data_source' or 'usage: %s.py' % name in output


# -- echo_server and echo_client -------------------------------------------------------------------------------------

frames_style = pytest.param('frames', marks=pytest.mark.skipif(
    not hasattr(minws.WebSocket, 'recv_frame'), reason='minws.WebSocket has no recv_frame yet'))


@pytest.fixture(params=['callback', 'blocking', frames_style])
def echo_url(request):
    with serving(*example('echo_server', '--style', request.param)) as port:
        yield 'ws://127.0.0.1:%d/' % port


def test_echo_server_returns_each_message_in_its_kind(echo_url):
    with minws.connect(echo_url) as ws:
        for message in ('', 'hällo 🙂', b'', bytes(range(256)), 'x' * 100000):
            ws.send(message)
            assert ws.recv(timeout=DEADLINE) == message
        ws.send(iter(['frag', 'men', 'ted']))
        assert ws.recv(timeout=DEADLINE) == 'fragmented'
        assert ws.ping().wait(DEADLINE)
        started = time.monotonic()
        ws.close(1000, 'done')
        assert (ws.close_code, ws.close_reason) == (1000, 'done')
        assert time.monotonic() - started < ws.close_timeout / 2, 'the server ends TCP, and not by a timeout'


def test_echo_server_outlives_a_client_that_vanishes(echo_url):
    vanishing = minws.connect(echo_url)
    vanishing.send('hello')
    vanishing.sock.shutdown(socket.SHUT_RDWR)
    with minws.connect(echo_url) as ws:
        ws.send('still there?')
        assert ws.recv(timeout=DEADLINE) == 'still there?'


def test_echo_server_ends_in_order_while_clients_are_connected():
    with contextlib.ExitStack() as stack:
        with serving(*example('echo_server'), stop=signal.SIGTERM) as port:
            ws = stack.enter_context(minws.connect('ws://127.0.0.1:%d/' % port))
            ws.send('hello')
            assert ws.recv(timeout=DEADLINE) == 'hello'
        with pytest.raises(minws.ConnectionClosedOK) as closed:
            ws.recv(timeout=DEADLINE)
        assert closed.value.code == 1001


def test_echo_client_prints_the_echo_of_each_message():
    with serving(*example('echo_server')) as port:
        status, output, errors = run('echo_client', 'ws://127.0.0.1:%d/' % port, 'hello', 'world')
    assert (status, errors) == (0, '')
    assert output.split() == ['hello', 'world']


def test_echo_client_without_messages_runs_the_class():
    with serving(*example('echo_server', '--style', 'callback')) as port:
        status, output, errors = run('echo_client', 'ws://127.0.0.1:%d/' % port)
    assert (status, errors) == (0, '')
    lines = output.splitlines()
    assert lines[0] == '708 ' + '#' * 708
    assert lines[1:-1] == ['%d %s' % (length, '*' * length) for length in range(0, 200, 25)]
    assert lines[-1] == 'Closed with 1000 Bye bye'


@pytest.mark.parametrize('messages', [(), ('hello',)])
@pytest.mark.parametrize('url', ['ws://127.0.0.1:%d/', 'http://127.0.0.1:%d/'])
def test_echo_client_says_in_one_line_why_it_cannot_connect(url, messages):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))  # taken, and nobody listens: nobody else can take it meanwhile
        url %= unused.getsockname()[1]
        status, output, errors = run('echo_client', url, *messages)
    assert (status, output) == (1, '')
    assert errors.count('\n') == 1 and errors.startswith(url)


def test_echo_client_closes_in_order_on_ctrl_c():
    with serving(*example('many_clients', '--serve')) as port:  # its answers are not those that end the client
        process = start(['-m', 'examples.echo_client', 'ws://127.0.0.1:%d/' % port])
        try:
            first_line(process)
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, errors) == (0, '')
    assert output.splitlines()[-1].startswith('Closed with 1000')


# -- chat ------------------------------------------------------------------------------------------------------------

class Visitor:
    """A member of a chat room, as a test wants it."""

    def __init__(self, port, name, room='kitchen', **query):
        query = ''.join('&%s=%s' % item for item in query.items())
        self.ws = minws.connect('ws://127.0.0.1:%d/room/%s?name=%s%s' % (port, room, name, query))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.ws.close()

    def next(self):
        return json.loads(self.ws.recv(timeout=DEADLINE))

    def expect(self, kind, name=None, text=''):
        """Return the next line, which must be of that kind, by that member."""
        line = self.next()
        assert (line['type'], line.get('name'), line.get('text', '')) == (kind, name, text)
        return line


@pytest.fixture(scope='module')
def chat_port():
    with serving(*example('chat')) as port:
        yield port


def arrive(port, name, room, **query):
    """Return a Visitor who has read his own arrival, and the welcome he got."""
    visitor = Visitor(port, name, room, **query)
    return visitor, (visitor.expect('welcome', name), visitor.expect('joined', name))[0]


def test_chat_serves_its_page(chat_port):
    with urllib.request.urlopen('http://127.0.0.1:%d/' % chat_port, timeout=DEADLINE) as response:
        assert response.headers.get_content_type() == 'text/html'
        with open(os.path.join(EXAMPLES, 'chat.html'), 'rb') as page:
            assert response.read() == page.read()


def test_chat_page_shows_what_people_write_as_text_only():
    with open(os.path.join(EXAMPLES, 'chat.html'), encoding='utf-8') as page:
        source = page.read()
    assert 'textContent' in source
    assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b', source)
    assert not re.search(r'https?://(?!www\.w3\.org/2000/svg)', source), 'the page loads nothing from elsewhere'


def test_chat_members_of_a_room_hear_each_other(chat_port):
    ada, welcome = arrive(chat_port, 'Ada', 'hear')
    assert (welcome['room'], welcome['members'], welcome['lines']) == ('hear', ['Ada'], [])
    bob, welcome = arrive(chat_port, 'Bob', 'hear')
    assert welcome['members'] == ['Ada', 'Bob']
    ada.expect('joined', 'Bob')
    ada.ws.send('  <b>hello</b>\n& good morning ')
    for visitor in (ada, bob):
        visitor.expect('said', 'Ada', '<b>hello</b>\n& good morning')
    bob.ws.close()
    ada.expect('left', 'Bob')
    ada.ws.close()


def test_chat_rooms_hear_nothing_of_each_other(chat_port):
    ada, _ = arrive(chat_port, 'Ada', 'one')
    bob, _ = arrive(chat_port, 'Bob', 'two')
    bob.ws.send('only in room two')
    bob.expect('said', 'Bob', 'only in room two')
    ada.ws.send('only in room one')
    ada.expect('said', 'Ada', 'only in room one')  # and not what Bob said before
    ada.ws.close()
    bob.ws.close()


def test_chat_late_joiner_gets_the_last_50_lines(chat_port):
    ada, _ = arrive(chat_port, 'Ada', 'late')
    for number in range(60):
        ada.ws.send('line %d' % number)
        ada.expect('said', 'Ada', 'line %d' % number)
    arrive(chat_port, 'Cid', 'late')[0].ws.close()  # who comes and goes pushes no line out
    ada.expect('joined', 'Cid'), ada.expect('left', 'Cid')
    bob, welcome = arrive(chat_port, 'Bob', 'late')
    assert [line['text'] for line in welcome['lines']] == ['line %d' % number for number in range(10, 60)]
    numbers = [line['number'] for line in welcome['lines']]
    assert numbers == sorted(set(numbers)) and welcome['number'] > numbers[-1]
    ada.ws.close()
    bob.ws.close()


def test_chat_gives_two_members_of_one_name_two_names(chat_port):
    first, _ = arrive(chat_port, 'Ada', 'names')
    second = Visitor(chat_port, 'Ada', 'names')
    second.expect('welcome', 'Ada 2')
    first.expect('joined', 'Ada 2')
    first.ws.close()
    second.ws.close()


def test_chat_member_who_connects_again_takes_over_without_a_word(chat_port):
    bob, _ = arrive(chat_port, 'Bob', 'again')
    dead, _ = arrive(chat_port, 'Ada', 'again', id='x1')
    bob.expect('joined', 'Ada')
    back = Visitor(chat_port, 'Ada', 'again', id='x1')
    assert back.expect('welcome', 'Ada')['members'] == ['Bob', 'Ada']
    with pytest.raises(minws.ConnectionClosed) as closed:
        dead.ws.recv(timeout=DEADLINE)
    assert closed.value.code == 4001
    back.ws.send('here again')
    bob.expect('said', 'Ada', 'here again')  # neither left nor joined before it
    bob.ws.close()
    back.ws.close()


def test_chat_refuses_a_line_that_is_too_long(chat_port):
    ada, _ = arrive(chat_port, 'Ada', 'long')
    bob, _ = arrive(chat_port, 'Bob', 'long')
    ada.expect('joined', 'Bob')
    ada.ws.send('x' * 501)
    assert '500' in ada.next()['text']
    ada.ws.send('🙂' * 500)
    ada.expect('said', 'Ada', '🙂' * 500)
    bob.expect('said', 'Ada', '🙂' * 500)
    ada.ws.send('x' * 10000)
    with pytest.raises(minws.ConnectionClosed) as closed:
        ada.ws.recv(timeout=DEADLINE)
    assert closed.value.code == 1009
    bob.expect('left', 'Ada')
    bob.ws.close()


def test_chat_ignores_what_is_no_line(chat_port):
    ada, _ = arrive(chat_port, 'Ada', 'no-line')
    for nothing in (b'\x00\xff', '', ' \n '):
        ada.ws.send(nothing)
    ada.ws.send('a line')
    ada.expect('said', 'Ada', 'a line')
    ada.ws.close()


@pytest.mark.parametrize('name, room', [('', 'kitchen'), ('%20%E2%80%AE', 'kitchen'), ('Ada', '%20')])
def test_chat_refuses_members_and_rooms_without_a_name(chat_port, name, room):
    with Visitor(chat_port, name, room) as nobody:
        with pytest.raises(minws.ConnectionClosed) as closed:
            nobody.next()
    assert closed.value.code == 1008


def test_chat_cuts_names_and_takes_out_what_is_invisible(chat_port):
    with Visitor(chat_port, '%20Ad%E2%80%AEa%00%0A%20' + 'a' * 30, 'KITCHEN%20table') as ada:
        welcome = ada.next()
    assert (welcome['name'], welcome['room']) == ('Ada ' + 'a' * 20, 'kitchen table')


def test_chat_forgets_empty_rooms_when_there_are_too_many(chat_port):
    ada, _ = arrive(chat_port, 'Ada', 'kept')
    ada.ws.send('remember me')
    ada.expect('said', 'Ada', 'remember me')
    with Visitor(chat_port, 'Bob', 'empty') as bob:
        bob.ws.send('forget me')
        bob.expect('welcome', 'Bob'), bob.expect('joined', 'Bob'), bob.expect('said', 'Bob', 'forget me')
    for number in range(110):
        with Visitor(chat_port, 'Bob', 'room-%d' % number) as bob:
            bob.expect('welcome', 'Bob')
    late, welcome = arrive(chat_port, 'Late', 'kept')
    assert [line['text'] for line in welcome['lines']] == ['remember me']
    late.ws.close()
    late, welcome = arrive(chat_port, 'Late', 'empty')
    assert welcome['lines'] == []
    late.ws.close()
    ada.ws.close()


def test_chat_is_not_held_up_by_a_member_who_does_not_read(chat_port):
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(DEADLINE)
        slow.connect(('127.0.0.1', chat_port))
        ada, _ = arrive(chat_port, 'Ada', 'slow')
        slow.sendall(b'GET /room/slow?name=Slow HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n'
                     b'Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n'
                     b'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n')
        ada.expect('joined', 'Slow')
        longest_wait = 0.0
        line = '🙂' * 500  # 6 KB of JSON; a thousand of them are more than the kernel and the server keep for one peer
        heard = set()
        for _ in range(1500):
            started = time.monotonic()
            ada.ws.send(line)
            while ada.next()['type'] != 'said':
                heard.add('left')
            longest_wait = max(longest_wait, time.monotonic() - started)
            if heard:
                break
        assert heard == {'left'}, 'a member who never reads is dropped when too much waits for it'
        assert longest_wait < 2
        ada.ws.close()


# -- chat.html in a browser ------------------------------------------------------------------------------------------

def enter_chat(page, name):
    """Fill in the form of a page and wait until it has been welcomed."""
    page.wait_for("document.getElementById('enter') !== null", DEADLINE)
    page.evaluate("document.getElementById('name').value = %s" % json.dumps(name))
    page.evaluate("document.getElementById('enter').click()")
    page.wait_for("/here$/.test(document.getElementById('state').textContent)", DEADLINE)


def say(page, text):
    page.evaluate("document.getElementById('text').value = %s" % json.dumps(text))
    page.evaluate("document.getElementById('say').click()")


def said(text):
    """Return JavaScript that is true when a line of exactly that text has come from the server."""
    return ("Array.from(document.querySelectorAll('.line:not(.pending) p span'))"
            ".some(line => line.textContent === %s)" % json.dumps(text))


def test_chat_between_two_tabs_of_a_browser():
    if find_browser() is None:
        pytest.skip('no browser found: apt-get install chromium')
    with Browser() as browser, contextlib.ExitStack() as first_server:
        port = first_server.enter_context(serving(*example('chat')))
        ada = browser.open('http://127.0.0.1:%d/#den' % port)
        bob = browser.open('http://127.0.0.1:%d/#den' % port, width=360, height=640, dark=True)
        enter_chat(ada, 'Ada')
        enter_chat(bob, 'Bob')
        ada.wait_for("document.getElementById('log').textContent.includes('Bob joined')", DEADLINE)
        evil = '<img src=x onerror="document.title=1"><b>bold</b>'
        say(ada, evil)
        bob.wait_for(said(evil), DEADLINE)
        assert bob.evaluate("document.querySelectorAll('#log img, #log p b').length") == 0
        say(bob, 'x' * 500)  # one long word
        say(bob, 'heard you')
        ada.wait_for(said('heard you'), DEADLINE)
        assert ada.evaluate("document.querySelectorAll('#members li').length") == 2
        assert ada.evaluate("document.querySelectorAll('.pending').length") == 0

        first_server.close()
        ada.wait_for("document.getElementById('state').classList.contains('away')", DEADLINE)
        say(ada, 'said without a server')
        with serving('-m', 'examples.chat', '--host', '127.0.0.1', '--port', port):
            bob.wait_for(said('said without a server'), DEADLINE)
            ada.wait_for("document.querySelectorAll('.pending').length === 0", DEADLINE)
        for page in (ada, bob):
            for fits in ('document.documentElement', "document.getElementById('log')"):
                assert page.evaluate('%s.scrollWidth <= %s.clientWidth' % (fits, fits))
            assert page.errors() == []


# -- many_clients ----------------------------------------------------------------------------------------------------

def possible_clients():
    """Return 2000, or as many as this system's limit on open files allows."""
    resource = pytest.importorskip('resource')
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2000 if hard == resource.RLIM_INFINITY else min(2000, hard - 64)


def test_many_clients_all_receive_a_broadcast_and_close():
    clients = possible_clients()
    status, output, errors = run('many_clients', '--clients', clients, timeout=60)
    assert (status, errors) == (0, ''), output
    if clients < 2000:
        warnings.warn('only %d clients: the hard limit on open files allows no more' % clients)
    assert '%d clients connected' % clients in output
    assert '%d of %d received' % (clients, clients) in output
    assert '%d of %d closed once, with 1000 or 1001' % (clients, clients) in output
    assert int(re.search(r'connections of the server: %d, its threads: (\d+)' % clients, output).group(1)) <= 4
    assert int(re.search(r'threads for all these clients: (\d+)', output).group(1)) <= 4


def test_many_clients_notices_a_server_that_does_not_broadcast():
    with serving(*example('many_clients', '--serve')) as port:
        status, output, _ = run('many_clients', 'ws://127.0.0.1:%d/' % port, '--clients', 20)
        assert status == 0 and '20 of 20 received' in output
    with serving(*example('echo_server', '--style', 'callback')) as port:
        status, output, _ = run('many_clients', 'ws://127.0.0.1:%d/' % port, '--clients', 20, '--patience', 0.5)
        assert status == 1 and '1 of 20 received' in output and '20 of 20 closed' in output


def test_many_clients_says_when_the_limit_on_open_files_is_too_low():
    resource = pytest.importorskip('resource')
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip('this system has no limit on open files')
    status, output, errors = run('many_clients', '--clients', hard)
    assert (status, output) == (1, '')
    assert errors.count('\n') == 1 and 'try --clients %d' % (hard - 64) in errors


# -- mock_data_source ------------------------------------------------------------------------------------------------

def test_mock_data_source_prints_what_happened():
    status, output, errors = run('mock_data_source')
    assert (status, errors) == (0, '')
    assert [line.split(':')[0] for line in output.splitlines()] == [
        'test_class_with_a_scripted_socket', 'test_class_when_the_network_fails',
        'test_function_with_a_pair', 'test_calls_with_a_mock']


# -- benchmark -------------------------------------------------------------------------------------------------------

BRIEFLY = ('--seconds', 0.01, '--rounds', 2, '--connections', '1,10', '--sizes', '10,70000')
OURS = ('--peers', 'raw,minws,minws-threads')


def tables(output):
    """Return {workload: {peer, or case: [other cells]}} of the tables that benchmark prints, in its order."""
    found = {}
    for line in output.splitlines():
        title = re.match(r'([a-z]+): ', line)
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        if title:
            rows = found[title.group(1)] = {}
        elif line.startswith('|') and cells[0] not in ('peer', 'connections', 'size') and cells[0].strip('-'):
            rows[cells[0]] = cells[1:]
    return found


def test_benchmark_measures_every_workload_and_draws_what_it_prints(tmp_path):
    picture, figures = str(tmp_path / 'chart.svg'), str(tmp_path / 'figures.json')
    status, output, errors = run('benchmark', *BRIEFLY, *OURS, '--svg', picture, '--json', figures, timeout=60)
    assert (status, errors) == (0, '')
    assert max(map(len, output.splitlines())) <= 80
    printed = tables(output)
    assert list(printed) == ['echo', 'pingpong', 'broadcast', 'large', 'handshake', 'codec', 'import', 'scale', 'size']
    with open(figures) as file:
        measured = json.load(file)
    assert measured['machine']['versions'] == {'minws': minws.__version__}
    assert_growth(printed.pop('scale'), ['minws 1', 'minws 10', 'raw 1', 'raw 10'], measured['workloads'].pop('scale'))
    assert_growth(printed.pop('size'), ['minws 10 B', 'minws 70000 B', 'raw 10 B', 'raw 70000 B'],
                  measured['workloads'].pop('size'))
    for workload, rows in printed.items():
        assert set(rows) == {'codec': {'minws'}, 'import': {'raw', 'minws'}}.get(
            workload, {'raw', 'minws', 'minws-threads'}), output
        for median_and_spread, to_minws, to_raw, other in rows.values():
            median, low, high = map(float, re.match(r'(\S+) \((\S+)-(\S+)\)$', median_and_spread).groups())
            assert 0 < low <= median <= high
            assert float(to_minws) > 0 and float(other) > 0 and (workload == 'codec' or float(to_raw) > 0)
        assert rows['minws'][1] == '1.00' and (workload == 'codec' or rows['raw'][2] == '1.00')
    assert_chart_shows(picture, printed, measured['workloads'])


def assert_growth(printed, cases, measured):
    """Assert that there is a row for each case, which says what one costs beside the first, or by its size."""
    assert list(printed) == list(measured) == cases
    medians = [sum(row['us']) / 2 for row in measured.values()]
    for number, (case, (_, grown, to_raw, rate)) in enumerate(printed.items()):
        share = measured[case]['size'] / 1024 if 'size' in measured[case] else medians[number - number % 2]
        assert float(grown) == pytest.approx(medians[number] / share, rel=0.02)
        assert float(to_raw) == pytest.approx(medians[number] / medians[2 + number % 2], rel=0.02)
        assert float(rate) > 0


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the limit of open files is one of POSIX')
def test_benchmark_says_so_if_open_files_are_limited():
    limited = 'import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); %s' % (
        'runpy.run_module("examples.benchmark", run_name="__main__")')
    process = start(['-c', limited, '--seconds', '0.01', '--peers', 'minws', '--only', 'scale',
                     '--connections', '1,10,1000'])
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, '')
    rows = tables(output)['scale']
    assert list(rows) == ['minws 1', 'minws 10', 'minws 1000'] and rows['minws 1000'] == ['failed', '-', '-', '-']
    assert float(rows['minws 10'][1]) > 0
    assert 'minws 1000 failed: the limit of open files, 200, does not allow it' in output


def assert_chart_shows(path, printed, measured):
    """Assert that each table has a group of bars, in its order, and that they are as long as the figures say."""
    workload, drawn = None, {}
    for element in xml.etree.ElementTree.parse(path).getroot():
        if element.get('class') == 'workload':
            workload = drawn[element.text] = []
        elif element.tag.endswith('}g'):
            name, bar, label = element
            workload.append((name.text, float(bar.get('width')), 'ours' in bar.get('class'), label.text))
    assert {name: [bar[0] for bar in bars] for name, bars in drawn.items()} == {
        name: list(rows) for name, rows in printed.items()}
    for name, bars in drawn.items():
        medians = {peer: sum(row['us']) / 2 for peer, row in measured[name].items()}
        for peer, width, ours, label in bars:
            assert width == pytest.approx(max(bar[1] for bar in bars) * medians[peer] / max(medians.values()), abs=0.02)
            assert ours == (peer != 'raw')
            value, unit = label.split()[:2]
            assert unit == 'ms' or value == printed[name][peer][0].split()[0]
            assert peer == 'minws' or label.endswith(' %s\u00d7' % printed[name][peer][1])


def test_benchmark_names_what_is_not_installed():
    process = start(['-S', '-m', 'examples.benchmark', '--seconds', '0.01', '--rounds', '1', '--only', 'codec'])
    output, errors = process.communicate(timeout=DEADLINE)  # -S: without site-packages
    assert (process.returncode, errors) == (0, '')
    missing = re.search(r'Not installed: ([^|]+?)\n\n', output).group(1)
    assert re.split(r',\s', missing) == [
        'websockets', 'websockets-sync', 'ws4py', 'aiohttp', 'tornado', 'picows', 'wsproto']
    assert list(tables(output)['codec']) == ['minws']


WRONG_ANSWERS = '''
import minws

WSListener = WSMsgType = object

class Backwards(minws.WebSocket):
    def received_message(self, message):
        self.send(str(message)[::-1])

async def ws_create_server(factory, sock):
    minws.serve(Backwards, sock=sock).start()
'''


@pytest.mark.parametrize('code, reason', [
    ('raise RuntimeError("broken on purpose")', 'broken on purpose'), ('', 'cannot import'),
    ('import os; os._exit(3)', '(ended|closed the connection|reset by peer|refused)'),
    (WRONG_ANSWERS, 'sent other bytes')], ids=['raises', 'lacks a name', 'exits', 'answers wrongly'])
def test_benchmark_has_a_row_for_a_peer_that_fails(code, reason, tmp_path, monkeypatch):
    (tmp_path / 'picows.py').write_text(code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    picture = str(tmp_path / 'chart.svg')
    status, output, errors = run('benchmark', *BRIEFLY, '--peers', 'minws,picows', '--only', 'echo,import',
                                 '--svg', picture)
    assert (status, errors) == (0, '')
    printed = tables(output)
    assert list(printed['echo']) == ['minws', 'picows'] and printed['echo']['picows'] == ['failed', '-', '-', '-']
    assert float(printed['echo']['minws'][1]) == 1
    assert re.search('picows failed: .*' + reason, output)
    shown = [''.join(element.itertext()) for element in xml.etree.ElementTree.parse(picture).getroot()]
    assert shown.count('picowsfailed') == output.count('picows failed:')


def test_benchmark_ends_at_ctrl_c_with_one_line():
    process = start(['-m', 'examples.benchmark', '--seconds', '60', *OURS])
    try:
        first_line(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE)
        assert (process.returncode, errors) == (1, 'interrupted\n')
    finally:
        process.kill()
        process.wait()


def test_benchmark_server_ends_when_its_parent_does():
    process = start([os.path.join(EXAMPLES, 'benchmark.py'), 'child', 'minws'])  # its stdin is at its end
    output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, errors) == (0, '') and int(output) > 0


@pytest.mark.parametrize('arguments, complaint', [
    (('--peers', 'minws,nobody'), 'nobody is none of raw, minws'), (('--only', 'swim'), 'swim is none of echo'),
    (('--rounds', 0), 'nothing is measured'), (('--sizes', '125,0'), 'nothing is measured')])
def test_benchmark_refuses_what_it_does_not_know(arguments, complaint):
    status, output, errors = run('benchmark', *arguments)
    assert (status, output) == (2, '') and complaint in errors
