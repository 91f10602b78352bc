"""Tests of the sources: which sensors are read of a phone, what is read of a board, and what comes from elsewhere."""
import argparse
import contextlib
import json
import os
import queue
import re
import socket
import sys
import termios
import threading
import time
import types

import pytest

import minws
from examples import droid_sensor
from examples.droid_sensor import (ANDROID, ANDROID_SENSORS, Aside, Clock, Linux, Reader, Sensor, Sl4a, Source,
                                   SourceError, Termux, android_type, choose_sensors)
from examples.sensors.sensorserver import SensorServer, Station, json_response
from examples.sensors.sources import (Command, Serial, Stdin, Udp, add_source_options, find_source, make_source,
                                      source_name)

DEADLINE = 10.0               # seconds for anything that should happen at once


##############################################################################
# Which sensors of a phone
#
# The names that phones of many makers give their sensors, from lists that
# people published. Before the colon the end of the Android type; '-' is any
# other type. Names without a type in the list stand for themselves.
##############################################################################

PHONES = {
    'Samsung, 2019': '''
        gyroscope: LSM6DSO Gyroscope
        -: LSM6DSO Gyroscope-Uncalibrated; SensorHub type; Move Detector  Wakeup; motion_detect; Pocket mode  Wakeup
        step_counter: step_counter  Non-wakeup
        -: Game Rotation Vector  Non-wakeup; LSM6DSO Accelerometer-Uncalibrated; smd  Wakeup; Proximity strm
        gravity: gravity  Non-wakeup
        linear_acceleration: linear_acceleration
        -: Led Cover Event  Wakeup; TCS3407 Light Physical Light Sensor Non-wakeup; Wake Up Motion  Wakeup
        light: TCS3407 Light Ambient Light Sensor Non-wakeup
        -: Pick Up Gesture  Wakeup; WideIR ALS; Tilt Detector  Wakeup; TCS3407 Light CCT  Non-wakeup
        -: call_gesture  Wakeup; stationary_detect; interrupt_gyro  Non-wakeup; A96T3X6 Grip sensor; Hall IC
        pressure: LPS22HH Barometer
        -: AK09918 Magnetometer-Uncalibrated; Touch Proximity Sensor; SFH7832 Rear ALS; SFH7832 Rear PROX
        accelerometer: LSM6DSO Accelerometer
        -: SFH7832 IR; SFH7832 RED; SFH7832 GREEN; SFH7832 BLUE; SFH7832 HRM RAW; SFH7832 REAR SVC LED RED
        -: Screen Orientation Sensor; Ear call-gesture state; HRM Sensor; Motion Sensor; Rear Light Sensor
        heart_rate: HeartRate Sensor
        orientation: Orientation Sensor''',
    'Samsung, 2023': '''
        accelerometer: lsm6dso LSM6DSO Accelerometer Non-wakeup
        magnetic_field: AK09918 Magnetometer
        gyroscope: lsm6dso LSM6DSO Gyroscope Non-wakeup
        light: STK33915 Light Ambient Light Sensor Non-wakeup
        pressure: lps22hh Pressure Sensor Non-wakeup
        gravity: gravity  Non-wakeup
        linear_acceleration: linear_acceleration
        rotation_vector: Rotation Vector  Non-wakeup
        -: AK09918 Magnetometer-Uncalibrated; Game Rotation Vector  Non-wakeup; step_detector  Non-wakeup
        -: lsm6dso LSM6DSO Gyroscope-Uncalibrated Non-wakeup; smd  Wakeup; Tilt Detector  Wakeup
        step_counter: step_counter  Non-wakeup
        -: Pick Up Gesture  Wakeup; auto_rotation Screen Orientation Sensor Non-wakeup; motion_detect
        -: lsm6dso LSM6DSO Accelerometer-Uncalibrated Non-wakeup; STK33915 Light CCT WideIR ALS Non-wakeup
        -: interrupt_gyro  Non-wakeup; STK33915 Proximity Strm Proximity strm Non-wakeup; SensorHub type
        -: STK33915 Light CCT  Non-wakeup; Wake Up Motion  Wakeup; call_gesture  Wakeup; Light seamless  Wakeup
        -: STK33915 Auto Brightness Auto Brightness Non-wakeup; Pocket mode  Wakeup; Led Cover Event  Wakeup
        -: Flip Cover Detector  Wakeup; Sar BackOff Motion  Wakeup; Drop Classifier  Wakeup; Hall IC
        -: Pocket Position Mode  Wakeup; TSL2585 Rear ALS; Touch Proximity Sensor; Motion Sensor
        orientation: Orientation Sensor''',
    'Samsung S9': '''
        accelerometer: LSM6DSL Acceleration Sensor
        gyroscope: LSM6DSL Gyroscope Sensor
        magnetic_field: AK09916C Magnetic field Sensor
        light: TMD4906 lux Sensor
        gravity: Gravity Sensor
        linear_acceleration: Linear Acceleration Sensor
        -: AK09916C Magnetic Sensor UnCalibrated; LSM6DSL Acceleration Sensor UnCalibrated
        -: LSM6DSL Gyroscope sensor UnCalibrated; Interrupt Gyroscope Sensor''',
    'Samsung, 2016': '''
        accelerometer: ICM20610 Acceleration Sensor''',
    'Google Pixel': '''
        accelerometer: LSM6DSR Accelerometer
        magnetic_field: LIS2MDL Magnetometer
        gyroscope: LSM6DSR Gyroscope
        light: TMD3702V Ambient Light Sensor
        pressure: BMP380 Pressure Sensor
        proximity: TMD3702V Proximity Sensor (wake-up)
        -: LIS2MDL Magnetometer-Uncalibrated; LSM6DSR Gyroscope-Uncalibrated; LSM6DSR Accelerometer-Uncalibrated
        -: MAX11261 Edge-Detect Sensor; LSM6DSR Temperature; BMP380 Temperature; LIS2MDL Temperature
        -: camera v-sync 0; camera v-sync 1; camera v-sync 2; TMD3702V Color Sensor; VD6282 Rear Light; Combo Light
        -: Binned Brightness; Device Pickup Sensor; Proximity Gated Single Tap Gesture; Double Twist
        -: Front Camera Light; Game Rotation Vector Sensor; Geomagnetic Rotation Vector Sensor; Significant Motion
        gravity: Gravity Sensor
        linear_acceleration: Linear Acceleration Sensor
        orientation: Orientation Sensor
        rotation_vector: Rotation Vector Sensor''',
    'Google Nexus': '''
        accelerometer: BMI160 accelerometer
        gyroscope: BMI160 gyroscope
        magnetic_field: BMM150 magnetometer
        light: RPR0521 light
        pressure: BMP280 pressure
        orientation: Orientation
        step_counter: BMI160 Step counter
        gravity: Gravity
        linear_acceleration: Linear Acceleration
        rotation_vector: Rotation Vector
        -: BMI160 accelerometer (uncalibrated); BMI160 gyroscope (uncalibrated); BMM150 magnetometer (uncalibrated)
        -: BMP280 temperature; BMI160 Step detector; Significant motion; Geomagnetic Rotation Vector; Tilt Detector
        -: Game Rotation Vector; Pickup Gesture; Sensors Sync; Double Twist; Double Tap; Device Orientation''',
    'Realme GT': '''
        accelerometer: bmi2xy acc
        magnetic_field: mmc5603 mag
        orientation: orientation
        gyroscope: bmi2xy gyro
        proximity: tcs3701 ps
        gravity: gravity
        linear_acceleration: linear_acc
        rotation_vector: rot_vec
        -: uncali_mag; game_rotvec; uncali_gyro; significant; step_detect; geo_rotvec; wake; dev_orient; uncali_acc
        step_counter: step_count
        -: pickup; fp_display; lux_aod; pedo_minute; elevator_detect; oplus_act_recog; stationary; tcs3701 rgbw
        -: tcs3408 als; tcs3408 cct; tcs3408 flicker; step_detect_wakeup; OPLUS Side Panel Fusion Light Sensor
        light: OPLUS Fusion Light Sensor''',
    'MediaTek': '''
        accelerometer: ACCELEROMETER
        magnetic_field: MAGNETOMETER
        gyroscope: GYROSCOPE
        light: LIGHT
        proximity: PROXIMITY
        -: STEP_DETECTOR; SIGNIFICANT_MOTION; Game Rotation Vector Sensor; GeoMag Rotation Vector Sensor
        -: Gyroscope Bias (debug); Corrected Gyroscope Sensor
        gravity: Gravity Sensor
        rotation_vector: Rotation Vector Sensor''',
    'Spreadtrum, without a gyroscope': '''
        accelerometer: LSM6DS3TR-C 3-axis Accelerometer
        magnetic_field: AKM099XX Magnetic field sensor
        orientation: MEMSIC Orientation sensor; Orientation Sensor
        light: LTR558ALS Light sensor
        proximity: LTR558ALS Proximity sensor
        -: NULL Sensor; Gyroscope Bias (debug); Game Rotation Vector Sensor; GeoMag Rotation Vector Sensor
        rotation_vector: AKM099XX Rotation vector sensor; Rotation Vector Sensor
        pressure: QMP6988 Pressure''',
    'Motorola Moto G5s Plus': '''
        accelerometer: LSM6DS3 Accelerometer
        gyroscope: LSM6DS3 Gyroscope
        -: LSM6DS3 Gyroscope Uncalibrated; Moto Mod Current Drain
        proximity: TMD2725 PROX
        light: TMD2725 ALS''',
    'Motorola, 2021': '''
        accelerometer: lsm6dso Accelerometer Non-wakeup; lsm6dso Accelerometer Wakeup
        magnetic_field: mmc56x3x Magnetometer Non-wakeup
        gyroscope: lsm6dso Gyroscope Non-wakeup; lsm6dso Gyroscope Wakeup''',
    'Motorola Moto G': '''
        accelerometer: LIS3DH 3-axis Accelerometer
        magnetic_field: AK8963 3-axis Magnetic field sensor
        orientation: AK8963 Orientation sensor
        proximity: CT406 Proximity sensor
        light: CT406 Light sensor''',
    'Nextbit Robin': '''
        accelerometer: BMA2X2 Accelerometer/Temperature/Double-tap
        magnetic_field: BMM150 Magnetometer
        gyroscope: BMG160 Gyroscope
        -: BMM150 Magnetometer Uncalibrated; BMG160 Gyroscope Uncalibrated''',
    'LG watch': '''
        accelerometer: MPU6515 Accelerometer
        magnetic_field: AK8963 Magnetometer
        gyroscope: MPU6515 Gyroscope
        -: AK8963 Magnetometer Uncalibrated; MPU6515 Gyroscope Uncalibrated''',
    'Redmi Note 7 Pro': '''
        accelerometer: lsm6ds3c Accelerometer Wakeup; lsm6ds3c Accelerometer Non-wakeup
        magnetic_field: ak0991x Magnetometer Wakeup; ak0991x Magnetometer Non-wakeup
        gyroscope: lsm6ds3c Gyroscope Wakeup; lsm6ds3c Gyroscope Non-wakeup''',
    'Xiaomi 12': '''
        -: pedometer  Non-wakeup; stationary_detect; sns_smd  Wakeup; ccd_tilt  Wakeup; NonUi  Non-wakeup
        rotation_vector: Rotation Vector  Non-wakeup
        orientation: orientation  Non-wakeup
        -: pickup  Non-wakeup; oem13_light_smd  Non-wakeup; 3d_signature  Non-wakeup; motion_detect
        -: ak0991x Magnetometer-Uncalibrated Non-wakeup; knuckle  Non-wakeup; Game Rotation Vector  Non-wakeup
        magnetic_field: ak0991x Magnetometer Non-wakeup
        linear_acceleration: linear_acceleration
        gravity: gravity  Non-wakeup
        gyroscope: lsm6dso Gyroscope Non-wakeup
        -: Aod  Non-wakeup; device_orient  Non-wakeup; sns_geomag_rv  Non-wakeup; rohm_bu27030_back  Non-wakeup
        light: rohm_bu27030 Ambient Light Sensor Non-wakeup
        -: lsm6dso Accelerometer-Uncalibrated Non-wakeup; lsm6dso Gyroscope-Uncalibrated Non-wakeup
        accelerometer: lsm6dso Accelerometer Non-wakeup
        -: fod  Non-wakeup; Touch Sensor
        proximity: Xiaomi Proximity''',
    'Xiaomi Mi 10': '''
        -: sns_tilt  Wakeup; pedometer  Wakeup; stationary_detect_wakeup; semtech_sx932x SAR Sensor Non-wakeup
        rotation_vector: Rotation Vector  Non-wakeup
        proximity: stk_stk3x3x Proximity Sensor Non-wakeup; stk_stk3x3x Proximity Sensor Wakeup
        -: ak0991x Magnetometer-Uncalibrated Non-wakeup; Device Orientation  Wakeup; Non-wakeup
        magnetic_field: ak0991x Magnetometer Non-wakeup
        gyroscope: icm4x6xx Gyroscope Non-wakeup
        -: icm4x6xx Gyroscope-Uncalibrated Non-wakeup; icm4x6xx Accelerometer-Uncalibrated Non-wakeup
        light: stk_stk3x3x Ambient Light Sensor Wakeup; stk_stk3x3x Ambient Light Sensor Non-wakeup
        accelerometer: icm4x6xx Accelerometer Non-wakeup''',
    'Huawei nova 3i': '''
        accelerometer: accelerometer-lsm6ds3-c
        magnetic_field: mag-akm09918
        orientation: orientation
        light: light-ltr578
        proximity: proximity-ltr578
        gyroscope: st-lsm6ds3
        gravity: gravity
        linear_acceleration: linear Acceleration
        rotation_vector: rotation Vector
        -: HALL sensor; uncalibrated Magnetic Field; game Rotation Vector; uncalibrated Gyroscope; phonecall sensor
        -: significant Motion; geomagnetic Rotation Vector; RPC sensor
        step_counter: step counter''',
    'HTC': '''
        accelerometer: BOSCH BMA250 3-axis Accelerometer
        light: CM36282 Light sensor
        -: hTC Gesture Motion HIDI; Significant Motion''',
    'Tecno': '''
        accelerometer: icm40607_acc
        gyroscope: icm40607_gyro
        magnetic_field: akm09918_mag''',
    'Silan, the chip alone': '''
        accelerometer: sc7a20e''',
    'Waydroid on a tablet': '''
        accelerometer: ITE8350 3-axis Accelerometer
        gyroscope: ITE8350 3-axis Gyroscope
        magnetic_field: ITE8350 3-axis Magnetometer
        orientation: ITE8350 Orientation (from fused quaternion)
        rotation_vector: ITE8350 Rotation Vector''',
    'Android emulator': '''
        accelerometer: Goldfish 3-axis Accelerometer
        gyroscope: Goldfish 3-axis Gyroscope
        magnetic_field: Goldfish 3-axis Magnetic field sensor
        orientation: Goldfish Orientation sensor
        ambient_temperature: Goldfish Ambient Temperature sensor
        proximity: Goldfish Proximity sensor
        light: Goldfish Light sensor
        pressure: Goldfish Pressure sensor
        -: Goldfish 3-axis Accelerometer (uncalibrated)''',
    'Genymotion': '''
        light: Genymotion Light
        pressure: Genymotion Pressure
        ambient_temperature: Genymotion Temperature
        relative_humidity: Genymotion Humidity
        proximity: Genymotion Proximity
        accelerometer: Genymotion Accelerometer''',
}


