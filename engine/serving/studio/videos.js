// The job that is shown, and the history. props.value: {job: id of a job that was just started, load: id whose settings
// the form shall show}.
const host = document.createElement("div");
host.className = "videos-view";
host.innerHTML = `<section class="job" aria-labelledby="job-state" hidden tabindex="-1">
  <h2 id="job-state" aria-live="polite"></h2>
  <progress max="100" aria-label="Progress"></progress>
  <p class="detail"></p>
  <p class="error" role="alert"></p>
  <p class="buttons"><button type="button" class="cancel">Cancel</button>
    <button type="button" class="settings">Use these settings</button>
    <a class="save" hidden>Save the video</a></p>
  <img class="strip" alt="Small pictures of the window that is being made, from its first to its last frame" hidden>
  <p class="early note" hidden></p>
  <video controls playsinline hidden aria-label="The video"></video>
  <ul class="warnings"></ul>
  <details class="report" hidden><summary></summary><p class="note again" hidden>To make a window again, the engine must run in the studio's own process: a worker elsewhere takes no such job.</p><div class="wide" tabindex="0" role="region" aria-label="Report of the windows"><table></table></div></details>
  <details class="code" hidden><summary>Code of this job</summary><div class="texts"></div></details>
</section>
<section class="history" aria-labelledby="history-title"><h2 id="history-title">Your videos</h2>
  <p class="empty note">Nothing yet: add a picture and a voice, or click an example.</p><ul></ul></section>`;
const find = (query) => host.querySelector(query);
const video = find("video");
let current = "", watched = "", over = true, blob = null, started = "";

async function ask(path, method = "GET") {
  const response = await fetch(`/studio/jobs${path}`, { method });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Error(answer.error || `the studio answered ${response.status}`), { status: response.status });
  return answer;
}

