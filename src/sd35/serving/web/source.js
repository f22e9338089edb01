// The picture to begin with: chosen, dropped, or taken from the gallery. It lives in this tab's memory and goes
// along with each request; the server keeps a copy for as long as a job needs it, under the SHA-256 that
// `known` files it by. So "use again" finds its picture as long as the tab is open.

import { byId, toast } from "./dom.js";
import { t } from "./i18n.js";
import { state } from "./store.js";

const LEVELS = [[35, "little"], [60, "some"], [80, "much"], [100, "most"]];

/** {name, width, height, address, data}: `address` for the page, `data` for the server. Null: from words alone. */
export let source = null;

const known = new Map(); // what a job calls it -> source
let changed = () => {};
let strength = () => 0;
let model = () => null; // that is chosen

/** Wire the part of the form; `form` says and takes what goes with the picture. */
export function startSource(form) {
  ({ changed, strength, model } = form);
  byId("start").addEventListener("click", () => byId("start-file").click());
  byId("start-file").addEventListener("change", (event) => {
    if (event.target.files[0]) begin(event.target.files[0]);
    event.target.value = "";
  });
  byId("start-remove").addEventListener("click", () => (put(null), byId("start").focus()));
  byId("strength").addEventListener("input", (event) => form.takeStrength(event.target.valueAsNumber / 100));
}

/** Begin with a file; whether it is a picture. */
export async function begin(file, name = file.name) {
  if (!model().image_to_image) return refuse("start.cannot", { model: model().id });
  const { formats, max_bytes } = state.capabilities.image;
  if (file.size > max_bytes) return refuse("start.large", { name, mb: Math.floor(max_bytes / 2 ** 20) });
  if (!formats.includes(file.type.replace("image/", ""))) return refuse("start.none", { name });
  const address = URL.createObjectURL(file);
  const picture = new Image();
  picture.src = address;
  try {
    await picture.decode();
    put({ name, width: picture.naturalWidth, height: picture.naturalHeight, address, data: await encoded(file) });
  } catch {
    URL.revokeObjectURL(address);
    return refuse("start.none", { name });
  }
  toast(t("start.done", { name }));
  return true;
}

/** Begin with a picture that was drawn here; one in a store elsewhere is out of a page's reach. */
export async function beginWith(url, name) {
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) return refuse("start.far");
  return begin(await answer.blob(), name);
}

/** A job was accepted with the picture: this is what it calls it. */
export const learn = (sha256) => source && sha256 && known.set(sha256, source);

/** What a job began with, null for words alone; where the picture is not at hand any more, that is said. */
export function takeBack(sha256) {
  if (sha256 && !known.has(sha256)) toast(t("start.again"));
  put(known.get(sha256) ?? null);
}

/** The size of its shape that has the model's own number of pixels. */
export function sizeLike({ width, height }, model) {
  const scale = model.native_size / Math.sqrt(width * height);
  const legal = (side) => Math.min(model.max_size, Math.max(1, Math.round((side * scale) / model.size_step)) * model.size_step);
  return { ratio: null, width: legal(width), height: legal(height) };
}

/** Another model was chosen: one that can't begin with a picture lets go of it, and says so. */
export function fitSource() {
  if (!source || model().image_to_image) return;
  refuse("start.cannot", { model: model().id });
  put(null);
}

/** Show it, with what its strength means; a model that can't begin with one offers nothing. */
export function drawSource() {
  byId("start").hidden = source !== null || !model().image_to_image;
  byId("start-picture").hidden = source === null;
  if (!source) return;
  if (byId("start-thumb").src !== source.address) byId("start-thumb").src = source.address;
  byId("start-thumb").alt = t("start.alt", { name: source.name });
  const percent = Math.round(100 * strength());
  const [, level] = LEVELS.find(([most]) => percent <= most);
  const words = t(`start.${level}`);
  byId("strength").value = percent;
  byId("strength").setAttribute("aria-valuetext", `${percent}%, ${words}`);
  byId("strength-words").textContent = words;
}

function put(next) {
  if (next === source) return;
  source = next;
  changed();
}

function refuse(words, gaps = {}) {
  toast(t(words, gaps));
  return false;
}

/** As a data: URL, which the server reads as it is. */
function encoded(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
