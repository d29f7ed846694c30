// Which somas are shown: one bit for each filter that a row fails, so that a change looks at its own filter alone.

import { predicate, toWhere } from "./filters.js";

const LINE = 1, TOMBSTONE = 2, VETTED = 4, MAP = 8;
const FIRST_BRUSH = 16; // one bit for each histogram from here on
const MAX_BRUSHES = 10;
const TOMBSTONES = ["rejected", "merged"];

/** The rows and what is asked of them. Emits "change" (rows shown), "order", "choose" and "verdict". */
export class Model extends EventTarget {
  constructor(header, columns) {
    super();
    this.n = header.n;
    this.header = header;
    this.columns = columns;
    this.fails = new Uint16Array(this.n);
    this.line = { text: "", conditions: [] };
    this.brushes = new Map(); // column -> [low, high): half-open, as boxes are
    this.brushBits = new Map();
    this.box = null; // { axes: "xy", low: [a, b], high: [a, b] } in nm
    this.showTombstones = false;
    this.onlyUnvetted = false;
    this.sort = { column: "soma_id", descending: false };
    this.chosen = -1;
    this.verdicts = new Map(); // row -> "verified" | "rejected"
    this.order = new Uint32Array(0);
    this.shown = new Uint32Array(0);
    this.rowsById = null;
    this.rank = ranks(columns.get("soma_id").values);
    this.applyTombstones();
    this.reorder();
  }

  /** The row of a soma id (text or BigInt), or -1. */
  rowOf(id) {
    if (!this.rowsById) {
      this.rowsById = new Map();
      const ids = this.columns.get("soma_id").values;
      for (let row = 0; row < this.n; ++row) this.rowsById.set(ids[row], row);
    }
    return this.rowsById.get(BigInt(id)) ?? -1;
  }

  /** The rows whose somas lie in a segment. */
  rowsOfSegment(id) {
    const segments = this.columns.get("segment_id")?.values, found = [];
    const wanted = BigInt(id);
    if (segments && wanted !== 0n) for (let row = 0; row < this.n; ++row) if (segments[row] === wanted) found.push(row);
    return found;
  }

  setLine(text, conditions) {
    this.line = { text, conditions };
    this.mark(LINE, conditions.length ? predicate(conditions, this.columns) : null);
    this.applyTombstones(); // a filter on status means the tombstones that it names
    this.changed();
  }

  setBrush(name, range) {
    const bit = this.bitOf(name);
    if (!range) {
      this.brushes.delete(name);
      this.mark(bit, null);
    } else {
      const values = this.columns.get(name).values, [low, high] = range;
      this.brushes.set(name, range);
      this.mark(bit, (row) => values[row] >= low && values[row] < high);
    }
    this.changed();
  }

  setBox(box) {
    this.box = box;
    if (!box) this.mark(MAP, null);
    else {
      const [a, b] = [...box.axes].map((axis) => this.columns.get(`${axis}_nm`).values);
      const [a0, b0] = box.low, [a1, b1] = box.high;
      this.mark(MAP, (row) => a[row] >= a0 && a[row] < a1 && b[row] >= b0 && b[row] < b1);
    }
    this.changed();
  }

  setTombstones(on) {
    this.showTombstones = on;
    this.applyTombstones();
    this.changed();
  }

  setUnvetted(on) {
    this.onlyUnvetted = on;
    this.applyVetted();
    this.changed();
  }

  setSort(column, descending) {
    this.sort = { column, descending };
    this.reorder();
    this.dispatchEvent(new Event("order"));
  }

  /** `from` says where the choice was made; "space" has no need to be told. */
  choose(row, from = "") {
    this.chosen = row;
    this.dispatchEvent(Object.assign(new Event("choose"), { from }));
  }

  setVerdict(row, value) {
    if (value) this.verdicts.set(row, value);
    else this.verdicts.delete(row);
    if (this.onlyUnvetted) this.applyVetted();
    this.dispatchEvent(Object.assign(new Event("verdict"), { row }));
  }

  setVerdicts(verdicts) {
    this.verdicts = verdicts;
    this.applyVetted();
    this.changed();
  }

  clear() {
    this.line = { text: "", conditions: [] };
    this.brushes.clear();
    this.box = null;
    this.showTombstones = this.onlyUnvetted = false;
    this.fails.fill(0);
    this.applyTombstones();
    this.changed();
  }

  /** Whether a row passes every filter but that of `name` (a brushed column, or "map"): what its plot draws. */
  passesBut(name) {
    const bit = name === "map" ? MAP : name === undefined ? 0 : this.bitOf(name);
    return [this.fails, 0xffff & ~bit];
  }

  isShown(row) {
    return this.fails[row] === 0;
  }

