/** The page: its two tabs, its key, and what both of them share. */

import { offerActions } from "./actions.js";
import { Api, ApiError } from "./api.js";
import { bench, continueClip, limit, openFile, prepare } from "./continuing.js";
import { Hearing, goOn } from "./hearing.js";
import { addFiles, prepareScoring, run } from "./scoring.js";
import { input, keepKey, keepSettings, keptKey, serverLimits } from "./settings.js";
import { listen, takeDrops } from "./sources.js";
import { askForKey, byId, say, showError } from "./view.js";

const TABS = ["continue", "score"];
const api = new Api();
const form = byId("settings", HTMLFormElement);
const go = byId("go", HTMLButtonElement);
let tab = TABS[0];

/** @param {unknown} error what ended a request */
function explain(error) {
  say("");
  showError(error instanceof ApiError ? error.message : "This page is at fault; its console tells more.");
  if (!(error instanceof ApiError)) throw error;
  if (error.code === "invalid_api_key") askForKey(true);
  if (["audio_too_long", "invalid_parameter"].includes(error.code)) byId("details", HTMLDetailsElement).open = true;
}

/** @param {string} name of a tab */
function turnTo(name) {
  tab = name;
  for (const each of TABS) {
    const button = byId(`tab-${each}`, HTMLButtonElement);
    button.ariaSelected = String(each === name);
    button.tabIndex = each === name ? 0 : -1;
    byId(each, HTMLElement).hidden = each !== name;
  }
  byId(`${name}-messages`, HTMLElement).append(byId("messages", HTMLElement)); // where the person looks
  showError("");
}

for (const name of TABS) {
  const button = byId(`tab-${name}`, HTMLButtonElement);
  button.addEventListener("click", () => turnTo(name));
  button.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS.find((each) => each !== name) ?? name;
    turnTo(other);
    byId(`tab-${other}`, HTMLButtonElement).focus();
  });
}

byId("key-form", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = byId("key", HTMLInputElement).value.trim();
  keepKey(byId("remember-key", HTMLInputElement).checked ? api.key : "");
  showError("");
  if (tab === "score") void run();
  else void continueClip(explain);
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
  if (event.key !== "n" || event.ctrlKey || event.metaKey || event.altKey || typing || tab !== "continue") return;
  void continueClip(explain);
});

takeDrops((files) => {
  if (tab === "continue" && files.length > 1) turnTo("score");
  if (tab === "score") void addFiles(files);
  else void openFile(files[0], files[0].name);
});

const hearing = new Hearing(() => api.key);
listen(
  openFile,
  {
    begun: (rate) => hearing.begun(rate),
    heard: (samples) => hearing.heard(samples),
    ended: (file) => goOn(file, hearing.ended(), explain),
  },
  (recording) => {
    if (recording) bench.picture.player.stop();
    go.disabled = recording || !bench.clip;
    byId("work", HTMLElement).hidden = recording; // the last clip is not what is heard now
  },
  () => bench.longestSeconds,
);
offerActions(api, form, explain);
prepareScoring(api, explain);
turnTo(TABS[0]);
api.key = keptKey();
byId("remember-key", HTMLInputElement).checked = api.key !== "";
keepSettings(form);
prepare(api, explain);
const limits = await serverLimits();
api.mostMebibytes = limits.max_upload_mib;
limit(limits);
