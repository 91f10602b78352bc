"""Tests of examples/sensors/qr.py: the standard's own vectors, and what a real decoder reads.

The decoder is zbarimg, of Debian's package zbar-tools; its tests are skipped where it is missing.
"""
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from examples.sensors import qr

URL = 'http://192.168.1.20:9000/?token=0123456789abcdef'
SCALE = 3                     # pixels a module in the decoder's images

decoder = pytest.mark.skipif(shutil.which('zbarimg') is None, reason='zbarimg is not there: apt-get install zbar-tools')


def text_of(length):
    """Return a printable text of so many bytes in which no part repeats soon."""
    return ''.join(chr(33 + (n * n + 7 * n + length) % 94) for n in range(length))


def image(rows):
    """Return the rows of modules as a PGM file."""
    lines = [b''.join(b'\0' * SCALE if dark else b'\xff' * SCALE for dark in row) * SCALE for row in rows]
    return b'P5 %d %d 255\n' % (len(rows[0]) * SCALE, len(rows) * SCALE) + b''.join(lines)


def decode(symbols, directory):
    """Return the texts that the decoder finds in each of the symbols, which are rows with their quiet zone."""
    names = []
    for n, rows in enumerate(symbols):
        (directory / ('%03d.pgm' % n)).write_bytes(image(rows))
        names.append('%03d.pgm' % n)
    # without this setting it takes runs of digits and dashes for bar codes too
    command = ['zbarimg', '-q', '--xml', '-Sdisable', '-Sqrcode.enable'] + names
    found = subprocess.run(command, cwd=str(directory), stdout=subprocess.PIPE, timeout=60).stdout
    texts = {name: [] for name in names}
    for source in xml.etree.ElementTree.fromstring(found).iter('{http://zbar.sourceforge.net/2008/barcode}source'):
        texts[source.get('href')] = [data.text for data in
                                     source.iter('{http://zbar.sourceforge.net/2008/barcode}data')]
    return [texts[name] for name in names]


##############################################################################
# Codewords
##############################################################################

@pytest.mark.parametrize('degree, exponents', [
    (7, [87, 229, 146, 149, 238, 102, 21]),
    (10, [251, 67, 46, 61, 118, 70, 64, 94, 32, 45]),
    (13, [74, 152, 176, 100, 86, 100, 106, 104, 130, 218, 206, 140, 78]),
])
def test_generator_polynomials_are_those_of_annex_a(degree, exponents):
    powers = [1]
    for _ in range(254):
        powers.append(qr.multiply(powers[-1], 2))
    assert qr.generator(degree) == [powers[exponent] for exponent in exponents]


def test_field_has_255_elements_and_a_one():
    powers = {1}
    element = 2
    while element != 1:
        powers.add(element)
        element = qr.multiply(element, 2)
    assert powers == set(range(1, 256))
    assert all(qr.multiply(a, 1) == a for a in range(256))


def test_correction_is_that_of_the_example_in_annex_i():
    data = [0x10, 0x20, 0x0c, 0x56, 0x61, 0x80, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11]
    assert qr.correction(data, qr.generator(10)) == [0xa5, 0x24, 0xd4, 0xc1, 0xed, 0x36, 0xc7, 0x87, 0x2c, 0x55]


@pytest.mark.parametrize('level, mask, bits', [
    ('M', 0, '101010000010010'), ('M', 5, '100000011001110'), ('M', 7, '100101010100000'),
    ('L', 0, '111011111000100'), ('L', 4, '110011000101111'), ('L', 7, '110100101110110'),
])
def test_format_bits_are_those_of_annex_c(level, mask, bits):
    assert format(qr.format_bits(level, mask), '015b') == bits


@pytest.mark.parametrize('version, bits', [
    (7, '000111110010010100'), (8, '001000010110111100'), (9, '001001101010011001'), (10, '001010010011010011')])
def test_version_information_is_that_of_annex_d(version, bits):
    assert format(qr.with_check_bits(version, 12, 0x1f25), '018b') == bits


def test_data_is_padded_as_clause_7_4_says():
    assert qr.encode(b'ab', 1, 'M') == [0x40, 0x26, 0x16, 0x20] + [0xec, 0x11] * 6


@pytest.mark.parametrize('version, level, bytes_in_it', [
    (1, 'M', 14), (2, 'M', 26), (3, 'M', 42), (4, 'M', 62), (5, 'M', 84), (6, 'M', 106), (7, 'M', 122),
    (8, 'M', 152), (9, 'M', 180), (10, 'M', 213), (10, 'L', 271)])
def test_versions_hold_what_table_7_says(version, level, bytes_in_it):
    assert qr.smallest(bytes_in_it) == (version, level)
    assert len(qr.encode(b'x' * bytes_in_it, version, level)) == qr.data_codewords(version, level)
    assert len(qr.modules('x' * bytes_in_it, mask=0)) == 4 * version + 17


def test_text_that_is_too_long_is_named():
    with pytest.raises(ValueError, match='272 bytes are too many'):
        qr.modules('x' * 272)
    with pytest.raises(ValueError, match='ascii'):
        qr.modules('http://wohnküche.local/')


