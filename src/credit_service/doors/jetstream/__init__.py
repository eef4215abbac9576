"""Events that come in over NATS JetStream: the same effect as `POST /credits/events`, acknowledged after the commit.

`subjects` says which they are, `pull` fetches them, `reading` reads one, `taking` finds out what becomes of each, and
`consumer` runs it all.
"""
