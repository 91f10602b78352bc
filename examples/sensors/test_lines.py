"""Tests of lines.py; its vectors are the lines that the projects which made the formats have in their documentation."""
import json
import math
import random
import time

import pytest

from examples.droid_sensor import Sensor
from examples.sensors.lines import (MAX_AXES, MAX_LINE, MAX_SENSORS, Lines, State, moments, parse, parse_post,
                                    seconds_of)

NOW = 1763740000.0


def read(text, state=None):
    """Return {sensor: values} of all lines, of each sensor the last."""
    return {reading.sensor: reading.values for reading in parse(text, state, NOW)}


def numbers_of(text, state=None):
    """Return [(sensor, value…, stamp)] of all lines."""
    return [(reading.sensor, *reading.values, reading.stamp) for reading in parse(text, state, NOW)]


##############################################################################
# Teleplot
##############################################################################

STAMPED_PATH = 'trajectoryTimestamped:1:1:1627551892437;2:2:1627551892448;3:3:1627551892459|xy'


@pytest.mark.parametrize('line, expected', [
    ('myData:4', [('myData', 4, NOW)]),
    ('myValue:1234', [('myValue', 1234, NOW)]),
    ('myValue:1234|', [('myValue', 1234, NOW)]),
    ('myValue:1234|g', [('myValue', 1234, NOW)]),
    ('myValue:12.34e+2', [('myValue', 1234, NOW)]),
    ('myThirdValue:3.2323e+4|', [('myThirdValue', 32323, NOW)]),
    ('myValue:1627551892437:1234', [('myValue', 1234, 1627551892.437)]),
    ('myValue:1627551892437:1234|np', [('myValue', 1234, 1627551892.437)]),
    ('myValue:1234§km²', [('myValue', 1234, NOW)]),
    ('mySecondValue:1234:m/s', [('mySecondValue', 1234, NOW)]),
    ('myvariable1,chart52:45', [('myvariable1', 45, NOW)]),
    ('myvariable4,chart52:0.454', [('myvariable4', 0.454, NOW)]),
    ('trajectory:12.3:45.67|xy', [('trajectory', 12.3, 45.67, NOW)]),
    ('trajectory:12.3:45.67|xy,np', [('trajectory', 12.3, 45.67, NOW)]),
    ('trajectory:1:1;2:2;3:3;4:4|xy', [('trajectory', n, n, NOW) for n in (1, 2, 3, 4)]),
    (STAMPED_PATH, [('trajectoryTimestamped', 1, 1, 1627551892.437), ('trajectoryTimestamped', 2, 2, 1627551892.448),
                    ('trajectoryTimestamped', 3, 3, 1627551892.459)]),
    ('myValue:1627551892444:1;1627551892555:2;1627551892666:3', [
        ('myValue', 1, 1627551892.444), ('myValue', 2, 1627551892.555), ('myValue', 3, 1627551892.666)]),
    ('myValue:1627551892444:1;1627551892555:2;1627551892666:3§rad', [
        ('myValue', 1, 1627551892.444), ('myValue', 2, 1627551892.555), ('myValue', 3, 1627551892.666)]),
    ('>varName:1234', [('varName', 1234, NOW)]),                     # on a serial port
    ('>sin:0.5', [('sin', 0.5, NOW)]),
    # Words, logs, commands and shapes have no number to draw.
    ('myValue:hello|t', []),
    ('motor_4_state:Turned On|t', []),
    ('motor_4_state:1627551892437:Off|t', []),
    ('state:1627551892444:state_a;1627551892555:state_b|t', []),
    ('state2:1627551892444:state_a;1627551892555:state_b|t', []),
    ('>:Hello world', []),
    ('>1627551892437:cos(i) : 0.5', []),
    ('|sayHello|world|', []),
    ('3D|mySimpleCube:S:cube:P:1:1:1:R:0:0:0:W:2:H:2:D:2:C:#2ecc71', []),
    ('3D|mySimpleSphere:1627551892437:S:sphere:P::2::RA:2:C:red', []),
    ('3D|my_super_cube:S:cube:W:1:D:1:H:1:C:blue', []),
    ('3D|my_super_cube:W:1.2:R::0.2:', []),
    ('3D|myCube,widget0:S:cube', []),
    ('3D|mySphere,widget0:S:sphere', []),
])
def test_teleplot(line, expected):
    state = State()
    assert numbers_of(line, state) == expected
    assert state.garbage == 0


