// The soma page: fetches the table, opens the view, and ties filters, plots, table and view together.

import { askJson, ask, Refusal, token } from "./api.js";
import { Chosen } from "./chosen.js";
import { parseColumns } from "./columns.js";
import { download, toCsv } from "./csv.js";
import { columnsOf, FilterError, parseLine } from "./filters.js";
import { Histogram } from "./histogram.js";
import { addKeys } from "./keys.js";
import { letter } from "./letter.js";
import { fromHash, toHash } from "./link.js";
import { DensityMap } from "./map.js";
import { Model } from "./model.js";
import { label, Table } from "./table.js";
import { Verdicts } from "./verdicts.js";
import { firstState, Space } from "./viewer3d.js";

const $ = (id) => document.getElementById(id);
const PLOTS = ["volume_um3", "radius_um", "score", "nearest_um"];
const COLOURS = ["volume_um3", "radius_um", "score", "nearest_um"];
const LINK_EVERY_MS = 400;

class Page {
  async start() {
    const asked = new URLSearchParams(location.search);
    this.dataset = asked.get("dataset") ?? (await this.onlyDataset());
    const base = `/v1/datasets/${encodeURIComponent(this.dataset)}`;
    const version = asked.get("version");
    this.config = await askJson(`${base}/page${version ? `?version=${encodeURIComponent(version)}` : ""}`);
    const answer = await ask(`${base}/columns?version=${this.config.version}`);
    const { header, columns } = parseColumns(await answer.arrayBuffer());
    this.model = new Model(header, columns);
    this.schema = new Map(Object.entries(this.config.columns));
    this.build(base);
    await this.restore(fromHash(location.hash));
    this.listen();
    document.documentElement.dataset.state = "table";
    this.openSpace().catch((error) => this.spaceProblem(error.message));
    this.verdicts.load().catch((error) => this.say(error.message, true));
  }

  async onlyDataset() {
    const { datasets } = await askJson("/v1/datasets");
    if (!datasets.length) {
      throw new Refusal(404, "No soma catalogue is published here yet. Run a pipeline with the stage soma_catalogue, and start: cloudseg serve ROOT. "
        + "A run that publishes one later is noticed: reload this page then.");
    }
    return datasets[0].dataset;
  }

  build(base) {
    const { model, config } = this;
    document.title = `${config.dataset} v${config.version} · somas`;
    $("dataset").textContent = config.dataset;
    for (const each of config.versions) $("version").add(new Option(each + (each === config.latest ? " (published)" : ""), each, false, each === config.version));
    $("version-label").hidden = false;
    for (const name of this.schema.keys()) $("column-names").append(new Option(name));
    this.table = new Table($("table"), model, { onFly: (row) => this.fly(row) });
    const numeric = [...model.columns.values()].filter((each) => each.kind === "number" || each.kind === "integer").map((each) => each.name);
    const first = [...PLOTS, ...numeric].filter((name, i, all) => model.columns.has(name) && all.indexOf(name) === i);
    this.histograms = first.slice(0, PLOTS.length).map((name) => new Histogram($("plots").appendChild(document.createElement("div")), model, numeric, name));
    this.map = new DensityMap($("plots").appendChild(document.createElement("div")), model, config.bounds_nm);
    this.space = new Space($("space-frame"), model, { onPick: (row) => this.picked(row), onProblem: (text) => this.spaceProblem(text), onSample: (yes) => { $("sample").hidden = !yes; } });
    this.verdicts = new Verdicts(model, config, { say: (text, problem) => this.say(text, problem) });
    this.chosen = new Chosen($("chosen"), model, { base, config, onVerdict: (value) => this.verdict(value), onUndo: () => this.undo() });
    for (const name of ["", ...COLOURS.filter((each) => model.columns.has(each))]) $("colour").add(new Option(name ? label(name)[0] : "one colour", name));
    $("colour").value = COLOURS.find((each) => model.columns.has(each)) ?? "";
  }

