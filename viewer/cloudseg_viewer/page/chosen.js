// The chosen soma: its numbers, its pictures where the pipeline made some, and the two verdicts.

import { ask } from "./api.js";
import { label } from "./table.js";

const SHOWN = ["volume_um3", "radius_um", "score", "nearest_um", "sphericity", "region", "side", "kind", "status"];

export class Chosen {
  constructor(element, model, { base, config, onVerdict, onUndo }) {
    Object.assign(this, { element, model, base, config });
    element.innerHTML = `
      <div class="pictures" hidden></div>
      <div class="facts"><h2></h2><dl></dl></div>
      <div class="verdict-buttons">
        <button type="button" class="accept">Accept <kbd>a</kbd></button>
        <button type="button" class="reject">Reject <kbd>r</kbd></button>
        <button type="button" class="undo">Undo <kbd>u</kbd></button>
      </div>`;
    this.title = element.querySelector("h2");
    this.list = element.querySelector("dl");
    this.pictures = element.querySelector(".pictures");
    element.querySelector(".accept").addEventListener("click", () => onVerdict("verified"));
    element.querySelector(".reject").addEventListener("click", () => onVerdict("rejected"));
    element.querySelector(".undo").addEventListener("click", onUndo);
    model.addEventListener("choose", () => this.draw());
    model.addEventListener("verdict", () => this.draw());
  }

  draw() {
    const { chosen, columns, verdicts } = this.model;
    this.element.hidden = chosen < 0;
    if (chosen < 0) return;
    const id = columns.get("soma_id").values[chosen].toString();
    const verdict = verdicts.get(chosen);
    this.title.textContent = `soma ${id}${verdict ? ` · ${verdict === "verified" ? "accepted" : "rejected"}` : ""}`;
    this.element.dataset.verdict = verdict ?? "";
    this.list.replaceChildren(...SHOWN.filter((name) => columns.has(name) && !columns.get(name).isNull(chosen)).map((name) => {
      const [text, unit] = label(name), item = document.createElement("div");
      const term = Object.assign(document.createElement("dt"), { textContent: text });
      const value = Object.assign(document.createElement("dd"), { textContent: `${columns.get(name).text(chosen)} ${unit}` });
      item.append(term, value);
      return item;
    }));
    if (this.config.thumbnails && id !== this.shown) this.fetchPictures(id);
    this.shown = id;
  }

  /** xy, xz and yz crops side by side, one picture. */
  async fetchPictures(id) {
    this.fetching?.abort();
    this.fetching = new AbortController();
    try {
      const answer = await ask(`${this.base}/thumbnails/${id}?version=${this.config.version}`, { signal: this.fetching.signal });
      const blob = await answer.blob();
      if (this.shown !== id) return;
      const picture = new Image();
      picture.alt = `soma ${id}: sections xy, xz and yz`;
      picture.src = URL.createObjectURL(blob);
      picture.onload = () => URL.revokeObjectURL(picture.src);
      this.pictures.replaceChildren(picture);
      this.pictures.hidden = false;
    } catch (error) {
      if (error.name !== "AbortError") this.pictures.hidden = true;
    }
  }
}
