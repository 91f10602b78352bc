"""Draw the README's picture of the page: `python3 -m examples.sensors.picture page.svg`, with a Chromium at hand.

The page is opened in the browser and asked for what it shows. Its charts draw themselves a second time, with a pen that
writes their lines down where a canvas would colour pixels; boxes, words and small drawings are where the browser put
them. The readings are those of a phone in the pocket of someone who walks through a park.
"""
import json
import math
import os
import sys
import time

import minws
from examples.browser import Browser

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
WIDTH, HEIGHT = 960, 604      # CSS pixels of the window
RATE, SHOWN = 20, 10          # Hz and seconds

XYZ = ['x', 'y', 'z']
SENSORS = {
    'accel': {'unit': 'm/s²', 'axes': XYZ},
    'gyro': {'unit': 'rad/s', 'axes': XYZ},
    'light': {'unit': 'lx', 'axes': []},
    'orientation': {'unit': '°', 'axes': ['azimuth', 'pitch', 'roll']},
    'gps': {'unit': '°', 'axes': ['latitude', 'longitude']},
}


def walk(t):
    """Return the readings of all sensors, t seconds after the first step."""
    step = 2 * math.pi * 1.8 * t
    bounce = math.sin(step) + 0.35 * math.sin(2 * step + 0.6)
    way = t / 40
    return {
        'accel': [1.1 * math.sin(step / 2), 0.6 * math.cos(step) + 0.4, 9.81 + 2.4 * bounce],
        'gyro': [0.5 * math.cos(step / 2), 0.3 * math.sin(step), 0.2 * math.sin(step / 2 + 1) + 0.1 * math.cos(t / 3)],
        'light': 620 + 260 * math.sin(t / 2) + 30 * math.sin(t * 5),
        'orientation': [30 + 25 * math.sin(t / 4), -28 + 4 * math.sin(step), 18 + 6 * math.sin(step / 2)],
        'gps': [52.5 + 0.0016 * math.sin(way) * math.cos(way / 2), 13.4 + 0.0026 * math.cos(way * 1.3)],
    }


def story(now):
    """Return the messages that a page is told when it joins: a minute and a half of a walk."""
    readings = []
    for n in range(91 * RATE):
        values = walk(n / RATE)
        if n % RATE:
            del values['gps']  # satellites tell a place once a second
        readings.append({'d': 'pixel', 't': now - 90 + n / RATE, 's': values})
    hello = {'device': 'pixel', 'id': 'pixel', 'source': 'termux', 'rate': RATE, 'state': 'live', 'sensors': SENSORS}
    return [{'info': {'now': now}}, {'hello': hello}, {'history': {'thin': 1, 'readings': readings[:-RATE]}},
            {'ready': {}}] + readings[-RATE:]


