"""The two ends that the Autobahn test suite drives: an echo server, and a client that echoes.

    python3 -m examples.autobahn server PORT [--style class|function]
    python3 -m examples.autobahn client URL AGENT

With `wstest` installed, `wstest -m fuzzingclient` tests the server and `wstest -m fuzzingserver` the client. The suite
sends messages of 16 MiB, some of them in 65,536 fragments, so the limit on their size is raised.
"""
import argparse

import minws

LIMIT = 1 << 26


def echo(ws):
    """Send every message back, as the type it came in."""
    for message in ws:
        ws.send(message)


def serve(port, style):
    handler = minws.EchoWebSocket if style == 'class' else echo
    minws.serve(handler, '127.0.0.1', port, compression='deflate', max_size=LIMIT).serve_forever()


def run_cases(url, agent):
    """Connect once for each case, and carry on when one fails, as many of them are meant to."""
    with minws.connect(url + '/getCaseCount', proxy=None) as ws:
        count = int(ws.recv())
    for case in range(1, count + 1):
        try:
            with minws.connect('%s/runCase?case=%d&agent=%s' % (url, case, agent), compression='deflate',
                               max_size=LIMIT, proxy=None) as ws:
                echo(ws)
        except (minws.WebSocketException, OSError):
            pass
    minws.connect(url + '/updateReports?agent=' + agent, proxy=None).close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    roles = parser.add_subparsers(dest='role')
    server = roles.add_parser('server')
    server.add_argument('port', type=int)
    server.add_argument('--style', choices=('class', 'function'), default='function')
    client = roles.add_parser('client')
    client.add_argument('url')
    client.add_argument('agent')
    args = parser.parse_args()
    if args.role == 'server':
        serve(args.port, args.style)
    elif args.role == 'client':
        run_cases(args.url, args.agent)
    else:
        parser.error('say server or client')


if __name__ == '__main__':
    main()
