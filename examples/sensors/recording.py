"""Recordings of sensor readings: kept exactly once, played again with their own timing, handed out as CSV.

    recorder = Recorder('today.jsonl')          JSON lines; a name that ends in .db makes it an SQLite database
    recorder.append({'t': 1732140000.123, 'd': 'pixel', 's': {'light': 310}})
    recorder.flush()

    for record in replay('today.jsonl', speed=10): ...
    said = played(handler, 'today.jsonl')       in a unit test: what one's own handler answers to a recording

A record is a dict with "t", seconds since 1970 by the clock of whoever took it; "offset" are the milliseconds by which
that clock was ahead of the server's. Readings have "d" and "s", the device and {sensor: number or [number, ...]};
{"t", "hello": {...}} describes a device; everything else is kept as it is. Numbered readings have "spool" and "n" too:
of a spool each number is kept once, in order, whatever is sent twice.
"""
import array
import collections
import contextlib
import csv as csv_format
import io
import json
import os
import threading
import time

import minws
from examples.droid_sensor import JsonLines, parse_object

FLUSH_PERIOD = 0.2            # seconds between two flushes; what a power failure costs those who do not number
BUFFER = 8 << 20              # bytes of records that wait while the disk does not take them
CHECKPOINT = 1 << 20          # bytes between two lines that have all numbers, by which those are found again
MAX_SPOOLS = 1000             # spools whose numbers are remembered; a line with them has 40 KB
MAX_NUMBER = 1 << 53          # JSON's numbers are exact up to here
MAX_SPOOL = 60                # characters of a spool's name
LOSS_PERIOD = 1.0             # seconds between two sentences about what is lost
CSV_BLOCK = 1 << 15           # characters of CSV that are handed out at once


class RecordingError(OSError):
    """A recording that cannot be opened, or cannot go on for now; its text is a sentence for a person."""


def reason(error):
    """Return what an error of the system is called, without its number."""
    return getattr(error, 'strerror', None) or error


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_record(value):
    return isinstance(value, dict) and is_number(value.get('t'))


def is_numbered(spool, number):
    """Tell whether a device may name a spool and number a reading so."""
    return (isinstance(spool, str) and 0 < len(spool) <= MAX_SPOOL
            and isinstance(number, int) and not isinstance(number, bool) and 0 < number <= MAX_NUMBER)


def moment(record):
    """Return when a record was taken, in seconds since 1970 by the server's clock."""
    offset = record.get('offset')
    return record['t'] - (offset / 1000 if is_number(offset) else 0)


##############################################################################
# Numbers
##############################################################################

class Ledger:
    """Of every spool the greatest number that was taken, and the greatest one that is kept. Not for several threads."""

    def __init__(self, kept=()):
        self.kept = collections.OrderedDict(kept)   # spool -> number; whoever was quiet longest stands first
        self._taken = dict(self.kept)

    def begin(self, spool, first):
        """Count the numbers before `first` as kept: they never come. Return the greatest number that is kept."""
        if first - 1 > self._taken.get(spool, 0):
            self._taken[spool] = first - 1
            self.keep({spool: first - 1})
        return self.kept.get(spool, 0)

    def is_next(self, spool, number):
        """Tell whether a number is neither one that was taken nor one after a hole."""
        return number == self._taken.get(spool, 0) + 1

    def take(self, spool, number):
        self._taken[spool] = number

    def keep(self, numbers):
        """Note what is on the disk now, {spool: number}; the spools that were quiet longest are forgotten."""
        for spool, number in numbers.items():
            self.kept[spool] = max(number, self.kept.get(spool, 0))
            self.kept.move_to_end(spool)
        while len(self.kept) > MAX_SPOOLS:
            forgotten, _ = self.kept.popitem(last=False)
            self._taken.pop(forgotten, None)


##############################################################################
# Stores
#
# What a recording is kept in. A store has, at its opening, numbers: {spool: number}; write(records, numbers, kept) puts
# records on the disk when it returns, and nothing of them if it raises OSError. `numbers` are the greatest among the
# records, `kept` all those before. To be read there are entries(), (position, record) in the order of writing, and
# read(position), from another object and any thread.
##############################################################################

