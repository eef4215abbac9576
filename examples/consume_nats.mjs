// npm install @nats-io/transport-node @nats-io/jetstream
import { connect } from "@nats-io/transport-node";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";

const connection = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const manager = await jetstreamManager(connection);
await manager.consumers.add("CREDITS", { durable_name: "example-node", ack_policy: "explicit" });
const consumer = await jetstream(connection).consumers.get("CREDITS", "example-node");
const last = new Map(); // last event number by account; store it with your own data, in one transaction
for await (const message of await consumer.consume()) {
  const event = message.json(), number = Number(event.sequence), account = event.data.account_id;
  const seen = last.get(account) ?? number - 1;
  // Get missing events: GET /api/v1/credits/events?merchant_id=…&after={seen}
  if (number > seen + 1) console.log(`${account}: events ${seen + 1} to ${number - 1} are missing`);
  if (number > seen) { // otherwise this event is a repeat
    last.set(account, number);
    console.log(number, event.type, event.data.available);
  }
  message.ack();
}
