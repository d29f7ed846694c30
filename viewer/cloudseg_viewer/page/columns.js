// The soma table as whole columns: typed arrays over the bytes that the server sent.

const ARRAYS = {
  float64: Float64Array, float32: Float32Array, uint64: BigUint64Array,
  uint32: Uint32Array, uint16: Uint16Array, uint8: Uint8Array,
};

/** One column. A null is NaN in a number, 0 in an id or a text; a text is the place of its word. */
export class Column {
  constructor({ name, kind, unit, description, words }, values) {
    Object.assign(this, { name, kind, unit, description, words, values });
  }

  isNull(row) {
    const value = this.values[row];
    return this.kind === "text" ? value === 0 : this.kind === "id" ? value === 0n : Number.isNaN(value);
  }

  /** A value as people read it; empty for a null. */
  text(row) {
    if (this.isNull(row)) return "";
    const value = this.values[row];
    if (this.kind === "text") return this.words[value];
    if (this.kind === "id") return value.toString();
    if (this.kind === "integer") return String(value);
    if (this.name.endsWith("_nm")) return Math.round(value).toLocaleString("en").replaceAll(",", "\u2009");
    return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  }

  /** A value with all its digits, for a file; empty for a null. */
  exact(row) {
    if (this.isNull(row)) return "";
    const value = this.values[row];
    if (this.kind === "text") return this.words[value];
    // The shortest text that gives the same float32, as the server's own CSV has it.
    if (this.values instanceof Float32Array) return shortest32(value);
    return value.toString();
  }
}

/** Read the bytes: what they are (dataset, version, n), and columns by name. */
export function parseColumns(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  if (header.format !== "cloudseg-columns/1") {
    throw new Error(`The server sent ${header.format}, and this page reads cloudseg-columns/1; reload the page.`);
  }
  const columns = new Map();
  for (const entry of header.columns) {
    const values = new ARRAYS[entry.type](buffer, 4 + length + entry.offset, header.n);
    columns.set(entry.name, new Column(entry, values));
  }
  return { header, columns };
}

function shortest32(value) {
  for (let digits = 6; digits < 10; ++digits) {
    const text = Number(value.toPrecision(digits));
    if (Math.fround(text) === value) return String(text);
  }
  return String(value);
}