class LineStore:
    """JSON lines. Where CHECKPOINT bytes have passed, a line {"numbers": {spool: number}} has all so far."""

    SIGN = b'{"numbers": '

    def __init__(self, path):
        self.path = path
        self._lines = JsonLines(path)
        self._checked = 0     # where the last line with all numbers begins
        self.numbers = collections.OrderedDict()
        if self._lines.size:
            self._find_numbers()

    def _find_numbers(self):
        with open(self.path, 'rb') as file:
            self._checked = self._last_checkpoint(file)
            file.seek(self._checked)
            for value in filter(None, map(parse_object, file)):
                found = value.get('numbers', {value.get('spool'): value.get('n')})
                for spool, number in found.items() if isinstance(found, dict) else ():
                    if is_numbered(spool, number):
                        self.numbers[spool] = max(number, self.numbers.pop(spool, 0))

    def _last_checkpoint(self, file):
        """Return where the last line with all numbers begins, 0 if there is none; looks for it from the end."""
        end, behind = self._lines.size, b''
        while end > 0:
            start = max(0, end - CHECKPOINT // 8)
            file.seek(start)
            block = file.read(end - start) + behind
            found = block.rfind(b'\n' + self.SIGN)
            if found >= 0:
                return start + found + 1
            end, behind = start, block[:len(self.SIGN)]
        return 0

    def write(self, records, numbers, kept):
        size = self._lines.size
        is_due = size - self._checked > CHECKPOINT
        lines = [json.dumps({'numbers': kept})] if is_due else []
        lines += [text for _, _, text in records]
        self._lines.append(''.join(line + '\n' for line in lines).encode('utf-8'), sync=True)
        if is_due:
            self._checked = size

    def close(self):
        self._lines.close()


class LineReader:
    def __init__(self, path):
        self._file = open(path, 'rb')

    def entries(self):
        self._file.seek(0)
        position = 0
        for line in self._file:
            record = parse_object(line)
            if is_record(record):
                yield position, record
            position += len(line)

    def read(self, position):
        self._file.seek(position)
        return parse_object(self._file.readline())

    def close(self):
        self._file.close()


class SqliteStore:
    """An SQLite database: each record as JSON in the table `records`; the view `readings` has a value in each row."""

    SCHEMA = '''
        CREATE TABLE IF NOT EXISTS records (t REAL NOT NULL, device TEXT, record TEXT NOT NULL);
        CREATE INDEX IF NOT EXISTS records_t ON records (t);
        CREATE TABLE IF NOT EXISTS numbers (spool TEXT PRIMARY KEY, n INTEGER NOT NULL);
        CREATE VIEW IF NOT EXISTS readings AS
            SELECT t, device, s.key AS sensor, v.key AS axis, v.value AS value
            FROM records, json_each(record, '$.s') AS s,
                 json_each(CASE s.type WHEN 'array' THEN s.value ELSE json_array(s.value) END) AS v;
    '''

    def __init__(self, path):
        self.path = path
        self._connection = None
        self._open()
        self.numbers = collections.OrderedDict(
            self._connection.execute('SELECT spool, n FROM numbers ORDER BY rowid').fetchall())

    def _open(self):
        import sqlite3
        with sqlite_errors():
            connection = sqlite3.connect(self.path, check_same_thread=False)
            try:
                connection.execute('PRAGMA synchronous = FULL')
                connection.executescript(self.SCHEMA)
            except BaseException:
                connection.close()
                raise
        self._connection = connection

    def write(self, records, numbers, kept):
        if self._connection is None:
            self._open()
        try:
            with sqlite_errors(), self._connection as connection:
                connection.executemany('INSERT INTO records VALUES (?, ?, ?)', records)
                connection.executemany('DELETE FROM numbers WHERE spool = ?', [(spool,) for spool in numbers])
                connection.executemany('INSERT INTO numbers VALUES (?, ?)', numbers.items())
        except OSError:
            self.close()      # after a card was removed it stays broken
            raise

    def close(self):
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(OSError), sqlite_errors():
                connection.close()


class SqliteReader:
    def __init__(self, path):
        import sqlite3
        if not os.path.exists(path):    # which connect() would make
            raise FileNotFoundError(2, 'there is no such file', path)
        self._connection = sqlite3.connect(path, check_same_thread=False)

    def entries(self):
        with sqlite_errors():
            for position, text in self._connection.execute('SELECT rowid, record FROM records ORDER BY rowid'):
                yield position, parse_object(text)

    def read(self, position):
        with sqlite_errors():
            found = self._connection.execute('SELECT record FROM records WHERE rowid = ?', (position,))
            return parse_object(found.fetchone()[0])

    def close(self):
        self._connection.close()


@contextlib.contextmanager
def sqlite_errors():
    """Turn the errors of a database into OSError, as those of a file are."""
    import sqlite3
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(str(error)) from error


def is_database(path):
    return os.path.splitext(path)[1] == '.db'


def reader_of(path):
    """Return what reads a recording; RecordingError if there is none."""
    try:
        return (SqliteReader if is_database(path) else LineReader)(path)
    except (OSError, ImportError) as error:
        raise RecordingError('the recording %s cannot be read: %s' % (path, reason(error))) from error


##############################################################################
# Recorder
##############################################################################

class Recorder:
    """Appends records to a file, each numbered reading once. Any thread.

    append() keeps a record in memory, flush() brings all that wait to the disk, with fsync: only what it returns may be
    acknowledged. While the disk does not take them, records wait, BUFFER bytes at most, and go on when it does again.
    A line that was torn by a power failure is removed at the opening; the file only ever grows otherwise.
    RecordingError if the file cannot be opened.
    """

    def __init__(self, path):
        self.path = path
        try:
            self._store = (SqliteStore if is_database(path) else LineStore)(path)
        except (OSError, ImportError) as error:    # some Pythons have no sqlite3
            raise RecordingError('cannot record into %s: %s' % (path, reason(error))) from error
        self._ledger = Ledger(self._store.numbers)
        self._waiting = collections.deque()     # (t, device, text)
        self._numbers = {}                      # of those that wait, the greatest of each spool
        self._size = 0                          # bytes that wait
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def begin(self, spool, first=1):
        """Return the greatest number of a spool that is kept; the device says that those before `first` never come.

        ValueError for what is no name of a spool, or no number.
        """
        if not is_numbered(spool, first):
            raise ValueError('a spool has a short name and numbers from 1 on')
        with self._lock:
            return self._ledger.begin(spool, first)

    def append(self, record):
        """Take a record, or return False if it has a number that was taken before, or one after a hole.

        ValueError for what is no record. RecordingError if too much waits already; it is not taken then.
        """
        spool, number = record.get('spool'), record.get('n')
        if not is_record(record) or spool is not None and not is_numbered(spool, number):
            raise ValueError('a record has a number "t", and if it has a "spool" a number "n"')
        text = json.dumps(record, allow_nan=False)
        with self._lock:
            if spool is not None and not self._ledger.is_next(spool, number):
                return False
            if self._size + len(text) > BUFFER:
                raise RecordingError('the recording %s cannot go on: %d MiB wait for a disk that takes nothing'
                                     % (self.path, BUFFER >> 20))
            if spool is not None:
                self._ledger.take(spool, number)
                self._numbers[spool] = number
            self._waiting.append((record['t'], record.get('d'), text))
            self._size += len(text)
        return True

    def flush(self):
        """Bring what waits to the disk; return what is kept now, {spool: number}, of the spools where that is more.

        RecordingError if that is impossible; what waits goes on waiting then.
        """
        with self._flushing:
            with self._lock:
                records, numbers, self._numbers = list(self._waiting), self._numbers, {}
                kept = dict(self._ledger.kept)
            if not records:
                return {}
            try:
                self._store.write(records, numbers, kept)
            except OSError as error:
                with self._lock:
                    self._numbers = dict(numbers, **self._numbers)
                raise RecordingError(
                    'the recording %s cannot go on (%s): what comes waits in memory until its disk is there and has '
                    'room' % (self.path, reason(error))) from error
            with self._lock:
                for _, _, text in records:
                    self._waiting.popleft()
                    self._size -= len(text)
                self._ledger.keep(numbers)
            return numbers

    def run(self, stopping, acknowledge, say):
        """Flush until `stopping`, an Event, is set, and once more: what a thread of the server's does.

        acknowledge(spool, number) is called for what is kept, say(text) when the recording cannot go on, say(None) when
        it can again.
        """
        said = None
        while True:
            stopped = stopping.wait(FLUSH_PERIOD)
            try:
                kept, trouble = self.flush(), None
            except RecordingError as error:
                kept, trouble = {}, str(error)
            if trouble != said:
                said = trouble
                say(trouble)
            for spool, number in kept.items():
                acknowledge(spool, number)
            if stopped:
                return

    def close(self):
        """Flush and close the file: RecordingError if the flush fails, and then it is closed all the same."""
        try:
            self.flush()
        finally:
            self._store.close()


class Archive:
    """What a server keeps of its devices: records go to a Recorder, and numbers back to those who count. Any thread.

    `notice(key, text)` gets a sentence for people when something is wrong with the disk, and None when that is over.
    """

    def __init__(self, recorder, notice):
        self.path = recorder.path
        self._recorder = recorder
        self._notice = notice
        self._answers = {}    # spool -> the function that sends a text to its device
        self._lost = 0        # readings that nobody will send again
        self._say_lost = 0.0  # when that may be told, monotonic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=recorder.run, name='recorder', daemon=True,
                                        args=(self._stopping, self._acknowledge, self._say))

    def start(self):
        self._thread.start()

    def begin(self, spool, first, answer):
        """Answer the hello of a device that numbers its readings; ValueError if it names no spool or no number.

        `answer(text, key=…)` is called with every acknowledgement from now on; of equal keys the newest counts.
        """
        number = self._recorder.begin(spool, first)
        self._answers[spool] = answer
        self._acknowledge(spool, number)

    def leave(self, spool, answer):
        """Take it that a connection that began a spool has ended; the device may have another one by now."""
        if self._answers.get(spool) is answer:
            del self._answers[spool]

    def take(self, record):
        """Keep a record; return False if it has a number that is not the next one: then it is of no account at all."""
        try:
            return self._recorder.append(record)
        except RecordingError as error:
            if 'spool' not in record:
                self._lost += 1
            if self._lost and time.monotonic() >= self._say_lost:
                self._say_lost = time.monotonic() + LOSS_PERIOD
                self._notice('recording lost', '%s; readings lost so far: %d' % (error, self._lost))
            return True

    def close(self):
        """Bring what waits to the disk; RecordingError if that is impossible."""
        self._stopping.set()
        self._thread.join()
        self._recorder.close()

    def _acknowledge(self, spool, number):
        answer = self._answers.get(spool)
        if answer is not None:
            with contextlib.suppress(minws.ConnectionClosed):
                answer(json.dumps({'ack': number}), key='ack')

    def _say(self, text):
        self._notice('recording', text)


