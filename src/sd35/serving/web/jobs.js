// Jobs from the button to their end. The server keeps them, so a reload only asks again.
//
// At most two event streams are open, and none while the page is hidden: a browser gives one host six
// connections for all its tabs. What no stream tells (places in the queue, other people's jobs) is asked for.

import { ask, events, get } from "./api.js";
import { keep, recall } from "./memory.js";
import { isFinal, job, merge, select, state, tell, unfinished } from "./store.js";

const STREAMS = 2;
const BUSY_MS = 1500;
const IDLE_MS = 8000;
const PAGE = 40;

const streams = new Map(); // job id -> AbortController
const lastEvent = new Map(); // job id -> id of the last event seen
let ticking;

/** Jobs that this tab asked for: their failures are shown until someone has read them. */
const mine = new Set(recall("mine", [], "sessionStorage"));
const dismissed = new Set();

/** Send a request under a name of our own, so that sending it twice draws it once. */
export async function submit(request) {
  const name = `web-${crypto.getRandomValues(new Uint32Array(4)).join("-")}`;
  const accepted = await onceMore(() => ask("PUT", `jobs/${name}`, request));
  mine.add(accepted.id);
  keep("mine", [...mine].slice(-100), "sessionStorage");
  merge([accepted]);
  select({ id: accepted.id, seed: accepted.request.seed });
  tick();
  return accepted;
}

export async function cancel(id) {
  merge([await ask("DELETE", `jobs/${id}`)]);
}

/** Erase one picture; what the server kept of it is gone when this returns. */
export async function erase(id, seed) {
  merge([await ask("DELETE", `jobs/${id}/images/${seed}`)]);
}

/** Failures of this tab's jobs that nobody has put away. */
export const failures = () =>
  [...state.jobs.values()].filter(
    (one) => (one.state === "failed" || one.state === "expired") && mine.has(one.id) && !dismissed.has(one.id),
  );

export function dismiss(id) {
  dismissed.add(id);
  mine.delete(id);
  keep("mine", [...mine], "sessionStorage");
  tell("jobs");
}

/** The job that Cancel means: the last one of this tab that goes on. */
export function latestOfMine() {
  return unfinished()
    .filter((one) => mine.has(one.id))
    .sort((a, b) => b.created_at - a.created_at)[0];
}

/** The newest jobs, and everything that goes on. */
export async function load() {
  const page = await get(`jobs?limit=${PAGE}`);
  state.next = page.next;
  merge(page.data);
  tick();
}

/** The page of pictures after the last one. */
export async function loadMore() {
  const page = await get(`jobs?with_images=true&limit=${PAGE}&cursor=${encodeURIComponent(state.next)}`);
  state.next = page.next;
  merge(page.data);
}

/** Only pictures whose prompt has these words; none: all again. */
export async function search(words) {
  if (!words) {
    state.found = null;
    tell("jobs");
    return;
  }
  const page = await get(`jobs?with_images=true&limit=100&q=${encodeURIComponent(words)}`);
  state.found = new Set(page.data.map((one) => one.id));
  merge(page.data);
}

/** Ask again and again how things stand: often while something goes on, hardly ever while nobody looks. */
export function tick() {
  clearTimeout(ticking);
  if (document.hidden) return;
  follow();
  ticking = setTimeout(async () => {
    await refresh();
    tick();
  }, unfinished().length ? BUSY_MS : IDLE_MS);
}

document.addEventListener("visibilitychange", async () => {
  if (document.hidden) {
    clearTimeout(ticking);
    for (const controller of streams.values()) controller.abort();
    return;
  }
  await refresh();
  tick();
});

async function refresh() {
  try {
    const known = new Set(unfinished().map((one) => one.id));
    const [page, models, stats] = await Promise.all([get(`jobs?limit=${PAGE}`), get("models"), get("stats")]);
    Object.assign(state, { models: models.data, stats });
    merge(page.data);
    const older = [...known].filter((id) => !page.data.some((one) => one.id === id));
    merge(await Promise.all(older.slice(0, 4).map((id) => get(`jobs/${id}`))));
    tell("machine", true);
  } catch (error) {
    tell("machine", false, error);
  }
}

/** Open the streams that should be open. */
function follow() {
  if (document.hidden) return;
  for (const one of unfinished().slice(0, STREAMS)) if (!streams.has(one.id)) listen(one.id);
}

async function listen(id) {
  const controller = new AbortController();
  streams.set(id, controller);
  try {
    for await (const event of events(id, lastEvent.get(id) ?? "0", controller.signal)) take(id, event);
    merge([await get(`jobs/${id}`)]);
  } catch (error) {
    if (error.name !== "AbortError") tell("machine", false, error);
  } finally {
    streams.delete(id);
  }
  if (!job(id) || !isFinal(job(id))) return; // cut off: the next tick tries again, in its own time
  forgetEvents(id);
  follow();
}

function take(id, event) {
  lastEvent.set(id, event.id);
  const one = job(id);
  if (!one || isFinal(one)) return;
  const live = state.live.get(id) ?? { previews: new Map(), clock: null };
  state.live.set(id, live);
  if (event.name === "preview") live.previews.set(event.data.picture, asAddress(event.data.b64_json));
  if (event.name === "progress") {
    one.progress = event.data;
    live.clock ??= { at: performance.now(), done: event.data.done };
  }
  if (event.name === "state") {
    if (event.data.state === "queued") Object.assign(live, { previews: new Map(), clock: null });
    if (isFinal(event.data)) return; // the whole job follows when the stream ends
    one.state = event.data.state;
    tell("jobs");
  }
  tell("progress", id);
}

function forgetEvents(id) {
  lastEvent.delete(id);
  state.live.delete(id);
}

/** Pictures say themselves what they are, by their first bytes in base64. */
function asAddress(base64) {
  const type = base64.startsWith("/9j/") ? "jpeg" : base64.startsWith("UklG") ? "webp" : "png";
  return `data:image/${type};base64,${base64}`;
}

/** Once again where the network, and not the server, said no. */
async function onceMore(work) {
  try {
    return await work();
  } catch (error) {
    if (error.code !== "unreachable") throw error;
    await new Promise((resolve) => setTimeout(resolve, 700));
    return work();
  }
}

/** Seconds until a job is done, as far as anyone can tell; null where nobody can. */
export function remaining(one) {
  const live = state.live.get(one.id);
  const { done, of } = one.progress;
  if (one.state === "queued") return one.eta_s === null ? null : one.eta_s + remainingOfRunning();
  if (!live?.clock || done <= live.clock.done) return null;
  return ((performance.now() - live.clock.at) / 1000 / (done - live.clock.done)) * (of - done);
}

function remainingOfRunning() {
  const running = unfinished().filter((one) => one.state === "running");
  return running.reduce((sum, one) => sum + (remaining(one) ?? 0), 0);
}
