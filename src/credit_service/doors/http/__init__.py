"""The HTTP API.

`shell` is the outermost ASGI application. Each request takes one way: `protocol`, `admission`, `bodies`, then the
endpoint. There is a folder for each resource, and in it a file for each endpoint. `endpoints` says how one is declared,
`answers` and `pages` what answers have in common. `app` puts them together.
"""