def test_teleplot_units():
    assert [reading.meaning.unit for reading in parse('a:1§km²\nb:1:m/s\nc:1627551892444:1;1627551892555:2§rad\nd:1')] \
        == ['km²', 'm/s', 'rad', 'rad', '']
    assert parse('path:1:2§m|xy')[0].meaning == Sensor('m', ('x', 'y'))


def test_teleplot_packet_of_many():
    packet = ('myValue:1234\nmySecondValue:1234:m/s\nmyThirdValue:1627551892437:1234\nstate:state_a|t\n'
              'trajectory:1:1;2:2;3:3;4:4|xy\n' + STAMPED_PATH + '\n')
    assert len(parse(packet)) == 1 + 1 + 1 + 0 + 4 + 3


def test_a_clock_that_counts_from_the_start_of_the_device_is_put_on_ours():
    state = State()
    assert numbers_of('a:5000:1', state) == [('a', 1, NOW)]
    assert [reading.stamp for reading in parse('a:5250:2', state, NOW + 0.3)] == [NOW + 0.25]
    assert [reading.stamp for reading in parse('a:10:3', state, NOW + 60)] == [NOW + 60]       # it started over


##############################################################################
# Arduino's serial plotter
##############################################################################

@pytest.mark.parametrize('text, expected', [
    ('10\n11\n12\n13\n14\n', [('value 1', n, NOW) for n in range(10, 15)]),
    ('Label 1:\n10\n11\n12\n13\n14\n', [('Label 1', n, NOW) for n in range(10, 15)]),
    ('Label 1:10\nLabel 1:11\nLabel 1:12\n', [('Label 1', n, NOW) for n in (10, 11, 12)]),
    ('Value:377\tAVG5:431.01\nValue:338\tAVG5:408.81\n', [
        ('Value', 377, NOW), ('AVG5', 431.01, NOW), ('Value', 338, NOW), ('AVG5', 408.81, NOW)]),
    ('Label 1 : 5 \t Label 2 : 6\n', [('Label 1', 5, NOW), ('Label 2', 6, NOW)]),
    ('Label 1:\tLabel 2\tLabel 3:\n1\t2\t3\n', [('Label 1', 1, NOW), ('Label 2', 2, NOW), ('Label 3', 3, NOW)]),
    ('Label 1\tLabel 2\n1\t2\n', [('Label 1', 1, NOW), ('Label 2', 2, NOW)]),
    ('temp hum\n1 2\n', [('temp', 1, NOW), ('hum', 2, NOW)]),
    ('1\n3 4\n', [('value 1', 1, NOW), ('value 1', 3, NOW), ('value 2', 4, NOW)]),
])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_arduino(text, expected, end):
    state = State()
    assert numbers_of(text.replace('\n', end), state) == expected
    assert state.garbage == 0


@pytest.mark.parametrize('mark', [' ', '\t', ','])
@pytest.mark.parametrize('trailing', [True, False])
def test_arduino_parts_between_any_marks(mark, trailing):
    end = mark * trailing + '\r\n'
    assert read('label_1:1' + mark + 'label_2:2' + end) == {'label_1': [1], 'label_2': [2]}
    assert read('1' + mark + '2' + end) == {'value 1': [1], 'value 2': [2]}


def test_arduino_parts_with_units_and_without_values():
    readings = parse('Temperature: 21.5 °C, Humidity: 40 %')
    assert [(reading.sensor, reading.values, reading.meaning.unit) for reading in readings] == [
        ('Temperature', [21.5], '°C'), ('Humidity', [40], '%')]
    state = State()
    assert read('temp:nan hum:40 light:ovf', state) == {'hum': [40]}
    assert read('temp=21.5 hum=-4e1', state) == {'temp': [21.5], 'hum': [-40]}
    assert state.garbage == 0


