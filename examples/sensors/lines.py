"""Readings in the lines that people's devices already print.

    state = State()
    for reading in parse('temperature:21.5§°C', state):
        print(reading.sensor, reading.values, reading.meaning.unit, reading.stamp)

    Teleplot                    name:21.5   name:1627551892437:21.5   >name:1;2;3§km²|np
    Arduino's serial plotter    21.5 40     temp:21.5,hum:40          labels first: temp:  hum:
    WebPlotter                  $21.5,40    labels first: #temp[°C],hum[%]
    CSV with a header           time,temp (°C),accel_x,accel_y,accel_z
    JSON                        {"temp": 21.5, "accel": [0, 0, 9.8], "timestamp": 1627551892.4}
                                and what this project, the phone apps Sensor Logger and SensorServer, and others send

Everything here is a function of text: nothing reads, waits or looks at a clock but for the default of `now`. Names,
axes, sensors and the length of a line are bounded, and a line that is none of the above is counted and costs itself.
"""
import calendar
import collections
import csv
import json
import math
import re
import time

from examples.droid_sensor import ANDROID, ANDROID_SENSORS, MAX_NAME, XYZ, Clock, Sensor, location_reading

MAX_LINE = 1 << 16            # characters; JSON of sixty sensors has five thousand, a batch of a phone more
MAX_PLAIN = 1 << 12           # of a line that is no JSON; a table of sixty columns is not that wide
MAX_SENSORS = 64              # of one State; a page shows no more of a device
MAX_AXES = 16                 # Android's longest: an uncalibrated pose
MAX_DEPTH = 3                 # of objects in objects
NOTE = 60                     # characters of a line that is told to a person

Reading = collections.namedtuple('Reading', 'sensor values meaning stamp')
Reading.__doc__ = """One sensor at one moment: name, [float], Sensor, and seconds since 1970, UTC."""


class State:
    """What the lines of one device have said so far: the labels of its columns, and how its clock goes.

    Attributes: `garbage`, how many lines were none of the known; `note`, the beginning of the last line if no reading
    was in it, a log perhaps, else ''; `device`, what the lines call the device, or ''.
    """

    def __init__(self):
        self.garbage = 0
        self.note = ''
        self.device = ''
        self._clock = Clock()
        self._names = set()
        self._meanings = {}   # from a hello
        self._table = None    # the Table that the rows belong to
        self._header = None   # the Table of the last line that may have been a header: the next row tells
        self._plot = None     # the same for WebPlotter, whose values are marked

    def reading(self, sensor, values, now, meaning=None, seconds=None):
        """Return [Reading] if all of it is within bounds, else [].

        `seconds` is a stamp of the device's clock, None if it told none.
        """
        sensor = sensor.strip()
        values = [float(value) for value in values]
        known = sensor in self._names or len(self._names) < MAX_SENSORS
        if not (is_name(sensor) and known and 0 < len(values) <= MAX_AXES and all(map(math.isfinite, values))):
            return []
        self._names.add(sensor)
        meaning = meaning or self._meanings.get(sensor) or Sensor('', axes_of(values))
        stamp = now if seconds is None else self._clock.utc(seconds, now)
        return [Reading(sensor, values, meaning, stamp)]


def is_name(text):
    return 0 < len(text) <= MAX_NAME and text.isprintable()


def axes_of(values):
    """Return names for the axes of values of which nobody told us any."""
    if len(values) == 1:
        return ()
    return XYZ[:len(values)] if len(values) <= 3 else tuple(map(str, range(1, len(values) + 1)))


def parse(text, state=None, now=None):
    """Return the [Reading] in whole lines of text; now in seconds since 1970, UTC."""
    state, now, readings = state or State(), time.time() if now is None else now, []
    for line in re.split('[\r\n]+', text):
        line = line.strip('\0\ufeff \t')
        if line:
            limit = MAX_LINE if line[0] in '{[' else MAX_PLAIN
            found = parse_line(line, state, now) if len(line) <= limit else None
            state.garbage += found is None
            state.note = '' if found else line[:NOTE]
            readings += found or []
    return readings


