"""Drive a headless Chromium through its DevTools socket, with nothing but minws.

    with Browser() as browser:
        page = browser.open('http://localhost:9000/')
        page.wait_for('document.querySelector("canvas")')
        open('page.png', 'wb').write(page.screenshot())

As a script: `python3 -m examples.browser URL FILE.png [--width 390] [--height 844] [--dark] [--wait SECONDS]`.
The protocol is Chromium's: a JSON object with an id and a method out, one with the same id and a result back, and
events, which have a method and no id, between them.
"""
import argparse
import atexit
import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import minws

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome', 'headless_shell')
FLAGS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
         '--disable-backgrounding-occluded-windows', '--disable-renderer-backgrounding')

START_TIMEOUT = 30.0          # seconds; generous, for a small board that starts it for the first time
ANSWER_TIMEOUT = 20.0         # seconds for one command
POLL_PERIOD = 0.02            # seconds between two questions of wait_for


def find_browser():
    """Return the path of a Chromium (the environment variable CHROMIUM names one), or None."""
    named = os.environ.get('CHROMIUM')
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


class PageError(Exception):
    """The browser refused a command, or the page's script raised an exception."""


class Target:
    """One DevTools connection; a command at a time, from one thread."""

    def __init__(self, uri):
        # No Origin: DevTools refuses pages. No limit: a screenshot is one message, and it is our own browser.
        self.ws = minws.connect(uri, max_size=None)
        self.number = 0
        self.events = []

    def command(self, method, **params):
        """Return the result of a command, a dict; what else arrives meanwhile is in `events`."""
        self.number += 1
        self.ws.send(json.dumps({'id': self.number, 'method': method, 'params': params}))
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while True:
            answer = json.loads(self.ws.recv(timeout=deadline - time.monotonic()))
            if answer.get('id') == self.number:
                if 'error' in answer:
                    raise PageError('%s: %s' % (method, answer['error'].get('message')))
                return answer['result']
            self.events.append(answer)

    def close(self):
        self.ws.close()