  listen() {
    const { model } = this;
    model.addEventListener("change", () => this.changed());
    for (const kind of ["order", "choose", "plots"]) model.addEventListener(kind, () => this.remember());
    model.addEventListener("choose", () => this.space.update());
    model.addEventListener("verdict", () => {
      if (model.onlyUnvetted) model.collect();
      this.space.update();
      this.count();
    });
    $("line").addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.readLine(), 120);
    });
    $("filter").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(this.typing);
      this.readLine();
    });
    $("unvetted").addEventListener("change", () => model.setUnvetted($("unvetted").checked));
    $("tombstones").addEventListener("change", () => model.setTombstones($("tombstones").checked));
    $("clear").addEventListener("click", () => {
      $("line").value = "";
      $("line-problem").textContent = "";
      $("unvetted").checked = $("tombstones").checked = false;
      model.clear();
    });
    $("colour").addEventListener("change", () => {
      this.space.colourBy($("colour").value);
      this.remember();
    });
    $("version").addEventListener("change", () => {
      const asked = new URLSearchParams({ dataset: this.dataset, version: $("version").value });
      location.assign(`?${asked}${location.hash}`);
    });
    $("copy-link").addEventListener("click", () => this.copy(this.link(), "The link is in the clipboard."));
    $("copy-python").addEventListener("click", () => this.copyPython());
    $("csv").addEventListener("click", () => download(toCsv(model), `${this.config.dataset}-v${this.config.version}-somas.csv`));
    addEventListener("hashchange", () => this.restore(fromHash(location.hash)));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => model.dispatchEvent(new Event("change")));
    addKeys({
      help: $("keys"), list: $("keys-list"), button: $("help"), filter: $("line"),
      next: () => this.table.step(1, true), previous: () => this.table.step(-1, true),
      accept: () => this.verdict("verified"), reject: () => this.verdict("rejected"), undo: () => this.undo(),
      fly: () => model.chosen >= 0 && this.fly(model.chosen),
      clear: () => $("clear").click(),
    });
  }

  /** Bring the page into the state of a link. */
  async restore(wanted) {
    const { model } = this;
    model.brushes.clear();
    model.fails.fill(0);
    $("line").value = wanted.filter;
    $("tombstones").checked = model.showTombstones = wanted.tombstones;
    $("unvetted").checked = model.onlyUnvetted = wanted.unvetted;
    wanted.plots?.forEach((name, i) => {
      if (this.histograms[i] && model.columns.has(name)) this.histograms[i].use(name);
      else if (["xy", "xz", "yz"].includes(name)) this.map.use(name);
    });
    if (wanted.sort && this.schema.has(wanted.sort.column)) model.setSort(wanted.sort.column, wanted.sort.descending);
    await this.readLine();
    for (const [name, range] of wanted.ranges) if (model.columns.has(name)) model.setBrush(name, range);
    if (wanted.box) this.map.use(wanted.box.axes);
    model.setBox(wanted.box);
    model.setTombstones(wanted.tombstones);
    model.setUnvetted(wanted.unvetted);
    if (wanted.colour !== null) $("colour").value = wanted.colour;
    this.view = wanted.view;
    if (this.view && this.space.listening) this.space.move(this.view);
    const row = wanted.soma === null ? -1 : model.rowOf(wanted.soma);
    if (wanted.soma !== null && row < 0) this.say(`There is no soma ${wanted.soma} in version ${this.config.version}.`, true);
    model.choose(row, "link");
    this.table.reveal(row);
    this.changed();
  }

  async openSpace() {
    const state = firstState(this.config), { chosen } = this.model;
    if (chosen >= 0) state.position = this.space.place(chosen, Object.values(state.dimensions).map(([size]) => size));
    await this.space.show({ ...state, ...this.view });
    this.space.colourBy($("colour").value);
    this.space.update();
    if (chosen >= 0) this.space.select(chosen);
    this.space.viewer.state.changed.add(() => this.remember());
    document.documentElement.dataset.state = "ready";
  }

  /** Apply the filter line; columns that the page has not got yet are fetched. */
  async readLine() {
    const text = $("line").value;
    try {
      const conditions = parseLine(text, this.schema);
      const absent = [...columnsOf(conditions)].filter((name) => !this.model.columns.has(name) && !this.config.empty?.includes(name));
      if (absent.length) await this.fetchColumns(absent);
      if (text !== $("line").value) return;
      $("line-problem").textContent = "";
      $("line").removeAttribute("aria-invalid");
      this.model.setLine(text, conditions);
    } catch (error) {
      if (!(error instanceof FilterError || error instanceof Refusal)) throw error;
      $("line-problem").textContent = error.message;
      $("line").setAttribute("aria-invalid", "true");
    }
  }

  async fetchColumns(names) {
    const path = `/v1/datasets/${encodeURIComponent(this.dataset)}/columns?version=${this.config.version}&names=${names.join(",")}`;
    const { columns } = parseColumns(await (await ask(path)).arrayBuffer());
    for (const [name, column] of columns) this.model.columns.set(name, column);
  }

  changed() {
    this.count();
    this.space.update();
    this.remember();
  }

  count() {
    const { shown, n, verdicts } = this.model;
    const number = (value) => value.toLocaleString("en").replaceAll(",", "\u2009");
    $("count").textContent = `${number(shown.length)} of ${number(n)} somas${verdicts.size ? `, ${number(verdicts.size)} vetted` : ""}`;
  }

  fly(row) {
    this.model.choose(row, "table");
    this.space.fly(row);
  }

  picked(row) {
    if (row < 0) return;
    this.model.choose(row, "space");
    this.space.select(row);
    this.table.body.focus({ preventScroll: true }); // out of the frame, so that the page's keys are its own again
  }

  verdict(value) {
    const { model } = this;
    if (model.chosen < 0) {
      this.say("Choose a soma first: a row, or a point in the view.", true);
      return;
    }
    const place = model.shown.indexOf(model.chosen);
    if (!this.verdicts.give(model.chosen, value)) return;
    // On to the next one, so that vetting is one key for each soma.
    const next = model.shown[model.onlyUnvetted ? place : place + 1];
    if (next !== undefined) this.fly(next);
  }

  undo() {
    const row = this.verdicts.undo();
    if (row >= 0) this.fly(row);
  }

  link() {
    const plots = [...this.histograms.map((each) => each.name), this.map.axes];
    const asked = new URLSearchParams({ dataset: this.dataset, version: this.config.version });
    return `${location.origin}${location.pathname}?${asked}#${toHash(this.model, plots, this.space.where() ?? this.view, $("colour").value)}`;
  }

  /** Keep the address up to date, not at every step. */
  remember() {
    if (this.remembering) return;
    this.remembering = setTimeout(() => {
      this.remembering = null;
      history.replaceState(null, "", this.link());
    }, LINK_EVERY_MS);
  }

  async copyPython() {
    try {
      await this.copy(this.model.python(location.origin), "The question is in the clipboard, in Python.");
    } catch (error) {
      this.say(error.message, true);
    }
  }

  async copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
      this.say(done, false);
    } catch {
      // Over plain http from another machine there is no clipboard.
      this.say(`The browser gives no access to the clipboard; copy this: ${text}`, true);
    }
  }

  say(text, problem) {
    $("notice").textContent = text;
    $("notice").classList.toggle("problem", Boolean(problem));
    clearTimeout(this.saying);
    if (!problem) this.saying = setTimeout(() => ($("notice").textContent = ""), 4000);
  }

  spaceProblem(text) {
    $("space-problem").hidden = !text;
    $("space-problem").textContent = text ? `The 3D view: ${text}` : "";
  }
}

window.page = new Page();
window.page.start().catch((error) => {
  letter(error);
  if (!(error instanceof Refusal)) throw error;
});
