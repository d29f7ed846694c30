// One distribution: all somas behind, those that pass the other filters before; a range is brushed on it.

import { label } from "./table.js";
import { Painted } from "./painted.js";

const BINS = 64;
const HEIGHT = 74;

export class Histogram extends Painted {
  constructor(element, model, names, name) {
    super();
    Object.assign(this, { element, model, names });
    this.build();
    this.use(name);
    model.addEventListener("change", () => this.draw());
    model.addEventListener("choose", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  build() {
    this.element.className = "plot histogram";
    this.element.innerHTML = `
      <div class="plot-head"><select aria-label="column"></select><small class="unit"></small><span class="space"></span>
        <input class="low" type="number" step="any" aria-label="from"><span aria-hidden="true">–</span>
        <input class="high" type="number" step="any" aria-label="to">
        <button type="button" class="clear" aria-label="clear the range" title="clear the range">×</button></div>
      <canvas height="${HEIGHT}" role="img"></canvas>`;
    const find = (selector) => this.element.querySelector(selector);
    [this.choice, this.unit, this.canvas] = [find("select"), find(".unit"), find("canvas")];
    [this.low, this.high] = [find(".low"), find(".high")];
    for (const name of this.names) this.choice.add(new Option(label(name)[0], name));
    this.choice.addEventListener("change", () => {
      this.model.setBrush(this.name, null);
      this.use(this.choice.value);
      this.model.dispatchEvent(new Event("plots"));
    });
    const typed = () => this.brush(numberOr(this.low.value, -Infinity), numberOr(this.high.value, Infinity));
    this.low.addEventListener("change", typed);
    this.high.addEventListener("change", typed);
    find(".clear").addEventListener("click", () => this.model.setBrush(this.name, null));
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    this.canvas.addEventListener("dblclick", () => this.model.setBrush(this.name, null));
  }

  use(name) {
    this.name = name;
    this.choice.value = name;
    this.column = this.model.columns.get(name);
    this.unit.textContent = label(name)[1];
    this.choice.title = this.column.description;
    this.bins();
    this.draw();
  }

  /** Put each row into its bin, once for a column. Skewed columns get a logarithmic axis. */
  bins() {
    const { values } = this.column, { n } = this.model;
    let low = Infinity, high = -Infinity, sum = 0, number = 0;
    for (let row = 0; row < n; ++row) {
      const value = values[row];
      if (value !== value) continue;
      if (value < low) low = value;
      if (value > high) high = value;
      sum += value;
      ++number;
    }
    if (!number) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - 0.5, high + 0.5];
    this.log = low > 0 && high / low > 30 && sum / number < low + 0.2 * (high - low);
    this.to = this.log ? Math.log : (v) => v;
    this.from = this.log ? Math.exp : (v) => v;
    [this.first, this.last] = [this.to(low), this.to(high)];
    const scale = BINS / (this.last - this.first);
    this.bin = new Uint8Array(n).fill(255);
    this.all = new Uint32Array(BINS);
    for (let row = 0; row < n; ++row) {
      const value = values[row];
      if (value !== value) continue;
      const bin = Math.min(BINS - 1, Math.floor((this.to(value) - this.first) * scale));
      this.bin[row] = bin;
      ++this.all[bin];
    }
  }

  brush(low, high) {
    if (!(low < high)) return;
    const everything = low <= this.from(this.first) && high > this.from(this.last);
    this.model.setBrush(this.name, everything ? null : [low, high]);
  }

  drag(event) {
    if (event.button !== 0) return;
    const { left, width } = this.canvas.getBoundingClientRect();
    const valueAt = (x) => this.from(this.first + (this.last - this.first) * Math.min(1, Math.max(0, (x - left) / width)));
    const range = this.model.brushes.get(this.name), pixel = (v) => left + width * this.place(v);
    // An end of the brush that is there may be taken; elsewhere a new one begins.
    let anchor = event.clientX;
    if (range && Math.abs(pixel(range[0]) - anchor) < 6) anchor = pixel(range[1]);
    else if (range && Math.abs(pixel(range[1]) - anchor) < 6) anchor = pixel(range[0]);
    this.canvas.setPointerCapture(event.pointerId);
    const move = (next) => {
      if (Math.abs(next.clientX - event.clientX) < 3) return;
      const ends = [anchor, next.clientX].sort((a, b) => a - b);
      const high = ends[1] >= left + width ? Infinity : tidy(valueAt(ends[1]));
      this.brush(ends[0] <= left ? -Infinity : tidy(valueAt(ends[0])), high);
    };
    const end = () => {
      this.canvas.removeEventListener("pointermove", move);
      this.canvas.removeEventListener("pointerup", end);
      this.canvas.removeEventListener("pointercancel", end);
    };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end);
    this.canvas.addEventListener("pointercancel", end);
  }

