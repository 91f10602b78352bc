"""Every check with every peer: the table of __main__.py, as tests."""
import pytest

from .bench import ROWS, Bench, NotInstalled
from .checks import CHECKS, run

CASES = [(row, check) for row in ROWS for check in CHECKS if check.name not in row.peer.unable]


@pytest.fixture(scope='module')
def bench():
    with Bench() as bench:
        yield bench


@pytest.mark.parametrize('row, check', CASES, ids=['%s-%s' % (row, check.name) for row, check in CASES])
def test_peer(bench, row, check):
    try:
        run(bench, row, check)
    except NotInstalled as missing:
        pytest.skip('not installed: %s' % missing)
