// Before the first paint, so that no page flashes in the wrong colours; a module would come too late.
try {
  const chosen = JSON.parse(localStorage.getItem("sd35.theme"));
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing follows the system's colours.
}
