# pip install nats-py
import asyncio
import contextlib
import json
import os

import nats
import nats.errors


async def main() -> None:
    connection = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    stream = connection.jetstream()
    events = await stream.pull_subscribe("evt.credits.>", durable="example-python", stream="CREDITS")
    last: dict[str, int] = {}  # last event number by account; store it with your own data, in one transaction
    while True:
        with contextlib.suppress(nats.errors.TimeoutError):  # no new events
            for message in await events.fetch(100):
                event = json.loads(message.data)
                account, number = event["data"]["account_id"], int(event["sequence"])
                seen = last.get(account, number - 1)
                if number > seen + 1:  # get the missing events: GET /api/v1/credits/events?merchant_id=…&after={seen}
                    print(f"{account}: events {seen + 1} to {number - 1} are missing", flush=True)
                if number > seen:  # otherwise this event is a repeat
                    last[account] = number
                    print(number, event["type"], event["data"]["available"], flush=True)
                await message.ack()


asyncio.run(main())
