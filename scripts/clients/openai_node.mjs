// The official Node SDK. usage: node openai_node.mjs BASE_URL MODEL; each check is a line of JSON on standard output.

import OpenAI from "openai";

const [url = "http://127.0.0.1:8000", model = "default"] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url + "/v1", apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "Say hi." }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const must = (condition, what) => {
  if (!condition) throw new Error(what);
};

const checks = {
  "chat": async () => {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 8, store: false });
    must(answer.choices[0].message.content.length > 0, "no text");
  },
  "stream, and its helper": async () => {
    const stream = client.chat.completions.stream({ model, messages, max_tokens: 8 });
    must((await stream.finalChatCompletion()).choices[0].message.content.length > 0, "no text");
  },
  "abort": async () => {
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const _ of stream) break;
    stream.controller.abort();
  },
  "tools: required, streamed": async () => {
    const stream = client.chat.completions.stream({ model, messages, tools, tool_choice: "required", parallel_tool_calls: false });
    const [call] = (await stream.finalChatCompletion()).choices[0].message.tool_calls;
    must(["Oslo", "Rome"].includes(JSON.parse(call.function.arguments).city), call.function.arguments);
  },
  "response_format: json_schema": async () => {
    const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } };
    const answer = await client.chat.completions.create({ model, messages, response_format });
    must("city" in JSON.parse(answer.choices[0].message.content), "no city");
  },
  "models": async () => must((await client.models.list()).data.length > 0, "none"),
};

let failed = false;
for (const [check, go] of Object.entries(checks)) {
  let why = "";
  try {
    await go();
  } catch (error) {
    failed = true;
    why = String(error).slice(0, 300);
  }
  console.log(JSON.stringify({ check, why }));
}
process.exit(failed ? 1 : 0);
