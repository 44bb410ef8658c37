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

/** @param {boolean} wanted whether the server asked for a key */
export function askForKey(wanted) {
  byId("key-form", HTMLFormElement).hidden = !wanted;
  if (wanted) byId("key", HTMLInputElement).focus();
}

/** @param {number} seconds */
export function inSeconds(seconds) {
  return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
}

/**
 * @param {any} figures of `audio.done`; null: none to show
 * @param {string} seed exact, which a number from JSON is not above 2**53
 */
export function showFigures(figures, seed) {
  byId("figures", HTMLElement).hidden = !figures;
  if (!figures) return;
  const { prompt, timings } = figures;
  const [choice] = figures.choices;
  const made = choice.tokens.length;
  const write = (/** @type {string} */ id, /** @type {string} */ text) => (byId(id, HTMLElement).textContent = text);
  write("clip-figures", `${inSeconds(prompt.seconds)}, ${prompt.tokens} tokens, ${prompt.nll.toFixed(2)} nats each`);
  write(
    "made-figures",
    `${inSeconds(made / figures.frame_rate)}, ${made} tokens, ${choice.nll.toFixed(2)} nats each ` +
      `(perplexity ${choice.perplexity.toPrecision(3)})`,
  );
  write(
    "speed-figures",
    `first sound after ${inSeconds(timings.first_audio_seconds)}, made at ${timings.real_time_factor.toFixed(1)} times real time`,
  );
  write("seed-used", seed);
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