class Page(Target):
    """A tab."""

    def prepare(self, url, width, height, dark, scale):
        """Set the tab up and load url; returns when it has loaded."""
        self.command('Page.enable')
        self.command('Runtime.enable')
        self.command('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=scale,
                     mobile=width < 600)
        self.emulate(prefers_color_scheme='dark' if dark else 'light')
        self.navigate(url)

    def emulate(self, **features):
        """Let media features have these values: `emulate(prefers_reduced_motion='reduce')`; others are as they are."""
        self.command('Emulation.setEmulatedMedia', features=[
            {'name': name.replace('_', '-'), 'value': value} for name, value in features.items()])

    def navigate(self, url):
        """Load url and wait until it has loaded; raises PageError if it cannot be reached."""
        answer = self.command('Page.navigate', url=url)
        if answer.get('errorText'):
            raise PageError('%s: %s' % (url, answer['errorText']))
        self.wait_for('document.readyState === "complete"')

    def evaluate(self, js):
        """Return the value of an expression, or of the promise that it is; through JSON, so an element is {}."""
        answer = self.command('Runtime.evaluate', expression=js, awaitPromise=True, returnByValue=True,
                              userGesture=True)
        if 'exceptionDetails' in answer:
            raise PageError(exception_text(answer['exceptionDetails']))
        return answer['result'].get('value')

    def wait_for(self, js, timeout=10.0):
        """Return the value of an expression as soon as JavaScript calls it true.

        Raises TimeoutError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            true, value = self.evaluate('Promise.resolve(%s).then(value => [!!value, value])' % js)
            if true:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError('after %g seconds this is still %r: %s' % (timeout, value, js))
            time.sleep(POLL_PERIOD)

    def errors(self):
        """Return the texts of the exceptions that no script of the page has caught so far."""
        self.evaluate('0')  # what has happened by now comes before the answer
        return [exception_text(event['params']['exceptionDetails']) for event in self.events
                if event.get('method') == 'Runtime.exceptionThrown']

    def metrics(self):
        """Return {name: number} of what Chromium counts for the tab: TaskDuration (seconds), JSHeapUsedSize, Nodes."""
        self.command('Performance.enable')
        return {metric['name']: metric['value'] for metric in self.command('Performance.getMetrics')['metrics']}

    def middle(self, selector):
        """Return (x, y) of the middle of an element, which is scrolled into sight first and two frames old."""
        return tuple(self.evaluate("""(async () => {
            const node = document.querySelector(%s), frame = () => new Promise(requestAnimationFrame);
            node.scrollIntoView({block: 'center'});
            await frame();
            await frame();
            const box = node.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })()""" % json.dumps(selector)))

    def mouse(self, kind, x, y, **more):
        """Move the mouse ('mouseMoved'), press its left button ('mousePressed') or let it go ('mouseReleased')."""
        more.setdefault('button', 'none' if kind == 'mouseMoved' else 'left')
        self.command('Input.dispatchMouseEvent', type=kind, x=x, y=y, clickCount=1, **more)

    def click(self, selector):
        """Click into the middle of an element."""
        x, y = self.middle(selector)
        self.mouse('mousePressed', x, y)
        self.mouse('mouseReleased', x, y)

    def touch(self, kind, *points):
        """Lay fingers on points ('touchStart'), move them ('touchMove'), or lift them all ('touchEnd', no points)."""
        self.command('Input.dispatchTouchEvent', type=kind, touchPoints=[
            {'x': x, 'y': y, 'id': number} for number, (x, y) in enumerate(points)])

    def key(self, key, **more):
        """Press a key and let it go: 'ArrowLeft', 'Enter', 'p'."""
        more.update({'text': key} if len(key) == 1 else {})
        self.command('Input.dispatchKeyEvent', type='keyDown', key=key, **more)
        self.command('Input.dispatchKeyEvent', type='keyUp', key=key)

    def screenshot(self):
        """Return what the tab shows, as the bytes of a PNG file."""
        return base64.b64decode(self.command('Page.captureScreenshot', format='png')['data'])


def exception_text(details):
    return details.get('exception', {}).get('description') or details.get('text', '')


class Browser:
    """A Chromium of our own with an empty profile; gone, with all that it opened, when the block is left."""

    def __init__(self, path=None):
        self.path = path or find_browser()
        if self.path is None:
            raise FileNotFoundError('no Chromium found: install one (apt-get install chromium), '
                                    'or name it in the environment variable CHROMIUM')
        self.pages = []
        self.profile = tempfile.mkdtemp(prefix='chromium-')
        self.process = subprocess.Popen(
            (self.path,) + FLAGS + ('--remote-debugging-port=0', '--user-data-dir=' + self.profile, 'about:blank'),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        atexit.register(self.close)
        try:
            self.address, path = self._address()
            self.target = Target('ws://%s%s' % (self.address, path))
        except BaseException:
            self.close()
            raise

    def _address(self):
        """Wait for the file in which the browser says where it listens; return (host:port, path)."""
        file = os.path.join(self.profile, 'DevToolsActivePort')
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with open(file) as lines:
                    port, path = lines.read().split('\n')[:2]
                return '127.0.0.1:' + port, path
            except (OSError, ValueError):  # not there, or half written
                time.sleep(POLL_PERIOD)
        raise PageError('%s does not start (exit status %s)' % (self.path, self.process.poll()))

    def open(self, url, width=1280, height=800, dark=False, scale=1):
        """Return a new Page that has loaded url, as wide and high as given in CSS pixels."""
        # A window of its own: of several tabs in one window only the newest is drawn.
        identity = self.target.command('Target.createTarget', url='about:blank', newWindow=True)['targetId']
        page = Page('ws://%s/devtools/page/%s' % (self.address, identity))
        self.pages.append(page)
        page.prepare(url, width, height, dark, scale)
        return page

    def shut(self, page):
        """Close a tab that open() returned."""
        self.pages.remove(page)
        page.command('Page.close')
        page.close()

    def close(self):
        """Kill the browser and remove its profile; may be called again."""
        atexit.unregister(self.close)
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # it has a dozen children
        except OSError:
            pass
        self.process.wait()
        for target in self.pages + [getattr(self, 'target', None)]:
            if target is not None:
                target.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def main(argv=None):
    """Write the screenshot of a page; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.browser', description='Take a picture of a page.')
    parser.add_argument('url')
    parser.add_argument('file')
    parser.add_argument('--width', type=int, default=1280)
    parser.add_argument('--height', type=int, default=800)
    parser.add_argument('--dark', action='store_true')
    parser.add_argument('--wait', type=float, default=1.0, metavar='SECONDS', help='before the picture (default: 1)')
    arguments = parser.parse_args(argv)
    with Browser() as browser:
        page = browser.open(arguments.url, arguments.width, arguments.height, arguments.dark)
        time.sleep(arguments.wait)
        with open(arguments.file, 'wb') as file:
            file.write(page.screenshot())
    return 0


if __name__ == '__main__':
    sys.exit(main())
