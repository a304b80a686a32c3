"""What every HTTP server of ours for people and programs has: who may ask and how much, errors in one shape, a port.

The gateway and the feed stand on it. Engines, which only the gateway talks to over a private socket, do not need it.
"""
