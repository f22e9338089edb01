// The page comes to life: words first, then what the server can do, then everything that was drawn before.

import { get, key, setKey } from "./api.js";
import { fill, startComposer } from "./composer.js";
import { byId, icon, say, toast } from "./dom.js";
import { neighbour, startGallery } from "./gallery.js";
import { choose, language, LANGUAGES, preferred, speak, t } from "./i18n.js";
import { load } from "./jobs.js";
import { startLightbox } from "./lightbox.js";
import { startMachine } from "./machine.js";
import { keep, recall } from "./memory.js";
import { settingsOf } from "./recipe.js";
import { begin } from "./source.js";
import { showTrouble, startStage } from "./stage.js";
import { isFinal, job, on, pictures, select, state, tell } from "./store.js";
import { setTroubleHandler } from "./words.js";

const THEMES = ["auto", "light", "dark"];
const THEME_ICONS = { auto: "auto", light: "sun", dark: "moon" };

/** What may be asked for decides the whole page, so nothing is shown before it is known. */
async function enter() {
  try {
    state.capabilities = await get("capabilities");
    [{ data: state.models }, state.stats] = await Promise.all([get("models"), get("stats")]);
  } catch (error) {
    if (error.code === "unauthorized") askForKey(key() !== "");
    else showTrouble(error, () => location.reload());
    return;
  }
  startComposer();
  startGallery();
  startStage();
  startMachine();
  startSelection();
  byId("open-key").hidden = key() === "";
  await load().catch(showTrouble);
  document.body.dataset.ready = "true";
}

/** The address names the selected picture, so that a reload shows it again. */
function startSelection() {
  const [id, seed] = location.hash.slice(1).split("/");
  let last = new Map();
  on("selection", () => {
    const { selection } = state;
    history.replaceState(null, "", selection ? `#${selection.id}/${selection.seed}` : location.pathname);
  });
  on("jobs", () => {
    last = announced(last);
    const isLost = !state.selection || !job(state.selection.id) || nothingToShow(job(state.selection.id));
    const newest = pictures()[0];
    if (isLost && newest && !state.found) select({ id: newest.job.id, seed: newest.image.seed });
  });
  if (id) select({ id, seed });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, textarea, select, dialog[open], .chips, .segments") || event.altKey || event.ctrlKey || event.metaKey) return;
    const distance = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = distance && neighbour(distance);
    if (next) select(next);
  });
}

/** A job that was cancelled, or whose pictures were erased, has nothing for the stage. */
const nothingToShow = (one) => isFinal(one) && one.images.length === 0 && (one.state === "succeeded" || one.state === "cancelled");

/** Tell screen readers what has changed; what stands now. */
function announced(last) {
  const now = new Map([...state.jobs.values()].map((one) => [one.id, one.state]));
  for (const [id, stands] of now) if (last.has(id) && last.get(id) !== stands) say(t(`said.${stands}`, { prompt: job(id).request.prompt }));
  return now;
}

// ---- language, colours, key

function startTools() {
  byId("language").addEventListener("click", async () => {
    await choose(otherLanguage());
    drawTools();
    if (state.capabilities) tell("language");
  });
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(recall("theme", "auto")) + 1) % THEMES.length];
    keep("theme", next);
    if (next === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    drawTools();
    say(t(`theme.${next}`));
  });
  byId("open-key").addEventListener("click", () => askForKey());
  drawTools();
}

/** A menu closes when something else is meant. */
function startMenus() {
  const close = (but) => document.querySelectorAll("details.menu[open]").forEach((menu) => menu !== but && menu.removeAttribute("open"));
  document.addEventListener("click", (event) => close(event.target.closest("details.menu")));
  document.addEventListener("keydown", (event) => event.key === "Escape" && close(null));
}

const otherLanguage = () => Object.keys(LANGUAGES).find((tag) => tag !== language);

function drawTools() {
  const theme = recall("theme", "auto");
  byId("theme").replaceChildren(icon(THEME_ICONS[theme]));
  byId("theme").setAttribute("aria-label", t(`theme.${theme}`));
  byId("theme").title = t(`theme.${theme}`);
  byId("language").textContent = LANGUAGES[otherLanguage()];
  byId("language").lang = otherLanguage();
}

function askForKey(isWrong = false) {
  byId("key-mistake").hidden = !isWrong;
  byId("key-mistake").textContent = t("key.wrong");
  byId("key-forget").hidden = key() === "";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

function startKeyDialog() {
  byId("key-form").addEventListener("submit", () => {
    if (byId("key").value.trim()) setKey(byId("key").value.trim());
    location.reload();
  });
  byId("key-forget").addEventListener("click", () => {
    setKey("");
    location.reload();
  });
}

// ---- pictures that are dropped, or chosen as files

function startDropping() {
  let depth = 0; // a drag enters and leaves every element on its way
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  const cover = (change) => (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    depth = change === null ? 0 : depth + change;
    byId("drop").hidden = depth === 0;
  };
  addEventListener("dragenter", cover(1));
  addEventListener("dragleave", cover(-1));
  addEventListener("dragover", (event) => isFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    cover(null)(event);
    const [file] = event.dataTransfer?.files ?? [];
    if (!file || !state.capabilities) return;
    if (event.target.closest?.(".start")) begin(file);
    else takeSettings(file, () => begin(file));
  });
  byId("recall").addEventListener("click", () => byId("recall-file").click());
  byId("recall-file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) takeSettings(file, () => toast(t("recall.none", { name: file.name })));
    event.target.value = "";
  });
}

/** A dropped picture of ours gives its settings; any other is one to begin with. */
async function takeSettings(file, otherwise) {
  const settings = await settingsOf(file).catch(() => null);
  if (settings === null) {
    otherwise();
    return;
  }
  fill(settings);
  toast(t(settings.prompt === null ? "recall.wordless" : "recall.done"));
}

// ---- and now

await speak(preferred());
setTroubleHandler((problem, again) => (problem.code === "unauthorized" ? askForKey() : showTrouble(problem, again)));
startTools();
startKeyDialog();
startMenus();
startDropping();
startLightbox();
await enter();
