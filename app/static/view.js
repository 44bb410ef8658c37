/** Elements by their ids, and what is written into them. */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (!(element instanceof kind)) throw new TypeError(`the page has no ${kind.name} called ${id}`);
  return element;
}

/**
 * @param {string} tag
 * @param {string} [text]
 * @param {Record<string, string>} [attributes]
 * @returns {HTMLElement}
 */
export function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** @param {string} text what goes on; screen readers read it out when they are done with what they say */
export function say(text) {
  byId("status", HTMLElement).textContent = text;
}

/** @param {string} text what went wrong; empty: nothing. Read out at once */
export function showError(text) {
  const element = byId("error", HTMLElement);
  element.textContent = text;
  element.hidden = !text;
}

/** @param {{message: string}[]} warnings of the server's */
export function showWarnings(warnings) {
  const element = byId("warnings", HTMLElement);
  element.replaceChildren(...warnings.map(({ message }) => make("li", `${message[0].toUpperCase()}${message.slice(1)}`)));
  element.hidden = !warnings.length;
}

/** @param {boolean} wanted whether the server asked for a key */
export function askForKey(wanted) {
  byId("key-form", HTMLFormElement).hidden = !wanted;
  if (wanted) byId("key", HTMLInputElement).focus();
}

/** @param {number} seconds */
export function inSeconds(seconds) {
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/** @param {number} value a log-likelihood @returns {string} with its unit */
export function inNats(value) {
  return `${value.toFixed(2).replace("-", "−")} nats`;
}

/** @param {number} tokens @param {number} seconds @param {number} mean @returns {string} */
function likelihood(tokens, seconds, mean) {
  const told = `${inSeconds(seconds)}, ${tokens} tokens`;
  if (!Number.isFinite(mean)) return told;
  return `${told}, ${inNats(mean)} per token (perplexity ${Math.exp(-mean).toPrecision(3)})`;
}

/** @param {import("./take.js").Take | null} take null: there are no figures to show */
export function showFigures(take) {
  showWarnings(take?.figures?.warnings ?? []);
  byId("figures", HTMLElement).hidden = byId("actions", HTMLElement).hidden = !take?.pieces.length;
  if (!take) return;
  const { promptTokens, promptNll, likelihoods, made, figures } = take;
  const write = (/** @type {string} */ id, /** @type {string} */ text) => (byId(id, HTMLElement).textContent = text);
  write("clip-figures", likelihood(promptTokens, promptTokens / 75, -promptNll));
  write("made-figures", likelihood(likelihoods.tokens.length, made.seconds, likelihoods.mean));
  const timings = figures?.timings;
  const rate = timings?.real_time_factor.toFixed(1);
  write(
    "speed-figures",
    timings
      ? `first sound after ${inSeconds(timings.first_audio_seconds)}, made at ${rate} times real time`
      : "not told: it was stopped",
  );
  write("seed-used", take.seed);
}

/**
 * @param {Blob} file
 * @param {string} name under which the browser keeps it
 */
export function save(file, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a slow browser still reads it
}
