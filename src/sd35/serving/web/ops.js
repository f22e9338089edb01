// The operations page: how the server stands, read from the same routes that programs have.

import { ask, get } from "./api.js";
import { bars, line, phases, quantile } from "./charts.js";
import { byId, h, toast } from "./dom.js";
import { placeOf, placeWords } from "./places.js";
import { duration, gigabytes, number, preferred, speak, t } from "./i18n.js";

const PERIOD_MS = 3000;
const RECORDS = 300;
const IN_LINE = 12; // jobs of the queue that are shown
const STRETCHES = 24;
const PHASES = ["queue", "load", "encode", "denoise", "decode", "save"];
const UNFINISHED = new Set(["queued", "loading", "running", "saving"]);
const RETRIED = ["model", "prompt", "negative_prompt", "width", "height", "num_inference_steps", "guidance_scale", "seed", "n", "output_format"];

/** Everything the page shows, asked for at once. */
async function read() {
  const paths = ["stats", "models", `records?limit=${RECORDS}`, "alerts"];
  const [stats, models, { data: records }, alerts] = await Promise.all(paths.map(get));
  const waiting = records.filter((record) => UNFINISHED.has(record.state)).reverse().slice(0, IN_LINE);
  const jobs = await Promise.all(waiting.map(({ id }) => get(`jobs/${id}`)));
  return { stats, models: models.data, records, alerts, jobs: jobs.filter((job) => UNFINISHED.has(job.state)) };
}

async function refresh() {
  if (document.hidden) return;
  try {
    draw(await read());
    byId("trouble").hidden = true;
    byId("fresh").textContent = t("ops.fresh", { time: new Date().toLocaleTimeString(document.documentElement.lang) });
    document.body.dataset.ready = "true";
  } catch (error) {
    if (error.code === undefined) throw error;
    showTrouble(error);
  }
}

function draw({ stats, models, records, alerts, jobs }) {
  drawFigures(stats, records, jobs);
  byId("alerts-room").hidden = alerts.up.length + alerts.over.length === 0;
  rows("alerts", [...alerts.up, ...alerts.over].map(alertRow));
  rows("models", models.map((model) => modelRow(model, stats)));
  drawSwitches(stats);
  rows("queue", jobs.map(queueRow));
  rows("failures", records.filter((record) => record.state === "failed" || record.state === "expired").slice(0, 12).map(failureRow));
  drawCharts(records.filter((record) => !UNFINISHED.has(record.state)).reverse());
}

function drawFigures(stats, records, jobs) {
  const done = records.filter((record) => record.state === "succeeded");
  const failed = records.filter((record) => record.state === "failed" || record.state === "expired");
  const share = failed.length / Math.max(1, failed.length + done.length);
  const figures = [
    [number(stats.queued), t("ops.waiting")],
    [number(jobs.filter((job) => job.state === "running" || job.state === "saving").length), t("ops.running")],
    [quantileWords(done.map(total), 0.5), t("ops.median")],
    [`${number(100 * share, 1)}%`, t("ops.failed"), share > 0.05],
    [stats.megapixel_steps_per_s === null ? "–" : number(stats.megapixel_steps_per_s, 2), t("ops.rate")],
    stats.vram ? [`${number((100 * stats.vram.used_bytes) / stats.vram.total_bytes)}%`, t("ops.vram", { total: gigabytes(stats.vram.total_bytes) })] : null,
  ];
  byId("figures").replaceChildren(...figures.filter(Boolean).map(([value, words, isBad]) => h("li", { class: isBad ? "is-bad" : null }, h("strong", {}, value), h("span", {}, words))));
}

function drawCharts(ended) {
  const done = ended.filter((record) => record.state === "succeeded");
  byId("span").textContent = t("ops.span", { n: number(ended.length) });
  if (done.length === 0) {
    byId("charts").replaceChildren();
    return;
  }
  const seconds = (name) => done.map((record) => record[`${name}_s`]).filter((value) => value !== null);
  const means = PHASES.map((name) => ({ name: t(`phase.${name}`), seconds: mean(seconds(name)) }));
  byId("charts").replaceChildren(
    line(t("ops.wait"), middleAndTail(seconds("queue")), seconds("queue")),
    line(t("ops.total"), middleAndTail(done.map(total)), done.map(total)),
    bars(t("ops.ends"), t("ops.ends.words", { done: number(done.length), other: number(ended.length - done.length) }), stacks(ended)),
    h("figure", { class: "chart" }, phases(means.map((one) => ({ ...one, words: duration(one.seconds) }))), h("figcaption", {}, t("ops.phases"))),
  );
}

