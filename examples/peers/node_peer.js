/* Evaluate a line of JavaScript at a time, and answer each with a line of JSON; ends with its input. */
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const path = require('path');
const readline = require('readline');
const vm = require('vm');

globalThis.WebSocket = require('ws');
vm.runInThisContext(fs.readFileSync(path.join(__dirname, 'session.js'), 'utf8'));

const Session = vm.runInThisContext('Session');
const connections = [];
let arrived = () => {};

globalThis.listen = (subprotocol, tls) => {
  const server = tls ? https.createServer(tls) : http.createServer();
  new WebSocket.Server({
    server,
    perMessageDeflate: {threshold: 0},
    handleProtocols: offered => offered.has(subprotocol) && subprotocol,
  }).on('connection', socket => {
    connections.push(new Session(socket));
    arrived();
  });
  return new Promise(resolve => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));
};

globalThis.accept = async () => {
  if (!connections.length)
    await new Promise(resolve => { arrived = resolve; });
  return connections.shift().facts();
};

globalThis.forget = () => {
  connections.splice(0).forEach(session => session.socket.terminate());
};

readline.createInterface({input: process.stdin}).on('line', async line => {
  let answer;
  try {
    answer = {value: await vm.runInThisContext(line)};
  } catch (error) {
    answer = {error: String(error)};
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}).on('close', () => process.exit());
