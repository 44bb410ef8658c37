/** A take as a command for a shell. */

import { stem } from "./clip.js";

/** @param {string} text @returns {string} one word of a shell command */
function quoted(text) {
  return /^[\w.=@/:+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * @param {import("./take.js").Take} take
 * @param {boolean} keyed whether the server wants a key
 * @returns {string} what makes the same sound
 */
export function curlOf(take, keyed) {
  const { prompt, again } = take;
  const fields = { ...prompt.cut, ...again, response_format: "wav" };
  const address = new URL("continue", document.baseURI).href;
  const words = ["curl", "-sS", quoted(address)];
  if (keyed) words.push('-H "Authorization: Bearer $WHISPERGPT_API_KEY"'); // the key itself is not written down
  words.push("-F", quoted(`file=@${prompt.clip.name}`));
  for (const [name, value] of Object.entries(fields)) words.push("-F", quoted(`${name}=${value}`));
  words.push("-o", quoted(`${stem(prompt.clip.name)}-continued.wav`));
  return words.join(" ");
}
