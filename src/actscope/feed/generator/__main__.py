"""Entry point of the generator process: `python -m actscope.feed.generator FD`, where FD is a socket to the feed's server.

The process ends when the socket closes, even in the middle of a forward pass: a generator never outlives its server.
"""

from __future__ import annotations

import socket
import sys

from actscope.errors import ActscopeError, EngineError
from actscope.feed.generator.link import ServerLink
from actscope.feed.messages import Failed


def main() -> None:
    """Run until the server is gone. Errors that a restart cannot fix are reported as fatal; the server notices a crash."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    server = ServerLink(connection)
    settings = server.start()
    try:
        from actscope.feed.generator.work import run  # loads torch, while a thread sends heartbeats

        run(server, settings)
    except EngineError as error:
        server.tell(Failed(str(error), fatal=False))
    except (ActscopeError, OSError) as error:
        server.tell(Failed(str(error), fatal=True))
    sys.exit(1)


if __name__ == "__main__":
    main()
