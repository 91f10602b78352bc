"""A chat for everybody on the home network: a page and its socket on one port.

    python3 -m examples.chat                        prints the address to open in any browser, on phones too
    python3 -m examples.chat --host 127.0.0.1       for this machine only

Rooms are paths, /room/{name}, and come and go with their members. Who comes late gets the last 50 lines. The page is
chat.html, which must lie beside this file. It reconnects by itself, and a line typed meanwhile is sent then.

One thread runs all connections. A send never waits there: what a slow member has not read yet is queued for it, and
when that grows too long the member is dropped; nobody else notices.

What a client sends is text, one line of the chat for each message. What it gets is JSON: one 'welcome', then a
'said', 'joined' or 'left' for each thing that happens, and 'refused' for a line of its own that is too long.
"""
import argparse
import collections
import json
import os
import socket
import sys
import time

from minws import ConnectionClosed, WebSocket, serve

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'chat.html')
HISTORY = 50  # lines that a late joiner gets
MAX_LINE = 500  # characters; chat.html knows it too
MAX_NAME = 24  # characters of a member's name, and of a room's
MAX_ROOMS = 100  # beyond that empty ones are forgotten, with what was said in them
MAX_SIZE = 1 << 13  # bytes of a message: room for a line that is too long to be told so, none for nonsense
STARTED = time.time()  # tells a page that has been here before that the lines are numbered anew

REPLACED = 4001  # close code for the dead connection of a member who is back already


def printable(text, limit):
    """Return text on one line without invisible characters, at most limit characters; it may be empty."""
    return ''.join(character for character in ' '.join(text.split()) if character.isprintable())[:limit].strip()


class Room:
    """Members and the last lines; like all of this, used in the server's one thread only."""

    def __init__(self):
        self.members = []
        self.history = collections.deque(maxlen=HISTORY)
        self.last_number = 0

    def free_name(self, wanted):
        """Return wanted, or 'wanted 2', 'wanted 3' ... if there are members of that name."""
        taken = {member.name for member in self.members}
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = '%s %d' % (wanted, number)
        return name

    def post(self, kind, name, text=''):
        """Send a line to all members; only what was said is kept, or phones that come and go would push it out."""
        self.last_number += 1
        line = {'type': kind, 'number': self.last_number, 'time': time.time(), 'name': name, 'text': text}
        if kind == 'said':
            self.history.append(line)
        for member in list(self.members):  # a copy, because telling may find that one has gone
            member.tell(line)

    def welcome(self):
        """Return what a member must know at first."""
        return {'type': 'welcome', 'started': STARTED, 'number': self.last_number, 'lines': list(self.history),
                'members': [member.name for member in self.members]}


class Rooms(collections.OrderedDict):
    """The rooms by name, the one that was entered last at the end."""

    def enter(self, name):
        """Return the room of that name, new if need be."""
        self[name] = room = self.pop(name, None) or Room()
        empty = [other for other in self if other != name and not self[other].members]
        for other in empty[:max(len(self) - MAX_ROOMS, 0)]:
            del self[other]
        return room


class Member(WebSocket):
    """A connection to /room/{name}?name=NAME&id=ID, where the same ID means the same member connecting again."""

    rooms = Rooms()
    room = None  # None before it has entered, and again when it has left

    def opened(self):
        name = printable(self.request.query.get('name', ''), MAX_NAME)
        room_name = printable(self.path_args['name'], MAX_NAME).lower()
        if not name or not room_name:
            self.close(1008, 'a member and a room need a name')
            return
        self.member_id = self.request.query.get('id') or None
        room = self.rooms.enter(room_name)
        before = self.replaced_in(room)
        self.name = before.name if before else room.free_name(name)
        room.members.append(self)
        self.room = room
        self.tell(dict(room.welcome(), name=self.name, room=room_name))
        if not before:
            room.post('joined', self.name)

    def replaced_in(self, room):
        """Take the dead connection of the same member out of the room and return it; None if there is none."""
        for member in room.members:
            if self.member_id is not None and member.member_id == self.member_id:
                room.members.remove(member)
                member.room = None
                member.close(REPLACED, 'connected again')
                return member
        return None

    def received_message(self, message):
        text = str(message).strip() if message.is_text else ''
        if self.room is None or not text:
            return
        if len(text) > MAX_LINE:
            self.tell({'type': 'refused', 'text': 'A line has at most %d characters.' % MAX_LINE})
        else:
            self.room.post('said', self.name, text)

    def closed(self, code, reason=None):
        room, self.room = self.room, None
        if room is not None:
            room.members.remove(self)
            room.post('left', self.name)

    def tell(self, line):
        """Send one JSON object; if the connection has just ended, its closed() follows and says so in the room."""
        try:
            self.send(json.dumps(line))
        except ConnectionClosed:
            pass


def address_to_open(host):
    """Return what to type into a browser for a server that listens on host."""
    if host not in ('', '0.0.0.0', '::'):
        return '[%s]' % host if ':' in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))  # sends nothing, but has the system choose our address in the network
            return probe.getsockname()[0]
        except OSError:
            return 'localhost'


def main():
    parser = argparse.ArgumentParser(description='Serve a chat.')
    parser.add_argument('--host', default='0.0.0.0', help='where to listen (%(default)s: the whole network)')
    parser.add_argument('--port', type=int, default=8766, help='0 takes a free one (%(default)s)')
    options = parser.parse_args()
    try:
        server = serve({'/room/{name}': Member}, options.host, options.port, pages={'/': PAGE}, max_size=MAX_SIZE)
    except OSError as error:
        sys.exit('Cannot listen on %s: %s.' % (options.host, error.strerror))
    with server:
        print('Chat at http://%s:%d/' % (address_to_open(options.host), server.port), flush=True)
        server.serve_forever()


if __name__ == '__main__':
    main()
