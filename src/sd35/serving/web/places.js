// Where a model is, in the page's words.

import { number, t } from "./i18n.js";
import { state } from "./store.js";

// The server's words for where a model is -> ours.
const PLACES = { cold: "disk", on_disk: "disk", ram: "ram", loading: "loading", loaded: "ready", vram: "gpu" };

/** Without a card that tells of its memory, a model that could draw now is simply ready. */
export function placeOf(row, { vram } = state.stats ?? {}) {
  const place = PLACES[row?.state] ?? "disk";
  return place === "gpu" && !vram ? "ready" : place;
}

export function placeWords(place, row) {
  const share = place === "loading" ? loadedShare(row) : null;
  return share === null ? t(`place.${place}`) : t("loading.share", { n: number(share * 100) });
}

/** How much of a loading model is there, 0 to 1: as the server says, or by the time it took before; null: nobody knows. */
export function loadedShare(row) {
  const { percent, seconds, eta_s } = row?.loading ?? {};
  if (typeof percent === "number") return percent / 100;
  return eta_s === null || eta_s === undefined ? null : Math.min(0.99, seconds / Math.max(seconds + eta_s, 0.001));
}
