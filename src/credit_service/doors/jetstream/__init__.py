"""Events that come in over NATS JetStream: the same effect as `POST /credits/events`, acknowledged after the commit.

`subjects` says which they are, `pull` fetches them, `taking` finds out what becomes of each, `consumer` runs it all.
"""