##############################################################################
# WebPlotter
##############################################################################

def test_webplotter():
    state = State()
    assert read('$5', state) == {'value 1': [5]}
    assert read('$1,2', state) == {'value 1': [1], 'value 2': [2]}
    assert read('@some, text: 5', state) == {}
    assert read('#температура[%],--подпись2', state) == {}
    readings = parse('$21.5,-3', state)
    assert [(reading.sensor, reading.values, reading.meaning.unit) for reading in readings] == [
        ('температура', [21.5], '%'), ('подпись2', [-3], '')]
    assert state.garbage == 0
    assert read('$1,x', state) == {} and state.garbage == 1


##############################################################################
# CSV
##############################################################################

def test_csv_with_units_times_and_axes():
    state = State()
    readings = parse('timestamp,temp (°C),"hum [%]",accel_x,accel_y,accel_z,note\n'
                     '2024-01-06T14:59:48.593Z,21.5,40,0.1,0.2,9.8,"a, b"\n'
                     '1704553189593,,41,0,0,,\n', state, NOW)
    assert [(reading.sensor, reading.values, reading.meaning, reading.stamp) for reading in readings] == [
        ('temp', [21.5], Sensor('°C', ()), pytest.approx(1704553188.593)),
        ('hum', [40], Sensor('%', ()), pytest.approx(1704553188.593)),
        ('accel', [0.1, 0.2, 9.8], Sensor('', ('x', 'y', 'z')), pytest.approx(1704553188.593)),
        ('hum', [41], Sensor('%', ()), pytest.approx(1704553189.593)),
    ]
    assert state.garbage == 0


@pytest.mark.parametrize('header, row, expected', [
    ('temp;hum', '21,5;40', {'temp': [21.5], 'hum': [40]}),                       # where the comma is for fractions
    ('temp\thum', '21.5\t40', {'temp': [21.5], 'hum': [40]}),
    ('accelX,accelY,accelZ', '1,2,3', {'accel': [1, 2, 3]}),
    ('pos.x,pos.y', '1,2', {'pos': [1, 2]}),
    ('max,may', '1,2', {'max': [1], 'may': [2]}),
    ('time_ms,v', '1500,3', {'v': [3]}),
    ('temp', '21.5', {'temp': [21.5]}),
    ('temp,hum', 'null,40', {'hum': [40]}),
])
def test_csv_headers(header, row, expected):
    assert read(header + '\n' + row) == expected


def test_a_header_does_not_hold_for_rows_of_another_length_nor_is_every_sentence_one():
    state = State()
    assert read('temp,hum\n1,2,3', state) == {'value 1': [1], 'value 2': [2], 'value 3': [3]}
    assert read('1,2', state) == {'temp': [1], 'hum': [2]}
    assert read('Sensor started, everything fine\n3,4', state) == {'temp': [3], 'hum': [4]}
    assert read('WiFi: 3 networks found\n5,6', state) == {'temp': [5], 'hum': [6]}
    assert read('light,noise\n7,8', state) == {'light': [7], 'noise': [8]}


@pytest.mark.parametrize('value, unit, expected', [
    (1732140000.5, None, 1732140000.5),
    (1732140000500, None, 1732140000.5),
    (1732140000500000, None, 1732140000.5),
    (1732140000500000000, None, 1732140000.5),
    ('1732140000500', None, 1732140000.5),
    (12.5, None, 12.5),
    (12500, 'ms', 12.5),
    ('2024-11-20T22:00:00Z', None, 1732140000),
    ('2024-11-20 23:00:00,500+01:00', None, 1732140000.5),
    ('2024-11-20T20:30:00-0130', None, 1732140000),
    ('2024-13-40T22:00:00Z', None, None),
    ('noon', None, None), (None, None, None), (True, None, None), (1e300, None, None), (math.inf, None, None),
])
def test_stamps(value, unit, expected):
    assert seconds_of(value, unit) == (expected if expected is None else pytest.approx(expected, abs=1e-4))


