// npm install @nats-io/transport-node @nats-io/jetstream
import { connect } from "@nats-io/transport-node";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";

const connection = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const manager = await jetstreamManager(connection);
await manager.consumers.add("CREDITS", { durable_name: "example-node", ack_policy: "explicit" });
const consumer = await jetstream(connection).consumers.get("CREDITS", "example-node");
const last = new Map(); // by account; keep it where your own data is, and write both in one transaction
for await (const message of await consumer.consume()) {
  const event = message.json(), number = Number(event.sequence), account = event.data.account_id;
  const seen = last.get(account) ?? number - 1;
  // If some are missing, ask for them: GET /api/v1/credits/events?merchant_id=…&after={seen}
  if (number > seen + 1) console.log(`${account}: events ${seen + 1} to ${number - 1} are missing`);
  if (number > seen) {
    last.set(account, number); // else it came again
    console.log(number, event.type, event.data.available);
  }
  message.ack();
}
