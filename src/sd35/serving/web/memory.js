// What this browser remembers between visits; one that keeps nothing works as well.

const PREFIX = "sd35.";

/** What was kept under this name, as it was, or `otherwise`. */
export function recall(name, otherwise = null, place = "localStorage") {
  try {
    const text = window[place].getItem(PREFIX + name);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Keep a value; null forgets. */
export function keep(name, value, place = "localStorage") {
  try {
    if (value === null) window[place].removeItem(PREFIX + name);
    else window[place].setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Full or forbidden: this visit goes on without.
  }
}