##############################################################################
# Replay
##############################################################################

class Schedule:
    """When each record of a recording is due; sixteen bytes a record, as many again if it is not in order of time.

    A device that was away for an hour brings what it took then late, and has its place by the clock all the same. The
    description of a device comes before its first reading.
    """

    def __init__(self, reader):
        self._times, self._positions = array.array('d'), array.array('q')
        hellos, earliest = [], {}
        for position, record in reader.entries():
            if isinstance(record.get('hello'), dict):
                hellos.append((len(self._times), record['hello'].get('device')))
            else:
                device = record.get('d')
                earliest[device] = min(moment(record), earliest.get(device, moment(record)))
            self._times.append(moment(record))
            self._positions.append(position)
        for index, device in hellos:
            self._times[index] = min(self._times[index], earliest.get(device, self._times[index]) - 0.001)

    def __iter__(self):
        """Yield (time, position) in order of time."""
        times, order = self._times, range(len(self._times))
        if any(times[n] < times[n - 1] for n in range(1, len(times))):
            order = sorted(order, key=times.__getitem__)
        return ((times[n], self._positions[n]) for n in order)


def replay(path, speed=1.0, stop=None):
    """Yield the records of a recording, each at its time: `speed` times as fast as it was, None for at once.

    Setting `stop`, a threading.Event, ends it. RecordingError if there is no such recording.
    """
    stop = stop or threading.Event()
    with contextlib.closing(reader_of(path)) as reader:
        began = first = None
        for due, position in Schedule(reader):
            if speed is not None:
                if first is None:
                    began, first = time.monotonic(), due
                left = began + (due - first) / speed - time.monotonic()
                if left > 0:
                    stop.wait(left)
            if stop.is_set():
                return
            yield reader.read(position)


