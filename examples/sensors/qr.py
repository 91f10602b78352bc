"""QR codes of addresses: for a terminal, and as SVG for a page.

    print(terminal('http://192.168.1.20:9000/'))

ASCII text of up to 271 characters in byte mode, versions 1 to 10, error correction level M while the text fits, else L
(ISO/IEC 18004:2015; its clauses are named where they are followed). `python3 -m examples.sensors.qr TEXT` prints one.
"""
import re
import sys

QUIET_ZONE = 4                # light modules around the symbol, clause 9.1

# Clause 7.5.1, table 9, for versions 1 to 10: codewords of the symbol, and for each level the error correction
# codewords of a block and the number of blocks.
CODEWORDS = (26, 44, 70, 100, 134, 172, 196, 242, 292, 346)
BLOCKS = {
    'M': ((10, 1), (16, 1), (26, 1), (18, 2), (24, 2), (16, 4), (18, 4), (22, 4), (22, 5), (26, 5)),
    'L': ((7, 1), (10, 1), (15, 1), (20, 1), (26, 1), (18, 2), (20, 2), (24, 2), (30, 2), (18, 4)),
}
LEVEL_BITS = {'M': 0b00, 'L': 0b01}

# Clause 7.8.2, table 10: a module is inverted where its condition holds.
MASKS = (
    lambda row, column: (row + column) % 2 == 0,
    lambda row, column: row % 2 == 0,
    lambda row, column: column % 3 == 0,
    lambda row, column: (row + column) % 3 == 0,
    lambda row, column: (row // 2 + column // 3) % 2 == 0,
    lambda row, column: row * column % 2 + row * column % 3 == 0,
    lambda row, column: (row * column % 2 + row * column % 3) % 2 == 0,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2 == 0,
)


##############################################################################
# Codewords: the text, and what corrects its errors
##############################################################################

def smallest(length):
    """Return the (version, level) of the smallest symbol that holds so many bytes; ValueError if none does."""
    for level in 'ML':
        for version in range(1, len(CODEWORDS) + 1):
            if length <= data_codewords(version, level) - (2 if version < 10 else 3):
                return version, level
    raise ValueError('%d bytes are too many for a QR code of version %d' % (length, len(CODEWORDS)))


def data_codewords(version, level):
    correcting, blocks = BLOCKS[level][version - 1]
    return CODEWORDS[version - 1] - correcting * blocks


def encode(data, version, level):
    """Return the data codewords, clause 7.4: byte mode, length, data, terminator, padding."""
    bits = '0100' + format(len(data), '08b' if version < 10 else '016b')
    bits += ''.join(format(byte, '08b') for byte in data) + '0000'
    words = [int(bits[start:start + 8], 2) for start in range(0, len(bits), 8)]
    missing = data_codewords(version, level) - len(words)
    return words + ([0xec, 0x11] * missing)[:missing]


def multiply(a, b):
    """Return the product in GF(256), clause 7.5.2: polynomials modulo x^8 + x^4 + x^3 + x^2 + 1."""
    product = 0
    while b:
        product ^= a * (b & 1)
        a, b = a << 1 ^ (a >> 7) * 0x11d, b >> 1
    return product


def generator(degree):
    """Return the coefficients of (x - 1)(x - 2)(x - 4) … but the leading 1, the highest power first; annex A."""
    coefficients, root = [1], 1
    for _ in range(degree):
        shifted = [0] + [multiply(root, coefficient) for coefficient in coefficients]
        coefficients = [a ^ b for a, b in zip(coefficients + [0], shifted)]
        root = multiply(root, 2)
    return coefficients[1:]


def correction(data, divisor):
    """Return the error correction codewords: the remainder of data by a generator()."""
    remainder = [0] * len(divisor)
    for byte in data:
        factor = byte ^ remainder[0]
        remainder = [a ^ multiply(b, factor) for a, b in zip(remainder[1:] + [0], divisor)]
    return remainder


def interleave(data, version, level):
    """Return all codewords in their order in the symbol, clause 7.6; the last blocks may be longer by one."""
    correcting, count = BLOCKS[level][version - 1]
    short, longer = divmod(len(data), count)
    ends = [short * n + max(0, n + longer - count) for n in range(count + 1)]
    blocks = [data[start:end] for start, end in zip(ends, ends[1:])]
    divisor = generator(correcting)
    corrections = [correction(block, divisor) for block in blocks]
    words = [block[n] for n in range(short + 1) for block in blocks if n < len(block)]
    return words + [block[n] for n in range(correcting) for block in corrections]


##############################################################################
# Modules: a list of rows; None is a module that no pattern has taken
##############################################################################

def function_patterns(version):
    """Return the rows with finder, alignment and timing patterns and the version information, clauses 6.3 and 7.10."""
    size = 4 * version + 17
    rows = [[None] * size for _ in range(size)]
    for row, column in ((3, 3), (3, size - 4), (size - 4, 3)):
        draw_rings(rows, row, column, 4, light=(2, 4))
    centres = [] if version == 1 else [6, size - 7] if version < 7 else [6, size // 2, size - 7]
    for row in centres:
        for column in centres:
            if rows[row][column] is None:
                draw_rings(rows, row, column, 2, light=(1,))
    for n in range(8, size - 8):
        rows[6][n] = rows[n][6] = n % 2 == 0
    if version >= 7:
        information = with_check_bits(version, 12, 0x1f25)
        for n in range(18):
            a, b = n // 3, size - 11 + n % 3
            rows[a][b] = rows[b][a] = bool(information >> n & 1)
    return rows


def draw_rings(rows, row, column, radius, light):
    """Draw square rings around a centre, dark except those whose distance from it is in `light`."""
    size = len(rows)
    for r in range(max(0, row - radius), min(size, row + radius + 1)):
        for c in range(max(0, column - radius), min(size, column + radius + 1)):
            rows[r][c] = max(abs(r - row), abs(c - column)) not in light


def with_check_bits(value, count, polynomial):
    """Return value with so many bits of a BCH code behind it; annexes C and D."""
    remainder = value << count
    while remainder.bit_length() > count:
        remainder ^= polynomial << remainder.bit_length() - count - 1
    return value << count | remainder


def format_bits(level, mask):
    return with_check_bits(LEVEL_BITS[level] << 3 | mask, 10, 0x537) ^ 0x5412


def draw_format(rows, bits):
    """Draw the format information twice, clause 7.9, and the module that is always dark."""
    beside = [0, 1, 2, 3, 4, 5, 7, 8] + [8] * 7
    above = [8] * 8 + [7, 5, 4, 3, 2, 1, 0]
    for n in range(15):
        dark = bool(bits >> n & 1)
        rows[beside[n]][above[n]] = dark
        if n < 8:
            rows[8][-1 - n] = dark
        else:
            rows[n - 15][8] = dark
    rows[-8][8] = True


def free_modules(rows):
    """Return the (row, column) that no pattern has taken, in the order of data: clause 7.7.3, two columns at a time."""
    size, places, upwards = len(rows), [], True
    for right in list(range(size - 1, 6, -2)) + [5, 3, 1]:
        for row in range(size - 1, -1, -1) if upwards else range(size):
            places += [(row, column) for column in (right, right - 1) if rows[row][column] is None]
        upwards = not upwards
    return places


def penalty(rows):
    """Return how hard the modules are to read, clause 7.8.3.1."""
    lines = [''.join('01'[dark] for dark in row) for row in rows]
    points = 0
    for line in lines + [''.join(column) for column in zip(*lines)]:
        points += sum(len(run.group()) - 2 for run in re.finditer('0{5,}|1{5,}', line))
        points += 40 * len(re.findall('(?=10111010000|00001011101)', line))
    for above, below in zip(lines, lines[1:]):
        pairs = zip(above, above[1:], below, below[1:])
        points += 3 * sum(a == b == c == d for a, b, c, d in pairs)
    dark, count = sum(line.count('1') for line in lines), len(lines) ** 2
    return points + 10 * (abs(20 * dark - 10 * count) // count)


def modules(text, mask=None):
    """Return the symbol as rows of bools, True for dark, without its quiet zone.

    `mask` is 0 to 7; None takes the one that is easiest to read. ValueError if the text is too long or not ASCII,
    of which an address consists: readers guess differently what other bytes mean.
    """
    data = text.encode('ascii')
    version, level = smallest(len(data))
    words = interleave(encode(data, version, level), version, level)
    rows = function_patterns(version)
    draw_format(rows, 0)
    places = free_modules(rows)
    bits = ''.join(format(word, '08b') for word in words).ljust(len(places), '0')
    candidates = [masked(rows, places, bits, level, n) for n in (range(8) if mask is None else [mask])]
    return min(candidates, key=penalty)


def masked(rows, places, bits, level, mask):
    rows = [list(row) for row in rows]
    draw_format(rows, format_bits(level, mask))
    inverted = MASKS[mask]
    for (row, column), bit in zip(places, bits):
        rows[row][column] = (bit == '1') != inverted(row, column)
    return rows


##############################################################################
# For people
##############################################################################

def with_quiet_zone(rows):
    side, width = [False] * QUIET_ZONE, len(rows) + 2 * QUIET_ZONE
    edge = [[False] * width for _ in range(QUIET_ZONE)]
    return edge + [side + row + side for row in rows] + edge


def terminal(text):
    """Return lines for a terminal, two rows of modules in each: black on white, whatever its own colours are."""
    rows = with_quiet_zone(modules(text))
    rows += [[False] * len(rows[0])]  # the number of rows is odd
    blocks = {(False, False): ' ', (True, False): '▀', (False, True): '▄', (True, True): '█'}
    lines = (''.join(map(blocks.get, zip(*pair))) for pair in zip(rows[::2], rows[1::2]))
    # Colours 16 and 231 are black and white also where a theme has changed the first sixteen.
    return '\n'.join('\033[38;5;16;48;5;231m%s\033[0m' % line for line in lines)


def svg(text):
    """Return an SVG image of one unit a module, black on white; its size is its container's business."""
    rows = with_quiet_zone(modules(text))
    size, path = len(rows), []
    for y, row in enumerate(rows):
        line = ''.join('01'[dark] for dark in row)
        path += ['M%d %dh%dv1h-%dz' % (run.start(), y, run.end() - run.start(), run.end() - run.start())
                 for run in re.finditer('1+', line)]
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" shape-rendering="crispEdges">'
            '<path fill="#fff" d="M0 0h%dv%dH0z"/><path d="%s"/></svg>' % (size, size, size, size, ''.join(path)))


if __name__ == '__main__':
    print(terminal(sys.argv[1]))
