// The server's native face. Event streams are read with fetch, because EventSource can't send a key.

import { keep, recall } from "./memory.js";

export const ROOT = new URL("../", import.meta.url);
const API = new URL("api/v1/", ROOT);

/** Why something was not done: the server's code and sentence, or `unreachable`. */
export class Problem extends Error {
  constructor(code, message, { status = 0, retryAfter = null, param = null } = {}) {
    super(message);
    Object.assign(this, { code, status, retryAfter, param });
  }
}

export const key = () => recall("key", "");
export const setKey = (value) => keep("key", value || null);

/** Ask, and get what the answer holds; throws a Problem. */
export async function ask(method, path, body = undefined) {
  const answer = await reach(path, {
    method,
    body: body === undefined ? undefined : write(body),
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
  });
  return parse(await answer.text());
}

/** JSON, but for seeds beyond what a JavaScript number holds: those stay digits. */
export function parse(text) {
  return JSON.parse(text, (name, value, context) =>
    name === "seed" && !Number.isSafeInteger(value) && context?.source ? context.source : value,
  );
}

/** JSON again, with every seed as a number. */
export function write(value, indent = undefined) {
  const number = (seed) => (Number.isSafeInteger(Number(seed)) || !JSON.rawJSON ? Number(seed) : JSON.rawJSON(seed));
  return JSON.stringify(value, (name, each) => (name === "seed" ? number(each) : each), indent);
}

export const get = (path) => ask("GET", path);

/** What happens to a job after event `last`, as {id, name, data}, until it ends or `signal` aborts. */
export async function* events(jobId, last, signal) {
  const headers = { "Last-Event-ID": last };
  const answer = await reach(`jobs/${jobId}/events`, { headers, signal, cache: "no-store" });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    yield* blocks.map(readEvent);
  }
}

function readEvent(block) {
  const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
  return { id: fields.id, name: fields.event, data: JSON.parse(fields.data) };
}

async function reach(path, options) {
  const headers = { ...options.headers, ...(key() ? { Authorization: `Bearer ${key()}` } : {}) };
  let answer;
  try {
    answer = await fetch(new URL(path, API), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("unreachable", String(error.message ?? error));
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer) {
  const retryAfter = Number(answer.headers.get("retry-after")) || null;
  let error = {};
  try {
    ({ error } = await answer.json());
  } catch {
    error = { code: "internal_error", message: `${answer.status} ${answer.statusText}` };
  }
  return new Problem(error.code, error.message, { status: answer.status, retryAfter, param: error.param });
}