def played(handler, path, device=None):
    """Play a recording to one's own handler, a function of a WebSocket, without a network; return what it answers.

    The handler gets every record at once, or those of one device, as text messages, and then the end of its connection.
    What it raises is raised here.
    """
    client, server = minws.pair()
    client.close_timeout = 60.0
    answers, failures = [], []

    def handle():
        try:
            handler(server)
        except minws.ConnectionClosed:
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            server.close()

    def listen():
        with contextlib.suppress(minws.ConnectionClosed):
            answers.extend(client)

    threads = [threading.Thread(target=target, daemon=True) for target in (handle, listen)]
    for thread in threads:
        thread.start()
    with contextlib.suppress(minws.ConnectionClosed):
        for record in replay(path, speed=None):
            if device in (None, device_of(record)):
                client.send(json.dumps(record))
    client.close()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return answers


def device_of(record):
    hello = record.get('hello')
    return hello.get('device') if isinstance(hello, dict) else record.get('d')


##############################################################################
# CSV
##############################################################################

CSV_HEAD = ('t', 'device', 'sensor', 'axis', 'unit', 'value')


def csv(path, since=None, device=None):
    """Yield a recording as CSV (bytes), a row for each axis of each value, in the order of arrival.

    `since` are seconds since 1970, `device` a name; None for all. Times are those of the server's clock, values are not
    rounded. RecordingError, before the first row, if there is no such recording.
    """
    return _csv_blocks(reader_of(path), since, device)


