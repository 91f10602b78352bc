"""Tests of examples/sensors/recording.py, and of exactly once between droid_sensor.py and a server that records.

Disks are full or gone by a file object that fails, and by /dev/full; processes and connections are killed for real.
"""
import contextlib
import csv as csv_format
import errno
import io
import json
import os
import queue
import random
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time

import pytest

from examples.droid_sensor import JsonLines
from examples.sensors import recording
from examples.sensors.recording import Ledger, Recorder, RecordingError, csv, played, replay

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DEADLINE = 20.0               # seconds for anything that should happen soon
HELLO = {'t': 1000.0, 'hello': {'device': 'pixel', 'source': 'test', 'rate': 10,
                                'sensors': {'accel': {'unit': 'm/s²', 'axes': ['x', 'y', 'z']}}}}


def reading(n, spool=None, device='pixel', **more):
    """Return a record whose values tell its number; numbered, if it is of a spool."""
    return dict({'t': 1000.0 + n / 10, 'd': device, 's': {'accel': [n, n + 0.5, -n], 'light': n}},
                **dict({} if spool is None else {'spool': spool, 'n': n}, **more))


def record(path, records):
    recorder = Recorder(str(path))
    for one in records:
        recorder.append(one)
    recorder.close()
    return str(path)


def recorded(path):
    """Return the records in the order in which they were written."""
    with contextlib.closing(recording.reader_of(str(path))) as reader:
        return [one for _, one in reader.entries()]


@pytest.fixture(params=['recording.jsonl', 'recording.db'])
def path(request, tmp_path):
    return str(tmp_path / request.param)


##############################################################################
# Recorder
##############################################################################

def test_records_are_kept_as_they_are(path):
    records = [HELLO, reading(1), {'t': 1000.3, 'marker': {'text': 'zweiter Lauf ☃'}}, reading(4, offset=-12.5),
               reading(5, device='zwei\n')]
    record(path, records[:3])
    record(path, records[3:])
    assert recorded(path) == records


def test_nothing_is_on_the_disk_before_flush_and_all_after(path):
    recorder = Recorder(path)
    recorder.append(reading(1, 'a'))
    assert recorded(path) == []
    assert recorder.flush() == {'a': 1}
    assert recorded(path) == [reading(1, 'a')]
    assert recorder.flush() == {}


def test_flush_returns_when_the_disk_has_it(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda descriptor: synced.append(os.fstat(descriptor).st_size) or real(descriptor))
    recorder = Recorder(str(tmp_path / 'r.jsonl'))
    recorder.append(reading(1))
    recorder.flush()
    assert synced[-1] == os.path.getsize(recorder.path) > 0


def test_each_number_is_kept_once_and_in_order(path):
    recorder = Recorder(path)
    taken = [recorder.append(reading(n, 'a')) for n in (1, 2, 2, 1, 4, 3, 3, 4)]
    assert taken == [True, True, False, False, False, True, False, True]
    assert recorder.append(reading(1, 'b')) and recorder.append(reading(7))
    assert recorder.flush() == {'a': 4, 'b': 1}
    assert [one.get('n') for one in recorded(path)] == [1, 2, 3, 4, 1, None]


def test_numbers_are_found_again(path):
    record(path, [reading(n, 'a') for n in range(1, 6)] + [reading(n, 'b') for n in range(1, 3)])
    recorder = Recorder(path)
    assert (recorder.begin('a'), recorder.begin('b'), recorder.begin('c')) == (5, 2, 0)
    assert not recorder.append(reading(5, 'a')) and recorder.append(reading(6, 'a'))
    recorder.close()


def test_what_is_not_flushed_is_not_acknowledged(path):
    recorder = Recorder(path)
    recorder.append(reading(1, 'a'))
    assert recorder.begin('a') == 0
    recorder.flush()
    assert recorder.begin('a') == 1


def test_device_may_leave_numbers_out_by_saying_so(path):
    recorder = Recorder(path)
    assert not recorder.append(reading(501, 'a'))
    assert recorder.begin('a', first=501) == 500
    assert recorder.append(reading(501, 'a'))
    assert recorder.flush() == {'a': 501}
    assert recorder.begin('a', first=3) == 501
    recorder.close()
    assert Recorder(path).begin('a') == 501


