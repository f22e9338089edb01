// The form: what to draw. It remembers itself between visits, and takes settings over from pictures.

import { byId, h, icon, toast } from "./dom.js";
import { number, t } from "./i18n.js";
import { cancel, latestOfMine, submit } from "./jobs.js";
import { keep, recall } from "./memory.js";
import { drawSource, fitSource, learn, sizeLike, source, startSource, takeBack } from "./source.js";
import { modelNamed, on, state } from "./store.js";
import { inWords, onTrouble } from "./words.js";

const QUALITIES = ["fast", "balanced", "best"];
const CONTROL = /Mac|iP/.test(navigator.platform) ? "⌘" : "Ctrl";
const DOUBLE_CLICK_MS = 700;

const EMPTY = {
  prompt: "", negative_prompt: "", model: null, ratio: "1:1", width: null, height: null, n: 1,
  quality: "balanced", num_inference_steps: null, guidance_scale: null, seed: "", locked: false,
  strength: null,
};

let form = { ...EMPTY };
let turnedAt = 0; // when the button last changed its meaning
let isSending = false; // a double click asks once

/** Wire the form; capabilities are there. */
export function startComposer() {
  form = { ...EMPTY, strength: state.capabilities.strength, ...recall("form", {}) };
  startSource({
    changed: takeShape,
    model: () => modelNamed(form.model),
    strength: () => form.strength,
    takeStrength: (strength) => change({ strength }),
  });
  if (!modelNamed(form.model)) takeModel(state.capabilities.models[0].id);
  for (const [id, field] of [["prompt", "prompt"], ["negative", "negative_prompt"]])
    byId(id).addEventListener("input", (event) => change({ [field]: event.target.value }));
  byId("steps").addEventListener("change", readNumber("num_inference_steps"));
  byId("guidance").addEventListener("change", readNumber("guidance_scale"));
  byId("seed").addEventListener("change", (event) => change({ seed: event.target.value.replace(/\D/g, ""), locked: true }));
  byId("dice").addEventListener("click", () => change({ seed: anySeed() }));
  byId("lock").addEventListener("click", () => change({ locked: !form.locked, seed: form.seed || anySeed() }));
  byId("model").addEventListener("change", (event) => (takeModel(event.target.value), fitSource(), draw()));
  byId("composer").addEventListener("submit", (event) => (event.preventDefault(), pressed()));
  byId("another").addEventListener("click", () => go());
  byId("prompt").addEventListener("input", hideMistake);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) (event.preventDefault(), go());
  });
  on("jobs", drawButton);
  on("language", draw);
  draw();
}

/** Take over settings: from a picture, or part of them from an error's way out. Null leaves a field. */
export function fill(settings) {
  const { image, ...others } = settings;
  if (image !== undefined) takeBack(image);
  const given = Object.fromEntries(Object.entries(others).filter(([, value]) => value !== null));
  const model = modelNamed(given.model) ? given.model : form.model;
  const merged = { ...form, ...given, model, locked: given.seed !== undefined || form.locked };
  form = { ...merged, ratio: ratioOf(merged), quality: qualityOf(merged) };
  change({});
}

/** Draw what the form says, with changes for this once. */
export async function go(once = {}) {
  if (isSending) return;
  if (!form.prompt.trim()) {
    showMistake(t("prompt.missing"));
    return;
  }
  isSending = true;
  if (!form.locked) change({ seed: anySeed() });
  try {
    const accepted = await submit({ ...request(), ...once });
    learn(accepted.request.image);
    byId("stage").scrollIntoView({ block: "nearest" });
  } catch (error) {
    onTrouble(error, () => go(once));
    if (error.param === "prompt") showMistake(inWords(error).title);
  } finally {
    isSending = false;
  }
}

/** The body of a job, from the form. */
export function request() {
  const { prompt, negative_prompt, width, height, n, num_inference_steps, guidance_scale, seed } = form;
  const { max_previews } = state.capabilities;
  return {
    prompt, negative_prompt, width, height, n, num_inference_steps, guidance_scale, seed,
    model: preset()?.model ?? form.model,
    previews: max_previews,
    ...(source && { image: source.data, strength: form.strength }),
  };
}

/** A picture came to begin with, or went: its shape is the form's. */
function takeShape() {
  const model = modelNamed(form.model);
  const size = source ? sizeLike(source, model) : (model.sizes.find((one) => one.ratio === form.ratio) ?? model.sizes[0]);
  change({ ...size, ratio: ratioOf({ ...form, ...size }) });
}

/** 32 random bits, which every program can write. */
export const anySeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

function pressed() {
  const running = latestOfMine();
  if (!running) {
    go();
    return;
  }
  if (performance.now() - turnedAt < DOUBLE_CLICK_MS) return;
  cancel(running.id).then(() => toast(t("cancelled")), onTrouble);
}

function change(part) {
  form = { ...form, ...part };
  keep("form", form);
  draw();
}