def _csv_blocks(reader, since, device):
    with contextlib.closing(reader):
        text = io.StringIO()
        writer = csv_format.writer(text)
        writer.writerow(CSV_HEAD)
        described = {}
        for _, record in reader.entries():
            if isinstance(record.get('hello'), dict):
                described[device_of(record)] = record['hello'].get('sensors')
            elif device in (None, record.get('d')) and (since is None or moment(record) >= since):
                writer.writerows(csv_rows(record, described.get(record.get('d'))))
            if text.tell() > CSV_BLOCK:
                yield text.getvalue().encode('utf-8')
                text.seek(0)
                text.truncate()
        yield text.getvalue().encode('utf-8')


def csv_rows(record, sensors):
    """Yield the rows of a reading; `sensors` is what its device's hello had, or None."""
    samples = record.get('s')
    for sensor, values in samples.items() if isinstance(samples, dict) else ():
        meaning = sensors.get(sensor) if isinstance(sensors, dict) else None
        meaning = meaning if isinstance(meaning, dict) else {}
        axes = meaning.get('axes') or []
        for n, value in enumerate(values if isinstance(values, list) else [values]):
            axis = axes[n] if n < len(axes) else n if isinstance(values, list) else ''
            yield [repr(moment(record))] + [harmless(name) for name in (
                record.get('d', ''), sensor, axis, meaning.get('unit', ''))] + [repr(value)]


def harmless(name):
    """Return a name as a table may have it: what a program for tables takes for a formula is made text."""
    name = str(name)
    return "'" + name if name[:1] in ('=', '+', '-', '@', '\t', '\r') else name
