// What Gradio does not tell people who cannot see the page: names of buttons, and which error belongs to which field.
(() => {
  // Gradio names some buttons by other words than those that are seen, which voice control needs.
  const rename = () => {
    document.querySelectorAll("button.upload-container[aria-label]").forEach((one) => one.removeAttribute("aria-label"));
    document.querySelectorAll("button.playback[aria-label]").forEach((one) => {
      const text = one.textContent.trim();
      if (text && !one.ariaLabel.startsWith(text)) one.ariaLabel = `${text}: ${one.ariaLabel}`;
    });
  };

  const PLACES = { people: "boxes" };
  const FIELDS = "textarea, input:not([type=file]):not([type=hidden]), [role=group], button.upload-container, button";
  // An element that is shown, of the field's own part of the page.
  const fieldOf = (name) => {
    const place = document.getElementById(PLACES[name] || name);
    const kind = document.getElementById(name.replace("voice", "kind"));
    const shown = [place, kind].filter((one) => one && one.offsetParent !== null);
    for (const part of shown) {
      const found = [...part.querySelectorAll(FIELDS)].find((one) => one.offsetParent !== null);
      if (found) return found;
    }
    return null;
  };
  const mark = () => {
    const told = new Map();
    document.querySelectorAll(".error-place").forEach((place) => {
      const name = place.id.replace("error-", "");
      const field = place.querySelector(".error") && fieldOf(name);
      if (field) told.set(field, place.id);
    });
    document.querySelectorAll("[data-told]").forEach((field) => {
      if (told.get(field) === field.dataset.told) return;
      ["aria-invalid", "aria-describedby", "data-told"].forEach((name) => field.removeAttribute(name));
    });
    told.forEach((id, field) => {
      if (field.dataset.told === id) return;
      field.setAttribute("aria-describedby", id);
      field.setAttribute("aria-invalid", "true");
      field.dataset.told = id;
    });
  };
  // What the error is in may have to be opened first.
  window.toError = (tries = 20) => {
    const error = document.querySelector(".error-place .error");
    if (!error || error.offsetParent === null) {
      if (tries) setTimeout(() => window.toError(tries - 1), 100);
      return;
    }
    mark();
    const field = document.querySelector("[data-told]");
    if (field && field.tabIndex >= 0) field.focus({ preventScroll: true });
    error.scrollIntoView({ block: "center" });
  };
  new MutationObserver(() => { rename(); mark(); }).observe(document, { childList: true, subtree: true, characterData: true });
})();
