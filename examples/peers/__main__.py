"""Does minws get on with other implementations of WebSocket? Prints a table: who, and what was tried.

    python3 -m examples.peers [WORD ...]

With words, only the rows that contain one of them. What is not installed is left out, and the table says how to get it:
the Python packages are looked for beside the Python that runs this, the package ws of node where node looks for it.
The exit status is 1 if a check has failed.
"""
import argparse
import sys

from .bench import ROWS, Bench, NotInstalled
from .checks import CHECKS, run

WIDTH = max(map(len, map(str, ROWS)))
LEGEND = """
OK: sent by minws and by the peer.  OK>: by minws only, the peer cannot.
-: not with this peer.  absent: needs openssl."""


def cell(bench, row, check, failures):
    """Return what the table says of a check; what went wrong is added to failures, a list of str."""
    if check.name in row.peer.unable:
        return '-'
    try:
        run(bench, row, check)
    except NotInstalled:
        return 'absent'
    except Exception as error:
        failures.append('%s, %s: %s: %s' % (row, check.name, type(error).__name__, error))
        return 'FAILED'
    return 'OK>' if check.name in row.peer.one_way else 'OK'


def print_row(bench, row, failures):
    print(str(row).ljust(WIDTH), end='')
    if bench.is_missing(row.peer):
        print('  not installed: %s' % row.peer.how_to_get)
        return
    for check in CHECKS:
        print('  ' + cell(bench, row, check, failures).ljust(column(check)), end='', flush=True)
    print()


def title(check):
    """Return the head of a check's column; those with permessage-deflate have another line above it."""
    return check.name.replace('deflate-', '')


def column(check):
    """Return the width of a check's column."""
    return max(len('FAILED'), len(title(check)))


def print_heads():
    deflate = [check for check in CHECKS if check.name.startswith('deflate-')]
    left = WIDTH + sum(2 + column(check) for check in CHECKS if check not in deflate)
    print(' ' * left + '  with permessage-deflate')
    print(' ' * WIDTH + ''.join('  ' + title(check).ljust(column(check)) for check in CHECKS))


def main(argv=None):
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog='python3 -m examples.peers', description=__doc__.splitlines()[0])
    parser.add_argument('words', nargs='*', metavar='WORD', help='only rows that contain one of these')
    words = parser.parse_args(argv).words
    failures = []
    print_heads()
    with Bench() as bench:
        for row in ROWS:
            if not words or any(word in str(row) for word in words):
                print_row(bench, row, failures)
    print(LEGEND)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
