"""Tests of the sources: which sensors are read of a phone, what is read of a board, and what comes from elsewhere."""
import pytest

from examples.droid_sensor import ANDROID, ANDROID_SENSORS, android_type, choose_sensors

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
