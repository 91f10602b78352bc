"""What websocketd runs for each connection: it joins its input and output to a TCP connection to this machine's PORT.

    python3 relay.py PORT
"""
import os
import socket
import sys
import threading


def pump(read, write):
    """Copy until there is nothing more, or nobody who wants it."""
    try:
        for data in iter(read, b''):
            write(data)
    except OSError:
        pass


def write_all(data):
    while data:
        data = data[os.write(1, data):]


def main():
    with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as sock:
        threading.Thread(target=pump, args=(lambda: sock.recv(65536), write_all), daemon=True).start()
        pump(lambda: os.read(0, 65536), sock.sendall)


if __name__ == '__main__':
    main()