  /** All that is asked, in the client's form; what only this page knows (not vetted yet) is not part of it. */
  where() {
    const all = [...this.line.conditions];
    for (const [column, [low, high]] of this.brushes) {
      if (Number.isFinite(low)) all.push({ column, operator: ">=", value: low });
      if (Number.isFinite(high)) all.push({ column, operator: "<", value: high });
    }
    if (this.box) {
      [...this.box.axes].forEach((axis, i) => {
        all.push({ column: `${axis}_nm`, operator: ">=", value: this.box.low[i] });
        all.push({ column: `${axis}_nm`, operator: "<", value: this.box.high[i] });
      });
    }
    return toWhere(all);
  }

  /** The question in Python. */
  python(base) {
    const where = JSON.stringify(this.where()).replaceAll(":true", ": True").replaceAll(":false", ": False");
    const dataset = this.header.dataset, more = this.showTombstones ? ", tombstones=True" : "";
    const sign = this.sort.descending ? "-" : "";
    return `from cloudseg import Somas\n\nsomas = Somas("${base}", dataset="${dataset}", version=${this.header.version})\n`
      + `df = somas.query(${where}, order="${sign}${this.sort.column}"${more})  # ${this.shown.length} rows\n`;
  }

  bitOf(name) {
    if (!this.brushBits.has(name)) {
      const used = new Set([...this.brushBits].filter(([each]) => this.brushes.has(each)).map(([, bit]) => bit));
      const free = Array.from({ length: MAX_BRUSHES }, (_, i) => FIRST_BRUSH << i).find((bit) => !used.has(bit));
      for (const [each, bit] of this.brushBits) if (bit === free) this.brushBits.delete(each);
      this.brushBits.set(name, free);
    }
    return this.brushBits.get(name);
  }

  applyTombstones() {
    const status = this.columns.get("status");
    const asked = this.line.conditions.some((each) => each.column === "status");
    const codes = TOMBSTONES.map((word) => status.words.indexOf(word));
    const { values } = status;
    this.mark(TOMBSTONE, this.showTombstones || asked ? null : (row) => !codes.includes(values[row]));
  }

  applyVetted() {
    this.mark(VETTED, this.onlyUnvetted ? (row) => !this.verdicts.has(row) : null);
  }

  /** Set a filter's bit where the rows do not pass it; none fails for null. */
  mark(bit, passes) {
    const { fails, n } = this, rest = 0xffff & ~bit;
    if (passes === null) for (let row = 0; row < n; ++row) fails[row] &= rest;
    else for (let row = 0; row < n; ++row) fails[row] = passes(row) ? fails[row] & rest : fails[row] | bit;
  }

  changed() {
    this.collect();
    this.dispatchEvent(new Event("change"));
  }

  collect() {
    const { order, fails, n } = this;
    const found = new Uint32Array(n);
    let m = 0;
    for (let i = 0; i < n; ++i) if (fails[order[i]] === 0) found[m++] = order[i];
    this.shown = found.subarray(0, m);
  }

  reorder() {
    const { column, descending } = this.sort;
    this.order = sorted(this.columns.get(column), this.rank, this.n, descending);
    this.collect();
  }
}

/** Rows in the order of a column, nulls last, ties by id: as the server orders them. */
function sorted(column, rank, n, descending) {
  const rows = Uint32Array.from({ length: n }, (_, i) => i), sign = descending ? -1 : 1;
  if (!column) return rows.sort((a, b) => rank[a] - rank[b]);
  const keys = sortKeys(column);
  return rows.sort((a, b) => {
    const x = keys[a], y = keys[b];
    if (x === y) return rank[a] - rank[b];
    if (x !== x || y !== y) return x !== x ? (y !== y ? rank[a] - rank[b] : 1) : -1;
    return x < y ? -sign : sign;
  });
}

/** Numbers in the order of a column's values, NaN for nulls. */
function sortKeys(column) {
  const { values, kind, words } = column;
  if (kind === "text") {
    const codes = [...words.keys()].slice(1).sort((a, b) => (words[a] < words[b] ? -1 : 1));
    const place = new Map(codes.map((code, i) => [code, i]));
    return Float64Array.from(values, (code) => (code === 0 ? NaN : place.get(code)));
  }
  return kind === "id" ? Float64Array.from(ranks(values), (place, row) => (values[row] === 0n ? NaN : place)) : values;
}

/** The place of each id among the sorted ones; the same for equal ids. Halves, since BigInts are slow to compare. */
function ranks(ids) {
  const half = new Uint32Array(ids.buffer, ids.byteOffset, 2 * ids.length);
  const rows = Uint32Array.from({ length: ids.length }, (_, i) => i);
  rows.sort((a, b) => half[2 * a + 1] - half[2 * b + 1] || half[2 * a] - half[2 * b]);
  const found = new Uint32Array(ids.length);
  let place = 0;
  for (let i = 1; i < rows.length; ++i) {
    const a = rows[i - 1], b = rows[i];
    if (half[2 * a] !== half[2 * b] || half[2 * a + 1] !== half[2 * b + 1]) place = i;
    found[b] = place;
  }
  return found;
}
