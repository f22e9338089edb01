// The machine in the top bar: which model is where, how full the card is, whether the server answers.

import { byId, h } from "./dom.js";
import { gigabytes, t } from "./i18n.js";
import { placeOf, placeWords } from "./places.js";
import { on, state } from "./store.js";

let answers = true;

export function startMachine() {
  on("machine", (isThere) => ((answers = isThere), draw()));
  on("jobs", draw);
  on("language", draw);
  draw();
}

function draw() {
  const row = foremost();
  const place = answers ? placeOf(row) : "away";
  byId("model-dot").dataset.place = place;
  byId("model-name").textContent = row?.id ?? "";
  byId("model-state").textContent = placeWords(place, row);
  const { precision } = state.capabilities ?? {};
  byId("precision").hidden = !precision;
  byId("precision").textContent = (precision ?? "").toUpperCase();
  byId("models").replaceChildren(...state.models.map(line));
  drawMemory();
}

/** The model to show: the one that is nearest to drawing. */
function foremost() {
  const order = ["loading", "gpu", "ready", "ram", "disk"];
  return [...state.models].sort((a, b) => order.indexOf(placeOf(a)) - order.indexOf(placeOf(b)))[0];
}

function line(row) {
  return h("p", {}, h("span", { class: "dot", "data-place": placeOf(row) }), h("strong", {}, row.id),
    h("span", { class: "quiet" }, `${row.title ?? ""} · ${placeWords(placeOf(row), row)}`));
}

function drawMemory() {
  const memory = state.stats?.vram;
  byId("vram").hidden = !memory?.total_bytes;
  if (!memory?.total_bytes) return;
  byId("vram-words").textContent = t("vram", { used: gigabytes(memory.used_bytes), total: gigabytes(memory.total_bytes) });
  byId("vram-fill").style.width = `${Math.min(100, (100 * memory.used_bytes) / memory.total_bytes)}%`;
}
