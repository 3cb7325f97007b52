"use strict";

const $ = (id) => document.getElementById(id);
const root = `/v2/${document.querySelector("meta[name=endpoint]").content}`;
const FINAL = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
const WORDS = {
  IN_QUEUE: "Waiting for a worker", IN_PROGRESS: "Running", COMPLETED: "Done", FAILED: "Failed",
  CANCELLED: "Cancelled", TIMED_OUT: "Timed out",
};
const MOST = 10e6; // what /run takes
let job = null; // id of the job that is shown
let blob = null; // address of its video
let watched = null; // playlist of a video that is played while it is made
let over = true; // whether that job has ended
let native = 25; // frames per second of the model, which the worker says

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const response = await fetch(root + path, { method, headers, body });
  const report = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(report.error || `the endpoint answered ${response.status}`);
  return report;
}

function data(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
}

function wrong(id, text) {
  $(`${id}-error`).textContent = text;
  $(id).setAttribute("aria-invalid", String(Boolean(text)));
  return text ? $(id) : null;
}

async function input() {
  const first = [
    wrong("picture", $("picture").files.length ? "" : "Choose a picture."),
    wrong("voice1", $("voice1").files.length ? "" : "Choose an audio file."),
    wrong("prompt", $("prompt").value.trim() ? "" : "Describe what the video shows."),
    wrong("seconds", frames() === 0 ? "Give more than 0 seconds." : ""),
  ].find(Boolean);
  if (first) { first.focus(); return null; }
  const asked = { prompt: $("prompt").value, turbo: $("turbo").checked, audio_type: $("audio_type").value };
  if ($("live").checked) Object.assign(asked, { live: true, preview: "step" });
  asked.reference_image = await data($("picture").files[0]);
  asked.audio_1 = await data($("voice1").files[0]);
  if ($("voice2").files.length) asked.audio_2 = await data($("voice2").files[0]);
  for (const id of ["fps", "seed", "sampling_steps", "guidance_scale", "audio_guidance_scale"]) {
    if ($(id).value !== "") asked[id] = Number($(id).value);
  }
  asked.num_frames = frames() ?? "auto";
  if (asked.num_frames !== "auto") asked.fps ??= native;
  for (const id of ["resolution", "negative_prompt"]) {
    if ($(id).value.trim()) asked[id] = $(id).value.trim();
  }
  return asked;
}

function clear() {
  if (blob) URL.revokeObjectURL(blob);
  blob = watched = null;
  for (const id of ["video", "save"]) { $(id).hidden = true; $(id).removeAttribute(id === "video" ? "src" : "href"); }
  for (const id of ["strip", "early"]) $(id).hidden = true;
  for (const id of ["failure", "detail"]) $(id).textContent = "";
  judge(null);
  $("warnings").replaceChildren();
}

function warn(warnings) {
  $("warnings").replaceChildren(...(warnings || []).map(
    (warning) => Object.assign(document.createElement("li"), { textContent: warning })));
}

function cell(text, wrong = false, name = "td") {
  const made = Object.assign(document.createElement(name), { textContent: text });
  if (wrong) made.className = "error";
  return made;
}

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function bound(limit) {
  const least = limit.least === null ? "" : `\u2265 ${limit.least}`;
  const most = limit.most === null ? "" : `\u2264 ${limit.most}`;
  return [least, most].filter(Boolean).join(", ");
}

// A table of the windows' figures; opened if one is outside its limit.
function judge(report) {
  $("report").hidden = !report;
  $("figures").replaceChildren();
  if (!report) return;
  const names = Object.keys(report.limits);
  const bad = report.below.length, again = report.retaken.length;
  $("judged").textContent = (bad
    ? `${bad} of ${report.windows.length} windows outside the limits`
    : "All windows within the limits") + (again ? `, ${again} made again` : "");
  $("report").open = bad > 0;
  const head = ["window", "seconds", ...names.map((name) => name.replaceAll("_", " ")), "attempts"];
  const limits = ["limit", "", ...names.map((name) => bound(report.limits[name])), ""];
  const rows = report.windows.map((one) => row([
    cell(String(one.window)),
    cell(`${one.start.toFixed(1)} \u2013 ${one.end.toFixed(1)}`),
    ...names.map((name) => {
      const value = one.figures[name];
      const made = cell(value === null || value === undefined ? "unknown" : String(Number(value.toPrecision(3))),
        one.below.includes(name));
      made.title = (one.unknown || {})[name] || "";
      return made;
    }),
    cell(String(one.attempts.length || 1)),
  ]));
  $("figures").replaceChildren(
    row(head.map((text) => cell(text, false, "th"))), row(limits.map((text) => cell(text))), ...rows);
}

