/** The page: its key, and what sets off what. */

import { offerActions } from "./actions.js";
import { Api, ApiError } from "./api.js";
import { bench, continueClip, limit, openFile, prepare } from "./continuing.js";
import { input, keepKey, keepSettings, keptKey, serverLimits } from "./settings.js";
import { listen, takeDrops } from "./sources.js";
import { askForKey, byId, say, showError } from "./view.js";

const api = new Api();
const form = byId("settings", HTMLFormElement);
const go = byId("go", HTMLButtonElement);

/** @param {unknown} error what ended a request */
function explain(error) {
  say("");
  showError(error instanceof ApiError ? error.message : "This page is at fault; its console tells more.");
  if (!(error instanceof ApiError)) throw error;
  if (error.code === "invalid_api_key") askForKey(true);
  if (["audio_too_long", "invalid_parameter"].includes(error.code)) byId("details", HTMLDetailsElement).open = true;
}

byId("key-form", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = byId("key", HTMLInputElement).value.trim();
  keepKey(byId("remember-key", HTMLInputElement).checked ? api.key : "");
  showError("");
  void continueClip(explain);
});

form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a field
form.addEventListener("input", () => showError(""));
for (const field of ["from", "to"]) {
  input(form, field).addEventListener("change", () => {
    if (bench.running) return;
    bench.typed();
    bench.show(null);
    bench.prompt(); // tells what is wrong with it
  });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
  if (event.key !== "n" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
  void continueClip(explain);
});

takeDrops(([file]) => void openFile(file, file.name));

listen(
  openFile,
  (recording) => {
    if (recording) bench.picture.player.stop();
    go.disabled = recording || !bench.clip;
    byId("work", HTMLElement).hidden = recording; // the last clip is not what is heard now
  },
  () => bench.longestSeconds,
);
offerActions(api, form, explain);
api.key = keptKey();
byId("remember-key", HTMLInputElement).checked = api.key !== "";
keepSettings(form);
prepare(api, explain);
const limits = await serverLimits();
api.mostMebibytes = limits.max_upload_mib;
limit(limits);