function make(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Plays a video while it is made.
function watchLive(id) {
  if (watched === id) return;
  watched = id;
  over = false;
  if (blob) URL.revokeObjectURL(blob);
  blob = null;
  const base = new URL(`/studio/live/${id}/`, location);
  playLive(video, new URL("index.m3u8", base), {
    wanted: () => watched === id, ended: () => over, opened: (address) => { blob = address; },
    // An engine elsewhere has the parts at other addresses.
    place: (name) => new URL(name.split("/").pop(), base),
  });
}

function bound(limit) {
  const least = limit.least === null ? "" : `\u2265 ${limit.least}`;
  const most = limit.most === null ? "" : `\u2264 ${limit.most}`;
  return [least, most].filter(Boolean).join(", ");
}

function row(cells) {
  const made = document.createElement("tr");
  made.append(...cells);
  return made;
}

function judge(report, id, retakes, elsewhere) {
  const box = find(".report");
  box.hidden = !report;
  if (!report) return;
  box.querySelector(".again").hidden = !elsewhere;
  const names = Object.keys(report.limits).filter((name) => report.windows.some((one) => (one.figures[name] ?? null) !== null));
  const bad = report.below.length;
  box.querySelector("summary").textContent = bad
    ? `Report: ${bad} of ${report.windows.length} windows outside the limits`
    : `Report: ${report.windows.length === 1 ? "the window is" : `all ${report.windows.length} windows are`} within the limits`;
  const head = ["window", "seconds", ...names.map((name) => name.replaceAll("_", " ")), ...(retakes ? ["again"] : [])];
  const limits = ["limit", "", ...names.map((name) => bound(report.limits[name])), ...(retakes ? [""] : [])];
  const rows = report.windows.map((one) => {
    const cells = [make("th", String(one.window), { scope: "row" }), make("td", `${one.start.toFixed(1)} \u2013 ${one.end.toFixed(1)}`)];
    for (const name of names) {
      const value = one.figures[name];
      const cell = make("td", value === null || value === undefined ? "unknown" : String(Number(value.toPrecision(3))));
      cell.title = (one.unknown || {})[name] || "";
      if (one.below.includes(name)) cell.className = "error";
      cells.push(cell);
    }
    if (retakes) {
      const again = make("button", "Retake", { type: "button", "aria-label": `Make window ${one.window} and all after it again` });
      again.addEventListener("click", () => guarded(async () => open((await ask(`/${id}/retake?window=${one.window}&seed=${Math.floor(Math.random() * 2 ** 31)}`, "POST")).id)));
      const cell = document.createElement("td");
      cell.append(again);
      cells.push(cell);
    }
    return row(cells);
  });
  box.querySelector("table").replaceChildren(
    row(head.map((text) => make("th", text, { scope: "col" }))), row(limits.map((text) => make("td", text))), ...rows);
  box.open = bad > 0;
}

function code(texts) {
  find(".code").hidden = !texts;
  find(".texts").replaceChildren(...Object.entries(texts || {}).flatMap(([title, text]) => {
    const copy = make("button", "Copy", { type: "button", "aria-label": `Copy the code for ${title}` });
    copy.addEventListener("click", async () => { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; });
    const heading = make("h3", title);
    heading.append(" ", copy);
    return [heading, make("pre", text, { tabindex: "0", role: "region", "aria-label": title })];
  }));
}

function show(entry) {
  find(".job").hidden = false;
  const retake = entry.of ? `, retake from window ${entry.window}` : "";
  find("#job-state").textContent = `${entry.word}${retake}`;
  find(".detail").textContent = entry.detail;
  find(".job > .error").textContent = entry.error;
  const bar = find("progress");
  bar.hidden = find(".cancel").hidden = entry.final;
  bar.parentElement.dataset.state = entry.state;
  if (entry.percent === null || entry.percent === undefined) bar.removeAttribute("value"); else bar.value = entry.percent;
  find(".warnings").replaceChildren(...entry.warnings.map((text) => make("li", text)));
  const strip = find(".strip");
  strip.hidden = entry.final || !entry.preview;
  if (entry.preview && !entry.final) strip.src = entry.preview;
  const early = find(".early");
  early.hidden = entry.final || !entry.live;
  if (entry.live && !entry.final) {
    early.textContent = `The first ${entry.live.seconds.toFixed(1)} s are ready and play below.`;
    watchLive(entry.id);
  }
}

function finish(entry) {
  // The form tells the error at its field, if it is still the one of this job.
  if (entry.field && entry.id === started) { props.value = { job: started, load: "", failed: entry.id }; trigger("submit"); }
  over = true;
  const save = find(".save");
  save.hidden = !entry.video;
  if (entry.video) {
    save.href = `/studio/video/${entry.id}?save=1`;
    // Goes on where the viewer is: both have the same frames.
    const live = watched === entry.id, at = live ? video.currentTime : 0, playing = live && !video.paused;
    watched = "";
    video.src = `/studio/video/${entry.id}`;
    video.currentTime = at;
    video.hidden = false;
    if (playing) video.play().catch(() => {});
  }
  judge(entry.report, entry.id, entry.retakes, entry.elsewhere);
  code(entry.code);
}

function clear() {
  watched = "";
  over = true;
  if (blob) URL.revokeObjectURL(blob);
  blob = null;
  video.removeAttribute("src");
  for (const query of ["video", ".save", ".strip", ".early", ".report", ".code"]) find(query).hidden = true;
}

async function open(id) {
  current = id;
  clear();
  find(".job").hidden = false;
  find("#job-state").textContent = "Looking";
  for (const query of [".detail", ".job > .error"]) find(query).textContent = "";
  find(".warnings").replaceChildren();
  const url = new URL(location);
  url.searchParams.set("job", id);
  window.history.replaceState(null, "", url);
  let missed = 0, coded = false;
  while (current === id) {
    try {
      const entry = await ask(`/${id}`);
      if (current !== id) return;
      missed = 0;
      show(entry);
      if (!coded) { code(entry.code); coded = true; list(); }
      if (entry.final) { finish(entry); list(); return; }
    } catch (error) {
      if (error.status === 404 || ++missed > 5) {
        find(".job").hidden = false;
        find("#job-state").textContent = "Not found";
        find(".detail").textContent = "";
        find("progress").hidden = find(".cancel").hidden = true;
        find(".job > .error").textContent = error.message;
        return;
      }
    }
    await pause(600);
  }
}

async function list() {
  const entries = await ask("").catch(() => null);
  if (!entries) return;
  find(".empty").hidden = entries.length > 0;
  find(".history ul").replaceChildren(...entries.map((entry) => {
    const item = document.createElement("li"), button = make("button", "", { type: "button", class: "entry" });
    if (entry.thumb) button.append(make("img", "", { src: `/studio/thumb/${entry.id}`, alt: "" }));
    const when = new Date(1000 * entry.created).toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const words = make("span", entry.title || "Video");
    words.append(make("small", `${entry.word}, ${when}`));
    button.append(words);
    if (entry.id === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(entry.id));
    item.append(button);
    if (entry.final) {
      const gone = make("button", "Delete", { type: "button", class: "gone", "aria-label": `Delete ${entry.title || "video"}, ${when}` });
      gone.addEventListener("click", () => guarded(async () => {
        await ask(`/${entry.id}/remove`, "POST");
        if (entry.id === current) { current = ""; find(".job").hidden = true; clear(); }
        list();
      }));
      item.append(gone);
    }
    return item;
  }));
}

async function guarded(work) {
  try { await work(); } catch (error) {
    find(".job").hidden = false;
    find(".job > .error").textContent = error.message;
  }
}

find(".cancel").addEventListener("click", () => guarded(() => ask(`/${current}/cancel`, "POST")));
find(".settings").addEventListener("click", () => { props.value = { job: started, load: current }; trigger("select"); });

function update() {
  if (!element.contains(host)) element.querySelector(".videos").append(host);
  const job = (props.value || {}).job || "";
  if (job && job !== started) { started = job; open(job); find(".job").focus(); find(".job").scrollIntoView({ block: "nearest" }); }
}
watch("value", update);
update();
list();
const asked = new URLSearchParams(location.search).get("job");
if (asked && !current) open(asked);
