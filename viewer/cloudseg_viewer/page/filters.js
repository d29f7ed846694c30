// The filter line: the client's closed grammar, typed as text or as its JSON.
//
//   volume_um3 >= 50 and side = left        {"volume_um3": {">=": 50}, "side": "left"}
//   region in [LO, "ME"], segment_id is not null
//
// Conditions all hold. A null matches no comparison, != and not in included; `is null` asks for it.

const OPERATORS = ["==", "!=", "<", "<=", ">", ">=", "in", "not_in", "is_null"];
const FOR_TEXT = ["==", "!=", "in", "not_in", "is_null"];
const TOKEN = /\s*(?:("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(==|!=|<=|>=|<>|=|<|>)|([[\](),;&])|([^\s"'=!<>[\](),;&]+))/y;

export class FilterError extends Error {}

/** Read a line: a list of { column, operator, value }, checked against `schema`, which maps names to kinds. */
export function parseLine(text, schema) {
  const line = text.trim();
  if (!line) return [];
  return line.startsWith("{") ? fromWhere(parseJson(line), schema) : new Parser(line, schema).conditions();
}

/** Read the client's own form, {"column": value | list | {operator: value}}. */
export function fromWhere(where, schema) {
  const found = [];
  for (const [name, asked] of Object.entries(where)) {
    if (Array.isArray(asked)) found.push(condition(name, "in", asked, schema));
    else if (asked !== null && typeof asked === "object") {
      const entries = Object.entries(asked);
      if (!entries.length) throw new FilterError(`${name}: no operator given; there are ${OPERATORS.join(" ")}`);
      for (const [operator, value] of entries) found.push(condition(name, operator, value, schema));
    } else found.push(condition(name, "==", asked, schema));
  }
  return found;
}

/** Write conditions in the client's form. Bounds of one column are joined; two of another kind are refused. */
export function toWhere(conditions) {
  const where = {};
  for (const { column, operator, value } of conditions) {
    const own = (where[column] ??= {});
    const written = Array.isArray(value) ? value.map(plain) : plain(value);
    if (!(operator in own)) own[operator] = written;
    else if (operator.startsWith(">")) own[operator] = larger(own[operator], written);
    else if (operator.startsWith("<")) own[operator] = larger(written, own[operator]) === written ? own[operator] : written;
    else if (JSON.stringify(own[operator]) !== JSON.stringify(written)) {
      throw new FilterError(`${column}: ${operator} is asked for twice; write it once`);
    }
  }
  return where;
}

/** Return a function from rows to whether the conditions hold; `columns` maps names to Column or undefined (all null). */
export function predicate(conditions, columns) {
  const tests = conditions.map((each) => test(each, columns.get(each.column)));
  if (tests.length === 1) return tests[0];
  return (row) => tests.every((each) => each(row));
}

/** The names that `conditions` speak of. */
export const columnsOf = (conditions) => new Set(conditions.map((each) => each.column));

function test({ operator, value }, column) {
  if (column === undefined) return operator === "is_null" ? () => value : () => false;
  if (operator === "is_null") return (row) => column.isNull(row) === value;
  const { values, kind } = column;
  if (kind === "text") {
    const wanted = new Set((Array.isArray(value) ? value : [value]).map((v) => column.words.indexOf(v)));
    const positive = operator === "==" || operator === "in";
    return (row) => values[row] !== 0 && wanted.has(values[row]) === positive;
  }
  const nothing = kind === "id" ? 0n : NaN;
  const isThere = kind === "id" ? (v) => v !== nothing : (v) => v === v;
  if (operator === "in" || operator === "not_in") {
    const wanted = new Set(value), positive = operator === "in";
    return (row) => isThere(values[row]) && wanted.has(values[row]) === positive;
  }
  if (operator === "==") return (row) => values[row] === value && isThere(values[row]);
  if (operator === "!=") return (row) => isThere(values[row]) && values[row] !== value;
  if (operator === "<") return (row) => isThere(values[row]) && values[row] < value;
  if (operator === "<=") return (row) => isThere(values[row]) && values[row] <= value;
  if (operator === ">") return (row) => isThere(values[row]) && values[row] > value;
  return (row) => isThere(values[row]) && values[row] >= value;
}

class Parser {
  constructor(line, schema) {
    this.schema = schema;
    this.tokens = [];
    TOKEN.lastIndex = 0;
    while (TOKEN.lastIndex < line.length) {
      const at = TOKEN.lastIndex, match = TOKEN.exec(line);
      if (!match) {
        if (!line.slice(at).trim()) break;
        throw new FilterError(`cannot read ${JSON.stringify(line.slice(at, at + 20))}: a quote is not closed, or a sign is strange here`);
      }
      const [, quoted, sign, mark, word] = match;
      if (quoted) this.tokens.push({ text: quoted.slice(1, -1).replace(/\\(.)/g, "$1"), quoted: true });
      else this.tokens.push({ text: sign ?? mark ?? word, sign, mark });
    }
    this.at = 0;
  }

  conditions() {
    const found = [];
    while (this.at < this.tokens.length) {
      found.push(...this.condition());
      const next = this.tokens[this.at];
      if (!next) break;
      if (!(next.mark && ",;&".includes(next.mark)) && next.text.toLowerCase() !== "and") {
        if (next.text.toLowerCase() === "or") throw new FilterError("all conditions must hold, there is no 'or'; for several values write: column in [a, b]");
        throw new FilterError(`expected 'and' before ${JSON.stringify(next.text)}`);
      }
      ++this.at;
      while (this.tokens[this.at]?.mark && "&,;".includes(this.tokens[this.at].mark)) ++this.at;
      if (this.at === this.tokens.length) throw new FilterError("the line ends after 'and'; write another condition, or remove it");
    }
    return found;
  }

  condition() {
    const first = this.word("a column");
    // 50 <= volume_um3 < 200
    if (isNumber(first.text) && this.tokens[this.at]?.sign) {
      const flipped = { "<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "==", "==": "==", "!=": "!=", "<>": "!=" };
      const operator = flipped[this.tokens[this.at++].text];
      const name = this.word("a column").text;
      const found = [condition(name, operator, this.value(first, name), this.schema)];
      if (this.tokens[this.at]?.sign) found.push(this.comparison(name));
      return found;
    }
    const name = first.text;
    const next = this.tokens[this.at];
    if (!next) throw new FilterError(`${name}: expected a comparison after it, e.g. ${name} >= 50`);
    if (next.sign) return [this.comparison(name)];
    let word = next.text.toLowerCase();
    ++this.at;
    if (word === "is") {
      const negated = this.take("not");
      if (!this.take("null")) throw new FilterError(`${name}: after 'is' comes 'null' or 'not null'`);
      return [condition(name, "is_null", !negated, this.schema)];
    }
    if (word === "not" && this.take("in")) word = "not_in";
    if (word === "in" || word === "not_in") return [condition(name, word, this.list(name), this.schema)];
    throw new FilterError(`${name}: there is no operator ${JSON.stringify(next.text)}; there are ${OPERATORS.join(" ")}`);
  }

  comparison(name) {
    const sign = this.tokens[this.at++].text;
    const operator = { "=": "==", "<>": "!=" }[sign] ?? sign;
    return condition(name, operator, this.value(this.word(`a value after ${name} ${sign}`), name), this.schema);
  }

  list(name) {
    const open = this.tokens[this.at];
    if (!open || !"[(".includes(open.text)) throw new FilterError(`${name}: after 'in' comes a list, e.g. [a, b]`);
    ++this.at;
    const values = [], close = open.text === "[" ? "]" : ")";
    for (;;) {
      const token = this.tokens[this.at++];
      if (!token) throw new FilterError(`${name}: the list is not closed; end it with ${close}`);
      if (token.mark === close) return values;
      if (token.mark !== ",") values.push(this.value(token, name));
    }
  }

  value(token, name) {
    const kind = this.schema.get(name);
    return token.quoted || kind === "text" || kind === "id" || !isNumber(token.text) ? token.text : Number(token.text);
  }

  word(what) {
    const token = this.tokens[this.at++];
    if (!token || token.sign || token.mark) {
      throw new FilterError(`expected ${what}${token ? ` instead of ${JSON.stringify(token.text)}` : ""}`);
    }
    return token;
  }

  take(word) {
    const found = this.tokens[this.at]?.text.toLowerCase() === word;
    if (found) ++this.at;
    return found;
  }
}

function condition(column, operator, value, schema) {
  const kind = schema.get(column);
  if (kind === undefined) throw new FilterError(`there is no column ${JSON.stringify(column)}; ${suggestion(column, [...schema.keys()])}`);
  const operators = kind === "text" ? FOR_TEXT : OPERATORS;
  if (!operators.includes(operator)) {
    throw new FilterError(OPERATORS.includes(operator)
      ? `${column}: ${operator} compares numbers, and ${column} is text; use ${FOR_TEXT.join(" ")}`
      : `${column}: there is no operator ${JSON.stringify(operator)}; there are ${OPERATORS.join(" ")}`);
  }
  if (operator === "is_null") {
    if (typeof value !== "boolean") throw new FilterError(`${column}.is_null: expected true or false`);
    return { column, operator, value };
  }
  if (operator === "in" || operator === "not_in") {
    if (!Array.isArray(value)) throw new FilterError(`${column}: ${operator} wants a list, e.g. [a, b]`);
    return { column, operator, value: value.map((each) => checked(column, kind, each)) };
  }
  return { column, operator, value: checked(column, kind, value) };
}

function checked(column, kind, value) {
  const shown = JSON.stringify(value);
  if (value === null) throw new FilterError(`${column}: null is no value; to ask for rows without one write: ${column} is null`);
  if (kind === "text") {
    if (typeof value !== "string") throw new FilterError(`${column} is text, got ${shown}`);
    return value;
  }
  if (kind === "id") {
    const text = String(value);
    if (typeof value === "number" && !Number.isSafeInteger(value)) {
      throw new FilterError(`${column}: ids above 2^53 lose digits in JSON; write the id as text, in quotes`);
    }
    if (!/^\d{1,20}$/.test(text) || BigInt(text) >= 1n << 64n) {
      throw new FilterError(`${column}: an id is a whole number from 0 to 2^64 - 1, got ${shown}`);
    }
    return BigInt(text);
  }
  if (typeof value !== "number" || !Number.isFinite(value)) throw new FilterError(`${column} is a number, got ${shown}`);
  if (kind === "integer" && !Number.isInteger(value)) throw new FilterError(`${column}: expected a whole number, got ${shown}`);
  return value;
}

function suggestion(name, known) {
  const wanted = name.toLowerCase();
  const close = known.map((each) => [distance(wanted, each), each])
    .filter(([d, each]) => d <= Math.max(2, wanted.length / 3) || (wanted && each.startsWith(wanted)))
    .sort((a, b) => a[0] - b[0]).slice(0, 3).map(([, each]) => each);
  return close.length ? `did you mean ${close.join(" or ")}?` : `there are: ${known.join(", ")}`;
}

/** How many letters must change to make one word the other (Levenshtein). */
function distance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; ++i) {
    const next = [i];
    for (let j = 1; j <= b.length; ++j) {
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length];
}

function parseJson(line) {
  let found;
  try {
    found = JSON.parse(line);
  } catch (error) {
    throw new FilterError(`this is no JSON: ${error.message}`);
  }
  return found;
}

const isNumber = (text) => /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text);
const plain = (value) => (typeof value === "bigint" ? value.toString() : value);
const larger = (a, b) => (typeof a === "string" ? (BigInt(a) >= BigInt(b) ? a : b) : Math.max(a, b));
