// The whole state of the page in its address, after '#': filters, order, choice, plots, and where the view is.

/** Write what differs from an untouched page. */
export function toHash(model, plots, view, colour) {
  const parts = new URLSearchParams();
  if (model.line.text.trim()) parts.set("filter", model.line.text.trim());
  for (const [name, [low, high]] of model.brushes) parts.append("range", `${name}:${end(low)}..${end(high)}`);
  if (model.box) parts.set("box", `${model.box.axes}:${[...model.box.low, ...model.box.high].join(",")}`);
  if (model.showTombstones) parts.set("tombstones", "1");
  if (model.onlyUnvetted) parts.set("unvetted", "1");
  if (model.sort.column !== "soma_id" || model.sort.descending) parts.set("sort", (model.sort.descending ? "-" : "") + model.sort.column);
  if (model.chosen >= 0) parts.set("soma", model.columns.get("soma_id").values[model.chosen].toString());
  parts.set("plots", plots.join(","));
  if (colour !== undefined) parts.set("colour", colour);
  if (view) parts.set("view", JSON.stringify(view, (_, v) => (typeof v === "number" ? Number(v.toPrecision(7)) : v)));
  return parts.toString().replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("+", "%20");
}

/** Read an address; what it does not say is null. */
export function fromHash(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const ranges = new Map();
  for (const text of parts.getAll("range")) {
    const match = /^(\w+):(.*)\.\.(.*)$/.exec(text);
    if (match) ranges.set(match[1], [match[2] === "" ? -Infinity : Number(match[2]), match[3] === "" ? Infinity : Number(match[3])]);
  }
  const box = /^(xy|xz|yz):(-?\d+),(-?\d+),(-?\d+),(-?\d+)$/.exec(parts.get("box") ?? "");
  const numbers = box?.slice(2).map(Number);
  const sort = parts.get("sort");
  return {
    filter: parts.get("filter") ?? "",
    ranges,
    box: box ? { axes: box[1], low: numbers.slice(0, 2), high: numbers.slice(2) } : null,
    tombstones: parts.has("tombstones"),
    unvetted: parts.has("unvetted"),
    sort: sort ? { column: sort.replace(/^-/, ""), descending: sort.startsWith("-") } : null,
    soma: /^\d{1,20}$/.test(parts.get("soma") ?? "") ? parts.get("soma") : null,
    plots: parts.get("plots")?.split(",") ?? null,
    colour: parts.get("colour"),
    view: readView(parts.get("view")),
  };
}

function readView(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null;
  }
}

const end = (value) => (Number.isFinite(value) ? String(value) : "");