def parse_line(line, state, now):
    """Return the [Reading] in a line, None for garbage; [] for what says no number, such as a log or a header."""
    if line[0] in '{[':
        return parse_json_line(line, state, now)
    if line[0] in '$#@':
        return parse_plot(line, state, now)
    if line[0] in '|>' or line.startswith('3D|'):
        return parse_marked(line, state, now)
    for parser in (parse_row, parse_teleplot, parse_parts, parse_numbers, parse_header):
        found = parser(line, state, now)
        if found is not None:
            return found
    return None


##############################################################################
# Numbers and times
##############################################################################

NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?'
IS_NUMBER = re.compile(NUMBER + '$')
IS_UNIT = re.compile(r'[^\d\s]\S{0,15}$')
IS_NO_VALUE = re.compile(r'([-+]?(nan|inf|ovf|null|none))?$', re.I)  # what printf and Arduino's print() write for none
IS_TIME = re.compile(r'(time ?stamp|date ?time|date|time|ts|t|epoch|millis|micros|utc|loggingtime|seconds elapsed)'
                     r'( (s|ms|us|µs|ns|sec|seconds|millis|utc|elapsed))?$')
ISO_TIME = re.compile(r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+|,\d+)? ?(Z|[-+]\d\d:?\d\d)?$')
TIME_UNITS = {'ms': 1e-3, 'millis': 1e-3, 'us': 1e-6, 'µs': 1e-6, 'micros': 1e-6, 'ns': 1e-9, 's': 1.0, 'sec': 1.0}


def number(text):
    """Return the float in text; NaN for what stands for no value, None for what is no number at all."""
    text = text.strip()
    if IS_NUMBER.match(text):
        return float(text)
    return math.nan if IS_NO_VALUE.match(text) else None


def seconds_of(value, unit=None):
    """Return the seconds in a stamp, a number or text, or None; where no unit is given its size tells."""
    if isinstance(value, str):
        iso = ISO_TIME.match(value.strip())
        if iso:
            return iso_seconds(*iso.groups())
        value = number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e19:
        return None
    if unit in TIME_UNITS:
        return value * TIME_UNITS[unit]
    for factor in (1e-9, 1e-6, 1e-3):
        if abs(value) * factor > 1e8:
            return value * factor
    return float(value)


def iso_seconds(date, clock, fraction, zone):
    try:
        whole = calendar.timegm(time.strptime(date + ' ' + clock, '%Y-%m-%d %H:%M:%S'))
    except ValueError:
        return None
    if zone and zone != 'Z':
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        whole -= 60 * minutes * (-1 if zone[0] == '-' else 1)
    return whole + float((fraction or '.0').replace(',', '.'))


##############################################################################
# Teleplot
##############################################################################

def parse_marked(line, state, now):
    """Return what stands after Teleplot's marks: a variable of a serial port, or what says no number."""
    name = line[1:].partition(':')[0]
    if line[0] == '>' and name and not IS_NUMBER.match(name):
        return parse_teleplot(line[1:], state, now)
    return []


def parse_teleplot(line, state, now):
    """Return the readings in name:value, name:ms:value and their batches; None if the line is no such thing."""
    name, colon, rest = line.partition(':')
    name = name.partition(',')[0].strip()  # after the comma: the chart that it should share
    if not colon or not name or '\t' in name:
        return None
    rest, _, flags = rest.rpartition('|') if '|' in rest else (rest, '', '')
    rest, _, unit = rest.partition('§')
    flags = flags.split(',')
    if 't' in flags or name.startswith('statsd'):
        return []             # text is no number
    readings = []
    for value in filter(None, rest.split(';')):
        found = parse_point(name, value.split(':'), unit.strip(), 'xy' in flags, state, now)
        if found is None:
            return None
        readings += found
    return readings or None