function progress(output) {
  const isObject = typeof output === "object" && output !== null;
  const percent = isObject && Number.isFinite(output.percent) ? output.percent : null;
  if (percent === null) $("bar").removeAttribute("value"); else $("bar").value = percent;
  if (!isObject) { $("detail").textContent = output === undefined ? "" : String(output); return; }
  const parts = percent === null ? [] : [`${Math.round(percent)} %`];
  for (const [key, value] of Object.entries(output)) {
    if (key !== "percent" && ["string", "number"].includes(typeof value)) parts.push(`${key.replaceAll("_", " ")} ${value}`);
  }
  $("detail").textContent = parts.join(", ");
  if (Array.isArray(output.warnings)) warn(output.warnings);
  if (output.preview) { $("strip").src = output.preview.image; $("strip").hidden = false; }
  if (output.live) {
    $("early-text").textContent = `The first ${output.live.seconds.toFixed(1)} s are ready.`;
    $("early").hidden = false;
    watch(output.live.playlist);
  }
}

// Plays a video while it is made.
function watch(playlist) {
  if (watched === playlist) return;
  watched = playlist;
  over = false;
  $("playlist").href = playlist;
  const url = new URL(playlist, location);
  // Only this endpoint's own. It may know itself by another host name than this page does.
  if (!url.pathname.startsWith("/live/")) return;
  if (blob) URL.revokeObjectURL(blob);
  blob = null;
  playLive($("video"), new URL(url.pathname, location), {
    wanted: () => watched === playlist, ended: () => over, opened: (address) => { blob = address; },
  });
}

async function finish(report) {
  const output = report.output || {};
  $("failure").textContent = report.status === "COMPLETED" ? "" : (report.error || "");
  $("bar").hidden = $("strip").hidden = over = true;
  if (report.status !== "COMPLETED") { $("detail").textContent = ""; return; }
  if (watched && blob) { URL.revokeObjectURL(blob); blob = null; }
  if (output.video_base64) {
    const bytes = Uint8Array.from(atob(output.video_base64), (letter) => letter.charCodeAt(0));
    blob = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  }
  const address = blob || output.video_url;
  if (address) {
    // Goes on where the viewer is: both have the same frames.
    const at = watched ? $("video").currentTime : 0, playing = watched && !$("video").paused;
    watched = null;
    $("video").src = $("save").href = address;
    $("video").currentTime = at;
    if (playing) $("video").play().catch(() => {});
    $("video").hidden = $("save").hidden = false;
    $("early").hidden = true;
  }
  const { video_base64: _, video_url: __, live: ___, warnings, report: judged, ...rest } = output;
  $("detail").textContent = output.seconds
    ? `${output.seconds} s of video, ${output.frames} frames, seed ${output.seed}, made in ${(report.executionTime / 1000).toFixed(1)} s`
    : JSON.stringify(rest);
  warn(warnings);
  judge(judged);
}

function show(report) {
  $("state").textContent = WORDS[report.status] || report.status;
  const final = FINAL.includes(report.status);
  $("cancel").hidden = final;
  $("retry").hidden = !["FAILED", "TIMED_OUT"].includes(report.status);
  $("send").disabled = !final;
  if (!final) progress(report.output);
  return final;
}