def test_blocks_are_interleaved_with_the_longer_ones_last():
    """Version 10, level M: four blocks of 43 data codewords, one of 44."""
    words = qr.interleave(list(range(216)), 10, 'M')
    assert words[:6] == [0, 43, 86, 129, 172, 1]
    assert words[214:216] == [214, 215]
    assert len(words) == 346


##############################################################################
# Modules
##############################################################################

@pytest.mark.parametrize('version', range(1, 11))
def test_every_module_is_taken_once(version):
    rows = qr.function_patterns(version)
    qr.draw_format(rows, 0)
    places = qr.free_modules(rows)
    assert len(set(places)) == len(places)
    assert 8 * qr.CODEWORDS[version - 1] <= len(places) < 8 * qr.CODEWORDS[version - 1] + 8


def test_penalty_counts_what_clause_7_8_3_names():
    chess = [[(row + column) % 2 == 0 for column in range(6)] for row in range(6)]
    assert qr.penalty(chess) == 0
    assert qr.penalty([[False] * 6] * 6) == 12 * 4 + 25 * 3 + 10 * 10        # runs, blocks, proportion
    finder_like = [digit == '1' for digit in '10111010000']
    rows = [finder_like] + [[(row + column) % 2 == 0 for column in range(11)] for row in range(10)]
    without = [[digit == '1' for digit in '10111010010']] + rows[1:]
    assert qr.penalty(rows) - qr.penalty(without) >= 40 - 6


def test_mask_with_the_least_penalty_is_taken():
    penalties = [qr.penalty(qr.modules(URL, mask)) for mask in range(8)]
    assert len(set(penalties)) > 1
    assert qr.penalty(qr.modules(URL)) == min(penalties)


@decoder
@pytest.mark.parametrize('step', [9, pytest.param(1, marks=pytest.mark.slow)])
def test_decoder_reads_every_length(tmp_path, step):
    texts = [text_of(length) for length in list(range(1, 201, step)) + [213, 214, 271]]
    assert decode([qr.with_quiet_zone(qr.modules(text)) for text in texts], tmp_path) == [[text] for text in texts]


@decoder
@pytest.mark.parametrize('version', [1, 2, 7, 10])
def test_decoder_reads_every_mask(version, tmp_path):
    text = text_of(qr.data_codewords(version, 'M') - 3)
    symbols = [qr.with_quiet_zone(qr.modules(text, mask)) for mask in range(8)]
    assert len(set(map(str, symbols))) == 8
    assert decode(symbols, tmp_path) == [[text]] * 8


@decoder
def test_decoder_reads_a_symbol_with_errors(tmp_path):
    """Level M corrects a seventh of the codewords: three of version 3's in the one block."""
    rows = qr.modules(URL)
    for n in range(3):
        rows[len(rows) - 1 - 4 * n][-1] ^= True
    assert decode([qr.with_quiet_zone(rows)], tmp_path) == [[URL]]


##############################################################################
# For people
##############################################################################

BLOCKS = {' ': (False, False), '▀': (True, False), '▄': (False, True), '█': (True, True)}


def rows_of_terminal(printed):
    """Return the modules that a terminal shows, two rows from each line."""
    rows = []
    for line in printed.split('\n'):
        shown = re.match('\033\\[38;5;16;48;5;231m([ ▀▄█]*)\033\\[0m$', line).group(1)
        rows += zip(*(BLOCKS[character] for character in shown))
    return [list(row) for row in rows]


def rows_of_svg(image):
    """Return the modules that an SVG image's second path fills."""
    root = xml.etree.ElementTree.fromstring(image)
    size = int(root.get('viewBox').split()[3])
    rows = [[False] * size for _ in range(size)]
    background, symbol = root.findall('{http://www.w3.org/2000/svg}path')
    assert background.get('fill') == '#fff' and background.get('d') == 'M0 0h%dv%dH0z' % (size, size)
    for run in symbol.get('d').split('M')[1:]:
        x, y, width, back = map(int, re.match(r'(\d+) (\d+)h(\d+)v1h-(\d+)z$', run).groups())
        assert width == back
        rows[y][x:x + width] = [True] * width
    return rows


def test_terminal_shows_the_symbol_with_its_quiet_zone():
    rows = rows_of_terminal(qr.terminal(URL))
    symbol = qr.with_quiet_zone(qr.modules(URL))
    assert rows == symbol + [[False] * len(symbol)]
    assert symbol[4] == [False] * 4 + qr.modules(URL)[0] + [False] * 4
    assert not any(map(any, symbol[:4] + symbol[-4:]))


def test_svg_shows_the_symbol_with_its_quiet_zone():
    assert rows_of_svg(qr.svg(URL)) == qr.with_quiet_zone(qr.modules(URL))
    assert len(qr.svg(URL)) < 12000


@decoder
def test_decoder_reads_what_the_program_prints(tmp_path):
    command = [sys.executable, '-m', 'examples.sensors.qr', URL]
    printed = subprocess.check_output(command, timeout=60, env={'PYTHONIOENCODING': 'utf-8'}).decode('utf-8')
    assert decode([rows_of_terminal(printed.rstrip('\n'))], tmp_path) == [[URL]]