def parse_point(name, parts, unit, flat, state, now):
    """Return the [Reading] of one value, None if it is not one; `flat` for a point of a plane."""
    numbers = [number(part) if part.strip() else None for part in parts]
    if len(parts) == 2 and numbers[0] is not None and numbers[1] is None and IS_UNIT.match(parts[1]):
        return state.reading(name, numbers[:1], now, Sensor(parts[1], ()))  # name:value:unit
    if None in numbers or len(parts) > 3 or flat and len(parts) < 2:
        return None
    if flat or len(parts) == 3:
        values, rest, axes = numbers[:2], numbers[2:], ('x', 'y')
    else:
        values, rest, axes = numbers[-1:], numbers[:-1], ()
    return state.reading(name, values, now, Sensor(unit, axes), rest[0] / 1000 if rest else None)


##############################################################################
# Arduino's serial plotter
##############################################################################

# A label may have spaces, as in the plotter's own documentation; what follows a number ends the part, but for a unit.
# Its length is bounded so that no line makes the search for its end long.
PART = re.compile(r'\s*(?:([^:=,;\t]{1,%d})[:=]\s*)?' % (2 * MAX_NAME) +
                  r'(' + NUMBER + r'|[-+]?(?:nan|inf|ovf)\b)'
                  r'(?:\s?([°µΩ%A-Za-z][°µΩ%A-Za-z/²³]{0,5})(?=\s*(?:[,;\t]|$)))?'
                  r'(?:\s*[,;\t]\s*|\s+|$)', re.I)


def parse_parts(line, state, now):
    """Return the readings in label:value parts with spaces, tabs or commas between them; None without a label."""
    if ':' not in line and '=' not in line:
        return None
    readings, position, count = [], 0, 0
    while position < len(line):
        match = PART.match(line, position)
        if match is None:
            return None
        position, count = match.end(), count + 1
        label, value, unit = match.groups()
        if label is not None and not label.strip():
            return None
        readings += state.reading(label or 'value %d' % count, [number(value)], now, Sensor(unit or '', ()))
    return readings


def parse_numbers(line, state, now):
    """Return the readings in numbers alone, which the last header named if it has as many columns."""
    parts = [part for part in re.split(r'[,;\t ]+', line) if part]
    values = [number(part) for part in parts]
    if not parts or None in values:
        return None
    readings = []
    for i, value in enumerate(values):
        readings += state.reading('value %d' % (i + 1), [value], now)
    return readings


##############################################################################
# Tables: a header that names the columns, then rows
##############################################################################

Column = collections.namedtuple('Column', 'sensor meaning places')
Column.__doc__ = """A sensor of a table: its name, its Sensor, and the places of its numbers in a row."""


class Table:
    """What a header says: [Column], which place has the time and in what unit, and how many places there are."""

    def __init__(self, labels, delimiter):
        self.delimiter = delimiter
        self.labels = labels
        self.time, self.time_unit, self.columns = None, None, []
        named = []
        for place, label in enumerate(labels):
            name, unit = name_and_unit(label)
            words = re.sub(r'[ _\-.]+', ' ', name).strip().lower()
            if not IS_TIME.match(words):
                named.append((name, unit, place))
            elif self.time is None:
                self.time = place
                last = words.rpartition(' ')[2]
                self.time_unit = unit if unit in TIME_UNITS else last if last in TIME_UNITS else None
        self.columns = group_axes(named)

    def row(self, cells, state, now):
        """Return the [Reading] of a row; cells that hold no number are left out, with the others of their sensor."""
        seconds = None if self.time is None else seconds_of(cells[self.time], self.time_unit)
        readings = []
        for column in self.columns:
            values = [self._number(cells[place]) for place in column.places]
            if None not in values:
                readings += state.reading(column.sensor, values, now, column.meaning, seconds)
        return readings

    def _number(self, cell):
        if self.delimiter == ';':
            cell = cell.replace(',', '.')  # where the comma is for the fraction
        return number(cell)


