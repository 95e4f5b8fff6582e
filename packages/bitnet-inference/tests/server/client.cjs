// What the `openai` package for Node gets from the server: one JSON object on the standard output.
const { OpenAI, toFile } = require("openai");

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Once upon a time" }];
const schema = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

async function main() {
  const found = {};
  const asked = { model: "talker", messages, max_tokens: 8, temperature: 0 };
  const chat = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
  found.chat = chat.choices[0].message.content;
  found.logprobs = chat.choices[0].logprobs.content.map((one) => one.top_logprobs.length);

  found.stream = "";
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
    found.stream += chunk.choices[0]?.delta.content ?? "";
    found.usage = chunk.usage?.completion_tokens ?? found.usage;
  }

  const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];
  const calling = { model: "talker", messages, tools, tool_choice: "required" };
  const called = await client.chat.completions.create(calling);
  found.call = JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city;
  const runner = client.chat.completions.stream(calling);
  found.streamedCall = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function.name;

  const format = { type: "json_schema", json_schema: { name: "place", schema, strict: true } };
  const formed = await client.chat.completions.create({ model: "talker", messages, response_format: format });
  found.formed = JSON.parse(formed.choices[0].message.content).city;

  const embedded = await client.embeddings.create({ model: "talker", input: ["A cat.", "A dog."] });
  found.embedded = embedded.data.map((one) => one.embedding.length);
  const response = await client.responses.create({ model: "talker", input: "Once upon a time", max_output_tokens: 8, temperature: 0 });
  found.response = response.output_text;

  const line = { custom_id: "one", method: "POST", url: "/v1/chat/completions", body: asked };
  const file = await client.files.create({ file: await toFile(Buffer.from(JSON.stringify(line)), "in.jsonl"), purpose: "batch" });
  const window = { completion_window: "24h", endpoint: "/v1/chat/completions", input_file_id: file.id };
  let batch = await client.batches.create(window);
  while (!["completed", "failed"].includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
    batch = await client.batches.retrieve(batch.id);
  }
  const output = await (await client.files.content(batch.output_file_id)).text();
  found.batch = JSON.parse(output).response.body.choices[0].message.content;

  found.errors = [];
  for (const wrong of [{ model: "nobody" }, { n: 99 }, { colour: 1 }]) {
    try {
      await client.chat.completions.create({ ...asked, ...wrong });
    } catch (error) {
      found.errors.push([error.constructor.name, error.status, error.param]);
    }
  }
  const leaving = await client.chat.completions.create({ ...asked, max_tokens: 400, stream: true });
  for await (const _ of leaving) break; // which leaves
  console.log(JSON.stringify(found));
}

main();