##############################################################################
# JSON
##############################################################################

@pytest.mark.parametrize('value, expected', [
    ({'temp': 21.5, 'accel': [1, 2, 3], 'door': True, 'note': 'x'}, [('temp', 21.5, NOW), ('accel', 1, 2, 3, NOW)]),
    ({'temp': 21.5, 'timestamp': 1732140000.5}, [('temp', 21.5, 1732140000.5)]),
    ({'t': 21.5}, [('t', 21.5, NOW)]),                                            # a temperature, not a time
    ({'t': 1732140000.5, 's': {'accel': [1, 2, 3], 'light': 310}}, [
        ('accel', 1, 2, 3, 1732140000.5), ('light', 310, 1732140000.5)]),         # our own
    ({'gps': {'lat': 47.5, 'lon': 8.5}}, [('gps', 47.5, 8.5, NOW)]),
    ({'car': {'wheel': {'left': {'rpm': 5, 'name': 'l'}}}}, [('car/wheel/left/rpm', 5, NOW)]),
    ({'key': 'CPU1-temp', 'value': 69}, [('CPU1-temp', 69, NOW)]),
    ({'key': "grandma's beer stock", 'value': 1337, 'timestamp': 1010361600}, [
        ("grandma's beer stock", 1337, 1010361600)]),
    ({'name': 'accel', 'values': [1, 2, 3], 'unit': 'g'}, [('accel', 1, 2, 3, NOW)]),
    ({'op': 'hyperimu', 'Timestamp': 1732140000500, 'Accelerometer': [1, 2, 3]}, [
        ('Accelerometer', 1, 2, 3, 1732140000.5)]),
    ({'accuracy': 2, 'timestamp': 3925657519043709, 'values': [0.31892395, -0.97802734, 10.049896],
      'type': 'android.sensor.accelerometer'}, [('accel', 0.31892395, -0.97802734, 10.049896, NOW)]),
    ([{'a': 1}, {'b': 2}], [('a', 1, NOW), ('b', 2, NOW)]),
    ({'big': 10 ** 400, 'null': None, 'empty': [], 'words': ['a'], 'deep': {'a': {'b': {'c': {'d': {'e': 1}}}}}}, []),
])
def test_json(value, expected):
    state = State()
    assert numbers_of(json.dumps(value), state) == expected
    assert state.garbage == 0


def test_json_of_our_own_hello_says_what_the_numbers_are():
    state = State()
    hello = {'hello': {'device': 'pixel', 'sensors': {'accel': {'unit': 'm/s²', 'axes': ['x', 'y', 'z']}}}}
    assert read(json.dumps(hello), state) == {} and state.device == 'pixel'
    assert parse('{"t": 1732140000, "s": {"accel": [1, 2, 3]}}', state)[0].meaning == Sensor('m/s²', ('x', 'y', 'z'))


##############################################################################
# Bounds and garbage
##############################################################################

@pytest.mark.parametrize('line', [
    '%PNG \x00\x1a', 'Hello, world!: 5 %% ~', '{"a": 1', '[1, 2, 3]', '{]', ':::', 'a:b:c:d', 'x' * 61 + ':', '~~~',
    '[' * 100000, '$x', '§', 'x' * (MAX_LINE + 1) + ':1', '12:30:05 started', '-', '=', 'Temp: sensor missing!',
])
def test_garbage_costs_one_line(line):
    state = State()
    assert read('a:1\n%s\nb:2' % line, state) == {'a': [1], 'b': [2]}
    assert state.garbage == 1 and len(state.note) <= 60


def test_names_axes_and_sensors_are_bounded():
    assert read('x' * 61 + ':1') == {}
    assert read('{"a\\u202e": 1, "b\\n": 1, "": 1, "c": 1}') == {'c': [1], 'b': [1]}  # b: its end is space
    assert read(json.dumps({'a': [0] * MAX_AXES, 'b': [0] * (MAX_AXES + 1)})) == {'a': [0] * MAX_AXES}
    state = State()
    assert len(read('\n'.join('s%d:%d' % (i, i) for i in range(100)), state)) == MAX_SENSORS
    assert read('s5:1\nnew:1', state) == {'s5': [1]}
    assert read('a:1e999') == {}


