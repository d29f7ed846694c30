// The rows on the page as CSV: all columns, all digits, in the order of the table.

const PIECE = 20_000;

/** Return a Blob; ids keep their 64 bits. */
export function toCsv(model) {
  const columns = [...model.columns.values()];
  const pieces = [columns.map((each) => each.name).join(",") + ",verdict\n"];
  for (let start = 0; start < model.shown.length; start += PIECE) {
    let text = "";
    for (const row of model.shown.subarray(start, start + PIECE)) {
      for (const column of columns) text += quoted(column.exact(row)) + ",";
      text += (model.verdicts.get(row) ?? "") + "\n";
    }
    pieces.push(text);
  }
  return new Blob(pieces, { type: "text/csv;charset=utf-8" });
}

/** Offer a blob as a file. */
export function download(blob, name) {
  const anchor = document.createElement("a");
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}

const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