SVG = r'''(() => {
// Half pixels as whole numbers are exact enough, and short.
const round = value => Math.round(value * 2), out = [];
const escape = text => text.replace(/[&<>"]/g, one => '&#' + one.charCodeAt(0) + ';');
function tag(name, attributes, inner) {
  const pairs = Object.entries(attributes).map(([key, value]) => ` ${key}="${escape(String(value))}"`).join('');
  out.push(`<${name}${pairs}` + (inner === undefined ? '/>' : `>${inner}</${name}>`));
}
const two = part => Number(part).toString(16).padStart(2, '0');
const hex = colour => '#' + colour.match(/\d+/g).slice(0, 3).map(two).join('');

class Pen {
  constructor(left, top) { Object.assign(this, {left, top, path: '', dashes: [], at: null}); }
  save() {} restore() {} clip() {} clearRect() {} rect() {}
  setLineDash(dashes) { this.dashes = dashes; }
  measureText(text) { return measure.measureText(text); }
  beginPath() { this.path = ''; this.at = null; }
  moveTo(x, y) { this.at = [round(x + this.left), round(y + this.top)]; this.path += 'M' + this.at.join(' ') + 'l'; }
  lineTo(x, y) {
    const to = [round(x + this.left), round(y + this.top)], [dx, dy] = [to[0] - this.at[0], to[1] - this.at[1]];
    if (dx || dy) this.path += (/\d$/.test(this.path) && dx >= 0 ? ' ' : '') + dx + (dy < 0 ? '' : ' ') + dy;
    this.at = to;
  }
  stroke() {
    const style = {d: this.path, stroke: this.strokeStyle, 'stroke-width': this.lineWidth * 2};
    if (this.dashes.length) style['stroke-dasharray'] = this.dashes.map(round).join(' ');
    if (/l\S/.test(this.path)) tag('path', style);
  }
  fillText(text, x, y) {
    const anchor = {left: 'start', right: 'end', center: 'middle'}[this.textAlign];
    const down = this.textBaseline === 'middle' ? 4 : 0;
    if (text) write(text, x + this.left, y + this.top + down, 11, 400, this.fillStyle, anchor);
  }
}
const measure = document.createElement('canvas').getContext('2d');
measure.font = FONT;
function write(text, x, y, size, weight, colour, anchor) {
  const style = {x: round(x), y: round(y), 'font-size': size * 2, fill: colour};
  if (weight > 500) style['font-weight'] = 600;
  if (anchor && anchor !== 'start') style['text-anchor'] = anchor;
  tag('text', style, escape(text));
}
function box(node, style) {
  const {x, y, width, height} = node.getBoundingClientRect(), visible = !/, 0\)$/.test(style.backgroundColor);
  const border = parseFloat(style.borderTopWidth) && parseFloat(style.borderLeftWidth);
  if (!visible && !border) return;
  const attributes = {x: round(x), y: round(y), width: round(width), height: round(height),
                      fill: visible ? hex(style.backgroundColor) : 'none'};
  const radius = parseFloat(style.borderRadius);
  if (radius) attributes.rx = Math.min(round(radius), round(height / 2));
  if (border) attributes.stroke = hex(style.borderTopColor);
  tag('rect', attributes);
}
// One piece for each line into which the browser broke a text.
function words(node, style) {
  const range = document.createRange(), lines = [];
  for (const {0: word, index} of node.data.matchAll(/\S+\s?/g)) {
    range.setStart(node, index);
    range.setEnd(node, index + word.length);
    const {x, y, height} = range.getBoundingClientRect(), line = lines[lines.length - 1];
    if (!height) continue;
    if (line && Math.abs(line.y - y) < 3) line.text += word; else lines.push({x, y, height, text: word});
  }
  const size = parseFloat(style.fontSize);
  for (const {x, y, height, text} of lines) {
    write(text.trim(), x, y + height / 2 + size * 0.36, size, +style.fontWeight, hex(style.color));
  }
}
function drawing(svg) {
  const {x, y, width, height} = svg.getBoundingClientRect(), copy = svg.cloneNode(true);
  const [from, to] = [svg, copy].map(one => [one, ...one.querySelectorAll('*')]);
  to.forEach((node, i) => {
    const style = getComputedStyle(from[i]);
    for (const name of ['class', 'aria-label', 'role', 'style', 'aria-hidden']) node.removeAttribute(name);
    if (i === 0 || node.tagName === 'g') return;
    for (const name of ['fill', 'stroke']) node.setAttribute(name, style[name] === 'none' ? 'none' : hex(style[name]));
    node.setAttribute('stroke-width', parseFloat(style.strokeWidth));
    if (node.tagName === 'text') for (const name of ['font-size', 'text-anchor', 'dominant-baseline']) {
      node.setAttribute(name, style.getPropertyValue(name));
    }
  });
  const size = {x: round(x), y: round(y), width: round(width), height: round(height)};
  tag('svg', {...size, viewBox: svg.getAttribute('viewBox')}, copy.innerHTML.replace(/ xmlns="[^"]*"/g, ''));
}
function show(node) {
  if (node.nodeType === 3) return words(node, getComputedStyle(node.parentNode));
  if (node.nodeType !== 1 || node.hidden) return;
  const style = getComputedStyle(node), place = node.getBoundingClientRect();
  if (style.display === 'none' || style.clipPath !== 'none' || place.top > innerHeight) return;
  if (node.tagName === 'svg') return drawing(node);
  if (node.chart) {
    const chart = node.chart, pen = new Pen(place.x, place.y), from = chart.anchor - view.span;
    paintPaper(pen, chart, timeLabels(chart.anchor));
    return chart.paint(pen, chart.left, Math.floor(from * perSecond(chart)), from);
  }
  box(node, style);
  const lamp = {cx: round(place.x + 4), cy: round(place.y + place.height / 2), r: 8};
  if (node.id === 'link') tag('circle', {...lamp, fill: hex(style.color)});
  node.childNodes.forEach(show);
}
show(document.body);
return '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ' + round(innerWidth) + ' ' + round(innerHeight) +
    '" font-family="system-ui,sans-serif" fill="none" stroke-linejoin="round">' + out.join('\n') + '</svg>\n';
})()'''


def draw():
    """Return the SVG text of the page as it is during the walk."""
    def tell(ws):
        ws.send(json.dumps(story(time.time())))
        for _ in ws:
            pass

    server = minws.serve({'/ws': tell}, '127.0.0.1', 0, pages={'/': PAGE})
    server.start()
    try:
        with Browser() as browser:
            page = browser.open('http://127.0.0.1:%d/' % server.port, WIDTH, HEIGHT)
            page.evaluate('show(%d, null); 0' % SHOWN)
            page.wait_for('document.querySelector("#state").textContent === "live" && seen.size > 2')
            page.wait_for('document.querySelector("[data-picture=phone] .screen")')
            return page.evaluate(SVG)
    finally:
        server.shutdown()


if __name__ == '__main__':
    with open(sys.argv[1], 'w', encoding='utf-8') as file:
        file.write(draw())
