"""The HTTP front: one aiohttp application on the TCP port and on the Unix socket.

A request passes `server.observe` (request id, errors as JSON, access line), `guard` (Host, Origin, content type), its
dialect's handler, which decodes the body into a `Generation`, and comes back through `generation` and `sse`.
Nothing here knows where or how a model runs.
"""