  /** A value as a part of the axis, 0 to 1. */
  place(value) {
    if (value === -Infinity) return 0;
    if (value === Infinity) return 1;
    const at = (this.to(Math.max(value, this.log ? 1e-300 : -Infinity)) - this.first) / (this.last - this.first);
    return Math.min(1, Math.max(0, at));
  }

  paint() {
    const [fails, mask] = this.model.passesBut(this.name);
    const counts = new Uint32Array(256), { bin, model } = this;
    for (let row = 0; row < model.n; ++row) if ((fails[row] & mask) === 0) ++counts[bin[row]];
    const range = model.brushes.get(this.name);
    for (const [input, i] of [[this.low, 0], [this.high, 1]]) {
      if (document.activeElement !== input) input.value = range && Number.isFinite(range[i]) ? range[i] : "";
    }
    this.element.classList.toggle("brushed", Boolean(range));
    const { context, width, height, colours } = surface(this.canvas, HEIGHT);
    const ground = height - 14, step = width / BINS;
    const top = (a) => a.reduce((x, y) => Math.max(x, y), 1);
    const [behind, before] = [top(this.all), top(counts.subarray(0, BINS))];
    // Square roots, so that the few large ones are seen beside the many small.
    const tall = (number, most) => (number ? Math.max(1.5, Math.sqrt(number / most) * (ground - 6)) : 0);
    const ends = range ? [this.place(range[0]) * width, this.place(range[1]) * width] : [0, width];
    for (let i = 0; i < BINS; ++i) {
      const x = i * step, middle = x + step / 2;
      context.fillStyle = colours.faint;
      const back = tall(this.all[i], behind);
      context.fillRect(x, ground - back, step - 1, back);
      context.fillStyle = middle >= ends[0] && middle <= ends[1] ? colours.accent : colours.dim;
      const own = tall(counts[i], Math.max(before, behind));
      context.fillRect(x, ground - own, step - 1, own);
    }
    if (range) {
      context.fillStyle = colours.brush;
      context.fillRect(ends[0], 0, ends[1] - ends[0], ground);
      context.fillStyle = colours.accent;
      for (const x of ends) context.fillRect(x - 1, 0, 2, ground);
    }
    if (model.chosen >= 0 && !this.column.isNull(model.chosen)) {
      context.fillStyle = colours.mark;
      context.fillRect(this.place(this.column.values[model.chosen]) * width - 1, 0, 2, ground);
    }
    this.axis(context, width, height, colours);
    const [name, unit] = label(this.name);
    this.canvas.setAttribute("aria-label", `${name} of ${model.shown.length} somas, ${short(this.from(this.first))} to `
      + `${short(this.from(this.last))} ${unit}${range ? `; chosen: ${range.map(short).join(" to ")}` : ""}`);
  }

  axis(context, width, height, colours) {
    context.fillStyle = colours.quiet;
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "bottom";
    const parts = width < 230 ? 2 : 4;
    for (let i = 0; i <= parts; ++i) {
      const value = this.from(this.first + ((this.last - this.first) * i) / parts);
      const nothing = !this.log && Math.abs(value) < (this.last - this.first) / 200;
      context.textAlign = i === 0 ? "left" : i === parts ? "right" : "center";
      context.fillText(short(nothing ? 0 : value), (width * i) / parts, height);
    }
  }
}

/** A canvas cleared and scaled to the screen, with the page's colours. */
export function surface(canvas, height) {
  const width = Math.max(1, canvas.clientWidth), scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const style = getComputedStyle(document.documentElement);
  const colours = Object.fromEntries(["accent", "faint", "dim", "quiet", "brush", "mark", "ink"].map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
  return { context, width, height, colours };
}

export const short = (value) => (Number.isFinite(value)
  ? (Math.abs(value) >= 1e4 ? value.toExponential(1) : String(Number(value.toPrecision(3)))) : value > 0 ? "∞" : "-∞");
/** Three digits: what a brush by hand can mean. */
const tidy = (value) => Number(value.toPrecision(3));
const numberOr = (text, otherwise) => (text.trim() === "" || !Number.isFinite(Number(text)) ? otherwise : Number(text));
