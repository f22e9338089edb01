// The large picture: what is selected, being drawn, gone wrong, or compared; and prompts to begin with.

import { byId, h, icon, say } from "./dom.js";
import { duration, gigabytes, number, t } from "./i18n.js";
import { anySeed, fill, go } from "./composer.js";
import { dismiss, erase, remaining } from "./jobs.js";
import { openLightbox } from "./lightbox.js";
import { loadedShare } from "./places.js";
import { asCurl, asPython, settingsFrom } from "./recipe.js";
import { beginWith } from "./source.js";
import { compareWith, isFinal, on, pictures, resolve, select, state } from "./store.js";
import { copy, onTrouble, troubleCard, waysOut } from "./words.js";

const ENLARGED = 2; // times its own size; a small picture shown larger is only a blur
const CELLS = 4; // previews on the stage at once
const SURE_MS = 4000;
const NOT_DRAWING = new Set(["queue", "load", "save"]);

let shown = null; // what the stage was built for
let trouble = null; // what went wrong before there was a job: {problem, again}

export function startStage() {
  on("selection", () => ((trouble = null), draw()));
  on("jobs", draw);
  on("progress", progress);
  on("language", () => ((shown = null), draw()));
  draw();
}

/** Show why nothing could be sent. */
export function showTrouble(problem, again) {
  trouble = { problem, again };
  draw();
  byId("stage").scrollIntoView({ block: "nearest" });
}

function draw() {
  const what = scene();
  if (what.key !== shown) {
    shown = what.key;
    byId("stage").replaceChildren(what.build());
  }
  if (what.job) progress(what.job.id);
}

/** What belongs on the stage, with a key that changes when it has to be built anew. */
function scene() {
  if (trouble) return { key: trouble, build: () => refusal(trouble) };
  const found = resolve(state.selection);
  if (!found) return { key: `welcome ${pictures().length > 0}`, build: welcome };
  const { job, image } = found;
  if (image && resolve(state.partner)?.image) {
    const other = resolve(state.partner);
    return { key: `${job.id}/${image.seed}|${other.job.id}/${other.image.seed}`, build: () => comparison(other, found) };
  }
  if (image) return { key: `${job.id}/${image.seed} of ${job.images.length}`, build: () => picture(job, image) };
  if (!isFinal(job)) return { key: `${job.id}/work`, build: () => work(job), job };
  if (job.state === "succeeded" || job.state === "cancelled") return { key: "welcome", build: welcome };
  return { key: `${job.id}/failed`, build: () => failure(job) };
}

function welcome() {
  const prompts = state.capabilities?.models[0].prompts ?? [];
  return h("div", { class: "welcome" },
    h("h2", {}, t("welcome")),
    h("p", {}, t("welcome.words")),
    h("ul", {}, prompts.map((prompt) =>
      h("li", {}, h("button", { type: "button", onclick: () => (fill({ prompt }), byId("prompt").focus()) }, prompt)),
    )),
  );
}

function refusal({ problem, again }) {
  const away = [t("dismiss"), () => ((trouble = null), draw())];
  const ways = again && problem.code !== "prompt_blocked" ? [[t("try.again"), () => ((trouble = null), again())], away] : [away];
  return troubleCard(problem, ways);
}

function failure(job) {
  const error = job.error ?? { code: job.state === "expired" ? "deadline_passed" : "internal_error", message: "" };
  const ways = waysOut(error, job.request).map(([words, once]) => [words, () => retry(job, once)]);
  const away = () => (dismiss(job.id), select(null));
  return h("div", { class: "failure" }, troubleCard(error, [...ways, [t("dismiss"), away]]), h("blockquote", {}, job.request.prompt));
}

function retry(job, once) {
  const { n } = job.request;
  fill({ ...settingsFrom(job, job.request.seed), n, ...once, seed: "seed" in once ? anySeed() : String(job.request.seed) });
  dismiss(job.id);
  go();
}

// ---- a picture being drawn

