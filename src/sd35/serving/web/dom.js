// Elements from words, and nothing from strings: what people type never becomes markup.

export const byId = (id) => document.getElementById(id);

/** An element; `on…` are listeners, `true` an empty attribute, null, undefined and false no attribute. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** One of the drawings at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Make these the children, moving none that is in its place already: a moved element loses the focus. */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
}

let fading;

/** A sentence at the edge of the page that goes by itself. */
export function toast(words) {
  const place = byId("toast");
  place.textContent = words;
  place.classList.add("is-shown");
  clearTimeout(fading);
  fading = setTimeout(() => place.classList.remove("is-shown"), 4500);
}

/** For screen readers alone. */
export const say = (words) => (byId("spoken").textContent = words);
