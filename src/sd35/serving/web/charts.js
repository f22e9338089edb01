// Small charts as SVG: a line over the last jobs, and how many of them came to which end.

import { h } from "./dom.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const WIDTH = 100;
const HEIGHT = 40;

/** The value below which a share of them lie, the nearest that is there; null of none. */
export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null;
}

/** Values in order, from left to right; the scale begins at 0. */
export function line(title, note, values) {
  const top = Math.max(...values, 1e-9);
  const x = (index) => (values.length === 1 ? WIDTH / 2 : (index * WIDTH) / (values.length - 1));
  const points = values.map((value, index) => `${x(index).toFixed(2)},${(HEIGHT - (value / top) * HEIGHT).toFixed(2)}`);
  return figure(title, note, [shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT }), shape("polyline", { class: "line", points: points.join(" ") })]);
}

/** Stacks of [good, bad] counts, one for each stretch of time. */
export function bars(title, note, stacks) {
  const top = Math.max(...stacks.map(([good, bad]) => good + bad), 1);
  const width = WIDTH / stacks.length;
  const box = (index, from, count, kind) => shape("rect", {
    class: `bar-${kind}`, x: index * width + width * 0.12, width: width * 0.76,
    y: HEIGHT - ((from + count) / top) * HEIGHT, height: (count / top) * HEIGHT,
  });
  return figure(title, note, stacks.flatMap(([good, bad], index) => [box(index, 0, good, "good"), box(index, good, bad, "bad")]));
}

/** Mean seconds of each phase, as lengths. */
export function phases(rows) {
  const top = Math.max(...rows.map(({ seconds }) => seconds), 1e-9);
  return h("ul", { class: "phases" }, rows.map(({ name, seconds, words }) => {
    const fill = h("span");
    fill.style.width = `${(100 * seconds) / top}%`;
    return h("li", {}, h("span", {}, name), h("span", { class: "meter" }, fill), h("span", {}, words));
  }));
}

function figure(title, note, shapes) {
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${note}` });
  svg.append(...shapes);
  return h("figure", { class: "chart" }, svg, h("figcaption", {}, h("span", {}, title), h("b", {}, note)));
}

function shape(tag, attributes) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