function takeModel(id) {
  const model = modelNamed(id);
  const own = source ? sizeLike(source, model) : model.sizes[0];
  const size = model.sizes.find((one) => one.ratio === form.ratio) ?? own;
  form = { ...form, model: id, ...size };
  takeQuality(form.quality ?? "balanced");
}

function takeQuality(quality) {
  const { num_inference_steps, guidance_scale } = modelNamed(form.model).presets[quality];
  change({ quality, num_inference_steps, guidance_scale });
}

const preset = () => (form.quality ? modelNamed(form.model).presets[form.quality] : null);

const ratioOf = ({ model, width, height }) =>
  modelNamed(model).sizes.find((size) => size.width === width && size.height === height)?.ratio ?? null;

function qualityOf({ model, num_inference_steps, guidance_scale }) {
  const { presets } = modelNamed(model);
  return QUALITIES.find((name) => {
    const one = presets[name];
    return one.model === model && one.num_inference_steps === num_inference_steps && one.guidance_scale === guidance_scale;
  }) ?? null;
}

function readNumber(field) {
  return (event) => {
    const value = event.target.valueAsNumber;
    if (Number.isFinite(value)) change({ [field]: value, quality: null });
    else draw();
  };
}

// ---- drawing the form

function draw() {
  const model = modelNamed(form.model);
  setValue("prompt", form.prompt);
  setValue("negative", form.negative_prompt);
  setValue("steps", form.num_inference_steps);
  setValue("guidance", form.guidance_scale);
  setValue("seed", form.seed);
  drawLock();
  drawSource();
  radios("shapes", shapes(model), form.ratio ?? "own", (ratio) => change(model.sizes.find((size) => size.ratio === ratio)));
  const counts = Array.from({ length: Math.min(4, state.capabilities.max_images) }, (_, index) => index + 1);
  radios("counts", counts.map((n) => [String(n), [number(n)]]), String(form.n), (n) => change({ n: Number(n) }));
  radios("qualities", QUALITIES.map((name) => [name, [t(`quality.${name}`)]]), form.quality, takeQuality);
  options("model", state.capabilities.models.map(({ id }) => [id, id]), form.model);
  options("scheduler", model.schedulers.map((name) => [name, t(`scheduler.${name}`)]), model.schedulers[0]);
  drawButton();
}

function shapes(model) {
  const sizes = form.ratio ? model.sizes : [...model.sizes, { ...form, ratio: "own" }];
  return sizes.map((size) => [size.ratio, [outline(size), h("span", {}, size.ratio === "own" ? t("shape.own") : size.ratio)], `${size.width} × ${size.height}`]);
}

/** A rectangle of the picture's shape: 15 px are the longer side's half of what a chip leaves. */
function outline({ width, height }) {
  const box = h("i", { class: "outline" });
  const scale = 22 / Math.max(width, height);
  box.style.width = `${width * scale}px`;
  box.style.height = `${height * scale}px`;
  return box;
}

/** Radio buttons as chips; rebuilt only when the choice of choices changes, so that focus stays. */
function radios(place, choices, value, chosen) {
  const group = byId(place);
  const shape = JSON.stringify(choices.map(([name, content, title]) => [name, title, content.map((part) => part.textContent ?? part)]));
  if (group.dataset.shape !== shape) {
    group.dataset.shape = shape;
    group.replaceChildren(...choices.map(([name, content, title]) =>
      h("label", { class: "chip", title }, h("input", { type: "radio", name: place, value: name }), h("span", { class: "face" }, ...content)),
    ));
  }
  group.onchange = (event) => chosen(event.target.value);
  for (const input of group.querySelectorAll("input")) input.checked = input.value === value;
}

function options(place, choices, value) {
  byId(place).replaceChildren(...choices.map(([name, title]) => h("option", { value: name, selected: name === value }, title)));
  byId(place).disabled = choices.length < 2;
}

function setValue(id, value) {
  const field = byId(id);
  if (field.value !== String(value ?? "")) field.value = value ?? "";
}

function drawLock() {
  const lock = byId("lock");
  lock.setAttribute("aria-pressed", String(form.locked));
  lock.replaceChildren(icon(form.locked ? "lock" : "unlock"));
}

function drawButton() {
  const isBusy = latestOfMine() !== undefined;
  const go = byId("go");
  if (go.classList.contains("is-cancel") !== isBusy) turnedAt = performance.now();
  go.classList.toggle("is-cancel", isBusy);
  byId("go-word").textContent = t(isBusy ? "cancel" : "generate");
  byId("go-keys").textContent = isBusy ? "" : t("keys", { control: CONTROL });
  byId("another").hidden = !isBusy;
}

function showMistake(words) {
  const place = byId("prompt-mistake");
  place.textContent = words;
  place.hidden = false;
  byId("prompt").setAttribute("aria-invalid", "true");
  byId("prompt").focus();
}

function hideMistake() {
  byId("prompt-mistake").hidden = true;
  byId("prompt").removeAttribute("aria-invalid");
}
