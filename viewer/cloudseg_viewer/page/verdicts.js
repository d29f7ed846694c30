// Accept, reject, undo: reference rows, appended by the server and never changed. An undo is a row as well.

import { ask, askJson } from "./api.js";

const SYSTEM = "status", SOURCE = "soma page";
const WAIT_MS = 400; // several keys in a row go together
const AGAIN_MS = 4000;

export class Verdicts {
  /** `say(text, isProblem)` shows how saving goes. */
  constructor(model, config, { say }) {
    Object.assign(this, { model, config, say });
    this.path = `/v1/datasets/${encodeURIComponent(config.dataset)}/annotations`;
    this.ids = model.columns.get("soma_id").values;
    this.past = []; // { row, before, after } for undo
    this.waiting = [];
    this.mayEdit = config.you.scopes.includes("edit");
    addEventListener("pagehide", () => this.send(true));
    addEventListener("beforeunload", (event) => (this.waiting.length || this.batch) && event.preventDefault());
  }

  /** Fetch what was said before: the latest row of each soma is in effect. */
  async load() {
    const { rows } = await askJson(this.path);
    const found = new Map();
    for (const each of rows) {
      if (each.system !== SYSTEM) continue;
      const row = this.model.rowOf(each.soma_id);
      if (row < 0) continue;
      if (each.value === "verified" || each.value === "rejected") found.set(row, each.value);
      else found.delete(row);
    }
    this.model.setVerdicts(found);
  }

  /** Say that a soma is one ("verified") or is none ("rejected"). Returns whether it was taken. */
  give(row, value) {
    if (!this.mayEdit) {
      this.say(this.config.you.tokens
        ? `Your token may read and not edit. Ask whoever runs the server for one with the scope edit.`
        : "This server takes no edits. Start it with: cloudseg serve ROOT --tokens FILE, and use a token with the scope edit.", true);
      return false;
    }
    const before = this.model.verdicts.get(row);
    if (before === value) return true;
    this.past.push({ row, before, after: value });
    this.note(row, value);
    return true;
  }

  /** Take back the last verdict that was given here; the row it was about, or -1. */
  undo() {
    const last = this.past.pop();
    if (!last) {
      this.say("There is nothing to undo.", false);
      return -1;
    }
    this.note(last.row, last.before);
    return last.row;
  }

  note(row, value) {
    this.model.setVerdict(row, value);
    this.waiting.push({ soma_id: this.ids[row].toString(), system: SYSTEM, value: value ?? "auto", source: SOURCE, version: this.config.version });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), WAIT_MS);
    this.say(`${this.waiting.length} to save…`, false);
  }

  /** Send what waits; on a failure it waits on, and is sent again. */
  async send(atOnce = false) {
    if (!(this.waiting.length || this.batch) || this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    // The same name for the same rows: where an answer was lost, a second try appends nothing twice.
    this.batch ??= { rows: this.waiting.splice(0, 1000), name: randomName() };
    const { rows, name } = this.batch;
    try {
      await ask(this.path, { method: "POST", body: { rows }, keepalive: atOnce, headers: { "Idempotency-Key": name } });
      this.batch = null;
      this.say(this.waiting.length ? `${this.waiting.length} to save…` : "saved", false);
    } catch (error) {
      this.say(`${this.waiting.length + rows.length} not saved: ${error.message}`, true);
      this.timer = setTimeout(() => this.send(), AGAIN_MS);
    } finally {
      this.sending = false;
    }
    if (this.waiting.length && !this.batch) this.send();
  }
}

const randomName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (each) => each.toString(16)).join("");
