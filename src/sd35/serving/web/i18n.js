// The page's words: one JSON file a language, filled in where index.html says `data-i18n…`.

import { keep, recall } from "./memory.js";

export const LANGUAGES = { en: "English", zh: "中文" };
const PLACES = { i18n: null, i18nLabel: "aria-label", i18nPlaceholder: "placeholder" };
const HTML_LANG = { en: "en", zh: "zh-CN" };

let words = {};
export let language = "en";

/** The language chosen before, else the browser's first that we have. */
export function preferred() {
  const wanted = [recall("language"), ...navigator.languages.map((tag) => tag.slice(0, 2))];
  return wanted.find((tag) => tag in LANGUAGES) ?? "en";
}

/** Fetch a language's words and put them into the page. */
export async function speak(tag) {
  words = await (await fetch(new URL(`locales/${tag}.json`, import.meta.url))).json();
  language = tag;
  document.documentElement.lang = HTML_LANG[tag];
  for (const [data, attribute] of Object.entries(PLACES)) fill(data, attribute);
}

/** Choose a language for good. */
export async function choose(tag) {
  keep("language", tag);
  await speak(tag);
}

/** The sentence of that name, with `{gaps}` filled; a missing one shows its name, so that it is noticed. */
export function t(name, gaps = {}) {
  return (words[name] ?? name).replace(/\{(\w+)\}/g, (_, gap) => gaps[gap] ?? "");
}

export const has = (name) => name in words;

/** A number with exactly so many decimals, so that 3.0 s does not shrink to 3 s beside 2.9 s. */
export const number = (value, digits = 0) =>
  new Intl.NumberFormat(document.documentElement.lang, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds < 9.95) return t("seconds", { n: number(seconds, 1) });
  if (seconds < 90) return t("seconds", { n: number(seconds) });
  return t("minutes", { n: number(seconds / 60, seconds < 600 ? 1 : 0) });
}

export const gigabytes = (bytes) => `${number(bytes / 1e9, 1)} GB`;

function fill(data, attribute) {
  const selector = `[data-${data.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}]`;
  for (const element of document.querySelectorAll(selector)) {
    const sentence = t(element.dataset[data]);
    if (attribute === null) element.textContent = sentence;
    else element.setAttribute(attribute, sentence);
    if (attribute === "aria-label" && element.matches("button.icon")) element.title = sentence;
  }
}
