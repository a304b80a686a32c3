"""Shared parts of the HTTP servers: access control, error format, settings, uvicorn. Also framed messages between processes.

The gateway and the feed use the HTTP parts. Engines do not: only the gateway connects to them, over a private unix socket.
"""