def sensors_of(phone):
    """Return {the phone's name of a sensor: the end of its Android type, '' for a type that is none of ours}."""
    sensors = {}
    for line in PHONES[phone].strip().splitlines():
        kind, names = line.strip().split(': ', 1)
        sensors.update((name, kind.replace('-', '')) for name in names.split('; '))
    return sensors


@pytest.mark.parametrize('phone', PHONES)
def test_sensors_of_a_phone_are_chosen_by_their_type(phone):
    listed = sensors_of(phone)
    chosen = choose_sensors(list(listed))
    assert {sensor: listed[name] for name, (sensor, _) in chosen.items()} == {
        ANDROID_SENSORS[kind][0]: kind for kind in listed.values() if kind}


def test_sensors_that_need_no_waking_are_preferred():
    listed = sensors_of('Redmi Note 7 Pro')
    assert set(choose_sensors(list(listed))) == {name for name in listed if 'Non-wakeup' in name}


def test_sensor_names_that_serve_two_sensors_are_taken_for_none_of_the_four():
    # Two sensors of this name are in the list, of which Termux reads out the proximity alone.
    assert android_type('stk3x1x alsprx') not in ('accelerometer', 'gyroscope', 'light', 'magnetic_field')


@pytest.mark.parametrize('wanted, expected', [
    (('gyro', 'light'), {'gyro', 'light'}),                          # our words
    (('android.sensor.magnetic_field',), {'magnetic'}),              # Android's
    (('Device Pickup Sensor', 'pressure'), {'Device Pickup Sensor', 'pressure'}),
    (('usual', 'Double Twist'), {'Double Twist', 'accel', 'gyro', 'magnetic', 'light', 'pressure', 'proximity',
                                 'gravity', 'linear accel', 'orientation', 'rotation'}),
    (('sonar',), set()),
])
def test_sensors_are_those_that_are_wanted(wanted, expected):
    chosen = choose_sensors(list(sensors_of('Google Pixel')), wanted)
    assert {sensor for sensor, _ in chosen.values()} == expected
    assert ANDROID == 'android.sensor.'


