"""Inbound events over NATS JetStream: the same effect as `POST /credits/events`, acknowledged after the commit.

`subjects` lists the subjects, `pull` fetches messages, `reading` decodes one, `taking` applies a batch, and `consumer`
runs it all.
"""