@pytest.mark.parametrize('spool, first', [('', 1), ('x' * 61, 1), (None, 1), (5, 1), ('a', 0), ('a', -1), ('a', '1'),
                                          ('a', None), ('a', 1.0), ('a', True), ('a', 1 << 60)])
def test_what_is_no_spool_is_refused(path, spool, first):
    recorder = Recorder(path)
    with pytest.raises(ValueError):
        recorder.begin(spool, first)
    if spool is not None:
        with pytest.raises(ValueError):
            recorder.append({'t': 1.0, 'spool': spool, 'n': first})
    assert recorder.flush() == {}


@pytest.mark.parametrize('value', [{}, {'t': None}, {'t': '1'}, {'t': True}, {'t': 1.0, 's': {'a': float('nan')}}])
def test_what_is_no_record_is_refused(path, value):
    with pytest.raises(ValueError):
        Recorder(path).append(value)


def test_numbers_of_a_long_recording_are_found_in_its_tail(tmp_path, monkeypatch):
    """Of a device that left long ago too; what lies before the last line with all numbers is not read."""
    monkeypatch.setattr(recording, 'CHECKPOINT', 4000)
    path = str(tmp_path / 'r.jsonl')
    recorder = Recorder(path)
    recorder.append(reading(1, 'early'))
    for n in range(1, 400):
        recorder.append(reading(n, 'a'))
        recorder.flush()
    recorder.close()
    whole = open(path, 'rb').read()
    checkpoints = whole.count(b'\n{"numbers": ')
    assert len(whole) // 8000 < checkpoints <= len(whole) // 4000
    start = whole.rindex(b'\n{"numbers": ')
    with open(path, 'r+b') as file:     # nobody looks at this
        file.write(b'{' + b'x' * (start - 1))
    again = Recorder(path)
    assert (again.begin('early'), again.begin('a')) == (1, 399)


@pytest.mark.parametrize('before', range(0, 30))
def test_line_with_all_numbers_is_found_wherever_blocks_begin(tmp_path, monkeypatch, before):
    monkeypatch.setattr(recording, 'CHECKPOINT', 8 * 24)
    path = tmp_path / 'r.jsonl'
    path.write_bytes(b'{"t": 1, "d": "%s"}\n{"numbers": {"a": 7}}\n{"t": 1, "spool": "a", "n": 8}\n' % (b'x' * before))
    assert Recorder(str(path)).begin('a') == 8


def test_spools_that_were_quiet_longest_are_forgotten():
    ledger = Ledger()
    for n in range(recording.MAX_SPOOLS + 5):
        ledger.keep({'spool %d' % n: 1})
        ledger.keep({'spool 0': n + 1})
    assert len(ledger.kept) == recording.MAX_SPOOLS and len(ledger._taken) <= recording.MAX_SPOOLS
    assert ledger.kept['spool 0'] == recording.MAX_SPOOLS + 5 and 'spool 1' not in ledger.kept