##############################################################################
# Running a source
##############################################################################

class Listener:
    """Keeps what a Reader says, in order."""

    def __init__(self):
        self.events = queue.Queue()
        self.described = {}

    def sensors(self, sensors):
        self.described = dict(sensors)

    def reading(self, stamp, reading):
        self.events.put(('reading', reading))

    def trouble(self, text):
        self.events.put(('trouble', text))

    def next(self, kind):
        """Return the next event of that kind; others are dropped."""
        deadline = time.monotonic() + DEADLINE
        while True:
            found, event = self.events.get(timeout=max(0.0, deadline - time.monotonic()))
            if found == kind:
                return event

    def next_with(self, sensor):
        """Return the values of the next reading that has the sensor."""
        while True:
            reading = self.next('reading')
            if sensor in reading:
                return reading[sensor]


@pytest.fixture(autouse=True)
def little_grace(monkeypatch):
    """Let a Reader close a source that waits for something without much ado."""
    monkeypatch.setattr(droid_sensor, 'GRACE', 0.05)


@contextlib.contextmanager
def run(source, rate=20, patience=None):
    """Run a source in a Reader with short pauses; the value is its Listener."""
    listener = Listener()
    if patience is not None:
        source.patience = patience
    reader = Reader(source, rate, listener, first_pause=0.05)
    reader.start()
    try:
        yield listener
    finally:
        reader.stop()
    assert not any(thread.name in ('source', 'source-supervisor', 'sensorserver') for thread in threading.enumerate())


def wait_until(true, what='the condition'):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, '%s did not come' % what
        threading.Event().wait(0.01)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open('/proc/%d/stat' % pid) as file:
        return file.read().rpartition(') ')[2][0] != 'Z'


##############################################################################
# What all sources have in common
##############################################################################

def test_a_value_that_has_not_changed_is_told_again_only_after_a_while():
    source = Linux()
    assert source.changed({'a': [1.0], 'b': [1.0]}) == {'a': [1.0], 'b': [1.0]}
    assert source.changed({'a': [1.0], 'b': [2.0]}) == {'b': [2.0]}
    source.repeat = 0
    assert source.changed({'a': [1.0]}) == {'a': [1.0]}


def test_the_position_is_read_only_if_it_is_named():
    source = Source()
    assert source.wants('accel') and not source.wants('location')
    source.wanted = ('usual', 'location')
    assert source.wants('accel') and source.wants('location')
    source.wanted = ('location',)
    assert not source.wants('accel') and source.wants('location')


def test_push_client_reads_the_sensors_that_it_is_told(monkeypatch):
    pushed = []
    monkeypatch.setattr(droid_sensor, 'push', lambda *arguments: pushed.extend(arguments))
    droid_sensor.main(['ws://127.0.0.1:1/push', '--source', 'simulated', '--sensors', 'light,gyro'])
    source, = [argument for argument in pushed if isinstance(argument, Source)]
    assert set(next(source.readings(0.1))) == {'light', 'gyro'}


def test_clock_keeps_its_difference_until_it_jumps():
    clock = Clock()
    assert clock.utc(1763740000.5, 5.0) == 1763740000.5           # it has been set
    assert clock.utc(100.0, 1763740000.0) == 1763740000.0
    assert clock.utc(101.0, 1763740001.5) == 1763740001.0         # half a second on the way
    assert clock.utc(1.0, 1763740002.0) == 1763740002.0           # it started over


def test_aside_never_waits_and_hands_out_once():
    go = threading.Event()
    results = [5]

    def call():
        go.wait(DEADLINE)
        return results.pop()

    aside = Aside(call, pause=0)
    assert aside.take() is None and aside.take() is None
    go.set()
    taken = []
    wait_until(lambda: taken.append(aside.take()) or taken[-1] is not None)
    assert taken[-1] == 5
    with pytest.raises(IndexError, match='pop from empty list'):
        wait_until(lambda: aside.take() is not None)


##############################################################################
# Termux: battery and position
##############################################################################

COMMAND = r'''#!%s -S
import json, os, sys, time
home, name = os.path.split(os.path.abspath(sys.argv[0]))
with open(os.path.join(home, 'calls'), 'a') as file:
    file.write(json.dumps([os.getpid(), name] + sys.argv[1:]) + '\n')
with open(os.path.join(home, 'answers')) as file:
    answer = json.load(file)
for key in [' '.join([name] + sys.argv[1:]), name]:
    if key in answer:
        break
else:
    sys.exit('unexpected: ' + key)
answer = answer[key]
if answer == 'hang':
    time.sleep(60)
print(answer if isinstance(answer, str) else json.dumps(answer, indent=2), flush=True)
while '-s' in sys.argv:
    time.sleep(0.02)
    answer['Accelerometer']['values'][0] += 1
    print(json.dumps(answer, indent=2), flush=True)
''' % sys.executable

BATTERY = {'present': True, 'health': 'GOOD', 'plugged': 'UNPLUGGED', 'status': 'DISCHARGING', 'temperature': 30.5,
           'voltage': 4123, 'current': -250000, 'percentage': 81, 'level': 81, 'scale': 100}
