/** What can be done with the take that is shown. */

import { bench, take } from "./continuing.js";
import { curlOf } from "./curl.js";
import { input } from "./settings.js";
import { byId, save, say, showError } from "./view.js";

const download = byId("download", HTMLButtonElement);
const command = byId("curl", HTMLTextAreaElement);

/** @param {(error: unknown) => void} explain */
async function downloadTake(explain) {
  const { shown } = bench;
  if (!shown) return;
  showError("");
  const format = byId("format", HTMLSelectElement).value;
  if (format !== "wav") say(`Making the ${format.toUpperCase()} file…`); // by the server: it is the same sound
  download.disabled = true;
  try {
    save(await shown.sound(format), `${shown.name}.${format}`);
    if (format !== "wav") say("Downloaded.");
  } catch (error) {
    explain(error);
  } finally {
    download.disabled = false;
  }
}

/** @param {boolean} keyed */
async function copyCommand(keyed) {
  if (!bench.shown) return;
  command.value = curlOf(bench.shown, keyed);
  command.hidden = false;
  command.select();
  const copied = await navigator.clipboard?.writeText(command.value).then(() => true, () => false);
  say(copied ? "The command is copied." : "Copy the command from the field: this browser does not do it for pages.");
}

/** @param {import("./api.js").Api} api @param {HTMLFormElement} form @param {(error: unknown) => void} explain */
export function offerActions(api, form, explain) {
  download.addEventListener("click", () => downloadTake(explain));
  byId("copy-curl", HTMLButtonElement).addEventListener("click", () => copyCommand(api.key !== ""));
  byId("go-on", HTMLButtonElement).addEventListener("click", () => {
    if (bench.shown && !bench.running) take(bench.shown.asClip());
  });
  byId("keep-seed", HTMLButtonElement).addEventListener("click", () => {
    input(form, "seed").value = bench.shown?.seed ?? "";
    input(form, "seed").dispatchEvent(new Event("input", { bubbles: true })); // it is kept
    byId("details", HTMLDetailsElement).open = true;
  });
}
