// A WebSocket for the page whose other end is an MQTT broker: what it hears of devices/# becomes what the sensors
// server would have said. MQTT 3.1.1, quality of service 0; BROKER is the address of the broker's listener.
'use strict';
(() => {
  const Socket = window.WebSocket, SETTLED = 500;   // ms in which the retained values arrive

  const encoder = new TextEncoder(), decoder = new TextDecoder();

  function text(string) {
    const bytes = encoder.encode(string);
    return [bytes.length >> 8, bytes.length & 255, ...bytes];
  }

  // A packet: its type and flags, the length of the rest in groups of seven bits, the rest (2.2).
  function packet(head, rest) {
    const length = [];
    for (let n = rest.length; ; n >>= 7) {
      length.push(n > 127 ? n & 127 | 128 : n);
      if (n <= 127) break;
    }
    return new Uint8Array([head, ...length, ...rest]);
  }

  class BrokerSocket {
    constructor() {
      this.readyState = 0;
      this.bufferedAmount = 0;
      this.received = new Uint8Array(0);
      this.socket = new Socket(BROKER, 'mqtt');
      this.socket.binaryType = 'arraybuffer';
      this.socket.onopen = () => {
        const name = 'page' + Math.random().toString(36).slice(2, 12);
        this.socket.send(packet(0x10, [...text('MQTT'), 4, 2, 0, 60, ...text(name)]));
      };
      this.socket.onmessage = event => this.take(new Uint8Array(event.data));
      this.socket.onclose = event => {
        clearInterval(this.pinging);
        this.readyState = 3;
        if (this.onclose) this.onclose({code: event.code, reason: event.reason || 'the broker is gone'});
      };
    }

    send() {}           // the broker has no ear for a page's commands

    close() {
      this.socket.close();
    }

    // Cut what came into packets, however it was cut on the way.
    take(bytes) {
      const all = new Uint8Array(this.received.length + bytes.length);
      all.set(this.received);
      all.set(bytes, this.received.length);
      let start = 0;
      for (;;) {
        let length = 0, at = start + 1, shift = 0;
        while (at < all.length && all[at] & 128) length |= (all[at++] & 127) << shift, shift += 7;
        if (at >= all.length) break;
        length |= all[at++] << shift;
        if (at + length > all.length) break;
        this.handle(all[start] >> 4, all.subarray(at, at + length));
        start = at + length;
      }
      this.received = all.slice(start);
    }

    handle(type, body) {
      if (type === 2) {                                         // CONNACK
        if (body[1]) return this.close();
        this.readyState = 1;
        if (this.onopen) this.onopen({});
        this.socket.send(packet(0x82, [0, 1, ...text('hub/info'), 0, ...text('devices/#'), 0]));
        this.pinging = setInterval(() => this.socket.send(new Uint8Array([0xC0, 0])), 30000);
        setTimeout(() => this.say({ready: {readings: 0, counts: {}}}), SETTLED);
      } else if (type === 3) {                                  // PUBLISH
        const end = 2 + (body[0] << 8 | body[1]);
        this.publish(decoder.decode(body.subarray(2, end)), decoder.decode(body.subarray(end)));
      }
    }

    publish(topic, payload) {
      const [first, device, sensor] = topic.split('/').map(decodeURIComponent);
      if (!payload) return sensor === undefined && this.say({gone: {device}});
      const value = JSON.parse(payload);
      if (first === 'hub') this.say({info: value});
      else if (sensor === undefined) this.say({hello: value});
      else this.say({d: device, t: value.t, s: {[sensor]: value.v}});
    }

    say(value) {
      if (this.onmessage) this.onmessage({data: JSON.stringify(value)});
    }
  }

  window.WebSocket = function (url, protocols) {
    return new URL(url, location).pathname === '/ws' ? new BrokerSocket() : new Socket(url, protocols);
  };
})();