def test_many_threads_append_while_others_flush(path):
    recorder = Recorder(path)
    acknowledged = {}

    def write(spool):
        for n in range(1, 201):
            assert recorder.append(reading(n, spool))

    threads = [threading.Thread(target=write, args=('s%d' % n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or recorder._waiting:
        acknowledged.update(recorder.flush())
    assert acknowledged == {'s%d' % n: 200 for n in range(4)}
    kept = recorded(path)
    for n in range(4):
        assert [one['n'] for one in kept if one['spool'] == 's%d' % n] == list(range(1, 201))


##############################################################################
# Torn lines
##############################################################################

def test_line_torn_at_any_byte_is_repaired(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)    # hundreds of times
    path = tmp_path / 'r.jsonl'
    records = [HELLO] + [reading(n, 'a') for n in (1, 2, 3)]
    whole = open(record(path, records), 'rb').read()
    ends = [end for end, byte in enumerate(whole) if byte == 0x0a]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)      # one that lacks its newline alone is complete
        recorder = Recorder(str(path))
        assert recorder.begin('a') == max(0, complete - 1), cut
        for n in (1, 2, 3):
            recorder.append(reading(n, 'a'))
        recorder.close()
        assert [one.get('n') for one in recorded(path)] == [None] * (complete > 0) + [1, 2, 3], cut
        assert path.read_bytes().endswith(whole[ends[0] + 1:])


@pytest.mark.parametrize('tail', [b'\0' * 5000, b'{"t": 1', b'\xff\xfe', b'{"t": 1}\0\0', b'[1', b'{"t": "\xc3'])
def test_garbage_after_a_power_failure_is_removed(tmp_path, tail):
    path = tmp_path / 'r.jsonl'
    whole = open(record(path, [reading(1, 'a')]), 'rb').read()
    path.write_bytes(whole + tail)
    assert Recorder(str(path)).begin('a') == 1
    assert path.read_bytes() == whole


def test_garbage_in_the_middle_is_skipped(tmp_path):
    path = tmp_path / 'r.jsonl'
    lines = [json.dumps(reading(n)).encode() for n in (1, 2)]
    path.write_bytes(lines[0] + b'\n\0\0\0\n[]\n"x"\n{"t": "1"}\n' + b'[' * 100000 + b'\n\xff\n' + lines[1] + b'\n')
    assert recorded(path) == [reading(1), reading(2)]
    assert b''.join(csv(str(path))).count(b'\n') == 1 + 2 * 4


def test_file_that_is_no_recording_is_left_alone(path):
    with open(path, 'wb') as file:
        file.write(b'\x89PNG a picture, and no newline')
    with pytest.raises(RecordingError, match='^cannot record into .*recording'):
        Recorder(path)
    assert open(path, 'rb').read() == b'\x89PNG a picture, and no newline'


def test_second_recorder_of_a_file_is_refused(tmp_path):
    pytest.importorskip('fcntl')
    first = Recorder(str(tmp_path / 'r.jsonl'))
    with pytest.raises(RecordingError, match='another program writes into it'):
        Recorder(str(tmp_path / 'r.jsonl'))
    first.close()


##############################################################################
# Disks that are full, or gone
##############################################################################

class Disk:
    """Lets the files of JsonLines fail: after so many bytes, with an error number, while `number` is not None."""

    def __init__(self, monkeypatch):
        self.number = None
        self.room = 0
        self.truncates = True
        disk, real = self, JsonLines.open_file

        class File:
            def __init__(self, file):
                self._file = file

            def __getattr__(self, name):
                return getattr(self._file, name)

            def write(self, data):
                if disk.number is None:
                    return self._file.write(data)
                part = data[:disk.room]
                disk.room -= len(part)
                if not part:
                    raise OSError(disk.number, os.strerror(disk.number))
                return self._file.write(part)

            def truncate(self, size):
                if not disk.truncates:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return self._file.truncate(size)

        def open_file(lines, path):
            if disk.number not in (None, errno.ENOSPC):
                raise OSError(disk.number, os.strerror(disk.number))
            return File(real(lines, path))

        monkeypatch.setattr(JsonLines, 'open_file', open_file)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize('truncates', [True, False])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.ENODEV])
@pytest.mark.parametrize('room', [0, 1, 100, 150])
def test_recording_goes_on_when_the_disk_does(tmp_path, disk, number, room, truncates):
    """Whatever part of a flush was written before the failure, every record is there once in the end."""
    path = str(tmp_path / 'r.jsonl')
    recorder = Recorder(path)
    recorder.append(reading(1, 'a'))
    recorder.flush()
    disk.number, disk.room, disk.truncates = number, room, truncates
    for n in (2, 3, 4):
        assert recorder.append(reading(n, 'a'))
    with pytest.raises(RecordingError, match='^the recording .* cannot go on .*%s' % os.strerror(number)):
        recorder.flush()
    with pytest.raises(RecordingError):
        recorder.flush()
    assert recorder.begin('a') == 1
    disk.number, disk.truncates = None, True
    assert recorder.append(reading(5, 'a'))
    assert recorder.flush() == {'a': 5}
    recorder.close()
    assert recorded(path) == [reading(n, 'a') for n in (1, 2, 3, 4, 5)]