def test_any_bytes_do_no_harm():
    chance = random.Random(7)
    pieces = ['a:1', '§', ';', '|xy', ':', '{', '}', '"', '[1]', '\n', '\r', ',', ' ', 'time', '-', '1e9', '$', '#',
              '>', '=', '\ud800', '\0', '3D|', 'nan', 'T', '2024-01-06T14:59:48Z', '{"a": {"b": [1]}}', 'x,y', '"a""']
    state = State()
    for _ in range(3000):
        for reading in parse(''.join(chance.choice(pieces) for _ in range(chance.randrange(12))), state):
            assert all(map(math.isfinite, reading.values)) and reading.sensor.isprintable()
            assert not reading.meaning.axes or len(reading.meaning.axes) == len(reading.values)


@pytest.mark.parametrize('line', [
    'a:1' + ' 1' * 2000, 'x' + ' ' * 4000 + '!:1', 'a:1 ' * 1000 + '!', '1;' * 2000 + 'x', '(' * 2000 + ')' * 2000,
    ' [' * 2000, ':' * 4000, '"' * 4000, ',' * 4000, '=' * 4000, '>' + 'a:' * 2000, '#' + '[' * 4000, '$' + '1,' * 2000,
    '-' * 4000, '1e' * 2000, '{"a":' * 10000, '[' * 65000, '{"a":[' + '1,' * 30000 + '1]}', 'time,' * 800,
    '2024-01-06T' * 300, 'label ' * 600, 'a.' * 2000, '|' * 4000, '§' * 4000, '\t' * 2000 + 'x' + ' \t' * 900,
])
def test_no_line_takes_long(line):
    state = State()
    parse('a,b,c\n1,2,3', state)
    began = time.process_time()
    for _ in range(3):
        parse(line, state, NOW)
    assert time.process_time() - began < 1.0                     # it is a few ms


@pytest.mark.parametrize('size', [1, 2, 3, 7, 1000])
def test_lines_are_cut_however_they_arrive(size):
    data = 'a:1§°C\r\nb:2\n\nlast:3'.encode()
    lines = Lines()
    text = ''.join(lines.feed(data[i:i + size]) for i in range(0, len(data), size))
    assert read(text) == {'a': [1], 'b': [2]}
    assert lines.end() == 'last:3'


def test_lines_begin_with_the_first_whole_one_and_end_an_endless_one():
    lines = Lines(whole=False)
    assert lines.feed(b'23\n24\n') == '24\n'
    assert lines.feed(b'x' * (MAX_LINE + 1)) == '' and lines.feed(b'x' * 10) == ''
    assert lines.feed(b'\na:1\n') == 'a:1\n'
    assert lines.feed(b'a:1\xa7C\n') == 'a:1§C\n'                      # a device that has no UTF-8


##############################################################################
# POST
##############################################################################

PUSH = {'messageId': 0, 'sessionId': 'identifier', 'deviceId': 'phone 7', 'payload': [
    {'name': 'accelerometer', 'time': 1698501144401773000, 'values': {'z': 3, 'y': 2, 'x': 1}, 'accuracy': 3},
    {'name': 'gravity', 'time': 1698501144401773000, 'x': 0, 'y': 0, 'z': 9.8},
    {'name': 'location', 'time': 1698501145514000000, 'values': {
        'latitude': 47.5, 'longitude': 8.5, 'altitude': 214.2, 'speed': 0, 'horizontalAccuracy': 15.1}},
    {'name': 'orientation', 'time': 1698501145514000000, 'values': {
        'yaw': math.pi, 'pitch': 0, 'roll': -math.pi / 2, 'qx': 0, 'qy': 0, 'qz': 0, 'qw': 1}},
    {'name': 'battery', 'time': 1698501146000000000, 'values': {'batteryLevel': 0.75, 'batteryState': 'charging'}},
    {'name': 'network', 'time': 1698501146000000000, 'values': {'type': 'wifi', 'isConnected': True, 'strength': 60}},
    {'name': 'camera', 'time': 1698501146000000000, 'values': {'image': 'AAAA'}},
]}


