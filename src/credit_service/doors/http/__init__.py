"""The HTTP API.

`shell` is the outermost ASGI application: ids, limits, problems. The hot routes answer inside it; everything else, and
whatever a hot route is not sure of, goes on to FastAPI (`app`), which has a complete route for every path. There is one
file for each resource; `routes` is what they share.
"""
