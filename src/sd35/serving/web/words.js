// Trouble in words, with a way out of it.

import { h, toast } from "./dom.js";
import { has, t } from "./i18n.js";
import { modelNamed } from "./store.js";

const SMALLER = 7 / 8; // of each side: 1024 becomes 896

let handle = () => {};

/** Who shows what went wrong before there was a job: called with (problem, again). */
export const setTroubleHandler = (handler) => (handle = handler);

/** Something went wrong; `again` would repeat it. What is a bug of ours goes to the console as well. */
export function onTrouble(problem, again) {
  if (problem.code === undefined) console.error(problem);
  handle(problem, again);
}

/** {title, detail}: a sentence of ours in the page's language, and what the server said. */
export function inWords({ code, message }) {
  const name = `problem.${code}`;
  return has(name) ? { title: t(name), detail: message } : { title: t("problem.other"), detail: message };
}

/** What a person may do about a job that failed, as [words, settings to draw with]. */
export function waysOut({ code }, request) {
  const ways = [];
  if (code === "out_of_memory") {
    const { width, height } = smaller(request);
    if (width < request.width) ways.push([t("try.size", { width, height }), { width, height }]);
    if (request.n > 1) ways.push([t("try.one"), { n: 1 }]);
  }
  if (["worker_died", "deadline_passed", "model_failed", "storage_failed"].includes(code)) ways.push([t("try.again"), {}]);
  if (code === "output_blocked") ways.push([t("try.seed"), { seed: null }]);
  return ways;
}

/** The next smaller legal size of nearly the same shape. */
export function smaller({ width, height, model }) {
  const step = modelNamed(model)?.size_step ?? 16;
  const cut = (side) => Math.max(step, Math.floor((side * SMALLER) / step) * step);
  return { width: cut(width), height: cut(height) };
}

/** A card that tells of trouble; `ways` are [words, what to do]. */
export function troubleCard(problem, ways) {
  const { title, detail } = inWords(problem);
  return h(
    "div",
    { class: "trouble", role: "alert" },
    h("h2", {}, title),
    detail ? h("p", {}, detail) : null,
    h("div", { class: "ways" }, ways.map(([words, act], index) =>
      h("button", { type: "button", class: index ? "secondary" : "primary", onclick: act }, words),
    )),
  );
}

/** Put text on the clipboard; pages that came by plain HTTP from afar have to do it the old way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(h("textarea", { class: "unseen" }));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("copied"));
}
