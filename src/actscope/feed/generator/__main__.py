"""The generator's process: `python -m actscope.feed.generator FD`, started by the feed's server, with a socket to it.

It ends when the socket does, in the middle of a forward pass too: a generator never outlives its server.
"""

from __future__ import annotations

import socket
import sys

from actscope.errors import ActscopeError, EngineError
from actscope.feed.generator.link import ServerLink
from actscope.feed.messages import Failed


def main() -> None:
    """Run until the server goes. What cannot be mended by starting again is told as fatal; a crash is seen by the server."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    server = ServerLink(connection)
    settings = server.start()
    try:
        from actscope.feed.generator.work import run  # torch and all: the server hears heartbeats meanwhile

        run(server, settings)
    except EngineError as error:
        server.tell(Failed(str(error), fatal=False))
    except (ActscopeError, OSError) as error:
        server.tell(Failed(str(error), fatal=True))
    sys.exit(1)


if __name__ == "__main__":
    main()