def test_failed_fsync_is_a_failed_flush(tmp_path, monkeypatch):
    recorder = Recorder(str(tmp_path / 'r.jsonl'))

    def fail(descriptor):
        raise OSError(errno.EIO, 'Input/output error')

    recorder.append(reading(1, 'a'))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fail)
        with pytest.raises(RecordingError):
            recorder.flush()
    assert recorder.flush() == {'a': 1}
    assert recorded(recorder.path) == [reading(1, 'a')]


def test_another_card_is_not_cut(tmp_path, disk):
    """The card that comes back may be another one, with a longer recording of the same name."""
    path = tmp_path / 'r.jsonl'
    recorder = Recorder(str(path))
    recorder.append(reading(1, 'a'))
    recorder.flush()
    disk.number = errno.EIO
    recorder.append(reading(2, 'a'))
    with pytest.raises(RecordingError):
        recorder.flush()
    other = [reading(n, 'b') for n in range(1, 9)]
    path.write_bytes(b''.join(json.dumps(one).encode() + b'\n' for one in other))
    disk.number = None
    assert recorder.flush() == {'a': 2}
    assert recorded(path) == other + [reading(2, 'a')]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='there is no /dev/full')
def test_full_disk_of_the_system_is_named():
    recorder = Recorder('/dev/full')
    recorder.append(reading(1))
    with pytest.raises(RecordingError, match='No space left on device'):
        recorder.flush()


