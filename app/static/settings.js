/** The settings' form: as fields of POST /continue, and as this browser keeps them. */

const PLACE = "whisper-gpt.settings";
const KEY_PLACE = "whisper-gpt.key";
const FIELDS = ["seconds", "temperature", "top_p", "top_k", "seed"];

/** @param {() => any} act @returns {any} null where the browser keeps nothing */
function withStorage(act) {
  try {
    return act();
  } catch {
    return null;
  }
}

/**
 * @param {HTMLFormElement} form
 * @param {string} name
 * @returns {HTMLInputElement}
 */
export function input(form, name) {
  return /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
}

/**
 * @param {HTMLFormElement} form
 * @returns {Record<string, string>} an empty field is left to the server
 */
export function fields(form) {
  const filled = FIELDS.map((name) => [name, input(form, name).value.trim()]).filter(([, text]) => text);
  return { ...Object.fromEntries(filled), include_prompt: String(input(form, "include_prompt").checked) };
}

/**
 * @param {HTMLFormElement} form
 * @returns {[number, number]} which part of the clip is used, seconds
 */
export function cutTimes(form) {
  return [Number(input(form, "from").value), Number(input(form, "to").value) || Infinity];
}

/**
 * @param {HTMLFormElement} form
 * @param {number} seconds of the clip; 0: not known
 * @param {number} longest seconds of a prompt
 * @returns {string} what is wrong; empty: nothing
 */
export function mistake(form, seconds, longest) {
  for (const field of /** @type {Iterable<HTMLInputElement>} */ (form.elements)) {
    if (field.validity?.rangeOverflow && field.name === "seconds") return `Seconds: at most ${field.max}.`;
    const name = field.labels?.[0]?.firstChild?.textContent?.trim() ?? "";
    if (field.validity && !field.validity.valid) return `${name}: ${field.validationMessage}`;
  }
  const [from, to] = cutTimes(form);
  const length = Math.min(to, seconds || to) - from;
  return length > longest + 0.02 && length < Infinity ? `A prompt may have ${longest} s at most.` : "";
}

/** @param {HTMLFormElement} form filled as it was left, and kept from now on; which part of a clip is used is not */
export function keepSettings(form) {
  const kept = withStorage(() => JSON.parse(localStorage.getItem(PLACE) ?? "{}")) ?? {};
  for (const name of FIELDS) {
    const field = input(form, name);
    const before = field.value;
    if (typeof kept[name] === "string") field.value = kept[name];
    if (!field.checkValidity()) field.value = before; // the server's limits may be others now
  }
  if (kept.include_prompt) input(form, "include_prompt").checked = kept.include_prompt === "true";
  const keep = () => withStorage(() => localStorage.setItem(PLACE, JSON.stringify(fields(form))));
  form.addEventListener("input", keep);
}

/** @returns {string} the key that a person wanted to be kept */
export function keptKey() {
  return withStorage(() => localStorage.getItem(KEY_PLACE)) ?? "";
}

/** @param {string} key empty: it is forgotten */
export function keepKey(key) {
  withStorage(() => (key ? localStorage.setItem(KEY_PLACE, key) : localStorage.removeItem(KEY_PLACE)));
}

/**
 * What the server takes, so that nothing is sent in vain. Without an answer nothing is known, and the server refuses.
 * @returns {Promise<{max_prompt_seconds: number, max_seconds: number, max_upload_mib: number}>}
 */
export async function serverLimits() {
  const unknown = { max_prompt_seconds: Infinity, max_seconds: Infinity, max_upload_mib: Infinity };
  const answer = await fetch("limits.json").catch(() => null);
  return { ...unknown, ...(answer?.ok ? await answer.json() : {}) };
}
