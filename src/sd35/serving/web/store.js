// What the page knows, in one place. Modules change it through these functions and hear of it by topic.

export const FINAL = new Set(["succeeded", "failed", "cancelled", "expired"]);
const ACTIVE = ["saving", "running", "loading", "queued"];

export const state = {
  capabilities: null, // GET capabilities
  models: [], // GET models
  stats: null, // GET stats
  jobs: new Map(), // id -> the job as the server tells it
  live: new Map(), // id -> {previews, clock}: what only its events tell
  found: null, // ids that the search found; null: no search
  next: null, // cursor of the following page
  selection: null, // {id, seed}: what the stage shows
  partner: null, // {id, seed}: what it is compared with
};

const listeners = new Map();

/** Hear of a topic: machine, jobs, progress, selection, language. */
export function on(topic, listener) {
  listeners.set(topic, [...(listeners.get(topic) ?? []), listener]);
}

export function tell(topic, ...news) {
  for (const listener of listeners.get(topic) ?? []) listener(...news);
}

export const isFinal = (job) => FINAL.has(job.state);
export const job = (id) => state.jobs.get(id);
export const modelNamed = (id) => state.capabilities?.models.find((model) => model.id === id);

/** Jobs that go on, those first that are nearest to their end. */
export function unfinished() {
  const rank = (one) => ACTIVE.indexOf(one.state) * 1e6 + (one.queue_position ?? 0);
  return [...state.jobs.values()].filter((one) => !isFinal(one)).sort((a, b) => rank(a) - rank(b));
}

/** Every picture to show, newest first, as {job, image}. */
export function pictures() {
  const shown = [...state.jobs.values()].filter((one) => !state.found || state.found.has(one.id));
  shown.sort((a, b) => b.created_at - a.created_at || (a.id < b.id ? 1 : -1));
  return shown.flatMap((one) => one.images.map((image) => ({ job: one, image })));
}

/** Take in what the server says of some jobs. */
export function merge(jobs) {
  for (const one of jobs) state.jobs.set(one.id, withKnownAddresses(one));
  tell("jobs");
}

export function forget(id) {
  state.jobs.delete(id);
  state.live.delete(id);
  tell("jobs");
}

export function select(selection) {
  state.selection = selection;
  tell("selection");
}

export function compareWith(partner) {
  state.partner = partner;
  tell("selection");
}

/** What a selection means now, as {job, image}; image is null while there is none. */
export function resolve(selection) {
  const one = selection && job(selection.id);
  if (!one) return null;
  const image = one.images.find((each) => String(each.seed) === String(selection.seed)) ?? one.images[0] ?? null;
  return { job: one, image };
}

export const same = (a, b) => Boolean(a && b && a.id === b.id && String(a.seed) === String(b.seed));

/** A signed address works for a while, so the one that the browser has fetched already is as good. */
function withKnownAddresses(one) {
  const known = new Map((job(one.id)?.images ?? []).map((image) => [image.sha256, image]));
  const images = one.images.map((image) => (isFresh(known.get(image.sha256)) ? known.get(image.sha256) : image));
  return { ...one, images: images.map((image) => ({ ...image, fetched: image.fetched ?? Date.now() })) };
}

const isFresh = (image) => image !== undefined && Date.now() - image.fetched < 15 * 60 * 1000;
