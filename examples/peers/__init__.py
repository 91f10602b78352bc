"""minws and other implementations of WebSocket, on both ends of a connection: see __main__.py."""