def test_post_of_sensor_logger():
    posted = parse_post('application/json', json.dumps(PUSH).encode(), NOW)
    assert [(device, round(stamp, 3), reading) for device, stamp, reading, _ in posted] == [
        ('phone 7', 1698501144.402, {'linear accel': [1, 2, 3], 'gravity': [0, 0, 9.8]}),
        ('phone 7', 1698501145.514, {
            'location': [47.5, 8.5], 'altitude': [214.2], 'speed': [0], 'location accuracy': [15.1],
            'orientation': [180, 0, -90], 'rotation': [0, 0, 0, 1]}),
        ('phone 7', 1698501146.0, {'battery': [75], 'network': [60]}),
    ]
    assert posted[0][3] == {'linear accel': Sensor('m/s²', ('x', 'y', 'z')), 'gravity': Sensor('m/s²', ('x', 'y', 'z'))}
    assert posted[1][3]['location'] == Sensor('°', ('latitude', 'longitude'))
    assert posted[2][3]['battery'].unit == '%'


def test_post_of_sensor_loggers_export():
    export = [{'sensor': 'Accelerometer', 'time': '1698501144401773000', 'seconds_elapsed': '0.21677294921875',
               'z': '-0.10382747650146484', 'y': '-0.0009566396474838257', 'x': '0.06110857427120209'}]
    (device, stamp, reading, sensors), = parse_post('', json.dumps(export).encode())
    assert reading == {'linear accel': [0.06110857427120209, -0.0009566396474838257, -0.10382747650146484]}
    assert round(stamp, 3) == 1698501144.402 and device == ''


@pytest.mark.parametrize('content_type, body, device, reading', [
    ('application/json', '{"device": "shed", "temp": 21.5}', 'shed', {'temp': [21.5]}),
    ('application/json', '{"temp": 21.5}', '', {'temp': [21.5]}),
    ('text/plain', 'temp:21.5\nhum:40\n', '', {'temp': [21.5], 'hum': [40]}),
    ('text/csv', 'temp,hum\r\n21.5,40\r\n', '', {'temp': [21.5], 'hum': [40]}),
    ('application/x-ndjson', '{"a": 1}\n{"b": 2}\n', '', {'a': [1], 'b': [2]}),
    ('application/x-www-form-urlencoded', 'temp:21.5', '', {'temp': [21.5]}),                   # curl -d
    ('application/x-www-form-urlencoded; charset=UTF-8', 'temp=21.5&hum=40', '', {'temp': [21.5], 'hum': [40]}),
    ('', '\ufeff{"temp": 21.5}', '', {'temp': [21.5]}),
])
def test_post_of_json_lines_and_forms(content_type, body, device, reading):
    (found, stamp, values, sensors), = parse_post(content_type, body.encode(), NOW)
    assert (found, stamp, values) == (device, NOW, reading) and set(sensors) == set(reading)


def test_post_of_many_rows_keeps_each():
    posted = parse_post('text/csv', b'time,v\n1732140000,1\n1732140001,2\n')
    assert [(stamp, reading) for _, stamp, reading, _ in posted] == [(1732140000, {'v': [1]}), (1732140001, {'v': [2]})]
    same = parse('v:1\nv:2\nw:3', now=NOW)
    assert [reading for _, _, reading, _ in moments(same, '')] == [{'v': [1]}, {'v': [2], 'w': [3]}]


def test_post_without_numbers_is_no_error_and_garbage_is_a_sentence():
    assert parse_post('application/json', b'{"payload": [], "deviceId": "x"}') == []
    assert parse_post('application/json', b'{"payload": [{"name": "test"}, 5, {"time": []}]}') == []
    for body in (b'\x89PNG\r\n\x1a\n', b'{"a": ', b'[1, 2]', b'"x"', b'5 five'):
        with pytest.raises(ValueError, match='no readings in'):
            parse_post('application/json', body)