FIX = {'latitude': 47.5, 'longitude': 8.5, 'altitude': 410.5, 'accuracy': 12.0, 'vertical_accuracy': 3.0,
       'bearing': 90.0, 'speed': 1.5, 'elapsedMs': 20, 'provider': 'network'}


class TermuxPhone:
    """A directory with Termux's commands, each of which prints its answer."""

    def __init__(self, path):
        self.path = path
        for name in ('termux-sensor', 'termux-battery-status', 'termux-location'):
            path.joinpath(name).write_text(COMMAND)
            path.joinpath(name).chmod(0o755)
        self.answer({'termux-sensor -l': {'sensors': ['Accelerometer', 'Light']},
                     'termux-sensor': {'Accelerometer': {'values': [1, 2, 3]}, 'Light': {'values': [5]}},
                     'termux-battery-status': BATTERY, 'termux-location': 'hang'})

    def answer(self, answers):
        self.answers = answers
        self.path.joinpath('new').write_text(json.dumps(answers))
        self.path.joinpath('new').replace(self.path.joinpath('answers'))

    def calls(self):
        path = self.path.joinpath('calls')
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def source(self, *wanted):
        source = Termux(str(self.path))
        source.wanted = wanted
        return source


@pytest.fixture
def termux(tmp_path, monkeypatch):
    monkeypatch.setattr(droid_sensor, 'TERMUX_TIMEOUT', 2.5)
    return TermuxPhone(tmp_path)


def test_termux_reads_the_battery_beside_the_sensors(termux):
    with run(termux.source()) as listener:
        assert listener.next_with('battery') == [81]
        assert listener.next_with('accel')
        assert listener.described['battery current'] == Sensor('A', ())
    assert 'termux-location' not in [call[1] for call in termux.calls()]    # nobody asked where the phone is
    assert not any(alive(call[0]) for call in termux.calls())


def test_termux_battery_has_the_units_of_the_page(termux):
    source = termux.source('battery', 'battery voltage', 'battery current', 'battery temperature')
    reading = source._battery()
    assert reading == {'battery': [81], 'battery voltage': [pytest.approx(4.123)],
                       'battery current': [pytest.approx(-0.25)], 'battery temperature': [30.5]}


def test_termux_reads_the_position_if_asked_by_the_network_when_the_satellites_hang(termux):
    # Android answers no question for a position indoors: the first command hangs for ever.
    termux.answer(dict(termux.answers, **{'termux-location -p network -r once': FIX}))
    with run(termux.source('location', 'accel')) as listener:
        reading = {}
        while 'location' not in reading:
            reading = listener.next('reading')
        assert reading['location'] == [47.5, 8.5] and reading['speed'] == [1.5]
        assert listener.described['location'] == Sensor('°', ('latitude', 'longitude'))
        assert listener.next_with('accel')
    assert not any(alive(call[0]) for call in termux.calls())


def test_termux_asks_first_in_the_way_that_was_answered_before(termux):
    termux.answer(dict(termux.answers, **{'termux-location': {'API_ERROR': 'Failed to get location'},
                                          'termux-location -p network -r once': FIX}))
    source = termux.source('location')
    assert source._location() == source._location() and source.sensors['location']
    assert [call[3] for call in termux.calls()] == ['gps', 'network', 'network']


@pytest.mark.parametrize('answer', ['hang', {'API_ERROR': 'Location permission is missing'}, 'garbage %%', {}])
def test_termux_goes_on_without_a_battery_and_a_position_that_do_not_come(termux, answer):
    termux.answer(dict(termux.answers, **{'termux-battery-status': answer, 'termux-location': answer}))
    with run(termux.source('usual', 'location')) as listener:
        for _ in range(5):
            assert listener.next_with('accel')
        wait_until(lambda: {'termux-battery-status', 'termux-location'} <= {call[1] for call in termux.calls()})
        assert listener.next_with('accel')
        assert all(kind == 'reading' for kind, _ in list(listener.events.queue))
    wait_until(lambda: not any(alive(call[0]) for call in termux.calls()))


def test_termux_of_which_only_the_battery_is_wanted_starts_no_sensors(termux):
    with run(termux.source('battery')) as listener:
        assert listener.next('reading') == {'battery': [81]}
    assert ['termux-sensor', '-s'] not in [call[1:3] for call in termux.calls()]


def test_termux_says_that_it_has_not_what_is_wanted(termux):
    with run(termux.source('sonar')) as listener:
        assert 'lists no sensors called sonar' in listener.next('trouble')


##############################################################################
# SL4A: position
##############################################################################

def test_sl4a_reads_the_position_if_asked(monkeypatch):
    calls = []

    class Android:
        def __getattr__(self, method):
            known = {'readSensors': {'xforce': 1, 'yforce': 2, 'zforce': 3},
                     'readLocation': {'gps': dict(FIX, time=1), 'network': {}}}
            calls.append(method)
            return lambda *params: types.SimpleNamespace(id=1, result=known.get(method), error=None)

    monkeypatch.setitem(sys.modules, 'androidhelper', types.SimpleNamespace(Android=Android))
    source = Sl4a({})
    source.wanted = ('location',)
    with run(source) as listener:
        reading = listener.next('reading')
    assert reading == {'location': [47.5, 8.5], 'altitude': [410.5], 'speed': [1.5], 'bearing': [90],
                       'location accuracy': [12]} or reading == {'location': [47.5, 8.5]}
    assert 'startLocating' in calls and 'stopLocating' in calls


##############################################################################
# Linux: what boards have beyond the sensors of a phone
##############################################################################

class Tree:
    """Files like those of /sys and /proc below a directory."""

    def __init__(self, path):
        self.path = path

    def put(self, name, content):
        path = self.path.joinpath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('%s\n' % content)

    def source(self, *wanted):
        source = Linux(str(self.path))
        source.repeat, source.wanted = 0, wanted
        return source


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def test_linux_reads_the_channels_of_a_converter(tree):
    device = 'sys/bus/iio/devices/iio:device0/'
    tree.put(device + 'in_voltage0_raw', 2048)
    tree.put(device + 'in_voltage1_raw', 1024)
    tree.put(device + 'in_voltage1_scale', 2)
    tree.put(device + 'in_voltage1_label', 'solar')
    tree.put(device + 'in_voltage0-voltage1_raw', 512)
    tree.put(device + 'in_voltage_scale', '0.8056640625')
    tree.put(device + 'in_voltage_offset', '-48')
    tree.put(device + 'in_current3_raw', 1500)
    tree.put(device + 'in_power0_input', 2500)
    tree.put(device + 'in_distance_input', '0.35')
    tree.put(device + 'in_proximity_raw', 77)
    tree.put(device + 'in_temp_object_raw', 14500)
    tree.put(device + 'in_temp_object_scale', 2)
    source = tree.source()
    reading = next(source.readings(0.1))
    assert reading == {
        'voltage0': [pytest.approx((2048 - 48) * 0.8056640625 / 1000)],
        'solar': [pytest.approx((1024 - 48) * 2 / 1000)],
        'voltage0-voltage1': [pytest.approx((512 - 48) * 0.8056640625 / 1000)],
        'current': [1.5], 'power': [2.5], 'distance': [0.35], 'proximity': [77],
        'temperature object': [29],
    }
    assert {sensor: source.sensors[sensor].unit for sensor in ('solar', 'current', 'power', 'distance')} == {
        'solar': 'V', 'current': 'A', 'power': 'W', 'distance': 'm'}


