// How far runs are: asked for again every few seconds, while the page is looked at.

import { askJson } from "./api.js";
import { letter } from "./letter.js";

const EVERY_MS = 5000;
const $ = (id) => document.getElementById(id);

class Progress {
  async start() {
    const { runs } = await askJson("/v1/runs");
    if (!runs.length) {
      this.problem("No pipeline was run in the roots that this server shows. Start one with: cloudseg run FILE");
      document.documentElement.dataset.state = "ready";
      return;
    }
    for (const each of runs) $("run").add(new Option(each.root, each.run));
    const wanted = new URLSearchParams(location.hash.slice(1)).get("run");
    if (runs.some((each) => each.run === wanted)) $("run").value = wanted;
    $("run-label").hidden = false;
    $("run").addEventListener("change", () => this.look());
    document.addEventListener("visibilitychange", () => document.hidden || this.look());
    await this.look();
    setInterval(() => document.hidden || this.look(), EVERY_MS);
  }

  async look() {
    history.replaceState(null, "", `#run=${encodeURIComponent($("run").value)}`);
    try {
      this.draw(await askJson(`/v1/runs/${encodeURIComponent($("run").value)}`));
      this.problem("");
    } catch (error) {
      // What was there stays, and says how old it is.
      this.problem(error.message);
    }
    document.documentElement.dataset.state = "ready";
  }

  problem(text) {
    $("problem").hidden = !text;
    $("problem").textContent = text;
  }

  draw(run) {
    const done = run.steps.reduce((n, step) => n + step.n_done, 0), all = run.steps.reduce((n, step) => n + step.n_tasks, 0);
    const word = run.n_dead ? `${run.n_dead} ${run.n_dead === 1 ? "task" : "tasks"} gave up` : run.complete ? "complete" : run.cancelled ? "cancelled" : "under way";
    const { core_hours: hours, dollars, dollars_per_core_hour: price } = run.cost;
    $("summary").textContent = `${word}: ${done} of ${all} tasks. So far ${number(hours)} core hours, $${dollars.toFixed(2)} at $${price} an hour.`;
    $("summary").className = run.n_dead ? "bad" : run.complete ? "good" : "";
    $("at").textContent = `as of ${new Date(run.at).toLocaleTimeString()}`;
    document.title = `${all ? Math.floor((100 * done) / all) : 100} % · runs`;
    $("steps").tBodies[0].replaceChildren(...run.steps.map(row));
    const failures = run.steps.flatMap((step) => step.dead.map((letter) => ({ ...letter, step: step.step })));
    $("failures").hidden = !failures.length;
    const open = new Set([...$("failures").querySelectorAll("details[open]")].map((each) => each.dataset.id));
    $("failures").lastElementChild.replaceChildren(...failures.map((each) => failure(each, open)));
  }
}

function row(step) {
  const element = document.createElement("tr");
  element.dataset.step = step.step;
  const bar = document.createElement("progress");
  bar.max = Math.max(1, step.n_tasks);
  bar.value = step.n_done;
  bar.setAttribute("aria-label", `${step.step}: ${step.n_done} of ${step.n_tasks}`);
  const running = step.n_done < step.n_tasks;
  const rate = step.voxels_per_s ? `${number(step.voxels_per_s / 1e6)} Mvx/s` : step.tasks_per_s ? `${number(step.tasks_per_s)} tasks/s` : "";
  const texts = [step.stage, step.step, bar, `${step.n_done}/${step.n_tasks}`, rate, running && step.eta_s !== null ? duration(step.eta_s) : "",
    step.n_done ? duration(step.seconds_per_task) : "", step.peak_memory_bytes ? `${number(step.peak_memory_bytes / 2 ** 30)} GiB` : "",
    step.core_seconds ? number(step.core_seconds / 3600) : "", `${step.n_dead || ""}${step.n_failed_attempts ? ` (${step.n_failed_attempts} failed attempts)` : ""}`];
  element.append(...texts.map((each, i) => {
    const cell = document.createElement("td");
    if (i > 2) cell.className = "number";
    cell.append(each);
    return cell;
  }));
  if (step.n_dead) element.className = "bad";
  return element;
}

function failure(letter, open) {
  const details = document.createElement("details"), summary = document.createElement("summary");
  details.dataset.id = letter.task_id;
  details.open = open.has(letter.task_id);
  summary.textContent = `${letter.step} · ${letter.task_id.slice(0, 12)}: ${letter.reason}`;
  const trace = document.createElement("pre");
  trace.textContent = letter.traceback || "It left no traceback.";
  trace.tabIndex = 0;
  details.append(summary, `${letter.attempts} attempts.`, trace);
  return details;
}

const number = (value) => (value >= 100 ? Math.round(value).toLocaleString("en").replaceAll(",", "\u2009") : String(Number(value.toPrecision(2))));

function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
}

window.progress = new Progress();
window.progress.start().catch(letter);
