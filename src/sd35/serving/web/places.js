// Where a model is, in the page's words.

import { number, t } from "./i18n.js";
import { state } from "./store.js";

// The server's words for where a model is -> ours.
const PLACES = { on_disk: "disk", loading: "loading", ram: "ram", vram: "gpu" };

/** Without a card that tells of its memory, a model that could draw now is simply ready. */
export function placeOf(row, { vram } = state.stats ?? {}) {
  const place = PLACES[row?.state] ?? "disk";
  return place === "gpu" && !vram ? "ready" : place;
}

export function placeWords(place, row) {
  const share = place === "loading" ? loadedShare(row) : null;
  return share === null ? t(`place.${place}`) : t("loading.share", { n: number(share * 100) });
}

/** How much of a loading model is there, 0 to 1; null: nobody knows. */
export function loadedShare(row) {
  const { percent } = row?.loading ?? {};
  return typeof percent === "number" ? percent / 100 : null;
}
