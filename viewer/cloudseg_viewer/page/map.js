// A map of density: how many somas lie in each column of tissue, seen along an axis; a box is drawn on it.

import { surface } from "./histogram.js";
import { Painted } from "./painted.js";

const CELLS = 96; // along the longer side
const VIEWS = ["xy", "xz", "yz"];
const MIN_HEIGHT = 90, MAX_HEIGHT = 172;

export class DensityMap extends Painted {
  constructor(element, model, bounds) {
    super();
    Object.assign(this, { element, model, bounds });
    this.build();
    this.use("xy");
    model.addEventListener("change", () => this.draw());
    model.addEventListener("choose", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  build() {
    this.element.className = "plot map";
    this.element.innerHTML = `
      <div class="plot-head"><select aria-label="plane of the map">${VIEWS.map((v) => `<option>${v}</option>`).join("")}</select>
        <small class="unit">density</small><span class="space"></span><small class="extent"></small>
        <button type="button" class="clear" aria-label="clear the box" title="clear the box">×</button></div>
      <canvas role="img"></canvas>`;
    [this.choice, this.canvas] = [this.element.querySelector("select"), this.element.querySelector("canvas")];
    this.extent = this.element.querySelector(".extent");
    this.choice.addEventListener("change", () => {
      this.model.setBox(null);
      this.use(this.choice.value);
      this.model.dispatchEvent(new Event("plots"));
    });
    this.element.querySelector(".clear").addEventListener("click", () => this.model.setBox(null));
    this.canvas.addEventListener("pointerdown", (event) => this.drag(event));
    this.canvas.addEventListener("dblclick", () => this.model.setBox(null));
  }

  use(axes) {
    this.axes = axes;
    this.choice.value = axes;
    const index = [...axes].map((axis) => "xyz".indexOf(axis));
    this.low = index.map((i) => this.bounds[0][i]);
    this.size = index.map((i) => Math.max(1, this.bounds[1][i] - this.bounds[0][i]));
    const most = Math.max(...this.size);
    this.shape = this.size.map((s) => Math.max(8, Math.round((CELLS * s) / most)));
    const [a, b] = [...axes].map((axis) => this.model.columns.get(`${axis}_nm`).values);
    const [na, nb] = this.shape;
    this.cell = new Uint16Array(this.model.n);
    for (let row = 0; row < this.model.n; ++row) {
      const i = Math.min(na - 1, Math.max(0, Math.floor(((a[row] - this.low[0]) / this.size[0]) * na)));
      const j = Math.min(nb - 1, Math.max(0, Math.floor(((b[row] - this.low[1]) / this.size[1]) * nb)));
      this.cell[row] = j * na + i;
    }
    this.extent.textContent = `${axes[0]} ${um(this.size[0])} × ${axes[1]} ${um(this.size[1])} µm`;
    this.draw();
  }

  drag(event) {
    if (event.button !== 0) return;
    const { left, top, width, height } = this.canvas.getBoundingClientRect();
    const toNm = (e) => {
      const x = clampTo(e.clientX - left, width) - this.x0, y = clampTo(e.clientY - top, height) - this.y0;
      return [Math.round(this.low[0] + x / this.scale), Math.round(this.low[1] + y / this.scale)];
    };
    const start = toNm(event);
    this.canvas.setPointerCapture(event.pointerId);
    const move = (next) => {
      const end = toNm(next);
      const low = start.map((v, i) => Math.min(v, end[i])), high = start.map((v, i) => Math.max(v, end[i]));
      if (Math.abs(next.clientX - event.clientX) < 3 || low[0] === high[0] || low[1] === high[1]) return;
      this.model.setBox({ axes: this.axes, low, high });
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

  paint() {
    const [fails, mask] = this.model.passesBut("map");
    const [na, nb] = this.shape, counts = new Uint32Array(na * nb), { cell, model } = this;
    for (let row = 0; row < model.n; ++row) if ((fails[row] & mask) === 0) ++counts[cell[row]];
    const wide = Math.max(1, this.canvas.clientWidth);
    const tall = Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, (wide * this.size[1]) / this.size[0]));
    const { context, width, height, colours } = surface(this.canvas, tall);
    this.scale = Math.min(width / this.size[0], height / this.size[1]); // pixels in a nm
    this.x0 = (width - this.size[0] * this.scale) / 2;
    this.y0 = (height - this.size[1] * this.scale) / 2;
    const most = counts.reduce((x, y) => Math.max(x, y), 1);
    const [dx, dy] = [(this.size[0] * this.scale) / na, (this.size[1] * this.scale) / nb];
    context.strokeStyle = colours.faint;
    context.strokeRect(this.x0 + 0.5, this.y0 + 0.5, this.size[0] * this.scale - 1, this.size[1] * this.scale - 1);
    context.fillStyle = colours.accent;
    for (let j = 0; j < nb; ++j) {
      for (let i = 0; i < na; ++i) {
        const number = counts[j * na + i];
        if (!number) continue;
        context.globalAlpha = 0.15 + 0.85 * Math.sqrt(number / most);
        context.fillRect(this.x0 + i * dx, this.y0 + j * dy, dx + 0.3, dy + 0.3);
      }
    }
    context.globalAlpha = 1;
    const { box } = model;
    const at = (value, i) => (i ? this.y0 : this.x0) + (value - this.low[i]) * this.scale;
    if (box && box.axes === this.axes) {
      const [x, y] = [at(box.low[0], 0), at(box.low[1], 1)];
      context.fillStyle = colours.brush;
      context.strokeStyle = colours.accent;
      context.lineWidth = 1.5;
      context.fillRect(x, y, at(box.high[0], 0) - x, at(box.high[1], 1) - y);
      context.strokeRect(x, y, at(box.high[0], 0) - x, at(box.high[1], 1) - y);
    }
    this.element.classList.toggle("brushed", Boolean(box));
    if (model.chosen >= 0) {
      const [x, y] = [...this.axes].map((axis, i) => at(model.columns.get(`${axis}_nm`).values[model.chosen], i));
      context.strokeStyle = colours.mark;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, 5, 0, 7);
      context.stroke();
    }
    this.canvas.setAttribute("aria-label", `where ${model.shown.length} somas lie, seen in ${this.axes}; at most ${most} in a cell`);
  }
}

const um = (nm) => Math.round(nm / 1000).toLocaleString("en").replaceAll(",", "\u2009");
const clampTo = (value, most) => Math.min(most, Math.max(0, value));
