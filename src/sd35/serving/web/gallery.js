// All pictures, newest first, with what is being drawn before them. Tiles are kept while they stay, so focus does too.

import { arrange, byId, h, icon } from "./dom.js";
import { t } from "./i18n.js";
import { cancel, dismiss, failures, loadMore, search } from "./jobs.js";
import { compareWith, on, pictures, same, select, state, unfinished } from "./store.js";
import { inWords, onTrouble } from "./words.js";

const TYPING_MS = 250;

const kept = new Map(); // key -> tile
let typing;

export function startGallery() {
  byId("search").addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => search(event.target.value.trim()).catch(onTrouble), TYPING_MS);
  });
  byId("more").addEventListener("click", () => loadMore().catch(onTrouble));
  on("jobs", draw);
  on("selection", mark);
  on("language", () => (kept.clear(), draw()));
  on("progress", progress);
  draw();
}

/** The picture before (-1) or after (1) the selected one. */
export function neighbour(distance) {
  const all = pictures().map(({ job, image }) => ({ id: job.id, seed: image.seed }));
  const at = all.findIndex((one) => same(one, state.selection));
  return all[at + distance];
}

function draw() {
  const shown = pictures();
  const tiles = [
    ...(state.found ? [] : [...unfinished().reverse().map(working), ...failures().map(failed)]),
    ...shown.map(finished),
  ];
  arrange(byId("tiles"), tiles);
  for (const key of kept.keys()) if (!tiles.includes(kept.get(key))) kept.delete(key);
  byId("no-tiles").hidden = tiles.length > 0;
  byId("no-tiles").textContent = t(state.found ? "search.none" : "gallery.empty");
  byId("more").hidden = state.next === null || state.found !== null;
  mark();
}

function tile(key, make) {
  if (!kept.has(key)) kept.set(key, make());
  return kept.get(key);
}

function finished({ job, image }) {
  return tile(`${job.id}/${image.seed}`, () => {
    const words = job.request.prompt;
    const picture = h("img", { src: image.url, alt: words, loading: "lazy", decoding: "async", width: image.width, height: image.height });
    const chosen = { id: job.id, seed: image.seed };
    const button = h("button", { type: "button", title: words, onclick: () => choose(chosen) }, picture);
    return shaped(h("li", { class: "tile" }, button), image, chosen);
  });
}

function working(job) {
  const chosen = { id: job.id, seed: job.request.seed };
  const item = tile(`${job.id}/work`, () => {
    const bar = h("span", { class: "thread" }, h("span", {}));
    const button = h("button", { type: "button", title: job.request.prompt, onclick: () => select(chosen) }, h("img", { alt: "", hidden: true }), h("span", { class: "tile-words" }), bar);
    const stop = h("button", { type: "button", class: "icon corner", "aria-label": t("cancel.named", { prompt: job.request.prompt }), onclick: () => cancel(job.id).catch(onTrouble) }, icon("close"));
    return shaped(h("li", { class: "tile is-working" }, button, stop), job.request, chosen);
  });
  showProgress(item, job);
  return item;
}

function failed(job) {
  return tile(`${job.id}/failed`, () => {
    const chosen = { id: job.id, seed: job.request.seed };
    const { title } = inWords(job.error ?? { code: job.state });
    const button = h("button", { type: "button", title: job.request.prompt, onclick: () => select(chosen) }, h("span", { class: "tile-words" }, title));
    const away = h("button", { type: "button", class: "icon corner", "aria-label": t("dismiss"), onclick: () => dismiss(job.id) }, icon("close"));
    return shaped(h("li", { class: "tile is-failed" }, button, away), job.request, chosen);
  });
}

/** Rows of one height, every tile as wide as its shape: the row's spare room is shared out by shape too. */
function shaped(item, { width, height }, chosen) {
  item.style.setProperty("--ratio", (width / height).toFixed(4));
  item.chosen = chosen;
  return item;
}

function progress(id) {
  const item = kept.get(`${id}/work`);
  const job = state.jobs.get(id);
  if (item && job) showProgress(item, job);
}

function showProgress(item, job) {
  const { done, of } = job.progress;
  const preview = state.live.get(job.id)?.previews.get(0);
  const picture = item.querySelector("img");
  picture.hidden = !preview;
  if (preview && picture.src !== preview) picture.src = preview;
  item.querySelector(".thread span").style.width = of ? `${(100 * done) / of}%` : "0";
  item.querySelector(".tile-words").textContent = preview ? "" : t(`state.${job.state}`);
}

/** A tile chosen while two pictures are compared is the one to compare with. */
function choose(chosen) {
  if (state.partner && !same(chosen, state.selection)) compareWith(chosen);
  else select(chosen);
}

function mark() {
  for (const item of byId("tiles").children) {
    const isShown = same(item.chosen, state.selection) || same(item.chosen, state.partner);
    item.classList.toggle("is-shown", isShown);
    item.querySelector("button").setAttribute("aria-current", String(isShown));
  }
}