def name_and_unit(label):
    """Return the name and the unit in `temp [°C]`, `temp (°C)`, `temp`."""
    match = re.match(r'(.*?)\s*[\[(]([^\[\]()]*)[\])]$', label)
    return (match.group(1), match.group(2).strip()) if match and match.group(1) else (label, '')


def group_axes(named):
    """Return the [Column] of (name, unit, place); neighbours such as accel_x, accel_y are axes of one sensor."""
    columns, i = [], 0
    while i < len(named):
        stem, unit = named[i][0][:-1].rstrip(' _.-'), named[i][1]
        axes = ''
        for name, other_unit, _ in named[i:i + 4]:
            axis = name[-1:]
            if other_unit != unit or name[:-1].rstrip(' _.-') != stem or axis.lower() not in 'xyzw' or axis in axes:
                break
            axes += axis
        apart = named[i][0][:-1] != stem or axes.isupper() or len(axes) > 2
        if stem and len(axes) > 1 and apart:
            places = [place for *_, place in named[i:i + len(axes)]]
            columns.append(Column(stem, Sensor(unit, tuple(axes.lower())), places))
            i += len(axes)
        else:
            columns.append(Column(named[i][0], Sensor(unit, ()), [named[i][2]]))
            i += 1
    return columns


def cells_of(line, delimiter):
    """Return the cells of a row, quoted ones without their quotes."""
    if delimiter == ' ':
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except (csv.Error, StopIteration):
        return []


def parse_row(line, state, now):
    """Return the readings in a row of the last header's table, or of the one before; None if it is a row of neither."""
    for table in (state._header, state._table):
        if table is not None:
            cells = cells_of(line, table.delimiter)
            if len(cells) != len(table.labels):
                cells = [cell for cell in re.split(r'[,;\t ]+', line) if cell]
            readings = table.row(cells, state, now) if len(cells) == len(table.labels) else []
            if readings:
                state._table, state._header = table, None
                return readings
    return None


def parse_header(line, state, now):
    """Take labels for those of the columns to come; return [], None if the line is no header."""
    delimiter = next((mark for mark in ',;\t' if mark in line), ' ')
    if delimiter == ' ' and not line.endswith(':'):
        labels = line.split()
        if not all(re.match(r'[^\W\d][\w./%°²\[\]()-]*$', label) for label in labels):
            return None
    else:
        labels = [line] if delimiter == ' ' else cells_of(line, delimiter)
        labels = [label[:-1].rstrip() if label.endswith(':') else label for label in labels]
    while labels and not labels[-1]:
        labels.pop()
    if not labels or len(labels) > MAX_SENSORS or not all(map(is_label, labels)) or len(set(labels)) < len(labels):
        return None
    # A sentence with a comma in it is no new header for rows that have theirs.
    if state._table is None or len(labels) != len(state._table.labels) or not any(' ' in label for label in labels):
        state._header = Table(labels, delimiter)
    return []


def is_label(text):
    """Return whether text may name a column."""
    name = name_and_unit(text)[0] if len(text) <= 2 * MAX_NAME else ''
    return is_name(name) and ':' not in name and any(map(str.isalpha, name)) and number(name) is None


def parse_plot(line, state, now):
    """Return the readings in WebPlotter's $1,2 under the labels of its #temp[°C],hum; [] for its @log."""
    cells = [cell.strip() for cell in line[1:].split(',')]
    if line[0] == '#':
        labels = [cell.lstrip('-') for cell in cells]  # dashes are for the pen
        if all(map(is_label, labels)):
            state._plot = [name_and_unit(label) for label in labels]
        return []
    if line[0] == '@':
        return []
    values = [number(cell) for cell in cells]
    if None in values:
        return None
    readings = []
    for i, value in enumerate(values):
        name, unit = state._plot[i] if state._plot and i < len(state._plot) else ('value %d' % (i + 1), '')
        readings += state.reading(name, [value], now, Sensor(unit, ()))
    return readings


