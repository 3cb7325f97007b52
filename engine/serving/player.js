// Plays a video while it is made. The endpoint's page and the studio both have this file before their own.
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const once = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

// "avc1.640028,mp4a.40.2": profile, compatibility and level are the bytes behind the version in the box avcC.
function codecs(init) {
  const at = init.findIndex((_, i) => init[i] === 0x61 && init[i + 1] === 0x76 && init[i + 2] === 0x63 && init[i + 3] === 0x43);
  const hex = [...init.slice(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return `avc1.${hex},mp4a.40.2`;
}

async function append(video, buffer, content) {
  for (;;) {
    const done = once(buffer, "updateend");
    try { buffer.appendBuffer(content); await done; return; } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
    }
    // Full: remove what was played already.
    const played = video.currentTime - 5;
    if (played > 0) { buffer.remove(0, played); await done; }
    await pause(1000);
  }
}

// Appends the parts of the playlist `address` to `video` as they appear, as long as `wanted()`. Once `ended()`, nothing
// more can come. `opened` gets the address that the video has then, which the caller revokes; `place` returns where a
// name in the playlist is.
async function playLive(video, address, { wanted, ended, opened, place = (name) => new URL(name, address) }) {
  video.hidden = false;
  if (!window.MediaSource) { video.src = address; return; } // iPhones play HLS themselves
  const fetched = async (url) => {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    return response;
  };
  const bytes = async (name) => new Uint8Array(await (await fetched(place(name))).arrayBuffer());
  const source = new MediaSource();
  video.src = URL.createObjectURL(source);
  opened(video.src);
  await once(source, "sourceopen");
  let buffer = null, known = 0;
  while (wanted()) {
    const last = ended();
    try {
      const text = await (await fetched(address)).text();
      if (buffer === null) {
        const init = await bytes(/#EXT-X-MAP:URI="([^"]+)"/.exec(text)[1]);
        buffer = source.addSourceBuffer(`video/mp4; codecs="${codecs(init)}"`);
        await append(video, buffer, init);
      }
      const parts = text.split("\n").filter((line) => line && !line.startsWith("#"));
      for (; known < parts.length && wanted(); known++) {
        await append(video, buffer, await bytes(parts[known]));
        if (known === 0) video.play().catch(() => {}); // a browser may ask for a click first
      }
      if (wanted() && (last || text.includes("#EXT-X-ENDLIST"))) { source.endOfStream(); return; }
    } catch (error) {
      if (last) return;
    }
    await pause(500);
  }
}
