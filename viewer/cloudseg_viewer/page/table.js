// The table: only the rows on screen exist, whatever the number of somas.

import { Painted } from "./painted.js";

const ROW_PX = 24;
const LABELS = {
  soma_id: ["soma", "id"], x_nm: ["x", "nm"], y_nm: ["y", "nm"], z_nm: ["z", "nm"], volume_um3: ["volume", "µm³"],
  radius_um: ["radius", "µm"], surface_um2: ["surface", "µm²"], nearest_um: ["nearest", "µm"], segment_id: ["neuron", "id"],
  density_per_mm3: ["density", "/mm³"], boundary_score: ["boundary", ""], segment_fraction: ["in neuron", ""],
  axis_major_um: ["major", "µm"], axis_mid_um: ["mid", "µm"], axis_minor_um: ["minor", "µm"], n_segments: ["neurons", ""],
  edge_faces: ["cut faces", ""], n_blocks: ["blocks", ""], n_merges: ["merges", ""], kind_score: ["kind score", ""],
};
const FIRST = ["soma_id", "volume_um3", "radius_um", "score", "nearest_um", "segment_id", "region", "side", "kind", "status"];

/** How a column is called on the page, and its unit. */
export function label(name) {
  return LABELS[name] ?? [name.replaceAll("_", " "), ""];
}

export class Table extends Painted {
  /** `onFly(row)` is called for Enter or a click. */
  constructor(element, model, { onFly }) {
    super();
    Object.assign(this, { element, model, onFly });
    this.names = [...FIRST, ...model.columns.keys()].filter((n, i, all) => model.columns.has(n) && all.indexOf(n) === i);
    this.cells = [];
    this.build();
    for (const kind of ["change", "order", "choose", "verdict"]) model.addEventListener(kind, () => this.draw());
    model.addEventListener("choose", (event) => event.from !== "table-quiet" && this.reveal(model.chosen));
    new ResizeObserver(() => this.draw()).observe(this.body);
  }

  build() {
    const widths = ["28px", ...this.names.map((name) => this.width(name))];
    this.element.style.setProperty("--columns", widths.join(" "));
    this.head = part("div", { className: "row head", role: "row" });
    this.head.append(cell("columnheader", "", "verdict"));
    for (const name of this.names) {
      const [text, unit] = label(name), column = this.model.columns.get(name);
      const button = part("button", { type: "button", title: column.description });
      button.append(text, part("small", { textContent: unit }));
      button.addEventListener("click", () => this.model.setSort(name, this.model.sort.column === name && !this.model.sort.descending));
      const head = cell("columnheader", "", column.kind);
      head.append(button);
      head.dataset.name = name;
      this.head.append(head);
    }
    this.body = part("div", { className: "body", tabIndex: 0, role: "grid" });
    this.body.setAttribute("aria-label", "somas; arrow keys move, Enter flies there");
    this.body.setAttribute("aria-multiselectable", "false");
    this.spacer = part("div", { className: "spacer", role: "presentation" });
    this.body.append(this.head, this.spacer);
    this.element.replaceChildren(this.body);
    this.body.addEventListener("scroll", () => this.draw(), { passive: true });
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest(".row[data-row]");
      if (row) this.onFly(Number(row.dataset.row));
    });
  }

  /** As wide as its longest value, or its name. */
  width(name) {
    const column = this.model.columns.get(name), [text, unit] = label(name);
    let longest = text.length + unit.length + 2;
    if (column.kind === "id") longest = Math.max(longest, column.values.reduce((x, y) => (x > y ? x : y), 0n).toString().length);
    else if (column.kind === "text") longest = Math.max(longest, Math.min(16, ...[Math.max(...column.words.map((w) => w?.length ?? 0))]));
    else longest = Math.max(longest, name.endsWith("_nm") ? 9 : 6);
    return `${longest + 2.5}ch`;
  }

  paint() {
    const { shown, sort, chosen, columns, verdicts } = this.model;
    this.spacer.style.height = `${shown.length * ROW_PX}px`;
    this.body.setAttribute("aria-rowcount", shown.length + 1);
    for (const head of this.head.children) {
      const own = head.dataset.name === sort.column;
      head.setAttribute("aria-sort", own ? (sort.descending ? "descending" : "ascending") : "none");
    }
    const first = Math.max(0, Math.floor(this.body.scrollTop / ROW_PX) - 4);
    const number = Math.min(shown.length - first, Math.ceil(this.body.clientHeight / ROW_PX) + 8);
    while (this.cells.length < number) this.cells.push(this.newRow());
    this.cells.forEach((row, i) => {
      row.element.hidden = i >= number;
      if (i >= number) {
        for (const name of ["id", "data-row", "aria-selected", "aria-rowindex"]) row.element.removeAttribute(name);
        return;
      }
      const place = first + i, soma = shown[place];
      row.element.style.transform = `translateY(${place * ROW_PX}px)`;
      row.element.dataset.row = soma;
      row.element.id = `soma-row-${place}`;
      row.element.setAttribute("aria-rowindex", place + 2);
      row.element.setAttribute("aria-selected", soma === chosen);
      const verdict = verdicts.get(soma) ?? "";
      row.element.dataset.verdict = verdict;
      row.mark.textContent = { verified: "✓", rejected: "✗" }[verdict] ?? "";
      this.names.forEach((name, j) => {
        row.values[j].textContent = columns.get(name).text(soma);
      });
    });
    const place = this.placeOf(chosen);
    if (place >= first && place < first + number) this.body.setAttribute("aria-activedescendant", `soma-row-${place}`);
    else this.body.removeAttribute("aria-activedescendant");
  }

  newRow() {
    const element = part("div", { className: "row", role: "row" });
    const mark = cell("gridcell", "", "verdict");
    const values = this.names.map((name) => cell("gridcell", "", this.model.columns.get(name).kind));
    element.append(mark, ...values);
    this.spacer.append(element);
    return { element, mark, values };
  }

  placeOf(row) {
    return row < 0 || !this.model.isShown(row) ? -1 : this.model.shown.indexOf(row);
  }

  /** Scroll so that a row is on screen. */
  reveal(row) {
    const place = this.placeOf(row);
    if (place < 0) return;
    const top = place * ROW_PX, { scrollTop, clientHeight } = this.body;
    if (top < scrollTop || top > scrollTop + clientHeight - 3 * ROW_PX) this.body.scrollTop = top - clientHeight / 2 + ROW_PX;
  }

  /** Choose the row `steps` further, and fly there if `fly`. */
  step(steps, fly = false) {
    const { shown, chosen } = this.model;
    if (!shown.length) return;
    const now = this.placeOf(chosen);
    const place = now < 0 ? (steps > 0 ? 0 : shown.length - 1) : Math.min(shown.length - 1, Math.max(0, now + steps));
    if (fly) this.onFly(shown[place]);
    else this.model.choose(shown[place], "table");
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.body.clientHeight / ROW_PX) - 3);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (steps !== undefined) this.step(steps);
    else if (event.key === "Enter" && this.model.chosen >= 0 && event.target === this.body) this.onFly(this.model.chosen);
    else return;
    event.preventDefault();
  }
}

function part(tag, properties) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role") element.setAttribute("role", value);
    else element[name] = value;
  }
  return element;
}

function cell(role, text, kind) {
  const element = part("div", { className: `cell ${kind}`, textContent: text });
  element.setAttribute("role", role);
  return element;
}