def test_linux_does_not_round(tree):
    tree.put('sys/bus/iio/devices/iio:device0/in_pressure_input', '101.32512345678')
    reading = next(tree.source().readings(0.1))
    assert reading['pressure'] == [101.32512345678 * 10]


def test_linux_reads_voltages_currents_powers_and_fans_of_a_board(tree):
    chip = 'sys/class/hwmon/hwmon3/'
    tree.put(chip + 'name', 'ina219')
    for name, content in (('in1_input', 12040), ('in1_label', 'bus'), ('curr1_input', 750), ('power1_input', 9030000),
                          ('fan1_input', 1200), ('humidity1_input', 45500), ('temp1_input', -5500),
                          ('in1_max', 26000), ('intrusion0_alarm', 1)):
        tree.put(chip + name, content)
    source = tree.source()
    assert next(source.readings(0.1)) == {
        'ina219 bus': [pytest.approx(12.04)], 'ina219 curr1': [0.75], 'ina219 power1': [pytest.approx(9.03)],
        'ina219 fan1': [1200], 'ina219 humidity1': [45.5], 'ina219 temp1': [-5.5]}
    assert source.sensors['ina219 power1'].unit == 'W'


def test_linux_reads_what_a_power_supply_gives(tree):
    tree.put('sys/class/power_supply/BAT0/type', 'Battery')
    tree.put('sys/class/power_supply/BAT0/power_now', 7250000)
    tree.put('sys/class/power_supply/BAT0/current_now', -500000)
    assert next(tree.source().readings(0.1)) == {'battery power': [7.25], 'battery current': [-0.5]}


WIRE = '72 01 4b 46 7f ff 0e 10 57 : crc=57 %s\n72 01 4b 46 7f ff 0e 10 57 t=%d'


def test_linux_reads_thermometers_on_one_wire_without_waiting_for_them(tree):
    tree.put('sys/bus/w1/devices/28-0316a2795dff/temperature', 23125)
    tree.put('sys/bus/w1/devices/28-01131b5d6caa/w1_slave', WIRE % ('YES', -1062))      # an older kernel
    tree.put('sys/bus/w1/devices/28-000000000000/w1_slave', WIRE % ('NO', 23125))       # disturbed
    tree.put('sys/bus/w1/devices/10-000802be73fa/temperature', 85000)                   # has not measured yet
    tree.put('sys/bus/w1/devices/w1_bus_master1/w1_master_name', 'w1_bus_master1')
    tree.put('sys/class/thermal/thermal_zone0/temp', 40000)
    source = tree.source()
    seen, readings = {}, source.readings(0.1)
    first = next(readings)
    assert set(first) <= {'thermal_zone0'} | {'temperature 0316a2795dff', 'temperature 01131b5d6caa'}
    wait_until(lambda: seen.update(next(readings)) or len(seen) == 3)
    assert seen == {'thermal_zone0': [40.0], 'temperature 0316a2795dff': [23.125],
                    'temperature 01131b5d6caa': [-1.062]}


def test_linux_thermometer_that_takes_its_time_does_not_slow_down_the_others(tree, monkeypatch):
    go = threading.Event()
    tree.put('sys/bus/w1/devices/28-0316a2795dff/temperature', 23125)
    tree.put('sys/class/thermal/thermal_zone0/temp', 40000)
    read_number = droid_sensor.read_number

    def slow(*path):
        if 'w1' in path[0]:
            go.wait(DEADLINE)
        return read_number(*path)

    monkeypatch.setattr(droid_sensor, 'read_number', slow)
    readings = tree.source().readings(0.1)
    assert [next(readings) for _ in range(3)] == [{'thermal_zone0': [40.0]}] * 3
    go.set()
    wait_until(lambda: 'temperature 0316a2795dff' in next(readings))


def test_linux_tells_changes_at_the_rate_at_which_they_come(tree):
    tree.put('sys/class/thermal/thermal_zone0/temp', 40000)
    source = Linux(str(tree.path))
    readings = source.readings(0.1)
    assert next(readings) == {'thermal_zone0': [40.0]}
    assert [next(readings) for _ in range(5)] == [{}] * 5
    tree.put('sys/class/thermal/thermal_zone0/temp', 41000)
    assert next(readings) == {'thermal_zone0': [41.0]}


def test_linux_reads_what_is_wanted(tree):
    tree.put('sys/class/thermal/thermal_zone0/type', 'cpu-thermal')
    tree.put('sys/class/thermal/thermal_zone0/temp', 40000)
    tree.put('sys/class/thermal/thermal_zone1/temp', 41000)
    assert next(tree.source('cpu-thermal').readings(0.1)) == {'cpu-thermal': [40.0]}
    with pytest.raises(SourceError, match='nothing called sonar to read'):
        next(tree.source('sonar').readings(0.1))


##############################################################################
# Lines: UDP, serial port, standard input, programs
##############################################################################

def test_udp_hears_teleplots_clients_each_with_a_header_of_its_own():
    source = Udp('127.0.0.1', 0)
    with run(source) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        wait_until(lambda: source.port)
        for sock in (one, other):
            sock.connect(('127.0.0.1', source.port))
        one.send(b'myData:4\n')
        assert listener.next('reading') == {'myData': [4]}
        one.send('\x00\xff\xfe garbage'.encode('latin-1'))
        one.send(b'temp,hum')
        other.send(b'light,noise')
        one.send(b'21.5,40')
        other.send(b'300,5')
        assert listener.next('reading') == {'temp': [21.5], 'hum': [40]}
        assert listener.next('reading') == {'light': [300], 'noise': [5]}
        one.send('a:1§°C\nb:1627551892437:7'.encode())
        assert listener.next('reading') == {'a': [1]}
        assert listener.next('reading') == {'b': [7]}
        assert listener.described['a'] == Sensor('°C', ())
    assert make_source('udp').port == 47269