##############################################################################
# JSON
##############################################################################

TIME_KEYS = ('timestamp', 'time', 'ts', 'Timestamp', 'datetime', 't')
NAME_KEYS = ('sensor', 'name', 'key', 'type')
VALUE_KEYS = ('values', 'value')
DEVICE_KEYS = ('deviceId', 'device', 'd')


def load_json(text):
    """Return the value in text, None if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse_json_line(line, state, now):
    return parse_json(load_json(line), state, now)


def parse_json(value, state, now):
    """Return the readings in what JSON says, an object or an array of them; None if that is neither."""
    if isinstance(value, list):
        found = [parse_json(each, state, now) for each in value if isinstance(each, dict)]
        return [reading for readings in found for reading in readings or []] if found else None
    if not isinstance(value, dict):
        return None
    device = next((value[key] for key in DEVICE_KEYS if isinstance(value.get(key), str)), '')
    if is_name(device.strip()):
        state.device = device.strip()
    for parser in (parse_hello, parse_own, parse_logger, parse_android, parse_named):
        found = parser(value, state, now)
        if found is not None:
            return found
    return parse_members(value, state, now)


def floats(value):
    """Return the [float] in a number or an array of them, None if it is neither."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in values):
        return None
    try:
        return [float(each) for each in values]
    except OverflowError:     # JSON has integers of any length
        return None


def parse_hello(value, state, now):
    """Take what our own hello says of its sensors."""
    hello = value.get('hello')
    if not isinstance(hello, dict):
        return None
    if isinstance(hello.get('device'), str):
        state.device = hello['device'][:MAX_NAME]
    sensors = hello.get('sensors')
    for name, about in list(sensors.items())[:MAX_SENSORS] if isinstance(sensors, dict) else ():
        about = about if isinstance(about, dict) else {}
        unit, axes = about.get('unit'), about.get('axes')
        axes = tuple(axis for axis in axes if isinstance(axis, str)) if isinstance(axes, list) else ()
        state._meanings[name] = Sensor(unit if isinstance(unit, str) else '', axes[:MAX_AXES])
    return []


def parse_own(value, state, now):
    """Return the readings in a message of our own: {"t": seconds, "s": {sensor: values}}."""
    samples = value.get('s')
    if not isinstance(samples, dict):
        return None
    readings = []
    for sensor, sample in samples.items():
        values = floats(sample)
        if values:
            readings += state.reading(sensor, values, now, seconds=seconds_of(value.get('t')))
    return readings


def parse_android(value, state, now):
    """Return the reading in what SensorServer and its kin send: values of a sensor that is named by Android's type."""
    kind, values = value.get('type'), floats(value.get('values', []))
    if not isinstance(kind, str) or not kind.startswith(ANDROID) or not values:
        return None
    sensor, meaning = ANDROID_SENSORS.get(kind[len(ANDROID):], (kind[len(ANDROID):].replace('_', ' '), None))
    if meaning is not None:
        values = values[:len(meaning.axes) or 1]
        meaning = meaning if len(values) == (len(meaning.axes) or 1) else None
    return state.reading(sensor, values, now, meaning, seconds_of(value.get('timestamp'), 'ns'))


def parse_named(value, state, now):
    """Return the reading in {"name": …, "value": …}, by whatever words for it."""
    name = next((value[key] for key in NAME_KEYS if isinstance(value.get(key), str)), None)
    sample = next((value[key] for key in VALUE_KEYS if key in value), None)
    if name is None or sample is None:
        return None
    unit, stamp = value.get('unit', ''), stamp_of(value)
    if isinstance(sample, dict):
        return parse_members(sample, state, now, name, stamp)
    values = floats(sample)
    if not values:
        return None
    return state.reading(name, values, now, Sensor(unit if isinstance(unit, str) else '', axes_of(values)), stamp)