/** Ends over time: [succeeded, anything else] for equal stretches between the first and the last. */
function stacks(ended) {
  const times = ended.map((record) => record.finished_at ?? record.created_at);
  const [first, last] = [Math.min(...times), Math.max(...times)];
  const found = Array.from({ length: STRETCHES }, () => [0, 0]);
  ended.forEach((record, index) => {
    const at = Math.min(STRETCHES - 1, Math.floor(((times[index] - first) / Math.max(last - first, 1e-9)) * STRETCHES));
    found[at][record.state === "succeeded" ? 0 : 1] += 1;
  });
  return found;
}

const total = (record) => record.finished_at - record.created_at;
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);
const quantileWords = (values, share) => (values.length ? duration(quantile(values, share)) : "–");
const middleAndTail = (values) => t("ops.quantiles", { middle: quantileWords(values, 0.5), tail: quantileWords(values, 0.95) });

// ---- rows

function rows(id, items) {
  byId(id).replaceChildren(...(items.length ? items : [h("li", { class: "none" }, t("ops.none"))]));
}

function row(name, note, button = null, kind = null) {
  return h("li", { class: kind }, h("span", { class: "name" }, name), note ? h("span", { class: "note" }, note) : null, button ? h("span", { class: "end" }, button) : null);
}

const press = (words, act) => h("button", { type: "button", class: "secondary", onclick: act }, words);

function alertRow(alert) {
  const since = new Date(alert.began_at * 1000).toLocaleString(document.documentElement.lang);
  return row(`${alert.name} · ${alert.subject}`, `${alert.text} (${t("ops.since", { since })})`, null, alert.state);
}

function modelRow(model, stats) {
  const place = placeOf(model, stats);
  const verb = place === "disk" ? "load" : "unload";
  const act = async () => (await ask("POST", `models/${encodeURIComponent(model.id)}/${verb}`), refresh());
  const button = place !== "loading" ? press(t(`ops.${verb}`), guarded(act)) : null;
  return row(model.id, `${model.title ?? model.variant} · ${placeWords(place, model)}`, button);
}

function drawSwitches(stats) {
  const act = (verb) => guarded(async () => (await ask("POST", verb), refresh()));
  const verb = stats.paused ? "resume" : "pause";
  const switches = !stats.draining ? [press(t(`ops.${verb}`), act(verb)), sureOf(t("ops.drain"), act("drain"))] : [];
  if (byId("switches").dataset.verb !== `${verb} ${switches.length}`) byId("switches").replaceChildren(...switches);
  byId("switches").dataset.verb = `${verb} ${switches.length}`;
}

/** A button whose first press only asks. */
function sureOf(words, act) {
  let isSure = false;
  const button = press(words, () => {
    if (isSure) return act();
    isSure = true;
    button.textContent = t("ops.sure", { what: words });
  });
  return button;
}

function queueRow(job) {
  const { done, of } = job.progress;
  const step = job.state === "running" && of ? t("step", { done: number(done), of: number(of) }) : t(`state.${job.state}`);
  const stop = async () => (await ask("DELETE", `jobs/${job.id}`), toast(t("cancelled")), refresh());
  return row(job.request.prompt, `${step} · ${job.request.model} · ${job.request.width} × ${job.request.height} · ${job.priority}`, press(t("cancel"), guarded(stop)));
}

function failureRow(record) {
  const when = new Date(record.created_at * 1000).toLocaleString(document.documentElement.lang);
  const again = async () => {
    const body = Object.fromEntries(RETRIED.map((name) => [name, record[name]]));
    await ask("POST", "jobs", body);
    toast(t("ops.retried"));
    await refresh();
  };
  return row(record.prompt || record.id, `${record.error_code}: ${record.error_message} · ${when}`, record.prompt ? press(t("try.again"), guarded(again)) : null);
}

/** What a button does, with trouble said aloud. */
const guarded = (act) => () => act().catch((error) => toast(error.message));

function showTrouble(error) {
  const [title, words] = byId("trouble").children;
  byId("trouble").hidden = false;
  title.textContent = t(error.code === "unauthorized" ? "key.title" : "problem.unreachable");
  words.textContent = error.code === "unauthorized" ? t("ops.key") : error.message;
}

await speak(preferred());
document.title = t("ops.title");
await refresh();
setInterval(refresh, PERIOD_MS);
