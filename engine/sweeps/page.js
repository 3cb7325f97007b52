"use strict";
{
  const get = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const body = document.querySelector("tbody");
  const cards = new Map(all("figure").map((card) => [card.dataset.run, card]));
  const rows = all("tr", body);
  const seconds = (video) => (Number.isFinite(video.duration) ? video.duration : 0);
  const videos = () => all("figure:not([hidden]) video").filter((video) => !video.error);
  // The longest leads: the others wait for it on their last frame.
  const leader = () => videos().reduce((one, other) => (one && seconds(one) >= seconds(other) ? one : other), null);

  // --- which runs are shown -----------------------------------------------------------------------------------------
  const choose = () => {
    const words = get("words").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = all("select", get("choice")).map((select) => [select.dataset.column, select.value]);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const fits = words.every((word) => text.includes(word))
        && wanted.every(([column, value]) => !value || row.cells[column].dataset.value === value);
      const card = cards.get(row.dataset.run);
      row.hidden = card.hidden = !fits;
      if (!fits) all("video", card).forEach((video) => video.pause());
      count += fits;
    }
    get("shown").textContent = `${count} of ${rows.length} runs are shown.`;
    hear();
  };
  get("choice").addEventListener("input", choose);
  get("choice").addEventListener("submit", (event) => event.preventDefault());

  // --- the order ----------------------------------------------------------------------------------------------------
  const compare = (one, other) => {
    const [a, b] = [Number(one), Number(other)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other, undefined, { numeric: true }) : a - b;
  };
  const sort = (head) => {
    const column = head.cellIndex;
    const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    all("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const value = (row) => row.cells[column].dataset.value;
    const sorted = [...rows].sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      // What was not measured comes last, whichever way.
      if (a === "" || b === "") return (a === "") - (b === "");
      return order === "ascending" ? compare(a, b) : compare(b, a);
    });
    body.append(...sorted);
    get("videos").append(...sorted.map((row) => cards.get(row.dataset.run)));
    hear();
  };
  all("thead button").forEach((button) => button.addEventListener("click", () => sort(button.closest("th"))));

  // --- all videos together ------------------------------------------------------------------------------------------
  let playing = false;
  const show = () => {
    get("play").textContent = playing ? "Pause all" : "Play all";
    const first = leader();
    if (!first) return;
    get("position").value = first.currentTime / (seconds(first) || 1);
    get("position").setAttribute("aria-valuetext", `${first.currentTime.toFixed(1)} s`);
  };
  const seek = (time) => videos().forEach((video) => { video.currentTime = Math.min(time, seconds(video)); });
  const hear = () => {
    const shown = videos();
    shown.forEach((video, number) => { video.muted = !(get("sound").checked && number === 0); });
  };
  const start = () => {
    const first = leader();
    if (!first) return;
    if (first.ended) seek(0);
    else seek(first.currentTime);
    playing = true;
    // One that has ended and is shorter than the leader stays so.
    videos().forEach((video) => { if (video === first || first.currentTime < seconds(video)) video.play().catch(() => {}); });
    show();
    tick();
  };
  const stop = () => {
    playing = false;
    videos().forEach((video) => video.pause());
    show();
  };
  const tick = () => {
    if (!playing) return;
    const first = leader();
    if (!first) return stop();
    if (first.ended) {
      if (!get("loop").checked) return stop();
      seek(0);
      return start();
    }
    for (const video of videos()) {
      const late = first.currentTime - video.currentTime;
      if (first.currentTime < seconds(video) && Math.abs(late) > 0.15) video.currentTime = first.currentTime;
    }
    show();
    setTimeout(tick, 100);
  };
  get("play").addEventListener("click", () => (playing ? stop() : start()));
  get("start").addEventListener("click", () => { seek(0); if (!playing) start(); });
  get("sound").addEventListener("change", hear);
  get("position").addEventListener("input", (event) => seek(event.target.value * (leader() ? seconds(leader()) : 0)));

  all("video").forEach((video) => video.addEventListener("error", () => {
    video.hidden = true;
    video.closest("figure").querySelector(".unplayable").hidden = false;
  }));
  choose();
}