def stamp_of(value):
    """Return the seconds of an object's time, None if it tells none."""
    for key in TIME_KEYS:
        seconds = seconds_of(value.get(key)) if key in value else None
        if seconds is not None and (key != 't' or seconds > Clock.EPOCH):
            return seconds
    return None


def parse_members(value, state, now, prefix='', seconds=None, depth=0):
    """Return the readings in an object that has a member for each sensor, or groups of them."""
    stamp = stamp_of(value)
    time_key = next((key for key in TIME_KEYS if key in value), None) if stamp is not None else None
    seconds = stamp if stamp is not None else seconds
    readings = []
    scalars = {key: values for key, values in ((key, floats(each)) for key, each in value.items()
                                               if key != time_key and not isinstance(each, list)) if values}
    if prefix and 1 < len(scalars) <= MAX_AXES and len(scalars) == len(value) - (time_key is not None):
        axes = tuple(scalars)
        values = [values[0] for values in scalars.values()]
        return state.reading(prefix, values, now, Sensor('', axes) if all(map(is_name, axes)) else None, seconds)
    for key, each in value.items():
        name = '%s/%s' % (prefix, key) if prefix else key
        if key == time_key:
            continue
        if isinstance(each, dict) and depth < MAX_DEPTH:
            readings += parse_members(each, state, now, name, seconds, depth + 1)
        else:
            values = floats(each)
            readings += state.reading(name, values, now, seconds=seconds) if values else []
    return readings


##############################################################################
# The phone app Sensor Logger
##############################################################################

DEGREES = 180 / math.pi
LOGGER_SENSORS = {            # its name in lower case: (sensor, its Sensor, keys, factor)…
    'accelerometer': (('linear accel', Sensor('m/s²', XYZ), XYZ, 1),),     # it takes gravity out
    'totalacceleration': (('accel', Sensor('m/s²', XYZ), XYZ, 1),),
    'gravity': (('gravity', Sensor('m/s²', XYZ), XYZ, 1),),
    'gyroscope': (('gyro', Sensor('rad/s', XYZ), XYZ, 1),),
    'magnetometer': (('magnetic', Sensor('µT', XYZ), XYZ, 1),),
    'orientation': (('orientation', Sensor('°', ('yaw', 'pitch', 'roll')), ('yaw', 'pitch', 'roll'), DEGREES),
                    ('rotation', Sensor('', ('x', 'y', 'z', 'w')), ('qx', 'qy', 'qz', 'qw'), 1)),
    'barometer': (('pressure', Sensor('hPa', ()), ('pressure',), 1),
                  ('height', Sensor('m', ()), ('relativeAltitude',), 1)),
    'light': (('light', Sensor('lx', ()), ('lux',), 1),),
    'microphone': (('sound', Sensor('dBFS', ()), ('dBFS',), 1),),
    'pedometer': (('steps', Sensor('', ()), ('steps',), 1),),
    'compass': (('heading', Sensor('°', ()), ('magneticBearing',), 1),),
    'heartrate': (('heart rate', Sensor('/min', ()), ('bpm',), 1),),
    'brightness': (('brightness', Sensor('', ()), ('brightness',), 1),),
    'battery': (('battery', Sensor('%', ()), ('batteryLevel',), 100),
                ('battery voltage', Sensor('V', ()), ('voltage',), 1),
                ('battery current', Sensor('A', ()), ('chargingCurrent',), 0.001)),
    'batterytemp': (('battery temperature', Sensor('°C', ()), ('temperature',), 1),),
}
LOGGER_OTHER = ('name', 'sensor', 'time', 'seconds_elapsed', 'accuracy', 'capturetime')


def parse_logger(value, state, now):
    """Return the readings in a push of Sensor Logger, or in an entry of one; None if it is neither."""
    payload = value.get('payload')
    if isinstance(payload, list):
        found = [parse_logger_entry(entry, state, now) for entry in payload if isinstance(entry, dict)]
        return [reading for readings in found for reading in readings]
    is_entry = 'time' in value and ('name' in value or 'sensor' in value) and not set(VALUE_KEYS[1:]) & set(value)
    return parse_logger_entry(value, state, now) if is_entry else None