def test_records_wait_bounded(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(recording, 'BUFFER', 1000)
    recorder = Recorder(str(tmp_path / 'r.jsonl'))
    disk.number = errno.ENOSPC
    taken = 0
    with pytest.raises(RecordingError, match='wait for a disk'):
        while True:
            recorder.append(reading(taken + 1, 'a'))
            taken += 1
    assert 5 < taken < 20
    disk.number = None
    assert recorder.flush() == {'a': taken}
    assert recorder.append(reading(taken + 1, 'a')), 'a number that was not taken is the next one still'


def test_database_that_is_busy_goes_on(tmp_path, monkeypatch):
    path = str(tmp_path / 'r.db')
    recorder = Recorder(path)
    recorder._store._connection.execute('PRAGMA busy_timeout = 10')
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute('BEGIN EXCLUSIVE')
        recorder.append(reading(1, 'a'))
        with pytest.raises(RecordingError, match='locked'):
            recorder.flush()
    recorder.append(reading(2, 'a'))
    assert recorder.flush() == {'a': 2}
    assert [one['n'] for one in recorded(path)] == [1, 2]


def test_directory_that_is_missing_is_named(tmp_path, path):
    with pytest.raises(RecordingError, match='^cannot record into '):
        Recorder(os.path.join(str(tmp_path), 'no', os.path.basename(path)))


def test_thread_of_a_recorder_says_when_it_stops_and_when_it_goes_on(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(recording, 'FLUSH_PERIOD', 0.01)
    recorder, stopping, events = Recorder(str(tmp_path / 'r.jsonl')), threading.Event(), queue.Queue()
    thread = threading.Thread(target=recorder.run, args=(
        stopping, lambda *kept: events.put(kept), lambda text: events.put(text)), daemon=True)
    thread.start()
    recorder.append(reading(1, 'a'))
    assert events.get(timeout=DEADLINE) == ('a', 1)
    disk.number = errno.ENOSPC
    recorder.append(reading(2, 'a'))
    assert 'No space left' in events.get(timeout=DEADLINE)
    disk.number = None
    assert events.get(timeout=DEADLINE) is None
    assert events.get(timeout=DEADLINE) == ('a', 2)
    recorder.append(reading(3, 'a'))
    stopping.set()
    thread.join(DEADLINE)
    assert events.get(timeout=DEADLINE) == ('a', 3) and events.empty()


def test_database_has_a_row_for_each_value(tmp_path):
    path = record(tmp_path / 'r.db', [HELLO, reading(1)])
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            rows = database.execute('SELECT * FROM readings').fetchall()
        except sqlite3.OperationalError as error:
            pytest.skip('this SQLite has no JSON functions: %s' % error)
    assert rows == [(1000.1, 'pixel', 'accel', 0, 1), (1000.1, 'pixel', 'accel', 1, 1.5),
                    (1000.1, 'pixel', 'accel', 2, -1), (1000.1, 'pixel', 'light', 0, 1)]


##############################################################################
# Replay
##############################################################################

def stamped(count):
    """Return so many readings, 1 to 100 ms after each other."""
    generator, stamp, records = random.Random(7), 1000.0, []
    for n in range(count):
        records.append(reading(n, t=stamp))
        stamp += generator.uniform(0.001, 0.1)
    return records


class Clock:
    """Time that passes only while somebody waits; each wait takes a little longer than was asked for."""

    def __init__(self):
        self.now = 5000.0
        self._generator = random.Random(3)

    def monotonic(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds + self._generator.uniform(0.0, 0.003)

    def is_set(self):
        return False


@pytest.mark.parametrize('speed', [0.5, 1, 10])
def test_replay_is_never_late_by_more_than_its_last_wait(path, monkeypatch, speed):
    clock, records = Clock(), stamped(500)
    record(path, records)
    monkeypatch.setattr(recording.time, 'monotonic', clock.monotonic)
    began = None
    for one in replay(path, speed=speed, stop=clock):
        began = clock.now if began is None else began
        assert -0.003 <= clock.now - began - (one['t'] - 1000.0) / speed <= 0.003 + 1e-6
    assert one == records[-1]


@pytest.mark.slow
def test_replay_keeps_the_timing(path):
    """At ten times the speed 99 of 100 records are within 10 ms of their time; a busy machine may spoil some tries."""
    record(path, stamped(500))
    figures = []
    while len(figures) < 5 and min(figures, default=99) >= 10:
        began, errors = None, []
        for one in replay(path, speed=10):
            now = time.monotonic()
            began = now if began is None else began
            errors.append(abs(now - began - (one['t'] - 1000.0) / 10))
        assert len(errors) == 500
        figures.append(1000 * sorted(errors)[494])
    print('99 of 100 within %.1f ms' % min(figures))
    assert min(figures) < 10, figures


def test_replay_is_in_order_of_time(path):
    """A phone that was away brings an hour at the end; it has its place by the clock, and its hello before that."""
    now = [reading(n, device='pi') for n in range(1, 9)]
    late = [reading(n, 'a', device='phone', t=1000.05 + n / 10) for n in range(1, 9)]
    hello = {'t': 1002.0, 'hello': {'device': 'phone', 'sensors': {}}}
    record(path, now + [hello] + late)
    records = list(replay(path, speed=None))
    assert [one['t'] for one in records if 'd' in one] == sorted(one['t'] for one in now + late)
    assert records.index(hello) < records.index(late[0])
    assert len(records) == 17


def test_clocks_that_differ_are_put_on_one_axis(path):
    record(path, [reading(1, device='pi'), reading(2, device='phone', t=4600.15, offset=3600000.0),
                  reading(3, device='pi', t=1000.2)])
    assert [one['d'] for one in replay(path, speed=None)] == ['pi', 'phone', 'pi']
    assert float(rows(path, device='phone')[1][0]) == pytest.approx(1000.15, abs=1e-9)


def test_replay_can_be_stopped(path):
    record(path, [reading(1), reading(2, t=5000.0)])
    stop = threading.Event()
    records = replay(path, stop=stop)
    assert next(records) == reading(1)
    threading.Timer(0.05, stop.set).start()
    began = time.monotonic()
    assert list(records) == []
    assert time.monotonic() - began < DEADLINE


def test_recording_that_is_missing_is_named(path):
    with pytest.raises(RecordingError, match='cannot be read: '):
        next(replay(path))
    with pytest.raises(RecordingError, match='cannot be read: '):
        csv(path)
    assert not os.path.exists(path)


def test_recording_is_played_to_a_handler_in_one_line(path):
    record(path, [HELLO] + [reading(n) for n in range(1, 101)] + [reading(1, device='other')])

    def bright(ws):
        for message in ws:
            value = json.loads(message)
            if value.get('s', {}).get('light', 0) > 98:
                ws.send('%s is bright' % value['d'])

    assert played(bright, path) == ['pixel is bright', 'pixel is bright']
    assert len(played(lambda ws: [ws.send(message) for message in ws], path, device='pixel')) == 101


def test_failure_of_a_handler_is_the_tests(path):
    record(path, [reading(1)])

    def broken(ws):
        json.loads(ws.recv())['nothing']

    with pytest.raises(KeyError, match='nothing'):
        played(broken, path)


def test_handler_that_leaves_early_ends_the_replay(path):
    record(path, [reading(n) for n in range(2000)])
    assert played(lambda ws: ws.send('enough'), path) == ['enough']


##############################################################################
# CSV
##############################################################################

def rows(path, **options):
    return list(csv_format.reader(b''.join(csv(path, **options)).decode('utf-8').splitlines()))


def test_csv_has_a_row_for_each_axis(path):
    record(path, [HELLO, reading(1), reading(2, device='pi')])
    assert rows(path) == [
        ['t', 'device', 'sensor', 'axis', 'unit', 'value'],
        ['1000.1', 'pixel', 'accel', 'x', 'm/s²', '1'], ['1000.1', 'pixel', 'accel', 'y', 'm/s²', '1.5'],
        ['1000.1', 'pixel', 'accel', 'z', 'm/s²', '-1'], ['1000.1', 'pixel', 'light', '', '', '1'],
        ['1000.2', 'pi', 'accel', '0', '', '2'], ['1000.2', 'pi', 'accel', '1', '', '2.5'],
        ['1000.2', 'pi', 'accel', '2', '', '-2'], ['1000.2', 'pi', 'light', '', '', '2']]


def test_csv_of_a_device_and_since_a_time(path):
    record(path, [reading(n, device='ab'[n % 2]) for n in range(10)])
    assert {row[0] for row in rows(path, since=1000.5)[1:]} == {'1000.5', '1000.6', '1000.7', '1000.8', '1000.9'}
    assert {row[1] for row in rows(path, device='b')[1:]} == {'b'}
    assert len(rows(path, since=2000)) == 1


def test_csv_is_handed_out_in_pieces(path):
    record(path, [reading(n) for n in range(3000)])
    pieces = list(csv(path))
    assert len(pieces) > 5 and max(map(len, pieces)) < 2 * recording.CSV_BLOCK
    assert b''.join(pieces).count(b'\r\n') == 1 + 3000 * 4


def test_names_are_no_formulas_and_no_rows(path):
    record(path, [{'t': 1.0, 'd': '=cmd()', 's': {'+a"b,c\nd': 1, '@x': 2, '-y': [3]}}])
    read = list(csv_format.reader(io.StringIO(b''.join(csv(path)).decode(), newline='')))
    assert [row[1:3] for row in read[1:]] == [["'=cmd()", '\'+a"b,c\nd'], ["'=cmd()", "'@x"], ["'=cmd()", "'-y"]]


def test_values_are_not_rounded(path):
    values = [0.1 + 0.2, 1e-300, 123456789012345678, 1e22]
    record(path, [{'t': 1732140000.1234567, 'd': 'd', 's': {'a': values}}])
    read = rows(path)[1:]
    assert [json.loads(row[5]) for row in read] == values and float(read[0][0]) == 1732140000.1234567


def test_csv_is_read_while_it_is_written(path):
    recorder = Recorder(path)
    recorder.append(reading(1))
    recorder.flush()
    pieces = csv(path)
    recorder.append(reading(2))
    recorder.flush()
    assert b''.join(pieces).startswith(b't,device')
    recorder.close()


##############################################################################
# Exactly once
#
# Three processes: a server that records, droid_sensor.py with a source that counts, and between them, here, a relay
# that can be cut. All of them are killed at random, with a seed; in the end every reading is in the recording once.
##############################################################################

TORN = '''
import os, sys, time
from examples import droid_sensor

def write_all(file, data):
    """Write in small parts, so that a kill tears lines."""
    for start in range(0, len(data), 61):
        file.write(data[start:start + 61])
        time.sleep(0)

droid_sensor.write_all = write_all
'''

SERVER = TORN + '''
import contextlib, json, threading
import minws
from examples.sensors.recording import Recorder

recorder, devices = Recorder(sys.argv[2]), {}

def push(ws):
    spool = None
    for message in ws:
        values = json.loads(message)
        for value in values if isinstance(values, list) else [values]:
            if 'hello' in value:
                spool = value['hello']['spool']
                devices[spool] = ws
                ws.send(json.dumps({'ack': recorder.begin(spool, value['hello']['first'])}))
            elif 'n' in value:
                value.pop('late', None)
                recorder.append(dict(value, d='counter', spool=spool))

def acknowledge(spool, number):
    with contextlib.suppress(minws.ConnectionClosed, KeyError):
        devices[spool].send(json.dumps({'ack': number}))

server = minws.serve({'/push': push}, '127.0.0.1', int(sys.argv[1]))
threading.Thread(target=recorder.run, args=(threading.Event(), acknowledge, print), daemon=True).start()
print('ready', flush=True)
server.serve_forever()
'''

WHOLE_SERVER = '''
from examples.sensors import __main__ as program

announce = program.announce
program.announce = lambda *arguments: (announce(*arguments), print('ready', flush=True))
program.main(sys.argv[1:])
'''

PUSHER = TORN + '''
uri, life, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]

class Counting(droid_sensor.Source):
    name, paced, patience, simulated = 'counting', True, 1000.0, False
    sensors = {'count': droid_sensor.Sensor('', ('life', 'i'))}

    def __init__(self):
        pass

    def readings(self, period):
        i = 0
        while True:
            time.sleep(0.002)
            if not os.path.exists(os.path.join(directory, 'enough')):
                i += 1
                yield {'count': [life, i]}

truth = os.open(os.path.join(directory, 'truth'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
append = droid_sensor.Spool.append

def note(spool, text):
    number = append(spool, text)
    os.write(truth, ('%s\\n' % text).encode())
    return number

droid_sensor.Spool.append = note
droid_sensor.FIRST_DELAY, droid_sensor.LONGEST_DELAY, droid_sensor.ANSWER = 0.05, 0.2, 1.0
droid_sensor.find_source = lambda *arguments: Counting()
sys.exit(droid_sensor.main([uri] + sys.argv[4:]))
'''


class Relay:
    """Passes bytes between the pusher and the server, until it is cut, somewhere in a frame."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.socket()
        self._listener.bind(('127.0.0.1', 0))
        self._listener.listen(9)
        self.port = self._listener.getsockname()[1]
        self._ends = []
        self._cuts = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(('127.0.0.1', self._target), DEADLINE)
            except OSError:
                near.close()
                continue
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(4096)
                if not data:
                    break
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def cut(self, resets):
        """End the connections, by a reset or in order."""
        ends, self._ends = self._ends, []
        for sock in ends:
            with contextlib.suppress(OSError):
                if resets:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def close(self):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(False)


class Chaos:
    """The three of them, and what may happen to them."""

    def __init__(self, directory, name, with_file):
        self.directory, self.recording = str(directory), str(directory / name)
        self.with_file = with_file
        self.life = 0
        self._happenings = []
        with socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            self.port = sock.getsockname()[1]
        self.relay = Relay(self.port)
        self.server = self.pusher = None

    def start_server(self):
        """The new one is ready when this returns."""
        self.server = self.server_process()
        assert b'ready\n' in iter(self.server.stdout.readline, b'')

    def server_process(self):
        return subprocess.Popen([sys.executable, '-c', SERVER, str(self.port), self.recording], cwd=ROOT,
                                stdout=subprocess.PIPE)

    def start_pusher(self):
        self.life += 1
        options = ['--spool', os.path.join(self.directory, 'spool')] if self.with_file else []
        self.pusher = subprocess.Popen(
            [sys.executable, '-c', PUSHER, '127.0.0.1:%d' % self.relay.port, str(self.life), self.directory] + options,
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_server(self):
        self.server.kill()
        self.server.wait()
        self.server.stdout.close()

    def kill_pusher(self):
        self.pusher.kill()
        self.pusher.wait()

    def truth(self):
        """Return the (life, i) of every reading that was in the spool."""
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(self.directory, 'truth')) as file:
                return [tuple(json.loads(line)['s']['count']) for line in file if line.endswith('\n')]
        return []

    def kept(self):
        """Return the (life, i) of every reading in the recording, in its order."""
        with contextlib.closing(recording.reader_of(self.recording)) as reader:
            return [tuple(one['s']['count']) for _, one in reader.entries() if 's' in one]

    def round(self, generator):
        """Let one thing happen, at some moment; each of five in five rounds."""
        if not self._happenings:
            self._happenings = ['cut', 'reset', 'server', 'pusher' if self.with_file else 'cut', 'all']
            generator.shuffle(self._happenings)
        happening = self._happenings.pop()
        time.sleep(generator.uniform(0.0, 0.25))
        if happening in ('cut', 'reset'):
            self.relay.cut(resets=happening == 'reset')
        if happening in ('server', 'all'):
            self.kill_server()
            time.sleep(generator.choice([0.0, 0.1]))
            self.start_server()
        if happening == 'pusher' or happening == 'all' and self.with_file:
            self.kill_pusher()
            self.start_pusher()

    def settle(self):
        """Take no more readings, and wait until the recording has all of them."""
        open(os.path.join(self.directory, 'enough'), 'w').close()
        deadline, before = time.monotonic() + 2 * DEADLINE, None
        while time.monotonic() < deadline:
            truth = self.truth()
            if truth and truth == before and set(truth) <= set(self.kept()):
                return
            before = truth
            time.sleep(0.2)

    def close(self):
        for process in (self.pusher, self.server):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if self.server is not None:
            self.server.stdout.close()
        self.relay.close()


class WholeChaos(Chaos):
    """The same with the server that people start, which has nothing of its own to read."""

    def server_process(self):
        return subprocess.Popen([sys.executable, '-c', TORN + WHOLE_SERVER, '--host', '127.0.0.1', '--port',
                                 str(self.port), '--record', self.recording, '--source', 'stdin'], cwd=ROOT,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def kill_server(self):
        super().kill_server()
        self.server.stdin.close()


def exactly_once(directory, name, with_file, rounds, seed, chaos=Chaos):
    """Run it; return how many readings there were."""
    generator, chaos = random.Random(seed), chaos(directory, name, with_file)
    try:
        chaos.start_server()
        chaos.start_pusher()
        deadline = time.monotonic() + DEADLINE
        while not chaos.truth():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(rounds):
            chaos.round(generator)
        chaos.settle()
        truth, kept = chaos.truth(), chaos.kept()
    finally:
        chaos.close()
    assert len(kept) == len(set(kept)), 'doubled'
    assert set(truth) <= set(kept), 'missing: %s' % sorted(set(truth) - set(kept))[:20]
    assert kept == sorted(kept), 'not in order'
    for life in range(1, chaos.life + 1):
        counts = [i for one, i in kept if one == life]
        assert counts == list(range(1, len(counts) + 1)), 'a hole in life %d' % life
    # a pusher may be killed when a reading is in its spool and not yet in our list of them: the last one of a life
    assert len(set(kept) - set(truth)) <= chaos.life
    return len(kept)


@pytest.mark.parametrize('name, with_file', [('r.jsonl', True), ('r.db', False)])
def test_every_reading_is_recorded_exactly_once(tmp_path, name, with_file):
    assert exactly_once(tmp_path, name, with_file, rounds=5, seed=5) > 50


@pytest.mark.parametrize('rounds', [3, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', ['r.jsonl', 'r.db'])
def test_every_reading_is_recorded_exactly_once_by_the_program(tmp_path, name, rounds):
    assert exactly_once(tmp_path, name, True, rounds, seed=rounds, chaos=WholeChaos) > 10 * rounds


@pytest.mark.slow
@pytest.mark.parametrize('name, with_file, rounds', [('r.jsonl', True, 60), ('r.db', True, 20), ('r.jsonl', False, 20)])
def test_every_reading_is_recorded_exactly_once_a_hundred_times(tmp_path, name, with_file, rounds):
    """A hundred rounds in all."""
    began = time.monotonic()
    count = exactly_once(tmp_path, name, with_file, rounds, seed=rounds)
    print('%d rounds in %.0f s: %d readings, each once' % (rounds, time.monotonic() - began, count))