def test_udp_stamps_with_the_time_that_a_line_tells():
    source = Udp('127.0.0.1', 0)
    readings = source.readings(0.1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        threading.Timer(0.05, lambda: (wait_until(lambda: source.port),
                                       sock.sendto(b'a:1627551892437:1', ('127.0.0.1', source.port)))).start()
        assert next(readings).stamp == 1627551892.437
    readings.close()


def test_udp_port_that_is_taken_is_named_and_tried_again():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        source = Udp('127.0.0.1', sock.getsockname()[1])
        with run(source) as listener:
            assert listener.next('trouble').startswith('udp: cannot listen at UDP port %d' % source.port)
            sock.close()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                answered = threading.Event()
                threading.Thread(target=lambda: [sender.sendto(b'a:1', ('127.0.0.1', source.port))
                                                 for _ in range(500) if not answered.wait(0.02)], daemon=True).start()
                assert listener.next('reading') == {'a': [1]}
                answered.set()


def test_udp_of_which_nothing_comes_says_so():
    with run(Udp('127.0.0.1', 0), patience=0.3) as listener:
        assert 'nobody sends to UDP port' in listener.next('trouble')


@pytest.fixture
def board():
    """A microcontroller at a serial port: (what it writes to, the port's name)."""
    controller, terminal = os.openpty()
    yield controller, os.ttyname(terminal)
    for descriptor in (controller, terminal):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_serial_port_hands_lines_through_at_its_speed(board):
    controller, name = board
    source = Serial(name, 57600)
    with run(source) as listener:
        os.write(controller, b'5.7\n>temp:21.5\r\nhum:40\n')      # it was in the middle of a line when we came
        assert listener.next('reading') == {'temp': [21.5], 'hum': [40]}
        descriptor = os.open(name, os.O_RDONLY | os.O_NOCTTY)
        try:
            flags = termios.tcgetattr(descriptor)
        finally:
            os.close(descriptor)
        assert flags[4] == flags[5] == termios.B57600
        assert not flags[3] & (termios.ICANON | termios.ECHO) and not flags[0] & termios.ICRNL
        os.write(controller, b'\x00\xff%%\nhum:41\n')
        assert listener.next('reading') == {'hum': [41]}


def test_serial_port_that_goes_away_is_named_and_found_again(tmp_path):
    path = str(tmp_path.joinpath('ttyUSB0'))
    with run(Serial(path)) as listener:
        assert listener.next('trouble') == 'serial: cannot open %s (No such file or directory)' % path
        controller, terminal = os.openpty()
        os.symlink(os.ttyname(terminal), path)
        done = threading.Event()
        threading.Thread(target=chatter, args=(controller, done), daemon=True).start()
        assert listener.next('reading')
        done.set()
        os.close(terminal)
        os.close(controller)
        assert 'serial: %s went away' % path in listener.next('trouble')


def chatter(descriptor, done):
    """Write lines until it is enough."""
    for n in range(10000):
        if done.wait(0.01):
            break
        with contextlib.suppress(OSError):
            os.write(descriptor, b'n:%d\n' % n)


def test_serial_port_at_the_wrong_speed_asks_for_it(board):
    controller, name = board
    with run(Serial(name, 9600), patience=0.5) as listener:
        os.write(controller, b'\n\x8f\xa3\xff\x10~~\n')
        assert 'is 9600 the speed of %s? the last line was' % name in listener.next('trouble')


def test_serial_port_has_no_speed_of_its_own_invention(board):
    with run(Serial(board[1], 12345)) as listener:
        assert listener.next('trouble') == 'serial: 12345 is no speed that this system has'


def test_standard_input_is_read_to_its_end_which_is_told_once():
    reading_end, writing_end = os.pipe()
    source = Stdin(reading_end)
    try:
        with run(source) as listener:
            os.write(writing_end, b'temp,hum\n21.5,')
            os.write(writing_end, b'40\nnoise\nlast:5')
            assert listener.next('reading') == {'temp': [21.5], 'hum': [40]}
            os.close(writing_end)
            assert listener.next('reading') == {'last': [5]}
            assert listener.next('trouble') == 'stdin: standard input has ended'
            with pytest.raises(queue.Empty):
                listener.events.get(timeout=0.5)
    finally:
        os.close(reading_end)


def test_program_is_read_and_ended_with_what_it_started(tmp_path):
    pids = tmp_path.joinpath('pids')
    command = ('echo $$ >> %s; (sleep 60 & echo $! >> %s; while echo "temp:21.5§°C|g"; do sleep 0.02; done)'
               % (pids, pids))
    with run(Command(command)) as listener:
        assert listener.next('reading') == {'temp': [21.5]}
        assert listener.described == {'temp': Sensor('°C', ())}
        started = [int(pid) for pid in pids.read_text().split()]
        assert len(started) == 2 and all(map(alive, started))
    wait_until(lambda: not any(map(alive, started)), 'the end of the program and its child')


def test_program_that_ends_is_named_and_started_again(tmp_path):
    count = tmp_path.joinpath('count')
    command = 'echo x >> %s; echo "n: $(wc -l < %s)"; echo "no sensor on the bus!" >&2; exit 3' % (count, count)
    with run(Command(command)) as listener:
        assert listener.next('reading') == {'n': [1]}
        assert re.match('cmd: `echo x .*` ended with 3: no sensor on the bus!$', listener.next('trouble'))
        assert listener.next('reading') == {'n': [2]}


@pytest.mark.parametrize('command, words', [
    ('no-such-program-here', 'ended with 127: .*not found'),
    ('kill -9 $$', 'was killed by signal 9'),
    ('printf "\\211PNG\\r\\n\\032\\n"', 'ended with 0'),
    ('head -c 300000 /dev/zero', 'ended with 0'),
])
def test_program_that_fails_or_talks_garbage_is_named(command, words):
    with run(Command(command)) as listener:
        assert re.search(words, listener.next('trouble'))


@pytest.mark.parametrize('command, words', [
    ('exec sleep 60', 'does it flush its output after each line'),
    ('trap "" TERM; echo started well!; sleep 60', "the last line was 'started well!'"),
])
def test_program_that_hangs_is_named_and_ended(command, words):
    with run(Command(command), patience=0.4) as listener:
        trouble = listener.next('trouble')
    assert 'no reading for 0.4 seconds' in trouble and words in trouble


def test_lines_of_sensors_that_are_not_wanted_are_left_out():
    source = Command('while echo "a:1 b:2 c:3"; do sleep 0.02; done')
    source.wanted = ('b',)
    with run(source) as listener:
        assert listener.next('reading') == {'b': [2]}


@pytest.mark.parametrize('text, attributes', [
    ('udp', {'host': '', 'port': 47269}),
    ('udp:5000', {'host': '', 'port': 5000}),
    ('udp:[::1]:5000', {'host': '::1', 'port': 5000}),
    ('serial:/dev/ttyUSB0', {'path': '/dev/ttyUSB0', 'speed': 115200}),
    ('serial:/dev/ttyACM0@9600', {'path': '/dev/ttyACM0', 'speed': 9600}),
    ('stdin', {'descriptor': 0}),
    ('cmd:rtl_433 -F json', {'command': 'rtl_433 -F json'}),
    ('sensorserver://192.168.1.7', {'host': '192.168.1.7', 'port': 8080}),
    ('sensorserver://192.168.1.7:8081/', {'host': '192.168.1.7', 'port': 8081}),
    ('sensorserver://[fe80::1]:8081', {'host': '[fe80::1]', 'port': 8081}),
    ('simulated', {'simulated': True}),
])
def test_sources_are_found_by_their_names(text, attributes):
    source = find_source(source_name(text), ['accel'])
    assert {name: getattr(source, name) for name in attributes} == attributes
    assert source.wanted == ('accel',)


@pytest.mark.parametrize('text, words', [
    ('crystal-ball', 'invalid choice.*simulated.*sensorserver://HOST'),
    ('serial', 'invalid choice'),
    ('udp:99999', 'from 0 to 65535'),
    ('serial:/dev/ttyUSB0@fast', 'no number of bits'),
    ('sensorserver://', 'invalid choice'),
    ('cmd:', 'invalid choice'),
])
def test_sources_that_nobody_has_are_explained(text, words, capsys):
    parser = argparse.ArgumentParser()
    add_source_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--source', text])
    assert re.search(words, capsys.readouterr().err)
    assert parser.parse_args(['--sensors', 'usual, location,']).sensors == ('usual', 'location')


##############################################################################
# SensorServer: a phone as a source
##############################################################################

class PhoneApp:
    """The app SensorServer, as its documentation and its answers are: types, codes and reasons, key for key."""

    def __init__(self, kinds, names=None, allowed=True):
        self.kinds = kinds
        self.allowed = allowed
        self.asked = []           # the types of each connection
        self.raw = None           # what it says instead of readings
        self.silent = threading.Event()
        self.boot = time.time() - 43.5
        self.server = minws.serve({'/sensor/connect': self.one, '/sensors/connect': self.several, '/gps': self.gps,
                                   '/touchscreen': self.touchscreen}, '127.0.0.1', 0)
        self.lister = minws.serve({}, '127.0.0.1', 0, pages={'/sensors': lambda request: json_response(names)}) \
            if names is not None else None
        for server in filter(None, (self.server, self.lister)):
            server.start()

    def source(self, *wanted):
        port = self.lister.port if self.lister else unused_port()
        source = SensorServer('127.0.0.1', self.server.port, port)
        source.wanted = wanted
        return source

    def one(self, ws):
        self.asked.append([ws.request.query.get('type')])
        kind = ws.request.query.get('type')
        if kind not in self.kinds:
            return ws.close(4001, 'Sensor of type %s not found' % kind)
        self.stream(ws, [kind], single=True)

    def several(self, ws):
        kinds = json.loads(ws.request.query['types'])
        self.asked.append(kinds)
        if len(kinds) < 2:
            return ws.close(4007, 'At least two sensor types must be specified')
        for kind in kinds:
            if kind not in self.kinds:
                return ws.close(4001, 'sensor of type %s not found' % kind)
        self.stream(ws, kinds)

    def stream(self, ws, kinds, single=False):
        n = 0
        with contextlib.suppress(minws.ConnectionClosed):
            while not self.silent.is_set():
                n += 1
                for kind in kinds:
                    message = {'values': [n, 2.5, -3.5, 0.5, 0.25][:5 if 'rotation' in kind else 3], 'accuracy': 2,
                               'timestamp': int((time.time() - self.boot) * 1e9)}
                    ws.send(self.raw or json.dumps(message if single else dict(message, type=kind)))
                with contextlib.suppress(TimeoutError):
                    ws.recv(timeout=0.02)
            for _ in ws:
                pass

    def gps(self, ws):
        if not self.allowed:
            return ws.close(4009, "Location permission required. Please enable it in your device's App Settings.")
        for message in ws:
            if message.lower() == 'getlastknownlocation':
                ws.send(json.dumps({'longitude': 8.5, 'latitude': 47.5, 'altitude': 410.5, 'bearing': 0.0,
                                    'accuracy': 12.0, 'speed': 0.0, 'time': 1763740000500, 'lastKnowLocation': True}))

    def touchscreen(self, ws):
        with contextlib.suppress(minws.ConnectionClosed):
            for n, action in enumerate(('ACTION_DOWN', 'ACTION_MOVE', 'ACTION_UP')):
                ws.send(json.dumps({'x': 100.5 + n, 'y': 200.5, 'action': action}))
            for _ in ws:
                pass

    def close(self):
        for server in filter(None, (self.server, self.lister)):
            server.shutdown()


def unused_port():
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def phone_app(*kinds, **options):
    app = PhoneApp(['android.sensor.' + kind if '.' not in kind else kind for kind in kinds], **options)
    try:
        yield app
    finally:
        app.close()


def test_sensorserver_reads_what_the_phone_has_without_its_list():
    with phone_app('accelerometer', 'light', 'rotation_vector') as app, run(app.source()) as listener:
        values = listener.next_with('accel')
        assert values[1:] == [2.5, -3.5]
        assert len(listener.next_with('rotation')) == 4               # of five
        assert len(listener.next_with('light')) == 1                  # of three
        assert listener.described['light'] == Sensor('lx', ())
    assert len(app.asked) == len(ANDROID_SENSORS) - 3 + 1             # one attempt for each type that it has not
    assert len(app.asked[-1]) == 3


def test_sensorserver_reads_what_the_phone_lists():
    names = [{'name': 'LSM6DSO Accelerometer', 'type': 'android.sensor.accelerometer'},
             {'name': 'Light', 'type': 'android.sensor.light'},
             {'name': 'basic_gestures', 'type': 'com.qti.sensor.basic_gestures'}]
    kinds = [name['type'] for name in names]
    with phone_app(*kinds, names=names) as app:
        with run(app.source()) as listener:
            assert listener.next_with('accel')
        assert len(app.asked) == 1
        with run(app.source('light', 'basic_gestures')) as listener:
            assert listener.next_with('com.qti.sensor.basic_gestures')
            assert listener.next_with('light')


def test_sensorserver_connects_for_one_sensor_by_the_address_for_one():
    with phone_app('accelerometer', 'light') as app, run(app.source('accel')) as listener:
        assert set(listener.next('reading')) == {'accel'}
        assert app.asked == [['android.sensor.accelerometer']]


def test_sensorserver_puts_the_time_since_the_phones_start_on_our_clock():
    with phone_app('accelerometer', 'light') as app:
        source = app.source('accel', 'light')
        readings = source.readings(0.1)
        stamps = [next(readings).stamp for _ in range(20)]
        readings.close()
    assert all(abs(stamp - time.time()) < 5 for stamp in stamps)
    assert stamps == sorted(stamps) and stamps[-1] > stamps[0]


def test_sensorserver_tells_touches_and_on_demand_where_the_phone_is():
    with phone_app('accelerometer', 'light') as app:
        with run(app.source('touch', 'touched')) as listener:
            assert [listener.next('reading') for _ in range(3)] == [
                {'touch': [100.5, 200.5], 'touched': [1]}, {'touch': [101.5, 200.5], 'touched': [1]},
                {'touch': [102.5, 200.5], 'touched': [0]}]
        with run(app.source('usual', 'location')) as listener:
            assert listener.next_with('location') == [47.5, 8.5]
            assert listener.next_with('accel')


def test_sensorserver_that_may_not_tell_where_it_is_still_has_sensors():
    with phone_app('accelerometer', 'light', allowed=False) as app:
        with run(app.source('usual', 'location')) as listener:
            for _ in range(5):
                assert listener.next_with('accel')
        with run(app.source('location')) as listener:
            assert 'refuses: Location permission required' in listener.next('trouble')


def test_sensorserver_without_the_wanted_sensors_says_so():
    with phone_app('light') as app, run(app.source('accel', 'gyro')) as listener:
        assert listener.next('trouble') == 'sensorserver: the phone has none of the sensors that are wanted'


def test_sensorserver_that_is_stopped_is_named_and_found_again():
    with phone_app('accelerometer', 'light') as app:
        port = app.server.port
        with run(app.source('accel', 'light')) as listener:
            assert listener.next_with('accel')
            for ws in app.server.connections:
                ws.close(4004, 'Server stopped')
            assert listener.next('trouble') == 'sensorserver: it refuses: Server stopped'
            assert listener.next_with('accel')
            app.server.shutdown()
            assert 'sensorserver: it closed the connection' in listener.next('trouble')
            assert 'no SensorServer at 127.0.0.1:%d' % port in listener.next('trouble')


def test_sensorserver_that_hangs_is_named():
    with phone_app('accelerometer', 'light') as app, run(app.source('accel', 'light'), patience=0.5) as listener:
        assert listener.next_with('accel')
        app.silent.set()
        assert 'no reading for 0.5 seconds' in listener.next('trouble')
        app.silent.clear()
        assert listener.next_with('accel')


@pytest.mark.parametrize('raw', ['<html>', '[]', '{"values": null, "type": "android.sensor.light"}', '{"type": 5}',
                                 '{"values": ["x"], "type": "android.sensor.light", "timestamp": []}', b'\x00'])
def test_sensorserver_that_talks_garbage_is_named(raw):
    with phone_app('accelerometer', 'light') as app:
        app.raw = raw
        with run(app.source('accel', 'light'), patience=0.4) as listener:
            assert 'it sent' in listener.next('trouble')
            app.raw = None
            assert listener.next_with('accel')


def test_sensorserver_that_is_something_else_is_named():
    with socket.socket() as listening:
        listening.bind(('127.0.0.1', 0))
        listening.listen(5)
        threading.Thread(target=lambda: [listening.accept()[0].sendall(b'SSH-2.0-OpenSSH\r\n') for _ in range(3)],
                         daemon=True).start()
        with run(SensorServer('127.0.0.1', listening.getsockname()[1], 1)) as listener:
            assert 'no SensorServer at 127.0.0.1' in listener.next('trouble')


##############################################################################
# SensorServer: a hub that answers as a phone does
##############################################################################

@contextlib.contextmanager
def serving(station):
    with minws.serve(station.routes, '127.0.0.1', 0, pages=station.pages) as server:
        server.start()
        yield server


@pytest.fixture
def station():
    station = Station()
    station.reading('pixel', 1763740000.5, {'accel': [0.1, 0.2, 9.8], 'light': [310.0], 'location': [47.5, 8.5]})
    station.reading('board', 1763740000.5, {'temperature': [21.5], 'touch': [1.0, 2.0], 'touched': [0.0]})
    return station


def ask(server, path):
    return minws.connect('ws://127.0.0.1:%d%s' % (server.port, path))


def hear(ws, station, device, stamp, reading):
    """Return what a connection hears of a reading, once it listens."""
    wait_until(lambda: station._listeners)
    station.reading(device, stamp, reading)
    return json.loads(ws.recv(timeout=DEADLINE))


def test_station_answers_programs_that_were_written_for_the_app(station):
    # What the app's documentation shows: connect, load, take the values.
    with serving(station) as server, ask(server, '/sensor/connect?type=android.sensor.accelerometer') as ws:
        message = hear(ws, station, 'pixel', 1763740001.5, {'accel': [1.0, 2.0, 3.0], 'light': [5.0]})
        assert message == {'values': [1.0, 2.0, 3.0], 'timestamp': 1763740001500000000, 'accuracy': 3}


def test_station_tells_the_type_of_several(station):
    path = '/sensors/connect?types=["android.sensor.accelerometer","android.sensor.light"]'
    with serving(station) as server, ask(server, path.replace('"', '%22')) as ws:
        message = hear(ws, station, 'pixel', 1.5, {'light': [5.0], 'gyro': [1.0, 2.0, 3.0]})
        assert message == {'values': [5.0], 'timestamp': 1500000000, 'accuracy': 3, 'type': 'android.sensor.light'}


def test_station_understands_addresses_that_are_not_escaped(station):
    # websocket-client, which the app's examples use, writes the address as it is given.
    with serving(station) as server, socket.create_connection(('127.0.0.1', server.port), DEADLINE) as sock:
        sock.sendall(('GET /sensors/connect?types=["android.sensor.accelerometer","android.sensor.light"] HTTP/1.1\r\n'
                      'Upgrade: websocket\r\nHost: 127.0.0.1:{0}\r\nOrigin: http://127.0.0.1:{0}\r\n'
                      'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n'
                      'Connection: Upgrade\r\n\r\n').format(server.port).encode())
        assert sock.recv(65536).startswith(b'HTTP/1.1 101 ')
        wait_until(lambda: station._listeners)
        station.reading('pixel', 1.0, {'light': [5.0]})
        assert b'"values": [5.0]' in sock.recv(65536)


def test_station_takes_one_device_the_first_that_has_it_or_the_one_that_is_named(station):
    station.reading('tablet', 1.0, {'light': [1.0]})
    with serving(station) as server:
        for path, device in (('', 'pixel'), ('&device=tablet', 'tablet')):
            with ask(server, '/sensor/connect?type=android.sensor.light' + path) as ws:
                wait_until(lambda: station._listeners)
                station.reading('tablet', 2.0, {'light': [22.0]})
                station.reading('pixel', 2.0, {'light': [11.0]})
                assert json.loads(ws.recv(timeout=DEADLINE))['values'] == [{'pixel': 11.0, 'tablet': 22.0}[device]]
            wait_until(lambda: not station._listeners)


def test_station_tells_where_a_phone_is(station):
    with serving(station) as server, ask(server, '/gps') as ws:
        ws.send('getLastKnownLocation')
        last = json.loads(ws.recv(timeout=DEADLINE))
        assert (last['latitude'], last['longitude'], last['time'], last['lastKnowLocation']) == (
            47.5, 8.5, 1763740000500, True)
        fix = hear(ws, station, 'pixel', 2.0, {'location': [47.6, 8.6], 'speed': [1.5], 'location accuracy': [5.0]})
        assert fix == {'latitude': 47.6, 'longitude': 8.6, 'altitude': 0.0, 'bearing': 0.0, 'accuracy': 5.0,
                       'speed': 1.5, 'time': 2000, 'lastKnowLocation': False}


def test_station_tells_touches(station):
    with serving(station) as server, ask(server, '/touchscreen') as ws:
        wait_until(lambda: station._listeners)
        for n, touched in enumerate((1.0, 1.0, 0.0)):
            station.reading('board', float(n), {'touch': [n + 0.5, 2.5], 'touched': [touched]})
        assert [json.loads(ws.recv(timeout=DEADLINE)) for _ in range(3)] == [
            {'x': 0.5, 'y': 2.5, 'action': 'ACTION_DOWN'}, {'x': 1.5, 'y': 2.5, 'action': 'ACTION_MOVE'},
            {'x': 2.5, 'y': 2.5, 'action': 'ACTION_UP'}]


@pytest.mark.parametrize('path, code', [
    ('/sensor/connect', 4003),
    ('/sensor/connect?type=', 4008),
    ('/sensor/connect?type=android.sensor.sonar', 4001),
    ('/sensor/connect?type=' + 'x' * 500, 4001),
    ('/sensor/connect?type=android.sensor.light&device=other', 4001),
    ('/sensors/connect', 4003),
    ('/sensors/connect?types=light', 4006),
    ('/sensors/connect?types=%5B5%5D', 4006),
    ('/sensors/connect?types=%5B%5D', 4008),
    ('/sensors/connect?types=%5B%22android.sensor.light%22%5D', 4007),
    ('/sensors/connect?types=%5B%22android.sensor.light%22,%22android.sensor.gyroscope%22%5D', 4001),
])
def test_station_refuses_with_the_codes_of_the_app(station, path, code):
    with serving(station) as server, ask(server, path) as ws:
        with pytest.raises(minws.ConnectionClosed):
            ws.recv(timeout=DEADLINE)
        assert ws.close_code == code
    assert not station._listeners


def test_station_is_not_held_up_by_a_program_that_does_not_listen(station):
    def tell():
        for n in range(60000):                                   # more than all buffers on the way have room for
            station.reading('pixel', float(n), {'accel': [float(n), 0.0, 0.0]})

    with serving(station) as server, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(('127.0.0.1', server.port))
        with minws.connect('ws://127.0.0.1:%d/sensor/connect?type=android.sensor.accelerometer' % server.port,
                           sock=sock) as ws:
            wait_until(lambda: station._listeners)
            telling = threading.Thread(target=tell, daemon=True)
            telling.start()
            telling.join(3 * DEADLINE)
            assert not telling.is_alive()
            while json.loads(ws.recv(timeout=DEADLINE))['values'][0] != 59999:
                pass


def test_station_serves_a_source_of_ours(station):
    with serving(station) as server:
        source = SensorServer('127.0.0.1', server.port, server.port)
        done = threading.Event()

        def move():
            n = 0
            while not done.wait(0.02):
                n += 1
                station.reading('pixel', time.time(), {'accel': [float(n), 0.5, 9.5], 'light': [float(n)]})

        threading.Thread(target=move, daemon=True).start()
        source.wanted = ('accel', 'light')
        with run(source) as listener:
            assert listener.next_with('accel')[1:] == [0.5, 9.5]
            assert listener.next_with('light')
        done.set()


def test_station_forgets_a_device(station):
    station.forget('pixel')
    assert station._device(None, ['android.sensor.light']) == (None, 'android.sensor.light')
