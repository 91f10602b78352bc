/* One WebSocket as the checks use it: the same in a page, and in node with the package ws.

   What Python sends are calls of open() and of methods of sessions[number]; they answer with JSON, or a promise of it.
   Bytes travel as {"base64": ...}. */
'use strict';

const DEADLINE = 10000;  // milliseconds for anything that should take a moment
const sessions = [];

function within(promise, what) {
  const late = new Promise((resolve, reject) => setTimeout(reject, DEADLINE, new Error(what + ' takes too long')));
  return Promise.race([promise, late]);
}

function toBytes(base64) {
  return Uint8Array.from(atob(base64), character => character.charCodeAt(0));
}

function toBase64(buffer) {
  const pieces = [];
  for (let start = 0; start < buffer.byteLength; start += 8192)  // as arguments, so not too many at a time
    pieces.push(String.fromCharCode(...new Uint8Array(buffer, start, Math.min(8192, buffer.byteLength - start))));
  return btoa(pieces.join(''));
}

class Session {
  constructor(socket) {
    this.socket = socket;
    this.number = sessions.push(this) - 1;
    this.messages = [];
    this.arrived = () => {};
    socket.binaryType = 'arraybuffer';
    socket.onmessage = event => {
      this.messages.push(typeof event.data === 'string' ? event.data : {base64: toBase64(event.data)});
      this.arrived();
    };
    this.end = new Promise(resolve => {
      socket.onclose = event => resolve([event.code, event.reason]);
    });
  }

  facts() {
    return {number: this.number, subprotocol: this.socket.protocol, extensions: this.socket.extensions};
  }

  send(message) {
    this.socket.send(typeof message === 'string' ? message : toBytes(message.base64));
  }

  async recv() {
    if (!this.messages.length)
      await within(Promise.race([new Promise(resolve => { this.arrived = resolve; }), this.end]), 'a message');
    if (!this.messages.length)
      throw new Error('closed with ' + await this.end);
    return this.messages.shift();
  }

  close(code, reason) {
    this.socket.close(code, reason);
    return this.closed();
  }

  closed() {
    return within(this.end, 'the end');
  }

  /* What only ws can do. */

  sendFragments(pieces, text) {
    pieces.forEach((piece, index) =>
      this.socket.send(toBytes(piece), {binary: !text, fin: index === pieces.length - 1}));
  }

  ping() {
    const ponged = new Promise(resolve => this.socket.once('pong', () => resolve(true)));
    this.socket.ping('Schlagzahl');
    return within(ponged, 'the pong');
  }
}

function open(url, subprotocols, options) {
  const socket = options ? new WebSocket(url, subprotocols, options) : new WebSocket(url, subprotocols);
  const session = new Session(socket);
  return within(new Promise((resolve, reject) => {
    socket.onopen = () => resolve(session.facts());
    socket.onerror = event => reject(new Error(event.message || 'no connection'));
  }), 'the handshake');
}
