/** The settings' form as fields of POST /continue. */

/**
 * @param {HTMLFormElement} form
 * @param {string} name
 * @returns {string} as typed: a seed may have more digits than a number keeps
 */
function value(form, name) {
  return String(new FormData(form).get(name) ?? "").trim();
}

/**
 * @param {HTMLFormElement} form
 * @returns {Record<string, string>} an empty field is left to the server
 */
export function fields(form) {
  const names = ["seconds", "temperature", "top_p", "top_k", "seed"];
  const filled = names.map((name) => [name, value(form, name)]).filter(([, text]) => text);
  return { ...Object.fromEntries(filled), include_prompt: value(form, "include_prompt") ? "true" : "false" };
}

/**
 * @param {HTMLFormElement} form
 * @returns {[number, number]} which part of the clip is used, seconds
 */
export function cutTimes(form) {
  return [Number(value(form, "from")), Number(value(form, "to")) || Infinity];
}