function work(job) {
  const cells = Array.from({ length: Math.min(job.request.n, CELLS) }, () => h("span", { class: "cell" }, h("img", { alt: t("preview"), hidden: true })));
  const frame = h("div", { class: "frame is-working" }, cells, h("span", { class: "breath" }));
  frame.dataset.cells = cells.length;
  fit(frame, job.request);
  const bar = h("div", { class: "steps", role: "progressbar", "aria-label": t("progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, h("span", {}));
  return h("figure", { class: "figure" },
    frame, bar,
    h("figcaption", {}, h("p", { class: "status" }), h("p", { class: "caption" }, job.request.prompt)),
  );
}

function progress(id) {
  const found = resolve(state.selection);
  const stage = byId("stage");
  if (found?.job.id !== id || !stage.querySelector(".is-working")) return;
  const { job } = found;
  const { done, of } = job.progress;
  const bar = stage.querySelector(".steps");
  const isDrawing = job.state === "running" && of > 0;
  bar.classList.toggle("is-waiting", !isDrawing && job.state !== "saving");
  bar.firstChild.style.width = of ? `${(100 * done) / of}%` : "";
  if (isDrawing) bar.setAttribute("aria-valuenow", Math.round((100 * done) / of));
  else bar.removeAttribute("aria-valuenow");
  stage.querySelectorAll(".cell img").forEach((image, number) => {
    const preview = state.live.get(id)?.previews.get(number);
    image.hidden = !preview;
    if (preview && image.src !== preview) image.src = preview;
  });
  stage.querySelector(".status").textContent = status(job);
}

/** Where a job stands, and how long it takes. */
function status(job) {
  const { done, of } = job.progress;
  const words = {
    queued: () => (job.queue_position ? t("queue.place", { n: number(job.queue_position) }) : t("queue.next")),
    loading: () => loading(job),
    running: () => (of ? t("step", { done: number(done), of: number(of) }) : t("state.running")),
    saving: () => t("state.saving"),
  }[job.state]?.() ?? "";
  const left = remaining(job);
  return left === null ? words : `${words} · ${t("left", { time: duration(Math.max(1, Math.round(left))) })}`;
}

function loading(job) {
  const row = state.models.find((model) => model.id === job.request.model);
  const share = loadedShare(row);
  return share === null ? t("state.loading") : t("loading.share", { n: number(share * 100) });
}

// ---- a picture

function picture(job, image) {
  const enlarge = h("button", { type: "button", class: "frame", "aria-label": t("full-size"), onclick: () => openLightbox(job, image) },
    h("img", { src: image.url, alt: job.request.prompt, decoding: "async" }));
  fit(enlarge, image);
  return h("figure", { class: "figure" },
    enlarge,
    job.images.length > 1 ? siblings(job, image) : null,
    h("figcaption", {},
      h("p", { class: "caption" }, job.request.prompt),
      facts(job, image),
      actions(job, image),
      parameters(job, image),
    ),
  );
}

function siblings(job, image) {
  return h("div", { class: "siblings" }, job.images.map((one, index) =>
    h("button", { type: "button", "aria-current": String(one.seed === image.seed), "aria-label": t("sibling", { n: number(index + 1) }), onclick: () => select({ id: job.id, seed: one.seed }) },
      h("img", { src: one.url, alt: "" })),
  ));
}

/** Seconds and peak memory, under each picture. */
function facts(job, image) {
  const found = [
    h("span", { class: "fact-seconds" }, duration(drawingSeconds(job))),
    job.peak_vram_bytes ? h("span", {}, t("peak", { bytes: gigabytes(job.peak_vram_bytes) })) : null,
    h("span", {}, `${image.width} × ${image.height}`),
    h("span", {}, t("seed.fact", { seed: image.seed })),
    job.request.strength && h("span", {}, t("start.fact", { percent: Math.round(100 * job.request.strength) })),
    h("span", {}, job.request.model),
  ];
  return h("p", { class: "facts" }, found.filter(Boolean));
}

const drawingSeconds = (job) =>
  Object.entries(job.seconds).reduce((sum, [phase, seconds]) => (NOT_DRAWING.has(phase) ? sum : sum + seconds), 0);

function actions(job, image) {
  const settings = settingsFrom(job, image.seed);
  return h("div", { class: "actions" },
    action("again", "use-again", () => (fill(settings), byId("prompt").focus())),
    action("vary", "vary", () => (fill({ ...settings, seed: anySeed() }), fillUnlocked(), go())),
    action("compare", "compare", () => compare(job, image)),
    action("start", "start.it", () => beginWith(image.url, fileName(job, image)).then((begun) => begun && byId("prompt").focus())),
    h("a", { class: "action", href: image.url, download: fileName(job, image), rel: "noreferrer" }, icon("download"), t("download")),
    codeMenu(settings),
    bin(job, image),
  );
}

/** A variation's seed is not one to hold on to. */
const fillUnlocked = () => byId("lock").getAttribute("aria-pressed") === "true" && byId("lock").click();

const action = (drawing, name, act) => h("button", { type: "button", class: "action", onclick: act }, icon(drawing), t(name));

function codeMenu(settings) {
  const entry = (words, text) => h("button", { type: "button", onclick: (event) => (copy(text()), event.target.closest("details").removeAttribute("open")) }, words);
  return h("details", { class: "menu" },
    h("summary", { class: "action" }, icon("code"), t("copy")),
    h("div", { class: "sheet" }, entry(t("copy.curl"), () => asCurl(settings)), entry(t("copy.python"), () => asPython(settings))),
  );
}

/** Deleting takes two presses: the second one within a few seconds. */
function bin(job, image) {
  const words = h("span", {}, t("delete"));
  const button = h("button", { type: "button", class: "action is-grave" }, icon("bin"), words);
  let isSure = false;
  button.addEventListener("click", async () => {
    if (isSure) return remove(job, image).catch(onTrouble);
    isSure = true;
    words.textContent = t("delete.sure");
    button.classList.add("is-sure");
    setTimeout(() => ((isSure = false), (words.textContent = t("delete")), button.classList.remove("is-sure")), SURE_MS);
  });
  return button;
}

async function remove(job, image) {
  const next = nextTo(job, image);
  await erase(job.id, image.seed);
  select(next ? { id: next.job.id, seed: next.image.seed } : null);
  say(t("deleted"));
  byId("stage").focus({ preventScroll: true });
}

/** The next older picture, or the next newer one of the oldest, as {job, image}. */
function nextTo(job, image) {
  const all = pictures();
  const at = all.findIndex((one) => one.job.id === job.id && one.image.seed === image.seed);
  return all[at + 1] ?? all[at - 1];
}

function parameters(job, image) {
  const { request } = job;
  const rows = [
    ["prompt", request.prompt], ["negative", request.negative_prompt], ["checkpoint", request.model],
    ["size", `${image.width} × ${image.height}`], ["steps", request.num_inference_steps], ["guidance", request.guidance_scale],
    ["seed", image.seed], ["when", new Date(job.created_at * 1000).toLocaleString(document.documentElement.lang)],
    ...Object.entries(job.seconds).map(([phase, seconds]) => [`phase.${phase}`, t("seconds", { n: number(seconds, 2) })]),
    ["sha256", image.sha256], ["job", job.id],
  ];
  return h("details", { class: "parameters" },
    h("summary", {}, t("parameters")),
    h("dl", {}, rows.filter(([, value]) => value !== "").flatMap(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, String(value))])),
  );
}

// ---- two pictures

/** With the next older picture; a tile chosen afterwards takes its place. */
function compare(job, image) {
  const other = nextTo(job, image);
  if (other) compareWith({ id: other.job.id, seed: other.image.seed });
}

function comparison(before, after) {
  const sides = [before, after].map(({ job, image }, index) => {
    const frame = h("button", { type: "button", class: "frame", "aria-label": t("full-size"), onclick: () => openLightbox(job, image) }, h("img", { src: image.url, alt: job.request.prompt }));
    fit(frame, image, 0.5);
    return h("figure", { class: "figure" }, frame, h("figcaption", {}, h("p", { class: "caption" }, difference(job.request.prompt, [after, before][index].job.request.prompt)), differences({ job, image }, [after, before][index])));
  });
  return h("div", { class: "comparison" },
    h("div", { class: "pair" }, sides),
    h("p", { class: "quiet" }, t("compare.words")),
    h("button", { type: "button", class: "secondary", onclick: () => compareWith(null) }, t("compare.end")),
  );
}

/** The prompt, with the words marked that the other one lacks. */
function difference(prompt, other) {
  const theirs = new Set(other.toLowerCase().split(/[\s,]+/));
  return prompt.split(/(\s+)/).map((word) => (!word.trim() || theirs.has(word.toLowerCase().replace(/,/g, "")) ? word : h("mark", {}, word)));
}

function differences(one, other) {
  const facts = ({ job, image }) => ({
    size: `${image.width} × ${image.height}`, steps: job.request.num_inference_steps, guidance: job.request.guidance_scale,
    seed: image.seed, checkpoint: job.request.model, negative: job.request.negative_prompt, took: duration(drawingSeconds(job)),
  });
  const theirs = facts(other);
  const rows = Object.entries(facts(one)).filter(([name, value]) => value !== theirs[name] && value !== "");
  return h("p", { class: "facts" }, rows.map(([name, value]) => h("span", {}, `${t(name)} ${value}`)));
}

/** As large as the room allows, but not enlarged into a blur. */
function fit(frame, { width, height }, share = 1) {
  frame.style.setProperty("--width", width * ENLARGED * share);
  frame.style.setProperty("--ratio", (width / height).toFixed(4));
}

function fileName(job, image) {
  const words = job.request.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${words || "picture"}-${image.seed}.${job.request.output_format}`;
}
