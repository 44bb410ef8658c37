/** Score: many clips, the log-likelihood of each, and of a window in all of them. */

import { ApiError } from "./api.js";
import { notices } from "./clip.js";
import { Picture } from "./picture.js";
import { keepResult, openRow, windowOf } from "./row.js";
import { Table } from "./table.js";
import { askForKey, byId, save, say, showError, showWarnings } from "./view.js";

/** @typedef {import("./row.js").Row} Row */

const NOT_THE_CLIPS = ["invalid_api_key", "network", "overloaded", "draining", "not_ready"]; // errors
const picture = new Picture(byId("score-picture", HTMLElement), "score-", "Window");
const table = new Table(byId("scores", HTMLTableElement), show);
const scoreWindow = byId("score-window", HTMLButtonElement);
const stop = byId("score-stop", HTMLButtonElement);
/** @type {import("./api.js").Api} */ let api;
/** @type {(error: unknown) => void} */ let explain;
/** @type {Row | null} */ let shown = null;
/** @type {AbortController | null} while clips are scored */ let running = null;
/** @type {Record<string, string>} the fields of the window, if one is wanted */ let windowFields = {};

/** @param {Row} row */
function show(row) {
  const another = row !== shown;
  shown = row;
  table.mark(row);
  byId("score-shown", HTMLElement).textContent = row.name;
  picture.timeline.open(row.samples ? row.part : null, row.likelihoods);
  if (another) {
    picture.clear();
    if (row.samples) picture.player.push(row.samples);
    picture.player.end();
    const { range } = picture.selection; // stays where it is, so that it can be compared
    const fits = range && windowFields.window_start && range.to <= row.seconds;
    const next = fits ? range : { from: 0, to: row.seconds };
    picture.selection.set(next, row.seconds);
    picture.chosen(next, true);
  }
  picture.changed(0);
  byId("window-tools", HTMLElement).hidden = !row.samples;
  showWarnings(row.result?.warnings ?? (row.samples ? notices(row) : []));
}

/** @param {File[]} files */
export async function addFiles(files) {
  showError("");
  byId("score-results", HTMLElement).hidden = false;
  for (const file of files) {
    const row = await openRow(file);
    table.add(row);
    if (!shown) show(row);
    void run();
  }
}

/** Scores what is due, one clip after another: together they would wait for one another all the same. */
export async function run() {
  if (running) return;
  const current = (running = new AbortController());
  stop.hidden = false;
  stop.textContent = "Stop";
  scoreWindow.disabled = true;
  let [scored, failed] = [0, 0];
  try {
    showError("");
    for (let row = next(); row; row = next()) {
      say(`Scoring ${row.name}…`);
      await score(row, current.signal);
      askForKey(false);
      if (row.failed) failed++;
      else scored++;
    }
    say(`${scored} ${scored === 1 ? "clip" : "clips"} scored${failed ? `, ${failed} could not be` : ""}.`);
  } catch (error) {
    if (current.signal.aborted) say("Stopped.");
    else explain(error);
  } finally {
    running = null;
    stop.textContent = "Score the rest";
    stop.hidden = !next();
    scoreWindow.disabled = false;
    for (const row of table.rows.filter(({ due }) => due)) tell(row, "not scored", false);
  }
}

const next = () => table.rows.find(({ due }) => due);

/** @param {Row} row @param {string} told @param {boolean} failed */
function tell(row, told, failed) {
  Object.assign(row, { told, failed });
  table.update(row);
}

/** @param {Row} row @param {AbortSignal} signal */
async function score(row, signal) {
  const fields = { detail: "tokens", ...windowFields };
  const sent = (/** @type {number} */ share) => {
    tell(row, share < 1 ? `sending: ${Math.round(100 * share)} %` : "is scored…", false);
  };
  try {
    const result = await api.score({ file: row.file, name: row.name, fields }, signal, sent);
    keepResult(row, result);
    table.update(row);
    if (row === shown) show(row);
  } catch (error) {
    if (!(error instanceof ApiError) || NOT_THE_CLIPS.includes(error.code)) throw error;
    row.due = false;
    tell(row, error.message, true); // this clip's fault; the others go on
  }
}

/** @param {Record<string, string>} fields of a window, for all clips */
function scoreAll(fields) {
  windowFields = fields;
  showError("");
  for (const row of table.rows) row.due = true;
  void run();
}

/** @param {import("./api.js").Api} given @param {(error: unknown) => void} told */
export function prepareScoring(given, told) {
  [api, explain] = [given, told];
  const input = byId("score-files", HTMLInputElement);
  input.addEventListener("change", () => {
    void addFiles([...(input.files ?? [])]);
    input.value = "";
  });
  stop.addEventListener("click", () => (running ? running.abort() : void run()));
  scoreWindow.addEventListener("click", () => {
    const { range } = picture.selection;
    const by = byId("normalise-by", HTMLSelectElement).value;
    if (!range) return;
    scoreAll({ ...windowOf(range), ...(by ? { normalise_by: by } : {}) });
  });
  byId("export-csv", HTMLButtonElement).addEventListener("click", () => {
    save(new Blob([table.csv()], { type: "text/csv" }), "scores.csv");
  });
  byId("clear-scores", HTMLButtonElement).addEventListener("click", () => {
    running?.abort();
    table.clear();
    [shown, windowFields] = [null, {}];
    picture.clear();
    byId("score-results", HTMLElement).hidden = true;
    say("");
  });
  picture.chosen = ({ from, to }) => {
    byId("window-told", HTMLElement).textContent = `${from.toFixed(2)} s to ${to.toFixed(2)} s`;
  };
}