async function follow(id) {
  job = id;
  clear();
  $("id").textContent = id;
  const here = new URL(location);
  here.searchParams.set("job", id);
  history.replaceState(null, "", here);
  $("work").hidden = $("bar").hidden = false;
  $("work").focus();
  let missed = 0;
  while (job === id) {
    try {
      const report = await call("GET", `/status/${id}`);
      missed = 0;
      if (show(report)) { await finish(report); return; }
    } catch (error) {
      if (++missed > 5) { $("failure").textContent = error.message; $("send").disabled = false; return; }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

function guarded(work) {
  return async (event) => {
    event.preventDefault();
    try { await work(); } catch (error) {
      $("work").hidden = false;
      $("failure").textContent = error.message;
      $("send").disabled = false;
    }
  };
}

$("job").addEventListener("submit", guarded(async () => {
  const asked = await input();
  if (!asked) return;
  const body = JSON.stringify({ input: asked });
  if (new Blob([body]).size > MOST) throw new Error("Picture and voices are larger than 10 MB together; make them smaller.");
  $("send").disabled = true;
  const { id } = await call("POST", "/run", body);
  code(asked);
  follow(id);
}));
$("cancel").addEventListener("click", guarded(() => call("POST", `/cancel/${job}`)));
$("retry").addEventListener("click", guarded(async () => { await call("POST", `/retry/${job}`); follow(job); }));

// Number of frames; 0: no length, null: as long as the voices.
function frames() {
  if ($("seconds").value === "" && !$("seconds").validity.badInput) return null;
  return Math.max(0, Math.round(Number($("seconds").value) * Number($("fps").value || native))) || 0;
}

function length() {
  const count = frames();
  $("length").textContent = count === null ? "As long as the voices"
    : count ? `${count} frames at ${$("fps").value || native} a second` : "";
}
for (const id of ["seconds", "fps"]) $(id).addEventListener("input", length);
length();

// The code of a job, with the names of the chosen files.
function code(asked) {
  const url = location.origin + root, names = {};
  for (const [field, id] of [["reference_image", "picture"], ["audio_1", "voice1"], ["audio_2", "voice2"]]) {
    if (field in asked) names[field] = $(id).files[0].name;
  }
  const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const entries = Object.entries(asked).map(([key, value]) => key in names
    ? `"${key}": "'"$(base64 < ${shell(names[key])} | tr -d '\\n')"'"` : `"${key}": ${JSON.stringify(value)}`.replaceAll("'", "'\\''"));
  $("curl").textContent = `printf '%s' '{"input": {\n  ${entries.join(",\n  ")}\n}}' |\n` +
    `  curl -s ${url}/run -H 'Content-Type: application/json' -H "Authorization: Bearer $MULTITALK_KEY" --data-binary @-`;
  const python = (value) => value === true ? "True" : value === false ? "False" : JSON.stringify(value);
  const fields = Object.entries(asked).map(([key, value]) =>
    `    "${key}": ${key in names ? `file(${JSON.stringify(names[key])})` : python(value)},`);
  const [base, id] = [url.slice(0, url.lastIndexOf("/")), url.slice(url.lastIndexOf("/") + 1)];
  $("python").textContent = `import os\n\nfrom engine.client import Client, file\n\njob_input = {\n${fields.join("\n")}\n}\n` +
    `with Client("${id}", api_key=os.environ.get("MULTITALK_KEY"), base_url="${base}") as client:\n` +
    '    print(client.submit(job_input).download("talk.mp4").path)';
  $("code").hidden = false;
}

// What the worker's model is and has. A worker of another kind has no answer to it.
async function capabilities() {
  try {
    const { id } = await call("POST", "/run", JSON.stringify({ input: { action: "capabilities" } }));
    let report;
    do { await pause(1000); report = await call("GET", `/status/${id}`); } while (!FINAL.includes(report.status));
    const { model, resolutions, resolution, fps } = report.output || {};
    if (report.status !== "COMPLETED" || typeof model !== "string") return;
    $("model").textContent = `Model: ${model}` + (model.startsWith("tiny") ? ", a small one that knows drawn people only" : "");
    if (Number.isFinite(fps)) native = fps;
    if (Array.isArray(resolutions)) {
      $("resolution").replaceChildren(...["", ...resolutions].map(
        (name) => new Option(name || `${resolution} (the worker's)`, name)));
    }
    length();
  } catch { /* the line about the endpoint says what is wrong */ }
}
$("here").textContent = location.origin + root;
capabilities();
$("key").addEventListener("change", () => { if (!$("model").textContent) capabilities(); });

async function health() {
  try {
    const { workers, jobs } = await call("GET", "/health");
    $("health").textContent = `${workers.ready} of ${workers.ready + workers.initializing + workers.unhealthy} workers ready, ` +
      `${jobs.inProgress} jobs at work, ${jobs.inQueue} waiting`;
  } catch (error) { $("health").textContent = error.message; }
}
health();
setInterval(health, 5000);

const linked = new URLSearchParams(location.search).get("job");
if (linked && /^[\w-]{1,128}$/.test(linked)) follow(linked);
