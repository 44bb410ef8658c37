/** The table of scores: rows that sort, and the same as CSV. */

import { thumbnail } from "./rows.js";
import { make } from "./view.js";

/**
 * @typedef {import("./row.js").Row} Row
 * @typedef {{key: string, value: (row: Row) => any, text: (value: any) => string}} Column
 */

const fixed = (/** @type {number} */ digits) => (/** @type {number} */ value) => value.toFixed(digits).replace("-", "−");
const of = (/** @type {Row} */ row) => row.result ?? {};
const windowOf = (/** @type {Row} */ row) => row.result?.window ?? {};
const minus = (/** @type {number | undefined} */ value) => (value === undefined ? undefined : -value);

/** @type {Column[]} in the order of the table's cells */
const COLUMNS = [
  { key: "name", value: (row) => row.name, text: String },
  { key: "seconds", value: (row) => of(row).seconds, text: fixed(2) },
  { key: "log_likelihood", value: (row) => minus(of(row).nll), text: fixed(2) },
  { key: "perplexity", value: (row) => of(row).perplexity, text: (value) => value.toPrecision(3) },
  { key: "accuracy", value: (row) => of(row).accuracy, text: (value) => `${(100 * value).toFixed(1)} %` },
  { key: "window", value: (row) => minus(windowOf(row).nll), text: fixed(2) },
  { key: "normalised", value: (row) => minus(windowOf(row).normalised_nll), text: fixed(2) },
];
const EXPORTED = ["seconds", "tokens", "nll", "perplexity", "bits_per_second", "accuracy"];
const EXPORTED_OF_WINDOW = ["start", "seconds", "nll", "normalised_by", "baseline_nll", "normalised_nll"];

export class Table {
  /** @type {Row[]} */
  rows = [];
  #sorted = "";
  #descending = false;

  /**
   * @param {HTMLTableElement} table
   * @param {(row: Row) => void} show
   */
  constructor(table, show) {
    this.table = table;
    this.show = show;
    for (const button of table.querySelectorAll("th button")) {
      button.addEventListener("click", () => this.#sort(button.getAttribute("data-sort") ?? ""));
    }
    new ResizeObserver(() => this.rows.forEach((row) => this.#draw(row))).observe(table);
  }

  /** @param {Row} row */
  add(row) {
    this.rows.push(row);
    row.line = make("tr");
    const head = make("th", "", { scope: "row" });
    const button = make("button", row.name, { type: "button", class: "link" });
    button.addEventListener("click", () => this.show(row));
    head.append(button, make("span"));
    const drawn = make("td", "", { class: "drawn" });
    drawn.append(make("canvas", "", { "aria-hidden": "true" }));
    row.line.append(head, ...COLUMNS.slice(1).map(() => make("td")), drawn);
    row.part.mel.listeners.add(() => this.#draw(row));
    this.table.tBodies[0].append(row.line);
    this.update(row);
  }

  /** Its figures are others now. @param {Row} row */
  update(row) {
    COLUMNS.slice(1).forEach(({ value, text }, index) => {
      const told = value(row);
      row.line.children[index + 1].textContent = Number.isFinite(told) ? text(told) : "";
    });
    const span = /** @type {HTMLElement} */ (row.line.querySelector("th span"));
    span.textContent = row.told;
    span.className = row.failed ? "bad" : "quiet";
    this.table.classList.toggle("windowed", this.rows.some((each) => each.result?.window));
    this.table.classList.toggle("normalised", this.rows.some((each) => each.result?.window?.normalised_by));
    this.#draw(row);
  }

  /** @param {Row} shown */
  mark(shown) {
    for (const { line } of this.rows) line.classList.toggle("shown", line === shown.line);
  }

  clear() {
    this.rows = [];
    this.table.tBodies[0].replaceChildren();
  }

  /** @param {Row} row */
  #draw(row) {
    const canvas = /** @type {HTMLCanvasElement} */ (row.line.querySelector("canvas"));
    thumbnail(canvas, { part: row.part, start: 0, end: row.seconds, likelihoods: row.likelihoods, paint: "--clip" });
  }

  /** @param {string} key the column's; again: the other way round */
  #sort(key) {
    const column = COLUMNS.find((each) => each.key === key);
    if (!column) return;
    this.#descending = this.#sorted === key ? !this.#descending : key !== "name";
    this.#sorted = key;
    for (const button of this.table.querySelectorAll("th button[data-sort]")) {
      const head = /** @type {HTMLElement} */ (button.parentElement);
      if (button.getAttribute("data-sort") !== key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.#descending ? "descending" : "ascending");
    }
    const sign = this.#descending ? -1 : 1;
    this.rows.sort((one, other) => {
      const [a, b] = [column.value(one), column.value(other)];
      if (a === undefined || b === undefined) return (a === undefined ? 1 : 0) - (b === undefined ? 1 : 0); // last
      return sign * (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    });
    this.table.tBodies[0].append(...this.rows.map(({ line }) => line));
  }

  /** @returns {string} every figure of the interface, in the order that is shown */
  csv() {
    const cell = (/** @type {unknown} */ value) => {
      const text = String(value ?? "");
      return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const head = ["filename", ...EXPORTED, ...EXPORTED_OF_WINDOW.map((name) => `window_${name}`), "warnings", "error"];
    const lines = this.rows.map((row) => [
      row.name,
      ...EXPORTED.map((name) => of(row)[name]),
      ...EXPORTED_OF_WINDOW.map((name) => windowOf(row)[name]),
      (of(row).warnings ?? []).map((/** @type {{code: string}} */ { code }) => code).join(" "),
      row.failed ? row.told : "",
    ]);
    return [head, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
  }
}
