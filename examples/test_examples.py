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
ALL = sorted(list(SERVERS) + ['echo_client', 'mock_data_source'])


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


@pytest.mark.parametrize('name', ['echo_server', 'echo_client', 'mock_data_source', 'many_clients', 'chat'])
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