def parse_logger_entry(entry, state, now):
    name = entry.get('name', entry.get('sensor'))
    if not isinstance(name, str):
        return []
    fields = entry['values'] if isinstance(entry.get('values'), dict) else entry
    fields = {key: number(each) if isinstance(each, str) else each for key, each in fields.items()}
    seconds = seconds_of(entry.get('time'))
    plain = name.lower().replace(' ', '')
    if plain == 'location':
        found = location_reading(dict(fields, accuracy=fields.get('horizontalAccuracy')), state._meanings)
        return [reading for sensor, values in found.items()
                for reading in state.reading(sensor, values, now, seconds=seconds)]
    readings = []
    for sensor, meaning, keys, factor in LOGGER_SENSORS.get(plain, ()) or logger_unknown(name, fields):
        values = floats([fields.get(key) for key in keys])
        if values:
            readings += state.reading(sensor, [value * factor for value in values], now, meaning, seconds)
    return readings


def logger_unknown(name, fields):
    """Return what LOGGER_SENSORS would have for a sensor that is not in it."""
    keys = tuple(sorted(key for key, each in fields.items() if key not in LOGGER_OTHER and floats(each)))[:MAX_AXES]
    return ((name, Sensor('', keys if len(keys) > 1 else ()), keys, 1),) if keys else ()


##############################################################################
# A body that was posted
##############################################################################

def parse_post(content_type, body, now=None):
    """Return [(device, stamp, {sensor: [float]}, {sensor: Sensor})] of a POST's body (bytes), in its order.

    JSON of any kind above, or lines; also name=value&… as a form sends it. `device` is '' if the body names none.
    An empty list is a body that was understood and has no numbers in it; ValueError is a sentence for who sent another.
    """
    now = time.time() if now is None else now
    text, state = decoded(body).strip('\ufeff \r\n\t'), State()
    value = load_json(text) if text[:1] in ('{', '[') else None
    if isinstance(value, (dict, list)):
        readings = parse_json(value, state, now)
    else:
        if 'form' in content_type and '=' in text and '\n' not in text:
            text = text.replace('&', '\n').replace('+', ' ')
        readings = parse(text, state, now)
    if readings is None or state.garbage and not readings:
        raise ValueError('no readings in %r' % text[:NOTE])
    return moments(readings, state.device)


def moments(readings, device):
    """Return (device, stamp, {sensor: values}, {sensor: Sensor}) for each run of readings of one moment."""
    found = []
    for reading in readings:
        if not found or found[-1][1] != reading.stamp or reading.sensor in found[-1][2]:
            found.append((device, reading.stamp, {}, {}))
        found[-1][2][reading.sensor] = reading.values
        found[-1][3][reading.sensor] = reading.meaning
    return found


##############################################################################
# Lines that come in pieces
##############################################################################

def decoded(data):
    """Return the text in bytes; what is no UTF-8 came from a device that knows one byte for each character."""
    try:
        return bytes(data).decode('utf-8')
    except UnicodeDecodeError:
        return bytes(data).decode('latin-1')


class Lines:
    """Cut bytes that come in any pieces into lines; `whole` False for a stream that may begin inside one."""

    def __init__(self, whole=True):
        self._rest = b''
        self._skipping = not whole

    def feed(self, data):
        """Return the text of the lines that are complete now."""
        lines = (self._rest + data).replace(b'\r', b'\n').split(b'\n')
        self._rest = lines.pop()
        if self._skipping and lines:
            self._skipping = False
            lines.pop(0)
        if len(self._rest) > MAX_LINE:  # its end is garbage, too
            self._rest, self._skipping = b'', True
        return ''.join(decoded(line) + '\n' for line in lines)

    def end(self):
        """Return the text of a last line that has no end."""
        rest, self._rest = self._rest, b''
        return '' if self._skipping else decoded(rest)
