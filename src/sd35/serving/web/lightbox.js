// A picture in its full size, above everything.

import { byId } from "./dom.js";

export function startLightbox() {
  const box = byId("lightbox");
  byId("lightbox-close").addEventListener("click", () => box.close());
  box.addEventListener("click", (event) => event.target !== byId("lightbox-close") && box.close());
}

export function openLightbox(job, image) {
  byId("lightbox-picture").src = image.url;
  byId("lightbox-picture").alt = job.request.prompt;
  byId("lightbox").showModal();
}
